//! Files and memory are of the same instant.
//!
//! The writer counts in memory, then in its root filesystem, in /dev/shm and in a volume, as fast as it can. So at any one instant
//! no file is ahead of the one before it, and the last is at most one step behind memory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use nix::sys::signal::Signal;
use syncpoint_tests::{Ledger, Task, command, run, wait_until};
use tempfile::TempDir;

use super::{Layout, rounds};

/// What the page of memory begins with that holds the counter, and where on it the counter is.
const MARK: &[u8; 32] = b"the ledger's counter in memory:\n";
const PAGE: usize = 4096;

/// Where the writer keeps its counter, and the archive in podman's dump that has it; the order in which it writes.
const FILES: [(&str, &str); 3] = [
    ("/counter", "rootfs-diff.tar"),
    ("/dev/shm/ledger", "devshm-checkpoint.tar"),
    ("/data/state", "volumes/writer-data.tar"),
];

/// How often podman may be right by luck.
const LUCK: u32 = 60;

fn start() -> Ledger {
    let ledger = Ledger;
    ledger.wipe();
    let label = "io.syncpoint.application=writer";
    let [(state, _), (marker, _), (copy, _)] = FILES;
    let counts = ["writer", "--interval-ms", "0", "--print-every", "100000"];
    let kept = ["--state", state, "--marker", marker, "--copy", copy];
    ledger.run("writer", &["--label", label, "--volume", "writer-data:/data"], &[&counts[..], &kept].concat());
    let task = Task::of("writer");
    wait_until("it counts", || task.counter() > Some(1000));
    ledger
}

/// The counter in a dump: in memory, and in each of [`FILES`].
#[derive(Debug)]
pub struct Counters {
    memory: u64,
    files: [u64; 3],
}

impl Counters {
    /// Reads podman's archive, not compressed.
    pub fn read(archive: &Path) -> Self {
        let mut memory = Vec::new();
        let mut files = BTreeMap::new();
        let mut tar = tar::Archive::new(File::open(archive).unwrap());
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().trim_start_matches("./").to_owned();
            if name.starts_with("checkpoint/pages-") {
                memory.extend(in_pages(&mut entry));
            } else if let Some((path, _)) = FILES.iter().find(|(_, holder)| *holder == name) {
                let file = path.rsplit('/').next().unwrap();
                files.insert(name, in_tar(&mut entry, file).unwrap_or_else(|| panic!("{path} is in the dump")));
            }
        }
        let [memory] = memory[..] else { panic!("the page with the counter is there once, not {memory:?}") };
        Self { memory, files: FILES.map(|(_, holder)| files[holder]) }
    }

    pub fn are_of_one_instant(&self) -> bool {
        let all = [self.memory, self.files[0], self.files[1], self.files[2]];
        all.windows(2).all(|pair| pair[0] >= pair[1]) && all[0] - all[3] <= 1
    }
}

fn in_pages(pages: &mut impl Read) -> Vec<u64> {
    let (mut page, mut found) = ([0; PAGE], Vec::new());
    while pages.read_exact(&mut page).is_ok() {
        if page.starts_with(MARK) {
            let (_, rest) = page.split_at(MARK.len());
            found.push(u64::from_le_bytes(rest[..8].try_into().unwrap()));
        }
    }
    found
}

fn in_tar(tar: &mut impl Read, file: &str) -> Option<u64> {
    let mut tar = tar::Archive::new(tar);
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap().ends_with(file) {
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            return text.trim().parse().ok();
        }
    }
    None
}

/// What this project is for: if podman one day gets it right by itself, this test says so.
#[test]
fn podman_by_itself_dumps_files_of_a_later_instant_than_memory() {
    let ledger = start();
    let folder = TempDir::new().unwrap();
    let archive = folder.path().join("writer.tar");
    let (mut tries, mut wrong) = (0, 0);
    while tries < 10 || wrong == 0 {
        assert!(tries < LUCK, "podman was right {tries} times");
        let export = ["container", "checkpoint", "--leave-running", "--compress", "none", "--export"];
        run(command("podman", export).arg(&archive).arg("writer"));
        let counters = Counters::read(&archive);
        tries += 1;
        if !counters.are_of_one_instant() {
            wrong += 1;
            println!("podman, try {tries}: memory {}, files {:?}", counters.memory, counters.files);
        }
        fs::remove_file(&archive).unwrap();
    }
    println!("podman by itself was wrong {wrong} times in {tries}");
    ledger.wipe();
}

#[test]
fn a_checkpoint_has_memory_and_files_of_one_instant() {
    let ledger = start();
    let layout = Layout::new();
    let archive = layout.path("writer.tar");
    let unpacked = archive.to_str().unwrap();
    let mut behind = [0; 2];
    for round in 1..=rounds() {
        run(&mut layout.checkpoint("writer", &[]));
        let unpack = ["unpack", &layout.tag(round), "--member", "writer", "--to", unpacked, "--compression", "none"];
        run(&mut syncpoint_tests::syncpoint(unpack));
        let counters = Counters::read(&archive);
        assert!(counters.are_of_one_instant(), "round {round}: {counters:?}");
        behind[usize::from(counters.files[2] != counters.memory)] += 1;
        fs::remove_file(&archive).unwrap();
        // The writer compares all of them at each step, and ends if they differ: now and then it may see for itself.
        if round % 10 == 0 {
            Task::of("writer").signal(Signal::SIGKILL);
            ledger.wipe();
            run(&mut layout.syncpoint(["restore", &layout.tag(round), "--insecure-no-verify"]));
            let task = Task::of("writer");
            wait_until("it carries on", || task.counter() > Some(counters.memory + 1000));
        }
    }
    println!(
        "{} rounds: all files where memory was {} times, in the middle of a step {}",
        rounds(),
        behind[0],
        behind[1]
    );
    ledger.wipe();
}
