use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::annotation::{FORMAT, FORMAT_VERSION};
use crate::{Facts, FactsBuilder, LayerInfo};

fn fixtures(path: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../fixtures", path].iter().collect()
}

fn facts() -> Facts {
    let mut facts = FactsBuilder::default().finish(DumpKind::Podman);
    facts.container_name = Some("receive".to_owned());
    facts.rootfs_image_name = Some("localhost/receive:1".to_owned());
    facts.runtime_name = Some("runc".to_owned());
    facts.criu_version = Some("4.2.1".to_owned());
    facts.architecture = Some("amd64".to_owned());
    facts
}

fn layer(content: LayerContent, compression: Compression) -> LayerInfo {
    let blob = format!("{content} compressed");
    LayerInfo {
        link: None,
        first_page: None,
        descriptor: Descriptor {
            media_type: compression.layer_media_type(),
            digest: Digest::of(blob.as_bytes()),
            size: blob.len() as u64,
        },
        diff_id: Digest::of(content.as_str().as_bytes()),
        diff_size: 10_240,
        content,
    }
}

fn link(generation: u32, part: u32) -> LayerInfo {
    let link = Link { generation, part };
    let blob = format!("pages of {link}");
    let descriptor = Descriptor {
        media_type: Compression::None.layer_media_type(),
        digest: Digest::of(blob.as_bytes()),
        size: blob.len() as u64,
    };
    LayerInfo {
        link: Some(link),
        first_page: (part > 1).then_some(FirstPage { file: 7, index: 16_384 }),
        descriptor,
        diff_id: Digest::of(link.to_string().as_bytes()),
        ..layer(LayerContent::Pages, Compression::None)
    }
}

fn metadata() -> ImageMetadata {
    ImageMetadata {
        chain: Some(Chain { generations: 2, base: Some(Digest::of(b"base")) }),
        member: Some("receive-0".parse().unwrap()),
        depends_on: vec!["emulator-0".parse().unwrap(), "queue".parse().unwrap()],
        created: Some("2026-02-03T04:05:06Z".to_owned()),
        annotations: [("org.opencontainers.image.title".to_owned(), "a title".to_owned())].into(),
    }
}

/// Config and manifest of a member, as pack makes them.
fn sample() -> (Document, Document) {
    let layers = [
        layer(LayerContent::State, Compression::Zstd),
        layer(LayerContent::Files, Compression::Gzip),
        layer(LayerContent::Digests, Compression::Zstd),
        link(1, 1),
        link(1, 2),
        link(2, 1),
    ];
    let config = build_config(&facts(), metadata().created.as_deref(), &layers).unwrap();
    let manifest = build_manifest(&facts(), &metadata(), &config.descriptor(), &layers).unwrap();
    (config, manifest)
}

fn pretty(document: &Document) -> String {
    serde_json::to_string_pretty(&serde_json::from_slice::<Value>(document.bytes()).unwrap()).unwrap()
}

/// The sample's manifest, changed.
fn changed(change: impl FnOnce(&mut Value)) -> Document {
    let mut value = serde_json::from_slice(sample().1.bytes()).unwrap();
    change(&mut value);
    Document::new(MEDIA_MANIFEST, serde_json::to_vec(&value).unwrap())
}

/// The whole chain of messages, as a person sees it.
fn message(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn documents_are_as_specified() {
    let (config, manifest) = sample();
    insta::assert_snapshot!("config", pretty(&config));
    insta::assert_snapshot!("manifest", pretty(&manifest));
}

#[test]
fn what_is_built_is_what_is_read() {
    let (config, manifest) = sample();
    let image = CheckpointImage::parse(&manifest).unwrap();
    assert_eq!(image.manifest(), manifest.descriptor());
    assert_eq!(image.config(), &config.descriptor());
    assert_eq!(image.member(), metadata().member);
    assert_eq!(image.depends_on(), metadata().depends_on);
    assert_eq!(image.kind(), Some(DumpKind::Podman));
    assert_eq!(image.chain(), metadata().chain.as_ref());
    let links: Vec<_> = image.layers().iter().filter_map(|layer| layer.link).map(|link| link.to_string()).collect();
    assert_eq!(links, ["1.1", "1.2", "2.1"]);
    assert_eq!(image.version().map(|version| version.to_string()).as_deref(), Some(FORMAT_VERSION));
    let layers: Vec<_> = image.layers().iter().map(|layer| (layer.content, layer.compression)).collect();
    let expected = [
        (Some(LayerContent::State), Compression::Zstd),
        (Some(LayerContent::Files), Compression::Gzip),
        (Some(LayerContent::Digests), Compression::Zstd),
        (Some(LayerContent::Pages), Compression::None),
        (Some(LayerContent::Pages), Compression::None),
        (Some(LayerContent::Pages), Compression::None),
    ];
    assert_eq!(layers, expected);
    let config = image.parse_config(&config).unwrap();
    assert_eq!((config.architecture.as_str(), config.os.as_str()), ("amd64", "linux"));
    assert_eq!(config.created.as_deref(), Some("2026-02-03T04:05:06Z"));
    assert_eq!(config.diff_ids[0], Digest::of(b"state"));
}

/// One file a document and version, so that every version ever written stays readable. Those of the version that is
/// written are also what is written.
#[test]
fn every_version_is_read() {
    let read = |name: &str| std::fs::read(fixtures("format-versions").join(name)).unwrap();
    let mut versions = Vec::new();
    for entry in std::fs::read_dir(fixtures("format-versions")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(version) = name.strip_suffix("-member.json") {
            let image = CheckpointImage::parse(&Document::new(MEDIA_MANIFEST, read(&name))).unwrap();
            assert_eq!(image.version().unwrap().to_string(), version);
            let config = read(&format!("{version}-config.json"));
            assert_eq!(image.config().digest, Digest::of(&config));
            image.parse_config(&Document::new(MEDIA_CONFIG, config)).unwrap();
            versions.push(version.to_owned());
        }
    }
    assert!(versions.contains(&FORMAT_VERSION.to_owned()), "{versions:?}");
    let (config, manifest) = sample();
    assert_eq!(String::from_utf8(read(&format!("{FORMAT_VERSION}-member.json"))).unwrap().as_bytes(), manifest.bytes());
    assert_eq!(read(&format!("{FORMAT_VERSION}-config.json")), config.bytes());
}

#[test]
fn an_image_that_podman_made_is_read() {
    let folder = fixtures("dumps/podman-image");
    let index: Value = serde_json::from_slice(&std::fs::read(folder.join("index.json")).unwrap()).unwrap();
    let blob = |digest: Digest| std::fs::read(folder.join("blobs/sha256").join(digest.hex())).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap();
    let image = CheckpointImage::parse(&Document::new(MEDIA_MANIFEST, blob(digest))).unwrap();
    assert_eq!((image.kind(), image.version(), image.member()), (Some(DumpKind::Podman), None, None));
    assert_eq!(image.layers().len(), 1);
    assert_eq!((image.layers()[0].content, image.layers()[0].compression), (None, Compression::Gzip));
    let config = image.parse_config(&Document::new(MEDIA_CONFIG, blob(image.config().digest))).unwrap();
    assert_eq!(config.architecture, "amd64");
}

#[test]
fn marks_of_other_tools_are_known() {
    for (mark, kind) in [
        ("io.podman.annotations.checkpoint.runtime.name", Some(DumpKind::Podman)),
        ("io.kubernetes.cri-o.annotations.checkpoint.name", Some(DumpKind::CriO)),
        ("org.criu.checkpoint.container.name", None),
    ] {
        let image = CheckpointImage::parse(&changed(|manifest| manifest["annotations"] = json!({mark: "x"}))).unwrap();
        assert_eq!(image.kind(), kind, "{mark}");
    }
}

#[test]
fn order_unknown_fields_and_white_space_mean_nothing() {
    let document = changed(|manifest| {
        manifest["someday"] = json!({"new": [1, 2]});
        manifest["layers"][0]["urls"] = json!([]);
        manifest["annotations"]["io.syncpoint.someday"] = json!("new");
        manifest["annotations"][FORMAT] = json!("1.7");
    });
    let value: Value = serde_json::from_slice(document.bytes()).unwrap();
    let reversed: Vec<String> =
        value.as_object().unwrap().iter().rev().map(|(key, value)| format!("{key:?} :\n\t{value:#}")).collect();
    let document = Document::new(MEDIA_MANIFEST, format!(" {{ {} }} ", reversed.join(" , ")).into_bytes());
    let image = CheckpointImage::parse(&document).unwrap();
    assert_eq!(image.layers().len(), 6);
    assert_eq!(image.annotations()["io.syncpoint.someday"], "new");
}

#[test]
fn a_content_of_a_newer_minor_version_is_passed_over() {
    let document = changed(|manifest| {
        manifest["layers"][1]["annotations"][LAYER_CONTENT] = json!("page-digests");
    });
    assert_eq!(CheckpointImage::parse(&document).unwrap().layers()[1].content, None);
}

type Change = fn(&mut Value);

#[test]
fn manifests_that_cannot_be_used_are_refused() {
    let table: &[(Change, &str)] = &[
        (|m| *m = json!([]), "manifest that cannot be read"),
        (|m| m["layers"] = json!("none"), "manifest that cannot be read"),
        (|m| m["layers"][0]["size"] = json!(-1), "manifest that cannot be read"),
        (|m| m["schemaVersion"] = json!(1), "schema version 1"),
        (|m| m["mediaType"] = json!("application/x"), "says that it is \"application/x\""),
        (|m| m["annotations"] = json!({}), "no annotation says so"),
        (|m| m["annotations"] = Value::Null, "no annotation says so"),
        (
            |m| m["annotations"][FORMAT] = json!("2.0"),
            "format version 2.0, and this program reads up to 1.3: use a newer",
        ),
        (|m| *m = json!({"annotations": {FORMAT: "3.1"}, "layers": "different"}), "format version 3.1"),
        (|m| m["annotations"][FORMAT] = json!("one"), "not of the form MAJOR.MINOR"),
        (|m| m["annotations"][FORMAT] = json!(1), "not of the form MAJOR.MINOR"),
        (|m| m["annotations"][MEMBER] = json!("../x"), "io.syncpoint.member, but"),
        (|m| m["annotations"][DEPENDS_ON] = json!("a,,b"), "io.syncpoint.depends-on, but"),
        (|m| m["annotations"][DEPENDS_ON] = json!("a,b,a"), "it names a twice"),
        (|m| m["annotations"][DEPENDS_ON] = json!("receive-0"), "it names the member itself"),
        (|m| m["annotations"][DUMP_KIND] = json!("lxc"), "io.syncpoint.dump.kind, but"),
        (|m| m["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json"), "therefore no image"),
        (|m| m["config"]["digest"] = json!("sha512:00"), "cannot be read"),
        (|m| m["config"]["digest"] = json!(format!("sha512:{}", "0".repeat(128))), "not SHA-256"),
        (|m| m["layers"] = json!([]), "no layers"),
        (|m| m["layers"] = vec![m["layers"][0].clone(); 4097].into(), "4097 layers"),
        (|m| m["layers"][1]["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip"), "position 1"),
        (
            |m| m["layers"][1]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+zstd+encrypted"),
            "position 1",
        ),
        (|m| m["layers"][1]["size"] = json!(u64::MAX), "beyond all measure"),
        (
            |m| {
                m["layers"][1]["digest"] = m["layers"][0]["digest"].clone();
                m["layers"][1]["size"] = json!(17);
            },
            "with two sizes, 16 and 17",
        ),
    ];
    for (position, (change, expected)) in table.iter().enumerate() {
        let error = CheckpointImage::parse(&changed(change)).unwrap_err();
        let message = message(&error);
        assert!(message.contains(expected), "{position}: {message}");
    }
}

#[test]
fn documents_that_are_no_manifests_are_refused() {
    let bytes = sample().1.bytes().to_vec();
    let parse = |media_type: &str, bytes: &[u8]| {
        message(&CheckpointImage::parse(&Document::new(media_type, bytes.to_vec())).unwrap_err())
    };
    assert!(parse("application/vnd.docker.distribution.manifest.v2+json", &bytes).contains("--format oci"));
    assert!(parse("application/vnd.oci.image.index.v1+json", &bytes).contains("not an image manifest"));
    assert!(parse(MEDIA_MANIFEST, &[b' '; 5 << 20]).contains("at most 4194304"));
    let deep = format!(r#"{{"annotations":{}1{}}}"#, r#"{"a":"#.repeat(10_000), "}".repeat(10_000));
    assert!(parse(MEDIA_MANIFEST, deep.as_bytes()).contains("nested deeper"));
    let trailing = [&bytes[..], b"{}"].concat();
    assert!(parse(MEDIA_MANIFEST, &trailing).contains("trailing"));
    let twice = String::from_utf8(bytes).unwrap().replacen('{', r#"{"layers":[],"#, 1);
    assert!(parse(MEDIA_MANIFEST, twice.as_bytes()).contains("\"layers\" is there twice"));
}

#[test]
fn configs_must_fit_their_manifests() {
    let (config, manifest) = sample();
    let image = CheckpointImage::parse(&manifest).unwrap();
    let parse = |change: Change| {
        let mut value = serde_json::from_slice(config.bytes()).unwrap();
        change(&mut value);
        let document = Document::new(MEDIA_CONFIG, serde_json::to_vec(&value).unwrap());
        message(&image.parse_config(&document).unwrap_err())
    };
    assert!(parse(|c| c["rootfs"]["diff_ids"] = json!([])).contains("6 layers in its manifest and 0 in its config"));
    assert!(parse(|c| c["rootfs"]["diff_ids"][0] = json!("md5:1")).contains("not SHA-256"));
    assert!(parse(|c| c["rootfs"] = json!(1)).contains("a config that cannot be read"));
}

#[test]
fn images_that_no_reader_would_take_are_not_built() {
    let (config, _) = sample();
    let build = |change: fn(&mut ImageMetadata), layers: &[LayerInfo]| {
        let mut metadata = metadata();
        change(&mut metadata);
        message(&build_manifest(&facts(), &metadata, &config.descriptor(), layers).unwrap_err())
    };
    let layers = [layer(LayerContent::Whole, Compression::Zstd)];
    assert!(build(|_| (), &[]).contains("an image of 0 layers"));
    assert!(build(|m| m.created = Some("yesterday".to_owned()), &layers).contains("\"yesterday\" is not an RFC 3339"));
    assert!(build(|m| m.depends_on = vec!["a".parse().unwrap(); 2], &layers).contains("depends on a twice"));
    assert!(build(|m| m.member = Some("queue".parse().unwrap()), &layers).contains("which is itself"));
    assert!(
        build(|m| drop(m.annotations.insert(FORMAT.to_owned(), "9.0".to_owned())), &layers)
            .contains("belongs to the format")
    );
    assert!(
        build(|m| drop(m.annotations.insert("a".to_owned(), "x".repeat(5 << 20))), &layers)
            .contains("registries take 4194304")
    );
}

#[test]
fn annotations_that_are_given_go_before_facts() {
    let (config, _) = sample();
    let mut metadata = metadata();
    metadata.annotations.insert(format!("{PODMAN_PREFIX}runtime.name"), "crun".to_owned());
    metadata.chain = None;
    let layers = [layer(LayerContent::Whole, Compression::Zstd)];
    let manifest = build_manifest(&facts(), &metadata, &config.descriptor(), &layers).unwrap();
    let image = CheckpointImage::parse(&manifest).unwrap();
    assert_eq!(image.annotations()[&format!("{PODMAN_PREFIX}runtime.name")], "crun");
    assert_eq!(image.annotations()[&format!("{CRIU_PREFIX}runtime.name")], "runc");
}

#[test]
fn dependencies_are_a_list() {
    let read = |text: &str| read_depends_on(&BTreeMap::from([(DEPENDS_ON.to_owned(), text.to_owned())]));
    assert_eq!(read_depends_on(&BTreeMap::new()), Ok(vec![]));
    assert_eq!(read(""), Ok(vec![]));
    let ids = read("b,a").unwrap();
    assert_eq!(write_depends_on(&ids), "b,a");
    for bad in [",", "a,", "a,a", "a, b", "a/b"] {
        assert!(read(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn any_bytes_end_in_an_image_or_an_error(bytes in any::<Vec<u8>>()) {
        let document = Document::new(MEDIA_MANIFEST, bytes);
        prop_assert!(CheckpointImage::parse(&document).is_err());
        let _ = CheckpointImage::parse(&sample().1).unwrap().parse_config(&document);
    }

    #[test]
    fn damaged_documents_end_in_an_image_or_an_error(
        damage in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&b"\"{}[],:019aZ-. \\\xff"[..])), 1..6),
    ) {
        let (config, manifest) = sample();
        let image = CheckpointImage::parse(&manifest).unwrap();
        for document in [config, manifest] {
            let mut bytes = document.bytes().to_vec();
            for (place, byte) in &damage {
                let place = place.index(bytes.len());
                bytes[place] = *byte;
            }
            let damaged = Document::new(document.media_type(), bytes);
            let _ = CheckpointImage::parse(&damaged);
            let _ = image.parse_config(&damaged);
        }
    }
}
