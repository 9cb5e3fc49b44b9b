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
