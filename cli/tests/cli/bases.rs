//! `pack --base` over images that can no longer be a base: the new image has all pages, and the reason is told.

use std::fs;

use serde_json::Value;

use crate::common::{World, fixture, ran};

const BASE: &str = "oci:layout:base";

fn pack(world: &World, to: &str, base: &[&str]) -> (Value, String) {
    let dump = fixture("set/auditor.tar.zst");
    let arguments = [&["pack", "--json", &dump, "--member", "auditor", "--to", to][..], base].concat();
    let packed = ran(world.command(&arguments).output().unwrap());
    assert_eq!(packed.code, 0, "{}", packed.err);
    (serde_json::from_str(&packed.out).unwrap(), packed.err)
}

/// The blobs of the layers with this content.
fn blobs(packed: &Value, content: &str) -> Vec<String> {
    let layers = packed["layers"].as_array().unwrap().iter().filter(|layer| layer["content"] == content);
    layers.map(|layer| layer["digest"].as_str().unwrap().replace("sha256:", "layout/blobs/sha256/")).collect()
}

/// After `spoil` the image is packed whole, says so, and is the dump.
fn falls_back(spoil: impl FnOnce(&World, &Value), reason: &str) {
    let world = World::new();
    let (base, _) = pack(&world, BASE, &[]);
    let (over, note) = pack(&world, "oci:layout:over", &["--base", BASE]);
    assert_eq!((&over["generations"], &over["base"]), (&Value::from(2), &base["digest"]), "{note}");
    world.good(&["unpack", BASE, "--to", "expected.tar"]);

    spoil(&world, &base);
    let (whole, note) = pack(&world, "oci:layout:whole", &["--base", BASE]);
    assert!(note.contains("a new chain begins") && note.contains(reason), "{note}");
    assert_eq!((&whole["generations"], &whole["base"]), (&Value::from(1), &Value::Null), "{note}");
    assert_eq!(whole["digest"], base["digest"], "the same dump, all of it");
    world.good(&["unpack", "oci:layout:whole", "--to", "found.tar"]);
    assert!(fs::read(world.path("found.tar")).unwrap() == fs::read(world.path("expected.tar")).unwrap());
}

#[test]
fn a_base_whose_pages_are_gone() {
    let gone = |world: &World, base: &Value| {
        for blob in blobs(base, "pages") {
            fs::remove_file(world.path(&blob)).unwrap();
        }
    };
    falls_back(gone, "is gone");
}

#[test]
fn a_base_whose_table_is_gone() {
    let gone = |world: &World, base: &Value| {
        for blob in blobs(base, "digests") {
            fs::remove_file(world.path(&blob)).unwrap();
        }
    };
    falls_back(gone, "not");
}

#[test]
fn a_base_whose_table_is_damaged() {
    let damaged = |world: &World, base: &Value| {
        for blob in blobs(base, "digests") {
            let mut bytes = fs::read(world.path(&blob)).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(world.path(&blob), bytes).unwrap();
        }
    };
    falls_back(damaged, "digest");
}
