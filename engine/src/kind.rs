//! The engines that there are, by their names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::driver::Engine;
use crate::podman::Podman;
use crate::runc::Runc;

/// What runs containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// podman, through `podman container restore`.
    Podman,
    /// runc alone, with a bundle.
    Runc,
}

impl EngineKind {
    /// The program's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Runc => "runc",
        }
    }

    /// The driver.
    pub fn driver(self) -> &'static dyn Engine {
        match self {
            Self::Podman => &Podman,
            Self::Runc => &Runc,
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text is not an engine's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an engine: podman or runc")]
pub struct ParseEngineError {
    text: String,
}

impl FromStr for EngineKind {
    type Err = ParseEngineError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "podman" => Ok(Self::Podman),
            "runc" => Ok(Self::Runc),
            _ => Err(ParseEngineError { text: text.chars().take(64).collect() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_have_names() {
        for kind in [EngineKind::Podman, EngineKind::Runc] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("docker".parse::<EngineKind>().is_err());
    }
}
