//! Errors as text for people.

use std::error::Error;

/// An error with all its causes in one line. A cause that the error before it has told in its own words is not told again.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut last = error.to_string();
    let mut text = last.clone();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !last.contains(&words) {
            text.push_str(&format!(": {words}"));
            last = words;
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{words}")]
    struct Told {
        words: &'static str,
        source: Option<Box<Told>>,
    }

    #[test]
    fn nothing_is_told_twice() {
        let told = |words, source: Option<Told>| Told { words, source: source.map(Box::new) };
        assert_eq!(chain(&told("one", Some(told("two", Some(told("three", None)))))), "one: two: three");
        assert_eq!(chain(&told("nothing: two", Some(told("two", Some(told("three", None)))))), "nothing: two: three");
        assert_eq!(chain(&told("one", Some(told("one", None)))), "one");
    }
}
