//! The version of the format, as it stands in every document that this project writes.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::annotation::{FORMAT, FORMAT_VERSION};

/// `MAJOR.MINOR`. A reader of one major version reads every minor one: what a newer minor version adds may be passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FormatVersion {
    /// Changes when an older reader would misread the document.
    pub major: u32,
    /// Changes when something is added that an older reader may pass over.
    pub minor: u32,
}

/// Why a document's version is not one to go on with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatVersionError {
    /// Written by a program that is newer than this one.
    #[error("is of format version {found}, and this program reads up to {FORMAT_VERSION}: use a newer syncpoint")]
    Newer {
        /// The document's version.
        found: FormatVersion,
    },
    /// No version of the form `MAJOR.MINOR`.
    #[error("has the format version {text:?}, which is not of the form MAJOR.MINOR")]
    Malformed {
        /// The annotation, at most 64 characters of it.
        text: String,
    },
}

impl FormatVersion {
    /// The newest major version that is read, which is the one that is written.
    const MAJOR: u32 = 1;

    /// The version that a document's annotations state; `None` if they state none. It is looked for before anything else
    /// is made of the document, since a newer version may look different in every other place.
    pub(crate) fn read(document: &Value) -> Result<Option<Self>, FormatVersionError> {
        let Some(text) = document.get("annotations").and_then(|annotations| annotations.get(FORMAT)) else {
            return Ok(None);
        };
        let found: Self = text.as_str().unwrap_or_default().parse()?;
        if found.major > Self::MAJOR { Err(FormatVersionError::Newer { found }) } else { Ok(Some(found)) }
    }
}

impl FromStr for FormatVersion {
    type Err = FormatVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| {
            let plain = digits.bytes().all(|b| b.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
            if plain { digits.parse().ok() } else { None }
        };
        let version = text.split_once('.').and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
        let malformed = || FormatVersionError::Malformed { text: text.chars().take(64).collect() };
        version.filter(|(major, _)| *major > 0).map(|(major, minor)| Self { major, minor }).ok_or_else(malformed)
    }
}

impl fmt::Display for FormatVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_major_versions_are_refused() {
        let read = |text: &str| FormatVersion::read(&serde_json::json!({"annotations": {FORMAT: text}}));
        for none in [serde_json::json!({}), serde_json::json!([1]), serde_json::json!({"annotations": {}})] {
            assert_eq!(FormatVersion::read(&none), Ok(None));
        }
        assert_eq!(read(FORMAT_VERSION).unwrap().unwrap().major, FormatVersion::MAJOR);
        assert_eq!(read("1.99"), Ok(Some(FormatVersion { major: 1, minor: 99 })));
        assert!(matches!(read("2.0"), Err(FormatVersionError::Newer { .. })));
        for bad in ["", "1", "1.", ".1", "1.0.0", "+1.0", "01.0", "0.1", "1.x", "4294967296.0", " 1.0"] {
            assert!(matches!(read(bad), Err(FormatVersionError::Malformed { .. })), "{bad}");
        }
    }
}
