//! What changed between two checkpoints.

use crate::common::{World, fixture, link, pack_members};

/// Numbers of a JSON answer, by pointer.
fn number(answer: &serde_json::Value, pointer: &str) -> u64 {
    answer.pointer(pointer).and_then(serde_json::Value::as_u64).unwrap_or_else(|| panic!("{pointer}: {answer}"))
}

#[test]
fn two_dumps() {
    let world = World::new();
    for (tag, dump) in [("1", "consumer"), ("2", "producer")] {
        let to = format!("oci:layout:{tag}");
        world.good(&["pack", &fixture(&format!("set/{dump}.tar.zst")), "--to", &to, "--member", "a"]);
    }
    let answer = world.good(&["diff", "--json", "oci:layout:1", "oci:layout:2"]);
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let pages = |what: &str| number(&answer, &format!("/members/0/pages/{what}"));
    // Two programs that were never one have their pages at other addresses.
    assert!(pages("added") > 0 && pages("removed") > 0, "{answer}");
    world.good(&[
        "pack",
        &fixture("set/consumer.tar.zst"),
        "--to",
        "oci:layout:3",
        "--member",
        "a",
        "--base",
        "oci:layout:1",
    ]);
    let over = world.good(&["diff", "--json", "oci:layout:1", "oci:layout:3"]);
    let over: serde_json::Value = serde_json::from_str(&over).unwrap();
    assert_eq!(number(&over, "/members/0/pages/same"), pages("removed"), "{over}");
    assert_eq!(number(&over, "/members/0/pages/changed"), 0, "{over}");
    assert!(answer["members"][0]["files"].to_string().contains("\"/data/state\""), "{answer}");
    let back = world.good(&["diff", "--json", "oci:layout:2", "oci:layout:1"]);
    let back: serde_json::Value = serde_json::from_str(&back).unwrap();
    assert_eq!(number(&back, "/members/0/pages/added"), pages("removed"));
    assert_eq!(number(&back, "/members/0/pages/changed"), pages("changed"));
    assert!(world.good(&["diff", "oci:layout:1", "oci:layout:1"]).starts_with("= "));
    assert!(world.good(&["diff", "-v", "oci:layout:1", "oci:layout:2"]).contains("pages changed"));
}

#[test]
fn members_and_files_of_global_checkpoints() {
    let world = World::new();
    pack_members(&world, "oci:layout");
    link(&world, "oci:layout", "epoch-1", &[]);
    let other = fixture("podman-plain.tar.zst");
    world.good(&["pack", &other, "--to", "oci:layout:other", "--member", "producer", "--layout", "split"]);
    world.good(&["pack", &other, "--to", "oci:layout:new", "--member", "new"]);
    let application = ["link", "--to", "oci:layout:epoch-2", "--application", "ledger"];
    let members = ["consumer=oci:layout:consumer", "producer=oci:layout:other", "new=oci:layout:new"];
    world.good(&[&application[..], &members].concat());
    let answer = world.good(&["diff", "oci:layout:epoch-1", "oci:layout:epoch-2"]);
    let lines: Vec<_> = answer.lines().take(4).collect();
    assert_eq!(lines, ["+ new", "- auditor", "= consumer", "~ producer"], "{answer}");
    assert!(answer.contains("memory     not compared"), "{answer}");
    let answer = world.good(&["diff", "-v", "oci:layout:epoch-1", "oci:layout:epoch-2"]);
    assert!(answer.contains("      - /"), "files of the old one are named: {answer}");
    world.bad(2, &["diff", "oci:layout:epoch-1", "oci:layout:consumer"]);
    world.bad(3, &["diff", "oci:layout:epoch-1", "oci:layout:epoch-9"]);
}
