//! Why an engine did not do what it was asked.

use std::io;

use crate::program::ProgramError;

/// Why an engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// One of its programs failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Its daemon does not answer.
    #[error("{engine} does not answer: {words}")]
    NoDaemon {
        /// The engine.
        engine: &'static str,
        /// What its client says.
        words: String,
    },
    /// What runs a container below its engine is not where it is looked for.
    #[error("the runtime and the bundle of {engine}'s container {container} are not found")]
    NoBundle {
        /// The engine.
        engine: &'static str,
        /// The container.
        container: String,
    },
    /// Its answer is not what this program knows.
    #[error("the answer of `{command}` is not understood")]
    Answer {
        /// The question.
        command: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Processes that it left could not be killed, or its mounts not be taken away.
    #[error("what is left of container {container} cannot be taken away")]
    Kill {
        /// The container.
        container: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A volume was filled, and its own folder could not be made as it was.
    #[error("the folder of the volume {volume} cannot get its owner and mode back")]
    Volume {
        /// The volume.
        volume: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl EngineError {
    /// Whether there is no such engine on this host: its program is not installed, or its daemon does not run.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        match self {
            Self::Program(error) => error.is_missing(),
            Self::NoDaemon { .. } => true,
            _ => false,
        }
    }
}
