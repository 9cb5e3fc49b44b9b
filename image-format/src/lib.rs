//! What the bytes of checkpoint images and global checkpoints mean.
//!
//! This crate reads dumps, CRIU images and OCI documents, and writes layers, manifests and the index of a global
//! checkpoint. It is pure: no sockets, no clock, no environment; `Read` and `Write` in, values out. The specification
//! of everything it writes is `docs/image-format.md`.

pub mod annotation;
mod blob;
mod digest;
mod document;
mod id;
mod kind;
mod layer;
mod limits;

pub use blob::{BlobSink, BlobSource, BlobStore, Descriptor};
pub use digest::{Digest, HashReader, HashWriter, ParseDigestError};
pub use document::{Document, canonical_json};
pub use id::{ApplicationId, Epoch, MemberId, ParseIdError};
pub use kind::{Compression, DumpKind, LayerContent, ParseKindError};
pub use layer::LayerInfo;
pub use limits::Limits;
