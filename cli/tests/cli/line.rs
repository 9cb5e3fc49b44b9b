//! What nobody of the line signed is not believed, and what is signed is not taken for something else.

use std::fs;

use serde_json::{Value, json};

use crate::common::{World, fixture, link, pack_members};
use crate::forge::{NAME, forge};

/// Three members, linked and signed twice.
fn made() -> World {
    let world = World::new();
    world.good(&["key", "generate"]);
    pack_members(&world, "oci:layout");
    for epoch in ["epoch-1", "epoch-2"] {
        link(&world, "oci:layout", epoch, &["--sign-by", "cosign.key"]);
    }
    world
}

fn read(world: &World, path: &str) -> Value {
    serde_json::from_slice(&fs::read(world.path(path)).unwrap()).unwrap()
}

/// Points a tag at what another one names, as anybody who can write there may.
fn move_tag(world: &World, tag: &str, to: &str) {
    let mut index = read(world, "layout/index.json");
    let entries = index["manifests"].as_array_mut().unwrap();
    let mut target = entries.iter().find(|entry| entry.pointer(NAME) == Some(&json!(to))).unwrap().clone();
    entries.retain(|entry| entry.pointer(NAME) != Some(&json!(tag)));
    *target.pointer_mut(NAME).unwrap() = json!(tag);
    entries.push(target);
    fs::write(world.path("layout/index.json"), index.to_string()).unwrap();
}

fn verify<'a>(reference: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["verify", "--key", "cosign.pub", "--depth", "manifests", reference][..], more].concat()
}

#[test]
fn a_tag_is_compared_with_what_is_signed() {
    let world = made();
    world.good(&verify("oci:layout:epoch-2", &[]));
    world.good(&verify("oci:layout:epoch-2", &["--application", "ledger", "--epoch", "2", "--newer-than", "1"]));
    world.good(&["copy", "oci:layout:epoch-2", "oci:other:blessed"]);
    world.good(&verify("oci:other:blessed", &[]));
    for (stated, why) in [
        (["--application", "other"], "of ledger, not of other"),
        (["--epoch", "3"], "epoch 2, not 3"),
        (["--newer-than", "2"], "not newer than 2"),
        (["--newer-than", "2100-01-01T00:00:00Z"], "not after 2100"),
    ] {
        let said = world.bad(5, &verify("oci:layout:epoch-2", &stated));
        assert!(said.contains(why), "{said}");
    }
    world.bad(2, &verify("oci:layout:epoch-2", &["--newer-than", "yesterday"]));

    move_tag(&world, "epoch-2", "epoch-1");
    let said = world.bad(5, &verify("oci:layout:epoch-2", &[]));
    assert!(said.contains("the tag epoch-2 names epoch 1") && said.contains("was signed as epoch-1"), "{said}");
    move_tag(&world, "today", "epoch-1");
    let said = world.bad(5, &verify("oci:layout:today", &[]));
    assert!(said.contains("the tag today names was signed as epoch-1"), "{said}");
    // By digest it is what it is.
    let listed: Value = serde_json::from_str(&world.good(&["list", "--json", "oci:layout"])).unwrap();
    let digest = listed["checkpoints"][0]["digest"].as_str().unwrap();
    world.good(&verify(&format!("oci:layout@{digest}"), &[]));
    let pinned = world.good(&["pin", "-q", &format!("oci:layout@{digest}")]);
    world.good(&verify(pinned.trim(), &[]));
}

#[test]
fn a_member_is_no_application() {
    let world = made();
    let ran = world.run(&verify("oci:layout:consumer", &[]));
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("the image of the member consumer alone"), "{}", ran.err);
    move_tag(&world, "epoch-2", "consumer");
    let said = world.bad(5, &verify("oci:layout:epoch-2", &[]));
    assert!(said.contains("the tag of epoch 2 names the image of one member"), "{said}");
    let said = world.bad(5, &verify("oci:layout:consumer", &["--application", "ledger"]));
    assert!(said.contains("the image of one member"), "{said}");
}

#[test]
fn planted_checkpoints_are_named_and_passed_over() {
    let world = made();
    world.good(&["key", "generate", "--output-prefix", "other"]);
    for (tag, epoch) in [("planted", "9"), ("last", &u64::MAX.to_string()), ("epoch-3", "4")] {
        link(&world, "oci:layout", tag, &["--epoch", epoch, "--predecessor", "none"]);
    }
    let keyed = world.run(&["list", "--key", "cosign.pub", "-q", "oci:layout"]);
    assert_eq!(keyed.out, "epoch-2\nepoch-1\n");
    for tag in ["planted", "last", "epoch-3"] {
        assert!(keyed.err.contains(tag), "{}", keyed.err);
    }
    world.bad(5, &["list", "--key", "other.pub", "oci:layout"]);
    assert_eq!(world.good(&["list", "-q", "oci:layout"]).lines().count(), 5);

    let pruned = world.run(&["prune", "--key", "cosign.pub", "--keep-last", "1", "oci:layout", "-q"]);
    assert_eq!((pruned.out.as_str(), pruned.code), ("epoch-1\n", 0), "{}", pruned.err);
    assert!(pruned.err.contains("planted stays") && pruned.err.contains("is not signed"), "{}", pruned.err);

    // The next of the line comes after what is signed, whatever number was planted.
    let linked = link(&world, "oci:layout", "next", &["--sign-by", "cosign.key"]);
    assert!(linked.contains("ledger epoch 3"), "{linked}");
    // Who says --epoch himself takes the last number there is at his own risk: none follows it.
    let last = u64::MAX.to_string();
    link(&world, "oci:layout", "end", &["--sign-by", "cosign.key", "--epoch", &last]);
    let member = "consumer=oci:layout:consumer";
    let next = ["link", "--to", "oci:layout:after", "--application", "ledger", "--sign-by", "cosign.key", member];
    let said = world.bad(2, &next);
    assert!(said.contains("the last number"), "{said}");
}

#[test]
fn what_is_incomplete_is_said_and_does_not_count() {
    let world = made();
    let auditor = fixture("podman-plain.tar.zst");
    world.good(&["pack", &auditor, "--to", "oci:layout:auditor", "--member", "auditor"]);
    link(&world, "oci:layout", "epoch-3", &["--sign-by", "cosign.key", "--depends-on", "auditor="]);
    let listed: Value = serde_json::from_str(&world.good(&["list", "--json", "oci:layout"])).unwrap();
    assert!(listed["checkpoints"][0]["size"].is_u64(), "{listed}");
    // A blob that only the newest needs.
    let inspected: Value = serde_json::from_str(&world.good(&["inspect", "--json", "oci:layout:auditor"])).unwrap();
    let manifest = read(&world, &format!("layout/blobs/sha256/{}", hex(inspected["digest"].as_str().unwrap())));
    fs::remove_file(
        world.path(&format!("layout/blobs/sha256/{}", hex(manifest["layers"][0]["digest"].as_str().unwrap()))),
    )
    .unwrap();
    let listed: Value = serde_json::from_str(&world.good(&["list", "--json", "oci:layout"])).unwrap();
    assert_eq!(
        (&listed["checkpoints"][0]["tag"], &listed["checkpoints"][0]["size"]),
        (&json!("epoch-3"), &Value::Null)
    );
    assert!(world.good(&["list", "oci:layout"]).contains("incomplete"));
    let pruned = world.run(&["prune", "--key", "cosign.pub", "--keep-last", "1", "oci:layout", "-q"]);
    assert_eq!((pruned.out.as_str(), pruned.code), ("epoch-1\n", 0), "{}", pruned.err);
    assert!(pruned.err.contains("is incomplete"), "{}", pruned.err);
    world.good(&verify("oci:layout:epoch-2", &[]));
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap()
}

#[test]
fn memory_that_is_not_what_its_table_says_is_not_good_and_no_base() {
    let world = World::new();
    world.good(&["key", "generate"]);
    let dump = fixture("set/auditor.tar.zst");
    let pack = |to: &str, more: &[&str]| {
        let to = format!("oci:layout:{to}");
        let own = ["pack", &dump, "--to", &to, "--member", "auditor", "--compression", "none", "--json"];
        let ran = world.run(&[&own[..], more].concat());
        assert_eq!(ran.code, 0, "{}", ran.err);
        (serde_json::from_str::<Value>(&ran.out).unwrap(), ran.err)
    };
    pack("good", &[]);
    world.good(&["sign", "--key", "cosign.key", "oci:layout:good"]);
    forge(&world.path("layout"), "good", "planted");
    world.good(&["verify", "--insecure-no-signature", "oci:layout:good"]);
    // All of its blobs are what their digests say.
    world.good(&["verify", "--insecure-no-signature", "--depth", "manifests", "oci:layout:planted"]);
    let said = world.bad(5, &["verify", "--insecure-no-signature", "oci:layout:planted"]);
    assert!(said.contains("member auditor cannot be restored"), "{said}");

    let (packed, said) = pack("over", &["--base", "oci:layout:planted", "--key", "cosign.pub"]);
    assert_eq!(packed["base"], Value::Null);
    assert!(said.contains("a new chain begins") && said.contains("is not to be trusted"), "{said}");
    let (packed, _) = pack("over", &["--base", "oci:layout:good", "--key", "cosign.pub"]);
    assert_eq!(packed["generations"], json!(2));
    let (_, said) = pack("over", &["--base", "oci:layout:good"]);
    assert!(said.contains("no key is given"), "{said}");
}
