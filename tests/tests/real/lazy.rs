//! `syncpoint restore --lazy`: tasks run before their memory is there, and never find any other than theirs.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use syncpoint_tests::{Ledger, Process, Registry, Task, command, run, wait_until};
use tempfile::TempDir;

use crate::runc::Lone;
use crate::setup::{Keys, Wiped};

/// What `restore` says when tasks run and memory is still to come.
const FOLLOWS: &str = "running, memory follows";

/// A family, checkpointed and gone: it moves, gives up and inherits its memory all the time, and checks it.
struct Family {
    ledger: Ledger,
    reference: String,
    at: u64,
}

impl Family {
    fn prepare(registry: &Registry, mib: usize) -> Self {
        let ledger = Ledger;
        ledger.run("family", &[], &["family", "--ballast-mib", &mib.to_string(), "--interval-ms", "2"]);
        wait_until("it has been at it for a while", || Task::of("family").counter() > Some(50));
        let to = registry.repository("lazy/family");
        let checkpoint = ["checkpoint", "--application", "family", "--to", &to, "--unsigned", "family"];
        run(&mut registry.syncpoint(checkpoint));
        let at = Task::of("family").counter().unwrap();
        ledger.wipe();
        Self { ledger, reference: format!("{to}:epoch-1"), at }
    }

    fn restore(&self, registry: &Registry) -> Restoring {
        let mut command = registry.syncpoint(["restore", &self.reference, "--insecure-no-verify", "--lazy"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        Restoring { child, said, words: String::new() }
    }

    /// It runs and goes on running, well past where it was dumped.
    fn assert_carries_on(&self) {
        let task = Task::of("family");
        let from = task.counter().unwrap();
        wait_until("it carries on", || task.counter() > Some(from.max(self.at) + 50));
        self.assert_found_its_memory();
    }

    fn assert_found_its_memory(&self) {
        let printed = command("podman", ["logs", "family"]).output().unwrap();
        let said = String::from_utf8_lossy(&printed.stderr);
        assert!(!said.contains("fatal"), "{said}");
    }
}

/// A restore on its way.
struct Restoring {
    child: Child,
    said: BufReader<std::process::ChildStderr>,
    words: String,
}

impl Restoring {
    /// Reads on until memory follows.
    fn until_it_follows(&mut self) {
        while !self.words.contains(FOLLOWS) {
            let read = self.said.read_line(&mut self.words).unwrap();
            assert!(read > 0, "it ended before: {}", self.words);
        }
    }

    /// Whether it succeeded, and all that it said.
    fn end(mut self) -> (bool, String) {
        self.said.read_to_string(&mut self.words).unwrap();
        (self.child.wait().unwrap().success(), self.words)
    }
}

/// Makes a registry so slow that memory follows for a while.
fn slowly<T>(registry: &Registry, work: impl FnOnce() -> T) -> T {
    /// Says that it is over, also after a panic.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                registry.pause();
                thread::sleep(Duration::from_millis(45));
                registry.resume();
                thread::sleep(Duration::from_millis(5));
            }
        });
        let _over = Over(&over);
        work()
    })
}

#[test]
fn connections_survive_a_lazy_restore_again_and_again() {
    let registry = Registry::start(5060);
    let keys = Keys::generate();
    let wiped = Wiped::prepare(&registry, "lazy/ledger", &keys, &["--ballast-mib", "96", "--churn-percent", "20"]);
    for _ in 0..3 {
        let restore = registry.syncpoint(["restore", &wiped.reference, "--key", &keys.public(), "--lazy"]).output();
        let restore = restore.unwrap();
        let said = String::from_utf8_lossy(&restore.stderr);
        assert!(restore.status.success() && said.contains(FOLLOWS), "{said}");
        assert!(!Process::all().iter().any(|process| process.command.contains("keep-memory")), "the keeper has ended");
        wiped.assert_carries_on();
        wiped.ledger.wipe();
    }
}

/// Forks, moves and removals while memory follows: a page that is put in a wrong place, or not at all, ends the family.
#[test]
fn a_family_finds_its_memory_while_it_follows() {
    let registry = Registry::start(5061);
    let family = Family::prepare(&registry, 320);
    for round in 0..3 {
        let mut restoring = family.restore(&registry);
        restoring.until_it_follows();
        let (began, ended, (success, said)) = slowly(&registry, || {
            let task = Task::of("family");
            let began = task.counter().unwrap();
            let how = restoring.end();
            (began, task.counter().unwrap(), how)
        });
        assert!(success, "{said}");
        println!("round {round}: {} steps while memory followed", ended - began);
        family.assert_carries_on();
        family.ledger.wipe();
        assert_eq!(touched(&registry), 1, "what it asked for first is remembered: {said}");
    }
}

/// How many images have the pages beside them that were asked for first.
fn touched(registry: &Registry) -> usize {
    registry.tags("lazy/family").iter().filter(|tag| tag.ends_with(".touched")).count()
}

#[test]
fn a_store_that_comes_back_is_waited_for() {
    let registry = Registry::start(5062);
    let family = Family::prepare(&registry, 320);
    let mut restoring = family.restore(&registry);
    restoring.until_it_follows();
    registry.kill();
    thread::sleep(Duration::from_secs(1));
    registry.restart();
    let (success, said) = restoring.end();
    assert!(success, "{said}");
    family.assert_carries_on();
}

#[test]
fn when_the_store_goes_away_nothing_runs_any_more() {
    let registry = Registry::start(5063);
    let family = Family::prepare(&registry, 320);
    let mut restoring = family.restore(&registry);
    restoring.until_it_follows();
    registry.kill();
    let (success, said) = restoring.end();
    assert!(!success && said.contains("the memory of member family did not follow"), "{said}");
    assert_eq!(Ledger::containers(), [""; 0]);
    assert!(!Process::all().iter().any(|process| process.command.contains("/bin/ledger")));

    registry.restart();
    let (success, said) = family.restore(&registry).end();
    assert!(success, "{said}");
    family.assert_carries_on();
}

#[test]
fn a_launcher_that_is_killed_while_memory_follows_takes_its_set_along() {
    let registry = Registry::start(5064);
    let family = Family::prepare(&registry, 320);
    let mut restoring = family.restore(&registry);
    restoring.until_it_follows();
    registry.pause();
    restoring.child.kill().unwrap();
    wait_until("its tasks are gone", || !Process::all().iter().any(|process| process.command.contains("/bin/ledger")));
    wait_until("its keeper too", || !Process::all().iter().any(|process| process.command.contains("keep-memory")));
    registry.resume();
    family.assert_found_its_memory();

    let (success, said) = family.restore(&registry).end();
    assert!(success && said.contains("was killed before its set ran"), "{said}");
    family.assert_carries_on();
}

#[test]
fn an_image_whose_memory_cannot_follow_is_restored_whole() {
    let registry = Registry::start(5065);
    let ledger = Ledger;
    ledger.run("whole", &[], &["writer", "--ballast-mib", "8"]);
    wait_until("it counts", || Task::of("whole").counter() > Some(3));
    let (folder, reference) = (TempDir::new().unwrap(), registry.repository("lazy/whole:1"));
    let archive = folder.path().join("whole.tar");
    run(command("podman", ["container", "checkpoint", "--export"]).arg(&archive).arg("whole"));
    run(registry.syncpoint(["pack", "--layout", "split", "--member", "whole", "--to", &reference]).arg(&archive));
    ledger.wipe();
    let restore = registry.syncpoint(["restore", &reference, "--insecure-no-verify", "--lazy"]).output().unwrap();
    let said = String::from_utf8_lossy(&restore.stderr);
    assert!(restore.status.success() && !said.contains(FOLLOWS), "{said}");
    assert!(
        said.contains("all memory of whole is fetched before anything runs: its pages are not in generations"),
        "{said}"
    );
    let task = Task::of("whole");
    let at = task.counter();
    wait_until("it carries on", || task.counter() > at);
    ledger.wipe();
}

#[test]
fn memory_follows_with_runc_alone() {
    let lone = Lone::prepare(5066, &["lone"]);
    let said = run_and_say(lone.restore().arg("--lazy"));
    assert!(said.contains(FOLLOWS), "{said}");
    lone.assert_runs();
    lone.wipe();
}

fn run_and_say(command: &mut std::process::Command) -> String {
    let ran = command.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success(), "{said}");
    said
}
