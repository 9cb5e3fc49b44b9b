//! From dumps to a signed global checkpoint in an OCI layout and back, with every answer as people and scripts see it.

use crate::common::{World, fixture, link, pack_members};

const LAYOUT: &str = "oci:layout";

/// Everything packed, linked and signed.
fn made() -> World {
    let world = World::new();
    world.good(&["key", "generate"]);
    pack_members(&world, LAYOUT);
    link(&world, LAYOUT, "epoch-1", &["--sign-by", "cosign.key"]);
    world
}

#[test]
fn every_answer_for_people() {
    let world = World::new();
    let mut answers = String::new();
    let consumer = fixture("set/consumer.tar.zst");
    for arguments in [
        &["key", "generate"][..],
        &["pack", &consumer, "--to", "oci:layout:consumer", "--member", "consumer"],
        &["link", "--to", "oci:layout:epoch-1", "--application", "ledger", "consumer=oci:layout:consumer"],
        &["sign", "--key", "cosign.key", "oci:layout:epoch-1"],
        &["verify", "--key", "cosign.pub", "oci:layout:epoch-1"],
        &["copy", "oci:layout:epoch-1", "oci:copy"],
        &["push", "oci:layout:epoch-1", "oci:copy"],
        &["list", "oci:copy"],
        &["inspect", "--key", "cosign.pub", "oci:copy:epoch-1"],
        &["inspect", "-v", "--key", "cosign.pub", "oci:copy:epoch-1"],
        &["unpack", "oci:copy:epoch-1", "--member", "consumer", "--to", "consumer.tar"],
    ] {
        answers += &format!(
            "$ syncpoint {}\n{}\n",
            arguments.join(" ").replace(&consumer, "consumer.tar.zst"),
            world.good(arguments)
        );
    }
    insta::assert_snapshot!(world.redact(&answers));
}

#[test]
fn every_answer_for_scripts() {
    let world = made();
    let auditor = fixture("set/auditor.tar.zst");
    let mut answers = String::new();
    for arguments in [
        &["key", "generate", "--output-prefix", "other"][..],
        &["pack", &auditor, "--to", "oci:layout:again", "--member", "auditor"],
        &[
            "link",
            "--to",
            "oci:layout:epoch-2",
            "--application",
            "ledger",
            "auditor=oci:layout:auditor",
            "--depends-on",
            "auditor=",
        ],
        &["sign", "--key", "cosign.key", "oci:layout:epoch-2"],
        &["verify", "--key", "cosign.pub", "oci:layout:epoch-2"],
        &["copy", "oci:layout:epoch-2", "oci:copy"],
        &["list", "oci:layout"],
        &["inspect", "oci:layout:epoch-2"],
        &["unpack", "oci:layout:epoch-1", "--member", "auditor", "--to", "auditor"],
    ] {
        let arguments: Vec<_> = arguments.iter().copied().chain(["--json"]).collect();
        let answer = world.good(&arguments);
        serde_json::from_str::<serde_json::Value>(&answer).unwrap();
        answers += &format!("$ syncpoint {}\n{answer}\n", arguments.join(" ").replace(&auditor, "auditor.tar.zst"));
    }
    insta::assert_snapshot!(world.redact(&answers));
}

#[test]
fn three_members_fit_on_a_screen() {
    let world = made();
    let lines = |arguments: &[&str]| world.good(arguments).lines().count();
    let short = lines(&["inspect", "--key", "cosign.pub", "oci:layout:epoch-1"]);
    let long = lines(&["inspect", "-v", "--key", "cosign.pub", "oci:layout:epoch-1"]);
    assert!(short <= 28 && long > 50, "{short} and {long} lines");
}

#[test]
fn quiet_answers_are_one_line() {
    let world = World::new();
    let dump = fixture("podman-plain.tar.zst");
    let packed = world.good(&["pack", "-q", &dump, "--to", "oci:layout:plain"]);
    assert!(packed.starts_with("oci:layout@sha256:") && packed.lines().count() == 1, "{packed}");
    let copied = world.good(&["copy", "-q", packed.trim(), "oci:copy:plain"]);
    assert_eq!(copied, packed.replace("oci:layout", "oci:copy"));
    assert_eq!(world.good(&["list", "-q", "oci:layout"]), "");
    assert_eq!(world.run(&["pack", "-q", &dump, "--to", "oci:layout:plain"]).err, "");
}

#[test]
fn what_was_packed_comes_out_again() {
    let world = World::new();
    for (dump, unpacked) in [("podman-zstd.tar.zst", "a.tar"), ("podman-none.tar", "b.tar.zst"), ("cri-o.tar", "c.tgz")]
    {
        let first = world.good(&["pack", "-q", &fixture(dump), "--to", "oci:layout:first"]);
        world.good(&["unpack", "oci:layout:first", "--to", unpacked]);
        let second = world.good(&["pack", "-q", world.path(unpacked).to_str().unwrap(), "--to", "oci:layout:second"]);
        assert_eq!(first, second, "{dump}");
    }
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt;
        world.path(name).metadata().unwrap().permissions().mode() & 0o777
    };
    world.good(&["key", "generate"]);
    assert_eq!((mode("a.tar"), mode("cosign.key")), (0o600, 0o600));
}

#[test]
fn linking_again_is_the_same_and_linking_on_counts() {
    let world = made();
    let first = link(&world, LAYOUT, "epoch-1", &["-q", "--epoch", "1"]);
    assert_eq!(first, link(&world, LAYOUT, "epoch-1", &["-q", "--epoch", "1"]));
    let second = link(&world, LAYOUT, "epoch-2", &["--json"]);
    let second: serde_json::Value = serde_json::from_str(&second).unwrap();
    assert_eq!(
        (&second["epoch"], format!("oci:layout@{}\n", second["predecessor"].as_str().unwrap())),
        (&2.into(), first)
    );
    // The tag of a checkpoint does not go back.
    let members = ["consumer=oci:layout:consumer"];
    let back = |more: &[&str]| {
        let arguments = ["link", "--to", "oci:layout:epoch-2", "--application", "ledger"];
        world.bad(2, &[&arguments[..], more, &members[..]].concat())
    };
    assert!(back(&["--epoch", "2"]).contains("is epoch 2 of ledger already"));
    assert!(back(&["--epoch", "1"]).contains("the predecessor has epoch 2"));
    assert!(back(&["--epoch", "1", "--predecessor", "none"]).contains("is epoch 2 of ledger already"));
    // A tag that names something else stays what it is.
    let elsewhere = ["link", "--application", "ledger", members[0], "--to"];
    assert!(world.bad(2, &[&elsewhere[..], &["oci:layout:auditor"]].concat()).contains("names a checkpoint image"));
    let other = ["link", "--application", "other", members[0], "--to", "oci:layout:epoch-2"];
    assert!(world.bad(2, &other).contains("is a global checkpoint of ledger"));
}

#[test]
fn members_from_elsewhere_are_brought_along() {
    let world = World::new();
    pack_members(&world, "oci:a");
    world.good(&[
        "link",
        "--to",
        "oci:b:epoch-1",
        "--application",
        "ledger",
        "consumer=oci:a:consumer",
        "producer=oci:a:producer",
    ]);
    std::fs::remove_dir_all(world.path("a")).unwrap();
    world.good(&["verify", "--insecure-no-signature", "oci:b:epoch-1"]);
}

#[test]
fn images_that_podman_made_are_members_too() {
    let world = World::new();
    let image = format!("oci:{}:1", fixture("podman-image"));
    let linked =
        world.good(&["link", "--json", "--to", "oci:a:epoch-1", "--application", "one", &format!("imaged={image}")]);
    let linked: serde_json::Value = serde_json::from_str(&linked).unwrap();
    assert!(linked["created"].as_str().unwrap().starts_with("20"), "{linked}");
    assert!(world.good(&["inspect", "oci:a:epoch-1"]).contains("member imaged"));
}

#[test]
fn an_unsigned_copy_is_not_good() {
    let world = made();
    world.good(&["copy", "--no-signatures", "oci:layout:epoch-1", "oci:copy"]);
    let said = world.bad(5, &["verify", "--key", "cosign.pub", "oci:copy:epoch-1"]);
    assert!(said.contains("is not signed"), "{said}");
    world.good(&["key", "generate", "--output-prefix", "other"]);
    let said = world.bad(5, &["verify", "--key", "other.pub", "oci:layout:epoch-1"]);
    assert!(said.contains("has no signature that holds"), "{said}");
    let json = world.run(&["verify", "--json", "--key", "other.pub", "oci:layout:epoch-1"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json.out).unwrap()["good"], false);
}

#[test]
fn a_timeline_is_drawn_from_what_is_stored() {
    let world = made();
    let text = r#"{"barriers":[{"hook":"post-dump","opened":80000}],"members":[{"bytes_sent":7,"frozen":[1000,85000],"id":"auditor"}],"started":"2026-02-03T04:05:06Z"}"#;
    let annotation = format!("io.syncpoint.timeline={text}");
    link(&world, "oci:layout", "drawn", &["--annotation", &annotation]);
    let said = world.good(&["inspect", "oci:layout:drawn", "--timeline", "a.svg"]);
    assert!(said.contains("frozen for at most 84 ms") && !said.contains("bytes_sent"), "{said}");
    let picture = std::fs::read_to_string(world.path("a.svg")).unwrap();
    assert!(picture.contains("auditor: frozen for 84 ms") && picture.contains("ledger, epoch"), "{picture}");
    let json = world.good(&["inspect", "oci:layout:drawn", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["global"]["timeline"], serde_json::from_str::<serde_json::Value>(text).unwrap());

    let said = world.bad(3, &["inspect", "oci:layout:epoch-1", "--timeline", "b.svg"]);
    assert!(said.contains("oci:layout:epoch-1 was made without a timeline"), "{said}");
    world.bad(2, &["inspect", "oci:layout:auditor", "--timeline", "b.svg"]);
    world.bad(2, &["inspect", "./dump.tar", "--timeline", "b.svg"]);
    world.bad(3, &["inspect", "oci:layout:drawn", "--timeline", "nowhere/b.svg"]);
    link(&world, "oci:layout", "damaged", &["--annotation", "io.syncpoint.timeline=none"]);
    let said = world.bad(6, &["inspect", "oci:layout:damaged", "--timeline", "b.svg"]);
    assert!(said.contains("the timeline cannot be read"), "{said}");
    assert!(world.good(&["inspect", "oci:layout:damaged"]).contains("the timeline cannot be read"));
    assert!(!world.path("b.svg").exists());
}
