//! Either kind of document that this project keeps in a store.

use crate::annotation::{MEDIA_INDEX, MEDIA_MANIFEST};
use crate::image::DOCKER_MANIFEST;
use crate::{CheckpointImage, Document, GlobalCheckpoint, GlobalError, ImageError};

/// Why a document is neither.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// An image manifest, but not of a checkpoint image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An index, but not of a global checkpoint.
    #[error(transparent)]
    Global(#[from] GlobalError),
    /// Neither a manifest nor an index of the OCI image specification.
    #[error("is neither an image manifest nor an index but {media_type:?}")]
    MediaType {
        /// Its media type, at most 160 characters.
        media_type: String,
    },
}

/// What a name in a store can stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Artifact {
    /// The checkpoint image of one member.
    Member(CheckpointImage),
    /// The checkpoint of a whole application.
    Global(GlobalCheckpoint),
}

impl Artifact {
    /// Reads a document as what its media type says it is.
    ///
    /// # Errors
    /// A document that is neither, or does not read as what it says.
    pub fn parse(document: &Document) -> Result<Self, ArtifactError> {
        match document.media_type() {
            MEDIA_INDEX => Ok(Self::Global(GlobalCheckpoint::parse(document)?)),
            media_type if media_type == MEDIA_MANIFEST || media_type.starts_with(DOCKER_MANIFEST) => {
                Ok(Self::Member(CheckpointImage::parse(document)?))
            }
            media_type => Err(ArtifactError::MediaType { media_type: media_type.chars().take(160).collect() }),
        }
    }
}
