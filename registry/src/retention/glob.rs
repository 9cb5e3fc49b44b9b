//! Patterns over tags: `*` for any characters, `?` for one.

use std::fmt;
use std::str::FromStr;

use crate::Tag;

/// Why a text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} can match no tag: a pattern has letters, digits, '_', '.', '-', '*' and '?', at most 128")]
pub struct ParseGlobError {
    text: String,
}

/// A pattern that a whole tag matches or does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(String);

impl Glob {
    /// Whether the tag matches.
    #[must_use]
    pub fn matches(&self, tag: &Tag) -> bool {
        let (pattern, text) = (self.0.as_bytes(), tag.as_str().as_bytes());
        let (mut at, mut position) = (0, 0);
        // Where the last star stood, and what it has taken so far: it takes one more when the rest does not fit.
        let mut star: Option<(usize, usize)> = None;
        while position < text.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, position));
                    at += 1;
                }
                Some(b'?') => (at, position) = (at + 1, position + 1),
                Some(byte) if *byte == text[position] => (at, position) = (at + 1, position + 1),
                _ => {
                    let Some((stood, taken)) = star else { return false };
                    star = Some((stood, taken + 1));
                    (at, position) = (stood + 1, taken + 1);
                }
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }
}

impl FromStr for Glob {
    type Err = ParseGlobError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '*' | '?');
        if (1..=128).contains(&text.len()) && text.chars().all(known) {
            return Ok(Self(text.to_owned()));
        }
        Err(ParseGlobError { text: text.chars().take(160).collect() })
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_tags() {
        let matching = [
            ("release-*", "release-1.2"),
            ("*", "x"),
            ("epoch-?", "epoch-4"),
            ("*-*-c", "a-b-b-c"),
            ("a*b*", "axxb"),
            ("latest", "latest"),
            ("**9", "19"),
        ];
        for (pattern, tag) in matching {
            assert!(pattern.parse::<Glob>().unwrap().matches(&tag.parse().unwrap()), "{pattern} {tag}");
        }
        let other =
            [("release-*", "prerelease-1"), ("epoch-?", "epoch-42"), ("epoch-?", "epoch-"), ("a", "A"), ("*b", "ba")];
        for (pattern, tag) in other {
            assert!(!pattern.parse::<Glob>().unwrap().matches(&tag.parse().unwrap()), "{pattern} {tag}");
        }
        let stars = format!("{}b", "*a".repeat(60));
        assert!(!stars.parse::<Glob>().unwrap().matches(&"a".repeat(128).parse().unwrap()));
    }

    #[test]
    fn what_is_no_pattern() {
        for bad in ["", "a/b", "[ab]", "é", &"a".repeat(129)] {
            assert!(bad.parse::<Glob>().is_err(), "{bad}");
        }
    }
}
