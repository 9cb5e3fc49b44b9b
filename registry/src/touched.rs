//! Pages that tasks asked for first when a member was restored lazily: kept beside its image under the tag `sha256-<hex>.touched`, where
//! `prune` finds what belongs to a manifest. What they hold is for [`image_format`] to say; nobody has to have them, and whoever
//! reads them checks each page.

use image_format::{Descriptor, Digest, Document};
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use crate::copy::put_small_blob;
use crate::{Selector, Store, StoreError, Tag, artifact};

/// Media type of the pages, and artifact type of their manifest.
const MEDIA_TOUCHED: &str = "application/vnd.syncpoint.touched-pages.v1+zstd";
/// Bytes that are read.
const LIMIT: u64 = 64 << 20;

#[derive(Debug, Deserialize)]
struct Manifest {
    layers: Vec<Descriptor>,
}

/// Puts the pages of a member's image, in place of those that were there.
///
/// # Errors
/// A store that does not take them.
pub async fn put_touched(store: &dyn Store, image: &Digest, pages: Vec<u8>) -> Result<(), StoreError> {
    let pages = Document::new(MEDIA_TOUCHED, pages);
    let manifest = artifact::manifest(MEDIA_TOUCHED, &pages.descriptor(), []);
    let manifest = manifest.map_err(|error| failed(store, image, error.to_string()))?;
    put_small_blob(store, &pages, &()).await?;
    artifact::put_config(store).await?;
    store.put_manifest(&manifest, Some(&tag(image))).await
}

/// The pages that were put for a member's image; nothing where none were.
///
/// # Errors
/// A store that does not answer, or something else under that tag.
pub async fn touched(store: &dyn Store, image: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
    let found = match store.resolve(&Selector::Tag(tag(image))).await {
        Ok(found) => found,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let document = store.manifest(&found.digest).await?;
    let manifest: Manifest =
        serde_json::from_slice(document.bytes()).map_err(|error| failed(store, image, error.to_string()))?;
    let pages = manifest.layers.into_iter().find(|layer| layer.media_type == MEDIA_TOUCHED && layer.size <= LIMIT);
    let pages = pages.ok_or_else(|| failed(store, image, "it names no pages".to_owned()))?;
    let mut bytes = Vec::new();
    let read = store.read_blob(&pages).await?.read_to_end(&mut bytes).await;
    read.map_err(|error| StoreError::from_stream(store.name(), "reading the pages that were touched first", error))?;
    Ok(Some(bytes))
}

fn tag(image: &Digest) -> Tag {
    Tag::of_digest(image, ".touched")
}

fn failed(store: &dyn Store, image: &Digest, reason: String) -> StoreError {
    let what = format!("{}, the pages that were touched first,", tag(image));
    StoreError::Corrupt { store: store.name().to_owned(), what, reason }
}
