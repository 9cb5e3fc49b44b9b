//! The global checkpoints of a repository: what its tags name, and where a line of checkpoints has come to.

mod complete;
mod sizes;

use futures_util::stream::{self, StreamExt};
use image_format::annotation::MEDIA_INDEX;
use image_format::{ApplicationId, Artifact, ArtifactError, Descriptor, Digest, Epoch, GlobalCheckpoint};

pub(crate) use complete::{Completeness, given};
pub use sizes::{Sizes, sizes};

use crate::sign::{Finding, GoodSignature, reasons};
use crate::{Selector, Store, StoreError, Tag, TagList, Trust};

/// A global checkpoint under a tag.
#[derive(Debug)]
pub struct Listed {
    /// The tag.
    pub tag: Tag,
    /// The index.
    pub root: Descriptor,
    /// What it says.
    pub global: GlobalCheckpoint,
    /// The signatures by which the trust accepted it; none where nobody was asked.
    pub signatures: Vec<GoodSignature>,
}

/// A tag whose global checkpoint is not in the list.
#[derive(Debug)]
pub struct PassedOver {
    /// The tag, as the store lists it.
    pub tag: String,
    /// Why it is passed over.
    pub why: CatalogueError,
}

/// What the tags of a repository lead to.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// The global checkpoints that the trust accepts, in the order of their tags.
    pub listed: Vec<Listed>,
    /// The tags of everything else that may be a global checkpoint: nobody of the trust signed it, or it cannot be read.
    pub passed_over: Vec<PassedOver>,
}

/// The end of a line.
#[derive(Debug, Default)]
pub struct Newest {
    /// The global checkpoint with the highest epoch of those that the trust accepts.
    pub listed: Option<Listed>,
    /// Tags that cannot be read, and those of higher epochs that the trust does not accept.
    pub passed_over: Vec<PassedOver>,
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
    /// An entry of the list of tags that is no tag.
    #[error("{store} lists it, and it is no tag")]
    NoTag {
        /// The store's name.
        store: String,
    },
    /// No key of the trust signed it.
    #[error("no trusted key signed {digest} in {store}: {}", reasons(findings))]
    Untrusted {
        /// The store's name.
        store: String,
        /// The index.
        digest: Digest,
        /// What speaks against it.
        findings: Vec<Finding>,
    },
}

/// All global checkpoints under tags that the trust accepts, and the tags that are passed over, each with its reason.
///
/// # Errors
/// The store cannot list its tags, or is gone when one of them cannot be reached. An answer that one tag gets ends nothing.
pub async fn catalogue(store: &dyn Store, trust: &Trust, jobs: usize) -> Result<Catalogue, StoreError> {
    let (tags, passed_over) = tags(store).await?;
    let mut catalogue = Catalogue { passed_over, ..Catalogue::default() };
    let mut entries = stream::iter(tags)
        .map(|tag| async move {
            let entry = trusted(store, trust, &tag).await;
            (tag, entry)
        })
        .buffered(jobs.max(1));
    while let Some((tag, entry)) = entries.next().await {
        match entry {
            Ok(Some(listed)) => catalogue.listed.push(listed),
            Ok(None) => {}
            Err(why) => catalogue.passed_over.push(PassedOver { tag: tag.to_string(), why }),
        }
    }
    drop(entries);
    still_there(store, &catalogue.passed_over).await?;
    Ok(catalogue)
}

/// The one of an application with the highest epoch of those that the trust accepts; none in a repository that is not there yet.
///
/// # Errors
/// Those of [`catalogue`].
pub async fn newest(
    store: &dyn Store,
    application: &ApplicationId,
    trust: &Trust,
    jobs: usize,
) -> Result<Newest, StoreError> {
    let (tags, passed_over) = match tags(store).await {
        Ok(tags) => tags,
        Err(StoreError::NotFound { .. }) => return Ok(Newest::default()),
        Err(error) => return Err(error),
    };
    let mut newest = Newest { passed_over, ..Newest::default() };
    // Only the epochs are kept of what nobody may have signed.
    let mut line: Vec<(Epoch, Tag)> = Vec::new();
    let mut epochs = stream::iter(tags)
        .map(|tag| async move {
            let found = found(store, &tag).await;
            let epoch = found.map(|found| {
                found.filter(|(_, global)| global.application() == application).map(|(_, global)| global.epoch())
            });
            (tag, epoch)
        })
        .buffered(jobs.max(1));
    while let Some((tag, epoch)) = epochs.next().await {
        match epoch {
            Ok(Some(epoch)) => line.push((epoch, tag)),
            Ok(None) => {}
            Err(why) => newest.passed_over.push(PassedOver { tag: tag.to_string(), why }),
        }
    }
    drop(epochs);
    line.sort();
    while let Some((_, tag)) = line.pop() {
        match trusted(store, trust, &tag).await {
            // The tag may have been moved meanwhile.
            Ok(listed) => newest.listed = listed.filter(|listed| listed.global.application() == application),
            Err(why) => newest.passed_over.push(PassedOver { tag: tag.to_string(), why }),
        }
        if newest.listed.is_some() {
            break;
        }
    }
    still_there(store, &newest.passed_over).await?;
    Ok(newest)
}

/// The tags that may name a global checkpoint, and what else is listed among them.
async fn tags(store: &dyn Store) -> Result<(impl Iterator<Item = Tag>, Vec<PassedOver>), StoreError> {
    let TagList { tags, odd } = store.tag_list().await?;
    let no_tag = |tag| PassedOver { tag, why: CatalogueError::NoTag { store: store.name().to_owned() } };
    let tags = tags.into_iter().filter(|tag| !tag.as_str().starts_with("sha256-"));
    Ok((tags, odd.into_iter().map(no_tag).collect()))
}

/// Tells a store that is gone, of which nothing can be said, from one that does not give out some of its content.
async fn still_there(store: &dyn Store, passed_over: &[PassedOver]) -> Result<(), StoreError> {
    let unreachable = |passed: &PassedOver| matches!(passed.why, CatalogueError::Store(StoreError::Unreachable { .. }));
    if passed_over.iter().any(unreachable) {
        store.tags().await?;
    }
    Ok(())
}

/// The global checkpoint that a tag names, if it names anything.
///
/// # Errors
/// The store fails, the tag names something else, or the trust does not accept it.
pub async fn under_tag(store: &dyn Store, trust: &Trust, tag: &Tag) -> Result<Option<Listed>, CatalogueError> {
    let root = match store.resolve(&Selector::Tag(tag.clone())).await {
        Ok(root) => root,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match artifact(store, &root).await? {
        Artifact::Global(global) => accept(store, trust, tag, root, global).await.map(Some),
        Artifact::Member(_) => Err(CatalogueError::Member { store: store.name().to_owned(), tag: tag.clone() }),
    }
}

async fn artifact(store: &dyn Store, root: &Descriptor) -> Result<Artifact, CatalogueError> {
    let document = store.manifest(&root.digest).await?;
    let damaged = |source| CatalogueError::Artifact { store: store.name().to_owned(), digest: root.digest, source };
    Artifact::parse(&document).map_err(damaged)
}

/// The global checkpoint under a tag, whoever made it; none if the tag names something else.
async fn found(store: &dyn Store, tag: &Tag) -> Result<Option<(Descriptor, GlobalCheckpoint)>, CatalogueError> {
    let root = store.resolve(&Selector::Tag(tag.clone())).await?;
    if root.media_type != MEDIA_INDEX {
        return Ok(None);
    }
    match artifact(store, &root).await? {
        Artifact::Global(global) => Ok(Some((root, global))),
        Artifact::Member(_) => Ok(None),
    }
}

/// The same, if the trust accepts it.
async fn trusted(store: &dyn Store, trust: &Trust, tag: &Tag) -> Result<Option<Listed>, CatalogueError> {
    match found(store, tag).await? {
        Some((root, global)) => accept(store, trust, tag, root, global).await.map(Some),
        None => Ok(None),
    }
}

async fn accept(
    store: &dyn Store,
    trust: &Trust,
    tag: &Tag,
    root: Descriptor,
    global: GlobalCheckpoint,
) -> Result<Listed, CatalogueError> {
    match trust.check(store, &root).await? {
        Ok(signatures) => Ok(Listed { tag: tag.clone(), root, global, signatures }),
        Err(findings) => {
            Err(CatalogueError::Untrusted { store: store.name().to_owned(), digest: root.digest, findings })
        }
    }
}
