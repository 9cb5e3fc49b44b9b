//! `syncpoint sdp`: the words of SKA's console for the Science Data Processor.

use clap::{Args, Subcommand};
use guard::sdp::{BlockId, Database, Interval, Prefix, Scope, Setting, SettingValue, Storage};

use crate::context::Context;
use crate::error::CommandError;
use crate::output::{Verbosity, visible};

/// The Science Data Processor of SKA: what its Configuration DB says on checkpoints
#[derive(Debug, Args)]
pub struct SdpArgs {
    #[command(subcommand)]
    command: SdpCommand,
}

#[derive(Debug, Subcommand)]
enum SdpCommand {
    Checkpoint(CheckpointArgs),
}

/// How often processing blocks are checkpointed, where to, and which checkpoints there are
///
/// Also installed as `ska-sdp-checkpoint`, with the options of `ska-sdp`. All of it stands under /checkpoint/ in the Configuration
/// DB, an etcd 3 with its JSON gateway, which $SDP_CONFIG_HOST and the other variables of ska-sdp-config name.
#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// List all keys
    #[arg(short, long, global = true)]
    all: bool,

    /// Print the values, too, as -v does
    #[arg(long, global = true)]
    values: bool,

    /// What stands in front of every key
    #[arg(long, value_name = "PREFIX", global = true, default_value = "", hide_default_value = true)]
    prefix: Prefix,

    /// The processing block that a setting is of; without it, it is of all that have none of their own
    #[arg(long, value_name = "PB-ID", global = true)]
    pb: Option<BlockId>,

    #[command(subcommand)]
    command: CheckpointCommand,
}

#[derive(Debug, Subcommand)]
enum CheckpointCommand {
    /// List the keys under /checkpoint/; wants --all
    List,
    /// Print or set the time between checkpoints, in milliseconds
    Interval {
        /// The new one
        #[arg(value_name = "INTERVAL", value_parser = interval)]
        interval: Option<Interval>,
    },
    /// Print or set where checkpoints are kept
    ///
    /// Each processing block has a repository of its own below it, which is called as the block is.
    Storage {
        /// The new one: HOST[:PORT]/PATH or oci:DIR
        #[arg(value_name = "LOCATION", value_parser = storage)]
        location: Option<Storage>,
    },
}

/// Lists, prints or sets.
pub async fn run(args: SdpArgs, context: &Context) -> Result<(), CommandError> {
    let SdpCommand::Checkpoint(args) = args.command;
    let endpoint = context.environment.configuration_db().map_err(CommandError::usage)?;
    let database = Database::new(endpoint, args.prefix)?;
    let scope = args.pb.clone().map_or(Scope::Default, Scope::Block);
    let (setting, value) = match args.command {
        CheckpointCommand::List => {
            if !args.all || args.pb.is_some() {
                return Err(CommandError::usage("list wants --all, and no processing block"));
            }
            let values = args.values || context.output.verbosity() == Verbosity::Verbose;
            return list(&database, values, context).await;
        }
        _ if args.all => return Err(CommandError::usage("--all is for list")),
        CheckpointCommand::Interval { interval } => (Setting::Interval, interval.map(SettingValue::Interval)),
        CheckpointCommand::Storage { location } => (Setting::Storage, location.map(SettingValue::Storage)),
    };
    let (key, value) = match value {
        Some(value) => (database.set(&scope, &value).await?, Some(value)),
        None => database.setting(&scope, setting).await?,
    };
    let value = value.map_or_else(|| "None".to_owned(), |value| value.to_string());
    match context.output.verbosity() {
        Verbosity::Quiet => print(context, &value),
        _ => print(context, &format!("{key} = {value}")),
    }
}

/// As `ska-sdp list` prints keys.
async fn list(database: &Database, values: bool, context: &Context) -> Result<(), CommandError> {
    let quiet = context.output.verbosity() == Verbosity::Quiet;
    let mut lines = Vec::new();
    if !quiet {
        lines.push(format!("Keys with prefix {}: ", database.root()));
    }
    for (key, value) in database.list().await? {
        lines.push(match (values, quiet) {
            (false, _) => key,
            (true, true) => value,
            (true, false) => format!("{key} = {value}"),
        });
    }
    match lines.is_empty() {
        true => Ok(()),
        false => print(context, &lines.join("\n")),
    }
}

fn print(context: &Context, text: &str) -> Result<(), CommandError> {
    context.output.write((visible(text) + "\n").as_bytes())
}

fn interval(text: &str) -> Result<Interval, &'static str> {
    let millis = text.parse().ok().and_then(Interval::from_millis);
    millis.ok_or("it is no number of milliseconds from 1 to a year's")
}

fn storage(text: &str) -> Result<Storage, &'static str> {
    Storage::parse(text).ok_or("it is no HOST/PATH and no oci:DIR")
}
