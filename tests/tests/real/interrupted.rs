//! Kill -9 of push and pull at random points: never a wrong tag, and the second run moves only what is missing.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use syncpoint_tests::{Registry, run, syncpoint};
use tempfile::TempDir;

use crate::setup::{Keys, Wiped, files_below};

const ROUNDS: u32 = 10;

#[test]
fn push_killed_at_ten_points_then_pushed_again() {
    let registry = Registry::start(5020);
    let keys = Keys::generate();
    let wiped = Wiped::prepare(&registry, "sdp/ledger", &keys, &["--ballast-mib", "48"]);
    let folder = TempDir::new().unwrap();
    let layout = format!("oci:{}:epoch-1", folder.path().join("layout").display());
    run(&mut registry.syncpoint(["pull", &wiped.reference, &layout]));
    let start = Instant::now();
    let report = run(&mut registry.syncpoint(["push", "--json", &layout, &registry.repository("sdp/whole:epoch-1")]));
    let (took, report) = (start.elapsed(), serde_json::from_str::<serde_json::Value>(&report).unwrap());
    let count = |report: &serde_json::Value, what: &str| report[what].as_u64().unwrap();
    let all = ["blobs_sent", "blobs_existing", "blobs_mounted"].map(|what| count(&report, what)).iter().sum::<u64>();
    for round in 0..ROUNDS {
        // A registry without the blobs, since it would mount them from the other repositories.
        let other = Registry::start(5021);
        let to = other.repository("sdp/torn:epoch-1");
        kill_after(delay(took, round), other.syncpoint(["push", &layout, &to]));
        let tags = other.tags("sdp/torn");
        if tags.iter().any(|tag| tag == "epoch-1") {
            run(&mut other.syncpoint(["verify", &to, "--key", &keys.public()]));
        }
        let there = linked_blobs(other.data());
        let report = run(&mut other.syncpoint(["push", "--json", &layout, &to]));
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        println!("round {round}: {there} blobs were there; {report}");
        assert!(count(&report, "blobs_sent") + there <= all, "only what was missing of {all} is sent");
        run(&mut other.syncpoint(["verify", &to, "--key", &keys.public()]));
    }
}

#[test]
fn pull_killed_at_ten_points_then_pulled_again() {
    let registry = Registry::start(5022);
    let keys = Keys::generate();
    let wiped = Wiped::prepare(&registry, "sdp/ledger", &keys, &["--ballast-mib", "48"]);
    let folder = TempDir::new().unwrap();
    let took = {
        let start = Instant::now();
        let to = format!("oci:{}:epoch-1", folder.path().join("whole").display());
        run(&mut registry.syncpoint(["pull", &wiped.reference, &to]));
        start.elapsed()
    };
    for round in 0..ROUNDS {
        let layout = folder.path().join(format!("torn-{round}"));
        let to = format!("oci:{}:epoch-1", layout.display());
        kill_after(delay(took, round), registry.syncpoint(["pull", &wiped.reference, &to]));
        let index = fs::read_to_string(layout.join("index.json")).unwrap_or_default();
        if index.contains("epoch-1") {
            run(&mut syncpoint(["verify", &to, "--key", &keys.public()]));
        }
        let blobs = layout.join("blobs/sha256");
        let there = if blobs.exists() { files_below(&blobs).len() } else { 0 };
        let report = run(&mut registry.syncpoint(["pull", "--json", &wiped.reference, &to]));
        println!("round {round}: {there} blobs and manifests were there; {report}");
        run(&mut syncpoint(["verify", &to, "--key", &keys.public()]));
        let strays: Vec<_> = files_below(&layout)
            .into_iter()
            .filter(|path| {
                path.is_file() && path.file_name().is_some_and(|name| name.to_string_lossy().contains("tmp"))
            })
            .collect();
        assert!(strays.is_empty(), "the torn run's leftovers are swept: {strays:?}");
    }
}

/// A point of the transfer, spread evenly with some jitter: where exactly is left to chance on purpose.
fn delay(took: Duration, round: u32) -> Duration {
    let jitter = Duration::from_micros(u64::from(std::process::id() % 977) * 7);
    took * (round + 1) / (ROUNDS + 1) + jitter
}

fn kill_after(delay: Duration, mut command: std::process::Command) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Blobs that the registry would serve from the repository.
fn linked_blobs(registry: &Path) -> u64 {
    let layers = registry.join("data/docker/registry/v2/repositories/sdp/torn/_layers");
    let links = if layers.exists() { files_below(&layers) } else { Vec::new() };
    links.iter().filter(|path| path.ends_with("link")).count() as u64
}
