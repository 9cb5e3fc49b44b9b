//! What a layout shows after crashes, races and with hostile content.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use image_format::annotation::{MEDIA_INDEX, MEDIA_LAYER};
use image_format::{BlobSource, BlobStore, Descriptor, Digest, Document};
use registry::{
    BlobReader, BlobUpload, Bridge, CopyOptions, LayoutStore, Progress, Put, Reopen, Selector, Store, StoreError, copy,
};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;

use crate::support::{MEDIA_EMPTY, entries, files, image, index, layout, manifest, noise, put, read, tag};

#[tokio::test]
async fn what_goes_in_comes_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    for len in [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 77] {
        let bytes = noise(len as u64, len);
        let descriptor = put(&store, MEDIA_LAYER, &bytes).await;
        assert_eq!(read(&store, &descriptor).await.unwrap(), bytes);
        let mut writer = store.create_blob().await.unwrap();
        writer.write_all(&bytes).await.unwrap();
        writer.commit(&descriptor.digest, descriptor.size).await.unwrap();
        assert_eq!(store.blob_size(&descriptor.digest).await.unwrap(), Some(len as u64));
    }
    assert_eq!(files(dir.path()).len(), 6 + 2, "six blobs, index.json, oci-layout, and nothing temporary");
}

#[tokio::test]
async fn an_unfinished_or_wrong_blob_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    let before = files(dir.path());
    let mut writer = store.create_blob().await.unwrap();
    writer.write_all(&noise(1, 3 << 20)).await.unwrap();
    writer.flush().await.unwrap();
    assert_ne!(files(dir.path()), before);
    drop(writer);
    assert_eq!(files(dir.path()), before);

    let mut writer = store.create_blob().await.unwrap();
    writer.write_all(b"four").await.unwrap();
    let error = writer.commit(&Digest::of(b"four"), 5).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert_eq!(files(dir.path()), before);

    struct Other;

    #[async_trait::async_trait]
    impl Reopen for Other {
        async fn open(&self) -> Result<BlobReader, StoreError> {
            Ok(Box::pin(&b"four"[..]))
        }
    }

    let descriptor = Descriptor { media_type: String::new(), digest: Digest::of(b"other"), size: 4 };
    let upload = BlobUpload { descriptor: &descriptor, source: &Other, mount_from: None, progress: &() };
    let error = store.put_blob(upload).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert_eq!(files(dir.path()), before);
}

#[tokio::test]
async fn a_source_that_does_not_end_is_cut_off() {
    struct Endless;

    #[async_trait::async_trait]
    impl Reopen for Endless {
        async fn open(&self) -> Result<BlobReader, StoreError> {
            Ok(Box::pin(tokio::io::repeat(7)))
        }
    }

    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    let before = files(dir.path());
    let descriptor = Document::new(MEDIA_LAYER, b"seven".to_vec()).descriptor();
    let upload = BlobUpload { descriptor: &descriptor, source: &Endless, mount_from: None, progress: &() };
    assert!(matches!(store.put_blob(upload).await.unwrap_err(), StoreError::Corrupt { .. }));
    assert_eq!(files(dir.path()), before);
}

#[tokio::test]
async fn tags_move_and_members_need_no_entry() {
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    let (a, b) = (image(&store, &[b"a"]).await, image(&store, &[b"b"]).await);
    assert_eq!(entries(dir.path()), [(a.digest(), None), (b.digest(), None)]);
    let both = index(&[&a, &b]);
    store.put_manifest(&both, Some(&tag("epoch-1"))).await.unwrap();
    assert_eq!(entries(dir.path()), [(both.digest(), Some("epoch-1".to_owned()))]);
    assert!(store.has_manifest(&a.digest()).await.unwrap());

    store.put_manifest(&both, Some(&tag("latest"))).await.unwrap();
    store.put_manifest(&b, Some(&tag("latest"))).await.unwrap();
    assert_eq!(store.tags().await.unwrap(), [tag("epoch-1"), tag("latest")]);
    let resolved = store.resolve(&Selector::Tag(tag("latest"))).await.unwrap();
    assert_eq!(resolved, b.descriptor());
    assert_eq!(store.resolve(&Selector::Digest(both.digest())).await.unwrap(), both.descriptor());
    store.delete_tag(&tag("epoch-1")).await.unwrap();
    let missing = store.delete_tag(&tag("epoch-1")).await.unwrap_err();
    assert!(matches!(missing, StoreError::NotFound { .. }));
    assert_eq!(entries(dir.path()), [(both.digest(), None), (b.digest(), Some("latest".to_owned()))]);
}

#[tokio::test]
async fn referrers_are_found_by_their_subject_and_survive_being_listed_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    let subject = image(&store, &[b"a"]).await;
    let empty = put(&store, MEDIA_EMPTY, b"{}").await;
    let content = json!({"config": empty, "layers": [empty], "artifactType": "x/y", "subject": subject.descriptor()});
    let referrer = manifest(&store, content).await;
    assert_eq!(store.referrers(&subject.digest()).await.unwrap(), [referrer.descriptor()]);
    assert_eq!(store.referrers(&referrer.digest()).await.unwrap(), []);
    store.put_manifest(&index(&[&subject, &referrer]), None).await.unwrap();
    assert_eq!(store.referrers(&subject.digest()).await.unwrap(), [referrer.descriptor()]);
    // Found again by a store that has not seen it being put, and next to a damaged one.
    let damaged = image(&store, &[b"b"]).await;
    fs::write(blob(dir.path(), &damaged.digest()), b"{").unwrap();
    let again = LayoutStore::open(dir.path()).unwrap();
    assert_eq!(again.referrers(&subject.digest()).await.unwrap(), [referrer.descriptor()]);
    let error = store.put_referrer(&empty.digest, &referrer).await.unwrap_err();
    assert!(error.to_string().contains("does not name it as its subject"), "{error}");
}

fn blob(dir: &Path, digest: &Digest) -> std::path::PathBuf {
    dir.join("blobs/sha256").join(digest.hex())
}

#[tokio::test]
async fn damaged_blobs_end_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    let bytes = noise(7, (2 << 20) + 5);
    let good = put(&store, MEDIA_LAYER, &bytes).await;
    let path = blob(dir.path(), &good.digest);

    let mut changed = bytes.clone();
    changed[0] ^= 1;
    fs::write(&path, &changed).unwrap();
    let error = read(&store, &good).await.unwrap_err();
    let cause = error.downcast::<StoreError>().unwrap();
    assert!(matches!(cause, StoreError::Corrupt { .. }), "{cause}");

    fs::write(&path, &bytes[..100]).unwrap();
    let error = read(&store, &good).await.unwrap_err().to_string();
    assert!(error.contains("it has 100 bytes instead of 2097157"), "{error}");
    // A blob of the wrong size is not "there": putting it again heals it. The same for a manifest that is damaged.
    put(&store, MEDIA_LAYER, &bytes).await;
    assert_eq!(read(&store, &good).await.unwrap(), bytes);
    let document = image(&store, &[b"a"]).await;
    let mut changed = document.bytes().to_vec();
    changed[9] ^= 1;
    fs::write(blob(dir.path(), &document.digest()), &changed).unwrap();
    assert!(!store.has_manifest(&document.digest()).await.unwrap());
    store.put_manifest(&document, None).await.unwrap();
    assert_eq!(store.manifest(&document.digest()).await.unwrap(), document);
}

#[tokio::test]
async fn hostile_layouts_are_refused() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, b"shadow").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    let shadow = Descriptor { media_type: MEDIA_LAYER.to_owned(), digest: Digest::of(b"shadow"), size: 6 };
    symlink(&secret, blob(dir.path(), &shadow.digest)).unwrap();
    let error = read(&store, &shadow).await.unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
    assert!(store.blob_size(&shadow.digest).await.is_err());

    let pipe = Digest::of(b"pipe");
    nix::unistd::mkfifo(&blob(dir.path(), &pipe), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = store.manifest(&pipe).await.unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");

    // An index.json of 100 MB, without storing that many bytes.
    let huge = fs::File::create(dir.path().join("index.json")).unwrap();
    huge.set_len(100 << 20).unwrap();
    assert!(matches!(store.tags().await.unwrap_err(), StoreError::TooLarge { .. }));
    fs::remove_file(dir.path().join("index.json")).unwrap();
    symlink(&secret, dir.path().join("index.json")).unwrap();
    assert!(matches!(store.tags().await.unwrap_err(), StoreError::Corrupt { .. }));

    let linked = tempfile::tempdir().unwrap();
    layout(linked.path());
    fs::remove_dir_all(linked.path().join("blobs")).unwrap();
    symlink(outside.path(), linked.path().join("blobs")).unwrap();
    assert!(matches!(LayoutStore::open(linked.path()).unwrap_err(), StoreError::Corrupt { .. }));
    fs::write(linked.path().join("oci-layout"), br#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    let error = LayoutStore::open(linked.path()).unwrap_err().to_string();
    assert!(error.contains("\"2.0.0\""), "{error}");
}

#[tokio::test]
async fn documents_that_are_no_manifests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    for bytes in [b"{}".to_vec(), b"pages".to_vec()] {
        let document = Document::new(MEDIA_INDEX, bytes.clone());
        let error = store.put_manifest(&document, Some(&tag("x"))).await.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error}");
        put(&store, MEDIA_LAYER, &bytes).await;
        assert!(matches!(store.manifest(&Digest::of(&bytes)).await.unwrap_err(), StoreError::Corrupt { .. }));
    }
    let large = Document::new(MEDIA_INDEX, vec![b' '; (4 << 20) + 1]);
    assert!(matches!(store.put_manifest(&large, None).await.unwrap_err(), StoreError::TooLarge { .. }));
    assert_eq!(entries(dir.path()), []);
}

/// What the processes that the tests below start do; without its variables, as in a normal run, nothing.
#[test]
fn child_process() {
    let (Ok(dir), Ok(work)) = (std::env::var("LAYOUT_TEST_DIR"), std::env::var("LAYOUT_TEST_WORK")) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = layout(Path::new(&dir));
    runtime.block_on(async {
        if work == "die" {
            let mut writer = store.create_blob().await.unwrap();
            writer.write_all(&noise(1, 2 << 20)).await.unwrap();
            writer.flush().await.unwrap();
            std::process::abort();
        }
        if let Some((moment, source)) = work.strip_prefix("copy:").and_then(|work| work.split_once(':')) {
            let from = LayoutStore::open(Path::new(source)).unwrap();
            let root = from.resolve(&Selector::Tag(tag("whole"))).await.unwrap();
            let dies = Dies(AtomicUsize::new(moment.parse().unwrap()));
            let options = CopyOptions { tag: Some(tag("whole")), progress: &dies, ..CopyOptions::default() };
            copy(&from, &root, &store, &options).await.unwrap();
            return;
        }
        let document = image(&store, &[work.as_bytes()]).await;
        for number in 0..50 {
            store.put_manifest(&document, Some(&tag(&format!("{work}-{number}")))).await.unwrap();
        }
    });
}

/// Ends its process, as a signal would, when it was told of so many things: a time to wait would be too long for a
/// fast machine and too short for a slow one.
struct Dies(AtomicUsize);

impl Dies {
    fn step(&self) {
        if self.0.fetch_sub(1, Ordering::SeqCst) == 1 {
            std::process::abort();
        }
    }
}

impl Progress for Dies {
    fn begin(&self, _: &str, _: Option<u64>) {
        self.step();
    }
    fn advance(&self, _: &str, _: u64) {
        self.step();
    }
    fn end(&self, _: &str, _: Option<Put>) {
        self.step();
    }
}

fn start_child(dir: &Path, work: &str) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "layout::child_process"])
        .env("LAYOUT_TEST_DIR", dir)
        .env("LAYOUT_TEST_WORK", work)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn two_processes_that_write_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut children = [start_child(dir.path(), "left"), start_child(dir.path(), "right")];
    let mut readers = 0;
    while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        if let Ok(store) = LayoutStore::open(dir.path()) {
            for tag in store.tags().await.unwrap() {
                store.resolve(&Selector::Tag(tag)).await.unwrap();
            }
            readers += 1;
        }
    }
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert!(readers > 0);
    let store = LayoutStore::open(dir.path()).unwrap();
    assert_eq!(store.tags().await.unwrap().len(), 100);
    assert!(files(dir.path()).keys().all(|name| !name.starts_with(".syncpoint")));
}

#[tokio::test]
async fn what_a_killed_writer_left_is_swept_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    assert!(!start_child(dir.path(), "die").wait().unwrap().success());
    let leftovers = |dir: &Path| files(dir).keys().filter(|name| name.starts_with(".syncpoint")).count();
    assert_eq!(leftovers(dir.path()), 1);
    LayoutStore::open(dir.path()).unwrap().tags().await.unwrap();
    assert_eq!(leftovers(dir.path()), 1, "readers remove nothing");
    put(&LayoutStore::open(dir.path()).unwrap(), MEDIA_LAYER, b"x").await;
    assert_eq!(leftovers(dir.path()), 0);
    drop(store);
}

#[tokio::test]
async fn a_copy_killed_at_any_moment_is_finished_by_the_next() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = layout(source.path());
    let layers: Vec<_> = (0..12).map(|seed| noise(seed, 700_000)).collect();
    let members = [image(&from, &[&layers[0], &layers[1]]).await, image(&from, &[&layers[2], &layers[3]]).await];
    let more: Vec<&[u8]> = layers[4..].iter().map(Vec::as_slice).collect();
    let root = index(&[&members[0], &members[1], &image(&from, &more).await]);
    from.put_manifest(&root, Some(&tag("whole"))).await.unwrap();
    let mut killed = 0;
    let mut kept = 0;
    for moment in (1..).step_by(3) {
        let work = format!("copy:{moment}:{}", source.path().display());
        if start_child(target.path(), &work).wait().unwrap().success() {
            break;
        }
        killed += 1;
        if let Ok(store) = LayoutStore::open(target.path()) {
            assert_eq!(
                store.resolve(&Selector::Tag(tag("whole"))).await.is_ok(),
                !store.tags().await.unwrap().is_empty()
            );
        }
        let blobs = files(target.path()).keys().filter(|name| name.starts_with("blobs/")).count();
        assert!(blobs >= kept, "what was finished stays");
        kept = blobs;
    }
    assert!(killed >= 3, "{killed}");
    let store = LayoutStore::open(target.path()).unwrap();
    let report =
        registry::sign::verify(&store, &root.descriptor(), &[], registry::sign::Depth::Blobs, &()).await.unwrap();
    assert_eq!((report.manifests, report.blobs), (4, 12 + 3));
    put(&store, MEDIA_LAYER, b"sweeps").await;
    assert!(files(target.path()).keys().all(|name| !name.starts_with(".syncpoint")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bridge_streams_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(layout(dir.path()));
    let bridge = Bridge::new(Handle::current(), store);
    let path = dir.path();
    let work = move || {
        let bytes = noise(3, (5 << 20) + 3);
        // Threads of the packer's own know of no runtime.
        std::thread::scope(|scope| {
            for part in [&bytes[..], &bytes[1..]] {
                let bridge = &bridge;
                scope.spawn(move || {
                    let mut sink = bridge.create().unwrap();
                    for piece in part.chunks(300_001) {
                        sink.write_all(piece).unwrap();
                    }
                    sink.commit(Digest::of(part), part.len() as u64).unwrap();
                    drop(bridge.create().unwrap());
                });
            }
        });
        let mut wanted =
            Descriptor { media_type: MEDIA_LAYER.to_owned(), digest: Digest::of(&bytes), size: bytes.len() as u64 };
        let mut again = Vec::new();
        bridge.open(&wanted).unwrap().read_to_end(&mut again).unwrap();
        assert!(again == bytes);
        drop(bridge.open(&wanted).unwrap());

        let mut dropped = bridge.create().unwrap();
        dropped.write_all(&bytes).unwrap();
        drop(dropped);
        let mut wrong = bridge.create().unwrap();
        wrong.write_all(b"abc").unwrap();
        let error = wrong.commit(Digest::of(b"abc"), 4).unwrap_err();
        assert!(matches!(error.downcast::<StoreError>().unwrap(), StoreError::Corrupt { .. }));
        wanted.digest = Digest::of(b"nothing");
        let error = bridge.open(&wanted).err().unwrap();
        assert!(matches!(error.downcast::<StoreError>().unwrap(), StoreError::NotFound { .. }));
    };
    tokio::task::spawn_blocking(work).await.unwrap();
    // What was dropped in the middle of a write goes away when that write is done.
    while files(path).keys().any(|name| name.starts_with(".syncpoint")) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(files(path).len(), 2 + 2);
}
