//! The real tier: real CRIU dumps of real containers, real registries over TLS, real signing tools.
//!
//! `tests/tiers real` runs each of these tests in a testbed of its own, two at a time (`tests/lanes`).

mod checkpoint;
mod demo;
mod docker;
#[path = "../../../cli/tests/cli/forge.rs"]
mod forge;
mod generations;
mod guard;
mod interrupted;
mod lazy;
mod memory;
mod peers;
mod plain_criu;
mod prune;
mod restore;
mod runc;
mod runtime;
mod sdp;
mod setup;
mod storage;
mod torn;
