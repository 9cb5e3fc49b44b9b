//! The real `syncpoint`, as people and scripts run it.

mod common;
mod exits;
mod flow;
mod manual;
mod same;
