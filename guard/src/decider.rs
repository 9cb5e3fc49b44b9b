//! When an application is checkpointed and when it is rolled back: a state machine without IO and without a clock.
//!
//! ```text
//!                 all members run
//!        ┌────────────────────────────────┐
//!        │                                ▼      tick                        ended, well or not
//!   (start)                            Running ───────▶ Checkpointing ─────────────────────────▶ Running
//!        │                                │                  │ a member is gone: it is cancelled
//!        │ some do not                    │ a member is gone │ when it has ended
//!        │                                ▼                  ▼
//!        └──────────────────────────▶ Down: back-off ◀───────┘
//!                                         │   ▲
//!                                    over │   │ it failed: the same again, the one before, or from the newest on again
//!                                         ▼   │
//!                                     RollingBack ──────▶ Running, on probation
//!                                         │
//!                                         ▼ no checkpoint can ever be restored, or it was tried too often
//!                                     GivenUp
//! ```
//!
//! **Which checkpoint** is said by a bound: the newest one with an epoch below it. There is none at first. A rollback that fails goes on
//! with the checkpoint before, in one of two ways:
//!
//! - *for good*: the checkpoint is damaged or not signed, or the application died on probation after it. It is not tried again until a
//!   checkpoint becomes permanent, which lifts the bound.
//! - *for now*: this machine or the store refuses the checkpoint, or its members did not come up. When no older one is left, the next round
//!   begins with it again.
//!
//! **How often**: each attempt waits twice as long as the one before. There are at most
//! [`RollbackPolicy::attempts`] until a checkpoint becomes permanent after a probation that the
//! application survived. A checkpoint that is passed over before anything was ended is no attempt,
//! and the next one is tried at once. The driver ([`crate::run`]) does what is asked, and says what
//! came of it.

use std::time::{Duration, Instant};

use image_format::Epoch;

/// How far a guard goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RollbackPolicy {
    /// Attempts in a row to roll back before the guard gives up.
    pub attempts: u32,
    /// The wait before the second one; doubled for each further one.
    pub back_off: Duration,
    /// The longest wait between two.
    pub longest_back_off: Duration,
    /// How long an application must run after a rollback for its checkpoint to have been a good one.
    pub probation: Duration,
}

impl Default for RollbackPolicy {
    /// Eight rollbacks in a row, from one second to a minute apart, and ten seconds of probation.
    fn default() -> Self {
        Self {
            attempts: 8,
            back_off: Duration::from_secs(1),
            longest_back_off: Duration::from_secs(60),
            probation: Duration::from_secs(10),
        }
    }
}

/// What the driver is to do. Each is asked for once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Take a checkpoint, and say how it ended.
    Checkpoint,
    /// Cancel the one that is under way; it is said nevertheless how it ended.
    Cancel,
    /// Restore the newest checkpoint that is older than the bound; once it is known to be good, end what is left of the application first.
    RollBack {
        /// Only epochs below this one, if there is a bound.
        below: Option<Epoch>,
    },
    /// Nothing more can be done.
    GiveUp(Surrender),
}

/// Why a guard gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Surrender {
    /// There is no checkpoint that was not tried.
    NothingLeft,
    /// The application was rolled back too often without getting anywhere.
    TooOften {
        /// How often.
        attempts: u32,
    },
}

/// How a rollback failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// This checkpoint can never be restored: it is damaged, or not signed. Nothing was ended.
    Unfit(Epoch),
    /// This machine, or the store, refuses this checkpoint, and perhaps not others. Nothing was ended.
    Refused(Epoch),
    /// What was left of the application was ended, and the members of this checkpoint did not come up.
    Broken(Epoch),
    /// It says nothing about a checkpoint: the store does not answer, an engine does not. The epoch says which one was tried.
    Surroundings(Option<Epoch>),
    /// No checkpoint is older than the bound.
    NothingLeft,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Checkpointing { lost: bool },
    Down { until: Instant },
    RollingBack,
    GivenUp,
}

/// The state machine of one application.
#[derive(Debug)]
pub(super) struct Decider {
    limits: RollbackPolicy,
    interval: Duration,
    state: State,
    next_tick: Instant,
    /// Nothing from this epoch on is tried, for good.
    below: Option<Epoch>,
    /// The same for now.
    passed: Option<Epoch>,
    /// What was tried last when the surroundings failed.
    doubted: Option<Epoch>,
    /// Attempts to roll back since the last good sign.
    attempts: u32,
    /// What was restored last, and until when it is on probation.
    restored: Option<(Epoch, Instant)>,
    /// Ticks that came while a checkpoint was under way.
    skipped: u64,
    asked: Option<Action>,
}

impl Decider {
    /// A decider for an application whose members all run.
    pub fn new(limits: RollbackPolicy, interval: Duration, now: Instant) -> Self {
        Self {
            limits,
            interval,
            state: State::Running,
            next_tick: now + interval,
            below: None,
            passed: None,
            doubted: None,
            attempts: 0,
            restored: None,
            skipped: 0,
            asked: None,
        }
    }

    /// Ticks that were skipped because the checkpoint before was still under way.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// From the next tick on, checkpoints are this far apart.
    pub fn handle_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// A member is gone.
    pub fn handle_loss(&mut self, now: Instant) {
        match self.state {
            State::Running => self.fall(now),
            State::Checkpointing { lost: false } => {
                self.state = State::Checkpointing { lost: true };
                self.asked = Some(Action::Cancel);
            }
            State::Checkpointing { lost: true } | State::Down { .. } | State::RollingBack | State::GivenUp => {}
        }
    }

    /// The checkpoint has ended; it is permanent, or there is none.
    pub fn handle_checkpoint(&mut self, permanent: bool, now: Instant) {
        let State::Checkpointing { lost } = self.state else { return };
        if permanent {
            self.below = None;
            // An application that dies at once after each checkpoint of its own gets nowhere: only survival counts.
            if self.restored.is_none_or(|(_, until)| now >= until) {
                self.attempts = 0;
            }
        }
        if lost { self.fall(now) } else { self.state = State::Running }
    }

    /// The rollback has ended: the application runs from this checkpoint, or it does not run.
    pub fn handle_rollback(&mut self, outcome: Result<Epoch, Failure>, now: Instant) {
        if self.state != State::RollingBack {
            return;
        }
        match outcome {
            Ok(epoch) => {
                self.restored = Some((epoch, now + self.limits.probation));
                (self.passed, self.doubted) = (None, None);
                self.state = State::Running;
                self.next_tick = now + self.interval;
            }
            Err(Failure::NothingLeft) if self.passed.is_none() => self.give_up(Surrender::NothingLeft),
            Err(Failure::NothingLeft) => {
                // One that was passed over for now may do yet.
                (self.passed, self.doubted) = (None, None);
                self.wait(now);
            }
            Err(Failure::Unfit(epoch)) if self.passed.is_none() => {
                self.below = Some(epoch);
                self.go_on(now);
            }
            Err(Failure::Unfit(epoch) | Failure::Refused(epoch)) => {
                self.passed = Some(epoch);
                self.go_on(now);
            }
            Err(Failure::Broken(epoch)) => {
                self.passed = Some(epoch);
                self.wait(now);
            }
            Err(Failure::Surroundings(tried)) => {
                // Once is an accident. Whose blobs a store never gives twice in a row is passed over.
                let again = tried.is_some() && tried == self.doubted;
                (self.passed, self.doubted) = if again { (tried, None) } else { (self.passed, tried) };
                self.wait(now);
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Running | State::Checkpointing { .. } => Some(self.next_tick),
            State::Down { until } => Some(until),
            State::RollingBack | State::GivenUp => None,
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::Running if now >= self.next_tick => {
                self.next_tick = now + self.interval;
                self.state = State::Checkpointing { lost: false };
                self.asked = Some(Action::Checkpoint);
            }
            State::Checkpointing { .. } if now >= self.next_tick => {
                self.next_tick = now + self.interval;
                self.skipped += 1;
            }
            State::Down { until } if now >= until => {
                self.attempts += 1;
                self.state = State::RollingBack;
                let below = self.below.into_iter().chain(self.passed).min();
                self.asked = Some(Action::RollBack { below });
            }
            State::Running | State::Checkpointing { .. } | State::Down { .. } | State::RollingBack | State::GivenUp => {
            }
        }
    }

    /// What is to be done next.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.asked.take()
    }

    /// The application no longer runs as a whole.
    fn fall(&mut self, now: Instant) {
        if let Some((epoch, until)) = self.restored.take() {
            if now < until {
                // What was restored does not live: it is the checkpoint's fault until shown otherwise.
                self.below = Some(self.below.map_or(epoch, |below| below.min(epoch)));
            } else {
                self.attempts = 0;
            }
        }
        self.wait(now);
    }

    /// The next one is tried at once: nothing was ended for this one.
    fn go_on(&mut self, now: Instant) {
        self.attempts = self.attempts.saturating_sub(1);
        self.state = State::Down { until: now };
    }

    fn wait(&mut self, now: Instant) {
        if self.attempts >= self.limits.attempts {
            return self.give_up(Surrender::TooOften { attempts: self.attempts });
        }
        let doubled = 1_u32.checked_shl(self.attempts.saturating_sub(1)).unwrap_or(u32::MAX);
        let wait = match self.attempts {
            0 => Duration::ZERO,
            _ => self.limits.back_off.saturating_mul(doubled).min(self.limits.longest_back_off),
        };
        self.state = State::Down { until: now + wait };
    }

    fn give_up(&mut self, surrender: Surrender) {
        self.state = State::GivenUp;
        self.asked = Some(Action::GiveUp(surrender));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limits() -> RollbackPolicy {
        RollbackPolicy { attempts: 3, back_off: SECOND, longest_back_off: 4 * SECOND, probation: 5 * SECOND }
    }

    fn running(now: Instant) -> Decider {
        Decider::new(limits(), 10 * SECOND, now)
    }

    /// Lets the time pass to which the decider wants to be woken.
    fn wake(decider: &mut Decider, now: &mut Instant) -> Option<Action> {
        *now = decider.poll_timeout()?.max(*now);
        decider.handle_timeout(*now);
        decider.poll_action()
    }

    #[test]
    fn a_checkpoint_every_interval_and_never_two_at_once() {
        let mut now = Instant::now();
        let mut decider = running(now);
        decider.handle_timeout(now + 9 * SECOND);
        assert_eq!(decider.poll_action(), None);
        assert_eq!(wake(&mut decider, &mut now), Some(Action::Checkpoint));
        assert_eq!(wake(&mut decider, &mut now), None);
        assert_eq!(wake(&mut decider, &mut now), None);
        assert_eq!(decider.skipped(), 2);
        decider.handle_checkpoint(true, now);
        assert_eq!(wake(&mut decider, &mut now), Some(Action::Checkpoint));
        decider.handle_checkpoint(false, now);
        decider.handle_interval(SECOND);
        assert_eq!(wake(&mut decider, &mut now), Some(Action::Checkpoint), "the next tick was set before");
        decider.handle_checkpoint(true, now);
        let before = now;
        assert_eq!(wake(&mut decider, &mut now), Some(Action::Checkpoint));
        assert_eq!(now - before, SECOND);
    }

    #[test]
    fn a_loss_rolls_back_at_once_and_in_a_checkpoint_after_it_has_ended() {
        let mut now = Instant::now();
        let mut decider = running(now);
        decider.handle_loss(now);
        decider.handle_loss(now);
        assert_eq!(wake(&mut decider, &mut now), Some(Action::RollBack { below: None }));
        decider.handle_loss(now);
        assert_eq!(decider.poll_action(), None, "what is being ended is missed by nobody");
        decider.handle_rollback(Ok(Epoch(4)), now);
        assert_eq!(wake(&mut decider, &mut now), Some(Action::Checkpoint));
        decider.handle_loss(now);
        assert_eq!(decider.poll_action(), Some(Action::Cancel));
        decider.handle_checkpoint(true, now);
        assert_eq!(wake(&mut decider, &mut now), Some(Action::RollBack { below: None }));
    }

    #[test]
    fn what_cannot_be_restored_or_does_not_live_is_gone_behind() {
        let mut now = Instant::now();
        let mut decider = running(now);
        decider.handle_loss(now);
        wake(&mut decider, &mut now);
        decider.handle_rollback(Err(Failure::Unfit(Epoch(7))), now);
        assert_eq!(wake(&mut decider, &mut now), Some(Action::RollBack { below: Some(Epoch(7)) }));
        decider.handle_rollback(Ok(Epoch(6)), now);
        now += 4 * SECOND;
        decider.handle_loss(now);
        assert_eq!(wake(&mut decider, &mut now), Some(Action::RollBack { below: Some(Epoch(6)) }));
        decider.handle_rollback(Ok(Epoch(5)), now);
        // It lives; what is made of it is new.
        assert_eq!(wake(&mut decider, &mut now), Some(Action::Checkpoint));
        decider.handle_checkpoint(true, now);
        decider.handle_loss(now);
        assert_eq!(wake(&mut decider, &mut now), Some(Action::RollBack { below: None }));
    }

    #[test]
    fn it_waits_longer_each_time_and_gives_up() {
        let mut now = Instant::now();
        let mut decider = running(now);
        decider.handle_loss(now);
        let mut waits = Vec::new();
        let surrender = loop {
            let before = now;
            match wake(&mut decider, &mut now).or_else(|| decider.poll_action()) {
                Some(Action::RollBack { below: None }) => {
                    waits.push((now - before).as_secs());
                    decider.handle_rollback(Err(Failure::Surroundings(None)), now);
                }
                Some(Action::GiveUp(surrender)) => break surrender,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((waits, surrender), (vec![0, 1, 2], Surrender::TooOften { attempts: 3 }));
        decider.handle_loss(now);
        decider.handle_timeout(now + 100 * SECOND);
        assert_eq!((decider.poll_action(), decider.poll_timeout()), (None, None));
        let mut decider = Decider::new(limits(), SECOND, now);
        decider.handle_loss(now);
        wake(&mut decider, &mut now);
        decider.handle_rollback(Err(Failure::NothingLeft), now);
        assert_eq!(decider.poll_action(), Some(Action::GiveUp(Surrender::NothingLeft)));
    }

    /// Rolls back as long as it is asked to, and gives every bound and the end.
    fn rounds(
        decider: &mut Decider,
        now: &mut Instant,
        mut fails: impl FnMut(u64) -> Failure,
    ) -> (Vec<u64>, Surrender) {
        let mut tried = Vec::new();
        loop {
            match wake(decider, now).or_else(|| decider.poll_action()) {
                Some(Action::RollBack { below }) => {
                    let newest = below.map_or(5, |below| below.0 - 1);
                    tried.push(newest);
                    decider.handle_rollback(Err(if newest == 0 { Failure::NothingLeft } else { fails(newest) }), *now);
                }
                Some(Action::GiveUp(surrender)) => return (tried, surrender),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_checkpoint_that_cannot_be_is_no_attempt() {
        let start = Instant::now();
        let mut now = start;
        let mut decider = running(now);
        decider.handle_loss(now);
        let (tried, surrender) = rounds(&mut decider, &mut now, |newest| Failure::Unfit(Epoch(newest)));
        assert_eq!((tried, surrender), (vec![5, 4, 3, 2, 1, 0], Surrender::NothingLeft), "more than three attempts");
        assert_eq!(now, start, "none of them is waited for");
    }

    #[test]
    fn what_is_refused_now_is_tried_again_when_nothing_older_does() {
        let mut now = Instant::now();
        let mut decider = running(now);
        decider.handle_loss(now);
        let refused = |newest| match newest {
            3 => Failure::Unfit(Epoch(3)),
            newest => Failure::Refused(Epoch(newest)),
        };
        let (tried, surrender) = rounds(&mut decider, &mut now, refused);
        let round = [5, 4, 3, 2, 1, 0];
        assert_eq!(tried, [round, round, round].concat());
        assert_eq!(surrender, Surrender::TooOften { attempts: 3 });
    }

    #[test]
    fn what_the_store_never_gives_is_passed_over_and_what_does_not_come_up_too() {
        let mut now = Instant::now();
        let mut decider = Decider::new(RollbackPolicy { attempts: 6, ..limits() }, SECOND, now);
        decider.handle_loss(now);
        let fails = |newest| match newest {
            5 => Failure::Surroundings(Some(Epoch(5))),
            4 => Failure::Refused(Epoch(4)),
            newest => Failure::Broken(Epoch(newest)),
        };
        let (tried, surrender) = rounds(&mut decider, &mut now, fails);
        assert_eq!(tried, [5, 5, 4, 3, 2, 1, 0], "each but 4 is an attempt");
        assert_eq!(surrender, Surrender::TooOften { attempts: 6 });
    }

    #[derive(Debug, Clone)]
    enum Event {
        Wake(u8),
        Loss,
        Checkpoint(bool),
        Restored(bool),
        NotRestored(Failure),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0..20_u8).prop_map(Event::Wake),
            Just(Event::Loss),
            any::<bool>().prop_map(Event::Checkpoint),
            any::<bool>().prop_map(Event::Restored),
            failure().prop_map(Event::NotRestored),
        ]
    }

    fn failure() -> impl Strategy<Value = Failure> {
        let epoch = || (1..9_u64).prop_map(Epoch);
        prop_oneof![
            epoch().prop_map(Failure::Unfit),
            epoch().prop_map(Failure::Refused),
            epoch().prop_map(Failure::Broken),
            proptest::option::of(epoch()).prop_map(Failure::Surroundings),
        ]
    }

    proptest! {
        /// Whatever happens, in whatever order: never a checkpoint beside another or beside a rollback, never more rollbacks in a
        /// row than allowed, and while nothing is under way there is always a time to wake up at, unless it gave up.
        #[test]
        fn one_thing_at_a_time(events in proptest::collection::vec(event(), 0..200)) {
            let mut now = Instant::now();
            let mut decider = running(now);
            let (mut busy, mut attempts) = (None, 0);
            for event in events {
                match event {
                    Event::Wake(seconds) => {
                        now += SECOND * u32::from(seconds);
                        decider.handle_timeout(now);
                    }
                    Event::Loss => decider.handle_loss(now),
                    Event::Checkpoint(permanent) if busy == Some(Action::Checkpoint) => {
                        busy = None;
                        decider.handle_checkpoint(permanent, now);
                    }
                    Event::Restored(well) if matches!(busy, Some(Action::RollBack { .. })) => {
                        busy = None;
                        decider.handle_rollback(if well { Ok(Epoch(3)) } else { Err(Failure::NothingLeft) }, now);
                    }
                    Event::NotRestored(failure) if matches!(busy, Some(Action::RollBack { .. })) => {
                        busy = None;
                        decider.handle_rollback(Err(failure), now);
                    }
                    Event::Checkpoint(_) | Event::Restored(_) | Event::NotRestored(_) => {}
                }
                match decider.poll_action() {
                    Some(action @ (Action::Checkpoint | Action::RollBack { .. })) => {
                        prop_assert_eq!(busy, None);
                        busy = Some(action);
                    }
                    Some(Action::Cancel) => prop_assert_eq!(busy, Some(Action::Checkpoint)),
                    Some(Action::GiveUp(_)) => {
                        prop_assert_eq!(busy, None);
                        prop_assert_eq!(decider.poll_timeout(), None);
                        return Ok(());
                    }
                    None => {}
                }
                if matches!(busy, Some(Action::RollBack { .. })) {
                    attempts = decider.attempts;
                }
                prop_assert!(attempts <= limits().attempts);
                prop_assert!(busy.is_some() || decider.poll_timeout().is_some());
            }
        }
    }
}
