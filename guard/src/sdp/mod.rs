//! SKA's Science Data Processor: checkpoints of its processing blocks, as its Configuration DB says.
//!
//! The Configuration DB is etcd 3. SKA's own keys are read, never written: `ska-sdp delete pb` removes everything under
//! `/pb/<id>/`. What this program keeps there is under a root of its own, in JSON as SKA writes it:
//!
//! ```text
//! /checkpoint/settings/default/interval       30000             milliseconds
//!                             /storage        "host:5000/sdp"
//!                     /<pb-id>/interval, storage                in place of the default's
//!            /catalogue/<pb-id>/<epoch>       {"digest": ...}   digests of what became permanent, and no more
//!            /owner/<pb-id>                   {"pid": ...}      the guard that acts; ends with its lease
//! ```

mod catalogue;
mod database;
mod desired;
mod etcd;
mod guards;
mod ids;
mod json;
mod lease;
mod roster;
mod settings;
mod tenure;

pub use catalogue::CatalogueEntry;
pub use database::Database;
pub use desired::{BlockPlan, Container, DEPLOYMENT_LABEL, Desired, ORDINAL_LABEL, ROLE_LABEL, Snapshot, desired};
pub use etcd::{DatabaseError, Endpoint, Protocol};
pub use guards::{BlockGuard, BlockGuards, guard_blocks};
pub use ids::{BlockId, ParseBlockIdError, ParsePrefixError, Prefix};
pub use lease::{Acquired, Held};
pub use settings::{Interval, ParseStorageError, Scope, Setting, SettingValue, Storage};
