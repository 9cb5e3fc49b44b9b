//! Manifests of what is no image: something with a type of its own, and nothing to say in a config.

use image_format::annotation::MEDIA_MANIFEST;
use image_format::{Descriptor, Document, canonical_json};
use serde_json::{Map, Value, json};

use crate::copy::put_small_blob;
use crate::{Store, StoreError};

/// The OCI specification's empty JSON document, where a manifest has to have a config and there is nothing to say.
pub(crate) const MEDIA_EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// The empty document.
pub(crate) fn empty() -> Document {
    Document::new(MEDIA_EMPTY, b"{}".to_vec())
}

/// The manifest of an artifact with one layer, and with these further fields.
pub(crate) fn manifest(
    artifact_type: &str,
    layer: &Descriptor,
    more: impl IntoIterator<Item = (&'static str, Value)>,
) -> Result<Document, serde_json::Error> {
    let fields = [
        ("schemaVersion", json!(2)),
        ("mediaType", json!(MEDIA_MANIFEST)),
        ("artifactType", json!(artifact_type)),
        ("config", json!(empty().descriptor())),
        ("layers", json!([layer])),
    ];
    let fields = fields.into_iter().chain(more).map(|(key, value)| (key.to_owned(), value));
    Ok(Document::new(MEDIA_MANIFEST, canonical_json(&Value::Object(Map::from_iter(fields)))?))
}

/// Puts what such a manifest needs besides its layer.
pub(crate) async fn put_config(store: &dyn Store) -> Result<(), StoreError> {
    put_small_blob(store, &empty(), &()).await.map(drop)
}
