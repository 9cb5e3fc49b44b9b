//! What a manifest or index of any kind refers to. Read from whoever wrote it, so: bounded, and never guessed.

use image_format::Descriptor;
use image_format::annotation::{MEDIA_INDEX, MEDIA_MANIFEST};
use serde::Deserialize;

/// The size that registries and this program accept for a manifest or an index, in bytes.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;

const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Why a document is not a manifest or index.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinksError {
    /// Not JSON, or not of the shape of a manifest or index.
    #[error("it is not a manifest or index")]
    Shape(#[source] serde_json::Error),
    /// What one reader takes for an index and another one for a manifest has no place here.
    #[error("it can be read as a manifest and as an index")]
    Ambiguous,
    /// Neither layers with a config nor manifests.
    #[error("it is neither an image manifest nor an index")]
    Neither,
}

/// The descriptors in one document.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Links {
    media_type: Option<String>,
    pub(crate) artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub(crate) manifests: Vec<Descriptor>,
    pub(crate) subject: Option<Descriptor>,
    #[serde(skip)]
    index: bool,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<Descriptor>, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

impl Links {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, LinksError> {
        // The parser would take a list for an object with its fields in order; nobody else does.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(LinksError::Neither);
        }
        let mut links: Self = serde_json::from_slice(bytes).map_err(LinksError::Shape)?;
        let manifest = links.config.is_some() || links.layers.is_some();
        links.index = match links.media_type.as_deref() {
            Some(MEDIA_INDEX | DOCKER_LIST) => true,
            Some(_) => !links.manifests.is_empty(),
            None => !manifest,
        };
        match (links.index, manifest) {
            (true, true) => Err(LinksError::Ambiguous),
            (false, true) if !links.manifests.is_empty() => Err(LinksError::Ambiguous),
            (false, false) => Err(LinksError::Neither),
            (true, false) if links.media_type.is_none() && links.manifests.is_empty() => Err(LinksError::Neither),
            (true, false) | (false, true) => Ok(links),
        }
    }

    /// The media type that the document has or, where it names none, the one of its shape.
    pub(crate) fn media_type(&self) -> &str {
        self.media_type.as_deref().unwrap_or(if self.index { MEDIA_INDEX } else { MEDIA_MANIFEST })
    }

    /// Config and layers.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(self.layers.iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = r#"{"mediaType":"m","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}"#;

    #[test]
    fn kinds_are_told_apart() {
        let manifest = Links::parse(format!(r#"{{"config":{D},"layers":[{D}]}}"#).as_bytes()).unwrap();
        assert_eq!((manifest.media_type(), manifest.blobs().count()), (MEDIA_MANIFEST, 2));
        let index = Links::parse(format!(r#"{{"manifests":[{D}],"subject":{D}}}"#).as_bytes()).unwrap();
        assert_eq!((index.media_type(), index.manifests.len(), index.blobs().count()), (MEDIA_INDEX, 1, 0));
        let empty = Links::parse(format!(r#"{{"mediaType":"{MEDIA_INDEX}","manifests":null}}"#).as_bytes()).unwrap();
        assert!(empty.manifests.is_empty());
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for text in [
            format!(r#"{{"config":{D},"layers":[],"manifests":[{D}]}}"#),
            format!(r#"{{"mediaType":"{MEDIA_INDEX}","layers":[{D}]}}"#),
            format!(r#"{{"mediaType":"{MEDIA_MANIFEST}","config":{D},"manifests":[{D}]}}"#),
            format!(r#"{{"config":{D},"config":{D},"layers":[]}}"#),
        ] {
            assert!(Links::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_neither_is_refused() {
        for text in
            ["", "{}", "null", r#"{"manifests":[]}"#, r#"{"config":{}}"#, "[null]", &"{\"a\":".repeat(1_000_000)]
        {
            assert!(Links::parse(text.as_bytes()).is_err(), "{text:.40}");
        }
    }
}
