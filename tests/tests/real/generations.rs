//! Generations: a line of checkpoints of which each stores what changed, every one of them restored by unmodified podman.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use image_format::Digest;
use serde_json::Value;
use syncpoint_tests::{Ledger, Registry, command, run, wait_until};
use tempfile::TempDir;

use crate::setup::{Keys, digest_of};

const MIB: u64 = 64;

/// Counts in a shell, beside processes that check so many mebibytes of their memory all the time and write a hundredth anew each
/// second. It ends when one of them does. Their files stand still, since podman by itself takes files later than memory.
fn start(ledger: &Ledger, name: &str, ballasts: &[u64], step: &str) {
    let consumer = |(number, mib): (usize, &u64)| {
        format!(
            "/bin/ledger consumer --listen 127.0.0.1:{} --state /c{number} --marker /dev/shm/m{number} --ballast-mib {mib} \
             --churn-percent 1 & p=\"$p $!\"; ",
            7001 + number
        )
    };
    let consumers: String = ballasts.iter().enumerate().map(consumer).collect();
    let count = format!("i=0; while kill -0 $p; do i=$((i+1)); echo count $i; {step} /bin/busybox sleep 0.05; done");
    run(&mut command("podman", ["rm", "--force", "--ignore", "--time", "0", name]));
    ledger.run("base", &[], &["consumer", "--listen", "127.0.0.1:7000"]);
    ledger.wipe();
    let image = "localhost/syncpoint-demo:1";
    run(command("podman", ["run", "--detach", "--name", name, image, "/bin/sh", "-c"]).arg(consumers + &count));
}

/// What `podman logs` last said of the counter.
fn count(container: &str) -> u64 {
    let line = run(&mut command("podman", ["logs", "--tail", "1", container]));
    line.trim().split(' ').nth(1).and_then(|count| count.parse().ok()).unwrap_or_default()
}

/// The files of a plain archive, by name.
fn files(archive: &Path) -> BTreeMap<String, Digest> {
    let mut files = BTreeMap::new();
    let mut tar = tar::Archive::new(File::open(archive).unwrap());
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().trim_start_matches("./").to_owned();
        if entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(name, Digest::of(&content));
        }
    }
    files
}

/// Dumps a container that runs on, packs it over the image before, and checks that what is unpacked is what was dumped.
fn checkpoint(registry: &Registry, folder: &Path, container: &str, number: u32, more: &[&str]) -> (Value, u64) {
    let repository = registry.repository("sdp/generations");
    let path = |name: String| folder.join(name).to_str().unwrap().to_owned();
    let (dump, unpacked) = (path(format!("{container}-{number}.tar")), path(format!("{container}-{number}-again.tar")));
    let export = ["container", "checkpoint", "--leave-running", "--compress", "none", "--export"];
    run(command("podman", export).arg(&dump).arg(container));
    let to = format!("{repository}:{container}-{number}");
    let base = format!("{repository}:{container}-{}", number - 1);
    let mut pack = registry.syncpoint(["pack", &dump, "--to", &to, "--member", container, "--json"]);
    pack.args(["--compression", "none"]).args(more);
    if number > 1 {
        pack.args(["--base", &base]);
    }
    let packed: Value = serde_json::from_str(&run(&mut pack)).unwrap();
    let new = packed["layers"].as_array().unwrap().iter().filter(|layer| layer["reused"] == false);
    let sent = new.map(|layer| layer["size"].as_u64().unwrap()).sum();
    run(&mut registry.syncpoint(["unpack", &to, "--to", &unpacked, "--compression", "none"]));
    assert!(files(dump.as_ref()) == files(unpacked.as_ref()), "{container} {number}: every file as it was dumped");
    std::fs::remove_file(unpacked).unwrap();
    (packed, sent)
}

/// Restores each image of the line by itself, and sees that it goes on from where it was.
fn restore_each(registry: &Registry, container: &str, counted: &[u64]) {
    let repository = registry.repository("sdp/generations");
    for (number, past) in (1..).zip(counted) {
        let digest = digest_of(registry, &format!("{repository}:{container}-{number}"));
        run(&mut registry.tool("podman", ["run", "--detach", &format!("{repository}@{digest}")]));
        wait_until("it counts on", || count(container) > *past);
        // Long enough to have looked at all of its memory, which ends it when one page is not what it was.
        std::thread::sleep(std::time::Duration::from_secs(12));
        let now = count(container);
        wait_until("it counts still", || count(container) > now);
        run(&mut command("podman", ["rm", "--force", "--time", "0", container]));
    }
}

#[test]
fn a_line_of_three_is_restored_by_podman_at_each_point() {
    let registry = Registry::start(5060);
    let ledger = Ledger;
    ledger.wipe();
    let folder = TempDir::new_in("/var/tmp").unwrap();
    start(&ledger, "line", &[MIB], "");
    wait_until("it counts", || count("line") > 10);
    let mut at = Vec::new();
    for number in 1..=3 {
        std::thread::sleep(std::time::Duration::from_secs(2));
        at.push(count("line"));
        let (packed, sent) = checkpoint(&registry, folder.path(), "line", number, &[]);
        println!("checkpoint {number}: {sent} bytes of layers sent, {} MiB of memory", MIB);
        assert_eq!(packed["generations"], number, "{packed}");
        if number > 1 {
            // A hundredth is written anew each second, for as long as a dump takes on a busy machine.
            assert!(sent < (MIB << 20) / 2, "{sent} bytes where a small part changed");
        }
    }
    ledger.wipe();
    restore_each(&registry, "line", &at);
}

/// Several processes and threads that share memory, some of which end before the second checkpoint.
#[test]
fn processes_that_come_and_go_are_restored_from_generations() {
    let registry = Registry::start(5061);
    let ledger = Ledger;
    ledger.wipe();
    let folder = TempDir::new_in("/var/tmp").unwrap();
    start(&ledger, "family", &[4, 4], "[ $i = 40 ] && /bin/ledger consumer --listen 127.0.0.1:7010 --ballast-mib 4 &");
    let mut at = Vec::new();
    for (number, past) in [(1, 10), (2, 60), (3, 80)] {
        wait_until("it counts", || count("family") > past);
        at.push(count("family"));
        let (packed, sent) = checkpoint(&registry, folder.path(), "family", number, &[]);
        println!("checkpoint {number}: {sent} bytes of layers sent, generation {}", packed["generations"]);
        assert_eq!(packed["generations"], number, "{packed}");
    }
    ledger.wipe();
    restore_each(&registry, "family", &at);
}

#[test]
fn a_second_checkpoint_of_an_application_sends_what_changed_and_is_restored() {
    let registry = Registry::start(5062);
    let (keys, work) = (Keys::generate(), TempDir::new().unwrap());
    let (work, key) = (work.path().to_str().unwrap(), keys.private());
    let repository = registry.repository("sdp/line");
    let ledger = Ledger::start(&["--ballast-mib", "32", "--churn-percent", "1"]);
    for epoch in 1..=2 {
        let checkpoint =
            ["checkpoint", "--application", "ledger", "--to", &repository, "--compression", "none", "--json"];
        let signed = ["--sign-by", &key, "--work-dir", work];
        let said = run(&mut registry.syncpoint([&checkpoint[..], &signed].concat()));
        let report: Value = serde_json::from_str(&said).unwrap();
        for member in report["members"].as_array().unwrap() {
            let [sent, bytes] = ["sent", "bytes"].map(|key| member[key].as_u64().unwrap());
            println!("epoch {epoch}: {} sends {sent} of {bytes} bytes", member["id"]);
            assert!(epoch == 1 || sent < 16 << 20, "{member}");
        }
    }
    let tag = format!("{repository}:epoch-2");
    let index = run(&mut registry.tool("skopeo", ["inspect", "--raw", &format!("docker://{tag}")]));
    let index: Value = serde_json::from_str(&index).unwrap();
    for entry in index["manifests"].as_array().unwrap() {
        assert_eq!(entry["annotations"]["io.syncpoint.generations"], "2", "{entry}");
    }
    ledger.wipe();
    run(&mut registry.syncpoint(["restore", &tag, "--key", &keys.public()]));
    ledger.counters_past(ledger.said().into_iter().max().unwrap_or_default());
}
