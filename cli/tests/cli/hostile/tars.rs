//! Archives: as dumps that are packed or looked at, and as layers that are unpacked or looked at.

use std::fs::{self, File};
use std::io::{self, Cursor, Read};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use image_format::{
    Compression, Descriptor, Digest, DumpKind, FactsBuilder, ImageMetadata, LayerContent, LayerInfo, build_config,
    build_manifest,
};
use tar::EntryType::{Block, Char, Directory, Fifo, GNULongName, Regular, Symlink, XHeader};

use super::Arena;
use super::layout::Layout;
use crate::common::fixture;
use crate::raw::{Raw, sparse_bomb};

/// A case: its name, the archive, and what the error must say.
type Case = (&'static str, Vec<u8>, &'static [&'static str]);

/// `outside` is an absolute path that must stay as it is.
fn cases(outside: &str) -> Vec<Case> {
    let raw = Raw::new;
    let outside = outside.as_bytes();
    let deep = b"d/".repeat(10_000);
    let out: &[&str] = &["leaves its folder"];
    vec![
        ("traversal", raw().file(b"../outside").end(), out),
        ("traversal inside", raw().file(b"checkpoint/../../outside").end(), out),
        ("traversal by a long name", raw().long_name(b"../outside").file(b"x").end(), out),
        ("traversal by PAX", raw().pax("path", b"../outside").file(b"x").end(), out),
        ("absolute name", raw().file(outside).end(), &["/outside\": the name is absolute"]),
        ("absolute name by PAX", raw().pax("path", outside).file(b"x").end(), &["/outside\": the name is absolute"]),
        ("symlink out", raw().symlink(b"a", b"../outside").end(), &["entry \"a\"", "the link to \"../outside\""]),
        ("absolute symlink", raw().symlink(b"a", outside).end(), &["entry \"a\"", "may leave its folder"]),
        (
            "a file through a symlink",
            raw().symlink(b"a", b"checkpoint").file(b"a/outside").end(),
            &["entry \"a/outside\": its parent is no folder"],
        ),
        ("hard link out", raw().hard_link(b"a", b"../outside").end(), out),
        ("absolute hard link", raw().hard_link(b"a", outside).end(), &["entry \"a\": the name is absolute"]),
        (
            "hard link to a symlink",
            raw().symlink(b"a", b"b").hard_link(b"c", b"a").end(),
            &["entry \"c\": a hard link to \"a\", which is no earlier file"],
        ),
        ("character device", raw().entry(Char, b"null", b"", b"").end(), &["entry \"null\"", "no place in a dump"]),
        ("block device", raw().entry(Block, b"sda", b"", b"").end(), &["entry \"sda\"", "no place in a dump"]),
        ("named pipe", raw().entry(Fifo, b"pipe", b"", b"").end(), &["entry \"pipe\"", "no place in a dump"]),
        ("a removal", raw().file(b"checkpoint/.wh.inventory.img").end(), &["entry \"checkpoint/.wh.inventory.img\""]),
        ("a file twice", raw().file(b"a").file(b"./a").end(), &["entry \"./a\": there twice"]),
        (
            "10,000 folders deep",
            raw().long_name(&deep).entry(Directory, b"x", b"", b"").end(),
            &["entry \"d/d/", "is over the limit of 4096"],
        ),
        (
            "100 folders deep",
            raw().long_name(&deep[..200]).entry(Directory, b"x", b"", b"").end(),
            &["entry \"d/d/", "the limit of 64 folders"],
        ),
        (
            "a file of exabytes",
            raw().sized(Regular, b"bomb", b"", b"", 1 << 62).end(),
            &["entry \"bomb\"", "over the limit of 4398046511104 bytes"],
        ),
        ("a sparse bomb", sparse_bomb(), &["entry \"bomb\"", "over the limit of 4398046511104 bytes"]),
        (
            "large headers",
            raw().pax("comment", &vec![b'c'; 2 << 20]).file(b"a").end(),
            &["the headers of one entry are over the limit of 1048576 bytes"],
        ),
        ("a size that lies upwards", raw().sized(Regular, b"a", b"", b"content of a file", 9999).end(), &["truncated"]),
        ("a size that lies downwards", raw().sized(Regular, b"a", b"", &[7; 1024], 512).end(), &["malformed archive"]),
        ("a PAX size that lies", raw().pax("size", b"99999").file(b"a").end(), &["truncated"]),
        (
            "a link with content",
            raw().entry(Symlink, b"a", b"b", b"content").end(),
            &["entry \"a\": content where none"],
        ),
        ("no end", raw().file(b"a").0, &["the archive is truncated"]),
        ("cut in a header", raw().file(b"a").0[..1100].to_vec(), &["the archive is truncated"]),
        ("data after the end", [raw().end(), raw().end()].concat(), &["data after the end of the archive"]),
        ("a byte after the end", [raw().end(), b"!".to_vec()].concat(), &["data after the end of the archive"]),
    ]
}

/// Bytes that a bomb unpacks to: four times the memory that a command may need.
const BOMB: u64 = 1 << 28;

/// Small files that unpack to `BOMB` bytes and claim more: what comes before the zeros, what packing says, and what unpacking
/// does, which looks into no file.
fn bombs() -> Vec<(&'static str, Vec<u8>, &'static str, &'static str)> {
    let header = |kind, name: &[u8], size| Raw::new().sized(kind, name, b"", b"", size).0;
    let (headers, cut) = ("limit of 1048576 bytes", "truncated");
    let inventory = b"checkpoint/inventory.img";
    vec![
        ("a file of zeros that lies", header(Regular, b"bomb", 2 * BOMB), cut, cut),
        ("padding without end", Raw::new().end(), "data after the end", "data after the end"),
        ("a PAX header of a gigabyte", header(XHeader, b"x", 1 << 30), headers, headers),
        ("a long name of a gigabyte", header(GNULongName, b"x", 1 << 30), headers, headers),
        ("a config.dump of a gigabyte", header(Regular, b"config.dump", 1 << 30), "config.dump", cut),
        ("an inventory of a gigabyte", header(Regular, inventory, 1 << 30), cut, cut),
    ]
}

fn write_bomb(path: &Path, first: Vec<u8>) {
    let plain = Cursor::new(first).chain(io::repeat(0).take(BOMB));
    zstd::stream::copy_encode(plain, File::create(path).unwrap(), 1).unwrap();
}

/// A dump is packed, and looked at, by reading it: the same refusal.
fn assert_no_dump(arena: &Arena, case: &str, dump: &Path, says: &[&str]) {
    let dump = dump.to_str().unwrap();
    arena.ends(case, 6, says, &["pack", dump, "--to", "oci:layout:a"]);
    arena.assert_untagged(case);
    let blobs = arena.left().into_iter().filter(|path| path.parent().is_some_and(|parent| parent.ends_with("sha256")));
    assert_eq!(blobs.count(), 0, "{case}: something was stored");
    arena.ends(case, 6, says, &["inspect", dump]);
    assert!(arena.left().is_empty(), "{case}: {:?}", arena.left());
}

#[test]
fn archives_are_no_dumps() {
    let arena = Arena::new();
    for (case, bytes, says) in cases(arena.world.path("outside").to_str().unwrap()) {
        let dump = arena.input("dump");
        fs::write(&dump, &bytes).unwrap();
        assert_no_dump(&arena, case, &dump, says);
    }
}

#[test]
fn bombs_are_no_dumps() {
    let arena = Arena::new();
    for (case, first, says, _) in bombs() {
        write_bomb(&arena.input("bomb"), first);
        assert_no_dump(&arena, case, &arena.input("bomb"), &[says]);
    }
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(30).unwrap();
    io::copy(&mut &Raw::new().end()[..], &mut encoder).unwrap();
    fs::write(arena.input("window"), encoder.finish().unwrap()).unwrap();
    assert_no_dump(&arena, "a window of a gigabyte", &arena.input("window"), &["window of more than 2^29 bytes"]);
}

#[test]
fn cut_and_continued_dumps_are_no_dumps() {
    let arena = Arena::new();
    for name in ["podman-plain.tar.zst", "podman-gzip.tar.gz", "cri-o.tar"] {
        let whole = fs::read(fixture(name)).unwrap();
        let dump = arena.input(name);
        fs::write(&dump, &whole[..whole.len() / 2]).unwrap();
        assert_no_dump(&arena, "cut", &dump, &[name, "truncated"]);
        fs::write(&dump, [&whole[..], b"trailing"].concat()).unwrap();
        assert_no_dump(&arena, "continued", &dump, &[name, "data after the end"]);
    }
}

#[test]
fn files_nested_too_deep_are_no_dumps() {
    let arena = Arena::new();
    let deep = [b"{\"a\":".repeat(10_000), b"1".to_vec(), b"}".repeat(10_000)].concat();
    for name in ["config.dump", "spec.dump", "status.dump", "checkpoint/descriptors.json"] {
        fs::write(arena.input("dump"), Raw::new().entry(Regular, name.as_bytes(), b"", &deep).end()).unwrap();
        assert_no_dump(&arena, name, &arena.input("dump"), &[]);
    }
}

#[test]
fn folders_are_no_dumps() {
    type Make = fn(&Path);
    let cases: [(&str, Make, &[&str]); 4] = [
        (
            "symlink out",
            |dir| symlink("../../outside", dir.join("parent")).unwrap(),
            &["parent", "may leave its folder"],
        ),
        ("absolute symlink", |dir| symlink("/etc/passwd", dir.join("x")).unwrap(), &["/etc/passwd", "may leave"]),
        ("a socket", |dir| drop(UnixListener::bind(dir.join("s")).unwrap()), &["no place in a dump"]),
        ("depth", |dir| fs::create_dir_all(dir.join("d/".repeat(100))).unwrap(), &["the limit of 64 folders"]),
    ];
    let mut runc = tar::Archive::new(File::open(fixture("runc.tar")).unwrap());
    let arena = Arena::new();
    runc.unpack(arena.input("good")).unwrap();
    for (case, make, says) in cases {
        let dump = arena.input("dump");
        fs::create_dir(&dump).unwrap();
        for file in fs::read_dir(arena.input("good/image")).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), dump.join(file.file_name())).unwrap();
        }
        make(&dump);
        assert_no_dump(&arena, case, &dump, says);
        fs::remove_dir_all(&dump).unwrap();
    }
}

/// An image that is right in everything but what its one layer holds.
fn image_of(layout: &Layout, blob: &Path) {
    let mut blob = layout.take(blob);
    let compression = Compression::of_content(&blob.head);
    blob.descriptor.media_type = compression.layer_media_type();
    let layer = LayerInfo {
        link: None,
        first_page: None,
        descriptor: blob.descriptor,
        diff_id: Digest::of(b"whatever it holds"),
        diff_size: 0,
        content: LayerContent::Whole,
    };
    let layers = std::slice::from_ref(&layer);
    let facts = FactsBuilder::default().finish(DumpKind::Podman);
    let config = build_config(&facts, None, layers).unwrap();
    layout.put(config.bytes());
    let manifest = build_manifest(&facts, &ImageMetadata::default(), &config.descriptor(), layers).unwrap();
    let Descriptor { media_type, .. } = manifest.descriptor();
    layout.tag("a", &media_type, manifest.bytes());
}

/// An image is unpacked to a file or a folder, and looked at: none of it gives anything.
fn assert_not_unpacked(arena: &Arena, case: &str, blob: &Path, says: &[&str]) {
    let layout = Layout::new(&arena.input("layout"));
    image_of(&layout, blob);
    let image = layout.reference("a");
    for to in ["dump.tar", "folder/"] {
        arena.ends(case, 6, says, &["unpack", &image, "--to", to]);
        assert!(arena.left().is_empty(), "{case}: {:?}", arena.left());
    }
    // Looking reads the small files only, and may trip over another fault first.
    arena.ends(case, 6, &[], &["inspect", &image]);
    layout.remove();
}

#[test]
fn layers_are_not_unpacked() {
    let arena = Arena::new();
    for (case, bytes, says) in cases(arena.world.path("outside").to_str().unwrap()) {
        fs::write(arena.input("blob"), &bytes).unwrap();
        assert_not_unpacked(&arena, case, &arena.input("blob"), says);
    }
}

#[test]
fn bombs_are_not_unpacked() {
    let arena = Arena::new();
    for (case, first, _, says) in bombs() {
        write_bomb(&arena.input("bomb"), first);
        assert_not_unpacked(&arena, case, &arena.input("bomb"), &[says]);
    }
}
