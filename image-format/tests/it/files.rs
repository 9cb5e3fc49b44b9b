//! Trees of containers: copied, archived, extracted again, and found the same. They need root, as checkpoints do: owners,
//! devices and `trusted.*` attributes are nobody else's to make.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use image_format::files::{FilesError, Writers, archive_folder, archive_upper, clone_tree, remove_tree};
use image_format::{Captured, Compression, DumpKind, DumpSource, PackOptions, UnpackOptions, pack, unpack_archive};
use proptest::prelude::*;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lgetxattr, llistxattr, lsetxattr, makedev, mknodat,
    utimensat,
};

use crate::support::{Memory, entries, fixture, image_of};

/// All that can be told of one name in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    mode: u32,
    uid: u32,
    gid: u32,
    device: u64,
    mtime: (i64, i64),
    target: Option<PathBuf>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Vec<u8>,
    /// The first name of the same file.
    same_as: Option<PathBuf>,
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Node> {
    let mut nodes = BTreeMap::new();
    let mut first = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(name) = left.pop() {
        let path = if name.as_os_str().is_empty() { root.to_owned() } else { root.join(&name) };
        let meta = path.symlink_metadata().unwrap();
        let mut content = Vec::new();
        if meta.is_dir() {
            let mut children: Vec<_> = fs::read_dir(&path).unwrap().map(|child| child.unwrap().file_name()).collect();
            children.sort();
            left.extend(children.into_iter().rev().map(|child| name.join(child)));
        } else if meta.is_file() {
            File::open(&path).unwrap().read_to_end(&mut content).unwrap();
        }
        let shared = !meta.is_dir() && meta.nlink() > 1;
        let same_as = shared.then(|| first.entry(meta.ino()).or_insert_with(|| name.clone()).clone());
        let node = Node {
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            device: meta.rdev(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            target: fs::read_link(&path).ok(),
            xattrs: xattrs(&path),
            content,
            same_as,
        };
        nodes.insert(name, node);
    }
    nodes
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 1 << 16];
    let len = llistxattr(path, &mut list[..]).unwrap();
    let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let len = lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}

fn set(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty())
        .unwrap_or_else(|error| panic!("cannot set {name} on {}: {error}; these tests need root", path.display()));
}

fn node(path: &Path, kind: FileType, major: u32, minor: u32) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), makedev(major, minor))
        .unwrap_or_else(|error| panic!("cannot make {}: {error}; these tests need root", path.display()));
}

fn chown(path: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).expect("these tests need root");
}

fn touch(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// One of everything that a container can have in its folders.
fn zoo(root: &Path) {
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/plain"), b"hello").unwrap();
    fs::hard_link(root.join("a/plain"), root.join("z-linked")).unwrap();
    fs::write(root.join("suid"), b"#!").unwrap();
    chown(&root.join("suid"), 1234, 5_000_000);
    fs::set_permissions(root.join("suid"), fs::Permissions::from_mode(0o6755)).unwrap();
    let capability = [&[1, 0, 0, 2][..], &[0, 32, 0, 0], &[0; 12]].concat();
    fs::write(root.join("capable"), b"x").unwrap();
    set(&root.join("capable"), "security.capability", &capability);
    set(&root.join("a/plain"), "user.note", b"with\0nul and \xff");
    set(&root.join("a"), "trusted.mine", b"kept");
    let acl = [&[2, 0, 0, 0][..], &[1, 0, 7, 0, 255, 255, 255, 255], &[2, 0, 7, 0, 42, 0, 0, 0]].concat();
    let acl = [
        &acl[..],
        &[4, 0, 5, 0, 255, 255, 255, 255],
        &[16, 0, 7, 0, 255, 255, 255, 255],
        &[32, 0, 5, 0, 255, 255, 255, 255],
    ]
    .concat();
    set(&root.join("a"), "system.posix_acl_default", &acl);
    symlink("/etc/../nowhere", root.join("link")).unwrap();
    symlink("x".repeat(300), root.join("long-link")).unwrap();
    chown(&root.join("link"), 7, 8);
    node(&root.join("null"), FileType::CharacterDevice, 1, 3);
    node(&root.join("disk"), FileType::BlockDevice, 253, 70_000);
    node(&root.join("pipe"), FileType::Fifo, 0, 0);
    fs::write(root.join("n".repeat(200)), b"long name").unwrap();
    fs::write(root.join(std::ffi::OsString::from_vec(b"not \xff utf-8\n".to_vec())), b"1").unwrap();
    fs::write(root.join("before-1970"), b"").unwrap();
    touch(&root.join("before-1970"), -5, 250_000_000);
    touch(&root.join("link"), 1_700_000_000, 123_456_789);
    let mut sparse = File::create(root.join("sparse")).unwrap();
    sparse.seek(SeekFrom::Start(40 << 20)).unwrap();
    sparse.write_all(b"middle").unwrap();
    sparse.set_len(64 << 20).unwrap();
    fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o1750)).unwrap();
    touch(&root.join("a"), 1_600_000_000, 1);
    touch(root, 1_500_000_000, 2);
}

fn archive(root: &Path) -> Vec<u8> {
    let mut tar = Vec::new();
    archive_folder(root, &mut tar).unwrap();
    tar
}

/// Extracts with GNU tar, as another program that knows the format.
fn extract(tar: &[u8], to: &Path) {
    fs::create_dir_all(to).unwrap();
    let args = [
        "--extract",
        "--same-permissions",
        "--same-owner",
        "--numeric-owner",
        "--delay-directory-restore",
        "--warning=no-timestamp",
    ];
    let mut child = Command::new("tar")
        .args(args)
        .args(["--xattrs", "--xattrs-include=*", "--directory"])
        .arg(to)
        .stdin(Stdio::piped())
        .spawn()
        .expect("these tests need GNU tar");
    child.stdin.take().unwrap().write_all(tar).unwrap();
    assert!(child.wait().unwrap().success(), "tar failed");
}

#[test]
fn an_archive_extracts_to_the_same_tree() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir(&from).unwrap();
    zoo(&from);
    let before = tree(&from);
    let tar = archive(&from);
    assert_eq!(tar, archive(&from), "not deterministic");
    extract(&tar, &to);
    for (name, node) in &before {
        assert_eq!(tree(&to).get(name), Some(node), "{}", name.display());
    }
    assert_eq!(tree(&to).len(), before.len());
}

#[test]
fn a_copy_is_the_same_tree_with_its_holes() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir(&from).unwrap();
    zoo(&from);
    node(&from.join("whiteout"), FileType::CharacterDevice, 0, 0);
    set(&from.join("a/b"), "trusted.overlay.opaque", b"y");
    let socket = UnixListener::bind(from.join("socket")).unwrap();
    clone_tree(&from, &to, Writers::Frozen).unwrap();
    drop(socket);
    fs::remove_file(from.join("socket")).unwrap();
    let (mut before, mut after) = (tree(&from), tree(&to));
    // The socket's removal changed it.
    before.get_mut(Path::new("")).unwrap().mtime = (0, 0);
    after.get_mut(Path::new("")).unwrap().mtime = (0, 0);
    for (name, node) in &before {
        assert_eq!(after.get(name), Some(node), "{}", name.display());
    }
    assert_eq!(after.len(), before.len());
    let blocks = to.join("sparse").metadata().unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "the holes were filled: {blocks} blocks");
}

/// A file of two gigabytes with a page of data, as lastlog, LMDB and disk images have it. Written out in full, it is the same
/// archive: what a filesystem knows of holes is not what a container sees.
#[test]
fn holes_are_not_archived_and_decide_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let make = |tree: &str, size: u64, zeros: bool| {
        fs::create_dir_all(at(tree)).unwrap();
        let file = File::create(at(tree).join("sparse")).unwrap();
        file.set_len(size).unwrap();
        if zeros {
            file.write_all_at(&vec![0; size as usize], 0).unwrap();
        }
        file.write_all_at(&[7; 4096], size / 2).unwrap();
        touch(&at(tree).join("sparse"), 1_600_000_000, 0);
        touch(&at(tree), 1_600_000_000, 0);
        archive(&at(tree))
    };
    let huge = make("huge", 2 << 30, false);
    assert!(huge.len() < 16 << 10, "{} bytes", huge.len());
    let tar = make("sparse", 8 << 20, false);
    assert_eq!(tar, make("full", 8 << 20, true));
    extract(&tar, &at("extracted"));
    assert_eq!(tree(&at("extracted")), tree(&at("full")));
}

#[test]
fn a_path_that_nobody_could_make_again_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("deep");
    fs::create_dir(&deep).unwrap();
    let mut at = rustix::fs::open(&deep, rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..20 {
        let name = "d".repeat(200);
        rustix::fs::mkdirat(&at, &*name, Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, &*name, rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    for error in [
        archive_folder(&deep, &mut Vec::new()).unwrap_err(),
        clone_tree(&deep, &folder.path().join("copy"), Writers::Frozen).unwrap_err(),
    ] {
        assert!(matches!(error, FilesError::PathTooLong { bytes: 4019, .. }), "{error}");
        assert!(error.to_string().contains("podman cannot restore one of more than 3840"), "{error}");
    }
    remove_tree(folder.path()).unwrap();
}

#[test]
fn copies_between_filesystems_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    let (from, to) = (folder.path().join("from"), other.path().join("to"));
    fs::create_dir(&from).unwrap();
    let file = File::create(from.join("data")).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(&[7; 300_000], 20 << 20).unwrap();
    clone_tree(&from, &to, Writers::Frozen).unwrap();
    assert_eq!(tree(&from), tree(&to));
}

#[test]
fn a_tree_that_is_written_to_is_refused_unless_others_may() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from");
    fs::create_dir(&from).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                number += 1;
                fs::write(from.join(".new"), format!("{number}")).unwrap();
                fs::rename(from.join(".new"), from.join("always")).unwrap();
                drop(fs::write(from.join(format!("{}", number % 50)), b"x"));
                drop(fs::remove_file(from.join(format!("{}", (number + 25) % 50))));
            }
        });
        while !from.join("always").exists() {
            std::thread::yield_now();
        }
        let mut refused = 0;
        for round in 0..100 {
            let (shared, frozen) = (folder.path().join("shared"), folder.path().join("frozen"));
            let copied = clone_tree(&from, &shared, Writers::Others);
            copied.unwrap_or_else(|error| panic!("round {round}: {error:?}"));
            assert!(shared.join("always").exists(), "round {round}: a file that was there at all times is missing");
            refused +=
                usize::from(matches!(clone_tree(&from, &frozen, Writers::Frozen), Err(FilesError::Changed { .. })));
            fs::remove_dir_all(shared).unwrap();
            fs::remove_dir_all(frozen).unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(refused > 0, "no change was seen in 100 rounds");
    });
}

#[test]
fn no_link_is_followed_and_no_copy_holds_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir_all(folder.path().join("outside")).unwrap();
    fs::write(folder.path().join("outside/secret"), b"secret").unwrap();
    fs::create_dir(&from).unwrap();
    symlink(folder.path().join("outside"), from.join("out")).unwrap();
    clone_tree(&from, &to, Writers::Frozen).unwrap();
    assert!(to.join("out").is_symlink());
    assert!(!String::from_utf8_lossy(&archive(&from)).contains("secret\0"));

    let inside = from.join("inside");
    let error = clone_tree(&from, &inside, Writers::Frozen).unwrap_err();
    assert!(matches!(error, FilesError::CopyInside { .. } | FilesError::Changed { .. }), "{error:?}");
    let error = clone_tree(&from, &to, Writers::Frozen).unwrap_err();
    assert!(error.to_string().contains("cannot make"), "{error}");
}

#[test]
fn an_upper_folder_is_what_podman_takes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for path in ["upper/app/kept", "upper/cache/sub", "low/cache/sub/deep", "low/app", "base/cache/sub"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    for path in ["low/cache/old", "low/cache/sub/deep/x", "base/cache/older", "base/cache/sub/y", "low/cache/both"] {
        fs::write(root.join(path), b"below").unwrap();
    }
    fs::write(root.join("upper/cache/both"), b"new").unwrap();
    fs::write(root.join("upper/cache/sub/mine"), b"new").unwrap();
    fs::write(root.join("upper/app/.wh.odd"), b"a name like any other here").unwrap();
    node(&root.join("upper/app/gone"), FileType::CharacterDevice, 0, 0);
    node(&root.join("base/cache/whited"), FileType::CharacterDevice, 0, 0);
    set(&root.join("upper/cache"), "trusted.overlay.opaque", b"y");
    set(&root.join("upper/app"), "trusted.overlay.origin", b"\x00handle");
    set(&root.join("upper/app"), "user.note", b"kept");

    let mut tar = Vec::new();
    let lower = [root.join("low"), root.join("base")];
    let lower: Vec<_> = lower.iter().map(PathBuf::as_path).collect();
    let deleted = archive_upper(&root.join("upper"), &lower, &mut tar).unwrap();
    let expected = ["/app/gone", "/cache/old", "/cache/older", "/cache/sub/deep", "/cache/sub/y"].map(str::to_owned);
    assert_eq!(deleted, expected);
    let files = entries(&tar);
    let names: Vec<_> = files.iter().map(|file| String::from_utf8_lossy(&file.name).into_owned()).collect();
    let expected = ["", "app", "app/.wh.odd", "app/kept", "cache", "cache/both", "cache/sub", "cache/sub/mine"];
    assert_eq!(names, expected);
    let xattrs: Vec<_> = files.iter().flat_map(|file| file.xattrs.clone()).collect();
    assert_eq!(xattrs, [(b"user.note".to_vec(), b"kept".to_vec())]);

    // Extracted over the lower folders' files, then without the deleted ones: what the overlay mount showed.
    let restored = root.join("restored");
    for from in lower.iter().rev() {
        extract(&archive(from), &restored);
    }
    extract(&tar, &restored);
    for path in &deleted {
        let path = restored.join(&path[1..]);
        drop(fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path)));
    }
    let names: Vec<_> = tree(&restored).into_keys().filter(|name| name.starts_with("cache")).collect();
    let expected = ["cache", "cache/both", "cache/sub", "cache/sub/mine", "cache/whited"].map(PathBuf::from);
    assert_eq!(names, expected);
}

/// podman refuses an archive in which a link leads out of the folder that it extracts to.
#[test]
fn links_that_lead_out_take_a_detour() {
    let folder = tempfile::tempdir().unwrap();
    let (root, lower, to) = (folder.path().join("root"), folder.path().join("lower"), folder.path().join("to"));
    fs::create_dir_all(root.join("etc/deep")).unwrap();
    fs::create_dir_all(lower.join(".syncpoint-links-")).unwrap();
    fs::write(root.join(".syncpoint-links"), b"the container's own").unwrap();
    symlink("../../../outside", root.join("etc/out")).unwrap();
    chown(&root.join("etc/out"), 7, 8);
    touch(&root.join("etc/out"), 1_700_000_000, 123_456_789);
    fs::hard_link(root.join("etc/out"), root.join("etc/same")).unwrap();
    symlink("../..", root.join("up")).unwrap();
    symlink("../../up", root.join("etc/deep/in")).unwrap();
    let mut tar = Vec::new();
    let deleted = archive_upper(&root, &[&lower], &mut tar).unwrap();
    assert_eq!(deleted, [""; 0]);

    extract(&tar, &to);
    // GNU tar does not remove what podman does.
    fs::remove_dir_all(to.join(".syncpoint-links--")).unwrap();
    let (mut before, mut after) = (tree(&root), tree(&to));
    for times in [&mut before, &mut after] {
        times.get_mut(Path::new("")).unwrap().mtime = (0, 0);
    }
    assert_eq!(after, before);

    let removal = tar.windows(20).position(|part| part.starts_with(b"./.syncpoint-links--\0".get(..20).unwrap()));
    assert!(removal.is_some());
    let mut depth = 0;
    for entry in tar::Archive::new(&tar[..]).entries().unwrap() {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path().unwrap().into_owned(), entry.header().entry_type());
        if kind.is_symlink() {
            // By its text alone, as podman follows it.
            depth = path.components().count() as i64 - 1;
            for part in entry.link_name().unwrap().unwrap().components() {
                depth += if part == std::path::Component::ParentDir { -1 } else { 1 };
                assert!(depth >= 0, "{path:?}");
            }
        }
        assert!(!kind.is_dir() || !path.starts_with(".syncpoint-links--"), "podman sets times of folders at its end");
    }
    assert!(depth > 0);
}

#[test]
fn an_upper_folder_that_needs_its_lower_ones_is_refused() {
    for attribute in ["redirect", "metacopy"] {
        let upper = tempfile::tempdir().unwrap();
        fs::create_dir(upper.path().join("moved")).unwrap();
        set(&upper.path().join("moved"), &format!("trusted.overlay.{attribute}"), b"/before");
        let error = archive_upper(upper.path(), &[], &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains(attribute), "{error}");
    }
}

#[test]
fn captured_files_replace_those_of_a_stream() {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = Vec::new();
    let path = fixture("podman-zstd.tar.zst");
    zstd::Decoder::new(File::open(&path).unwrap()).unwrap().read_to_end(&mut archive).unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let mut captured = Captured::new();
    captured.add("devshm-checkpoint.tar", file("shm", b"new shm"));
    captured.add("rootfs-diff.tar", file("diff", b"new diff"));
    captured.add("volumes/data.tar", file("data", b"new data"));

    // As a pipe gives it: in pieces, once.
    let (read, mut write) = std::io::pipe().unwrap();
    let writer = std::thread::spawn(move || write.write_all(&archive));
    let store = Memory::default();
    let source = DumpSource::stream("container abc", read, captured.clone()).unwrap();
    let packed = pack(source, &PackOptions::default(), &store).unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(packed.facts.kind, DumpKind::Podman);
    let image = image_of(&packed);
    let tar = unpack_archive(&image, &store, Compression::None, &UnpackOptions::default(), Vec::new()).unwrap();
    let files = entries(&tar);
    for (name, path) in captured.iter() {
        let found: Vec<_> = files.iter().filter(|file| file.name == name.as_bytes()).collect();
        assert_eq!(found.len(), 1, "{name}");
        assert_eq!(found[0].content, fs::read(path).unwrap(), "{name}");
    }
    assert!(files.iter().any(|file| file.name == b"volumes" && file.kind == b'5'), "a folder without permissions");

    captured.add("x", folder.path().join("missing"));
    let error = DumpSource::stream("container abc", std::io::empty(), captured).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    let error = DumpSource::stream("container abc", &b"none"[..], Captured::new());
    let error = pack(error.unwrap(), &PackOptions::default(), &store).unwrap_err();
    assert!(error.to_string().contains("container abc"), "{error}");
}

/// Something to make in a tree: a name from few, so that they meet.
#[derive(Debug, Clone)]
enum Make {
    Folder(u8, u32),
    File(u8, Vec<u8>, u32, i64, i64),
    Link(u8, u8),
    Symlink(u8, Vec<u8>),
    Fifo(u8),
    Xattr(u8, Vec<u8>),
    Owner(u8, u32, u32),
}

fn makes() -> impl Strategy<Value = Vec<Make>> {
    let name = 0..24_u8;
    let text = || proptest::collection::vec(1..=255_u8, 1..300);
    let make = prop_oneof![
        (name.clone(), 0..0o10000_u32).prop_map(|(name, mode)| Make::Folder(name, mode | 0o700)),
        (
            name.clone(),
            proptest::collection::vec(any::<u8>(), 0..2000),
            0..0o10000_u32,
            -1000..i64::from(u32::MAX) * 4,
            0..1_000_000_000_i64
        )
            .prop_map(|(name, content, mode, seconds, nanos)| Make::File(name, content, mode, seconds, nanos)),
        (name.clone(), name.clone()).prop_map(|(name, target)| Make::Link(name, target)),
        (name.clone(), text()).prop_map(|(name, target)| Make::Symlink(name, target)),
        name.clone().prop_map(Make::Fifo),
        (name.clone(), text()).prop_map(|(name, value)| Make::Xattr(name, value)),
        (name, any::<u16>(), 0..u32::MAX - 1).prop_map(|(name, uid, gid)| Make::Owner(name, uid.into(), gid)),
    ];
    proptest::collection::vec(make, 0..40)
}

/// Name 17 is `1/7` and so on: what is in a folder depends on whether there is one.
fn make(root: &Path, makes: &[Make]) {
    let path = |name: u8| {
        if name < 8 {
            root.join(name.to_string())
        } else {
            root.join((name % 8).to_string()).join(format!("{name}\u{e4}"))
        }
    };
    for make in makes {
        // What cannot be made, as it is there or has no folder, is not.
        match make {
            Make::Folder(name, mode) => {
                if fs::create_dir(path(*name)).is_ok() {
                    fs::set_permissions(path(*name), fs::Permissions::from_mode(*mode)).unwrap();
                }
            }
            Make::File(name, content, mode, seconds, nanos) => {
                if !path(*name).is_symlink() && !path(*name).exists() && fs::write(path(*name), content).is_ok() {
                    fs::set_permissions(path(*name), fs::Permissions::from_mode(*mode)).unwrap();
                    touch(&path(*name), *seconds, *nanos);
                }
            }
            Make::Link(name, target) => drop(fs::hard_link(path(*target), path(*name))),
            Make::Symlink(name, target) => drop(symlink(std::ffi::OsStr::from_bytes(target), path(*name))),
            Make::Fifo(name) => {
                let _ = mknodat(CWD, path(*name), FileType::Fifo, Mode::from_raw_mode(0o600), 0);
            }
            Make::Xattr(name, value) => {
                let name_of = CString::new("trusted.x").unwrap();
                let _ = lsetxattr(path(*name), &*name_of, value, XattrFlags::empty());
            }
            Make::Owner(name, uid, gid) => drop(std::os::unix::fs::lchown(path(*name), Some(*uid), Some(*gid))),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tree_survives_copy_and_archive(makes in makes()) {
        let folder = tempfile::tempdir().unwrap();
        let (from, copy, out) = (folder.path().join("from"), folder.path().join("copy"), folder.path().join("out"));
        fs::create_dir(&from).unwrap();
        make(&from, &makes);
        clone_tree(&from, &copy, Writers::Frozen).unwrap();
        prop_assert_eq!(tree(&from), tree(&copy));
        extract(&archive(&copy), &out);
        prop_assert_eq!(tree(&from), tree(&out));
    }
}
