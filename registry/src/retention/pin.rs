//! Pins: tags `pin-HEX` that keep the checkpoint with that digest. As they are tags, any registry keeps them and any tool sees them.

use image_format::{Artifact, ArtifactError, Descriptor, Digest};

use super::{PIN, is_pin};
use crate::catalogue::given;
use crate::{Selector, Store, StoreError, Tag};

/// Why something cannot be pinned, or its pins not be taken away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is no global checkpoint, so `prune` would not touch it anyhow.
    #[error("{digest} in {store} is no global checkpoint")]
    NotGlobal {
        /// The store's name.
        store: String,
        /// What was to be pinned.
        digest: Digest,
        /// What it is not.
        #[source]
        source: Option<ArtifactError>,
    },
    /// It has no other tag, and would be lost.
    #[error("only its pin leads to {digest} in {store}")]
    OnlyTag {
        /// The store's name.
        store: String,
        /// The checkpoint.
        digest: Digest,
    },
}

/// Pins a global checkpoint. Gives the tag.
///
/// # Errors
/// See [`PinError`].
pub async fn pin(store: &dyn Store, root: &Descriptor) -> Result<Tag, PinError> {
    let document = store.manifest(&root.digest).await?;
    let not_global = |source| PinError::NotGlobal { store: store.name().to_owned(), digest: root.digest, source };
    match Artifact::parse(&document) {
        Ok(Artifact::Global(_)) => {}
        Ok(Artifact::Member(_)) => return Err(not_global(None)),
        Err(error) => return Err(not_global(Some(error))),
    }
    let tag = Tag::with_hex(PIN, &root.digest);
    store.put_manifest(&document, Some(&tag)).await?;
    Ok(tag)
}

/// Takes the pins of a checkpoint away. Gives them; none if it was not pinned.
///
/// # Errors
/// See [`PinError`].
pub async fn unpin(store: &dyn Store, root: &Descriptor) -> Result<Vec<Tag>, PinError> {
    let (mut pins, mut named) = (Vec::new(), false);
    for tag in store.tags().await? {
        if tag.about().is_some() {
            continue;
        }
        let Some(found) = given(store.resolve(&Selector::Tag(tag.clone())).await)? else { continue };
        match found.digest == root.digest {
            true if is_pin(&tag) => pins.push(tag),
            same => named |= same,
        }
    }
    if !pins.is_empty() && !named {
        return Err(PinError::OnlyTag { store: store.name().to_owned(), digest: root.digest });
    }
    for tag in &pins {
        store.delete_tag(tag).await?;
    }
    Ok(pins)
}
