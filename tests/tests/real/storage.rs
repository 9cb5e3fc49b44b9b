//! A guarded application whose storage is full, read-only or slow: it runs on, the guard says so and catches up. (Gone: guard.rs.)

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use syncpoint_tests::{Ledger, Registry, Task, command, run, syncpoint};
use tempfile::TempDir;

use crate::guard::Guarded;
use crate::setup::Keys;

/// A file system of its own, in memory, of so many MiB.
pub(crate) struct Disk {
    at: PathBuf,
    /// Of a disk that is nowhere in particular; it goes after the disk.
    folder: Option<TempDir>,
}

impl Disk {
    fn of_mib(mib: u32) -> Self {
        let folder = TempDir::new().unwrap();
        let mut disk = Self::over(folder.path(), mib);
        disk.folder = Some(folder);
        disk
    }

    /// Hides what is in the folder.
    pub(crate) fn over(folder: &Path, mib: u32) -> Self {
        run(command("mount", ["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(folder));
        Self { at: folder.to_owned(), folder: None }
    }

    fn path(&self) -> &Path {
        &self.at
    }

    fn remount(&self, how: &str) {
        run(command("mount", ["-o", &format!("remount,{how}")]).arg(self.path()));
    }

    /// Writes into it until nothing fits any more.
    fn fill(&self) {
        let mut file = File::create(self.path().join("filler")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn empty(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(command("umount", ["--lazy"]).arg(self.path()));
    }
}

/// The guard fails to take two checkpoints and says so, and the application runs on meanwhile.
fn assert_fails_in_peace(guarded: &Guarded, ledger: &Ledger, words: &str) {
    let failed = guarded.count("checkpoint-failed");
    guarded.wait_for("checkpoint-failed", failed + 1);
    let last = guarded.events().into_iter().rev().find(|event| event["event"] == "checkpoint-failed").unwrap();
    assert!(last["message"].as_str().unwrap().contains(words), "{last}");
    assert!(guarded.metric("checkpoint_failures_total").unwrap() >= 2.0);
    assert_eq!(guarded.metric("running"), Some(1.0));
    ledger.counters_past(ledger.said().into_iter().max().unwrap());
}

/// A member dies, and the application is rolled back.
fn assert_rolls_back(guarded: &Guarded, ledger: &Ledger) {
    let rolled_back = guarded.count("rolled-back");
    Task::of("producer").signal(Signal::SIGKILL);
    guarded.wait_for("rolled-back", rolled_back);
    ledger.counters_past(ledger.said().into_iter().max().unwrap());
}

/// Checkpoints succeed again.
fn assert_catches_up(guarded: &Guarded) {
    guarded.wait_for("checkpoint", guarded.count("checkpoint") + 1);
    // The age counts from the instant of the checkpoint, which took its time on a busy machine.
    let last = guarded.events().into_iter().rev().find(|event| event["event"] == "checkpoint").unwrap();
    let took = last["took_ms"].as_f64().unwrap() / 1000.0;
    let age = guarded.metric("newest_checkpoint_age_seconds").unwrap();
    assert!(age < took + 10.0, "{age} s, {last}");
}

#[test]
fn a_layout_that_is_full_or_read_only_is_caught_up_with() {
    // For its credentials alone: a guard is always started with some.
    let registry = Registry::start(5090);
    let (keys, disk) = (Keys::generate(), Disk::of_mib(64));
    let ledger = Ledger::start(&[]);
    let to = format!("oci:{}/layout", disk.path().display());
    let mut guarded = Guarded::new(&to, &keys, 5091, "");
    guarded.start(&registry);
    guarded.wait_for("checkpoint", 0);

    disk.fill();
    assert_fails_in_peace(&guarded, &ledger, "No space left on device");
    assert_rolls_back(&guarded, &ledger);
    disk.empty();
    assert_catches_up(&guarded);

    disk.remount("ro");
    assert_fails_in_peace(&guarded, &ledger, "Read-only file system");
    assert_rolls_back(&guarded, &ledger);
    disk.remount("rw");
    assert_catches_up(&guarded);

    assert_eq!(guarded.stop(), 0);
    for tag in run(&mut syncpoint(["list", "-q", &to])).lines() {
        run(&mut syncpoint(["verify", "--key", &keys.public(), &format!("{to}:{tag}")]));
    }
    ledger.wipe();
}

#[test]
fn a_work_folder_that_is_full_is_caught_up_with() {
    let registry = Registry::start(5092);
    let (keys, disk) = (Keys::generate(), Disk::of_mib(64));
    let ledger = Ledger::start(&[]);
    let to = registry.repository("sdp/guarded");
    let mut guarded = Guarded::new(&to, &keys, 5093, "");
    guarded.more_arguments(&["--work-dir", disk.path().to_str().unwrap()]);
    guarded.start(&registry);
    guarded.wait_for("checkpoint", 0);
    disk.fill();
    assert_fails_in_peace(&guarded, &ledger, "No space left on device");
    disk.empty();
    assert_catches_up(&guarded);
    assert_rolls_back(&guarded, &ledger);
    assert_eq!(guarded.stop(), 0);
    ledger.wipe();
}

/// Passes on what comes to a port, in both directions, so many bytes a second each; 0 is without a limit.
struct SlowLine(Arc<AtomicU64>);

impl SlowLine {
    fn start(from: u16, to: u16) -> Self {
        let rate = Arc::new(AtomicU64::new(0));
        let listener = TcpListener::bind(("127.0.0.1", from)).unwrap();
        let shared = Arc::clone(&rate);
        // Ends with the test's process.
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let (up, down) = (Arc::clone(&shared), Arc::clone(&shared));
                thread::spawn(move || pass_on(near, far, &up));
                thread::spawn(move || pass_on(far_too, near_too, &down));
            }
        });
        Self(rate)
    }

    fn set(&self, bytes_a_second: u64) {
        self.0.store(bytes_a_second, Ordering::Relaxed);
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, rate: &AtomicU64) {
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
        let rate = rate.load(Ordering::Relaxed);
        if rate > 0 {
            thread::sleep(Duration::from_secs_f64(read as f64 / rate as f64));
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

#[test]
fn a_slow_store_costs_checkpoints_and_not_the_application() {
    let registry = Registry::start(5094);
    let keys = Keys::generate();
    let line = SlowLine::start(5095, 5094);
    let credentials = fs::read_to_string(registry.auth_file()).unwrap();
    fs::write(registry.auth_file(), credentials.replace("5094", "5095")).unwrap();
    let ledger = Ledger::start(&[]);
    let mut guarded = Guarded::new("127.0.0.1:5095/sdp/guarded", &keys, 5096, "");
    guarded.start(&registry);
    guarded.wait_for("checkpoint", 1);
    let fast = guarded.metric("last_checkpoint_seconds").unwrap();

    line.set(15_000);
    let (skipped, begun, said) = (guarded.count("skipped"), Instant::now(), ledger.said().into_iter().max().unwrap());
    guarded.wait_for("skipped", skipped + 1);
    let now = ledger.counters_past(said);
    let age = guarded.metric("newest_checkpoint_age_seconds").unwrap();
    println!(
        "a checkpoint took {fast:.2} s; now the newest is {age:.1} s old, and the ledger went from {said} to {now:?}"
    );
    assert!(guarded.metric("checkpoints_skipped_total").unwrap() >= 2.0);
    assert_eq!(guarded.metric("running"), Some(1.0));
    // It stands still as long as ever, whatever the line is like.
    assert!(guarded.metric("last_frozen_seconds").unwrap() < 1.0, "{begun:?}");

    line.set(0);
    assert_catches_up(&guarded);
    assert_eq!(guarded.stop(), 0);
    ledger.wipe();
}
