//! Names of applications and members, and the number of an attempt. A value that exists is valid.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest id in bytes: it must fit into a container name, a host name label's neighbourhood and an annotation.
const MAX_ID: usize = 128;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseIdError {
    /// Nothing between the separators.
    #[error("the {what} is empty")]
    Empty {
        /// "member id" or "application id".
        what: &'static str,
    },
    /// Over 128 bytes.
    #[error("the {what} has {len} bytes; at most 128 are allowed")]
    TooLong {
        /// "member id" or "application id".
        what: &'static str,
        /// Its length in bytes.
        len: usize,
    },
    /// A character outside `[A-Za-z0-9_.-]`, or a first one outside `[A-Za-z0-9]`.
    #[error(
        "{text:?} is no {what}: it starts with a letter or digit and goes on with letters, digits, '.', '_' or '-'"
    )]
    BadCharacter {
        /// "member id" or "application id".
        what: &'static str,
        /// The text, as given (at most 128 bytes).
        text: String,
    },
}

/// The rule that container names follow too (podman: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`), so that an id is always a safe
/// file name: it holds no separator and is neither `.` nor `..`.
fn check(what: &'static str, text: &str) -> Result<(), ParseIdError> {
    let bytes = text.as_bytes();
    let Some(first) = bytes.first() else {
        return Err(ParseIdError::Empty { what });
    };
    if bytes.len() > MAX_ID {
        return Err(ParseIdError::TooLong { what, len: bytes.len() });
    }
    let follows = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if !first.is_ascii_alphanumeric() || !bytes.iter().all(follows) {
        return Err(ParseIdError::BadCharacter { what, text: text.to_owned() });
    }
    Ok(())
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                check($what, text).map(|()| Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                check($what, &text).map(|()| Self(text))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

id_type!(
    /// One container of an application: letters, digits, `.`, `_`, `-`; at most 128 bytes; safe as a file name.
    MemberId,
    "member id"
);
id_type!(
    /// One distributed application, under the same rule as [`MemberId`].
    ApplicationId,
    "application id"
);

/// The number of one attempt to checkpoint or restore. Nothing from an older epoch is ever obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The attempt after this one; none after the last number.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Epoch {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_safe_file_names() {
        for good in ["a", "sdp-vis-receive.0", "A_b-c.9"] {
            assert_eq!(good.parse::<MemberId>().map(String::from), Ok(good.to_owned()));
        }
        for bad in ["", ".", "..", "-a", "a/b", "a b", "a\0", "é", "a,b", &"x".repeat(129)] {
            assert!(bad.parse::<MemberId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn epochs_count_up_and_stop_at_the_end() {
        assert_eq!(Epoch(1).next(), Some(Epoch(2)));
        assert_eq!(Epoch(u64::MAX).next(), None);
    }
}
