//! Messages that are on their way while an application is checkpointed: none is lost, none comes twice, none out of order.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use syncpoint_tests::{Ledger, MEMBERS, Registry, Task, command, run, wait_until};

use super::{Layout, rounds};
use crate::setup::Keys;

#[test]
fn a_running_application_is_checkpointed_wrecked_and_restored() {
    let registry = Registry::start(5040);
    let keys = Keys::generate();
    let repository = registry.repository("sdp/running");
    let ledger = Ledger::start(&["--ballast-mib", "16", "--churn-percent", "10"]);
    let tasks = MEMBERS.map(Task::of);
    let connections = tasks.each_ref().map(Task::connections);
    // Nobody is named: the labels say who the members are.
    let checkpoint = ["checkpoint", "--application", "ledger", "--to", &repository, "--sign-by", &keys.private()];
    run(&mut registry.syncpoint(checkpoint));
    assert!(tasks.iter().all(Task::is_alive), "the same processes run on");
    assert_eq!(tasks.each_ref().map(Task::connections), connections, "over the same connections");
    let furthest = |counters: Vec<u64>| counters.into_iter().max().unwrap_or_default();
    let wrecked = furthest(ledger.counters_past(furthest(ledger.said())));

    tasks.iter().for_each(|task| task.signal(Signal::SIGKILL));
    ledger.wipe();
    run(&mut registry.syncpoint(["restore", &format!("{repository}:epoch-1"), "--key", &keys.public()]));
    assert_eq!(MEMBERS.map(|member| Task::of(member).connections()), connections, "the connections are the same again");
    // It gets past where it was killed, by itself.
    ledger.counters_past(wrecked);
    for member in MEMBERS {
        let printed = run(&mut command("podman", ["logs", member]));
        let numbers: Vec<u64> = printed.lines().filter_map(|line| line.split(' ').nth(1)?.parse().ok()).collect();
        let gap = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1);
        assert_eq!((numbers.first(), gap), (Some(&1), None), "{member}'s log has each number once, in order");
    }
}

#[test]
fn a_pair_that_exchanges_messages_at_full_speed_is_checkpointed_and_restored_again_and_again() {
    // CRIU sends the memory, and writes no page.
    assert_eq!(exchange("stream", rounds()), 0, "files of pages were written");
}

#[test]
fn the_same_with_memory_in_crius_files() {
    // Who looks for files of pages does see them here.
    assert!(exchange("disk", rounds().min(10)) > 0);
}

#[test]
fn the_same_with_memory_that_comes_over_tls() {
    assert_eq!(exchange("tls", rounds().min(20)), 0, "files of pages were written");
}

/// Looks all the time for new files of pages where podman's containers are dumped to.
pub struct PagesFiles {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl PagesFiles {
    pub fn watch() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
        let is_new = move |entry: &fs::DirEntry| {
            let changed = entry.metadata().is_ok_and(|facts| facts.ctime() * 1_000_000_000 + facts.ctime_nsec() > now);
            changed && entry.file_name().to_string_lossy().starts_with("pages-")
        };
        let look = move || {
            let containers = fs::read_dir("/var/lib/containers/storage/overlay-containers").into_iter().flatten();
            let images = containers.flatten().map(|entry| entry.path().join("userdata/checkpoint"));
            let files = images.filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
            files.filter(is_new).count()
        };
        let thread = std::thread::spawn(move || {
            let mut seen = 0;
            while !stopped.load(Ordering::Relaxed) {
                seen += look();
                std::thread::sleep(Duration::from_millis(2));
            }
            seen
        });
        Self { stop, thread }
    }

    pub fn seen(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Each checkpoint is of the application that the one before was restored to. Says how often a new file of pages was seen.
fn exchange(pages: &str, rounds: u64) -> usize {
    let layout = Layout::new();
    let pair = ["consumer", "producer"];
    let speed = ["--interval-ms", "0", "--print-every", "1000", "--auditors", "0"];
    let ledger = Ledger::start(&speed);
    let connection = Task::of("producer").connections();
    println!("round  checkpoint  restore   messages when killed, when seen again");
    let (mut before, mut seen) = (0, 0);
    for round in 1..=rounds {
        let begun = Instant::now();
        let files = PagesFiles::watch();
        run(&mut layout.checkpoint("ledger", &["--pages", pages]));
        seen += files.seen();
        let taken = begun.elapsed();
        let tasks = pair.map(Task::of);
        let after = tasks.each_ref().map(|task| task.counter().expect("it runs on"));
        wait_until("both ran on", || tasks.iter().zip(after).all(|(task, after)| task.counter() > Some(after)));
        assert_eq!(tasks[1].connections(), connection, "round {round}");
        let killed = tasks.each_ref().map(|task| task.counter().expect("it runs until it is killed"));
        tasks.iter().for_each(|task| task.signal(Signal::SIGKILL));
        ledger.wipe();

        let begun = Instant::now();
        run(&mut layout.syncpoint(["restore", &layout.tag(round), "--insecure-no-verify"]));
        let restored = begun.elapsed();
        let tasks = pair.map(Task::of);
        let at = tasks.each_ref().map(|task| task.counter().expect("it runs again"));
        assert_eq!(tasks[1].connections(), connection, "round {round}");
        // Both check every number that comes, and end at the first that does not fit.
        wait_until("both carry on", || tasks.iter().zip(at).all(|(task, at)| task.counter() > Some(at + 100)));
        assert!(at.iter().all(|at| *at > before), "round {round}: {at:?} after {before}");
        before = at[0].max(at[1]);
        println!("{round:>5}  {:>8} ms {:>5} ms   {killed:?} {at:?}", taken.as_millis(), restored.as_millis());
    }
    for member in pair {
        let said = run(&mut command("podman", ["logs", member]));
        assert!(!said.contains("fatal"), "{said}");
    }
    seen
}
