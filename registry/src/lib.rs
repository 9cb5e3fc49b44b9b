//! Where images live: OCI registries over TLS and OCI layouts, behind one trait.

mod bridge;
mod copy;
mod layout;
mod links;
mod reference;
mod settings;
pub mod sign;
mod store;
mod verify;

pub use bridge::Bridge;
pub use copy::{CopyError, CopyOptions, CopyReport, copy};
pub use layout::LayoutStore;
pub use reference::{Location, ParseReferenceError, Reference, Selector, Tag};
pub use settings::Settings;
pub use store::{BlobReader, BlobUpload, BlobWriter, Progress, Put, Reopen, Store, StoreError};
