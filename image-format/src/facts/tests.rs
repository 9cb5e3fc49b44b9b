use std::collections::BTreeMap;
use std::error::Error as _;
use std::io::Read;
use std::path::PathBuf;

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::criu::{Core, ImageKind, Records};

/// Files of a dump by their names in the archive.
type Files = BTreeMap<String, Vec<u8>>;

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../fixtures/dumps", name].iter().collect()
}

/// The files of a fixture that facts are made of. runc.tar has three folders; they are named as in an archive.
fn files(name: &str) -> Files {
    let bytes = std::fs::read(fixture(name)).unwrap();
    let reader: Box<dyn Read> = match crate::Compression::of_content(&bytes) {
        crate::Compression::None => Box::new(&bytes[..]),
        crate::Compression::Gzip => Box::new(flate2::read::GzDecoder::new(&bytes[..])),
        crate::Compression::Zstd => Box::new(zstd::Decoder::new(&bytes[..]).unwrap()),
    };
    let mut files = Files::new();
    for entry in tar::Archive::new(reader).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let name = name.replace("bundle/", "").replace("work/", "").replace("image/", "checkpoint/");
        if FactsBuilder::wants(&name).is_some() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(name, bytes);
        }
    }
    files
}

fn collect(files: &Files) -> Result<FactsBuilder, FactsError> {
    let mut builder = FactsBuilder::default();
    for (name, bytes) in files {
        let wanted = usize::try_from(FactsBuilder::wants(name).unwrap()).unwrap();
        builder.add(name, bytes.len() as u64, &bytes[..bytes.len().min(wanted)])?;
    }
    Ok(builder)
}

fn facts(name: &str, kind: DumpKind) -> Facts {
    collect(&files(name)).unwrap().finish(kind)
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

/// Facts, what inspect shows of them, and the annotations made of them.
fn shown(facts: &Facts) -> String {
    format!("{}\n---\n{}\n---\n{}", json(facts), facts.summary().join("\n"), json(&facts.annotations()))
}

#[test]
fn podman_dumps_tell_their_facts() {
    let full = facts("podman-zstd.tar.zst", DumpKind::Podman);
    insta::assert_snapshot!("podman", shown(&full));
    for same in ["podman-gzip.tar.gz", "podman-none.tar"] {
        let other = facts(same, DumpKind::Podman);
        assert_eq!(other.processes.len(), full.processes.len(), "{same}");
        assert_eq!(other.networks[0].static_ips, full.networks[0].static_ips, "{same}");
        assert_eq!(other.named_volumes, full.named_volumes, "{same}");
    }
}

#[test]
fn the_smallest_podman_dump_says_less() {
    let plain = facts("podman-plain.tar.zst", DumpKind::Podman);
    assert_eq!((plain.networks.len(), plain.named_volumes.len(), plain.processes.len()), (0, 0, 1));
    assert_eq!(plain.tcp_established, Some(false));
}

#[test]
fn members_of_the_demo_tell_their_labels_and_connections() {
    let consumer = facts("set/consumer.tar.zst", DumpKind::Podman);
    assert_eq!(consumer.labels["io.syncpoint.member"], "consumer");
    assert_eq!((consumer.tcp_established, consumer.connections.len()), (Some(true), 2));
    let address = consumer.networks[0].addresses[0];
    assert!(consumer.connections.iter().all(|connection| connection.local.ip() == address), "{consumer:?}");
}

#[test]
fn kubernetes_dumps_tell_their_facts() {
    insta::assert_snapshot!("cri-o", shown(&facts("cri-o.tar", DumpKind::CriO)));
    insta::assert_snapshot!("containerd", shown(&facts("containerd.tar", DumpKind::Containerd)));
}

#[test]
fn runc_dumps_tell_their_facts() {
    insta::assert_snapshot!("runc", shown(&facts("runc.tar", DumpKind::Runc)));
}

#[test]
fn podmans_own_images_tell_the_host_as_well() {
    let annotations = [
        ("criu.version", "40201"),
        ("podman.version", "5.4.2"),
        ("conmon.version", "conmon version 2.1.12, commit: unknown"),
        ("host.kernel", "6.18.44"),
        ("distribution.name", "debian"),
        ("distribution.version", ""),
    ];
    let annotations =
        annotations.map(|(key, value)| (format!("{}{key}", crate::annotation::PODMAN_PREFIX), value.to_owned()));
    let mut builder = FactsBuilder::default();
    builder.add_image_annotations(&annotations.clone().into());
    let facts = builder.finish(DumpKind::Podman);
    assert_eq!(facts.criu_version.as_deref(), Some("4.2.1"));
    let again = facts.annotations();
    for (key, value) in annotations.iter().filter(|(_, value)| !value.is_empty()) {
        assert_eq!(&again[key], value);
    }
    assert_eq!(facts.distribution_version, None);
}

#[test]
fn an_empty_dump_has_no_facts() {
    let facts = FactsBuilder::default().finish(DumpKind::Runc);
    assert_eq!(json(&facts).replace(char::is_whitespace, ""), r#"{"kind":"runc"}"#);
    assert_eq!(facts.annotations().len(), 1);
}

#[test]
fn files_that_are_not_what_their_names_say_are_refused() {
    let deep = format!(r#"{{"x":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    let table: &[(&str, &[u8], &str)] = &[
        ("config.dump", b"", "not the JSON"),
        ("config.dump", b"[]x", "not the JSON"),
        ("config.dump", br#"{"name":5}"#, "not the JSON"),
        ("config.dump", br#"{"name":"a","name":"b"}"#, "not the JSON"),
        ("config.dump", br#"{"newNetworks":{"n":{"static_ips":["10.0.0.256"]}}}"#, "not the JSON"),
        ("config.dump", deep.as_bytes(), "nested deeper than 64"),
        ("spec.dump", deep.as_bytes(), "nested deeper than 64"),
        ("config.json", br#"{"mounts":[{}]}"#, "not the JSON"),
        ("network.status", br#"{"n":7}"#, "not the JSON"),
        ("status.dump", b"\xff", "not the JSON"),
        ("checkpoint/descriptors.json", br#"{"0":"pipe"}"#, "not the JSON"),
        ("checkpoint/inventory.img", b"\x16\x31\x31", "first bytes"),
        ("checkpoint/pstree.img", b"\x16\x31\x31\x58", "first bytes"),
        ("checkpoint/core-1.img", b"\x19CVT\x47\x38\x05\x55", "no record"),
        ("checkpoint/core-1.img", b"\x19CVT\x47\x38\x05\x55\xff\xff\xff\xff\x00", "ends in the middle"),
        ("stats-dump", b"\x40\x59\x10\x55\x06\x33\x09\x57\x02\0\0\0\x0a\x7f", "cannot be decoded"),
    ];
    for (name, bytes, expected) in table {
        let error = FactsBuilder::default().add(name, bytes.len() as u64, bytes).unwrap_err();
        assert!(error.to_string().starts_with(name), "{error}");
        let cause = error.source().unwrap().to_string();
        assert!(cause.contains(expected), "{name}: {cause}");
    }
    let newer = b"\x16\x31\x31\x58\x02\0\0\0\x08\x09";
    let error = FactsBuilder::default().add("checkpoint/inventory.img", 10, newer).unwrap_err();
    assert!(matches!(error, FactsError::ImageVersion { version: 9, .. }));
}

#[test]
fn what_go_writes_for_nothing_is_nothing() {
    let mut builder = FactsBuilder::default();
    let config = br#"{"name":null,"labels":null,"namedVolumes":null,"newNetworks":null,"checkpointedTime":"0001-01-01T00:00:00Z","runtime":""}"#;
    builder.add("config.dump", config.len() as u64, config).unwrap();
    for (name, bytes) in [
        ("network.status", &b"null"[..]),
        ("network.status", b" [{\"cniVersion\":\"0.4.0\"}]"),
        ("checkpoint/descriptors.json", b"null"),
    ] {
        builder.add(name, bytes.len() as u64, bytes).unwrap();
    }
    assert_eq!(builder.finish(DumpKind::Podman), FactsBuilder::default().finish(DumpKind::Podman));
}

#[test]
fn large_files_are_refused_or_left_out() {
    let mut builder = FactsBuilder::default();
    for name in ["config.dump", "spec.dump", "config.json"] {
        let wanted = FactsBuilder::wants(name).unwrap();
        let error = builder.add(name, wanted + 1, b"{").unwrap_err();
        assert!(error.source().unwrap().to_string().contains(&format!("at most {wanted}")), "{error:?}");
    }
    let mut files = files("podman-plain.tar.zst");
    let stats = files.remove("stats-dump").unwrap();
    let mut builder = collect(&files).unwrap();
    builder.add("checkpoint/pagemap-2.img", u64::MAX, b"cut off").unwrap();
    builder.add("checkpoint/core-2.img", u64::MAX, b"cut off").unwrap();
    builder.add("checkpoint/files.img", u64::MAX, b"cut off").unwrap();
    builder.add("stats-dump", stats.len() as u64, &stats).unwrap();
    let facts = builder.finish(DumpKind::Podman);
    assert_eq!(facts.pages_bytes, Some(81_920), "from the statistics");
    assert_eq!(facts.processes.len(), 1);
}

#[test]
fn only_the_files_of_interest_are_wanted() {
    for no in [
        "checkpoint/pages-1.img",
        "pages-1.img",
        "checkpoint/core-x.img",
        "ctr.log",
        "a/config.dump",
        "checkpoint/gen-1/pstree.img",
    ] {
        assert_eq!(FactsBuilder::wants(no), None, "{no}");
    }
}

/// The kernel cuts names after 15 bytes, in the middle of a character too, and a program may call itself anything.
#[test]
fn a_process_may_be_called_by_any_bytes() {
    let shown = |name: &[u8]| {
        let mut files = files("podman-zstd.tar.zst");
        let bytes = &files["checkpoint/core-1.img"];
        let mut core: Core = Records::open(ImageKind::Core, bytes).unwrap().one().unwrap();
        core.task.as_mut().unwrap().command = name.to_vec();
        core.thread.as_mut().unwrap().command = Some(name.to_vec());
        let record = core.encode_to_vec();
        let image = [&bytes[..8], &(record.len() as u32).to_le_bytes(), &record].concat();
        files.insert("checkpoint/core-1.img".to_owned(), image);
        let facts = collect(&files).unwrap().finish(DumpKind::Podman);
        facts.processes.into_iter().find(|process| process.pid == 1).unwrap().command.unwrap()
    };
    assert_eq!(shown("Hintergründe".as_bytes()), "Hintergründe");
    assert_eq!(shown(b"a-long-name-f\xc3"), "a-long-name-f\\xc3");
    assert_eq!(shown(br"back\slash"), r"back\slash");
    assert_eq!(shown(b"\xff\\xff"), r"\xff\\xff");
    assert_eq!(shown(&[0xff; 15]).len(), 60, "none of the bytes is lost");
}

/// Go's reader of JSON, by which engines read what they and users wrote, takes any bytes.
#[test]
fn a_specification_that_is_not_all_text_is_read() {
    let mut files = files("podman-zstd.tar.zst");
    let spec = b"{\"annotations\":{\"a\":\"b\xff\"},\"mounts\":[]}".to_vec();
    files.insert("spec.dump".to_owned(), spec);
    let facts = collect(&files).unwrap().finish(DumpKind::Podman);
    assert_eq!(facts.spec_annotations["a"], "b\u{fffd}");
}

#[test]
fn process_trees_with_circles_end() {
    let process = |pid, parent| Process { pid, parent, threads: 1, command: Some("a\u{1b}[31m\u{202e}b".to_owned()) };
    let mut facts = FactsBuilder::default().finish(DumpKind::Podman);
    facts.processes =
        vec![process(1, 0), process(2, 1), process(3, 2), process(3, 2), process(7, 8), process(8, 7), process(9, 9)];
    let tree: Vec<_> = facts.process_tree().iter().map(|(depth, process)| (*depth, process.pid)).collect();
    assert_eq!(tree, [(0, 1), (1, 2), (2, 3), (2, 3), (0, 7), (0, 8), (0, 9)]);
    assert!(facts.summary().iter().all(|line| !line.contains(['\u{1b}', '\u{202e}'])));
}

#[test]
fn cpu_flags_follow_the_state_in_use() {
    assert_eq!(CpuFact { xstate: 0b111 }.needed_flags(), ["fpu", "sse", "avx"]);
    assert_eq!(CpuFact { xstate: 0b10_1110_0000 }.needed_flags(), ["avx512f", "pku"]);
}

#[test]
fn addresses_of_both_families_are_read() {
    use crate::criu::{File, InetSocket};
    use prost::Message;

    let socket = |family, state, local: &[u32]| File {
        socket: Some(InetSocket {
            family,
            protocol: 6,
            state,
            local_port: 80,
            remote_port: 40_000,
            local_address: local.to_vec(),
            remote_address: local.to_vec(),
        }),
    };
    let v6 = [u32::from_le_bytes([0x20, 1, 0xd, 0xb8]), 0, 0, u32::from_le_bytes([0, 0, 0, 1])];
    let v4 = [u32::from_le_bytes([10, 91, 0, 5])];
    let mut bytes = b"\x19CVT810V".to_vec();
    for file in [
        socket(2, 1, &v4),
        socket(10, 4, &v6),
        socket(2, 10, &v4),
        socket(2, 7, &v4),
        socket(10, 1, &v4),
        File { socket: None },
    ] {
        let record = file.encode_to_vec();
        bytes.extend((record.len() as u32).to_le_bytes());
        bytes.extend(record);
    }
    let mut builder = FactsBuilder::default();
    builder.add("checkpoint/files.img", bytes.len() as u64, &bytes).unwrap();
    let connections = builder.finish(DumpKind::Podman).connections;
    let ends: Vec<String> = connections.iter().map(|connection| connection.local.to_string()).collect();
    assert_eq!(ends, ["10.91.0.5:80", "[2001:db8::1]:80"]);
}

const NAMES: &[&str] = &[
    "config.dump",
    "spec.dump",
    "network.status",
    "status.dump",
    "dump.log",
    "stats-dump",
    "checkpoint/descriptors.json",
    "checkpoint/inventory.img",
    "checkpoint/pstree.img",
    "checkpoint/files.img",
    "checkpoint/core-1.img",
    "checkpoint/pagemap-1.img",
];

proptest! {
    #[test]
    fn any_file_ends_in_facts_or_an_error(name in prop::sample::select(NAMES), bytes in any::<Vec<u8>>(), size in any::<u64>()) {
        let mut builder = FactsBuilder::default();
        let _ = builder.add(name, size, &bytes);
        let facts = builder.finish(DumpKind::Podman);
        drop(facts.summary());
        drop(facts.annotations());
    }

    #[test]
    fn damaged_dumps_end_in_facts_or_an_error(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        static FILES: std::sync::LazyLock<Files> = std::sync::LazyLock::new(|| files("podman-none.tar"));
        let mut files = FILES.clone();
        for (file, place, byte) in damage {
            let bytes = files.values_mut().nth(file.index(FILES.len())).unwrap();
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(builder) = collect(&files) {
            let facts = builder.finish(DumpKind::Podman);
            drop(facts.summary());
            drop(facts.annotations());
        }
    }
}
