//! `syncpoint preempt` and `syncpoint resume`.

use std::cmp::Reverse;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use guard::PreemptError;
use image_format::ApplicationId;
use launcher::{CheckpointOptions, ContainerSpec, Destination, Signer};
use registry::{Catalogue, Reference, Selector, catalogue};

use crate::commands::sign::Identity;
use crate::commands::{self, checkpoint, restore};
use crate::context::Context;
use crate::error::{CommandError, While};
use crate::exit::Exit;
use crate::keys;
use crate::output::Format;
use crate::plan;
use crate::store;
use crate::transport::Transport;
use crate::values::Time;

/// Checkpoint an application, and free the machine of it once that is permanent
///
/// Its containers are ended and removed, with the named volumes that the checkpoint holds, only when all of it is in the store and tagged,
/// its signature was verified, and this host would restore it; if anything fails before, it runs on. `syncpoint resume` brings it back, here
/// or on another host. With --within it is judged by the newest checkpoints of the line, before anything is frozen, whether there is time
/// enough. Needs root.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: what `syncpoint checkpoint` answers.")]
pub struct PreemptArgs {
    /// The application: all running containers with its label, or those of the plan
    #[arg(value_name = "APPLICATION")]
    application: ApplicationId,

    /// Where the checkpoint goes: oci:DIR or HOST/REPO; the tag is epoch-<N>
    #[arg(long, value_name = "REF", required_unless_present = "plan")]
    to: Option<Reference>,

    /// Sign the checkpoint and its members with this private key
    #[arg(long, value_name = "FILE", required_unless_present = "plan")]
    sign_by: Option<PathBuf>,

    /// A public key whose signatures count too, such as one that signed earlier checkpoints; may be repeated
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,

    /// Take from a file what is not said here, and who the members are
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,

    /// The machine goes in so long, such as 30s: refuse if that is too short, and give up when it is over
    #[arg(long, value_name = "TIME")]
    within: Option<Time>,

    /// Where the checkpoint is kept until it is permanent
    #[arg(long, value_name = "DIR", default_value = launcher::WORK_DIR)]
    work_dir: PathBuf,

    #[command(flatten)]
    identity: Identity,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    transport: Transport,
}

/// Bring a preempted application back: restore the newest checkpoint of it
///
/// The same as `syncpoint restore` of the application's newest checkpoint in the repository. If that one is damaged there or cannot be
/// had, the one before is restored, and a warning says so. Needs root.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: what `syncpoint restore` answers.")]
pub struct ResumeArgs {
    /// The application
    #[arg(value_name = "APPLICATION")]
    application: ApplicationId,

    /// Where its checkpoints are: oci:DIR or HOST/REPO
    #[arg(long, value_name = "REF")]
    from: Reference,

    #[command(flatten)]
    how: restore::How,
}

/// Preempts.
pub async fn run(args: PreemptArgs, context: &Context) -> Result<(), CommandError> {
    let plan = args.plan.as_deref().map(plan::read).transpose()?;
    if let Some(other) = plan.as_ref().and_then(|plan| plan.application.as_ref()).filter(|id| **id != args.application)
    {
        return Err(CommandError::usage(format!("the plan is about {other}, not about {}", args.application)));
    }
    let (from_plan, members, deadlines, pages) = match plan {
        Some(plan) => ((plan.to, plan.key), plan.members, (plan.gather, plan.freeze), plan.pages),
        None => ((None, None), Vec::new(), (None, None), None),
    };
    let to = args.to.or(from_plan.0).ok_or_else(|| CommandError::usage("the plan does not say where to"))?;
    let key = args.sign_by.or(from_plan.1).ok_or_else(|| CommandError::usage("the plan does not say who signs"))?;
    let tag = to.selector().map(|_| store::tag_to_write(&to)).transpose()?.cloned();
    let key = Arc::new(keys::private(&key, context).await?);
    let store = store::create(&to, &args.transport, context).await?;
    let trust = keys::of_line(Some(&key), args.key.iter().map(PathBuf::as_path), context)?;
    let signer = Some(Signer { key, identity: args.identity.name });
    let destination = Destination { store, reference: to.to_string(), tag, signer, trust };
    let usual = CheckpointOptions::new(args.application, context.environment.hook_program());
    let options = CheckpointOptions {
        members: members.into_iter().map(ContainerSpec::from).collect(),
        deadlines: coordinator::Deadlines {
            gather: deadlines.0.unwrap_or(usual.deadlines.gather),
            hold: deadlines.1.unwrap_or(usual.deadlines.hold),
        },
        pages: pages.unwrap_or_default(),
        work_dir: args.work_dir,
        jobs: args.transport.jobs(),
        cancel: context.cancel.token(),
        ..usual
    };
    let within = args.within.map(|time| time.0);
    let report = guard::preempt(&destination, &options, within, &*context.reporter).await;
    let report = report.map_err(|error| failed(&options.application, error))?;
    context.output.print(args.format, &checkpoint::checkpointed(&to, report, true, true))
}

/// Why an application was not preempted, and what to do.
pub fn failed(application: &ApplicationId, error: PreemptError) -> CommandError {
    let (exit, hint) = match error {
        PreemptError::Checkpoint(error) => return checkpoint::failed(application, *error),
        PreemptError::Guarded { .. } => (
            Exit::Refused,
            Some("send the guard SIGTERM: with on-terminate = \"preempt\" in its plan it does the same"),
        ),
        PreemptError::TooShort { .. } => (Exit::Refused, Some("without --within it is tried nevertheless")),
        PreemptError::Late { .. } => (Exit::Aborted, None),
        PreemptError::Unrestorable { ref source, .. } => {
            let hint = source.hint();
            let error = CommandError::new(Exit::Refused, error).context(format!("{application} is not preempted"));
            return hint.into_iter().fold(error, CommandError::hint);
        }
        PreemptError::Line(error) => {
            return CommandError::from(error).context(format!("{application} is not preempted"));
        }
        _ => (Exit::Failure, None),
    };
    let error = CommandError::new(exit, error).context(format!("{application} is not preempted"));
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// Resumes. A checkpoint that cannot be had from the store, or is damaged there, gives way to the one before.
pub async fn run_resume(args: ResumeArgs, context: &Context) -> Result<(), CommandError> {
    let ResumeArgs { application, from, how } = args;
    let store = store::open(&from, how.transport(), context).await?;
    let found = catalogue(&*store, &how.trust()?, how.transport().jobs()).await;
    let Catalogue { mut listed, passed_over } = found.doing(|| format!("{from} cannot be listed"))?;
    commands::passed_over(&passed_over, context);
    listed.retain(|listed| *listed.global.application() == application);
    listed.sort_by_key(|listed| Reverse(listed.global.epoch()));
    listed.dedup_by_key(|listed| listed.root.digest);
    let mut newer = None;
    for listed in listed {
        let epoch = listed.global.epoch();
        let reference = from.with_selector(Some(Selector::Digest(listed.root.digest)));
        context.reporter.note(&format!("epoch {epoch} of {application}, tag {}", listed.tag));
        match restore::start(&reference, Arc::clone(&store), listed.root, &how, context).await {
            Err(error) if is_of_checkpoint(error.exit()) => {
                let why = error.lines().join("; ");
                context.reporter.warn(&format!(
                    "epoch {epoch} is passed over, and what came after the one before it is lost: {why}"
                ));
                newer.get_or_insert(error);
            }
            done => return done,
        }
    }
    Err(newer.unwrap_or_else(|| {
        CommandError::new(Exit::NotFound, format!("there is no checkpoint of {application} in {from}"))
            .hint("`syncpoint list` shows what there is")
    }))
}

/// Whether an end tells of the checkpoint, and not of this machine or of a store that is gone.
fn is_of_checkpoint(exit: Exit) -> bool {
    matches!(exit, Exit::NotFound | Exit::Denied | Exit::Unverified | Exit::Damaged)
}
