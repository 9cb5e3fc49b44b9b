//! Keeping some checkpoints and removing the others.

use crate::common::{World, fixture, link, pack_members};

/// Three checkpoints whose members are shared, and one that has a member of its own.
fn made() -> World {
    let world = World::new();
    pack_members(&world, "oci:layout");
    for epoch in ["1", "2", "3"] {
        let tag = format!("epoch-{epoch}");
        let created = format!("2026-11-0{epoch}T12:00:00Z");
        link(&world, "oci:layout", &tag, &["--epoch", epoch, "--created", &created]);
    }
    let dump = fixture("podman-plain.tar.zst");
    world.good(&["pack", &dump, "--to", "oci:work:plain", "--member", "plain"]);
    let linked = ["--epoch", "1", "--created", "2026-11-01T11:00:00Z", "plain=oci:work:plain"];
    world.good(&[&["link", "--to", "oci:layout:plain", "--application", "other"][..], &linked].concat());
    world
}

#[test]
fn every_answer() {
    let world = made();
    let mut answers = String::new();
    for arguments in [
        &["prune", "oci:layout", "--keep-last", "2", "--dry-run"][..],
        &["prune", "oci:layout", "--keep-within", "1d", "--keep-tag", "epoch-1", "--json", "-n"],
        &["prune", "oci:layout", "--keep-last", "1", "--application", "ledger"],
        &["prune", "oci:layout", "--keep-daily", "1"],
        &["list", "oci:layout", "-q"],
    ] {
        answers += &format!("$ syncpoint {}\n{}\n", arguments.join(" "), world.good(arguments));
    }
    insta::assert_snapshot!(world.redact(&answers));
    for tag in ["epoch-3", "plain"] {
        world.good(&["verify", "--insecure-no-signature", &format!("oci:layout:{tag}")]);
    }
    world.bad(3, &["verify", "--insecure-no-signature", "oci:layout:epoch-1"]);
}

#[test]
fn space_is_free() {
    let world = made();
    let size = || {
        let blobs = std::fs::read_dir(world.path("layout/blobs/sha256")).unwrap();
        blobs.map(|blob| blob.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    let before = size();
    assert_eq!(world.good(&["prune", "-q", "oci:layout", "--keep-tag", "epoch-*"]), "plain\n");
    assert!(size() < before - 30_000, "{before} and then {}", size());
    assert_eq!(world.good(&["prune", "-q", "oci:layout", "--keep-tag", "epoch-3"]), "epoch-2\nepoch-1\n");
    world.good(&["verify", "--insecure-no-signature", "oci:layout:epoch-3"]);
}

#[test]
fn a_rule_is_needed() {
    let world = made();
    let said = world.bad(2, &["prune", "oci:layout"]);
    assert!(said.contains("--keep-last"), "{said}");
    world.bad(2, &["prune", "oci:layout", "--keep-last", "0"]);
    world.bad(2, &["prune", "oci:layout:epoch-1", "--keep-last", "1"]);
    world.bad(2, &["prune", "oci:layout", "--keep-within", "7"]);
    world.bad(2, &["prune", "oci:layout", "--keep-tag", "a/b"]);
    world.bad(3, &["prune", "oci:nowhere", "--keep-last", "1"]);
    assert_eq!(world.good(&["list", "-q", "oci:layout"]).lines().count(), 4);
}

#[test]
fn what_cannot_be_read_stays_and_is_told() {
    let world = made();
    let listed = world.good(&["list", "--json", "oci:layout"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let epoch_3 = listed["checkpoints"].as_array().unwrap().iter().find(|entry| entry["tag"] == "epoch-3").unwrap();
    let hex = epoch_3["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
    std::fs::write(world.path("layout/blobs/sha256").join(hex), b"{}").unwrap();
    let ran = world.run(&["prune", "oci:layout", "--keep-last", "1"]);
    assert_eq!(ran.code, 0);
    assert!(ran.err.contains("epoch-3 stays") && ran.err.contains("no space was freed"), "{}", ran.err);
}

#[test]
fn pins_keep_and_are_taken_away() {
    let world = made();
    let pinned = world.good(&["pin", "oci:layout:epoch-1"]);
    assert!(pinned.starts_with("pinned oci:layout@sha256:"), "{pinned}");
    world.good(&["pin", "-q", "oci:layout:epoch-1"]);
    world.good(&["prune", "oci:layout", "--keep-last", "1", "--application", "ledger"]);
    let listed = world.good(&["list", "oci:layout"]);
    let tags: Vec<_> = listed.lines().skip(1).filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(tags, ["epoch-3", "*epoch-1", "plain"], "{listed}");

    world.good(&["unpin", "oci:layout:epoch-1"]);
    let again = world.good(&["unpin", "oci:layout:epoch-1"]);
    assert!(again.contains("was not pinned"), "{again}");
    world.good(&["prune", "oci:layout", "--keep-last", "1"]);
    assert_eq!(world.good(&["list", "-q", "oci:layout"]), "epoch-3\nplain\n");
    world.bad(2, &["pin", "oci:layout:auditor"]);
    world.bad(3, &["pin", "oci:layout:epoch-1"]);
}

#[test]
fn a_checkpoint_with_nothing_but_a_pin_stays_pinned() {
    let world = made();
    let pinned: serde_json::Value =
        serde_json::from_str(&world.good(&["pin", "--json", "oci:layout:epoch-3"])).unwrap();
    let pin = format!("oci:copy:{}", pinned["tag"].as_str().unwrap());
    world.good(&["copy", "oci:layout:epoch-3", &pin]);
    let said = world.bad(7, &["unpin", &pin]);
    assert!(said.contains("only its pin leads to"), "{said}");
    assert!(world.good(&["list", "oci:copy"]).contains("*pin-"));
}

#[test]
fn intervals_by_dalys_formula() {
    let world = World::new();
    let answer = world.good(&["interval", "--cost", "5m", "--mtbf", "24h", "--restart", "10m", "--interval", "1m"]);
    insta::assert_snapshot!(answer);
    let ran = world.run(&["interval", "-q", "--cost", "5m", "--mtbf", "15m", "--interval", "1m"]);
    assert!(ran.err.contains("the interval, 60.00 s, is shorter than a checkpoint takes, 5.00 min"), "{}", ran.err);
    let seconds: f64 = ran.out.trim().parse().unwrap();
    assert!((seconds / 60.0 - 9.14).abs() < 0.005, "{seconds}");
    world.bad(2, &["interval", "--mtbf", "24h"]);
    world.bad(2, &["interval", "--cost", "5m", "--mtbf", "0s"]);
    let world = made();
    world.bad(2, &["interval", "oci:layout", "--mtbf", "24h"]);
    let said = world.bad(3, &["interval", "oci:layout", "--mtbf", "24h", "--application", "ledger"]);
    assert!(said.contains("how long it took"), "{said}");

    // Without --mtbf, what a guard saw.
    let by_guard = ["interval", "oci:layout", "--application", "ledger", "--cost", "5m", "--state-dir", "state"];
    let said = world.bad(3, &by_guard);
    assert!(said.contains("no guard of ledger on this machine (state) saw two failures"), "{said}");
    let seen = r#"{"version":1,"application":"ledger","since":0,"checkpoints":[],"losses":[0,86400000],"rollbacks":2}"#;
    std::fs::create_dir(world.path("state")).unwrap();
    std::fs::write(world.path("state/ledger.json"), seen).unwrap();
    assert!(world.good(&by_guard).contains("failures   every 24.00 h"));
    std::fs::write(world.path("state/ledger.json"), "{").unwrap();
    world.bad(6, &by_guard);
}
