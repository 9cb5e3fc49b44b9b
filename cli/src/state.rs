//! What the dump in an image says about itself.

use std::sync::Arc;

use image_format::annotation::{CREATED, MEDIA_CONFIG};
use image_format::{CheckpointImage, Document, Facts, Limits};
use registry::{Bridge, Store};
use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;

use crate::context::Context;
use crate::error::{About, CommandError};
use crate::progress::Watched;
use crate::terminal::blocking;

/// Reads the small layers of an image.
pub async fn facts(store: &Arc<dyn Store>, image: CheckpointImage, context: &Context) -> Result<Facts, CommandError> {
    let blobs = Watched::new(Bridge::new(Handle::current(), Arc::clone(store)), context);
    blocking(move || Ok(image_format::read_state(&image, &blobs, &Limits::default())?)).await
}

/// When an image was made: as its manifest says, else as its config does, as in images that podman made.
pub async fn created(store: &dyn Store, image: &CheckpointImage) -> Result<Option<String>, CommandError> {
    if let Some(created) = image.annotations().get(CREATED) {
        return Ok(Some(created.clone()));
    }
    let (config, limit) = (image.config(), Limits::default().document_bytes);
    let mut bytes = Vec::new();
    // One that is larger is cut, and no JSON then.
    store.read_blob(config).await?.take(limit).read_to_end(&mut bytes).await?;
    let config = image.parse_config(&Document::new(MEDIA_CONFIG, bytes));
    Ok(config.map_err(|error| About::new(image.manifest().digest.to_string(), error))?.created)
}
