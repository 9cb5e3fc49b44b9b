//! Whole checkpoints and restores over a real rendezvous, real hooks and a real layout. Only the engine and CRIU are
//! played: by [`fake::FakeEngine`] and by a shell script, which runs the hooks as CRIU does and holds a real process.
//! So the invariants of a session are tested in milliseconds, without root. What real engines do is for the real tier.

mod checkpoint;
mod fake;
mod restore;
mod set;
