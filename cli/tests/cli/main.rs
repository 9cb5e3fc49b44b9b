//! The real `syncpoint`, as people and scripts run it.

mod bases;
mod certificates;
mod common;
mod coordinator;
mod diff;
mod exits;
mod flow;
mod forge;
mod hostile;
mod line;
mod manual;
mod prune;
#[path = "../../../image-format/tests/it/raw.rs"]
mod raw;
mod same;
