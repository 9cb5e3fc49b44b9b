//! OCI documents as bytes: serialised once, then only ever passed on, so that a digest always names what was signed.

use serde::Serialize;

use crate::{Descriptor, Digest};

/// A manifest, index or config: its media type and exactly the bytes that its digest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    media_type: String,
    bytes: Vec<u8>,
    digest: Digest,
}

impl Document {
    /// Wraps bytes that came from somewhere, or that [`canonical_json`] made.
    #[must_use]
    pub fn new(media_type: impl Into<String>, bytes: Vec<u8>) -> Self {
        let digest = Digest::of(&bytes);
        Self { media_type: media_type.into(), bytes, digest }
    }

    /// The media type, such as `application/vnd.oci.image.manifest.v1+json`.
    #[must_use]
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// The bytes, as they are stored and signed.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The digest of the bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Media type, digest and size together.
    #[must_use]
    pub fn descriptor(&self) -> Descriptor {
        Descriptor { media_type: self.media_type.clone(), digest: self.digest, size: self.bytes.len() as u64 }
    }
}

/// JSON with sorted keys and no white space: equal values are equal bytes on every machine and in every run.
///
/// The types of `oci-spec` keep annotations in hash maps whose order changes from run to run; going through
/// [`serde_json::Value`] sorts them.
///
/// # Errors
/// A value that has no JSON form (a map whose keys are not text).
pub fn canonical_json<T: Serialize>(value: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut value = serde_json::to_value(value)?;
    // Sorted as it is, unless some dependency of the program turns on serde_json's `preserve_order`.
    value.sort_all_objects();
    serde_json::to_vec(&value)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn equal_values_are_equal_bytes() {
        let map: HashMap<String, u32> = (0..50).map(|n| (format!("k{n:02}"), n)).collect();
        let again: HashMap<String, u32> = (0..50).rev().map(|n| (format!("k{n:02}"), n)).collect();
        let bytes = canonical_json(&map).unwrap();
        assert_eq!(bytes, canonical_json(&again).unwrap());
        assert!(bytes.starts_with(br#"{"k00":0,"k01":1,"#));
    }
}
