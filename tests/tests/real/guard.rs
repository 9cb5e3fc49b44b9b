//! A guarded application to which bad things happen: it goes on from its newest checkpoint, whole, and never twice at once.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use syncpoint_tests::{
    Ledger, MEMBERS, Process, Registry, Task, command, run, run_failing, send, wait_until, write_script,
};
use tempfile::TempDir;

use crate::setup::Keys;

pub const INTERVAL: Duration = Duration::from_secs(3);

/// A plan, its guard, and what that wrote.
pub struct Guarded {
    dir: TempDir,
    metrics: u16,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Guarded {
    pub fn new(to: &str, keys: &Keys, metrics: u16, more: &str) -> Self {
        let guarded = Self { dir: TempDir::new().unwrap(), metrics, arguments: Vec::new(), process: None };
        guarded.write_plan(to, keys, more);
        guarded
    }

    /// Writes the plan anew, for when it is started again.
    fn write_plan(&self, to: &str, keys: &Keys, more: &str) {
        let mut plan = format!(
            "application = \"ledger\"\nto = \"{to}\"\nkey = \"{}\"\ninterval = \"{}s\"\n{more}\n",
            keys.private(),
            INTERVAL.as_secs()
        );
        for member in MEMBERS {
            let on = syncpoint_tests::depends_on(member).split(',').filter(|on| !on.is_empty());
            let on: Vec<_> = on.map(|on| format!("\"{on}\"")).collect();
            let _ = write!(plan, "[members.{member}]\ndepends-on = [{}]\n", on.join(", "));
        }
        fs::write(self.dir.path().join("plan.toml"), plan).unwrap();
    }

    /// Further arguments of the command, for when it is started.
    pub fn more_arguments(&mut self, arguments: &[&str]) {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
    }

    fn command(&self, registry: &Registry, metrics: u16) -> std::process::Command {
        let plan = self.dir.path().join("plan.toml");
        let state = self.dir.path().join("state");
        let metrics = format!("127.0.0.1:{metrics}");
        let arguments = ["guard", "--log-format", "json", "--retries", "1", "--metrics", &metrics, "--plan"];
        let mut command = registry.syncpoint(arguments);
        command.arg(plan).arg("--state-dir").arg(state).args(&self.arguments);
        command
    }

    pub fn start(&mut self, registry: &Registry) {
        let log = File::options().append(true).create(true).open(self.log()).unwrap();
        self.process = Some(self.command(registry, self.metrics).stderr(log).stdout(Stdio::null()).spawn().unwrap());
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// What it wrote so far, a value a line; a line that is being written is left out.
    pub fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    pub fn count(&self, event: &str) -> usize {
        self.events().iter().filter(|found| found["event"] == event).count()
    }

    pub fn words(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    pub fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// SIGTERM; gives the exit code.
    pub fn stop(&mut self) -> i32 {
        let mut process = self.process.take().unwrap();
        send(process.id().cast_signed(), Signal::SIGTERM);
        process.wait().unwrap().code().unwrap_or(-1)
    }

    /// Waits until it ends by itself; gives the exit code, and what it wrote since it was started.
    fn wait_for_the_end(&mut self, started: usize) -> (i32, String) {
        let mut process = self.process.take().unwrap();
        let mut status = None;
        wait_until("the guard ends", || {
            status = process.try_wait().unwrap();
            status.is_some()
        });
        (status.and_then(|status| status.code()).unwrap_or(-1), self.words()[started..].to_owned())
    }

    fn get(&self, path: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.metrics)) else { return String::new() };
        let asked = stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        let mut answer = String::new();
        let _ = asked.and_then(|()| stream.read_to_string(&mut answer).map(drop));
        answer
    }

    /// What a metric says, all of its labels together; none if there is no such metric.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (text, name) = (self.get("/metrics"), format!("syncpoint_{name}{{"));
        let values = text.lines().filter(|line| line.starts_with(&name)).filter_map(|line| line.rsplit(' ').next());
        values.map(|value| value.trim().parse::<f64>().unwrap()).reduce(|sum, value| sum + value)
    }

    pub fn wait_for(&self, event: &str, more_than: usize) {
        wait_until(&format!("{event} after {more_than}"), || self.count(event) > more_than);
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.words());
        }
    }
}

/// Looks, all the time, that no member runs twice.
struct Single {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Option<String>>,
}

impl Single {
    fn watch() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut found = None;
            while !stopped.load(Ordering::Relaxed) {
                let all = Process::all();
                for member in MEMBERS {
                    let ledger = format!("/bin/ledger {member} ");
                    let twins = all.iter().filter(|process| process.command.starts_with(&ledger));
                    // The list took its time. Only who is still there when it is finished was there with everybody else in it.
                    let twins: Vec<_> = twins.filter(|process| process.is_still_there()).collect();
                    // A child that has not gone its own way yet looks like its parent.
                    let twins = twins.iter().filter(|one| !twins.iter().any(|other| other.pid == one.parent)).count();
                    if twins > 1 {
                        found.get_or_insert(format!("{member} ran {twins} times at once"));
                    }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            found
        });
        Self { stop, thread }
    }

    fn assert(self) {
        self.stop.store(true, Ordering::Relaxed);
        assert_eq!(self.thread.join().unwrap(), None);
    }
}

/// A small generator: the same seed, the same strikes.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// How long the application is struck: `SYNCPOINT_GUARD_MINUTES`, or three quarters of a minute.
fn duration() -> Duration {
    let minutes = std::env::var("SYNCPOINT_GUARD_MINUTES").ok();
    minutes.map_or(Duration::from_secs(45), |minutes| Duration::from_secs(60 * minutes.parse::<u64>().unwrap()))
}

#[test]
fn whatever_dies_under_a_guard_the_application_goes_on() {
    let registry = Registry::start(5060);
    let keys = Keys::generate();
    let ledger = Ledger::start(&["--interval-ms", "20"]);
    let to = registry.repository("sdp/guarded");
    let mut guarded = Guarded::new(&to, &keys, 5061, "[guard]\nattempts = 50\nprobation = \"1s\"\n");
    guarded.start(&registry);
    guarded.wait_for("checkpoint", 0);
    let single = Single::watch();
    let begun = Instant::now();
    let seed = std::env::var("SYNCPOINT_SEED").map_or(0x5eed, |seed| seed.parse().unwrap());
    let mut dice = Dice(seed);
    let mut strikes = [0_u32; 4];
    let before = ledger.said().into_iter().max().unwrap();
    while begun.elapsed() < duration() {
        std::thread::sleep(Duration::from_millis(2000 + dice.roll(4000)));
        match dice.roll(4) {
            0 => {
                let member = MEMBERS[dice.roll(3) as usize];
                let ledger = format!("/bin/ledger {member} ");
                if let Some(process) = Process::all().into_iter().find(|one| one.command.starts_with(&ledger)) {
                    process.signal(Signal::SIGKILL);
                    strikes[0] += 1;
                }
            }
            1 => {
                let until = Instant::now() + INTERVAL;
                let criu = || Process::all().into_iter().find(|process| process.command.contains("criu swrk"));
                while Instant::now() < until {
                    if let Some(criu) = criu() {
                        criu.signal(Signal::SIGKILL);
                        strikes[1] += 1;
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            2 => {
                registry.kill();
                std::thread::sleep(Duration::from_millis(dice.roll(3000)));
                registry.restart();
                strikes[2] += 1;
            }
            _ => {
                guarded.kill();
                std::thread::sleep(Duration::from_millis(dice.roll(1500)));
                guarded.start(&registry);
                strikes[3] += 1;
            }
        }
        assert!(guarded.process.as_mut().unwrap().try_wait().unwrap().is_none(), "the guard runs on");
    }
    // In peace it comes to a checkpoint again, and the application runs as a whole.
    let permanent = guarded.count("checkpoint");
    guarded.wait_for("checkpoint", permanent);
    assert_eq!(Ledger::running(), ["auditor", "consumer", "producer"]);
    let after = ledger.counters_past(ledger.said().into_iter().max().unwrap());
    single.assert();
    let now = *after.iter().min().unwrap();
    assert!(now > before, "it made progress: {before} before, {after:?} now");
    assert!(guarded.get("/health").starts_with("HTTP/1.1 200"), "{}", guarded.get("/health"));
    assert_eq!(guarded.stop(), 0);
    ledger.counters_past(now);

    let mut undone = Vec::new();
    let (mut longest, mut clean) = (0, false);
    for event in guarded.events() {
        match event["event"].as_str().unwrap() {
            "checkpoint" => {
                longest = longest.max(event["took_ms"].as_u64().unwrap());
                clean = true;
            }
            // Whatever keeps a checkpoint from being taken costs more than the interval.
            "checkpoint-failed" | "started" | "rollback-failed" | "skipped" => clean = false,
            "rolled-back" => {
                if let Some(time) = event["undone_ms"].as_u64() {
                    undone.push(time);
                    // A machine that is busy may begin a checkpoint one interval late, and not more.
                    let limit = u64::try_from(2 * INTERVAL.as_millis()).unwrap() + longest;
                    assert!(!clean || time <= limit, "{time} ms were undone, {limit} at most");
                }
                clean = false;
            }
            _ => {}
        }
    }
    println!(
        "seed {seed}: {:.0} s, struck members {}, CRIU {}, registry {}, guard {}; {} checkpoints, {} failed, {} rollbacks; \
         undone in all {:.1} s, at most {:.1} s; messages {before} to {now}",
        begun.elapsed().as_secs_f64(),
        strikes[0],
        strikes[1],
        strikes[2],
        strikes[3],
        guarded.count("checkpoint"),
        guarded.count("checkpoint-failed"),
        guarded.count("rolled-back"),
        undone.iter().sum::<u64>() as f64 / 1e3,
        undone.iter().max().copied().unwrap_or(0) as f64 / 1e3,
    );
    ledger.wipe();
}

#[test]
fn a_store_that_fails_does_not_stop_the_application_and_is_caught_up_with() {
    let registry = Registry::start(5062);
    let keys = Keys::generate();
    let ledger = Ledger::start(&[]);
    let to = registry.repository("sdp/guarded");
    let mut guarded = Guarded::new(&to, &keys, 5063, "");
    // An application that is not there is not brought into being by a guard that knows nothing of it.
    ledger.wipe();
    let (code, words) = run_failing(&mut guarded.command(&registry, 0));
    assert_eq!(code, 7, "{words}");
    assert!(words.contains("consumer, producer, auditor do not run"), "{words}");
    let ledger = Ledger::start(&[]);
    guarded.start(&registry);
    guarded.wait_for("checkpoint", 0);
    // One guard at a time.
    let (code, words) = run_failing(&mut guarded.command(&registry, 0));
    assert_eq!((code, words.contains("another guard of ledger")), (7, true), "{words}");

    registry.kill();
    guarded.wait_for("checkpoint-failed", 1);
    assert!(guarded.metric("checkpoint_failures_total").unwrap() >= 1.0);
    assert_eq!(guarded.metric("running"), Some(1.0));
    let said = ledger.said().into_iter().max().unwrap();
    ledger.counters_past(said);
    let permanent = guarded.count("checkpoint");
    registry.restart();
    guarded.wait_for("checkpoint", permanent);
    // What could not be sent is not kept: it would fill the disk while the store is away.
    let tags = registry.tags("sdp/guarded").iter().filter(|tag| tag.starts_with("epoch-")).count();
    assert_eq!(tags, guarded.count("checkpoint"));

    // While nobody looked, a member died, and the one that comes back rolls the application back.
    guarded.kill();
    Task::of("producer").signal(Signal::SIGKILL);
    guarded.start(&registry);
    guarded.wait_for("rolled-back", 0);
    let said = ledger.said().into_iter().max().unwrap();
    ledger.counters_past(said);
    assert!(guarded.metric("rollbacks_total").is_some_and(|rollbacks| rollbacks >= 1.0));
    guarded.wait_for("checkpoint", guarded.count("checkpoint"));

    // The newest one is damaged in the store: the one before does.
    let newest = guarded.events().iter().rev().find(|event| event["event"] == "checkpoint").unwrap().clone();
    guarded.kill();
    for member in crate::setup::members_of(&registry, &format!("{to}@{}", newest["digest"].as_str().unwrap())) {
        let hex = member.1.strip_prefix("sha256:").unwrap().to_owned();
        let blob = registry.data().join(format!("data/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
        assert!(blob.exists(), "{}", blob.display());
        fs::remove_file(blob).unwrap();
    }
    Task::of("consumer").signal(Signal::SIGKILL);
    guarded.start(&registry);
    guarded.wait_for("rolled-back", 1);
    let back = guarded.events().iter().rev().find(|event| event["event"] == "rolled-back").unwrap()["epoch"].as_u64();
    assert!(back < newest["epoch"].as_u64(), "{back:?}\n{}", guarded.words());
    let said = ledger.said().into_iter().max().unwrap();
    ledger.counters_past(said);
    assert_eq!(guarded.stop(), 0);
    ledger.wipe();
    run(&mut registry.syncpoint(["list", &to]));
}

/// A container that is no member, and never runs.
fn stay_with(name: &str, options: &[&str]) {
    let image = run(&mut command("podman", ["inspect", "--format", "{{.ImageName}}", "consumer"]));
    run(command("podman", ["create", "--name", name]).args(options).args([image.trim(), "/bin/ledger"]));
}

#[test]
fn what_still_runs_is_left_alone_until_a_checkpoint_is_known_to_be_good() {
    let registry = Registry::start(5070);
    let keys = Keys::generate();
    let ledger = Ledger::start(&[]);
    let to = registry.repository("sdp/guarded");
    let limits = "[guard]\nattempts = 2\n";
    let mut guarded = Guarded::new(&to, &keys, 5071, limits);
    guarded.start(&registry);
    guarded.wait_for("checkpoint", 0);
    guarded.kill();
    let survivors = [Task::of("consumer"), Task::of("producer")];
    let untouched = || {
        assert!(survivors.iter().all(Task::is_alive));
        let before = survivors[0].counter().expect("the consumer's volume is there");
        wait_until("the consumer goes on", || survivors[0].counter().is_some_and(|now| now > before));
    };
    Task::of("auditor").signal(Signal::SIGKILL);

    // A key by which nothing is signed.
    let rotated = Keys::generate();
    guarded.write_plan(&to, &rotated, limits);
    let started = guarded.words().len();
    guarded.start(&registry);
    let (code, words) = guarded.wait_for_the_end(started);
    assert_eq!((code, words.contains("consumer, producer still run, and are left as they are")), (8, true), "{words}");
    untouched();
    guarded.write_plan(&to, &keys, limits);

    // Others have a volume that would have to go, and a network: these stay, and so does everything.
    stay_with("squatter", &["--volume", "ledger-data:/data"]);
    stay_with("sidecar", &["--network", "container:consumer"]);
    let started = guarded.words().len();
    guarded.start(&registry);
    let (code, words) = guarded.wait_for_the_end(started);
    assert_eq!((code, words.contains("volume ledger-data is held by container squatter")), (8, true), "{words}");
    assert!(words.contains("container consumer cannot make room: container sidecar"), "{words}");
    untouched();
    run(&mut command("podman", ["rm", "squatter", "sidecar"]));

    // A member that somebody removed, and left its volume: that goes too.
    for member in ["auditor", "consumer"] {
        run(&mut command("podman", ["rm", "--force", "--time", "0", member]));
    }
    guarded.start(&registry);
    guarded.wait_for("rolled-back", 0);
    assert!(!survivors.iter().any(Task::is_alive));
    ledger.counters_past(ledger.said().into_iter().max().unwrap());
    assert_eq!(guarded.stop(), 0);
    ledger.wipe();
}

#[test]
fn a_restore_that_its_engine_lost_half_way_is_taken_away() {
    let registry = Registry::start(5072);
    let keys = Keys::generate();
    let ledger = Ledger::start(&[]);
    let to = registry.repository("sdp/guarded");
    let mut guarded = Guarded::new(&to, &keys, 5073, "");
    guarded.start(&registry);
    guarded.wait_for("checkpoint", 0);
    // podman asks CRIU for its version before it gives a container a configuration; a container of which nothing more came is left.
    let broken = tempfile::NamedTempFile::new().unwrap();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = swrk ] && [ -e {} ] && exit 1\nexec /usr/sbin/criu \"$@\"\n",
        broken.path().display()
    );
    let criu = Path::new("/usr/local/sbin/criu");
    write_script(criu, &script);
    Task::of("auditor").signal(Signal::SIGKILL);
    guarded.wait_for("rollback-failed", 0);
    assert!(guarded.words().contains("criu swrk failed"), "{}", guarded.words());
    broken.close().unwrap();
    guarded.wait_for("rolled-back", 0);
    ledger.counters_past(ledger.said().into_iter().max().unwrap());
    assert!(!guarded.words().contains("still there"), "{}", guarded.words());
    assert_eq!(guarded.stop(), 0);
    ledger.wipe();
    fs::remove_file(criu).unwrap();
}

#[test]
fn sigterm_preempts_where_the_plan_says_so() {
    let registry = Registry::start(5064);
    let keys = Keys::generate();
    let ledger = Ledger::start(&[]);
    let to = registry.repository("sdp/preempted");
    let mut guarded = Guarded::new(&to, &keys, 5065, "on-terminate = \"preempt\"");
    guarded.start(&registry);
    guarded.wait_for("checkpoint", 0);
    // Before it: whoever is ended later has noticed that the others are gone, and says so last.
    let at = ledger.said().into_iter().max().unwrap();
    assert_eq!(guarded.stop(), 0, "{}", guarded.words());
    assert_eq!(Ledger::running(), [""; 0]);
    ledger.wipe();
    let last = guarded.events().iter().rev().find(|event| event["event"] == "ended").unwrap()["message"].to_string();
    let epoch = last.split("epoch ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
    run(&mut registry.syncpoint(["restore", &format!("{to}:epoch-{epoch}"), "--key", &keys.public()]));
    ledger.counters_past(at);
}

#[test]
fn a_preempted_application_makes_room_only_when_there_is_time_and_a_checkpoint() {
    let registry = Registry::start(5066);
    let keys = Keys::generate();
    let ledger = Ledger::start(&[]);
    let to = registry.repository("sdp/moved");
    let preempt = |more: &[&str]| {
        let given = ["preempt", "ledger", "--to", &to, "--sign-by", &keys.private()];
        registry.syncpoint([&given[..], more].concat())
    };
    // A guard would bring back what is preempted under its eyes.
    let mut guarded = Guarded::new(&to, &keys, 5067, "");
    guarded.start(&registry);
    guarded.wait_for("checkpoint", 0);
    let (code, words) = run_failing(&mut preempt(&[]));
    assert_eq!((code, words.contains("a guard of ledger runs")), (7, true), "{words}");
    assert_eq!(guarded.stop(), 0);
    // By what it took before there is no time, and nothing is touched.
    let (code, words) = run_failing(&mut preempt(&["--within", "50ms"]));
    assert_eq!((code, words.contains("by the newest ones of its line")), (7, true), "{words}");
    assert_eq!(Ledger::running(), ["auditor", "consumer", "producer"]);
    // Without a store there is no room to be had.
    registry.kill();
    let (code, words) = run_failing(&mut preempt(&["--retries", "0"]));
    assert_eq!(code, 9, "{words}");
    assert_eq!(Ledger::running(), ["auditor", "consumer", "producer"]);
    registry.restart();

    // What could not be restored is not ended: a volume that somebody else has would be in the way.
    stay_with("squatter", &["--volume", "ledger-data:/data"]);
    let (code, words) = run_failing(&mut preempt(&[]));
    assert_eq!((code, words.contains("volume ledger-data")), (7, true), "{words}");
    assert_eq!(Ledger::running(), ["auditor", "consumer", "producer"]);
    run(&mut command("podman", ["rm", "squatter"]));

    let said = ledger.said().into_iter().max().unwrap();
    run(&mut preempt(&["--within", "2m"]));
    assert_eq!(Ledger::containers(), [""; 0]);
    run(&mut registry.syncpoint(["resume", "ledger", "--from", &to, "--key", &keys.public()]));
    ledger.counters_past(said);
    ledger.wipe();
}

#[test]
fn a_guard_that_was_overtaken_touches_nothing_any_more() {
    let registry = Registry::start(5068);
    let keys = Keys::generate();
    let ledger = Ledger::start(&[]);
    let to = registry.repository("sdp/guarded");
    let mut guarded = Guarded::new(&to, &keys, 5069, "[retention]\nkeep-last = 2\n");
    guarded.start(&registry);
    // Meanwhile, what no rule keeps is removed.
    guarded.wait_for("pruned", 1);
    let epochs =
        || registry.tags("sdp/guarded").into_iter().filter(|tag| tag.starts_with("epoch-")).collect::<Vec<_>>();
    assert!((2..=3).contains(&epochs().len()), "{:?}", epochs());
    assert!(guarded.metric("pruned_total").unwrap() >= 2.0);
    assert_eq!(guarded.metric("prune_failures_total"), Some(0.0));

    // Somebody newer acts, and this guard was asleep when it lost its right to.
    let fence = PathBuf::from("/run/syncpoint/fences/ledger");
    let token: u64 = fs::read_to_string(&fence).unwrap().trim().parse().unwrap();
    fs::write(&fence, (token + 1).to_string()).unwrap();
    // A checkpoint that was under way then is the last thing that can fail.
    let mut process = guarded.process.take().unwrap();
    assert_eq!(process.wait().unwrap().code(), Some(7), "{}", guarded.words());
    assert!(guarded.words().contains("somebody newer acts for this application"), "{}", guarded.words());
    ledger.counters_past(ledger.said().into_iter().max().unwrap());
    // The next guard takes the application over, whoever had it.
    guarded.start(&registry);
    guarded.wait_for("checkpoint", guarded.count("checkpoint"));
    assert_eq!(fs::read_to_string(&fence).unwrap().trim(), (token + 2).to_string());
    assert_eq!(guarded.stop(), 0);
    ledger.wipe();
}
