//! A guard: an application is checkpointed every so often, and rolled back as a whole when one of its members is gone.
//!
//! ```text
//!              ┌── tick ─▶ checkpoint() ─▶ permanent, or counted as failed; the application runs on either way
//!   watch ─────┤
//!  (handles of └── a member is gone ─▶ newest checkpoint that is not out of the question ─▶ prepare() ─▶ end the rest ─▶ run()
//!   processes)                              ▲ the one before, if it cannot be restored ───────┘
//! ```
//!
//! What is left of the application is ended only when a checkpoint is verified, preflighted and fetched. Until then what still runs goes on,
//! with its volumes; so it does when no checkpoint can be restored and the guard gives up.
//!
//! [`crate::decider`] says when which of these steps is done, and knows neither containers nor clocks;
//! this module is its driver. What must outlive the guard stands in a file ([`crate::state`]). A guard
//! that is killed and started again finds an application that does not run as a whole, and rolls it
//! back. There is one guard of an application on a host, by a lock that goes with its process.

use std::collections::BTreeSet;
use std::future::pending;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use coordinator::{Fence, FenceError};
use engine::{chain, claims::Claims};
use image_format::{ApplicationId, Digest, Epoch, MemberId, UnpackError};
use launcher::{
    CheckpointError, CheckpointErrorKind, CheckpointOptions, CheckpointReport, Destination, EvictError, Leaving,
    LoadError, MemberStep, Observer, Phase, Problem, RestoreError, RestoreErrorKind, RestoreOptions, checkpoint,
    make_run_root, prepare, tell_passed_over,
};
use registry::{
    Catalogue, CatalogueError, Listed, PassedOver, Policy, Progress, PruneError, PruneOptions, PruneReport, StoreError,
    catalogue,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::decider::{Action, Decider, Failure, RollbackPolicy, Surrender};
use crate::members::{Look, LookError, Running, look, running};
use crate::metrics::GuardMetrics;
use crate::state::{GuardState, StateFile};

/// Where guards keep what they know, unless it is said otherwise.
pub const GUARD_DIR: &str = "/var/lib/syncpoint/guard";

/// What to guard, and how.
#[derive(Debug, Clone)]
pub struct GuardOptions {
    /// How its checkpoints are taken; the members must be named. Its `cancel` ends the guard, and the application runs on.
    pub checkpoint: CheckpointOptions,
    /// Where they go.
    pub destination: Destination,
    /// How it is rolled back.
    pub restore: RestoreOptions,
    /// How far to go with that.
    pub limits: RollbackPolicy,
    /// Where the guard's state is.
    pub state_dir: PathBuf,
    /// Which checkpoints of the application stay when a new one is permanent; all of them if not given.
    pub retention: Option<Policy>,
    /// The number under which it acts, where somebody gives numbers out; otherwise one more than the last.
    pub token: Option<u64>,
}

/// What a guard is told while it is at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orders {
    /// From one checkpoint to the next; a change takes effect at the next tick.
    pub interval: Duration,
    /// Somebody found the application to have failed, though its containers may run: it is rolled back, once for each number, of which
    /// later ones are greater.
    pub failure: Option<i64>,
}

/// What a guard has to tell.
#[derive(Debug)]
#[non_exhaustive]
pub enum GuardEvent<'a> {
    /// It begins: the members run.
    Watching {
        /// How many.
        members: usize,
    },
    /// A checkpoint is permanent.
    Checkpointed {
        /// What was made.
        report: &'a CheckpointReport,
        /// How long it took.
        took: Duration,
    },
    /// A checkpoint failed; the application runs on.
    CheckpointFailed {
        /// Why.
        error: &'a CheckpointError,
    },
    /// Checkpoints that no rule keeps were removed.
    Pruned {
        /// What was removed, and what is kept.
        report: &'a PruneReport,
    },
    /// They could not be, or not all of them; the next time goes on.
    PruneFailed {
        /// Why.
        error: &'a PruneError,
    },
    /// It took longer than the interval: a tick was skipped.
    Skipped {
        /// How often so far.
        skipped: u64,
    },
    /// Containers are gone, or the application was found to have failed.
    Lost {
        /// Which; none if they may still run.
        containers: &'a [String],
    },
    /// The application is being rolled back.
    RollingBack {
        /// The checkpoint.
        epoch: Epoch,
        /// Its index.
        digest: &'a Digest,
    },
    /// It runs again.
    RolledBack {
        /// The checkpoint.
        epoch: Epoch,
        /// Between the instant of the checkpoint and the loss, if this guard took it.
        undone: Option<Duration>,
    },
    /// A rollback failed. What was left of the application is as it was, unless the error says otherwise.
    RollbackFailed {
        /// The checkpoint, if it came to one.
        epoch: Option<Epoch>,
        /// Why.
        error: &'a RollbackError,
    },
    /// Something that is worth a person's attention.
    Warning {
        /// In words.
        warning: &'a str,
    },
}

/// Is told what a guard does.
pub trait GuardWatcher: Send + Sync {
    /// Something happened.
    fn event(&self, event: GuardEvent<'_>);
}

/// Why a rollback failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RollbackError {
    /// The store does not say what there is.
    #[error("the checkpoints cannot be listed")]
    List(#[source] StoreError),
    /// There is none that is left to be tried.
    #[error("there is no checkpoint of it{} in {store}", bound(*below))]
    NothingLeft {
        /// The store.
        store: String,
        /// Only those before this one were looked at.
        below: Option<Epoch>,
    },
    /// There is none that is left to be tried of those that the store gives, and it does not give all.
    #[error("there is no checkpoint of it{} in {store} that can be read, and the tag {tag} may be one", bound(*below))]
    Withheld {
        /// The store.
        store: String,
        /// Only those before this one were looked at.
        below: Option<Epoch>,
        /// The tag that the store does not give.
        tag: String,
        /// In the store's words.
        #[source]
        source: CatalogueError,
    },
    /// The checkpoint cannot be restored, or not here and now. Nothing was ended.
    #[error("the checkpoint cannot be restored, and what is left of the application was not touched")]
    Refused(#[source] Box<RestoreError>),
    /// The guard lost its right to act meanwhile. Nothing was ended.
    #[error(transparent)]
    Fenced(#[from] FenceError),
    /// What is left of the application could not be ended.
    #[error("what is left of the application cannot be taken away")]
    Evict(#[source] EvictError),
    /// The restore failed, after what was left of the application had been ended.
    #[error("what was left of the application was ended, and its members did not come up again{}", left(_0))]
    Restore(#[source] Box<RestoreError>),
    /// The members ran, and are gone already.
    #[error("it was restored, but {} did not run on", containers.join(", "))]
    Died {
        /// Their containers.
        containers: Vec<String>,
    },
    /// It is not known what runs.
    #[error(transparent)]
    Look(#[from] LookError),
}

fn bound(below: Option<Epoch>) -> String {
    below.map(|epoch| format!(" before epoch {epoch}")).unwrap_or_default()
}

fn left(error: &RestoreError) -> String {
    let left = error.leftovers.join("; ");
    if left.is_empty() { String::new() } else { format!(" (still there: {left})") }
}

/// Why a guard ended, other than by being told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// Dumping and restoring take root.
    #[error("this is not root, and only root can freeze and restore containers")]
    NotRoot,
    /// Nobody is named.
    #[error("the members of {application} are not named, and who is not there cannot be found by labels")]
    NoMembers {
        /// The application.
        application: ApplicationId,
    },
    /// Members of other hosts.
    #[error("{application} has members on other hosts, which a guard cannot restore")]
    Elsewhere {
        /// The application.
        application: ApplicationId,
    },
    /// There is one already.
    #[error("another guard of {application} runs on this host")]
    Guarded {
        /// The application.
        application: ApplicationId,
    },
    /// Somebody newer acts for the application, or it is not known who does.
    #[error(transparent)]
    Fenced(#[from] FenceError),
    /// The lease under which it acted is over, or may be.
    #[error("the lease is over: the Configuration DB does not answer, or says so")]
    LeaseOver,
    /// An application that was never guarded does not run as a whole.
    #[error("of {application}, which was not guarded before, {} not run", does(containers))]
    NotRunning {
        /// The application.
        application: ApplicationId,
        /// The containers that do not run.
        containers: Vec<String>,
    },
    /// It is not known what runs.
    #[error(transparent)]
    Look(#[from] LookError),
    /// A file or folder of the guard.
    #[error("{path:?} cannot be used")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It was told to end before an application that had failed ran again.
    #[error("the guard of {application} was told to end before the application ran again; {}", as_it_is(running))]
    Down {
        /// The application.
        application: ApplicationId,
        /// The containers that still run, and are left as they are.
        running: Vec<String>,
    },
    /// There is nothing more to be done.
    #[error("the guard gives {application} up: {}; {}", words(*surrender), as_it_is(running))]
    GaveUp {
        /// The application.
        application: ApplicationId,
        /// Why.
        surrender: Surrender,
        /// The containers that still run, and are left as they are.
        running: Vec<String>,
    },
}

fn does(containers: &[String]) -> String {
    let verb = if containers.len() == 1 { "does" } else { "do" };
    format!("{} {verb}", containers.join(", "))
}

fn words(surrender: Surrender) -> String {
    match surrender {
        Surrender::NothingLeft => "no checkpoint is left that was not tried".to_owned(),
        Surrender::TooOften { attempts } => format!("{attempts} attempts to roll it back got nowhere"),
    }
}

fn as_it_is(running: &[String]) -> String {
    match running {
        [] => "nothing of it runs".to_owned(),
        [one] => format!("{one} still runs, and is left as it is"),
        several => format!("{} still run, and are left as they are", several.join(", ")),
    }
}

/// Guards an application until it is told to stop. The application runs on then, also if the guard fails, but for
/// [`GuardError::GaveUp`] and [`GuardError::Down`].
///
/// Checkpoints that cannot be sent are not kept: the next one is newer.
///
/// # Errors
/// An application that cannot be guarded, or was given up.
pub async fn guard(
    options: &GuardOptions,
    orders: watch::Receiver<Orders>,
    metrics: &GuardMetrics,
    watcher: &dyn GuardWatcher,
) -> Result<(), GuardError> {
    let application = options.checkpoint.application.clone();
    if !options.checkpoint.host.root {
        return Err(GuardError::NotRoot);
    }
    if options.checkpoint.elsewhere.is_some() {
        return Err(GuardError::Elsewhere { application });
    }
    if options.checkpoint.members.is_empty() {
        return Err(GuardError::NoMembers { application });
    }
    let run_root = &options.checkpoint.run_root;
    let file = |path: &PathBuf| {
        let path = path.clone();
        move |source| GuardError::File { path, source }
    };
    let run_root = make_run_root(run_root).map_err(file(run_root))?;
    let mut claims = Claims::default();
    if !claims.claim(&run_root, &format!("guard-{application}")).map_err(file(&run_root))? {
        return Err(GuardError::Guarded { application });
    }
    let state_file = StateFile::new(&options.state_dir, &application);
    let known = state_file.read().map_err(file(&state_file.path().to_owned()))?;
    if known.is_none()
        && let Look::Missing(containers) = look(&options.checkpoint.host.engines, &options.checkpoint.members).await?
    {
        return Err(GuardError::NotRunning { application, containers });
    }
    let mut state = known.unwrap_or_else(|| state_file.begin(&application));
    let names = options.checkpoint.members.iter();
    state.members = names.filter_map(|wanted| Some((wanted.id.clone()?, wanted.container.clone()))).collect();
    state_file.write(&state).map_err(file(&state_file.path().to_owned()))?;
    // From here on no older guard's hooks let anything happen, also where its lock is gone and it does not know.
    let fence = Fence::raise(&run_root, &application, options.token)?;
    let mut own = options.clone();
    // Whatever the store does, the guard can be ended.
    own.destination = own.destination.until(&options.checkpoint.cancel);
    own.checkpoint.fence = Some(fence.clone());
    own.restore.fence = Some(fence.clone());
    Guard { options: &own, metrics, watcher, fence, state, state_file, running: None }.run(orders).await
}

/// One guard at work.
struct Guard<'a> {
    options: &'a GuardOptions,
    metrics: &'a GuardMetrics,
    watcher: &'a dyn GuardWatcher,
    fence: Fence,
    state: GuardState,
    state_file: StateFile,
    /// The members, as long as none of them is known to be gone.
    running: Option<Running>,
}

/// What is under way.
type Work<'w> = Pin<Box<dyn Future<Output = Done> + 'w>>;

/// Old checkpoints that are being removed, beside anything else. What is left half done is done the next time.
type Pruning<'w> = Pin<Box<dyn Future<Output = Result<PruneReport, PruneError>> + 'w>>;

/// What came of it.
enum Done {
    Checkpoint(Result<CheckpointReport, CheckpointError>, (Instant, SystemTime)),
    Rollback(Result<(Epoch, Digest, Running), (Option<Epoch>, RollbackError)>),
}

/// Why the driver woke up.
enum Woken {
    Stop,
    Orders,
    Lost(Vec<String>),
    Done(Box<Done>),
    Pruned(Result<PruneReport, PruneError>),
    Time,
}

impl Guard<'_> {
    async fn run(mut self, mut orders: watch::Receiver<Orders>) -> Result<(), GuardError> {
        let stop = self.options.checkpoint.cancel.clone();
        let mut ordered = *orders.borrow_and_update();
        let found = self.look(&stop).await?;
        let mut decider = Decider::new(self.options.limits, ordered.interval, Instant::now());
        match found {
            Look::All(running) => self.watch(running),
            Look::Missing(containers) => self.fall(&containers, &mut decider),
        }
        if self.is_new(ordered.failure) {
            self.fall(&[], &mut decider);
        }
        let mut work: Option<Work<'_>> = None;
        let mut pruning: Option<Pruning<'_>> = None;
        let mut cancel = CancellationToken::new();
        loop {
            let action = decider.poll_action();
            if matches!(action, Some(Action::Checkpoint | Action::RollBack { .. })) {
                // Before anything is ended, too: what runs may be a newer guard's.
                self.fence.check()?;
            }
            match action {
                Some(Action::Checkpoint) => {
                    cancel = stop.child_token();
                    work = Some(Box::pin(take(self.options, self.watcher, cancel.clone())));
                    continue;
                }
                Some(Action::Cancel) => {
                    cancel.cancel();
                    continue;
                }
                Some(Action::RollBack { below }) => {
                    cancel = stop.child_token();
                    let volumes = self.state.volumes.clone();
                    work = Some(Box::pin(roll_back(self.options, self.watcher, below, volumes, cancel.clone())));
                    continue;
                }
                Some(Action::GiveUp(surrender)) => {
                    self.metrics.gave_up();
                    let application = self.options.checkpoint.application.clone();
                    let running =
                        running(&self.options.checkpoint.host.engines, &self.options.checkpoint.members).await;
                    return Err(GuardError::GaveUp { application, surrender, running });
                }
                None => {}
            }
            let under_way = (work.as_mut(), pruning.as_mut());
            let woken = wait(&decider, self.running.as_ref(), under_way, &mut orders, &stop).await;
            let now = Instant::now();
            match woken {
                Woken::Stop => {
                    // Whatever is under way ends in good order by the same token.
                    if let Some(work) = work.take() {
                        let done = work.await;
                        self.finish(done, &mut decider, ordered.failure);
                    }
                    return self.leave().await;
                }
                Woken::Orders => {
                    let before = std::mem::replace(&mut ordered, *orders.borrow_and_update());
                    decider.handle_interval(ordered.interval);
                    if ordered.failure != before.failure && self.is_new(ordered.failure) {
                        self.fall(&[], &mut decider);
                    }
                }
                Woken::Lost(containers) => self.fall(&containers, &mut decider),
                Woken::Pruned(pruned) => {
                    pruning = None;
                    self.pruned(&pruned);
                }
                Woken::Done(done) => {
                    work = None;
                    if let (Done::Checkpoint(Ok(_), _), Some(policy)) = (&*done, &self.options.retention) {
                        // One that still goes on will not see the newest; the next one does.
                        pruning.get_or_insert_with(|| Box::pin(prune(self.options, policy)));
                    }
                    self.finish(*done, &mut decider, ordered.failure);
                }
                Woken::Time => {
                    let skipped = decider.skipped();
                    decider.handle_timeout(now);
                    if decider.skipped() > skipped {
                        self.metrics.skipped(decider.skipped());
                        self.watcher.event(GuardEvent::Skipped { skipped: decider.skipped() });
                    }
                }
            }
        }
    }

    /// Which members run. An engine that does not answer is asked again: it may be busy with what a guard that was killed had begun.
    async fn look(&self, stop: &CancellationToken) -> Result<Look, LookError> {
        let RollbackPolicy { attempts, back_off, .. } = self.options.limits;
        for _ in 1..attempts {
            match look(&self.options.checkpoint.host.engines, &self.options.checkpoint.members).await {
                Ok(found) => return Ok(found),
                Err(error) => self.watcher.event(GuardEvent::Warning { warning: &chain(&error) }),
            }
            tokio::select! {
                () = tokio::time::sleep(back_off) => {}
                () = stop.cancelled() => break,
            }
        }
        look(&self.options.checkpoint.host.engines, &self.options.checkpoint.members).await
    }

    /// It was told to end. An application that does not run as a whole is not said to run on.
    async fn leave(&self) -> Result<(), GuardError> {
        if self.running.is_some() {
            return Ok(());
        }
        let application = self.options.checkpoint.application.clone();
        let running = running(&self.options.checkpoint.host.engines, &self.options.checkpoint.members).await;
        Err(GuardError::Down { application, running })
    }

    /// Tells what came of it, notes it, and lets the decider know.
    fn finish(&mut self, done: Done, decider: &mut Decider, failure: Option<i64>) {
        let now = Instant::now();
        match done {
            Done::Checkpoint(Ok(report), begun) => {
                self.metrics.checkpointed(&report, begun);
                self.state.taken(report.epoch, report.digest, begun.1);
                self.note();
                self.watcher.event(GuardEvent::Checkpointed { report: &report, took: begun.0.elapsed() });
                decider.handle_checkpoint(true, now);
            }
            Done::Checkpoint(Err(error), _) => {
                // One that this guard gave up, because a member was lost or the guard is to end, did not fail.
                if !matches!(*error.kind, CheckpointErrorKind::Cancelled) {
                    self.metrics.failed(error.phase);
                    self.watcher.event(GuardEvent::CheckpointFailed { error: &error });
                }
                decider.handle_checkpoint(false, now);
            }
            Done::Rollback(Ok((epoch, digest, running))) => {
                let undone = self.state.undone_by(&digest);
                self.state.rollbacks += 1;
                // Whichever brought it back, it is not the application any more that failed then.
                self.state.failure = self.state.failure.max(failure);
                self.note();
                self.metrics.rolled_back(undone);
                self.watcher.event(GuardEvent::RolledBack { epoch, undone });
                self.watch(running);
                decider.handle_rollback(Ok(epoch), now);
            }
            Done::Rollback(Err((epoch, error))) => {
                self.metrics.rollback_failed();
                self.watcher.event(GuardEvent::RollbackFailed { epoch, error: &error });
                decider.handle_rollback(Err(blame(epoch, &error)), now);
            }
        }
    }

    fn pruned(&self, pruned: &Result<PruneReport, PruneError>) {
        self.metrics.pruned(pruned.as_ref().ok().map(|report| report.removed.len()));
        match pruned {
            Ok(report) if report.removed.is_empty() => {}
            Ok(report) => self.watcher.event(GuardEvent::Pruned { report }),
            Err(error) => self.watcher.event(GuardEvent::PruneFailed { error }),
        }
    }

    fn watch(&mut self, running: Running) {
        self.watcher.event(GuardEvent::Watching { members: self.options.checkpoint.members.len() });
        self.metrics.running(true);
        if self.state.volumes != running.volumes {
            self.state.volumes.clone_from(&running.volumes);
            self.note();
        }
        self.running = Some(running);
    }

    /// Whether somebody found the application to have failed, and it was not rolled back for that yet.
    fn is_new(&self, failure: Option<i64>) -> bool {
        failure > self.state.failure
    }

    /// The application is not what it should be: containers are gone, or it was found to have failed.
    fn fall(&mut self, containers: &[String], decider: &mut Decider) {
        self.running = None;
        self.lost(containers);
        decider.handle_loss(Instant::now());
    }

    fn lost(&mut self, containers: &[String]) {
        self.state.lost(SystemTime::now());
        self.note();
        self.metrics.lost();
        self.watcher.event(GuardEvent::Lost { containers });
    }

    /// What cannot be noted is told, and does not keep the application from being guarded.
    fn note(&self) {
        if let Err(error) = self.state_file.write(&self.state) {
            let warning = format!("{} cannot be written: {error}", self.state_file.path().display());
            self.watcher.event(GuardEvent::Warning { warning: &warning });
        }
    }
}

async fn wait(
    decider: &Decider,
    running: Option<&Running>,
    (work, pruning): (Option<&mut Work<'_>>, Option<&mut Pruning<'_>>),
    orders: &mut watch::Receiver<Orders>,
    stop: &CancellationToken,
) -> Woken {
    let lost = async {
        match running {
            Some(running) => running.lost().await,
            None => pending().await,
        }
    };
    let done = async {
        match work {
            Some(work) => work.await,
            None => pending().await,
        }
    };
    let pruned = async {
        match pruning {
            Some(pruning) => pruning.await,
            None => pending().await,
        }
    };
    let time = async {
        match decider.poll_timeout() {
            Some(at) => tokio::time::sleep_until(at.into()).await,
            None => pending().await,
        }
    };
    let changed = async {
        // Nobody who could change them is left: they stay as they are.
        if orders.changed().await.is_err() {
            pending::<()>().await;
        }
    };
    let (lost, done, pruned) = (pin!(lost), pin!(done), pin!(pruned));
    let (time, changed) = (pin!(time), pin!(changed));
    tokio::select! {
        biased;
        () = stop.cancelled() => Woken::Stop,
        done = done => Woken::Done(Box::new(done)),
        container = lost => Woken::Lost(vec![container]),
        pruned = pruned => Woken::Pruned(pruned),
        () = changed => Woken::Orders,
        () = time => Woken::Time,
    }
}

async fn take(options: &GuardOptions, watcher: &dyn GuardWatcher, cancel: CancellationToken) -> Done {
    let begun = (Instant::now(), SystemTime::now());
    let own = CheckpointOptions { stop: false, keep_unsent: false, cancel, ..options.checkpoint.clone() };
    let taken = checkpoint(&options.destination, &own, &Quiet(watcher)).await;
    Done::Checkpoint(taken, begun)
}

/// Removes what no rule keeps.
async fn prune(options: &GuardOptions, policy: &Policy) -> Result<PruneReport, PruneError> {
    let application = Some(options.checkpoint.application.clone());
    let trust = options.destination.trust.clone();
    let own =
        PruneOptions { application, jobs: options.checkpoint.jobs, ..PruneOptions::new(trust, SystemTime::now()) };
    registry::prune(&*options.destination.store, policy, &own).await
}

async fn roll_back(
    options: &GuardOptions,
    watcher: &dyn GuardWatcher,
    below: Option<Epoch>,
    volumes: BTreeSet<String>,
    cancel: CancellationToken,
) -> Done {
    let found = find(options, watcher, below).await;
    let listed = match found {
        Ok(listed) => listed,
        Err(error) => return Done::Rollback(Err((None, error))),
    };
    let (epoch, digest) = (listed.global.epoch(), listed.root.digest);
    let restored = restore_one(options, watcher, listed, volumes, cancel).await;
    Done::Rollback(restored.map(|running| (epoch, digest, running)).map_err(|error| (Some(epoch), error)))
}

/// The newest checkpoint of the application below the bound.
async fn find(
    options: &GuardOptions,
    watcher: &dyn GuardWatcher,
    below: Option<Epoch>,
) -> Result<Listed, RollbackError> {
    let store = &options.destination.store;
    let catalogue = catalogue(&**store, &options.restore.trust, options.restore.jobs).await;
    let Catalogue { listed, passed_over } = catalogue.map_err(RollbackError::List)?;
    tell_passed_over(&passed_over, &Quiet(watcher));
    let ours = listed.into_iter().filter(|listed| *listed.global.application() == options.checkpoint.application);
    let ours = ours.filter(|listed| below.is_none_or(|below| listed.global.epoch() < below));
    let newest = ours.max_by_key(|listed| listed.global.epoch());
    newest.ok_or_else(|| {
        let store = store.name().to_owned();
        match passed_over.into_iter().find(|PassedOver { why, .. }| is_withheld(why)) {
            Some(PassedOver { tag, why: source }) => RollbackError::Withheld { store, below, tag, source },
            None => RollbackError::NothingLeft { store, below },
        }
    })
}

/// Whether a store that answers otherwise the next time may have a checkpoint there.
fn is_withheld(why: &CatalogueError) -> bool {
    matches!(why, CatalogueError::Store(error) if !error.is_of_content())
}

/// `volumes` are known to be the members'.
async fn restore_one(
    options: &GuardOptions,
    watcher: &dyn GuardWatcher,
    listed: Listed,
    volumes: BTreeSet<String>,
    cancel: CancellationToken,
) -> Result<Running, RollbackError> {
    let (epoch, digest) = (listed.global.epoch(), listed.root.digest);
    watcher.event(GuardEvent::RollingBack { epoch, digest: &digest });
    let (engines, members) = (&options.checkpoint.host.engines, &options.checkpoint.members);
    let own = RestoreOptions { cancel, ..options.restore.clone() };
    let store = Arc::clone(&options.destination.store);
    let quiet = Quiet(watcher);
    let leaving = Leaving::look(engines, members, volumes.clone()).await.map_err(LookError::from)?;
    let prepared = prepare(store, listed.root, &own, &leaving, &quiet).await;
    let prepared = prepared.map_err(|error| RollbackError::Refused(Box::new(error)))?;
    // That took its time. What runs may be a newer guard's by now, or this one may have been told to end.
    own.fence.as_ref().map_or(Ok(()), Fence::check)?;
    if own.cancel.is_cancelled() {
        let cancelled = RestoreError::new(Phase::Fetch, RestoreErrorKind::Cancelled);
        return Err(RollbackError::Refused(Box::new(cancelled)));
    }
    // Nothing of this incarnation may run beside the next one.
    let leaving = Leaving::look(engines, members, volumes).await.map_err(LookError::from)?;
    leaving.evict(&prepared.volumes).await.map_err(RollbackError::Evict)?;
    prepared.run().await.map_err(|error| RollbackError::Restore(Box::new(error)))?;
    match look(engines, members).await? {
        Look::All(running) => Ok(running),
        Look::Missing(containers) => Err(RollbackError::Died { containers }),
    }
}

/// Whose fault it is: another checkpoint may do where this one does not, but not where the store or this machine does not.
fn blame(epoch: Option<Epoch>, error: &RollbackError) -> Failure {
    match (error, epoch) {
        (RollbackError::NothingLeft { .. }, _) => Failure::NothingLeft,
        (RollbackError::Refused(error), Some(epoch)) => blame_refusal(epoch, error),
        (RollbackError::Evict(EvictError::Held { .. }), Some(epoch)) => Failure::Refused(epoch),
        (RollbackError::Restore(_) | RollbackError::Died { .. }, Some(epoch)) => Failure::Broken(epoch),
        _ => Failure::Surroundings(None),
    }
}

/// The same of a checkpoint for which nothing was ended.
fn blame_refusal(epoch: Epoch, error: &RestoreError) -> Failure {
    if let Some(error) = of_store(error) {
        return match error {
            error if error.is_of_content() => Failure::Unfit(epoch),
            // The store answers; it may give another one.
            StoreError::Denied { .. } | StoreError::Refused { .. } => Failure::Refused(epoch),
            _ => Failure::Surroundings(Some(epoch)),
        };
    }
    match &*error.kind {
        RestoreErrorKind::Load(LoadError::Interrupted(_)) => Failure::Surroundings(Some(epoch)),
        RestoreErrorKind::Fetch { source, .. } if matches!(**source, UnpackError::Write(_)) => {
            Failure::Surroundings(Some(epoch))
        }
        RestoreErrorKind::Untrusted { .. }
        | RestoreErrorKind::Load(_)
        | RestoreErrorKind::Fetch { .. }
        | RestoreErrorKind::NoContent { .. } => Failure::Unfit(epoch),
        RestoreErrorKind::Preflight { problems } if problems.iter().any(Problem::is_of_checkpoint) => {
            Failure::Unfit(epoch)
        }
        RestoreErrorKind::Preflight { .. }
        | RestoreErrorKind::OpenFiles(_)
        | RestoreErrorKind::Pull { .. }
        | RestoreErrorKind::OtherImage { .. }
        | RestoreErrorKind::Bundle { .. } => Failure::Refused(epoch),
        _ => Failure::Surroundings(Some(epoch)),
    }
}

/// The error of a store that is at the bottom of another.
fn of_store(error: &RestoreError) -> Option<&StoreError> {
    if let RestoreErrorKind::Store(error) | RestoreErrorKind::Load(LoadError::Store(error)) = &*error.kind {
        return Some(error);
    }
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        let carried = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let store = error.downcast_ref::<StoreError>().or_else(|| carried.and_then(|inner| inner.downcast_ref()));
        if store.is_some() {
            return store;
        }
        next = error.source();
    }
    None
}

/// Passes on what is worth attention, and nothing else: a guard does the same things day and night.
struct Quiet<'a>(&'a dyn GuardWatcher);

impl Observer for Quiet<'_> {
    fn phase(&self, _: Phase) {}
    fn member(&self, _: &MemberId, _: MemberStep) {}
    fn warning(&self, warning: &str) {
        self.0.event(GuardEvent::Warning { warning });
    }
    fn note(&self, _: &str) {}
}

impl Progress for Quiet<'_> {
    fn begin(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: &str, _: u64) {}
    fn end(&self, _: &str, _: Option<registry::Put>) {}
}
