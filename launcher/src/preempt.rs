//! Making room: an application is checkpointed, and only once that is permanent its containers are ended and taken away.
//!
//! Whoever is told that a machine goes away in so many seconds wants to know *before* anything is frozen whether that is enough: it
//! is judged by how long the newest checkpoints of the line took.

use std::time::Duration;

use image_format::{ApplicationId, Timeline};
use registry::{StoreError, catalogue};

use crate::claims::Claims;
use crate::engine::EngineError;
use crate::guard::evict;
use crate::restore::make_run_root;
use crate::{
    CheckpointError, CheckpointErrorKind, CheckpointOptions, CheckpointReport, Destination, Wanted, Watcher, checkpoint,
};

/// Checkpoints whose durations are looked at: one may have been a lucky one, and the first of a chain stores everything.
const LOOKED_AT: usize = 3;
/// What is added to what they took, in percent: signing, tagging and ending containers are in no timeline.
const MARGIN: u32 = 25;

/// Why an application was not preempted. It runs on, but for [`PreemptError::Remove`].
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
    #[error("the checkpoint was not permanent within {within:.1?}, and was given up")]
    Late {
        /// How long it might take.
        within: Duration,
    },
    /// The checkpoint failed.
    #[error(transparent)]
    Checkpoint(Box<CheckpointError>),
    /// The checkpoint is permanent, and its containers are ended; they could not be taken away.
    #[error("the checkpoint is permanent, but its containers cannot be taken away")]
    Remove(#[source] EngineError),
}

/// Checkpoints an application, and takes its containers away once that is permanent.
///
/// # Errors
/// Whatever keeps it from being checkpointed, and too little time.
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
    let own = CheckpointOptions { stop: true, cancel: cancel.clone(), ..options.clone() };
    let checkpointing = checkpoint(destination, &own, watcher);
    let report = match within {
        None => checkpointing.await,
        Some(within) => {
            let until = tokio::time::Instant::now() + within;
            match expected(&timelines(destination, options).await?) {
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
    let here = |container: &String, engine| Wanted { engine: Some(engine), ..Wanted::named(container.clone()) };
    let members: Vec<_> = report.members.iter().map(|member| here(&member.container, member.engine)).collect();
    evict(&members).await.map_err(PreemptError::Remove)?;
    Ok(report)
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
