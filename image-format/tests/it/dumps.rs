//! Real dumps through the whole crate: packed, unpacked, packed again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::{Memory, archive_of, entries, fixture, image_of, pack_bytes, pack_path, sorted};
use image_format::{
    CheckpointImage, Compression, Document, DumpKind, DumpSource, LayerContent, Layout, Limits, PackOptions,
    UnpackError, UnpackOptions, annotation, pack, read_state, unpack_archive, unpack_folder,
};

const ARCHIVES: &[(&str, DumpKind)] = &[
    ("podman-zstd.tar.zst", DumpKind::Podman),
    ("podman-gzip.tar.gz", DumpKind::Podman),
    ("podman-none.tar", DumpKind::Podman),
    ("podman-plain.tar.zst", DumpKind::Podman),
    ("podman-precheckpoint-1.tar.zst", DumpKind::Podman),
    ("podman-precheckpoint-2.tar.zst", DumpKind::Podman),
    ("set/auditor.tar.zst", DumpKind::Podman),
    ("cri-o.tar", DumpKind::CriO),
    ("containerd.tar", DumpKind::Containerd),
];

#[test]
fn archives_of_every_engine_come_back_as_they_were() {
    for (name, kind) in ARCHIVES {
        let path = fixture(name);
        for layout in [Layout::Generations, Layout::Split, Layout::Plain] {
            let store = Memory::default();
            let options = PackOptions { layout, ..PackOptions::default() };
            let packed = pack_path(&path, &options, &store);
            assert_eq!(packed.facts.kind, *kind, "{name}");

            let archive = archive_of(&packed, &store);
            assert_eq!(sorted(entries(&archive)), sorted(entries(&fs::read(&path).unwrap())), "{name}");
            let again = pack_bytes(&archive, &options, &Memory::default()).unwrap();
            assert_eq!(again.manifest, packed.manifest, "{name}");
            assert_eq!(again.config, packed.config, "{name}");

            let facts = read_state(&image_of(&packed), &store, &Limits::default()).unwrap();
            assert_eq!(facts.processes, packed.facts.processes, "{name}");
            assert_eq!(facts.kind, *kind, "{name}");
        }
    }
}

#[test]
fn layers_are_split_by_what_changes_together() {
    let store = Memory::default();
    let options = PackOptions { layout: Layout::Split, ..PackOptions::default() };
    let packed = pack_path(&fixture("podman-zstd.tar.zst"), &options, &store);
    let contents: Vec<_> = packed.layers.iter().map(|layer| layer.content).collect();
    assert_eq!(contents, [LayerContent::State, LayerContent::Files, LayerContent::Pages]);
    let names = |index: usize| -> Vec<String> {
        let blob = store.0.lock().unwrap()[&packed.layers[index].descriptor.digest].clone();
        entries(&blob).into_iter().map(|file| String::from_utf8(file.name).unwrap()).collect()
    };
    assert!(names(0).contains(&"checkpoint/pagemap-1.img".to_owned()));
    assert_eq!(
        names(1),
        [
            "devshm-checkpoint.tar",
            "rootfs-diff.tar",
            "deleted.files",
            "volumes/fixture-data.tar",
            "volumes/fixture-second.tar",
        ]
    );
    assert_eq!(names(2)[0], "checkpoint");
    assert!(names(2)[1..].iter().all(|name| name.starts_with("checkpoint/pages-")));
    assert_eq!(store.len(), 4, "three layers and the config; the manifest is the caller's");
}

#[test]
fn every_compression_holds_the_same_dump() {
    let path = fixture("podman-none.tar");
    let diff_ids = |compression| {
        let store = Memory::default();
        let packed = pack_path(&path, &PackOptions { compression, ..PackOptions::default() }, &store);
        for layer in &packed.layers {
            let blob = store.0.lock().unwrap()[&layer.descriptor.digest].clone();
            assert_eq!(Compression::of_content(&blob), compression);
            assert_eq!(Compression::of_layer(&layer.descriptor.media_type), Some(compression));
        }
        assert_eq!(sorted(entries(&archive_of(&packed, &store))), sorted(entries(&fs::read(&path).unwrap())));
        packed.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>()
    };
    let expected = diff_ids(Compression::None);
    assert_eq!(diff_ids(Compression::Gzip), expected);
    assert_eq!(diff_ids(Compression::Zstd), expected);
}

#[test]
fn archives_are_compressed_as_asked() {
    let store = Memory::default();
    let packed = pack_path(&fixture("podman-none.tar"), &PackOptions::default(), &store);
    let plain = archive_of(&packed, &store);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let options = UnpackOptions::default();
        let bytes = unpack_archive(&image_of(&packed), &store, compression, &options, Vec::new()).unwrap();
        assert_eq!(Compression::of_content(&bytes), compression);
        assert_eq!(entries(&bytes), entries(&plain));
    }
}

fn unpack_fixture(name: &str, to: &Path) {
    let bytes = fs::read(fixture(name)).unwrap();
    tar::Archive::new(&bytes[..]).unpack(to).unwrap();
}

#[test]
fn runc_folders_come_back_as_folders() {
    let scratch = tempfile::tempdir().unwrap();
    unpack_fixture("runc.tar", scratch.path());
    let (images, bundle_config) = (scratch.path().join("image"), scratch.path().join("bundle/config.json"));
    let store = Memory::default();
    let source = DumpSource::open(&images, Some(&bundle_config)).unwrap();
    let packed = pack(source, &PackOptions::default(), &store).unwrap();
    assert_eq!(packed.facts.kind, DumpKind::Runc);

    let folder = scratch.path().join("restored");
    unpack_folder(&image_of(&packed), &store, &UnpackOptions::default(), &folder).unwrap();
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), fs::read(&bundle_config).unwrap());
    let mut count = 0;
    for file in fs::read_dir(&images).unwrap() {
        let (name, path) = file.map(|file| (file.file_name(), file.path())).unwrap();
        let restored = folder.join("checkpoint").join(name);
        assert_eq!(fs::read(&restored).unwrap(), fs::read(path).unwrap());
        assert_eq!(fs::metadata(restored).unwrap().permissions().mode() & 0o777, 0o600);
        count += 1;
    }
    assert_eq!(fs::read_dir(folder.join("checkpoint")).unwrap().count(), count);
    for folder in [&folder, &folder.join("checkpoint")] {
        assert_eq!(fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
    }

    let again = pack_path(&folder, &PackOptions::default(), &Memory::default());
    assert_eq!(again.manifest, packed.manifest);
    let archive = archive_of(&packed, &store);
    let again = pack_bytes(&archive, &PackOptions::default(), &Memory::default()).unwrap();
    assert_eq!(again.manifest, packed.manifest);
}

#[test]
fn copies_of_a_folder_are_the_same_dump() {
    let scratch = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| scratch.path().join(name));
    for folder in [&one, &other] {
        unpack_fixture("podman-none.tar", folder);
    }
    for file in fs::read_dir(other.join("checkpoint")).unwrap() {
        fs::set_permissions(file.unwrap().path(), fs::Permissions::from_mode(0o640)).unwrap();
    }
    let packed = pack_path(&one, &PackOptions::default(), &Memory::default());
    assert_eq!(packed.facts.kind, DumpKind::Podman);
    assert_eq!(packed.manifest, pack_path(&other, &PackOptions::default(), &Memory::default()).manifest);
}

#[test]
fn podmans_own_image_becomes_podmans_own_archive() {
    let layout = fixture("podman-image/blobs/sha256");
    let store = Memory::default();
    let mut manifest = None;
    for blob in fs::read_dir(layout).unwrap() {
        let bytes = fs::read(blob.unwrap().path()).unwrap();
        if bytes.starts_with(br#"{"schemaVersion""#) {
            manifest = Some(Document::new(annotation::MEDIA_MANIFEST, bytes.clone()));
        }
        store.0.lock().unwrap().insert(image_format::Digest::of(&bytes), bytes);
    }
    let image = CheckpointImage::parse(&manifest.unwrap()).unwrap();
    assert_eq!(image.layers().iter().map(|layer| layer.content).collect::<Vec<_>>(), [None]);
    let facts = read_state(&image, &store, &Limits::default()).unwrap();
    assert_eq!(facts.kind, DumpKind::Podman);
    assert!(!facts.processes.is_empty());

    let archive = unpack_archive(&image, &store, Compression::None, &UnpackOptions::default(), Vec::new()).unwrap();
    let layer = store.0.lock().unwrap()[&image.layers()[0].descriptor.digest].clone();
    assert_eq!(entries(&archive), entries(&layer));
    let packed = pack_bytes(&archive, &PackOptions::default(), &Memory::default()).unwrap();
    assert_eq!(packed.facts.kind, DumpKind::Podman);
}

#[test]
fn annotations_are_set_in_passing() {
    let store = Memory::default();
    let packed = pack_path(&fixture("podman-zstd.tar.zst"), &PackOptions::default(), &store);
    let spec_annotations = [("org.criu.config".to_owned(), "/run/criu.conf".to_owned())].into();
    let options = UnpackOptions { spec_annotations, ..UnpackOptions::default() };
    let archive = unpack_archive(&image_of(&packed), &store, Compression::None, &options, Vec::new()).unwrap();

    let (mut changed, mut plain) = (entries(&archive), entries(&archive_of(&packed, &store)));
    let at = changed.iter().position(|file| file.name == b"spec.dump").unwrap();
    let (changed_spec, plain_spec) = (changed.remove(at), plain.remove(at));
    assert_eq!(changed, plain, "everything else is as it was");
    let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    let mut expected = json(&plain_spec.content);
    expected["annotations"]["org.criu.config"] = "/run/criu.conf".into();
    assert_eq!(json(&changed_spec.content), expected);
}

#[test]
fn files_can_be_put_aside_in_passing() {
    let store = Memory::default();
    let packed = pack_path(&fixture("podman-zstd.tar.zst"), &PackOptions::default(), &store);
    let mut plain = entries(&archive_of(&packed, &store));
    let at = plain.iter().position(|file| file.name == b"rootfs-diff.tar").unwrap();
    let diff = plain.remove(at);
    let folder = tempfile::tempdir().unwrap();
    let [file, none] = ["file", "none"].map(|name| folder.path().join(name));
    fs::write(&file, "of an earlier try, and longer than what comes now".repeat(1000)).unwrap();
    let aside = [("rootfs-diff.tar", &file), ("volumes/none.tar", &none), ("checkpoint", &none)];
    let aside = aside.map(|(name, path)| (name.to_owned(), path.clone())).into();
    let options = UnpackOptions { aside, ..UnpackOptions::default() };
    let archive = unpack_archive(&image_of(&packed), &store, Compression::None, &options, Vec::new()).unwrap();
    assert_eq!(entries(&archive), plain, "everything else is where it was");
    assert!(!none.exists(), "only files are put aside");
    assert_eq!(fs::read(&file).unwrap(), diff.content);

    let aside = [("rootfs-diff.tar".to_owned(), folder.path().join("no/folder"))].into();
    let options = UnpackOptions { aside, ..UnpackOptions::default() };
    let error = unpack_archive(&image_of(&packed), &store, Compression::None, &options, Vec::new()).unwrap_err();
    assert!(matches!(error, UnpackError::Write(_)), "a disk is full, not an image bad: {error}");
}

#[test]
fn creation_times_come_from_the_inventory_or_the_caller() {
    let path = fixture("podman-zstd.tar.zst");
    let created = |created: Option<&str>| {
        let options = PackOptions { created: created.map(str::to_owned), ..PackOptions::default() };
        let packed = pack_path(&path, &options, &Memory::default());
        image_of(&packed).annotations()[annotation::CREATED].clone()
    };
    assert!(created(None).starts_with("2026-11-23T00:26:"), "{}", created(None));
    assert_eq!(created(Some("2026-01-01T00:00:00.5Z")), "2026-01-01T00:00:00.5Z");
}
