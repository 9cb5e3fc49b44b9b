//! Making room: an application is checkpointed, and its containers are ended and taken away only once that is permanent and was found to be
//! restorable. Until then it runs on.
//!
//! Whoever is told that a machine goes away in so many seconds wants to know *before* anything is frozen whether that is enough: it
//! is judged by how long the newest checkpoints of the line took.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use engine::claims::Claims;
use image_format::{ApplicationId, Epoch, Timeline};
use launcher::{
    CheckpointError, CheckpointErrorKind, CheckpointOptions, CheckpointReport, ContainerSpec, Destination, EvictError,
    Leaving, Phase, Problem, RestoreError, RestoreErrorKind, RestoreOptions, Volumes, Watcher, checkpoint,
    make_run_root, preflight_beside,
};
use registry::{Selector, StoreError, catalogue};

use registry::Trust;

/// Checkpoints whose durations are looked at: one may have been a lucky one, and the first of a chain stores everything.
const LOOKED_AT: usize = 3;
/// How long the line may take to be read, at least.
const LINE: Duration = Duration::from_secs(10);
/// What is added to what they took, in percent: signing, tagging and ending containers are in no timeline.
const MARGIN: u32 = 25;

/// Why an application was not preempted. It runs on, but for [`PreemptError::Evict`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreemptError {
    /// Its guard would bring it back.
    #[error("a guard of {application} runs on this host, and would roll the application back when its containers end")]
    Guarded {
        /// The application.
        application: ApplicationId,
    },
    /// The lock of guards.
    #[error("it cannot be known whether there is a guard")]
    Claims(#[source] std::io::Error),
    /// It cannot be judged.
    #[error("how long a checkpoint takes cannot be read from the line")]
    Line(#[source] StoreError),
    /// There is not enough time; nothing was touched.
    #[error("a checkpoint of it takes {expected:.1?} by the newest ones of its line, and there are {within:.1?}")]
    TooShort {
        /// How long it is expected to take.
        expected: Duration,
        /// How long it may take.
        within: Duration,
    },
    /// It took longer than was expected.
    #[error("there was no permanent checkpoint within {within:.1?}, and it was given up")]
    Late {
        /// How long it might take.
        within: Duration,
    },
    /// The checkpoint failed.
    #[error(transparent)]
    Checkpoint(Box<CheckpointError>),
    /// The checkpoint is permanent, but could not be restored here.
    #[error(
        "epoch {epoch} is permanent, but cannot be restored: the containers and their volumes were left as they are"
    )]
    Unrestorable {
        /// The checkpoint.
        epoch: Epoch,
        /// Why.
        #[source]
        source: Box<RestoreError>,
    },
    /// The checkpoint is permanent and can be restored; its containers could not be ended or taken away, or not all of them.
    #[error("epoch {epoch} is permanent, but the containers cannot be ended or taken away")]
    Evict {
        /// The checkpoint.
        epoch: Epoch,
        /// Why.
        #[source]
        source: EvictError,
    },
}

/// Checkpoints an application, and takes its containers away, with the volumes that the checkpoint brings back, once that is permanent and
/// can be restored: it is signed, whole, and this machine would take it.
///
/// # Errors
/// Whatever keeps it from being checkpointed or restored, and too little time.
pub async fn preempt(
    destination: &Destination,
    options: &CheckpointOptions,
    within: Option<Duration>,
    watcher: &dyn Watcher,
) -> Result<CheckpointReport, PreemptError> {
    let application = &options.application;
    let mut claims = Claims::default();
    let claimed =
        make_run_root(&options.run_root).and_then(|root| claims.claim(&root, &format!("guard-{application}")));
    if !claimed.map_err(PreemptError::Claims)? {
        return Err(PreemptError::Guarded { application: application.clone() });
    }
    let cancel = options.cancel.child_token();
    // It runs on until it is known that it comes back.
    let own = CheckpointOptions { stop: false, cancel: cancel.clone(), ..options.clone() };
    let checkpointing = checkpoint(destination, &own, watcher);
    let report = match within {
        None => checkpointing.await,
        Some(within) => {
            let until = tokio::time::Instant::now() + within;
            // Nothing is touched meanwhile, and a time that is too short even for this question gets its
            // answer.
            let patience = within.max(LINE);
            let known = tokio::time::timeout(patience, timelines(&destination.until(&cancel), options)).await;
            match expected(&known.unwrap_or(Err(PreemptError::Late { within }))?) {
                Some(expected) if expected > within => return Err(PreemptError::TooShort { expected, within }),
                Some(_) => {}
                None => watcher.warning("nothing is known of how long a checkpoint of it takes: it is tried"),
            }
            let mut checkpointing = std::pin::pin!(checkpointing);
            let done = tokio::select! {
                done = &mut checkpointing => Some(done),
                () = tokio::time::sleep_until(until) => None,
            };
            match done {
                Some(done) => done,
                None => {
                    cancel.cancel();
                    // It ends in good order, or has become permanent at the last moment.
                    let done = checkpointing.await;
                    if matches!(&done, Err(error) if matches!(*error.kind, CheckpointErrorKind::Cancelled)) {
                        return Err(PreemptError::Late { within });
                    }
                    done
                }
            }
        }
    };
    let report = report.map_err(|error| PreemptError::Checkpoint(Box::new(error)))?;
    let (leaving, volumes) = restorable(destination, options, &report, watcher).await?;
    leaving.evict(&volumes).await.map_err(|source| PreemptError::Evict { epoch: report.epoch, source })?;
    Ok(report)
}

/// Checkpoints an application, and ends its containers, which stay where they are, once that is permanent and can be restored.
///
/// # Errors
/// As [`preempt`]; the application runs on then.
pub async fn halt(
    destination: &Destination,
    options: &CheckpointOptions,
    watcher: &dyn Watcher,
) -> Result<CheckpointReport, PreemptError> {
    let own = CheckpointOptions { stop: false, ..options.clone() };
    let report = checkpoint(destination, &own, watcher).await;
    let report = report.map_err(|error| PreemptError::Checkpoint(Box::new(error)))?;
    let (leaving, _) = restorable(destination, options, &report, watcher).await?;
    let stopped = leaving.stop().await;
    stopped.map_err(|error| PreemptError::Evict { epoch: report.epoch, source: error.into() })?;
    Ok(report)
}

/// Whether a checkpoint that is permanent comes back: what would make room for it, and which volumes.
async fn restorable(
    destination: &Destination,
    options: &CheckpointOptions,
    report: &CheckpointReport,
    watcher: &dyn Watcher,
) -> Result<(Leaving, Volumes), PreemptError> {
    let destination = &destination.until(&options.cancel);
    let failed = |source: RestoreError| PreemptError::Unrestorable { epoch: report.epoch, source: Box::new(source) };
    let here =
        |container: &String, engine| ContainerSpec { engine: Some(engine), ..ContainerSpec::named(container.clone()) };
    let members: Vec<_> = report.members.iter().map(|member| here(&member.container, member.engine)).collect();
    let leaving = Leaving::look(&options.host.engines, &members, BTreeSet::new()).await;
    let leaving = leaving.map_err(|source| PreemptError::Evict { epoch: report.epoch, source: source.into() })?;
    let trust = match &destination.signer {
        Some(signer) => Trust::Keys(vec![signer.key.public_key()]),
        None => Trust::InsecureNoVerify,
    };
    let bundles = options.members.iter().filter_map(|wanted| Some((wanted.id.clone()?, wanted.bundle.clone()?)));
    let restore = RestoreOptions {
        bundles: bundles.collect(),
        run_root: options.run_root.clone(),
        work_dir: options.work_dir.clone(),
        jobs: options.jobs,
        ..RestoreOptions::new(options.hook_program.clone(), trust)
    };
    let store = &destination.store;
    let root = store.resolve(&Selector::Digest(report.digest)).await;
    let root = root.map_err(|error| failed(RestoreError::new(Phase::Verify, error)))?;
    let checked = preflight_beside(Arc::clone(store), root, &restore, &leaving, watcher).await;
    let (problems, volumes) = checked.map_err(failed)?;
    // Whoever restores says where a bundle is, and makes room on the disk then.
    let momentary = |problem: &Problem| matches!(problem, Problem::NoBundle { .. } | Problem::Space { .. });
    let problems: Vec<_> =
        problems.into_iter().filter(|problem| !problem.is_warning() && !momentary(problem)).collect();
    if !problems.is_empty() {
        return Err(failed(RestoreError::new(Phase::Preflight, RestoreErrorKind::Preflight { problems })));
    }
    Ok((leaving, volumes))
}

async fn timelines(destination: &Destination, options: &CheckpointOptions) -> Result<Vec<Timeline>, PreemptError> {
    let listed = match catalogue(&*destination.store, &destination.trust, options.jobs).await {
        Ok(catalogue) => catalogue.listed,
        Err(StoreError::NotFound { .. }) => Vec::new(),
        Err(error) => return Err(PreemptError::Line(error)),
    };
    let mut ours: Vec<_> = listed
        .into_iter()
        .map(|listed| listed.global)
        .filter(|global| *global.application() == options.application)
        .collect();
    ours.sort_by_key(|global| std::cmp::Reverse(global.epoch()));
    Ok(ours.iter().take(LOOKED_AT).filter_map(|global| global.timeline().ok().flatten()).collect())
}

/// How long a checkpoint may take when the newest ones took so long; nothing is known without any.
fn expected(timelines: &[Timeline]) -> Option<Duration> {
    let took = |timeline: &Timeline| {
        let spans =
            timeline.members.iter().flat_map(|member| [member.frozen, member.dumped, member.packed, member.sent]);
        spans.flatten().map(|span| span.end).max()
    };
    let longest = timelines.iter().filter_map(took).max()?;
    Some(Duration::from_micros(longest) * (100 + MARGIN) / 100)
}

#[cfg(test)]
mod tests {
    use image_format::MemberTimeline;

    use super::*;

    #[test]
    fn the_longest_of_the_newest_and_a_margin() {
        let took = |micros: u64| Timeline {
            members: vec![MemberTimeline { sent: Some((10, micros).into()), ..empty() }, empty()],
            ..Timeline::default()
        };
        assert_eq!(expected(&[]), None);
        assert_eq!(expected(&[Timeline::default()]), None);
        assert_eq!(expected(&[took(1_000_000), took(4_000_000)]), Some(Duration::from_secs(5)));
    }

    fn empty() -> MemberTimeline {
        MemberTimeline::new("a".parse().unwrap())
    }
}
