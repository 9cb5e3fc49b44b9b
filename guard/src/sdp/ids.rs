//! Names in the Configuration DB, as SKA's own programs have them.

use std::fmt;
use std::str::FromStr;

/// What the id of a processing block is: `pb-mvp01-20200425-00000`.
///
/// SKA: `^pb-[a-z0-9]+-[0-9]{8}-[a-z0-9]+$`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(String);

impl BlockId {
    /// As it stands in keys.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BlockId {
    type Err = ParseBlockIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let parts: Vec<_> = text.split('-').collect();
        match parts.as_slice() {
            ["pb", generator, date, number]
                if text.len() <= MAX_ID
                    && word(generator)
                    && date.len() == 8
                    && date.bytes().all(|b| b.is_ascii_digit())
                    && word(number) =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(ParseBlockIdError(text.chars().take(MAX_ID).collect())),
        }
    }
}

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A longer one would not fit into names that are made of it.
const MAX_ID: usize = 64;

/// What is no id of a processing block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no id of a processing block, such as pb-mvp01-20200425-00000")]
pub struct ParseBlockIdError(String);

/// What stands in front of every key; nothing, usually.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefix(String);

impl Prefix {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Prefix {
    type Err = ParsePrefixError;

    /// A slash at the end is left out, as SKA's console does.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim_end_matches('/');
        let valid = text.is_empty() || text.starts_with('/');
        if valid && !text.chars().any(char::is_control) { Ok(Self(text.to_owned())) } else { Err(ParsePrefixError) }
    }
}

/// What is no prefix of keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a prefix begins with a slash")]
pub struct ParsePrefixError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_ska() {
        for good in ["pb-mvp01-20200425-00000", "pb-a-00000000-z"] {
            assert_eq!(good.parse::<BlockId>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "pb",
            "pb-mvp01-20200425-",
            "pb-mvp01-2020042-0",
            "eb-mvp01-20200425-00000",
            "pb-MVP-20200425-00000",
            "pb-mvp01-20200425-00000-1",
            "pb-mvp01-20200425-00/00",
            "pb--20200425-0",
            "pb-mvp01-2020042x-0",
        ] {
            assert!(bad.parse::<BlockId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_lose_their_last_slash() {
        assert_eq!("/a/b/".parse::<Prefix>().unwrap().as_str(), "/a/b");
        assert_eq!("/".parse::<Prefix>().unwrap(), Prefix::default());
        assert!("a".parse::<Prefix>().is_err());
    }
}
