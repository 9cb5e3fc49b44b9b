//! The global checkpoints of a repository: what its tags name, and where a line of checkpoints has come to.

mod sizes;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use image_format::annotation::MEDIA_INDEX;
use image_format::{ApplicationId, Artifact, ArtifactError, Descriptor, Digest, GlobalCheckpoint};

pub use sizes::{Sizes, sizes};

use crate::{Selector, Store, StoreError, Tag};

/// A global checkpoint under a tag.
#[derive(Debug)]
pub struct Listed {
    /// The tag.
    pub tag: Tag,
    /// The index.
    pub root: Descriptor,
    /// What it says.
    pub global: GlobalCheckpoint,
}

/// Why a global checkpoint is not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogueError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It looks like a checkpoint and cannot be read.
    #[error("{digest} in {store} is not a checkpoint that can be read")]
    Artifact {
        /// The store's name.
        store: String,
        /// The manifest or index.
        digest: Digest,
        /// Why.
        #[source]
        source: ArtifactError,
    },
    /// A checkpoint image, where a global checkpoint was looked for.
    #[error("the tag {tag} in {store} names a checkpoint image, not a global checkpoint")]
    Member {
        /// The store's name.
        store: String,
        /// The tag.
        tag: Tag,
    },
}

/// All global checkpoints under tags, in the order of the tags, and what looks like one and cannot be read.
///
/// # Errors
/// The store fails.
pub async fn catalogue(
    store: &dyn Store,
    jobs: usize,
) -> Result<(Vec<Listed>, Vec<(Tag, CatalogueError)>), StoreError> {
    let tags = store.tags().await?.into_iter().filter(|tag| !tag.as_str().starts_with("sha256-"));
    let mut entries = stream::iter(tags)
        .map(|tag| async move {
            let entry = entry(store, &tag).await;
            (tag, entry)
        })
        .buffered(jobs.max(1))
        .map(|(tag, entry)| match entry {
            // One damaged or missing manifest must not hide the others.
            Err(CatalogueError::Store(
                error @ (StoreError::NotFound { .. } | StoreError::Corrupt { .. } | StoreError::TooLarge { .. }),
            )) => Ok((tag, Err(CatalogueError::Store(error)))),
            Err(CatalogueError::Store(error)) => Err(error),
            entry => Ok((tag, entry)),
        });
    let (mut listed, mut damaged) = (Vec::new(), Vec::new());
    while let Some((tag, entry)) = entries.try_next().await? {
        match entry {
            Ok(Some((root, global))) => listed.push(Listed { tag, root, global }),
            Ok(None) => {}
            Err(error) => damaged.push((tag, error)),
        }
    }
    Ok((listed, damaged))
}

/// The global checkpoint that a tag names, if it names anything.
///
/// # Errors
/// The store fails, or the tag names something else.
pub async fn under_tag(store: &dyn Store, tag: &Tag) -> Result<Option<Listed>, CatalogueError> {
    let root = match store.resolve(&Selector::Tag(tag.clone())).await {
        Ok(root) => root,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match artifact(store, &root).await? {
        Artifact::Global(global) => Ok(Some(Listed { tag: tag.clone(), root, global })),
        Artifact::Member(_) => Err(CatalogueError::Member { store: store.name().to_owned(), tag: tag.clone() }),
    }
}

/// The one of an application with the highest epoch; none in a repository that is not there yet.
///
/// # Errors
/// The store fails.
pub async fn newest(store: &dyn Store, application: &ApplicationId, jobs: usize) -> Result<Option<Listed>, StoreError> {
    let listed = match catalogue(store, jobs).await {
        Ok((listed, _)) => listed,
        Err(StoreError::NotFound { .. }) => Vec::new(),
        Err(error) => return Err(error),
    };
    let own = listed.into_iter().filter(|listed| listed.global.application() == application);
    Ok(own.max_by_key(|listed| listed.global.epoch()))
}

async fn artifact(store: &dyn Store, root: &Descriptor) -> Result<Artifact, CatalogueError> {
    let document = store.manifest(&root.digest).await?;
    let damaged = |source| CatalogueError::Artifact { store: store.name().to_owned(), digest: root.digest, source };
    Artifact::parse(&document).map_err(damaged)
}

async fn entry(store: &dyn Store, tag: &Tag) -> Result<Option<(Descriptor, GlobalCheckpoint)>, CatalogueError> {
    // Between the listing and this, a tag may have been deleted.
    let root = match store.resolve(&Selector::Tag(tag.clone())).await {
        Ok(root) if root.media_type == MEDIA_INDEX => root,
        Ok(_) | Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match artifact(store, &root).await? {
        Artifact::Global(global) => Ok(Some((root, global))),
        Artifact::Member(_) => Ok(None),
    }
}
