//! The global checkpoints of a repository.

use futures_util::stream::{self, StreamExt, TryStreamExt};
use image_format::annotation::MEDIA_INDEX;
use image_format::{ApplicationId, Artifact, Descriptor, GlobalCheckpoint};
use registry::{Selector, Store, StoreError, Tag};

use crate::error::{CommandError, While};
use crate::store;

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

/// All global checkpoints, and what is tagged, looks like one and cannot be read.
pub async fn read(store: &dyn Store, jobs: usize) -> Result<(Vec<Listed>, Vec<(Tag, CommandError)>), CommandError> {
    let tags = store.tags().await?.into_iter().filter(|tag| !tag.as_str().starts_with("sha256-"));
    let mut entries = stream::iter(tags)
        .map(|tag| async move {
            let entry = entry(store, &tag).await;
            entry.map(|entry| (tag, entry))
        })
        .buffered(jobs);
    let (mut listed, mut damaged) = (Vec::new(), Vec::new());
    while let Some((tag, entry)) = entries.try_next().await? {
        match entry {
            Some(Ok((root, global))) => listed.push(Listed { tag, root, global }),
            Some(Err(error)) => damaged.push((tag, error)),
            None => {}
        }
    }
    Ok((listed, damaged))
}

/// The global checkpoint that a tag names, if it names anything. Other things under it are an error.
pub async fn under_tag(store: &dyn Store, tag: &Tag) -> Result<Option<Listed>, CommandError> {
    let root = match store.resolve(&Selector::Tag(tag.clone())).await {
        Ok(root) => root,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let other = || format!("the tag {tag} in {} names something else", store.name());
    match store::artifact(store, &root).await.doing(other)? {
        Artifact::Global(global) => Ok(Some(Listed { tag: tag.clone(), root, global })),
        Artifact::Member(_) => Err(CommandError::usage("a checkpoint image").context(other())),
    }
}

/// The one of an application with the highest epoch.
pub fn newest<'a>(listed: &'a [Listed], application: &ApplicationId) -> Option<&'a Listed> {
    listed.iter().filter(|listed| listed.global.application() == application).max_by_key(|listed| listed.global.epoch())
}

type Entry = Result<(Descriptor, GlobalCheckpoint), CommandError>;

async fn entry(store: &dyn Store, tag: &Tag) -> Result<Option<Entry>, CommandError> {
    // Between the listing and this, a tag may have been deleted.
    let root = match store.resolve(&Selector::Tag(tag.clone())).await {
        Ok(root) if root.media_type == MEDIA_INDEX => root,
        Ok(_) | Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(match store::artifact(store, &root).await {
        Ok(Artifact::Global(global)) => Some(Ok((root, global))),
        Ok(Artifact::Member(_)) => None,
        Err(error) => Some(Err(error)),
    })
}
