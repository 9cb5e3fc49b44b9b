//! `syncpoint guard`.

mod http;
mod log;
mod sdp;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use guard::sdp::{Prefix, Storage};
use guard::{GuardError, GuardMetrics, GuardOptions, Orders, RollbackPolicy};
use image_format::Compression;
use launcher::{CheckpointOptions, ContainerSpec, Destination, PageTransport, RestoreOptions, Signer};
use registry::Reference;
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use self::http::Shown;
use self::log::Log;
use crate::chain::Chains;
use crate::commands::preempt;
use crate::commands::sign::Identity;
use crate::context::Context;
use crate::error::{CommandError, While};
use crate::exit::Exit;
use crate::keys;
use crate::plan::{self, CheckpointPlan, OnTerminate};
use crate::store;
use crate::transport::Transport;
use crate::values::{Time, words};

/// Checkpoint an application every so often, and roll it back when a container dies
///
/// A service in the foreground. Every interval it takes a checkpoint of the plan's containers, as `syncpoint checkpoint` does. When the
/// first process of one of them ends, for whatever reason, the newest checkpoint that can be restored and is signed by the plan's key is
/// restored, or the one before. What is left of the application is ended once that checkpoint is verified, fetched and known to fit; if
/// there is none, it is left as it is. A guard that is killed goes on where it was when it is started again. SIGTERM ends it; the
/// application runs on, or is preempted. Needs root.
///
/// The plan is that of `syncpoint checkpoint`, with interval, on-terminate and [guard] besides; docs/guide/plan.md has them all.
#[derive(Debug, Args)]
pub struct GuardArgs {
    /// Who is guarded, how, and where the checkpoints go
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,

    /// Guard the processing blocks of SKA's Configuration DB that run here
    ///
    /// It says which ones, how often and where to: $SDP_CONFIG_HOST and the other variables name it, `syncpoint sdp checkpoint` sets it. The
    /// plan has what is the same for all: key, deadlines, [guard], [retention]; no application, no members. docs/guide/sdp.md.
    #[arg(long, conflicts_with = "interval")]
    sdp: bool,

    /// What stands in front of every key of the Configuration DB
    #[arg(long, value_name = "PREFIX", requires = "sdp", default_value = "", hide_default_value = true)]
    prefix: Prefix,

    /// Where the Configuration DB may have memory sent: to this place and what lies below it; may be repeated
    ///
    /// HOST[:PORT]/PATH or oci:DIR. The plan may name places too, with `storage`. A block whose storage is another one is not guarded.
    #[arg(long, value_name = "PLACE", requires = "sdp")]
    storage: Vec<Storage>,

    /// Send memory wherever the Configuration DB says: whoever can write there gets it
    #[arg(long, requires = "sdp", conflicts_with = "storage")]
    any_storage: bool,

    /// A public key whose signatures count too, such as one that signed earlier checkpoints; may be repeated
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,

    /// From one checkpoint to the next, such as 30s; goes before the plan's
    #[arg(long, value_name = "TIME")]
    interval: Option<Time>,

    /// Show metrics to Prometheus at http://ADDRESS:PORT/metrics, and at /health whether the application runs
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,

    /// How events are written to standard error
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    log_format: LogFormat,

    #[command(flatten)]
    identity: Identity,

    /// How layers are compressed
    #[arg(long, value_name = "HOW", default_value = "zstd", value_parser = words(Compression::ALL, Compression::as_str))]
    compression: Compression,

    /// Which way memory takes: stream, over a socket, so that tasks stand frozen for less time and only pages that changed are kept; tls, the same encrypted; disk, as CRIU writes it. As the plan says, or else stream
    #[arg(long, value_name = "WAY", value_parser = words(PageTransport::ALL, PageTransport::as_str))]
    pages: Option<PageTransport>,

    /// Where checkpoints are kept until they are permanent, and dumps while they are restored
    #[arg(long, value_name = "DIR", default_value = launcher::WORK_DIR)]
    work_dir: PathBuf,

    /// Where the guard keeps what it must know when it is started again
    #[arg(long, value_name = "DIR", default_value = guard::GUARD_DIR)]
    state_dir: PathBuf,

    #[command(flatten)]
    chains: Chains,

    #[command(flatten)]
    transport: Transport,
}

/// How long the address of a guard that was killed may still be taken: what it was about to start has the socket until it is started.
const LINGERING: Duration = Duration::from_secs(10);

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines for people
    Human,
    /// A JSON object a line
    Json,
}

/// Guards.
pub async fn run(args: GuardArgs, context: &Context) -> Result<(), CommandError> {
    if args.sdp {
        return sdp::run(args, context).await;
    }
    let plan = plan::read(&args.plan)?;
    let missing = |what: &str| CommandError::usage(format!("{} does not say {what}", args.plan.display()));
    let interval = args.interval.map(|time| time.0).or(plan.guard.interval).ok_or_else(|| missing("the interval"))?;
    let on_terminate = plan.guard.on_terminate.unwrap_or_default();
    let (to, options) = options(&args, plan, context).await?;
    let application = options.checkpoint.application.clone();
    let metrics = Arc::new(GuardMetrics::new(application.clone()));
    let shown = Shown::default();
    shown.insert(application.to_string(), Arc::clone(&metrics));
    let shown = show(args.metrics, shown).await?;
    let log =
        Log::new(args.log_format == LogFormat::Json, Arc::clone(&context.reporter), Some(application.to_string()));
    log.started(&to, interval, shown);
    let (_orders, orders) = tokio::sync::watch::channel(Orders { interval, failure: None });
    serve(guard::guard(&options, orders, &metrics, &log)).await.map_err(failed)?;
    if on_terminate == OnTerminate::Preempt {
        return preempt(&options, &log).await;
    }
    log.ended("the application runs on");
    Ok(())
}

/// Shows metrics at an address, if there is one; gives the address that it came to be.
async fn show(address: Option<SocketAddr>, shown: Shown) -> Result<Option<SocketAddr>, CommandError> {
    let Some(address) = address else { return Ok(None) };
    let until = Instant::now() + LINGERING;
    let served = loop {
        match http::serve(address, shown.clone()).await {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            served => break served,
        }
    };
    served.map(Some).doing(|| format!("metrics cannot be shown at {address}"))
}

/// Runs a service to its end, with the service manager's words.
async fn serve<T>(service: impl Future<Output = T>) -> T {
    notify(&[NotifyState::Ready]);
    let mut service = pin!(service);
    let watchdog = sd_notify::watchdog_enabled().map(|time| time / 2);
    let ended = loop {
        // In the same task: a guard that hangs in it is not said to be well.
        tokio::select! {
            ended = &mut service => break ended,
            () = tokio::time::sleep(watchdog.unwrap_or(Duration::MAX)), if watchdog.is_some() => {
                notify(&[NotifyState::Watchdog]);
            }
        }
    };
    notify(&[NotifyState::Stopping]);
    ended
}

/// What the service manager is told; without one, nothing.
fn notify(states: &[NotifyState<'_>]) {
    // A service manager that does not listen is no reason to do anything else.
    let _ = sd_notify::notify(states);
}

async fn options(
    args: &GuardArgs,
    plan: CheckpointPlan,
    context: &Context,
) -> Result<(Reference, GuardOptions), CommandError> {
    let CheckpointPlan { application, to, key, stop, gather, freeze, pages, guard, members } = plan;
    let missing = |what: &str| CommandError::usage(format!("{} does not say {what}", args.plan.display()));
    if stop == Some(true) {
        return Err(CommandError::usage("an application that stops after its first checkpoint cannot be guarded")
            .hint("leave `stop` out of the plan"));
    }
    let application = application.ok_or_else(|| missing("the application"))?;
    let to = to.ok_or_else(|| missing("where checkpoints go (to)"))?;
    if to.selector().is_some() {
        return Err(CommandError::usage(format!("{to} has a tag, which would name each checkpoint in turn"))
            .hint("leave the tag out: each checkpoint gets epoch-<N>"));
    }
    let key = key.ok_or_else(|| {
        missing("who signs (key)")
            .hint("a guard restores nothing that it did not sign; `syncpoint key generate` makes a key")
    })?;
    let key = Arc::new(keys::private(&key, context).await?);
    let trust = keys::of_line(Some(&key), args.key.iter().map(PathBuf::as_path), context)?;
    let hook_program = context.environment.hook_program();
    let usual = CheckpointOptions::new(application, hook_program.clone());
    let checkpoint = CheckpointOptions {
        members: members.iter().cloned().map(ContainerSpec::from).collect(),
        deadlines: coordinator::Deadlines {
            gather: gather.unwrap_or(usual.deadlines.gather),
            hold: freeze.unwrap_or(usual.deadlines.hold),
        },
        compression: args.compression,
        pages: args.pages.or(pages).unwrap_or_default(),
        chain: (&args.chains).into(),
        work_dir: args.work_dir.clone(),
        jobs: args.transport.jobs(),
        cancel: context.cancel.token(),
        ..usual
    };
    let bundles = members.iter().filter_map(|member| Some((member.id.clone(), member.bundle.clone()?)));
    let restore = RestoreOptions {
        bundles: bundles.collect(),
        work_dir: args.work_dir.clone(),
        jobs: args.transport.jobs(),
        ..RestoreOptions::new(hook_program, trust.clone())
    };
    let usual = RollbackPolicy::default();
    let limits = RollbackPolicy {
        attempts: guard.attempts.unwrap_or(usual.attempts),
        probation: guard.probation.unwrap_or(usual.probation),
        ..usual
    };
    // A guard that was told to stop may take a last checkpoint.
    let store = store::create_lasting(&to, &args.transport, context).await?;
    let signer = Some(Signer { key, identity: args.identity.name.clone() });
    let destination = Destination { store, reference: to.to_string(), tag: None, signer, trust };
    Ok((
        to,
        GuardOptions {
            checkpoint,
            destination,
            restore,
            limits,
            state_dir: args.state_dir.clone(),
            retention: guard.retention,
            token: None,
        },
    ))
}

/// The last checkpoint, after which the containers end, if it can be restored. The signal that ended the guard does not end
/// this; a second one does.
async fn preempt(options: &GuardOptions, log: &Log) -> Result<(), CommandError> {
    let last = CheckpointOptions { cancel: CancellationToken::new(), ..options.checkpoint.clone() };
    let report = guard::halt(&options.destination, &last, &()).await;
    let report = report.map_err(|error| preempt::failed(&last.application, error))?;
    log.ended(&format!("preempted: epoch {} is permanent, and the containers are stopped", report.epoch));
    Ok(())
}

fn failed(error: GuardError) -> CommandError {
    let (exit, hint) = match &error {
        GuardError::NotRoot => (Exit::Denied, Some("run it as root")),
        GuardError::NoMembers { .. } | GuardError::Elsewhere { .. } => (Exit::Usage, None),
        GuardError::Guarded { .. } => (Exit::Refused, Some("stop the other one first")),
        GuardError::Fenced(_) => (Exit::Refused, Some("another guard took over; the application is its now")),
        GuardError::NotRunning { .. } => (
            Exit::Refused,
            Some("start the application, or bring it back with `syncpoint restore`, before it is guarded"),
        ),
        GuardError::Down { .. } => {
            (Exit::Aborted, Some("start the guard again, or bring the application back with `syncpoint restore`"))
        }
        GuardError::GaveUp { .. } => (
            Exit::Aborted,
            Some("the log says what each attempt failed with; `syncpoint list` shows what there is to restore"),
        ),
        _ => (Exit::Failure, None),
    };
    let error = CommandError::new(exit, error);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_given_up_soon_is_waited_for() {
        let before = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = before.local_addr().unwrap();
        let (shown, ()) = tokio::join!(show(Some(address), Shown::default()), async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            drop(before);
        });
        assert_eq!(shown.unwrap_or_else(|error| panic!("{:?}", error.lines())), Some(address));
    }
}
