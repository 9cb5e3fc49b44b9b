//! The engines that there are, by their names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What runs containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// podman, through `podman container restore`.
    Podman,
    /// Docker, dumped beside it by its runtime.
    Docker,
    /// runc alone, with a bundle.
    Runc,
}

impl EngineKind {
    /// All of them, in the order in which a container is looked for.
    pub const ALL: &[Self] = &[Self::Podman, Self::Docker, Self::Runc];

    /// The program's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
            Self::Runc => "runc",
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
#[error("{text:?} is not an engine: podman, docker or runc")]
pub struct ParseEngineError {
    text: String,
}

impl FromStr for EngineKind {
    type Err = ParseEngineError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.iter().copied().find(|kind| kind.as_str() == text);
        known.ok_or_else(|| ParseEngineError { text: text.chars().take(64).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_have_names() {
        for kind in EngineKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(*kind));
        }
        assert!("lxc".parse::<EngineKind>().is_err());
    }
}
