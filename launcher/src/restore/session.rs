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
use std::sync::Arc;
use std::time::Duration;

use coordinator::proto::BarrierCrossing;
use coordinator::{Event, Hook, Outcome, Step};
use engine::{Engine, Engines, Marks, Target, chain, kill};
use image_format::MemberId;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::memory::{self, Following};
use crate::observer::{MemberStep, Observer};
use crate::session::{Broken, ENDING, EngineEnd, SessionDriver, Turn};

/// How long engines may take to end once something was killed.
const DYING: Duration = Duration::from_secs(5);

/// The times of each member at each barrier.
pub(crate) type Passages = BTreeMap<MemberId, Vec<BarrierCrossing>>;

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
    installed: &'a Engines,
    driver: SessionDriver<'a, Target>,
    failures: Failures,
    /// Look into failures: a member, and what CRIU said.
    inquests: JoinSet<(MemberId, Vec<String>)>,
    marks: &'a Marks,
    observer: &'a dyn Observer,
}

/// In the order of the failures.
#[derive(Debug, Default)]
struct Failures(Vec<(MemberId, Failure)>);

/// Restores the targets, which are in waves of these sizes. On return no engine runs any more; after a failure there may
/// be containers.
pub(crate) async fn run(
    driver: SessionDriver<'_, Target>,
    installed: &Engines,
    targets: &[Target],
    waves: &[usize],
    marks: &Marks,
    following: &mut [(MemberId, Following)],
    observer: &dyn Observer,
) -> Result<Passages, Broken> {
    let (failures, inquests) = (Failures::default(), JoinSet::new());
    let mut attempt = Attempt { installed, driver, failures, inquests, marks, observer };
    let outcome = attempt.decide(targets, waves, following).await;
    attempt.end_engines(targets).await;
    match outcome {
        Outcome::Released { timings } => {
            attempt.check_running(targets).await?;
            Ok(timings.members)
        }
        Outcome::Aborted { member, hook, reason } => Err(attempt.failures.broken(member, hook, reason)),
    }
}

impl Attempt<'_> {
    /// Starts the engines and waits until it is decided.
    async fn decide(
        &mut self,
        targets: &[Target],
        waves: &[usize],
        following: &mut [(MemberId, Following)],
    ) -> Outcome {
        let mut lost = pin!(memory::lost(following));
        let mut told = false;
        let mut waves = waves.iter();
        let mut started = 0;
        let mut gathered = BTreeSet::new();
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
            let turn = tokio::select! {
                biased;
                (member, error) = &mut lost, if !told => {
                    told = true;
                    self.driver.handle.member_failed(&member, chain(&error), Vec::new).await;
                    continue;
                }
                turn = self.driver.next() => turn,
            };
            match turn {
                Turn::Event(Event { member, step: Step::Arrived(Hook::PreRestore), .. }) => {
                    gathered.insert(member);
                }
                Turn::Event(_) | Turn::AllFrozen => {}
                Turn::EngineEnded(Target { member, .. }, Ok(())) => {
                    let reason = "its engine restored it without CRIU having run its hooks".to_owned();
                    self.driver.handle.member_failed(&member, reason, Vec::new).await;
                }
                Turn::EngineEnded(target, Err(reason)) => self.fail(target, reason).await,
                Turn::Decided(outcome) => return outcome,
            }
        }
    }

    fn start(&mut self, target: &Target) {
        self.observer.member(&target.member, MemberStep::Started);
        let (engine, own) = (Arc::clone(self.installed.get(target.engine)), target.clone());
        self.driver.engines.start(target.clone(), |kill| async move { engine.restore(&own, &kill).await });
    }

    /// Tells the session at once, so that nobody is released any more. Then CRIU and tasks that nobody holds are killed,
    /// and CRIU's words are kept before they go with the container.
    async fn fail(&mut self, target: Target, reason: String) {
        self.driver.handle.member_failed(&target.member, reason.clone(), Vec::new).await;
        self.failures.0.push((target.member.clone(), Failure { reason, log_lines: Vec::new() }));
        let marks = self.marks.clone();
        let engine = Arc::clone(self.installed.get(target.engine));
        self.inquests.spawn(async move {
            kill_tasks(&*engine, &target, &marks).await;
            let log_lines = engine.log_lines(&target).await;
            (target.member, log_lines)
        });
    }

    /// Waits until every engine has ended; those that take too long are killed, with everything that they left.
    async fn end_engines(&mut self, targets: &[Target]) {
        let mut steps = [Force::Tasks, Force::Engines, Force::GiveUp].into_iter();
        let mut until = Instant::now() + ENDING;
        while !self.driver.engines.is_empty() {
            match timeout_at(until, self.driver.engines.next()).await {
                Ok(Some(EngineEnd::Ended(_, Ok(()))) | None) => {}
                Ok(Some(EngineEnd::Ended(target, Err(reason)))) => self.fail(target, reason).await,
                Ok(Some(EngineEnd::Lost(reason))) => self.driver.handle.cancel(reason).await,
                Err(_) => {
                    until = Instant::now() + DYING;
                    match steps.next() {
                        // An engine whose CRIU is gone tidies up after itself, as far as it can.
                        Some(Force::Tasks) => {
                            for target in targets {
                                kill_tasks(&**self.installed.get(target.engine), target, self.marks).await;
                            }
                        }
                        Some(Force::Engines) => self.driver.engines.kill(),
                        Some(Force::GiveUp) | None => {
                            self.observer.warning("an engine could not be killed");
                            self.driver.engines.give_up();
                        }
                    }
                }
            }
        }
        while let Some(inquest) = self.inquests.join_next().await {
            let Ok((member, log_lines)) = inquest else { continue };
            if let Some((_, failure)) = self.failures.0.iter_mut().find(|(failed, _)| *failed == member) {
                failure.log_lines = log_lines;
            }
        }
    }

    /// After the release: did everybody tell that it runs, and does the engine say so too?
    async fn check_running(&mut self, targets: &[Target]) -> Result<(), Broken> {
        let missing = self.driver.handle.missing().await;
        self.driver.tell_the_rest();
        if let Some((member, failure)) = self.failures.0.first() {
            let reason = format!("member {member} failed after the release: {}", failure.reason);
            return Err(self.failures.broken(Some(member.clone()), None, reason));
        }
        if let Some(missing) = missing.into_iter().next() {
            let reason = format!("member {} does not run: {}", missing.member, missing.reason);
            return Err(self.failures.broken(Some(missing.member), Some(Hook::PostResume), reason));
        }
        for engine in targets.iter().map(|target| target.engine).collect::<BTreeSet<_>>() {
            let its: Vec<_> = targets.iter().filter(|target| target.engine == engine).collect();
            let found = self.installed.get(engine).find_all(&its).await.map_err(|error| {
                let reason = format!("whether the members of {engine} run cannot be found out: {}", chain(&error));
                self.failures.broken(None, None, reason)
            })?;
            for (Target { member, .. }, found) in its.into_iter().zip(found) {
                let reason = match found {
                    Some(found) if found.ours && found.running => continue,
                    Some(_) => format!("member {member} was restored, but its engine says that it does not run"),
                    None => format!("member {member} was restored, but its container is gone"),
                };
                return Err(self.failures.broken(Some(member.clone()), None, reason));
            }
        }
        Ok(())
    }
}

impl Failures {
    /// With the words of the engine and CRIU of that member, or of the first one that has any.
    fn broken(&self, member: Option<MemberId>, hook: Option<Hook>, mut reason: String) -> Broken {
        let failure = match &member {
            Some(member) => self.0.iter().find(|(failed, _)| failed == member),
            None => self.0.first(),
        };
        let mut log_lines = Vec::new();
        if let Some((_, failure)) = failure {
            if !reason.contains(&failure.reason) {
                reason = format!("{reason}; {}", failure.reason);
            }
            log_lines.clone_from(&failure.log_lines);
        }
        Broken { member, hook, reason, log_lines, dead: Vec::new() }
    }
}

/// Kills CRIU, the tasks, and whatever else is left of a member that must not run.
async fn kill_tasks(engine: &dyn Engine, target: &Target, marks: &Marks) {
    let id = match &target.id {
        Some(id) => Some(id.clone()),
        None => engine.find(target).await.ok().flatten().filter(|found| found.ours).map(|found| found.id),
    };
    if let Some(id) = id {
        let marks = Marks { id: Some(id), ..marks.clone() };
        // What cannot be killed now is tried again, and told, when the container is removed.
        let _ = tokio::task::spawn_blocking(move || kill(&marks)).await;
    }
}
