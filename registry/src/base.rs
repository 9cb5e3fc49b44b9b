//! Makes a checkpoint image of a store ready to be the base of the next one.

use std::path::PathBuf;
use std::sync::Arc;

use image_format::{Base, BaseError, CheckpointImage, Digest, ImageError, Limits};
use tokio::runtime::Handle;

use crate::{Bridge, Store, StoreError, first_missing};

/// Why an image cannot be a base. Whoever packs then stores all pages.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindBaseError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No checkpoint image.
    #[error("{store}@{image}")]
    Image {
        /// The store's name.
        store: String,
        /// The manifest.
        image: Digest,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// One of its layers is gone, so an image over it would be broken.
    #[error("{store}: the layer {layer} of the image {} is gone", image.short())]
    Gone {
        /// The store's name.
        store: String,
        /// The manifest.
        image: Digest,
        /// The layer.
        layer: Digest,
    },
    /// Its table of pages.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The thread that read it ended.
    #[error("reading the table of pages ended unexpectedly")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Looks whether all layers are there that an image over this one would name, and fetches its table of pages, which may go
/// into a file without a name in the folder `scratch`.
///
/// # Errors
/// An image that is gone, damaged, or not in generations.
pub async fn find_base(store: &Arc<dyn Store>, manifest: &Digest, scratch: PathBuf) -> Result<Base, FindBaseError> {
    let document = store.manifest(manifest).await?;
    let name = || store.name().to_owned();
    let image = CheckpointImage::parse(&document);
    let image = image.map_err(|source| FindBaseError::Image { store: name(), image: *manifest, source })?;
    let bridge = Bridge::new(Handle::current(), Arc::clone(store));
    let load = move || Base::load(&image, &bridge, &Limits::default(), &scratch);
    let base = tokio::task::spawn_blocking(load).await??;
    let layers: Vec<Digest> = base.layers().map(|layer| layer.digest).collect();
    store.hold(&layers).await?;
    if let Some(layer) = first_missing(&**store, base.layers()).await? {
        return Err(FindBaseError::Gone { store: name(), image: *manifest, layer: layer.digest });
    }
    Ok(base)
}
