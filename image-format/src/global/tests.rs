use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{Artifact, ArtifactError};

fn repository(path: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", path].iter().collect()
}

fn entry(id: &str, depends_on: &[&str]) -> MemberEntry {
    MemberEntry {
        id: id.parse().unwrap(),
        depends_on: depends_on.iter().map(|id| id.parse().unwrap()).collect(),
        manifest: Descriptor { media_type: MEDIA_MANIFEST.to_owned(), digest: Digest::of(id.as_bytes()), size: 1234 },
        annotations: BTreeMap::new(),
    }
}

fn global(members: Vec<MemberEntry>) -> Result<GlobalCheckpoint, GlobalError> {
    GlobalCheckpoint::new(
        "pb-test-20260203-00001".parse().unwrap(),
        Epoch(7),
        Some(Digest::of(b"the one before")),
        "2026-02-03T04:05:06.789Z".to_owned(),
        members,
        [("org.opencontainers.image.description".to_owned(), "before the upgrade".to_owned())].into(),
    )
}

fn sample() -> GlobalCheckpoint {
    let mut receive = entry("receive-0", &["emulator-0"]);
    receive.annotations.insert("org.opencontainers.image.title".to_owned(), "receive".to_owned());
    global(vec![receive, entry("emulator-0", &[]), entry("archive", &["receive-0", "emulator-0"])]).unwrap()
}

fn index(value: &Value) -> Document {
    Document::new(MEDIA_INDEX, serde_json::to_vec(value).unwrap())
}

fn value(document: &Document) -> Value {
    serde_json::from_slice(document.bytes()).unwrap()
}

fn message(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn the_index_is_as_specified() {
    insta::assert_snapshot!("index", serde_json::to_string_pretty(&value(&sample().to_document().unwrap())).unwrap());
}

#[test]
fn what_is_written_is_what_is_read() {
    let global = sample();
    let document = global.to_document().unwrap();
    let again = GlobalCheckpoint::parse(&document).unwrap();
    assert_eq!(again, global);
    assert_eq!(again.to_document().unwrap(), document);
    assert_eq!(Artifact::parse(&document).unwrap(), Artifact::Global(global));
    let ids: Vec<_> = again.members().iter().map(|member| member.id.as_str()).collect();
    assert_eq!(ids, ["archive", "emulator-0", "receive-0"]);
    assert_eq!(again.member(&"emulator-0".parse().unwrap()).unwrap().manifest.digest, Digest::of(b"emulator-0"));
    assert_eq!(again.member(&"emulator".parse().unwrap()), None);
    assert_eq!(again.manifests().len(), 3);
}

#[test]
fn every_version_is_read() {
    let folder = repository("fixtures/format-versions");
    for file in std::fs::read_dir(&folder).unwrap() {
        let file = file.unwrap();
        if let Some(_version) = file.file_name().to_str().unwrap().strip_suffix("-global.json") {
            GlobalCheckpoint::parse(&Document::new(MEDIA_INDEX, std::fs::read(file.path()).unwrap())).unwrap();
        }
    }
    let current = std::fs::read(folder.join(format!("{FORMAT_VERSION}-global.json"))).unwrap();
    assert_eq!(current, sample().to_document().unwrap().bytes());
}

#[test]
fn the_timeline_is_carried_and_nothing_rests_on_it() {
    let timeline = Timeline { started: "2026-02-03T04:05:06Z".to_owned(), ..Timeline::default() };
    assert_eq!(sample().timeline().unwrap(), None);
    let document = sample().with_timeline(&timeline).unwrap().to_document().unwrap();
    assert_eq!(GlobalCheckpoint::parse(&document).unwrap().timeline().unwrap(), Some(timeline));
    let mut damaged = value(&document);
    damaged["annotations"][TIMELINE] = json!("none");
    let damaged = GlobalCheckpoint::parse(&index(&damaged)).unwrap();
    assert!(damaged.timeline().is_err());
}

#[test]
fn members_start_in_waves() {
    let set =
        global(vec![entry("d", &["b", "c"]), entry("c", &["a"]), entry("b", &["a"]), entry("a", &[]), entry("x", &[])]);
    let set = set.unwrap();
    let waves: Vec<Vec<&str>> =
        set.start_order().iter().map(|wave| wave.iter().map(|member| member.id.as_str()).collect()).collect();
    assert_eq!(waves, [vec!["a", "x"], vec!["b", "c"], vec!["d"]]);
}

#[test]
fn sets_that_cannot_be_started_are_refused() {
    let table = [
        (vec![], "has no members"),
        (vec![entry("a", &[]), entry("a", &[])], "has the member a twice"),
        (vec![entry("a", &["b"])], "the member a, which depends on b, and no such member"),
        (vec![entry("a", &["a"])], "in a circle: a -> a"),
        (vec![entry("a", &["b", "b"]), entry("b", &[])], "the member a, which depends on b twice"),
        (
            vec![entry("x", &["a"]), entry("a", &["b"]), entry("b", &["c"]), entry("c", &["a"])],
            "in a circle: a -> b -> c -> a",
        ),
        (vec![entry("a", &["b"]), entry("b", &["c"]), entry("c", &["b"])], "in a circle: b -> c -> b"),
    ];
    for (members, expected) in table {
        let error = global(members).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let long = (0..100).map(|n| entry(&format!("m{n:03}"), &[&format!("m{:03}", (n + 1) % 100)])).collect();
    let error = global(long).unwrap_err().to_string();
    assert!(error.ends_with("m015 -> ... -> m000"), "{error}");
}

#[test]
fn large_sets_have_an_end() {
    let set = |count: usize| global((0..count).map(|n| entry(&format!("m{n:04}"), &[])).collect());
    let most = set(MAX_MEMBERS).unwrap();
    let document = most.to_document().unwrap();
    assert_eq!(GlobalCheckpoint::parse(&document).unwrap(), most);
    assert!(matches!(set(MAX_MEMBERS + 1), Err(GlobalError::TooManyMembers { count: 4097 })));

    let mut chain: Vec<_> =
        (1..MAX_MEMBERS).map(|n| entry(&format!("m{n:04}"), &[&format!("m{:04}", n - 1)])).collect();
    chain.push(entry("m0000", &[]));
    assert_eq!(global(chain).unwrap().start_order().len(), MAX_MEMBERS);

    let mut wordy = entry("a", &[]);
    wordy.annotations.insert("note".to_owned(), "x".repeat(5 << 20));
    let error = global(vec![wordy]).unwrap().to_document().unwrap_err().to_string();
    assert!(error.contains("the index would have") && error.contains("registries take 4194304"), "{error}");
    let large = Document::new(MEDIA_INDEX, vec![b' '; 100 << 20]);
    assert!(message(&GlobalCheckpoint::parse(&large).unwrap_err()).contains("at most 4194304"));
}

type Change = fn(&mut Value);

#[test]
fn indexes_that_cannot_be_used_are_refused() {
    let table: &[(Change, &str)] = &[
        (|i| *i = json!(7), "cannot be read"),
        (|i| i["manifests"] = json!({}), "cannot be read"),
        (|i| i["schemaVersion"] = json!(3), "schema version 3"),
        (|i| i["mediaType"] = json!("application/x"), "not an OCI index but \"application/x\""),
        (|i| i["artifactType"] = json!("application/x"), "its artifact type is \"application/x\""),
        (|i| drop(i.as_object_mut().unwrap().remove("artifactType")), "its artifact type is \"\""),
        (
            |i| drop(i["annotations"].as_object_mut().unwrap().remove(FORMAT)),
            "lacks the annotation io.syncpoint.format",
        ),
        (|i| i["annotations"][FORMAT] = json!("2.0"), "use a newer syncpoint"),
        (
            |i| *i = json!({"artifactType": "application/vnd.syncpoint.global-checkpoint.v2", "annotations": {FORMAT: "2.1"}}),
            "format version 2.1",
        ),
        (|i| drop(i["annotations"].as_object_mut().unwrap().remove(EPOCH)), "lacks the annotation io.syncpoint.epoch"),
        (|i| i["annotations"][EPOCH] = json!("-1"), "io.syncpoint.epoch, but"),
        (|i| i["annotations"][EPOCH] = json!("+1"), "io.syncpoint.epoch, but"),
        (|i| i["annotations"][EPOCH] = json!("18446744073709551616"), "io.syncpoint.epoch, but"),
        (|i| i["annotations"][APPLICATION] = json!("a/b"), "io.syncpoint.application, but"),
        (|i| i["annotations"][PREDECESSOR] = json!("latest"), "io.syncpoint.predecessor, but"),
        (|i| i["annotations"][CREATED] = json!("now"), "\"now\" is not an RFC 3339 time"),
        (|i| i["manifests"] = json!([]), "no members"),
        (|i| i["manifests"][1]["mediaType"] = json!(MEDIA_INDEX), "position 1 that is not an image manifest"),
        (|i| i["manifests"][1]["digest"] = json!(format!("sha384:{}", "0".repeat(96))), "not SHA-256"),
        (|i| i["manifests"][1]["annotations"] = json!({}), "position 1 that lacks the annotation io.syncpoint.member"),
        (|i| i["manifests"][1]["annotations"][MEMBER] = json!(".."), "position 1 that has no member id"),
        (
            |i| i["manifests"][1]["annotations"][DEPENDS_ON] = json!("a b"),
            "position 1 that has the annotation io.syncpoint.depends-on",
        ),
        (|i| i["manifests"][1]["annotations"][MEMBER] = json!("archive"), "member archive twice"),
        (|i| i["manifests"][1]["annotations"][DEPENDS_ON] = json!("archive"), "in a circle: archive -> "),
        (|i| i["manifests"][1]["annotations"][DEPENDS_ON] = json!("nobody"), "no such member"),
    ];
    for (position, (change, expected)) in table.iter().enumerate() {
        let mut value = value(&sample().to_document().unwrap());
        change(&mut value);
        let message = message(&GlobalCheckpoint::parse(&index(&value)).unwrap_err());
        assert!(message.contains(expected), "{position}: {message}");
    }
}

#[test]
fn annotations_of_the_format_cannot_be_given() {
    let mut taken = entry("a", &[]);
    taken.annotations.insert(MEMBER.to_owned(), "b".to_owned());
    assert!(global(vec![taken]).unwrap_err().to_string().contains("io.syncpoint.member belongs to the format"));
}

#[test]
fn annotations_that_are_not_known_stay() {
    let mut value = value(&sample().to_document().unwrap());
    value["annotations"]["io.syncpoint.timings"] = json!("later");
    value["annotations"][FORMAT] = json!("1.3");
    value["manifests"][0]["artifactType"] = json!("application/x");
    let global = GlobalCheckpoint::parse(&index(&value)).unwrap();
    assert_eq!(global.annotations()["io.syncpoint.timings"], "later");
    assert_eq!(global.members()[2].annotations["org.opencontainers.image.title"], "receive");
}

#[test]
fn artifacts_are_told_by_their_media_type() {
    let bytes = sample().to_document().unwrap().bytes().to_vec();
    let parse = |media_type: &str| Artifact::parse(&Document::new(media_type, bytes.clone()));
    assert!(matches!(
        parse("application/vnd.docker.distribution.manifest.list.v2+json"),
        Err(ArtifactError::Image(ImageError::Docker { .. }))
    ));
    assert!(matches!(
        parse("application/vnd.docker.distribution.manifest.v2+json"),
        Err(ArtifactError::Image(ImageError::Docker { .. }))
    ));
    assert!(matches!(parse(MEDIA_MANIFEST), Err(ArtifactError::Image(_))));
    assert!(matches!(parse("text/html"), Err(ArtifactError::MediaType { .. })));
}

mod schema {
    use super::*;

    fn validate(value: &Value) -> Result<(), String> {
        let text = std::fs::read_to_string(repository("docs/global-checkpoint.schema.json")).unwrap();
        let mut compiler = boon::Compiler::new();
        compiler.add_resource("schema.json", serde_json::from_str(&text).unwrap()).unwrap();
        let mut schemas = boon::Schemas::new();
        let schema = compiler.compile("schema.json", &mut schemas).unwrap();
        schemas.validate(value, schema).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_valid() {
        validate(&value(&sample().to_document().unwrap())).unwrap();
        let bare = GlobalCheckpoint::new(
            "a".parse().unwrap(),
            Epoch(u64::MAX),
            None,
            "2026-02-03T04:05:06Z".to_owned(),
            vec![entry("m", &[])],
            BTreeMap::new(),
        );
        validate(&value(&bare.unwrap().to_document().unwrap())).unwrap();
    }

    #[test]
    fn fixtures_are_valid() {
        let path = repository("fixtures/format-versions").join(format!("{FORMAT_VERSION}-global.json"));
        validate(&serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).unwrap();
    }

    #[test]
    fn what_readers_refuse_is_not_valid() {
        let table: &[Change] = &[
            |i| drop(i.as_object_mut().unwrap().remove("artifactType")),
            |i| i["schemaVersion"] = json!(1),
            |i| i["mediaType"] = json!(MEDIA_MANIFEST),
            |i| i["manifests"] = json!([]),
            |i| i["manifests"][0]["mediaType"] = json!(MEDIA_INDEX),
            |i| i["manifests"][0]["digest"] = json!("sha256:ABC"),
            |i| i["manifests"][0]["size"] = json!(-1),
            |i| i["manifests"][0]["platform"] = json!({"os": "linux", "architecture": "amd64"}),
            |i| drop(i["manifests"][0].as_object_mut().unwrap().remove("platform")),
            |i| drop(i["manifests"][0]["annotations"].as_object_mut().unwrap().remove(MEMBER)),
            |i| i["manifests"][0]["annotations"][MEMBER] = json!("-a"),
            |i| i["manifests"][0]["annotations"][DEPENDS_ON] = json!("a,,b"),
            |i| i["manifests"][0]["annotations"]["number"] = json!(1),
            |i| drop(i["annotations"].as_object_mut().unwrap().remove(FORMAT)),
            |i| i["annotations"][FORMAT] = json!("2.0"),
            |i| i["annotations"][APPLICATION] = json!(""),
            |i| i["annotations"][EPOCH] = json!("01"),
            |i| i["annotations"][PREDECESSOR] = json!("sha256:"),
            |i| i["annotations"][CREATED] = json!("2026-02-03"),
        ];
        for (position, change) in table.iter().enumerate() {
            let mut value = value(&sample().to_document().unwrap());
            change(&mut value);
            assert!(validate(&value).is_err(), "{position}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_end_in_a_checkpoint_or_an_error(bytes in any::<Vec<u8>>()) {
        prop_assert!(Artifact::parse(&Document::new(MEDIA_INDEX, bytes)).is_err());
    }

    #[test]
    fn damaged_documents_end_in_a_checkpoint_or_an_error(
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&b"\"{}[],:019aZ-. \\\xff"[..])), 1..6),
    ) {
        let mut bytes = sample().to_document().unwrap().bytes().to_vec();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(global) = GlobalCheckpoint::parse(&Document::new(MEDIA_INDEX, bytes)) {
            prop_assert_eq!(GlobalCheckpoint::parse(&global.to_document().unwrap()).unwrap(), global);
        }
    }

    /// Any graph of dependencies either comes into waves that respect it or is refused with a true circle.
    #[test]
    fn waves_respect_dependencies(edges in prop::collection::btree_set((0_usize..12, 0_usize..12), 0..24)) {
        let name = |n: usize| format!("m{n:02}");
        let members: Vec<MemberEntry> = (0..12)
            .map(|n| {
                let names: Vec<String> = edges.iter().filter(|edge| edge.0 == n).map(|edge| name(edge.1)).collect();
                entry(&name(n), &names.iter().map(String::as_str).collect::<Vec<_>>())
            })
            .collect();
        let depends = |a: &MemberId, b: &MemberId| members.iter().any(|member| member.id == *a && member.depends_on.contains(b));
        match global(members.clone()) {
            Ok(set) => {
                let waves = set.start_order();
                let wave_of = |id: &MemberId| waves.iter().position(|wave| wave.iter().any(|member| member.id == *id)).unwrap();
                prop_assert_eq!(waves.iter().map(Vec::len).sum::<usize>(), members.len());
                for member in &members {
                    let highest = member.depends_on.iter().map(|id| wave_of(id) + 1).max().unwrap_or(0);
                    prop_assert_eq!(wave_of(&member.id), highest);
                }
            }
            Err(GlobalError::Order(OrderError::Circle { members: circle })) => {
                let next = circle.iter().cycle().skip(1);
                prop_assert!(circle.iter().zip(next).all(|(a, b)| depends(a, b)), "{circle:?}");
            }
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}
