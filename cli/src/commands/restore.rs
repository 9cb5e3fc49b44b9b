//! `syncpoint restore`.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use coordinator::Deadlines;
use engine::EngineKind;
use image_format::{Artifact, Descriptor, Digest, MemberId};
use launcher::{Host, RestoreError, RestoreErrorKind, RestoreOptions, RestoreReport, RestoredMember};
use registry::Trust;
use registry::sign::errors;
use registry::{Reference, Store};
use serde::Serialize;

use crate::context::Context;
use crate::error::{CommandError, place};
use crate::exit::Exit;
use crate::expected::{Expected, Seen};
use crate::keys;
use crate::output::{Format, Report, table};
use crate::store;
use crate::transport::Transport;
use crate::values::KeyValue;

/// Start every container of a global checkpoint again, together, or none of them
///
/// The signature is verified, then the whole set is checked against this machine before anything is touched: CPU, kernel, CRIU,
/// engine, names, addresses, networks, volumes, base images, space. Members are fetched and restored side by side; CRIU holds
/// each of them until all are there. If anything fails before, nothing of the set runs, everything that was made is removed, and
/// it is tried again. Needs root.
///
/// What the reference names must be a checkpoint of a whole application; --member-alone restores one member's image. A tag like epoch-7
/// must name epoch 7, any tag what was signed under it here, and none goes back to what is older than what this host restored last.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: {reference, digest, attempts, members: [{id, container, engine}]}.")]
pub struct RestoreArgs {
    /// What to restore
    #[arg(value_name = "REF")]
    reference: Reference,

    /// Restore it though the tag went back since this host restored it last, to an earlier epoch or another application
    #[arg(long)]
    allow_rollback: bool,

    #[command(flatten)]
    how: How,

    #[command(flatten)]
    expected: Expected,
}

/// How to restore.
#[derive(Debug, Args)]
pub struct How {
    /// A public key by which it must be signed; may be repeated
    #[arg(long, value_name = "FILE", required_unless_present = "insecure_no_verify")]
    key: Vec<PathBuf>,

    /// Restore what anybody may have made: no signature is asked for
    #[arg(long, conflicts_with = "key")]
    insecure_no_verify: bool,

    /// What runs the containers; what dumped them if not given
    #[arg(long, value_name = "ENGINE")]
    engine: Option<EngineKind>,

    /// Give a member's container another name; may be repeated
    #[arg(long, value_name = "MEMBER=NAME")]
    name: Vec<KeyValue<MemberId, String>>,

    /// The bundle of a member of runc: a folder with its config.json and root filesystem; may be repeated
    #[arg(long, value_name = "MEMBER=DIR")]
    bundle: Vec<KeyValue<MemberId, PathBuf>>,

    /// Let tasks run as soon as the memory is there that they cannot do without; the rest follows, what they ask for first. If it
    /// cannot, nothing of the set runs any more
    #[arg(long)]
    lazy: bool,

    /// Try so many times in all
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    attempts: u32,

    /// Wait so many seconds for all containers to be there
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    gather_timeout: u64,

    /// Hold restored tasks so many seconds until the last one is restored
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    hold_timeout: u64,

    /// Where dumps are kept while they are restored, for root alone and with room for all members; what a killed restore
    /// left there is found and taken away by the next one
    #[arg(long, value_name = "DIR", default_value = launcher::WORK_DIR)]
    work_dir: PathBuf,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    transport: Transport,
}

impl How {
    /// Whom to believe.
    pub fn trust(&self) -> Result<Trust, CommandError> {
        Ok(match self.insecure_no_verify {
            true => Trust::InsecureNoVerify,
            false => Trust::Keys(keys::public(self.key.iter().map(PathBuf::as_path))?),
        })
    }

    /// How the registry is reached.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }
}

/// What runs.
#[derive(Debug, Serialize)]
struct Restored {
    reference: String,
    digest: Digest,
    attempts: u32,
    members: Vec<Running>,
}

#[derive(Debug, Serialize)]
struct Running {
    id: MemberId,
    container: String,
    engine: &'static str,
}

impl Report for Restored {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let row =
            |running: &Running| vec![running.id.to_string(), running.engine.to_owned(), running.container.clone()];
        table(out, &["MEMBER", "ENGINE", "CONTAINER"], &self.members.iter().map(row).collect::<Vec<_>>())?;
        writeln!(out, "running  {}", self.reference)
    }

    fn brief(&self) -> Option<String> {
        let containers: Vec<_> = self.members.iter().map(|running| running.container.as_str()).collect();
        Some(containers.join("\n"))
    }
}

/// Restores.
pub async fn run(args: RestoreArgs, context: &Context) -> Result<(), CommandError> {
    let RestoreArgs { reference, allow_rollback, how, expected } = args;
    launcher::check_rights(&Host::this()).map_err(|error| failed(&reference, error))?;
    let trust = how.trust()?;
    let (store, root) = store::find(&reference, &how.transport, context).await?;
    let artifact = store::artifact(&*store, &root).await?;
    if matches!(trust, Trust::InsecureNoVerify) {
        // Nobody vouches for what it says of itself, but what says something else is not what was meant.
        let against = expected.against_stated(&artifact);
        if !against.is_empty() {
            return Err(unexpected(&reference, against, root.digest));
        }
    }
    // What no key of these signed is refused later, with all that was found.
    if let (Trust::Keys(_), Ok(signatures)) = (&trust, trust.check(&*store, &root).await?) {
        let mut against = expected.against(&reference, &*store, &artifact, &signatures);
        let member = match &artifact {
            Artifact::Member(image) => image.member().filter(|_| !expected.member_alone),
            Artifact::Global(_) => None,
        };
        against.extend(member.map(|id| format!("it is the image of the member {id} alone, not a whole application")));
        if !against.is_empty() {
            return Err(unexpected(&reference, against, root.digest));
        }
        let seen = Seen::of(&reference, &root, &artifact);
        if let Some(seen) = &seen
            && !allow_rollback
            && let Some(against) = seen.against(&how.work_dir)?
        {
            return Err(CommandError::new(Exit::Unverified, format!("{reference} went back"))
                .details([against])
                .hint("--allow-rollback restores it nevertheless; ask who can write to the repository"));
        }
        start(&reference, store, root, &how, context).await?;
        if let Some(Err(error)) = seen.map(|seen| seen.remember(&how.work_dir)) {
            context.reporter.warn(&format!("that {reference} was restored is not remembered: {error}"));
        }
        return Ok(());
    }
    start(&reference, store, root, &how, context).await
}

/// The error of a checkpoint that is not the one that is meant.
fn unexpected(reference: &Reference, against: Vec<String>, digest: Digest) -> CommandError {
    let pinned = store::pinned(reference, digest);
    CommandError::new(Exit::Unverified, format!("{reference} is not what is asked for"))
        .details(against)
        .hint(format!("name the digest to restore just this: {pinned}; a member's image needs --member-alone"))
}

/// Restores what was found under a reference.
pub async fn start(
    reference: &Reference,
    store: Arc<dyn Store>,
    root: Descriptor,
    args: &How,
    context: &Context,
) -> Result<(), CommandError> {
    launcher::check_rights(&Host::this()).map_err(|error| failed(reference, error))?;
    let trust = args.trust()?;
    let options = RestoreOptions {
        engine: args.engine,
        work_dir: args.work_dir.clone(),
        deadlines: Deadlines {
            gather: Duration::from_secs(args.gather_timeout),
            hold: Duration::from_secs(args.hold_timeout),
        },
        lazy: args.lazy,
        attempts: args.attempts,
        names: args.name.iter().map(|KeyValue(member, name)| (member.clone(), name.clone())).collect(),
        bundles: args.bundle.iter().map(|KeyValue(member, dir)| (member.clone(), dir.clone())).collect(),
        jobs: args.transport.jobs(),
        cancel: context.cancel.token(),
        ..RestoreOptions::new(context.environment.hook_program(), trust)
    };
    let digest = root.digest;
    let report = launcher::restore(store, root, &options, &*context.reporter).await;
    let report = report.map_err(|error| failed(reference, error))?;
    let reference = store::pinned(reference, digest).to_string();
    context.output.print(args.format, &restored(reference, digest, report))
}

fn restored(reference: String, digest: Digest, report: RestoreReport) -> Restored {
    let running =
        |member: RestoredMember| Running { id: member.id, container: member.container, engine: member.engine.as_str() };
    let members = report.members.into_iter().map(running).collect();
    Restored { reference, digest, attempts: report.attempts, members }
}

/// The launcher's error with everything that it knows, a line each.
fn failed(reference: &Reference, error: RestoreError) -> CommandError {
    let (phase, hint, place) = (error.phase, error.hint(), place(error.member.as_ref(), error.hook));
    let (logged, left) = (error.log_lines.clone(), error.leftovers.clone());
    let problems = problems(&error);
    let mut error = CommandError::from(error);
    // A list reads better below its headline than in it.
    error = match problems {
        Some((headline, problems)) => {
            CommandError::new(error.exit(), format!("{reference} {headline}")).details(problems)
        }
        None => error.context(format!("{reference} is not restored ({phase})")),
    };
    error = error
        .details(place)
        .details(logged.iter().map(|line| format!("CRIU: {line}")))
        .details(left.iter().map(|what| format!("not taken away: {what}")));
    // Problems of the preflight say what to do in their own lines.
    match hint.filter(|_| error.exit() != Exit::Refused) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// The errors that are a list of many: a headline, and a line for each.
fn problems(error: &RestoreError) -> Option<(&'static str, Vec<String>)> {
    match &*error.kind {
        RestoreErrorKind::Preflight { problems } => {
            let lines = problems.iter().map(|problem| format!("{problem}; {}", problem.hint()));
            Some(("cannot be restored here", lines.collect()))
        }
        RestoreErrorKind::Untrusted { findings } => {
            Some(("is not to be trusted", errors(findings).map(ToString::to_string).collect()))
        }
        _ => None,
    }
}
