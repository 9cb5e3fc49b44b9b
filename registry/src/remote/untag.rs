//! Deleting a tag and nothing else.
//!
//! The distribution specification lets a registry delete a tag by its name, but older ones (docker-registry 2) only delete manifests, and
//! with them all tags that name them. There the tag is first moved to an empty manifest of its own, which is then deleted.

use image_format::annotation::MEDIA_MANIFEST;
use image_format::{Document, canonical_json};
use serde_json::json;

use super::RemoteStore;
use super::{documents, sweep};
use crate::copy::put_small_blob;
use crate::sign::MEDIA_EMPTY;
use crate::{Selector, StoreError, Tag};

const ARTIFACT_TYPE: &str = "application/vnd.syncpoint.untagged.v1";

/// Deletes a tag; what it names stays.
pub(super) async fn delete_tag(store: &RemoteStore, tag: &Tag) -> Result<(), StoreError> {
    let http = &*store.http;
    match documents::delete_tag(http, tag).await {
        Err(StoreError::Refused { .. }) => {}
        outcome => return outcome,
    }
    documents::get(http, &Selector::Tag(tag.clone())).await?;
    let empty = Document::new(MEDIA_EMPTY, b"{}".to_vec());
    let content = json!({
        "schemaVersion": 2,
        "mediaType": MEDIA_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": empty.descriptor(),
        "layers": [empty.descriptor()],
        // No two tags share one, since it takes all its tags along.
        "annotations": { "io.syncpoint.untagged": tag.as_str() },
    });
    let bytes = canonical_json(&content)
        .map_err(|error| http.transport.refused(&format!("deleting tag {tag}"), error.to_string()))?;
    let document = Document::new(MEDIA_MANIFEST, bytes);
    put_small_blob(store, &empty, &()).await?;
    documents::put(http, &document, Some(tag)).await?;
    sweep::delete(http, &document.digest()).await
}
