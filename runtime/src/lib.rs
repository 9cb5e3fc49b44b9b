//! An OCI runtime that restores. It is the real runtime (runc) for every container but those that are
//! members to be restored.

pub mod ticket;
