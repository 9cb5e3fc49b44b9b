//! The seam between the format and wherever blobs live: the format writes and reads streams, a store keeps them.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::Digest;

/// What a piece of content is, which one, and how large: the three fields every OCI descriptor has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type.
    pub media_type: String,
    /// Digest of the bytes.
    pub digest: Digest,
    /// Count of the bytes.
    pub size: u64,
}

/// Takes new blobs. Several may be open at the same time, each written by one thread.
pub trait BlobStore {
    /// Starts a blob whose digest is not known yet.
    ///
    /// # Errors
    /// Whatever keeps the store from taking it.
    fn create(&self) -> io::Result<Box<dyn BlobSink>>;
}

/// One blob on its way into a store. Dropped without [`BlobSink::commit`], it leaves nothing behind.
pub trait BlobSink: Write + Send {
    /// Keeps the blob under its digest. The store checks both figures against what it received.
    ///
    /// # Errors
    /// Bytes that differ from the figures, or whatever keeps the store from keeping them.
    fn commit(self: Box<Self>, digest: Digest, size: u64) -> io::Result<()>;
}

/// Gives blobs back.
pub trait BlobSource {
    /// Opens a blob. The reader fails at its end if the bytes do not match digest and size, so nothing read from it may
    /// be relied on before that end was reached.
    ///
    /// # Errors
    /// A blob that is missing, or whatever keeps the source from reading it.
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send>>;
}
