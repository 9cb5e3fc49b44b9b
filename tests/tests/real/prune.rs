//! Old checkpoints are removed over and over, while new ones are made of the running application, in generations, and others are
//! fetched and restored: nothing that a tag leads to is lost, on a layout and on a real registry.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use syncpoint_tests::{Ledger, MEMBERS, Registry, command, run, syncpoint, wait_until};
use tempfile::TempDir;

use crate::setup::{Keys, files_below};

/// Checkpoints that are made meanwhile. More wear the race out further.
const CHECKPOINTS: u32 = 8;

/// A repository, and how to call the program for it.
struct Place<'a> {
    repository: String,
    registry: Option<&'a Registry>,
    keys: &'a Keys,
}

impl Place<'_> {
    fn syncpoint(&self, arguments: &[&str]) -> Command {
        match self.registry {
            Some(registry) => registry.syncpoint(arguments),
            None => syncpoint(arguments),
        }
    }

    fn tags(&self) -> Vec<String> {
        let listed = run(&mut self.syncpoint(&["list", "-q", &self.repository]));
        listed.lines().map(str::to_owned).collect()
    }

    fn checkpoint(&self) {
        let private = self.keys.private();
        let arguments = ["checkpoint", "--application", "ledger", "--to", &self.repository, "--sign-by", &private];
        run(self.syncpoint(&arguments).args(MEMBERS));
    }

    fn verify(&self, tag: &str) {
        let reference = format!("{}:{tag}", self.repository);
        run(&mut self.syncpoint(&["verify", "--key", &self.keys.public(), &reference]));
    }

    fn prune(&self, keep: &str) -> serde_json::Value {
        let answer = run(&mut self.syncpoint(&["prune", "--json", &self.repository, "--keep-last", keep]));
        serde_json::from_str(&answer).unwrap()
    }
}

/// Makes checkpoints, prunes and pulls, all at the same time; then everything that has a tag is whole, and the newest runs.
fn race(place: &Place<'_>, ledger: &Ledger) {
    let (done, prunes, pulls) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let rounds = std::env::var("SYNCPOINT_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(CHECKPOINTS);
    place.checkpoint();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                place.prune("2");
                prunes.fetch_add(1, Ordering::SeqCst);
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let folder = TempDir::new_in("/var/tmp").unwrap();
                let newest = place.tags().first().cloned().expect("a checkpoint is always listed");
                let (from, to) = (format!("{}:{newest}", place.repository), format!("oci:{}", folder.path().display()));
                // Two checkpoints may have been made since, and then this one may go; but it does not come half.
                match place.syncpoint(&["pull", "-q", &from, &to]).output().unwrap() {
                    pulled if pulled.status.success() => {
                        run(&mut syncpoint(["verify", "--key", &place.keys.public(), &format!("{to}:{newest}")]));
                        pulls.fetch_add(1, Ordering::SeqCst);
                    }
                    failed => {
                        let said = String::from_utf8_lossy(&failed.stderr).into_owned();
                        assert!(said.contains("is not in") && !place.tags().contains(&newest), "{newest}: {said}");
                    }
                }
            }
        });
        // However this ends, the others are to end too.
        let made =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (0..rounds).for_each(|_| place.checkpoint())));
        done.store(true, Ordering::SeqCst);
        made.unwrap();
    });
    let last = place.prune("2");
    let tags = place.tags();
    println!(
        "{rounds} checkpoints, {} prunes and {} pulls at the same time; {tags:?} stay",
        prunes.load(Ordering::SeqCst),
        pulls.load(Ordering::SeqCst)
    );
    assert_eq!(tags, [format!("epoch-{}", rounds + 1), format!("epoch-{rounds}")], "{last}");
    tags.iter().for_each(|tag| place.verify(tag));
    assert!(prunes.load(Ordering::SeqCst) > 2 && pulls.load(Ordering::SeqCst) > 1);

    restore_while_pruned(place, ledger, &tags);
}

/// The newest checkpoint is restored whatever is removed beside it, and so is a pinned one; one that is itself removed meanwhile is
/// restored whole or not at all.
fn restore_while_pruned(place: &Place<'_>, ledger: &Ledger, tags: &[String]) {
    let (newest, older) = (&tags[0], &tags[1]);
    let said = ledger.said().into_iter().max().unwrap_or_default();
    ledger.wipe();
    let aside = TempDir::new_in("/var/tmp").unwrap();
    let aside = format!("oci:{}:{older}", aside.path().join("layout").display());
    let in_place = format!("{}:{older}", place.repository);
    run(&mut place.syncpoint(&["copy", "-q", &in_place, &aside]));

    let restore_while = |tag: &str, delay_ms: u64, keep: &str| {
        thread::scope(|scope| {
            let pruned = scope.spawn(|| {
                thread::sleep(Duration::from_millis(delay_ms));
                place.prune(keep)
            });
            let reference = format!("{}:{tag}", place.repository);
            let restored = place.syncpoint(&["restore", "--key", &place.keys.public(), &reference]).output().unwrap();
            pruned.join().unwrap();
            let words = String::from_utf8_lossy(&restored.stderr).into_owned();
            if restored.status.success() {
                assert_eq!(ledger.counters_past(said).len(), MEMBERS.len());
            } else {
                assert!(words.contains("is not in"), "{words}");
                assert_eq!(Ledger::running(), [""; 0]);
            }
            ledger.wipe();
            (restored.status.success(), words)
        })
    };
    run(&mut place.syncpoint(&["pin", &in_place]));
    for (tag, delay_ms) in [(newest, 0), (older, 0), (newest, 400), (older, 400)] {
        let (restored, words) = restore_while(tag, delay_ms, "1");
        assert!(restored, "{tag}: {words}");
    }
    run(&mut place.syncpoint(&["unpin", &in_place]));
    let outcomes = [0, 200, 500, 1000].map(|delay_ms| {
        // It is there again, and removed while it is being restored.
        run(&mut place.syncpoint(&["copy", "-q", &aside, &in_place]));
        let (restored, _) = restore_while(older, delay_ms, "1");
        assert_eq!(place.tags(), [newest.as_str()]);
        restored
    });
    println!("restored although removed after 0, 0.2, 0.5 and 1 s: {outcomes:?}");
    place.verify(newest);
}

fn bytes_below(folder: &Path) -> u64 {
    files_below(folder).iter().filter(|path| path.is_file()).map(|path| path.metadata().unwrap().len()).sum()
}

#[test]
fn on_a_layout() {
    let (folder, keys) = (TempDir::new_in("/var/tmp").unwrap(), Keys::generate());
    let layout = folder.path().join("layout");
    let place = Place { repository: format!("oci:{}", layout.display()), registry: None, keys: &keys };
    let ledger = Ledger::start(&["--ballast-mib", "16", "--churn-percent", "5"]);
    race(&place, &ledger);

    // What a checkpoint spoke for that has ended since is left alone for an hour; nobody is at work any more.
    let repository = place.repository.clone();
    run(&mut place.syncpoint(&["prune", &repository, "--keep-last", "2", "--grace", "0s"]));

    // What is kept needs so much: the same in a layout of its own, signatures too. Nothing else is left.
    let copies = folder.path().join("copies");
    for tag in place.tags() {
        let from = format!("{}:{tag}", place.repository);
        run(&mut syncpoint(["copy", "-q", &from, &format!("oci:{}", copies.display())]));
    }
    let blobs = |layout: &Path| {
        let mut names = files_below(&layout.join("blobs/sha256"));
        names.iter_mut().for_each(|path| *path = path.file_name().unwrap().into());
        names
    };
    assert_eq!(blobs(&layout), blobs(&copies), "all space that can be freed is free");
}

#[test]
fn on_a_registry_whose_garbage_collection_then_frees_the_space() {
    let (registry, keys) = (Registry::start(5080), Keys::generate());
    let place = Place { repository: registry.repository("sdp/ledger"), registry: Some(&registry), keys: &keys };
    let ledger = Ledger::start(&["--ballast-mib", "16", "--churn-percent", "5"]);
    race(&place, &ledger);
    let signatures = registry.tags("sdp/ledger").iter().filter(|tag| tag.starts_with("sha256-")).count();
    assert_eq!(signatures, 2 * 4, "one checkpoint, with an index and three members, signed in two forms");

    let blobs = registry.data().join("data/docker/registry/v2/blobs");
    let before = bytes_below(&blobs);
    registry.kill();
    wait_until("the registry is gone", || {
        command("curl", ["--silent", &registry.address()]).output().unwrap().status.code() == Some(7)
    });
    let config = registry.data().join("config.yml");
    run(command("env", ["--unset=REGISTRY_AUTH_FILE", "docker-registry", "garbage-collect"]).arg(config));
    let after = bytes_below(&blobs);
    registry.restart();
    println!("the registry's collection: {} MiB, then {} MiB", before >> 20, after >> 20);
    assert!(after < before / 2, "{before} and then {after}");
    place.tags().iter().for_each(|tag| place.verify(tag));
}
