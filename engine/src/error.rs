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
