//! Sessions of up to a thousand members in virtual time, each run made by a seed.
//!
//! Members take their time, messages are delayed, hooks and engines die, links break for a while or for good, hooks fire
//! twice, and the rendezvous may be killed. A failing run prints its seed; `SYNCPOINT_SEED=<seed>` runs it alone.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::time::Duration;

use coordinator::proto::{
    Action, Attendance, ConnectionId, Hook, Message, Moment, Outcome, Reply, Session, SessionKind, Verdict, Vote,
};
use coordinator::{Deadlines, SessionId, SessionPlan};
use image_format::{Epoch, MemberId};

const GATHER: Duration = Duration::from_secs(30);
const HOLD: Duration = Duration::from_secs(10);

/// As in the hook program: how much longer than the session a hook waits to hear of the end.
const GRACE: Duration = Duration::from_millis(500);

/// Runs that failed once, or that show something worth keeping.
const KEPT: [u64; 2] = [0, 0x5eed];

/// Random numbers that are the same everywhere (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True about once in this many times; never for zero.
    fn once_in(&mut self, times: u64) -> bool {
        times > 0 && self.below(times) == 0
    }

    fn micros(&mut self, most: u64) -> Duration {
        Duration::from_micros(self.below(most))
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Fire(usize),
    Arrive { member: usize, connection: u64 },
    Hangup { connection: u64 },
    Answer { member: usize, connection: u64, proceed: bool },
    GiveUp { member: usize, connection: u64 },
    Kill(usize),
    TellFailure(usize),
    Captured,
    Wake,
    Crash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Before(usize),
    Through,
    Told,
    Stopped,
}

struct Member {
    id: MemberId,
    life: Life,
    connection: Option<u64>,
    voted: usize,
    hold_until: Option<Duration>,
    /// Since when it is past the first barrier, when its last hook fired, and when it was let go or stopped. Between hooks
    /// it is CRIU that takes its time.
    held_since: Option<Duration>,
    last_fired: Duration,
    held_until: Option<Duration>,
}

/// How rough a run is: each happens about once in this many times.
struct Weather {
    kill: u64,
    lose: u64,
    slow: u64,
    no: u64,
    repeat: u64,
    crash: bool,
}

struct Simulation {
    random: Random,
    session: Session,
    members: Vec<Member>,
    weather: Weather,
    now: Duration,
    queue: BinaryHeap<Reverse<(Duration, u64, Happening)>>,
    sequence: u64,
    connections: u64,
    /// Whose connection it is, and at which hook it was made.
    owners: HashMap<u64, (usize, Hook)>,
    /// Connections whose message the session has.
    heard: HashSet<u64>,
    woken_for: Option<Moment>,
    released: bool,
    aborted: bool,
    finished: bool,
    crashed: bool,
    /// When the files of a dump were asked for, and whether they are taken.
    capture_asked: Option<Duration>,
    captured: bool,
    decided_at: Duration,
    answered: HashMap<u64, bool>,
}

impl Simulation {
    fn new(seed: u64, count: usize) -> Self {
        let mut random = Random(seed);
        let kind = if random.once_in(2) { SessionKind::Restore } else { SessionKind::Dump };
        let rough = random.below(4);
        let size = count as u64;
        let weather = Weather {
            kill: (size * 10).checked_div(rough).unwrap_or(0),
            lose: if rough < 2 { 0 } else { size * 20 },
            slow: if rough < 2 { 0 } else { size * 20 },
            no: if rough < 2 { 0 } else { size * 30 },
            repeat: 3,
            crash: rough == 3 && random.once_in(2),
        };
        let ids: Vec<MemberId> = (0..count).map(|n| format!("m{n}").parse().expect("an id")).collect();
        let plan = SessionPlan {
            kind,
            id: SessionId::from_bytes([9; 16]),
            epoch: Epoch(seed),
            application: "app".parse().expect("an id"),
            members: ids.clone(),
            deadlines: Deadlines { gather: GATHER, hold: HOLD },
            fence: None,
        };
        let members = ids.into_iter().map(|id| Member {
            id,
            life: Life::Before(0),
            connection: None,
            voted: 0,
            hold_until: None,
            held_since: None,
            last_fired: Duration::ZERO,
            held_until: None,
        });
        Self {
            random,
            session: Session::new(plan).expect("a plan"),
            members: members.collect(),
            weather,
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            sequence: 0,
            connections: 0,
            owners: HashMap::new(),
            heard: HashSet::new(),
            woken_for: None,
            released: false,
            aborted: false,
            finished: false,
            crashed: false,
            capture_asked: None,
            captured: false,
            decided_at: Duration::ZERO,
            answered: HashMap::new(),
        }
    }

    fn kind(&self) -> SessionKind {
        self.session.plan().kind
    }

    fn after(&mut self, wait: Duration, what: Happening) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + wait, self.sequence, what)));
    }

    /// Runs until nothing more happens.
    fn run(&mut self) {
        for member in 0..self.members.len() {
            let wait = self.random.micros(3_000_000);
            self.after(wait, Happening::Fire(member));
            if self.random.once_in(self.weather.kill) {
                let when = self.random.micros(9_000_000);
                self.after(when, Happening::Kill(member));
            }
        }
        if self.weather.crash {
            let when = self.random.micros(9_000_000);
            self.after(when, Happening::Crash);
        }
        self.act();
        while let Some(Reverse((at, _, what))) = self.queue.pop() {
            assert!(at >= self.now);
            self.now = at;
            self.happen(what);
            self.act();
        }
        self.check_end();
    }

    fn happen(&mut self, what: Happening) {
        let moment = Moment::after_start(self.now);
        match what {
            Happening::Fire(member) => self.fire(member),
            Happening::Arrive { member, connection } => {
                if self.crashed {
                    return;
                }
                self.heard.insert(connection);
                let (_, hook) = self.owners[&connection];
                let vote = if self.random.once_in(self.weather.no) {
                    Vote::No { reason: "it cannot".to_owned() }
                } else {
                    Vote::Yes
                };
                let barrier = self.kind().barriers().iter().position(|barrier| barrier.hook == hook);
                if let (Vote::Yes, Some(barrier)) = (&vote, barrier) {
                    self.members[member].voted = self.members[member].voted.max(barrier + 1);
                }
                let plan = self.session.plan();
                let message = Message {
                    session: plan.id,
                    epoch: plan.epoch,
                    member: self.members[member].id.clone(),
                    hook,
                    vote,
                };
                let taken = self.session.handle_message(moment, ConnectionId(connection), message);
                assert_eq!(taken, Ok(()), "an honest member is not refused");
            }
            Happening::Hangup { connection } => {
                if !self.crashed && self.heard.contains(&connection) && !self.answered.contains_key(&connection) {
                    self.session.handle_disconnect(moment, ConnectionId(connection));
                    self.act();
                    assert!(self.aborted, "5: a vanished member is an abort");
                }
            }
            Happening::Answer { member, connection, proceed } => {
                if self.members[member].connection == Some(connection) {
                    let reply = if proceed { Reply::Proceed } else { Reply::Abort { reason: String::new() } };
                    self.learn(member, Some(&reply));
                }
            }
            Happening::GiveUp { member, connection } => {
                if self.members[member].connection == Some(connection) {
                    self.learn(member, None);
                    self.hang_up(connection);
                }
            }
            Happening::Kill(member) => {
                if matches!(self.members[member].life, Life::Before(_)) {
                    self.stop(member);
                    match self.members[member].connection.take() {
                        Some(connection) => self.hang_up(connection),
                        // No hook held it then.
                        None => self.members[member].held_until = None,
                    }
                }
            }
            Happening::TellFailure(member) => {
                if !self.crashed {
                    let id = self.members[member].id.clone();
                    let told = self.session.handle_member_failed(moment, &id, "its engine failed".to_owned());
                    assert_eq!(told, Ok(()));
                }
            }
            Happening::Captured => {
                if !self.crashed {
                    self.captured = !self.aborted;
                    self.session.handle_captured(moment);
                    self.act();
                    assert!(self.released || self.aborted, "captured decides");
                }
            }
            Happening::Wake => {
                if !self.crashed {
                    self.session.handle_timeout(moment);
                }
            }
            Happening::Crash => {
                self.crashed = true;
                for member in 0..self.members.len() {
                    if self.members[member].connection.is_some() {
                        self.learn(member, None);
                    }
                }
            }
        }
    }

    fn hook(&self, member: usize) -> Hook {
        match self.members[member].life {
            Life::Before(barrier) => self.kind().barriers()[barrier].hook,
            Life::Through | Life::Told | Life::Stopped => Hook::PostResume,
        }
    }

    /// A member's next hook connects and sends.
    fn fire(&mut self, place: usize) {
        let barriers = self.kind().barriers();
        match self.members[place].life {
            Life::Stopped | Life::Told => return,
            Life::Through if !self.kind().reports() => return,
            Life::Through => {}
            Life::Before(barrier) => {
                if barriers[barrier].attendance == Attendance::MaySkip && self.random.once_in(4) {
                    self.members[place].life = Life::Before(barrier + 1);
                }
            }
        }
        if self.crashed {
            return self.learn(place, None);
        }
        let connection = self.connections;
        self.connections += 1;
        self.owners.insert(connection, (place, self.hook(place)));
        self.members[place].connection = Some(connection);
        self.members[place].last_fired = self.now;
        let limit = match (self.members[place].life, self.members[place].hold_until) {
            (Life::Before(0), _) => GATHER + GRACE,
            (Life::Before(_), Some(until)) => (until + GRACE).saturating_sub(self.now).min(HOLD + GRACE),
            (Life::Before(_) | Life::Through | Life::Told | Life::Stopped, _) => HOLD + GRACE,
        };
        self.after(limit, Happening::GiveUp { member: place, connection });
        if self.random.once_in(self.weather.lose) {
            // Nobody ever hears of it; the hook sees that the link is gone.
            let wait = self.random.micros(20_000);
            return self.after(wait, Happening::GiveUp { member: place, connection });
        }
        let wait = self.delay();
        self.after(wait, Happening::Arrive { member: place, connection });
    }

    /// Mostly under a fifth of a millisecond; where a link is slow, up to twenty seconds.
    fn delay(&mut self) -> Duration {
        let most = if self.random.once_in(self.weather.slow) { 20_000_000 } else { 200 };
        self.random.micros(most)
    }

    fn hang_up(&mut self, connection: u64) {
        // Behind whatever was sent before on the same connection.
        let wait = Duration::from_secs(20) + self.delay();
        if !self.answered.contains_key(&connection) {
            self.after(wait, Happening::Hangup { connection });
        }
    }

    /// The hook knows what was decided, or that it will never know: the shipped rule says what it does.
    fn learn(&mut self, place: usize, reply: Option<&Reply>) {
        let hook = self.hook(place);
        self.members[place].connection = None;
        let barriers = self.kind().barriers();
        let barrier = match self.members[place].life {
            Life::Before(barrier) => barrier,
            Life::Through => {
                self.members[place].life = Life::Told;
                return;
            }
            Life::Told | Life::Stopped => return,
        };
        match self.kind().verdict(hook, reply) {
            Verdict::Continue => {
                if self.random.once_in(self.weather.repeat) {
                    let wait = self.random.micros(3_000);
                    return self.after(wait, Happening::Fire(place));
                }
                if barrier == 0 {
                    self.members[place].hold_until = Some(self.now + HOLD);
                    self.members[place].held_since = Some(self.now);
                }
                if barrier + 1 == barriers.len() {
                    self.members[place].held_until = Some(self.now);
                    self.members[place].life = Life::Through;
                    assert!(self.released && !self.aborted, "2, 3: through without a release");
                } else {
                    self.members[place].life = Life::Before(barrier + 1);
                }
                let wait = self.random.micros(2_000_000);
                self.after(wait, Happening::Fire(place));
            }
            Verdict::Refuse => {
                assert_ne!(hook, Hook::PreResume, "3: CRIU only logs what a script returns there");
                self.stop(place);
            }
            Verdict::KillAndRefuse => self.stop(place),
        }
    }

    fn stop(&mut self, place: usize) {
        self.members[place].life = Life::Stopped;
        self.members[place].held_until = Some(self.now);
        if self.random.once_in(2) {
            let wait = self.random.micros(500_000);
            self.after(wait, Happening::TellFailure(place));
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Tell(_) => {}
                Action::Capture => {
                    assert!(self.capture_asked.is_none() && self.kind() == SessionKind::Dump, "6: asked once");
                    let last = self.kind().barriers().len();
                    assert!(self.members.iter().all(|member| member.voted == last), "6: asked before all were there");
                    self.capture_asked = Some(self.now);
                    // Now and then a copy takes longer than tasks may be held, and sometimes it never ends.
                    let most = if self.random.once_in(8) { 12_000_000 } else { 500_000 };
                    if !self.random.once_in(20) {
                        let wait = self.random.micros(most);
                        self.after(wait, Happening::Captured);
                    }
                }
                Action::Decide(outcome) => {
                    assert!(!self.released && !self.aborted, "decided twice");
                    self.decided_at = self.now;
                    match outcome {
                        Outcome::Released { timings } => {
                            let all = self.members.iter().all(|member| member.voted == self.kind().barriers().len());
                            assert!(all, "1, 5: released without the yes of everybody");
                            assert_eq!(self.captured, self.kind().captures(), "6: released without the files");
                            let begun = timings.capture.map(|capture| capture.begin);
                            assert_eq!(begun, self.capture_asked, "6: the capture's time");
                            self.released = true;
                        }
                        Outcome::Aborted { .. } => self.aborted = true,
                    }
                }
                Action::Finish(finished) => {
                    assert!(!self.finished && (finished.running.is_empty() || self.released));
                    assert_eq!(finished.running.len() + finished.missing.len(), self.members.len());
                    self.finished = true;
                }
                Action::Reply { to, reply } => self.answer(to.0, &reply),
            }
        }
        if let Some(timeout) = self.session.poll_timeout()
            && self.woken_for != Some(timeout)
        {
            self.woken_for = Some(timeout);
            self.after(timeout.since_start().saturating_sub(self.now), Happening::Wake);
        }
    }

    fn answer(&mut self, connection: u64, reply: &Reply) {
        let proceed = *reply == Reply::Proceed;
        assert_eq!(self.answered.insert(connection, proceed), None, "one answer each");
        assert!(!(proceed && self.aborted), "2: let through after an abort");
        assert!(proceed || !self.released, "told to abort after the release");
        let (member, _) = self.owners[&connection];
        let wait = self.delay();
        if !self.crashed {
            self.after(wait, Happening::Answer { member, connection, proceed });
        }
    }

    fn check_end(&self) {
        let runs = |member: &Member| matches!(member.life, Life::Through | Life::Told);
        if !self.crashed {
            assert!(self.finished, "4: never finished");
            assert!(self.released != self.aborted, "4: never decided");
            assert!(self.decided_at <= GATHER + HOLD, "4: decided after {:?}", self.decided_at);
        }
        assert!(self.released || !self.members.iter().any(runs), "2: something runs that was not released");
        for member in &self.members {
            assert_eq!(member.connection, None, "4: {} still waits", member.id);
            if let (Some(since), Some(until)) = (member.held_since, member.held_until) {
                let latest = (since + HOLD + Duration::from_secs(1)).max(member.last_fired);
                assert!(until <= latest, "4: {} held for {:?}", member.id, until - since);
            }
        }
    }
}

/// Runs one seed; the name of a failing one is printed.
fn run(seed: u64, count: usize) -> (bool, bool) {
    struct Named(u64, usize);
    impl Drop for Named {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("failed with SYNCPOINT_SEED={} and {} members", self.0, self.1);
            }
        }
    }
    let _named = Named(seed, count);
    let mut simulation = Simulation::new(seed, count);
    simulation.run();
    (simulation.released, simulation.aborted)
}

/// The number of members belongs to the seed, so that the seed alone names a run.
fn members_of(seed: u64) -> usize {
    match seed % 100 {
        0 => 1_000,
        1..10 => 100 + (seed % 7) as usize * 30,
        _ => 1 + (seed % 13) as usize,
    }
}

#[test]
fn seeded_sessions_keep_the_invariants() {
    if let Ok(seed) = std::env::var("SYNCPOINT_SEED") {
        let seed = seed.parse().expect("a number");
        run(seed, members_of(seed));
        return;
    }
    let (mut released, mut aborted) = (0, 0);
    for seed in KEPT.into_iter().chain(1..6_000) {
        let (was_released, was_aborted) = run(seed, members_of(seed));
        released += usize::from(was_released);
        aborted += usize::from(was_aborted);
    }
    println!("{released} released, {aborted} aborted");
    assert!(released > 1_000 && aborted > 1_000, "{released} released, {aborted} aborted");
}
