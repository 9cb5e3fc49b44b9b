//! `syncpoint completion`.

use clap::Args;
use clap_complete::Shell;

use crate::context::Context;
use crate::error::CommandError;
use crate::manual;

/// Print a script that completes commands and options in a shell
///
/// For bash: `syncpoint completion bash > ~/.local/share/bash-completion/completions/syncpoint`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// Which shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the script.
pub fn run(args: CompletionArgs, context: &Context) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut manual::definition(), "syncpoint", &mut script);
    context.output.write(&script)
}
