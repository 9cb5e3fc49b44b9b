//! Which global checkpoints stay, and taking the others away.
//!
//! ```text
//!  tags ──catalogue──> checkpoints ──Policy::decide──> keep (with reasons) │ remove
//!                                                                            │
//!      layout (one step, under the lock of the layout)                       │      registry (requests, looked at again)
//!      entries go, then files that nothing kept refers to  <─── Store::remove ───>  manifests go; blobs are its own affair
//! ```
//!
//! [`Policy`] decides and does nothing else: no store, no clock. [`prune`] asks it and has the store do it. How a store
//! removes without taking anything from checkpoints that are kept, or that come to be at the same time, is told at
//! `layout/sweep.rs` and `remote/sweep.rs`.

mod glob;
mod pin;
mod policy;
mod prune;

pub use glob::{Glob, ParseGlobError};
pub use pin::{PinError, pin, unpin};
pub use policy::{Candidate, Decision, Policy, Reason};
pub use prune::{Kept, PruneError, PruneOptions, PruneReport, Pruned, prune};

use std::time::SystemTime;

use image_format::Digest;

use crate::Tag;

/// The tags that pin what they name begin with this.
const PIN: &str = "pin-";

/// Whether a tag is there to keep what it names.
#[must_use]
pub fn is_pin(tag: &Tag) -> bool {
    tag.as_str().starts_with(PIN)
}

/// What a store is to remove.
#[derive(Debug, Clone)]
pub struct Removal {
    /// Global checkpoints by digest, with all their tags.
    pub checkpoints: Vec<(Digest, Vec<Tag>)>,
    /// What no tag leads to stays if it was written, or spoken for, after this: it may belong to a checkpoint under way.
    pub before: SystemTime,
    /// Only says what would be removed.
    pub dry_run: bool,
    /// Requests at the same time.
    pub jobs: usize,
}

/// What a store removed, or would have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// The checkpoints that were removed. One that got another tag meanwhile stays.
    pub checkpoints: Vec<Digest>,
    /// Manifests and indexes, signatures included.
    pub manifests: usize,
    /// Blobs that nothing refers to any more.
    pub blobs: usize,
    /// The bytes of manifests and blobs.
    pub bytes: u64,
    /// Whether those bytes are free. Registries collect blobs by themselves.
    pub freed: bool,
    /// Manifests that something kept refers to and that are not there or cannot be read. What they refer to is not known, so a
    /// layout removes no file before they are there again or their checkpoint goes.
    pub unreadable: Vec<Digest>,
    /// Tags of which a registry does not say what they name. What that needs is not known, so nothing is removed before they can be
    /// read or are gone.
    pub unreadable_tags: Vec<Tag>,
    /// Tags that this registry does not delete by themselves, and that now lead nowhere.
    pub stale: Vec<Tag>,
}
