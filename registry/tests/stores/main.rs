//! The layout store, copying, signing and verifying, through the public interface and the file system.

mod copy;
mod layout;
mod prune;
mod sign;
mod support;
