//! What is wrong with a plan, and where.

use std::ops::Range;
use std::path::Path;

use crate::error::CommandError;
use crate::exit::Exit;

/// Characters of a line that are shown.
const SHOWN: usize = 120;

/// Something wrong, and the bytes of the text that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    at: Range<usize>,
    message: String,
    hint: Option<String>,
}

impl Problem {
    pub fn new(at: Range<usize>, message: impl ToString) -> Self {
        Self { at, message: message.to_string(), hint: None }
    }

    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// With a word that may have been meant.
    pub fn meant(self, word: Option<&str>) -> Self {
        match word {
            Some(word) => self.hint(format!("did you mean {word}?")),
            None => self,
        }
    }

    /// For a person: the place, the line, and a mark under what is wrong.
    pub fn in_file(self, path: &Path, text: &str) -> CommandError {
        let place = Place::of(&self.at, text);
        let message = format!("{}:{}:{}: {}", path.display(), place.line, place.column, self.message);
        let number = place.line.to_string();
        let error = CommandError::new(Exit::Usage, message).details([
            format!("{number} | {}", place.shown),
            format!("{} | {}{}", " ".repeat(number.len()), " ".repeat(place.indent), "^".repeat(place.marks)),
        ]);
        match self.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// A place in a text as people count.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    line: usize,
    /// In characters, from 1.
    column: usize,
    /// The line, or as much of it as is around the place.
    shown: String,
    /// Characters of it before the place.
    indent: usize,
    marks: usize,
}

impl Place {
    fn of(at: &Range<usize>, text: &str) -> Self {
        let boundary = |mut at: usize| {
            at = at.min(text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let (begin, end) = (boundary(at.start), boundary(at.end));
        let line_begin = text[..begin].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[begin..].find('\n').map_or(text.len(), |at| begin + at);
        let line = text[line_begin..line_end].trim_end_matches('\r');
        let before = text[line_begin..begin].chars().count();
        let wide = text[begin..end.clamp(begin, line_end)].chars().count();
        let left_out = if line.chars().count() > SHOWN { before.saturating_sub(SHOWN / 2) } else { 0 };
        let visible = |c: char| {
            if c == '\t' {
                ' '
            } else if c.is_control() {
                '\u{fffd}'
            } else {
                c
            }
        };
        let shown: String = line.chars().skip(left_out).take(SHOWN).map(visible).collect();
        let indent = before - left_out;
        let room = shown.chars().count().saturating_sub(indent);
        let number = text[..line_begin].matches('\n').count() + 1;
        Self { line: number, column: before + 1, shown, indent, marks: wide.min(room).max(1) }
    }
}

/// The word that is closest to another, if it is close.
pub(super) fn closest<'w>(word: &str, words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let allowed = (word.chars().count() / 3).clamp(1, 3);
    let close = words.into_iter().map(|known| (distance(word, known), known));
    close.filter(|(distance, _)| *distance <= allowed).min().map(|(_, known)| known)
}

/// How many characters must be added, removed or replaced. Only as much of the words is looked at as a name can have.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(128).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(128).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_as_people_count() {
        let text = "a = 1\nä\tb = \"ü\"\r\n\nlast";
        let place = |word: &str| {
            let at = text.find(word).unwrap();
            Place::of(&(at..at + word.len()), text)
        };
        let second = place("\"ü\"");
        let expected = Place { line: 2, column: 7, shown: "ä b = \"ü\"".to_owned(), indent: 6, marks: 3 };
        assert_eq!(second, expected);
        assert_eq!((place("last").line, place("last").column), (4, 1));
        assert_eq!(Place::of(&(999..1000), text).line, 4);
        assert_eq!(Place::of(&(0..text.len()), text).marks, 5, "of what spans lines, the first line");
        assert_eq!(Place::of(&(0..0), ""), Place { line: 1, column: 1, shown: String::new(), indent: 0, marks: 1 });
        let long = format!("{}x{}", "a".repeat(1000), "b".repeat(1000));
        let place = Place::of(&(1000..1001), &long);
        assert_eq!((place.column, place.indent, place.shown.chars().nth(place.indent)), (1001, 60, Some('x')));
    }

    #[test]
    fn close_words_are_found() {
        let words = ["depends-on", "container", "engine", "id"];
        for (word, expected) in [
            ("depend-on", Some("depends-on")),
            ("containr", Some("container")),
            ("ID", None),
            ("image", None),
            ("engin", Some("engine")),
        ] {
            assert_eq!(closest(word, words), expected, "{word}");
        }
    }
}
