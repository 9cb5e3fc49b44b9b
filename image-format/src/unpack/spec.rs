//! Sets annotations in the container's runtime specification while it passes by, so that an engine that restores the
//! archive hands them to its runtime.

use serde_json::{Map, Value};

use super::layers::Layer;
use super::{UnpackError, UnpackOptions};
use crate::Digest;
use crate::archive::{Entry, EntryKind};
use crate::image::CheckpointImage;

/// Bytes of a runtime specification; real ones have some 30 KiB.
const MAX_SPEC: u64 = 16 << 20;

/// What is wrong with a runtime specification.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// More bytes than are read.
    #[error("it has {size} bytes; at most {limit} are read")]
    TooLarge {
        /// Its bytes.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// No JSON.
    #[error("it is not JSON")]
    Json(#[source] serde_json::Error),
    /// Not an object, or annotations that are none.
    #[error("it is not an object with an object of annotations")]
    Form,
}

/// Replaces the specification, if there is anything to set in it.
pub(super) struct Specs<'a> {
    image: Digest,
    options: &'a UnpackOptions,
    found: bool,
}

impl<'a> Specs<'a> {
    pub fn new(image: &CheckpointImage, options: &'a UnpackOptions) -> Self {
        Self { image: image.manifest().digest, options, found: false }
    }

    /// The whole new content of the entry, whose size is then changed to fit; nothing for every other entry.
    pub fn replace(&mut self, entry: &mut Entry, layer: &mut Layer<'_, '_>) -> Result<Vec<u8>, UnpackError> {
        let is_spec = matches!(&entry.name[..], b"spec.dump" | b"config.json");
        let EntryKind::File { size } = &mut entry.kind else {
            return Ok(Vec::new());
        };
        if !is_spec || self.options.spec_annotations.is_empty() {
            return Ok(Vec::new());
        }
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        let failed = |source| UnpackError::Spec { image: self.image, entry: name, source };
        if *size > MAX_SPEC {
            return Err(failed(SpecError::TooLarge { size: *size, limit: MAX_SPEC }));
        }
        let spec = self.annotate(&layer.read_head(*size)?).map_err(failed)?;
        *size = spec.len() as u64;
        self.found = true;
        Ok(spec)
    }

    /// Bytes that are no UTF-8 become U+FFFD, as which engines read them.
    fn annotate(&self, spec: &[u8]) -> Result<Vec<u8>, SpecError> {
        let mut spec: Map<String, Value> =
            serde_json::from_str(&String::from_utf8_lossy(spec)).map_err(SpecError::Json)?;
        let annotations = spec.entry("annotations").or_insert(Value::Null);
        if annotations.is_null() {
            *annotations = Value::Object(Map::new());
        }
        let annotations = annotations.as_object_mut().ok_or(SpecError::Form)?;
        annotations
            .extend(self.options.spec_annotations.iter().map(|(key, value)| (key.clone(), value.as_str().into())));
        serde_json::to_vec(&spec).map_err(SpecError::Json)
    }

    /// Fails if there was something to set and nothing to set it in.
    pub fn finish(self) -> Result<(), UnpackError> {
        if self.found || self.options.spec_annotations.is_empty() {
            Ok(())
        } else {
            Err(UnpackError::NoSpec { image: self.image })
        }
    }
}
