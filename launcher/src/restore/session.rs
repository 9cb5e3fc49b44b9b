//! One attempt: the engines are started wave by wave, and the members meet at CRIU's hooks.
//!
//! ```text
//!   wave 1: engines started ──▶ all at pre-restore ──▶ wave 2 started ──▶ ... ──▶ the last wave at pre-restore
//!                                                                                         │ barrier opens
//!   running ◀── engines end with 0 ◀── released at pre-resume ◀── all at post-restore ◀────┘
//!      │                                       ▲
//!      │ one is missing                        │ before: any engine that fails, hook that vanishes, deadline, cancel
//!      ▼                                       ▼
//!   failed: engines ended (killed, if they do not end), containers and their volumes removed, session closed
//! ```
//!
//! The session's folder goes last: a CRIU that cannot find its script at pre-resume would let its tasks go.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use coordinator::proto::BarrierCrossing;
use coordinator::{Event, Hook, Outcome, Rendezvous, Step};
use engine::{Marks, Target, chain, kill};
use image_format::MemberId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::memory::{self, Following};
use crate::observer::{MemberStep, Observer};

/// How long an engine may take to end once its session is decided. Hooks that are told to abort end CRIU at once.
pub(crate) const ENDING: Duration = Duration::from_secs(10);

/// How long engines may take to end once something was killed.
const DYING: Duration = Duration::from_secs(5);

/// Between an engine's end and the news that its session released it: both come from the same moment.
pub(crate) const NEWS: Duration = Duration::from_secs(2);

/// The times of each member at each barrier.
pub(crate) type Passages = BTreeMap<MemberId, Vec<BarrierCrossing>>;

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) member: Option<MemberId>,
    pub(crate) hook: Option<Hook>,
    pub(crate) reason: String,
    pub(crate) log_lines: Vec<String>,
}

/// What an engine and CRIU said about a member that failed.
#[derive(Debug, Default)]
struct Failure {
    reason: String,
    log_lines: Vec<String>,
}

/// What is done about engines that do not end, one after the other.
#[derive(Debug, Clone, Copy)]
enum Force {
    Tasks,
    Engines,
    GiveUp,
}

/// One attempt on its way.
struct Attempt<'a> {
    rendezvous: &'a mut Rendezvous,
    events: mpsc::UnboundedReceiver<Event>,
    engines: JoinSet<(Target, Result<(), String>)>,
    /// Ends engines that do not end by themselves.
    kill: CancellationToken,
    /// In the order of the failures.
    failures: Vec<(MemberId, Failure)>,
    /// Look into failures: a member, and what CRIU said.
    inquests: JoinSet<(MemberId, Vec<String>)>,
    marks: &'a Marks,
    observer: &'a dyn Observer,
}

/// Restores the targets, which are in waves of these sizes. On return no engine runs any more; after a failure there may
/// be containers.
pub(crate) async fn run(
    rendezvous: &mut Rendezvous,
    targets: &[Target],
    waves: &[usize],
    marks: &Marks,
    following: &mut [(MemberId, Following)],
    cancel: &CancellationToken,
    observer: &dyn Observer,
) -> Result<Passages, Broken> {
    let events = rendezvous.events();
    let mut attempt = Attempt {
        rendezvous,
        events,
        engines: JoinSet::new(),
        kill: CancellationToken::new(),
        failures: Vec::new(),
        inquests: JoinSet::new(),
        marks,
        observer,
    };
    let outcome = attempt.decide(targets, waves, following, cancel).await;
    attempt.end_engines(targets).await;
    match outcome {
        Outcome::Released { timings } => {
            attempt.check_running(targets).await?;
            Ok(timings.members)
        }
        Outcome::Aborted { member, hook, reason } => Err(attempt.broken(member, hook, reason)),
    }
}

impl Attempt<'_> {
    /// Starts the engines and waits until it is decided.
    async fn decide(
        &mut self,
        targets: &[Target],
        waves: &[usize],
        following: &mut [(MemberId, Following)],
        cancel: &CancellationToken,
    ) -> Outcome {
        let mut lost = pin!(memory::lost(following));
        let mut told = false;
        let mut waves = waves.iter();
        let mut started = 0;
        let mut gathered = BTreeSet::new();
        let mut cancelled = false;
        loop {
            // The next wave begins when everybody so far is at the first barrier: what the next ones depend on exists.
            while gathered.len() == started
                && let Some(size) = waves.next()
            {
                for target in targets.iter().skip(started).take(*size) {
                    self.start(target);
                }
                started += size;
            }
            tokio::select! {
                biased;
                outcome = self.rendezvous.outcome() => return outcome,
                () = cancel.cancelled(), if !cancelled => {
                    cancelled = true;
                    self.rendezvous.cancel("it was cancelled".to_owned()).await;
                }
                (member, error) = &mut lost, if !told => {
                    told = true;
                    self.rendezvous.member_failed(&member, chain(&error)).await;
                }
                Some(event) = self.events.recv() => {
                    if event.step == Step::Arrived(Hook::PreRestore) {
                        gathered.insert(event.member.clone());
                    }
                    self.tell(event);
                }
                Some(ended) = self.engines.join_next() => match ended {
                    Ok((Target { member, .. }, Ok(()))) => {
                        if let Ok(outcome) = timeout(NEWS, self.rendezvous.outcome()).await {
                            return outcome;
                        }
                        let reason = "its engine restored it without CRIU having run its hooks".to_owned();
                        self.rendezvous.member_failed(&member, reason).await;
                    }
                    Ok((target, Err(reason))) => self.fail(target, reason).await,
                    Err(error) => self.rendezvous.cancel(format!("an engine's task ended: {error}")).await,
                },
            }
        }
    }

    fn start(&mut self, target: &Target) {
        self.observer.member(&target.member, MemberStep::Started);
        let (target, kill) = (target.clone(), self.kill.clone());
        self.engines.spawn(async move {
            let restored = target.engine.driver().restore(&target, &kill).await;
            (target, restored)
        });
    }

    /// Tells the session at once, so that nobody is released any more. Then CRIU and tasks that nobody holds are killed,
    /// and CRIU's words are kept before they go with the container.
    async fn fail(&mut self, target: Target, reason: String) {
        self.rendezvous.member_failed(&target.member, reason.clone()).await;
        self.failures.push((target.member.clone(), Failure { reason, log_lines: Vec::new() }));
        let marks = self.marks.clone();
        self.inquests.spawn(async move {
            kill_tasks(&target, &marks).await;
            let log_lines = target.engine.driver().log_lines(&target).await;
            (target.member, log_lines)
        });
    }

    fn tell(&self, event: Event) {
        self.observer.member(&event.member, event.step.into());
    }

    /// Waits until every engine has ended; those that take too long are killed, with everything that they left.
    async fn end_engines(&mut self, targets: &[Target]) {
        let mut steps = [Force::Tasks, Force::Engines, Force::GiveUp].into_iter();
        let mut until = Instant::now() + ENDING;
        while !self.engines.is_empty() {
            match timeout_at(until, self.engines.join_next()).await {
                Ok(Some(Ok((_, Ok(()))))) | Ok(None) => {}
                Ok(Some(Ok((target, Err(reason))))) => self.fail(target, reason).await,
                Ok(Some(Err(error))) => self.rendezvous.cancel(format!("an engine's task ended: {error}")).await,
                Err(_) => {
                    until = Instant::now() + DYING;
                    match steps.next() {
                        // An engine whose CRIU is gone tidies up after itself, as far as it can.
                        Some(Force::Tasks) => {
                            for target in targets {
                                kill_tasks(target, self.marks).await;
                            }
                        }
                        Some(Force::Engines) => self.kill.cancel(),
                        Some(Force::GiveUp) | None => {
                            self.observer.warning("an engine could not be killed");
                            self.engines.abort_all();
                        }
                    }
                }
            }
        }
        while let Some(inquest) = self.inquests.join_next().await {
            let Ok((member, log_lines)) = inquest else { continue };
            if let Some((_, failure)) = self.failures.iter_mut().find(|(failed, _)| *failed == member) {
                failure.log_lines = log_lines;
            }
        }
    }

    /// After the release: did everybody tell that it runs, and does the engine say so too?
    async fn check_running(&mut self, targets: &[Target]) -> Result<(), Broken> {
        let finished = self.rendezvous.finished().await;
        while let Ok(event) = self.events.try_recv() {
            self.tell(event);
        }
        if let Some((member, failure)) = self.failures.first() {
            let reason = format!("member {member} failed after the release: {}", failure.reason);
            return Err(self.broken(Some(member.clone()), None, reason));
        }
        if let Some(missing) = finished.missing.into_iter().next() {
            let reason = format!("member {} does not run: {}", missing.member, missing.reason);
            return Err(self.broken(Some(missing.member), Some(Hook::PostResume), reason));
        }
        for engine in targets.iter().map(|target| target.engine).collect::<BTreeSet<_>>() {
            let its: Vec<_> = targets.iter().filter(|target| target.engine == engine).collect();
            let found = engine.driver().find_all(&its).await.map_err(|error| {
                let reason = format!("whether the members of {engine} run cannot be found out: {}", chain(&error));
                self.broken(None, None, reason)
            })?;
            for (Target { member, .. }, found) in its.into_iter().zip(found) {
                let reason = match found {
                    Some(found) if found.ours && found.running => continue,
                    Some(_) => format!("member {member} was restored, but its engine says that it does not run"),
                    None => format!("member {member} was restored, but its container is gone"),
                };
                return Err(self.broken(Some(member.clone()), None, reason));
            }
        }
        Ok(())
    }

    /// With the words of the engine and CRIU of that member, or of the first one that has any.
    fn broken(&self, member: Option<MemberId>, hook: Option<Hook>, mut reason: String) -> Broken {
        let failure = match &member {
            Some(member) => self.failures.iter().find(|(failed, _)| failed == member),
            None => self.failures.first(),
        };
        let mut log_lines = Vec::new();
        if let Some((_, failure)) = failure {
            if !reason.contains(&failure.reason) {
                reason = format!("{reason}; {}", failure.reason);
            }
            log_lines.clone_from(&failure.log_lines);
        }
        Broken { member, hook, reason, log_lines }
    }
}

/// Kills CRIU, the tasks, and whatever else is left of a member that must not run.
async fn kill_tasks(target: &Target, marks: &Marks) {
    let id = match &target.id {
        Some(id) => Some(id.clone()),
        None => {
            target.engine.driver().find(target).await.ok().flatten().filter(|found| found.ours).map(|found| found.id)
        }
    };
    if let Some(id) = id {
        let marks = Marks { id: Some(id), ..marks.clone() };
        // What cannot be killed now is tried again, and told, when the container is removed.
        let _ = tokio::task::spawn_blocking(move || kill(&marks)).await;
    }
}
