//! What every command is given.

use std::sync::Arc;

use crate::cancel::Cancel;
use crate::environment::Environment;
use crate::output::Output;
use crate::progress::Reporter;

/// The world of one command: what it may read of the environment, where it prints, whom it tells how far it is.
#[derive(Debug)]
pub struct Context {
    /// The environment, read once.
    pub environment: Environment,
    /// Standard output.
    pub output: Output,
    /// Standard error: progress, notes, warnings.
    pub reporter: Arc<Reporter>,
    /// Whether to stop.
    pub cancel: Cancel,
}

impl Context {
    /// All of it.
    pub fn new(environment: Environment, output: Output, reporter: Reporter) -> Self {
        Self { environment, output, reporter: Arc::new(reporter), cancel: Cancel::default() }
    }
}
