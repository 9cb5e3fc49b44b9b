//! Manifests, indexes and layouts: each case is a good global checkpoint in which one thing is changed.

use std::fs;
use std::os::unix::fs::symlink;

use image_format::annotation::{MEDIA_INDEX, MEDIA_LAYER, MEDIA_MANIFEST};
use serde_json::json;

use super::Arena;
use super::layout::{Good, MEMBER};
use super::registries::Server;

/// What a command makes of a case: its exit code, and words of its answer.
type Answer = (i32, &'static [&'static str]);

/// A case: its name, what is changed, and what comes of it.
pub struct Case {
    name: &'static str,
    change: fn(&mut Good),
    verify: Answer,
    inspect: Answer,
    copy: Answer,
    unpack: Answer,
}

const DAMAGED: i32 = 6;
/// What `verify` ends with whatever it finds.
const NOT_GOOD: i32 = 5;
const GOOD: Answer = (0, &[]);

fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "a cyclic dependency",
            change: |good| good.entry()["annotations"]["io.syncpoint.depends-on"] = "auditor".into(),
            verify: (NOT_GOOD, &["depend on one another in a circle"]),
            inspect: (DAMAGED, &["depend on one another in a circle"]),
            copy: GOOD,
            unpack: (DAMAGED, &["depend on one another in a circle"]),
        },
        Case {
            name: "a member that depends on nobody known",
            change: |good| good.entry()["annotations"]["io.syncpoint.depends-on"] = "nobody".into(),
            verify: (NOT_GOOD, &["no such member"]),
            inspect: (DAMAGED, &["consumer", "depends on nobody", "no such member"]),
            copy: GOOD,
            unpack: (DAMAGED, &["no such member"]),
        },
        Case {
            name: "a member twice",
            change: |good| {
                let entry = good.entry().clone();
                good.index["manifests"].as_array_mut().unwrap().push(entry);
            },
            verify: (NOT_GOOD, &["has the member consumer twice"]),
            inspect: (DAMAGED, &["has the member consumer twice"]),
            copy: GOOD,
            unpack: (DAMAGED, &["has the member consumer twice"]),
        },
        Case {
            name: "a newer index",
            change: |good| good.index["annotations"]["io.syncpoint.format"] = "2.0".into(),
            verify: (NOT_GOOD, &["is of format version 2.0"]),
            inspect: (DAMAGED, &["is of format version 2.0", "use a newer syncpoint"]),
            copy: GOOD,
            unpack: (DAMAGED, &["is of format version 2.0", "use a newer syncpoint"]),
        },
        Case {
            name: "a newer member",
            change: |good| good.change_manifest(|it| it["annotations"]["io.syncpoint.format"] = "2.0".into()),
            verify: (NOT_GOOD, &["is of format version 2.0"]),
            inspect: (DAMAGED, &["is of format version 2.0", "use a newer syncpoint"]),
            copy: GOOD,
            unpack: (DAMAGED, &["is of format version 2.0", "use a newer syncpoint"]),
        },
        Case {
            name: "a layer whose digest differs",
            change: |good| {
                let state = good.state();
                good.change_blob(&state, |bytes| bytes[100] ^= 1);
            },
            verify: (NOT_GOOD, &["the blob sha256:", "its bytes have the digest"]),
            inspect: (DAMAGED, &["blob sha256:", "its bytes have the digest"]),
            copy: (DAMAGED, &["blob sha256:", "its bytes have the digest"]),
            unpack: (DAMAGED, &["blob sha256:", "its bytes have the digest"]),
        },
        Case {
            name: "a manifest whose digest differs",
            change: |good| {
                let digest = good.entry()["digest"].as_str().unwrap().to_owned();
                good.change_blob(&digest, |bytes| *bytes.last_mut().unwrap() = b' ');
            },
            verify: (NOT_GOOD, &["the manifest sha256:", "its bytes have another digest"]),
            inspect: (DAMAGED, &["PROBLEMS", "its bytes have another digest"]),
            copy: (DAMAGED, &["manifest sha256:", "its bytes have"]),
            unpack: (DAMAGED, &["manifest sha256:", "its bytes have"]),
        },
        Case {
            name: "an index that names a missing manifest",
            change: |good| {
                let digest = good.entry()["digest"].as_str().unwrap().to_owned();
                fs::remove_file(good.layout.blob(&digest)).unwrap();
            },
            verify: (NOT_GOOD, &["the manifest sha256:", "is missing"]),
            inspect: (0, &["PROBLEMS", "is missing"]),
            copy: (3, &["manifest sha256:", " is not in "]),
            unpack: (3, &["manifest sha256:", " is not in "]),
        },
        Case {
            name: "a manifest that names a missing layer",
            change: |good| {
                let state = good.state();
                fs::remove_file(good.layout.blob(&state)).unwrap();
            },
            verify: (NOT_GOOD, &["the blob sha256:", "is missing"]),
            inspect: (0, &["PROBLEMS", "is missing"]),
            copy: (3, &["blob sha256:", " is not in "]),
            unpack: (3, &["blob sha256:", " is not in "]),
        },
        Case {
            name: "a manifest of 100 MB",
            change: |good| good.set_manifest(&vec![b' '; 100 << 20]),
            verify: (NOT_GOOD, &["104857600 bytes", "4194304"]),
            inspect: (DAMAGED, &["PROBLEMS", "104857600 bytes", "4194304"]),
            copy: (DAMAGED, &["104857600", "4194304"]),
            unpack: (DAMAGED, &["104857600", "4194304"]),
        },
        Case {
            name: "a manifest nested 10,000 deep",
            change: |good| {
                let deep = [b"{\"a\":".repeat(10_000), b"1".to_vec(), b"}".repeat(10_000)].concat();
                good.set_manifest(&deep);
            },
            verify: (NOT_GOOD, &["neither an image manifest nor an index"]),
            inspect: (DAMAGED, &["manifest sha256:", "neither an image manifest nor an index"]),
            copy: (DAMAGED, &["manifest sha256:", "neither an image manifest nor an index"]),
            unpack: (DAMAGED, &["manifest sha256:", "neither an image manifest nor an index"]),
        },
        Case {
            name: "annotations nested 10,000 deep",
            change: |good| {
                let manifest = good.manifest().to_string();
                let deep = ["{\"a\":".repeat(10_000), "1".to_owned(), "}".repeat(10_000)].concat();
                good.set_manifest(manifest.replacen('{', &format!("{{\"x\":{deep},"), 1).as_bytes());
            },
            verify: (NOT_GOOD, &["nested deeper than"]),
            inspect: (DAMAGED, &["a manifest that cannot be read", "nested deeper than"]),
            copy: GOOD,
            unpack: (DAMAGED, &["a manifest that cannot be read", "nested deeper than"]),
        },
        Case {
            name: "an index that says it is a manifest",
            change: |good| good.index["mediaType"] = MEDIA_MANIFEST.into(),
            verify: (NOT_GOOD, &["a manifest that cannot be read"]),
            inspect: (DAMAGED, &["a manifest that cannot be read"]),
            copy: GOOD,
            unpack: (DAMAGED, &["a manifest that cannot be read"]),
        },
        Case {
            name: "a member in Docker's format",
            change: |good| {
                let docker = "application/vnd.docker.distribution.manifest.v2+json";
                good.entry()["mediaType"] = docker.into();
                good.change_manifest(|it| it["mediaType"] = docker.into());
            },
            verify: (NOT_GOOD, &["an entry at position 1"]),
            inspect: (DAMAGED, &["an entry at position 1 that is not an image manifest"]),
            copy: GOOD,
            unpack: (DAMAGED, &["an entry at position 1 that is not an image manifest"]),
        },
        Case {
            name: "a config that is none",
            change: |good| good.change_manifest(|it| it["config"]["mediaType"] = "text/plain".into()),
            verify: (NOT_GOOD, &["has a config of type \"text/plain\""]),
            inspect: (DAMAGED, &["has a config of type \"text/plain\""]),
            copy: GOOD,
            unpack: (DAMAGED, &["has a config of type \"text/plain\""]),
        },
        Case {
            name: "a layer of another kind",
            change: |good| good.change_manifest(|it| it["layers"][0]["mediaType"] = "application/zip".into()),
            verify: (NOT_GOOD, &["\"application/zip\" at position 0"]),
            inspect: (DAMAGED, &["\"application/zip\" at position 0"]),
            copy: GOOD,
            unpack: (DAMAGED, &["\"application/zip\" at position 0"]),
        },
        Case {
            name: "a layer that is called what it is not",
            change: |good| {
                good.change_manifest(|it| it["layers"][0]["mediaType"] = format!("{MEDIA_LAYER}+gzip").into())
            },
            verify: (NOT_GOOD, &["cannot be restored", "not usable"]),
            inspect: (DAMAGED, &["layer sha256:", "not usable"]),
            copy: GOOD,
            unpack: (DAMAGED, &["layer sha256:", "not usable"]),
        },
        Case {
            name: "a layer that is larger than it says",
            change: |good| good.change_manifest(|it| it["layers"][0]["size"] = 7.into()),
            verify: (NOT_GOOD, &["bytes where", "says"]),
            inspect: (DAMAGED, &["sha256:", " bytes instead of "]),
            copy: (DAMAGED, &["blob sha256:", "is damaged", " bytes"]),
            unpack: (DAMAGED, &["sha256:", " bytes instead of "]),
        },
        Case {
            name: "a layer that says exabytes",
            change: |good| good.change_manifest(|it| it["layers"][0]["size"] = (1_u64 << 62).into()),
            verify: (NOT_GOOD, &["bytes where", "says"]),
            inspect: (DAMAGED, &["sha256:", " bytes instead of "]),
            copy: (DAMAGED, &["blob sha256:", "is damaged", " bytes"]),
            unpack: (DAMAGED, &["sha256:", " bytes instead of "]),
        },
        Case {
            name: "layers beyond all measure",
            change: |good| {
                good.change_manifest(|it| {
                    it["layers"][0]["size"] = u64::MAX.into();
                    it["layers"][1]["size"] = u64::MAX.into();
                });
            },
            verify: (NOT_GOOD, &["beyond all measure"]),
            inspect: (DAMAGED, &["layers whose sizes are beyond all measure"]),
            copy: (DAMAGED, &["blob sha256:", "is damaged"]),
            unpack: (DAMAGED, &["layers whose sizes are beyond all measure"]),
        },
        Case {
            name: "a manifest that is larger than the index says",
            change: |good| good.entry()["size"] = 7.into(),
            verify: (NOT_GOOD, &["bytes where", "says 7"]),
            inspect: (DAMAGED, &[]),
            copy: (DAMAGED, &["manifest sha256:", "which is not what refers to it says"]),
            unpack: (DAMAGED, &["manifest sha256:", "bytes where what refers to it says 7"]),
        },
        Case {
            name: "a config of a gigabyte",
            change: |good| good.change_manifest(|it| it["config"]["size"] = (1_u64 << 30).into()),
            verify: (NOT_GOOD, &["bytes where", "says 1073741824"]),
            inspect: (DAMAGED, &["blob sha256:", "is damaged"]),
            copy: (DAMAGED, &["blob sha256:", "is damaged"]),
            unpack: (DAMAGED, &["blob sha256:", "is damaged"]),
        },
        Case {
            name: "a digest of another kind",
            change: |good| good.change_manifest(|it| it["config"]["digest"] = format!("md5:{}", "0".repeat(32)).into()),
            verify: (NOT_GOOD, &["it is not a manifest or index"]),
            inspect: (DAMAGED, &["manifest sha256:", "it is not a manifest or index"]),
            copy: (DAMAGED, &["manifest sha256:", "it is not a manifest or index"]),
            unpack: (DAMAGED, &["manifest sha256:", "it is not a manifest or index"]),
        },
        Case {
            name: "a digest that is a path",
            change: |good| good.change_manifest(|it| it["config"]["digest"] = "sha256:../../../outside".into()),
            verify: (NOT_GOOD, &["it is not a manifest or index"]),
            inspect: (DAMAGED, &["manifest sha256:", "it is not a manifest or index"]),
            copy: (DAMAGED, &["manifest sha256:", "it is not a manifest or index"]),
            unpack: (DAMAGED, &["manifest sha256:", "it is not a manifest or index"]),
        },
    ]
}

#[test]
fn bad_checkpoints_are_refused() {
    let arena = Arena::new();
    let good = Good::prepare(&arena);
    for Case { name, change, verify, inspect, copy, unpack } in cases() {
        let mut changed = Good::copy(&arena, &good);
        change(&mut changed);
        changed.tag();
        let bad = changed.layout.reference("bad");
        let remote = Server::start(&arena.input("layout"), None).reference("bad");
        for ((code, says), arguments) in [
            (verify, &["verify", "--insecure-no-signature", &bad][..]),
            (inspect, &["inspect", &bad]),
            (unpack, &["unpack", &bad, "--member", MEMBER, "--to", "dump.tar"]),
            (unpack, &["unpack", &bad, "--member", MEMBER, "--to", "dump/"]),
            (copy, &["copy", &bad, "oci:layout:a"]),
            (copy, &["pull", "--plain-http", "--retries", "0", &remote, "oci:layout:a"]),
        ] {
            arena.ends(name, code, says, arguments);
            if code != 0 {
                arena.assert_untagged(name);
                assert!(!arena.left().iter().any(|path| path.starts_with(arena.output("dump"))), "{name}");
            }
        }
        changed.layout.remove();
    }
}

#[test]
fn bad_layouts_are_refused() {
    type Change = fn(&Arena, &Good);
    let cases: [(&str, Change, &[&str]); 6] = [
        (
            "a newer layout",
            |_, good| good.layout.write("oci-layout", br#"{"imageLayoutVersion":"2.0.0"}"#),
            &["1.0.0 is understood"],
        ),
        ("an endless marker", |_, good| good.layout.write("oci-layout", &[b' '; 1 << 20]), &["oci-layout", "accepted"]),
        (
            "an index.json of 100 MB",
            |_, good| good.layout.write("index.json", &vec![b' '; 100 << 20]),
            &["index.json", "accepted"],
        ),
        (
            "an index.json nested 10,000 deep",
            |_, good| {
                good.layout
                    .write("index.json", &[&br#"{"schemaVersion":2,"manifests":"#[..], &b"[".repeat(10_000)].concat())
            },
            &["index.json"],
        ),
        (
            "a tag whose digest is a path",
            |_, good| {
                good.layout.tag_descriptor(
                    "bad",
                    json!({"mediaType": MEDIA_INDEX, "digest": "sha256:../../outside", "size": 9}),
                )
            },
            &["index.json", "is not a digest of the form"],
        ),
        (
            "blobs that are links out",
            |arena, good| {
                good.tag();
                let blobs = good.layout.0.join("blobs");
                fs::rename(&blobs, arena.input("elsewhere")).unwrap();
                symlink(arena.input("elsewhere"), blobs).unwrap();
            },
            &["blobs"],
        ),
    ];
    let arena = Arena::new();
    let good = Good::prepare(&arena);
    for (name, change, says) in cases {
        let changed = Good::copy(&arena, &good);
        change(&arena, &changed);
        let bad = changed.layout.reference("bad");
        for arguments in [
            &["verify", "--insecure-no-signature", &bad][..],
            &["inspect", &bad],
            &["list", &bad[..bad.len() - 4]],
            &["unpack", &bad, "--member", MEMBER, "--to", "dump.tar"],
            &["copy", &bad, "oci:layout:a"],
        ] {
            arena.ends(name, DAMAGED, says, arguments);
            arena.assert_untagged(name);
        }
        changed.layout.remove();
    }
}
