//! Signatures, offline, with keys.

pub(crate) mod attachment;
