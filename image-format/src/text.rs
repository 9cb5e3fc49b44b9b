//! Text from elsewhere, made fit for a message.

/// A text in one line of at most `most` bytes, without anything that a terminal would act on: whoever wrote it can neither
/// begin a line of a log nor hide a part of one.
#[must_use]
pub fn one_line(text: &str, most: usize) -> String {
    let mut line = String::with_capacity(text.len().min(most));
    for c in text.chars() {
        let unfit = c.is_control() || is_format(c);
        if unfit && line.ends_with(' ') {
            continue;
        }
        let c = if unfit { ' ' } else { c };
        if line.len() + c.len_utf8() > most {
            break;
        }
        line.push(c);
    }
    line.truncate(line.trim_end().len());
    line
}

/// Characters that reorder or hide the text around them, or begin a line of their own.
#[must_use]
pub fn is_format(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_said_is_one_line() {
        for (text, line) in [
            ("no room", "no room"),
            ("", ""),
            ("(00.1)     12: Error", "(00.1)     12: Error"),
            ("no\r\n2026-01-01  checkpoint 7 is permanent", "no 2026-01-01  checkpoint 7 is permanent"),
            ("a\u{1b}[2Jb\0\u{7f}\u{85}c\n\n", "a [2Jb c"),
            ("a\u{202e}b\u{2028}c\u{feff}", "a b c"),
        ] {
            assert_eq!(one_line(text, 100), line, "{text:?}");
        }
        assert_eq!((one_line("aé", 2).as_str(), one_line("aé", 3).as_str()), ("a", "aé"));
        assert!(one_line(&"é\n".repeat(10_000), 512).len() <= 512);
    }
}
