//! Where images live: OCI registries over TLS and OCI layouts, behind one trait.

mod reference;
mod store;

pub use reference::{Location, ParseReferenceError, Reference, Selector, Tag};
pub use store::{BlobReader, BlobUpload, BlobWriter, Progress, Put, Reopen, Store, StoreError};
