//! Where images live: OCI registries over TLS and OCI layouts, behind one trait.

mod artifact;
mod base;
mod bridge;
mod cancellable;
mod catalogue;
mod copy;
mod credentials;
mod layout;
mod links;
mod login;
mod open;
mod reference;
mod registries;
mod remote;
mod retention;
mod retry;
mod settings;
pub mod sign;
mod store;
mod tls;
mod touched;
mod trust;
mod verify;

pub use base::{FindBaseError, find_base};
pub use bridge::Bridge;
pub use cancellable::cancellable;
pub use catalogue::{
    Catalogue, CatalogueError, Listed, Newest, PassedOver, Sizes, catalogue, newest, sizes, under_tag,
};
pub use copy::{CopyError, CopyOptions, CopyReport, copy};
pub use credentials::CredentialError;
pub use layout::LayoutStore;
pub use login::{LoginError, login, logout};
pub use open::{Create, open};
pub use reference::{Location, ParseReferenceError, Reference, Selector, Tag};
pub use registries::{Registries, RegistriesError, ShortNameError};
pub use remote::RemoteStore;
pub use retention::{
    Candidate, Decision, Glob, Kept, ParseGlobError, PinError, Policy, PruneError, PruneOptions, PruneReport, Pruned,
    Reason, Removal, Removed, is_pin, pin, prune, unpin,
};
pub use settings::Settings;
pub use store::{BlobReader, BlobUpload, BlobWriter, Progress, Put, Reopen, Store, StoreError, TagList, first_missing};
pub use tls::TlsError;
pub use touched::{put_touched, touched};
pub use trust::Trust;
