//! The command line as a whole.

use clap::{ArgAction, Parser};

use crate::commands::Command;
use crate::exit;
use crate::output::Verbosity;

/// Turns the CRIU dumps of a distributed application's containers into one signed global checkpoint in a registry, and
/// starts every container again from it, together.
#[derive(Debug, Parser)]
#[command(
    name = "syncpoint",
    version,
    about = "Checkpoint images for distributed applications",
    after_long_help = exit::table(),
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Say more: also what was there already
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,

    /// Say nothing but the answer in its shortest form, warnings and errors
    #[arg(short, long, global = true)]
    quiet: bool,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// How much is to be said.
    pub fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, 0) => Verbosity::Normal,
            (false, _) => Verbosity::Verbose,
        }
    }
}
