//! Layers of a checkpoint image.

use crate::{Descriptor, Digest, LayerContent};

/// One layer as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Media type, digest and size of the blob.
    pub descriptor: Descriptor,
    /// Digest of the plain tar, as the config's `rootfs.diff_ids` lists it.
    pub diff_id: Digest,
    /// Bytes of the plain tar.
    pub diff_size: u64,
    /// What the layer holds.
    pub content: LayerContent,
}
