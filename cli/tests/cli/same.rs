//! The same dump gives the same digests, whoever packs it, where and when.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::common::{SYNCPOINT, World, fixture, ran};

#[test]
fn neither_place_nor_person_changes_a_digest() {
    let world = World::new();
    for dump in ["podman-zstd.tar.zst", "podman-gzip.tar.gz", "cri-o.tar", "containerd.tar"] {
        let dump = fixture(dump);
        let pack = |variables: &[(&str, &str)], to: &str| {
            let mut command = world.command(&["pack", "--json", &dump, "--to", to, "--member", "a"]);
            let packed = ran(command.envs(variables.iter().copied()).output().unwrap());
            assert_eq!(packed.code, 0, "{}", packed.err);
            serde_json::from_str::<serde_json::Value>(&packed.out).unwrap()["digest"].clone()
        };
        let first = pack(&[], "oci:here:a");
        assert_eq!(
            first,
            pack(&[("TZ", "Pacific/Kiritimati"), ("LANG", "tr_TR.UTF-8"), ("LC_ALL", "tr_TR.UTF-8")], "oci:there:b")
        );
        assert_eq!(
            first,
            pack(&[("HOME", "/nonexistent"), ("USER", "somebody"), ("RAYON_NUM_THREADS", "1")], "oci:there:c")
        );
    }
}

#[test]
fn two_users_get_the_same_digests() {
    let world = World::new();
    for dump in ["podman-zstd.tar.zst", "podman-none.tar", "cri-o.tar", "containerd.tar"] {
        let dump = world.open_fixture(dump);
        let arguments = ["pack", "--json", &dump, "--to", "oci:layout:a", "--member", "a"];
        let pack = |mut command: Command| {
            let packed = ran(command.output().unwrap());
            assert_eq!(packed.code, 0, "{}", packed.err);
            serde_json::from_str::<serde_json::Value>(&packed.out).unwrap()
        };
        let (mine, theirs) = (pack(world.command(&arguments)), pack(world.somebodys(&arguments)));
        for what in ["digest", "layers"] {
            assert!(!mine[what].is_null(), "{mine}");
            assert_eq!(mine[what], theirs[what], "{dump}: {what}");
        }
        let owner = |layout: &str| world.path(layout).join("index.json").metadata().unwrap().uid();
        let root = nix::unistd::Uid::effective().is_root();
        assert_eq!(owner("layout") != owner("somebody/layout"), root, "two users, where there can be two");
    }
}

#[test]
fn neither_order_nor_umask_changes_a_digest() {
    let world = World::new();
    let (a, b) = (world.path("a"), world.path("b"));
    for dir in [&a, &b] {
        let mut tar = tar::Archive::new(fs::File::open(fixture("runc.tar")).unwrap());
        tar.set_preserve_mtime(true);
        tar.unpack(dir).unwrap();
    }
    // Written again, the files stand in another order in the folder.
    let image = b.join("image");
    for entry in fs::read_dir(&image).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>() {
        let times = fs::FileTimes::new().set_modified(entry.metadata().unwrap().modified().unwrap());
        let bytes = fs::read(&entry).unwrap();
        fs::remove_file(&entry).unwrap();
        fs::write(&entry, bytes).unwrap();
        fs::File::options().write(true).open(&entry).unwrap().set_times(times).unwrap();
    }
    let pack = |dir: &Path, umask: &str| {
        let (image, config) = (dir.join("image"), dir.join("bundle/config.json"));
        let arguments = [image.to_str().unwrap(), "--bundle", config.to_str().unwrap(), "--to", "oci:layout:a"];
        let mut shell = world.program("/bin/sh", &["-c", r#"umask "$0" && exec "$@""#, umask, SYNCPOINT, "pack", "-q"]);
        let packed = ran(shell.args(arguments).output().unwrap());
        assert_eq!(packed.code, 0, "{}", packed.err);
        packed.out
    };
    assert_eq!(pack(&a, "022"), pack(&b, "077"));
}
