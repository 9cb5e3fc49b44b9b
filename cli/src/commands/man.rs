//! `syncpoint man`.

use std::fs;
use std::path::PathBuf;

use clap::Args;

use crate::context::Context;
use crate::error::{CommandError, While};
use crate::manual;

/// Write the manual pages into a folder, one file a command
///
/// `syncpoint man /usr/local/share/man/man1` puts them where `man syncpoint` looks.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The folder; it is made if it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Writes the pages.
pub fn run(args: &ManArgs, context: &Context) -> Result<(), CommandError> {
    fs::create_dir_all(&args.dir).doing(|| format!("{} cannot be made", args.dir.display()))?;
    let pages = manual::pages()?;
    for (name, text) in &pages {
        let file = args.dir.join(name);
        fs::write(&file, text).doing(|| format!("{} cannot be written", file.display()))?;
    }
    context.reporter.note(&format!("{} pages written to {}", pages.len(), args.dir.display()));
    Ok(())
}
