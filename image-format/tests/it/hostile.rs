//! Input that means harm, or is broken: each case is refused with an error of its own, and leaves nothing behind.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::raw::{Raw, sparse_bomb};
use crate::support::{Memory, fixture, image_of, pack_bytes, pack_path};
use image_format::{
    ArchiveError, BlobSink, BlobSource, BlobStore, CheckpointImage, Compression, Descriptor, Digest, DumpError,
    DumpKind, DumpSource, FactsBuilder, ImageError, ImageMetadata, LayerContent, LayerInfo, Limits, PackError,
    PackOptions, RecognizeError, UnpackError, UnpackOptions, annotation, build_config, build_manifest, pack,
    read_state, unpack_archive, unpack_folder,
};
use tar::EntryType::{self, Block, Char, Directory, Fifo, GNULongLink, GNULongName, Regular, Symlink};
use tar::EntryType::{XGlobalHeader, XHeader};

/// Bounds that the cases reach without large input.
fn limits() -> Limits {
    Limits { total_bytes: 1 << 20, entries: 100, ..Limits::default() }
}

type Expected = fn(&ArchiveError) -> bool;

macro_rules! is {
    ($pattern:pat) => {
        |error: &ArchiveError| matches!(error, $pattern)
    };
}

fn archives() -> Vec<(&'static str, Vec<u8>, Expected)> {
    use ArchiveError as E;
    let raw = Raw::new;
    let deep = b"d/".repeat(10_000);
    let many = (0..200).fold(raw(), |raw, n| raw.file(format!("checkpoint/{n}").as_bytes()));
    let shallow = (0..20).fold(raw(), |raw, n| {
        let folders: Vec<_> = (0..50).map(|level| format!("{n}-{level}/")).collect();
        raw.long_name(format!("{}f", folders.concat()).as_bytes()).file(b"x")
    });
    vec![
        ("traversal", raw().file(b"../outside").end(), is!(E::NameLeaves { .. })),
        ("traversal inside", raw().file(b"checkpoint/../../outside").end(), is!(E::NameLeaves { .. })),
        ("traversal by a long name", raw().long_name(b"../outside").file(b"x").end(), is!(E::NameLeaves { .. })),
        ("traversal by PAX", raw().pax("path", b"../outside").file(b"x").end(), is!(E::NameLeaves { .. })),
        ("absolute name", raw().file(b"/outside").end(), is!(E::AbsoluteName { .. })),
        ("absolute name by PAX", raw().pax("path", b"/outside").file(b"x").end(), is!(E::AbsoluteName { .. })),
        ("NUL in a name", raw().pax("path", b"a\0b").file(b"x").end(), is!(E::BadName { .. })),
        ("empty name", raw().file(b"").end(), is!(E::BadName { .. })),
        ("the root as a file", raw().file(b"./.").end(), is!(E::BadName { .. })),
        ("a file named like a folder", raw().file(b"a/").end(), is!(E::BadName { .. })),
        ("symlink out", raw().symlink(b"checkpoint/parent", b"../../outside").end(), is!(E::LinkLeaves { .. })),
        ("absolute symlink", raw().symlink(b"checkpoint/parent", b"/etc").end(), is!(E::LinkLeaves { .. })),
        ("symlink through a folder", raw().symlink(b"a", b"checkpoint/../..").end(), is!(E::LinkLeaves { .. })),
        ("empty symlink", raw().symlink(b"a", b"").end(), is!(E::LinkLeaves { .. })),
        (
            "symlink out by a long target",
            raw().entry(GNULongLink, b"x", b"", b"../outside\0").symlink(b"a", b"b").end(),
            is!(E::LinkLeaves { .. }),
        ),
        (
            "a file through a symlink",
            raw().symlink(b"a", b"checkpoint").file(b"a/outside").end(),
            is!(E::ParentNotFolder { .. }),
        ),
        (
            "a folder through a symlink",
            raw().symlink(b"a", b"checkpoint").entry(Directory, b"a/b/", b"", b"").end(),
            is!(E::ParentNotFolder { .. }),
        ),
        ("a file below a file", raw().file(b"a").file(b"a/b").end(), is!(E::ParentNotFolder { .. })),
        ("a symlink for a folder", raw().symlink(b"checkpoint", b"elsewhere").end(), is!(E::Duplicate { .. })),
        ("hard link out", raw().hard_link(b"a", b"../outside").end(), is!(E::NameLeaves { .. })),
        ("absolute hard link", raw().hard_link(b"a", b"/etc/passwd").end(), is!(E::AbsoluteName { .. })),
        ("hard link to nothing", raw().hard_link(b"a", b"b").end(), is!(E::HardLinkTarget { .. })),
        ("hard link to a folder", raw().hard_link(b"a", b"checkpoint").end(), is!(E::HardLinkTarget { .. })),
        (
            "hard link to a symlink",
            raw().symlink(b"a", b"b").hard_link(b"c", b"a").end(),
            is!(E::HardLinkTarget { .. }),
        ),
        ("character device", raw().entry(Char, b"null", b"", b"").end(), is!(E::UnsupportedType { .. })),
        ("block device", raw().entry(Block, b"sda", b"", b"").end(), is!(E::UnsupportedType { .. })),
        ("named pipe", raw().entry(Fifo, b"pipe", b"", b"").end(), is!(E::UnsupportedType { .. })),
        ("unknown type", raw().entry(EntryType::new(b'Q'), b"q", b"", b"").end(), is!(E::UnsupportedType { .. })),
        (
            "a header for all entries",
            raw().entry(XGlobalHeader, b"g", b"", b"15 path=inside\n").file(b"x").end(),
            is!(E::UnsupportedType { .. }),
        ),
        ("a removal", raw().file(b"checkpoint/.wh.inventory.img").end(), is!(E::Whiteout { .. })),
        ("an opaque folder", raw().file(b"checkpoint/.wh..wh..opq").end(), is!(E::Whiteout { .. })),
        ("a file twice", raw().file(b"a").file(b"./a").end(), is!(E::Duplicate { .. })),
        ("a folder twice", raw().entry(Directory, b"checkpoint", b"", b"").end(), is!(E::Duplicate { .. })),
        (
            "10,000 folders deep",
            raw().long_name(&deep).entry(Directory, b"x", b"", b"").end(),
            is!(E::NameTooLong { .. }),
        ),
        (
            "100 folders deep",
            raw().long_name(&deep[..200]).entry(Directory, b"x", b"", b"").end(),
            is!(E::TooDeep { limit: 64, .. }),
        ),
        ("a long name", raw().long_name(&[b'n'; 5000]).file(b"x").end(), is!(E::NameTooLong { len: 5000, .. })),
        ("a long target", raw().pax("linkpath", &[b'n'; 5000]).symlink(b"a", b"b").end(), is!(E::NameTooLong { .. })),
        ("too many entries", many.end(), is!(E::TooManyEntries { limit: 100, .. })),
        ("too many folders in few names", shallow.end(), is!(E::TooManyEntries { limit: 100, .. })),
        ("a large file", raw().sized(Regular, b"a", b"", b"", 1 << 30).end(), is!(E::TooLarge { .. })),
        (
            "the largest file",
            raw().pax("size", u64::MAX.to_string().as_bytes()).file(b"a").end(),
            is!(E::TooLarge { .. }),
        ),
        ("a sparse bomb", sparse_bomb(), is!(E::TooLarge { .. })),
        ("large headers", raw().pax("comment", &vec![b'c'; 2 << 20]).file(b"a").end(), is!(E::HeaderTooLarge { .. })),
        (
            "a long name that claims a gigabyte",
            raw().sized(GNULongName, b"l", b"", b"n", 1 << 30).end(),
            is!(E::HeaderTooLarge { .. }),
        ),
        (
            "many headers for one entry",
            (0..5000).fold(raw(), |raw, _| raw.entry(XHeader, b"x", b"", b"")).file(b"a").end(),
            is!(E::Malformed { .. }),
        ),
        ("two long names", raw().long_name(b"a").long_name(b"b").file(b"c").end(), is!(E::Malformed { .. })),
        ("two kinds of names", raw().long_name(b"a").pax("path", b"b").file(b"c").end(), is!(E::Malformed { .. })),
        ("a header without an entry", raw().long_name(b"a").end(), is!(E::Malformed { .. })),
        (
            "a PAX record that lies",
            raw().entry(XHeader, b"x", b"", b"99 path=a\n").file(b"a").end(),
            is!(E::Malformed { .. }),
        ),
        (
            "a PAX record of no length",
            raw().entry(XHeader, b"x", b"", b"0 path=a\n").file(b"a").end(),
            is!(E::Malformed { .. }),
        ),
        ("a PAX size that is none", raw().pax("size", b"-1").file(b"a").end(), is!(E::Malformed { .. })),
        ("a size that lies upwards", raw().sized(Regular, b"a", b"", b"content", 9999).end(), is!(E::Truncated)),
        (
            "a size that lies downwards",
            raw().sized(Regular, b"a", b"", &[7; 1024], 512).end(),
            is!(E::Malformed { .. }),
        ),
        ("a PAX size that lies", raw().pax("size", b"99999").file(b"a").end(), is!(E::Truncated)),
        (
            "a folder with content",
            raw().entry(Directory, b"a", b"", b"content").end(),
            is!(E::UnexpectedContent { .. }),
        ),
        ("a link with content", raw().entry(Symlink, b"a", b"b", b"content").end(), is!(E::UnexpectedContent { .. })),
        ("an old sparse form", raw().pax("GNU.sparse.map", b"0,7").file(b"a").end(), is!(E::Malformed { .. })),
        ("no end", raw().file(b"a").0, is!(E::Truncated)),
        ("cut in a header", raw().file(b"a").0[..1100].to_vec(), is!(E::Truncated)),
        ("data after the end", [raw().end(), raw().end()].concat(), is!(E::TrailingData)),
        ("a byte after the end", [raw().end(), b"!".to_vec()].concat(), is!(E::TrailingData)),
        ("endless padding", [raw().end(), vec![0; 2 << 20]].concat(), is!(E::TrailingData)),
        ("no archive", b"no archive at all ".repeat(100), is!(E::Malformed { .. })),
    ]
}

fn content_error(error: &PackError) -> &ArchiveError {
    match error {
        PackError::Dump(DumpError::Content { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn hostile_archives_are_not_packed() {
    let options = PackOptions { limits: limits(), ..PackOptions::default() };
    for (case, bytes, expected) in archives() {
        for compression in Compression::ALL {
            let store = Memory::default();
            let bytes = compress(&bytes, *compression);
            let error = pack_bytes(&bytes, &options, &store).expect_err(case);
            assert!(expected(content_error(&error)), "{case}, {compression}: {error:?}");
            assert_eq!(store.len(), 0, "{case}: something was stored");
            assert!(error.to_string().starts_with("dump /"), "the dump is named: {error}");
        }
    }
}

#[test]
fn hostile_layers_are_not_unpacked() {
    let options = UnpackOptions { limits: limits(), ..UnpackOptions::default() };
    for (case, bytes, expected) in archives() {
        for content in [LayerContent::Whole, LayerContent::State] {
            let store = Memory::default();
            let image = image_with(&[(&bytes, content)], &store);
            let scratch = Scratch::new();
            let error = unpack_folder(&image, &store, &options, &scratch.target()).expect_err(case);
            assert_layer_error(case, &error, expected);
            scratch.assert_untouched(case);
            let archive = unpack_archive(&image, &store, Compression::None, &options, io::sink());
            assert_layer_error(case, &archive.expect_err(case), expected);
            assert_layer_error(case, &read_state(&image, &store, &limits()).expect_err(case), expected);
        }
    }
}

fn assert_layer_error(case: &str, error: &UnpackError, expected: Expected) {
    let UnpackError::Layer { image, source, .. } = error else {
        panic!("{case}: {error:?}");
    };
    assert!(expected(source), "{case}: {error:?}");
    assert!(error.to_string().contains(&image.short()), "the image is named: {error}");
}

/// A folder to unpack into, and everything around it.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        let scratch = Self(tempfile::tempdir().unwrap());
        fs::create_dir(scratch.0.path().join("in")).unwrap();
        scratch
    }

    fn target(&self) -> std::path::PathBuf {
        self.0.path().join("in/target")
    }

    fn assert_untouched(&self, case: &str) {
        let names =
            |path: &Path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(self.0.path()), ["in"], "{case}");
        assert!(names(&self.0.path().join("in")).is_empty(), "{case}: {:?}", names(&self.0.path().join("in")));
    }
}

fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => bytes.to_vec(),
        Compression::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
    }
}

/// An image that is right in everything but what its layers hold.
fn image_with(layers: &[(&[u8], LayerContent)], store: &Memory) -> CheckpointImage {
    let layers: Vec<_> = layers.iter().map(|(bytes, content)| stored_layer(bytes, bytes, *content, store)).collect();
    image_of_layers(&layers, store)
}

fn stored_layer(bytes: &[u8], plain: &[u8], content: LayerContent, store: &Memory) -> LayerInfo {
    let compression = Compression::of_content(bytes);
    let digest = Digest::of(bytes);
    store.0.lock().unwrap().insert(digest, bytes.to_vec());
    let descriptor = Descriptor { media_type: compression.layer_media_type(), digest, size: bytes.len() as u64 };
    LayerInfo {
        descriptor,
        diff_id: Digest::of(plain),
        diff_size: plain.len() as u64,
        content,
        link: None,
        first_page: None,
    }
}

fn image_of_layers(layers: &[LayerInfo], store: &Memory) -> CheckpointImage {
    let facts = FactsBuilder::default().finish(DumpKind::Podman);
    let config = build_config(&facts, None, layers).unwrap();
    store.0.lock().unwrap().insert(config.digest(), config.bytes().to_vec());
    let manifest = build_manifest(&facts, &ImageMetadata::default(), &config.descriptor(), layers).unwrap();
    CheckpointImage::parse(&manifest).unwrap()
}

fn good_layer() -> Vec<u8> {
    Raw::new().file(b"checkpoint/inventory.img").symlink(b"checkpoint/parent", b"../pre-checkpoint").end()
}

#[test]
fn layers_are_one_tree_together() {
    for (case, second, expected) in [
        ("again", Raw::new().end(), is!(ArchiveError::Duplicate { .. }) as Expected),
        ("over a file", Raw(vec![]).file(b"checkpoint/inventory.img").end(), is!(ArchiveError::Duplicate { .. })),
        ("through a link", Raw(vec![]).file(b"checkpoint/parent/x").end(), is!(ArchiveError::ParentNotFolder { .. })),
        ("a removal", Raw(vec![]).file(b"checkpoint/.wh.inventory.img").end(), is!(ArchiveError::Whiteout { .. })),
        ("too much", Raw(vec![]).sized(Regular, b"a", b"", b"", 1 << 20).end(), is!(ArchiveError::TooLarge { .. })),
    ] {
        let (store, scratch) = (Memory::default(), Scratch::new());
        let image = image_with(&[(&good_layer(), LayerContent::State), (&second, LayerContent::Files)], &store);
        let options = UnpackOptions { limits: limits(), ..UnpackOptions::default() };
        let error = unpack_folder(&image, &store, &options, &scratch.target()).expect_err(case);
        assert_layer_error(case, &error, expected);
        scratch.assert_untouched(case);
    }
}

#[test]
fn the_state_of_a_small_layer_is_not_huge() {
    let store = Memory::default();
    // A header is enough: nothing is unpacked of an entry that is too large.
    let layer = Raw(vec![]).sized(Regular, b"a", b"", b"", 256 << 30);
    let image = image_with(&[(&layer.0, LayerContent::State)], &store);
    let error = read_state(&image, &store, &Limits::default()).unwrap_err();
    assert_layer_error("256 GiB", &error, is!(ArchiveError::TooLarge { .. }));
}

#[test]
fn links_that_stay_inside_are_made() {
    let (store, scratch) = (Memory::default(), Scratch::new());
    let layer = Raw::new()
        .file(b"checkpoint/inventory.img")
        .symlink(b"checkpoint/parent", b"../pre-checkpoint")
        .hard_link(b"again", b"checkpoint/inventory.img")
        .file(b"\xff\xfe not UTF-8")
        .end();
    let image = image_with(&[(&layer, LayerContent::Whole)], &store);
    unpack_folder(&image, &store, &UnpackOptions::default(), &scratch.target()).unwrap();
    let path = |name: &[u8]| scratch.target().join(std::ffi::OsStr::from_bytes(name));
    assert_eq!(fs::read_link(path(b"checkpoint/parent")).unwrap(), Path::new("../pre-checkpoint"));
    assert_eq!(fs::read(path(b"again")).unwrap(), b"content");
    assert_eq!(fs::read(path(b"\xff\xfe not UTF-8")).unwrap(), b"content");
    let archive = unpack_archive(&image, &store, Compression::None, &UnpackOptions::default(), Vec::new()).unwrap();
    assert_eq!(crate::support::entries(&archive), crate::support::entries(&layer));
}

#[test]
fn cut_archives_are_refused_wherever_the_cut_is() {
    for name in ["podman-plain.tar.zst", "podman-gzip.tar.gz"] {
        let bytes = fs::read(fixture(name)).unwrap();
        for cut in (5..bytes.len()).step_by(1009).chain([bytes.len() - 1]) {
            let store = Memory::default();
            let error = pack_bytes(&bytes[..cut], &PackOptions::default(), &store).unwrap_err();
            assert!(matches!(content_error(&error), ArchiveError::Truncated), "{name} at {cut}: {error:?}");
            assert_eq!(store.len(), 0);
        }
    }
}

#[test]
fn nothing_follows_a_compressed_archive() {
    for name in ["podman-plain.tar.zst", "podman-gzip.tar.gz"] {
        for trailing in [&b"\0"[..], b"trailing", &[0; 4096]] {
            let bytes = [&fs::read(fixture(name)).unwrap()[..], trailing].concat();
            let error = pack_bytes(&bytes, &PackOptions::default(), &Memory::default()).unwrap_err();
            assert!(matches!(content_error(&error), ArchiveError::TrailingData), "{name}: {error:?}");
        }
    }
}

#[test]
fn a_bomb_costs_neither_memory_nor_time() {
    // 64 GiB of zeros in some 2 MiB, claimed by one file and then by the padding behind the end.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(&Raw::new().sized(Regular, b"bomb", b"", b"", 1 << 36).0).unwrap();
    io::copy(&mut io::repeat(0).take(1 << 28), &mut encoder).unwrap();
    let bomb = encoder.finish().unwrap();
    let options =
        PackOptions { limits: Limits { total_bytes: 1 << 30, ..Limits::default() }, ..PackOptions::default() };
    let error = pack_bytes(&bomb, &options, &Memory::default()).unwrap_err();
    assert!(matches!(content_error(&error), ArchiveError::TooLarge { limit: 0x4000_0000, .. }), "{error:?}");

    let window = {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(30).unwrap();
        encoder.write_all(&good_layer()).unwrap();
        encoder.finish().unwrap()
    };
    let error = pack_bytes(&window, &PackOptions::default(), &Memory::default()).unwrap_err();
    assert!(matches!(content_error(&error), ArchiveError::WindowTooLarge { limit: 29 }), "{error:?}");
}

#[test]
fn what_is_no_dump_is_said_to_be_none() {
    let scratch = tempfile::tempdir().unwrap();
    let missing = scratch.path().join("missing");
    assert!(matches!(DumpSource::open(&missing, None), Err(DumpError::Open { .. })));
    assert!(matches!(DumpSource::open(scratch.path(), None), Err(DumpError::NotADump { .. })));
    assert!(matches!(DumpSource::open(Path::new("/dev/null"), None), Err(DumpError::NotADump { .. })));
    let empty = scratch.path().join("empty");
    fs::write(&empty, "").unwrap();
    assert!(matches!(DumpSource::open(&empty, None), Err(DumpError::NotADump { .. })));
    assert!(matches!(DumpSource::open(&fixture("cri-o.tar"), Some(&missing)), Err(DumpError::Open { .. })));

    let unknown = |bytes: &[u8]| match pack_bytes(bytes, &PackOptions::default(), &Memory::default()) {
        Err(PackError::Dump(DumpError::Unknown { source, .. })) => source,
        other => panic!("{other:?}"),
    };
    assert!(matches!(unknown(&Raw::new().end()), RecognizeError::NoInventory));
    let inventory = inventory();
    let unmarked = Raw::new().entry(Regular, b"checkpoint/inventory.img", b"", &inventory);
    let unmarked = unmarked.entry(Regular, b"rootfs-diff.tar", b"", b"").end();
    assert!(matches!(unknown(&unmarked), RecognizeError::UnknownKind));

    let store = Memory::default();
    let image = image_with(&[(&Raw::new().end(), LayerContent::Whole)], &store);
    let scratch = Scratch::new();
    let error = unpack_folder(&image, &store, &UnpackOptions::default(), &scratch.target()).unwrap_err();
    assert!(matches!(error, UnpackError::NotADump { source: RecognizeError::NoInventory, .. }), "{error:?}");
    scratch.assert_untouched("no dump");
}

fn inventory() -> Vec<u8> {
    let bytes = fs::read(fixture("podman-none.tar")).unwrap();
    let file = crate::support::entries(&bytes).into_iter().find(|file| file.name == b"checkpoint/inventory.img");
    file.unwrap().content
}

#[test]
fn files_that_are_not_what_their_names_say_are_refused() {
    let deep = [b"{\"a\":".repeat(10_000), b"1".to_vec(), b"}".repeat(10_000)].concat();
    for (name, content) in [
        ("config.dump", &b"{"[..]),
        ("config.dump", &deep),
        ("spec.dump", &deep),
        ("checkpoint/inventory.img", b"not an image"),
        ("checkpoint/pstree.img", b""),
    ] {
        let store = Memory::default();
        let bytes = Raw::new().entry(Regular, name.as_bytes(), b"", content).end();
        let error = pack_bytes(&bytes, &PackOptions::default(), &store).unwrap_err();
        assert!(matches!(error, PackError::Facts { .. }), "{name}: {error:?}");
        assert_eq!(store.len(), 0);
    }
}

#[test]
fn hostile_folders_are_not_packed() {
    use ArchiveError as E;
    type Make = fn(&Path);
    let cases: [(&str, Make, Expected); 6] = [
        ("symlink out", |dir| symlink("../../outside", dir.join("parent")).unwrap(), is!(E::LinkLeaves { .. })),
        ("symlink just out", |dir| symlink("../pre-dump", dir.join("parent")).unwrap(), is!(E::LinkLeaves { .. })),
        ("absolute symlink", |dir| symlink("/etc/passwd", dir.join("x")).unwrap(), is!(E::LinkLeaves { .. })),
        ("a socket", |dir| drop(UnixListener::bind(dir.join("s")).unwrap()), is!(E::UnsupportedType { .. })),
        ("depth", |dir| fs::create_dir_all(dir.join("d/".repeat(100))).unwrap(), is!(E::TooDeep { .. })),
        (
            "many files",
            |dir| (0..200).for_each(|n| fs::write(dir.join(n.to_string()), "").unwrap()),
            is!(E::TooManyEntries { .. }),
        ),
    ];
    let options = PackOptions { limits: limits(), ..PackOptions::default() };
    for (case, make, expected) in cases {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("inventory.img"), inventory()).unwrap();
        make(scratch.path());
        let store = Memory::default();
        let error = pack(DumpSource::open(scratch.path(), None).unwrap(), &options, &store).expect_err(case);
        assert!(expected(content_error(&error)), "{case}: {error:?}");
        assert_eq!(store.len(), 0);
    }
}

#[test]
fn hard_links_stay_within_a_layer() {
    let file = Raw::new()
        .entry(Regular, b"checkpoint/inventory.img", b"", &inventory())
        .entry(Regular, b"checkpoint/descriptors.json", b"", b"[]")
        .file(b"rootfs-diff.tar")
        .file(b"checkpoint/pages-1.img")
        .hard_link(b"checkpoint/pages-2.img", b"checkpoint/pages-1.img")
        .hard_link(b"state-by-name", b"rootfs-diff.tar")
        .end();
    let store = Memory::default();
    let packed = pack_bytes(&file, &PackOptions::default(), &store).unwrap();
    let archive = crate::support::archive_of(&packed, &store);
    assert_eq!(
        crate::support::sorted(crate::support::entries(&archive)),
        crate::support::sorted(crate::support::entries(&file))
    );
    assert_eq!(pack_bytes(&archive, &PackOptions::default(), &Memory::default()).unwrap().manifest, packed.manifest);
}

#[test]
fn layers_must_be_what_the_config_says() {
    let (store, scratch) = (Memory::default(), Scratch::new());
    let layer = stored_layer(&Raw::new().file(b"checkpoint/x").end(), b"something else", LayerContent::Whole, &store);
    let image = image_of_layers(&[layer], &store);
    let error = unpack_folder(&image, &store, &UnpackOptions::default(), &scratch.target()).unwrap_err();
    assert!(matches!(error, UnpackError::DiffId { .. }), "{error:?}");
    scratch.assert_untouched("diff id");
    assert!(matches!(read_state(&image, &store, &limits()), Err(UnpackError::DiffId { .. })));
    let archive = unpack_archive(&image, &store, Compression::None, &UnpackOptions::default(), io::sink());
    assert!(matches!(archive, Err(UnpackError::DiffId { .. })));
}

#[test]
fn configs_must_fit_their_manifest() {
    let store = Memory::default();
    let packed = pack_path(&fixture("podman-plain.tar.zst"), &PackOptions::default(), &store);
    let image = image_of(&packed);
    let unpack = |config: Vec<u8>, limits: Limits| {
        store.0.lock().unwrap().insert(image.config().digest, config);
        let (options, scratch) = (UnpackOptions { limits, ..UnpackOptions::default() }, Scratch::new());
        let error = unpack_folder(&image, &store, &options, &scratch.target()).unwrap_err();
        scratch.assert_untouched("config");
        match error {
            UnpackError::Config { source, .. } => source,
            other => panic!("{other:?}"),
        }
    };
    let fewer = String::from_utf8(packed.config.bytes().to_vec()).unwrap();
    let fewer = fewer.replace(&format!("\"{}\",", packed.layers[0].diff_id), "");
    assert!(matches!(unpack(fewer.into_bytes(), Limits::default()), ImageError::LayerCount { .. }));
    assert!(matches!(unpack(vec![b'['; 100 << 20], Limits::default()), ImageError::Json { .. }));
    let good = packed.config.bytes().to_vec();
    assert!(matches!(unpack(good, Limits { document_bytes: 20, ..Limits::default() }), ImageError::Json { .. }));
}

/// Gives other bytes than those that were asked for, and says so at their end, as every source must.
#[derive(Debug)]
struct Liar(Memory);

impl BlobSource for Liar {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send>> {
        let blob = self.0.open(descriptor)?;
        if descriptor.media_type == annotation::MEDIA_CONFIG {
            return Ok(blob);
        }
        Ok(Box::new(blob.chain(Refusal)))
    }
}

struct Refusal;

impl Read for Refusal {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the digest differs"))
    }
}

#[test]
fn a_digest_that_differs_at_the_very_end_counts() {
    for compression in Compression::ALL {
        let store = Memory::default();
        let options = PackOptions { compression: *compression, ..PackOptions::default() };
        let packed = pack_path(&fixture("podman-plain.tar.zst"), &options, &store);
        let (liar, scratch) = (Liar(store), Scratch::new());
        let error = unpack_folder(&image_of(&packed), &liar, &UnpackOptions::default(), &scratch.target()).unwrap_err();
        let UnpackError::Layer { source: ArchiveError::Read(source), .. } = &error else {
            panic!("{compression}: {error:?}");
        };
        assert_eq!(source.to_string(), "the digest differs");
        assert!(error.source().is_some());
        scratch.assert_untouched("digest");
    }
}

#[test]
fn blobs_that_are_missing_are_named() {
    let store = Memory::default();
    let packed = pack_path(&fixture("podman-plain.tar.zst"), &PackOptions::default(), &store);
    let image = image_of(&packed);
    for (missing, expected) in [(packed.layers[1].descriptor.digest, true), (packed.config.digest(), false)] {
        let scratch = Scratch::new();
        let gone = store.0.lock().unwrap().remove(&missing);
        let error = unpack_folder(&image, &store, &UnpackOptions::default(), &scratch.target()).unwrap_err();
        match error {
            UnpackError::FetchLayer { layer, .. } => assert!(expected && layer == missing),
            UnpackError::FetchConfig { .. } => assert!(!expected),
            other => panic!("{other:?}"),
        }
        scratch.assert_untouched("missing");
        store.0.lock().unwrap().extend(gone.map(|blob| (missing, blob)));
    }
}

#[test]
fn folders_that_hold_something_are_left_alone() {
    let (store, scratch) = (Memory::default(), Scratch::new());
    let packed = pack_path(&fixture("podman-plain.tar.zst"), &PackOptions::default(), &store);
    let target = scratch.target();
    fs::create_dir(&target).unwrap();
    fs::write(target.join("mine"), "mine").unwrap();
    let unpack = |target: &Path| unpack_folder(&image_of(&packed), &store, &UnpackOptions::default(), target);
    assert!(matches!(unpack(&target), Err(UnpackError::Folder { .. })));
    assert!(matches!(unpack(&target.join("mine")), Err(UnpackError::Folder { .. })));
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    fs::remove_file(target.join("mine")).unwrap();
    unpack(&target).unwrap();
    assert!(target.join("checkpoint/inventory.img").is_file());
}

#[test]
fn annotations_need_a_specification() {
    let spec_annotations: BTreeMap<_, _> = [("a".to_owned(), "b".to_owned())].into();
    for (spec, expected) in [
        (None, is_no_spec as fn(&UnpackError) -> bool),
        (Some(&b"{"[..]), is_bad_spec),
        (Some(b"[]"), is_bad_spec),
        (Some(br#"{"annotations":7}"#), is_bad_spec),
    ] {
        let (store, scratch) = (Memory::default(), Scratch::new());
        let layer = Raw::new().file(b"checkpoint/inventory.img");
        let layer = spec.iter().fold(layer, |layer, spec| layer.entry(Regular, b"spec.dump", b"", spec)).end();
        let image = image_with(&[(&layer, LayerContent::Whole)], &store);
        let options = UnpackOptions { spec_annotations: spec_annotations.clone(), ..UnpackOptions::default() };
        let error = unpack_folder(&image, &store, &options, &scratch.target()).unwrap_err();
        assert!(expected(&error), "{error:?}");
        scratch.assert_untouched("spec");
    }
}

fn is_no_spec(error: &UnpackError) -> bool {
    matches!(error, UnpackError::NoSpec { .. })
}

fn is_bad_spec(error: &UnpackError) -> bool {
    matches!(error, UnpackError::Spec { .. })
}

/// A store that takes nothing, or loses what it took when it should keep it.
#[derive(Debug)]
struct Full {
    on_commit: bool,
}

struct FullSink {
    on_commit: bool,
}

impl BlobStore for Full {
    fn create(&self) -> io::Result<Box<dyn BlobSink>> {
        Ok(Box::new(FullSink { on_commit: self.on_commit }))
    }
}

impl Write for FullSink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.on_commit { Ok(buf.len()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobSink for FullSink {
    fn commit(self: Box<Self>, _: Digest, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }
}

#[test]
fn a_full_store_is_an_error() {
    for on_commit in [false, true] {
        for compression in Compression::ALL {
            let options = PackOptions { compression: *compression, ..PackOptions::default() };
            let source = DumpSource::open(&fixture("podman-none.tar"), None).unwrap();
            let error = pack(source, &options, &Full { on_commit }).unwrap_err();
            assert!(
                matches!(&error, PackError::Store { source, .. } if source.kind() == io::ErrorKind::StorageFull),
                "{error:?}"
            );
        }
    }
}

/// CRIU 4.2 reads for ever from such a dump.
#[test]
fn a_dump_whose_pages_end_too_early_is_refused() {
    let dump = fs::read(fixture("podman-none.tar")).unwrap();
    let cut = |how: fn(Vec<u8>) -> Option<Vec<u8>>| {
        let mut archive = tar::Builder::new(Vec::new());
        for entry in tar::Archive::new(&dump[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut header = entry.header().clone();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            if entry.path_bytes().ends_with(b"checkpoint/pages-1.img") {
                let Some(short) = how(content) else {
                    continue;
                };
                content = short;
                header.set_size(content.len() as u64);
                header.set_cksum();
            }
            archive.append(&header, &content[..]).unwrap();
        }
        pack_bytes(&archive.into_inner().unwrap(), &PackOptions::default(), &Memory::default())
    };
    cut(Some).unwrap();
    cut(|pages| Some([pages, vec![0; 4096]].concat())).unwrap();
    for error in [cut(|pages| Some(pages[..pages.len() - 1].to_vec())), cut(|_| Some(Vec::new())), cut(|_| None)] {
        let error = error.unwrap_err();
        assert!(matches!(&error, PackError::Dump(DumpError::Short { .. })), "{error:?}");
        let said = error.to_string();
        assert!(said.contains("checkpoint/pages-1.img") && said.contains("checkpoint/pagemap-"), "{said}");
    }
}
