//! cosign's signature attachment: the manifest under the tag `sha256-<hex>.sig` whose layers are signed payloads.
//!
//! Everybody appends to it, so what others wrote is kept as it is, also what is not understood.

use image_format::annotation::{MEDIA_CONFIG, MEDIA_MANIFEST};
use image_format::{Descriptor, Digest, Document, canonical_json};
use serde_json::{Map, Value, json};

use crate::Tag;

/// Layer annotation with the base64 of the signature.
pub(crate) const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
/// Media type of a payload.
pub(crate) const MEDIA_PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// The tag under which the signatures of a manifest lie.
pub(crate) fn signature_tag(digest: &Digest) -> Tag {
    Tag::of_digest(digest, ".sig")
}

/// One attachment.
#[derive(Debug, Clone)]
pub(crate) struct Attachment {
    manifest: Map<String, Value>,
    layers: Vec<Value>,
}

impl Attachment {
    /// One without signatures.
    pub(crate) fn empty() -> Self {
        let manifest =
            Map::from_iter([("schemaVersion".to_owned(), json!(2)), ("mediaType".to_owned(), json!(MEDIA_MANIFEST))]);
        Self { manifest, layers: Vec::new() }
    }

    /// Reads one; the error says what is wrong with it.
    pub(crate) fn parse(document: &Document) -> Result<Self, String> {
        let mut manifest: Map<String, Value> =
            serde_json::from_slice(document.bytes()).map_err(|error| error.to_string())?;
        match manifest.remove("layers") {
            Some(Value::Array(layers)) => Ok(Self { manifest, layers }),
            _ => Err("it has no list of layers".to_owned()),
        }
    }

    /// The layers as they are.
    pub(crate) fn layers(&self) -> &[Value] {
        &self.layers
    }

    /// Adds a signed payload unless it is there. Says whether it was added.
    pub(crate) fn add(&mut self, layer: Value) -> bool {
        let key = |layer: &Value| (layer.get("digest").cloned(), layer.pointer(SIGNATURE_POINTER).cloned());
        let new = !self.layers.iter().any(|listed| key(listed) == key(&layer));
        if new {
            self.layers.push(layer);
        }
        new
    }

    /// The config, which lists the payloads as cosign does, and the manifest over it.
    pub(crate) fn to_documents(&self) -> Result<(Document, Document), serde_json::Error> {
        let diff_ids: Vec<_> = self.layers.iter().filter_map(|layer| layer.get("digest")).collect();
        let history: Vec<_> = diff_ids.iter().map(|_| json!({"created": NO_TIME})).collect();
        let config = json!({
            "architecture": "",
            "config": {},
            "created": NO_TIME,
            "history": history,
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = Document::new(MEDIA_CONFIG, canonical_json(&config)?);
        let mut manifest = self.manifest.clone();
        manifest.insert("config".to_owned(), serde_json::to_value(config.descriptor())?);
        manifest.insert("layers".to_owned(), Value::Array(self.layers.clone()));
        let media_type = manifest.get("mediaType").and_then(Value::as_str).unwrap_or(MEDIA_MANIFEST).to_owned();
        Ok((config, Document::new(media_type, canonical_json(&manifest)?)))
    }
}

/// The layer of a payload and its signature.
pub(crate) fn payload_layer(payload: &Descriptor, signature: &str) -> Result<Value, serde_json::Error> {
    let mut layer = serde_json::to_value(payload)?;
    layer["annotations"] = json!({ SIGNATURE: signature });
    Ok(layer)
}

/// Go's zero time, which is what cosign writes where no time is meant.
const NO_TIME: &str = "0001-01-01T00:00:00Z";
/// [`SIGNATURE`] inside a layer, as a JSON pointer.
pub(crate) const SIGNATURE_POINTER: &str = "/annotations/dev.cosignproject.cosign~1signature";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_added_once_and_others_stay() {
        let text = br#"{"annotations":{"k":"v"},"layers":[{"digest":"sha256:00","strange":true}],"schemaVersion":2}"#;
        let mut attachment = Attachment::parse(&Document::new(MEDIA_MANIFEST, text.to_vec())).unwrap();
        let payload = Document::new(MEDIA_PAYLOAD, b"{}".to_vec()).descriptor();
        let layer = payload_layer(&payload, "c2ln").unwrap();
        assert_eq!(layer.pointer(SIGNATURE_POINTER), Some(&json!("c2ln")));
        assert!(attachment.add(layer.clone()));
        assert!(!attachment.add(layer));
        assert!(attachment.add(payload_layer(&payload, "other").unwrap()));
        let (config, manifest) = attachment.to_documents().unwrap();
        let manifest: Value = serde_json::from_slice(manifest.bytes()).unwrap();
        assert_eq!(manifest["layers"][0], json!({"digest": "sha256:00", "strange": true}));
        assert_eq!(
            (&manifest["annotations"]["k"], manifest["layers"].as_array().map(Vec::len)),
            (&json!("v"), Some(3))
        );
        assert_eq!(manifest["config"]["digest"], json!(config.digest().to_string()));
    }
}
