//! Removing checkpoints from a layout: what goes, what stays, and what happens at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use image_format::{Digest, Document, Epoch, GlobalCheckpoint, MemberEntry};
use proptest::prelude::*;
use registry::sign::{Depth, PrivateKey, sign, verify};
use registry::{
    CopyOptions, LayoutStore, Newest, Policy, PruneError, PruneOptions, PruneReport, Reason, Selector, Store,
    StoreError, Trust, copy, prune,
};

use crate::support::{files, image, layout, noise, read, tag};

const HOUR: Duration = Duration::from_secs(3600);

fn last(last: u32) -> Policy {
    Policy { last, ..Policy::default() }
}

fn options() -> PruneOptions {
    PruneOptions::new(Trust::InsecureNoVerify, SystemTime::now())
}

/// As if it were an hour and a bit later.
fn later() -> PruneOptions {
    PruneOptions::new(Trust::InsecureNoVerify, SystemTime::now() + HOUR + Duration::from_secs(1))
}

fn global(epoch: u64, members: &[&Document]) -> Document {
    let entry = |(number, member): (usize, &&Document)| MemberEntry {
        id: format!("m{number}").parse().unwrap(),
        depends_on: Vec::new(),
        manifest: member.descriptor(),
        annotations: BTreeMap::new(),
    };
    let created = format!("2026-01-01T00:{:02}:{:02}Z", epoch / 60, epoch % 60);
    let members = members.iter().enumerate().map(entry).collect();
    let application = "ledger".parse().unwrap();
    let global = GlobalCheckpoint::new(application, Epoch(epoch), None, created, members, BTreeMap::new());
    global.unwrap().to_document().unwrap()
}

/// A checkpoint of one member that has the layers of the generations before and one of its own.
async fn generation(store: &dyn Store, epoch: u64, chain: &[Vec<u8>]) -> Document {
    let layers: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
    let member = image(store, &layers).await;
    let document = global(epoch, &[&member]);
    store.put_manifest(&document, Some(&tag(&format!("epoch-{epoch}")))).await.unwrap();
    document
}

/// Everything that a tag leads to is there, byte by byte. Signatures are not asked for.
async fn whole(store: &dyn Store) -> Vec<String> {
    let tags = store.tags().await.unwrap();
    for tag in tags.iter().filter(|tag| !tag.as_str().starts_with("sha256-")) {
        let root = store.resolve(&Selector::Tag(tag.clone())).await.unwrap();
        let report = verify(store, &root, &[], Depth::Blobs, &()).await.unwrap();
        let wrong: Vec<_> = report.findings.iter().filter(|finding| !finding.to_string().contains("sign")).collect();
        assert!(wrong.is_empty(), "{tag}: {wrong:?}");
    }
    tags.iter().map(ToString::to_string).collect()
}

fn stayed(report: &PruneReport) -> Vec<u64> {
    report.kept.iter().map(|kept| kept.checkpoint.epoch.0).collect()
}

#[tokio::test]
async fn space_is_free_at_once_and_generations_keep_their_layers() {
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    let links: Vec<Vec<u8>> = (1..=4).map(|seed| noise(seed, 10_000)).collect();
    for epoch in 1..=3 {
        generation(&store, epoch, &links[..usize::try_from(epoch).unwrap()]).await;
    }
    // A chain of its own: what only the first three have goes.
    generation(&store, 4, &links[3..]).await;
    let before = files(dir.path());

    let dry = prune(&store, &last(2), &PruneOptions { dry_run: true, ..options() }).await.unwrap();
    assert_eq!((stayed(&dry), files(dir.path())), (vec![4, 3], before.clone()));
    let report = prune(&store, &last(2), &options()).await.unwrap();
    assert_eq!(report.store, dry.store, "what was said is what was done");
    assert_eq!(report.store.manifests, 4, "two indexes and two members");
    assert_eq!(whole(&store).await, ["epoch-3", "epoch-4"]);
    assert_eq!(report.kept[0].reasons, [Reason::Last]);

    let report = prune(&store, &last(1), &options()).await.unwrap();
    assert!(report.store.freed && report.store.bytes > 30_000, "{report:?}");
    assert_eq!(whole(&store).await, ["epoch-4"]);
    let size = |files: BTreeMap<String, u64>| files.values().sum::<u64>();
    assert!(size(files(dir.path())) < 15_000, "{:?}", files(dir.path()));
    let names = files(dir.path());
    assert!(names.keys().all(|name| !name.contains("gone-")), "{names:?}");
}

#[tokio::test]
async fn no_rule_is_refused_and_pins_and_other_tags_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    for epoch in 1..=4u64 {
        let document = generation(&store, epoch, &[noise(epoch, 100)]).await;
        if epoch == 1 {
            store.put_manifest(&document, Some(&tag("pin-x"))).await.unwrap();
        }
        if epoch == 2 {
            store.put_manifest(&document, Some(&tag("release-2"))).await.unwrap();
        }
    }
    let tagged = image(&store, &[b"member with a tag"]).await;
    store.put_manifest(&tagged, Some(&tag("consumer-7"))).await.unwrap();
    let error = prune(&store, &Policy::default(), &options()).await.unwrap_err();
    assert!(matches!(error, PruneError::NoRule), "{error}");

    let policy = Policy { last: 1, tags: vec!["release-*".parse().unwrap()], ..Policy::default() };
    let report = prune(&store, &policy, &later()).await.unwrap();
    assert_eq!(stayed(&report), [4, 2, 1]);
    assert_eq!(whole(&store).await, ["consumer-7", "epoch-1", "epoch-2", "epoch-4", "pin-x", "release-2"]);
    let other = PruneOptions { application: Some("other".parse().unwrap()), ..options() };
    assert!(prune(&store, &last(1), &other).await.unwrap().kept.is_empty());
    assert_eq!(store.tags().await.unwrap().len(), 6);
}

#[tokio::test]
async fn signatures_go_with_what_they_sign() {
    let (dir, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = layout(dir.path());
    let pem = PrivateKey::generate().unwrap();
    for epoch in 1..=2 {
        let document = generation(&store, epoch, &[noise(epoch, 100)]).await;
        sign(&store, &document.descriptor(), &pem, "here").await.unwrap();
    }
    // What one signed checkpoint takes is what a copy of it takes.
    let target = layout(copied.path());
    let root = store.resolve(&Selector::Tag(tag("epoch-2"))).await.unwrap();
    copy(&store, &root, &target, &CopyOptions { tag: Some(tag("epoch-2")), ..CopyOptions::default() }).await.unwrap();

    prune(&store, &last(1), &options()).await.unwrap();
    let names = |dir: &Path| files(dir).into_keys().filter(|name| name != "index.json").collect::<BTreeSet<_>>();
    assert_eq!(names(dir.path()), names(copied.path()));
    let report = verify(&store, &root, &[pem.public_key()], Depth::Blobs, &()).await.unwrap();
    assert!(report.is_good() && report.findings.is_empty(), "{:?}", report.findings);
}

#[tokio::test]
async fn what_is_under_way_is_left_alone_for_the_time_of_grace() {
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    generation(&store, 1, &[noise(1, 100)]).await;
    // Blobs, a member and an index of a checkpoint that has no tag yet.
    let member = image(&store, &[&noise(2, 100)]).await;
    let other = image(&store, &[&noise(3, 100)]).await;
    let index = global(2, &[&member]);
    store.put_manifest(&index, None).await.unwrap();
    let before = files(dir.path());
    let report = prune(&store, &last(1), &options()).await.unwrap();
    assert_eq!((report.store.blobs, files(dir.path())), (0, before));
    store.put_manifest(&index, Some(&tag("epoch-2"))).await.unwrap();
    assert_eq!(whole(&store).await, ["epoch-1", "epoch-2"]);

    prune(&store, &last(2), &later()).await.unwrap();
    assert_eq!(whole(&store).await, ["epoch-1", "epoch-2"]);
    assert!(!store.has_manifest(&other.digest()).await.unwrap(), "an hour later it is a leftover");
}

#[tokio::test]
async fn what_is_spoken_for_outlives_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    let layers = [noise(1, 100), noise(2, 100)];
    generation(&store, 1, &layers).await;
    generation(&store, 2, &[noise(3, 100)]).await;
    std::thread::sleep(Duration::from_millis(20));
    // Somebody is about to write an image over the first layer, and somebody else found the second one there.
    store.hold(&[Digest::of(&layers[0])]).await.unwrap();
    crate::support::put(&store, image_format::annotation::MEDIA_LAYER, &layers[1]).await;
    prune(&store, &last(1), &options()).await.unwrap();
    generation(&store, 3, &layers).await;
    assert_eq!(whole(&store).await, ["epoch-2", "epoch-3"]);

    // Without that it is gone, and an image over it gets no tag.
    std::thread::sleep(Duration::from_millis(20));
    let member = image(&store, &[&layers[0]]).await;
    let late = global(4, &[&member]);
    prune(&store, &Policy { tags: vec!["none".parse().unwrap()], ..Policy::default() }, &later()).await.unwrap();
    let error = store.put_manifest(&late, Some(&tag("epoch-4"))).await.unwrap_err();
    assert!(error.to_string().contains("it would be incomplete"), "{error}");
    assert_eq!(whole(&store).await, [""; 0]);
}

#[tokio::test]
async fn a_tag_that_comes_after_the_decision_saves_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    let document = generation(&store, 1, &[noise(1, 100)]).await;
    let removal = registry::Removal {
        checkpoints: vec![(document.digest(), vec![tag("epoch-1")])],
        before: SystemTime::now(),
        dry_run: false,
        jobs: 1,
    };
    store.put_manifest(&document, Some(&tag("pin-1"))).await.unwrap();
    assert_eq!(store.remove(&removal).await.unwrap().checkpoints, []);
    assert_eq!(whole(&store).await, ["epoch-1", "pin-1"]);
}

#[tokio::test]
async fn what_cannot_be_read_keeps_all_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    generation(&store, 1, &[noise(1, 100)]).await;
    let member = image(&store, &[&noise(2, 100)]).await;
    let kept = global(2, &[&member]);
    store.put_manifest(&kept, Some(&tag("epoch-2"))).await.unwrap();
    let path = dir.path().join(format!("blobs/sha256/{}", member.digest().hex()));
    std::fs::write(&path, b"{}").unwrap();
    let before = files(dir.path()).len();
    let report = prune(&store, &last(1), &later()).await.unwrap();
    assert_eq!(report.store.unreadable, [member.digest()]);
    // The one before is the newest that is whole, and stays.
    assert_eq!((files(dir.path()).len(), store.tags().await.unwrap().len()), (before, 2));
    // Whole again, the rest goes.
    std::fs::write(&path, member.bytes()).unwrap();
    assert_eq!(prune(&store, &last(1), &later()).await.unwrap().store.manifests, 2);
    assert_eq!(whole(&store).await, ["epoch-2"]);
    assert!(files(dir.path()).len() < before);
}

/// Writers make checkpoints over the blobs of earlier ones, readers copy the newest, and all the while everything old is removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_that_is_referred_to_is_lost_in_a_race() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(layout(dir.path()));
    let (done, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let pruner = {
        // A store of its own, as another process has.
        let (store, done, rounds) = (LayoutStore::open(dir.path()).unwrap(), done.clone(), rounds.clone());
        tokio::spawn(async move {
            while !done.load(Ordering::SeqCst) {
                prune(&store, &last(2), &options()).await.unwrap();
                rounds.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    let writers = (0..2u64).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..40u64 {
                let epoch = 2 * round + writer;
                // Layers that come again and again, so that most are there, or just went.
                let layers: Vec<_> = (0..3).map(|n| noise(1 + (round * 3 + n) % 7, 2000)).collect();
                generation(&*store, epoch, &layers).await;
            }
        })
    });
    let reader = async {
        let mut copies = 0;
        while !done.load(Ordering::SeqCst) {
            let ledger = "ledger".parse().unwrap();
            let newest = registry::newest(&*store, &ledger, &Trust::InsecureNoVerify, 2).await;
            let Ok(Newest { listed: Some(newest), .. }) = newest else { continue };
            let target = tempfile::tempdir().unwrap();
            let options = CopyOptions { tag: Some(tag("copy")), ..CopyOptions::default() };
            match copy(&*store, &newest.root, &layout(target.path()), &options).await {
                Ok(_) => copies += usize::from(!whole(&layout(target.path())).await.is_empty()),
                // It was removed meanwhile, which only happens to what is no longer one of the newest.
                Err(error) => assert!(error.to_string().contains("is not in oci:"), "{error}"),
            }
        }
        copies
    };
    let all_written = async {
        for writer in writers {
            writer.await.unwrap();
        }
        done.store(true, Ordering::SeqCst);
    };
    let (copies, ()) = tokio::join!(reader, all_written);
    pruner.await.unwrap();
    assert!(copies > 0 && rounds.load(Ordering::SeqCst) > 10);
    prune(&*store, &last(2), &options()).await.unwrap();
    assert_eq!(whole(&*store).await, ["epoch-78", "epoch-79"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whatever is written, tagged, moved and pruned, in any order: every tag leads to all that it needs, and after the time of grace
    /// nothing else is left.
    #[test]
    fn tags_always_lead_to_all_that_they_need(steps in proptest::collection::vec((0u8..5, 0u64..5, 0u64..6), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let store = layout(dir.path());
            let mut waiting: Option<Document> = None;
            for (epoch, (step, a, b)) in steps.into_iter().enumerate() {
                let epoch = epoch as u64;
                match step {
                    0 => {
                        generation(&store, epoch, &[noise(a, 50), noise(b, 50)]).await;
                    }
                    1 => {
                        let (first, second) = (image(&store, &[&noise(a, 50)]).await, image(&store, &[&noise(b, 50)]).await);
                        waiting = Some(global(epoch, &[&first, &second]));
                    }
                    2 => {
                        if let Some(document) = waiting.take() {
                            let put = store.put_manifest(&document, Some(&tag("moving"))).await;
                            if let Err(error) = put {
                                let refused = matches!(error, StoreError::Refused { .. });
                                assert!(refused, "{error}");
                            }
                        }
                    }
                    3 => {
                        let policy = last(u32::try_from(a).unwrap() + 1);
                        prune(&store, &policy, &options()).await.unwrap();
                    }
                    _ => {
                        prune(&store, &last(u32::try_from(b).unwrap() + 1), &later()).await.unwrap();
                    }
                }
                whole(&store).await;
            }
            let policy = Policy { tags: vec!["none".parse().unwrap()], ..Policy::default() };
            prune(&store, &policy, &later()).await.unwrap();
            assert_eq!(files(dir.path()).len(), 2);
        });
    }
}

#[tokio::test]
async fn a_crash_in_the_middle_is_finished_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    generation(&store, 1, &[noise(1, 100)]).await;
    // As it is between the rename and the deletion of a file.
    let private = dir.path().join(".syncpoint");
    std::fs::write(private.join("gone-0"), b"memory").unwrap();
    let again = LayoutStore::open(dir.path()).unwrap();
    let descriptor = crate::support::put(&again, image_format::annotation::MEDIA_LAYER, b"new").await;
    assert!(!private.join("gone-0").exists());
    assert_eq!(read(&again, &descriptor).await.unwrap(), b"new");
}

#[tokio::test]
async fn only_whole_checkpoints_count() {
    let dir = tempfile::tempdir().unwrap();
    let store = layout(dir.path());
    for epoch in 1..=4 {
        generation(&store, epoch, &[noise(epoch, 1_000)]).await;
    }
    let blob = |seed: u64| dir.path().join("blobs/sha256").join(Digest::of(&noise(seed, 1_000)).hex());
    std::fs::remove_file(blob(4)).unwrap();
    std::fs::write(blob(3), b"short").unwrap();
    let dry = PruneOptions { dry_run: true, ..options() };
    let report = prune(&store, &last(1), &dry).await.unwrap();
    // The two newest are broken: they stay beside the one that counts, since they may be copied here again.
    assert_eq!(stayed(&report), [4, 3, 2]);
    let missing: Vec<Digest> = report.incomplete.iter().map(|(_, missing)| *missing).collect();
    assert_eq!(missing, [Digest::of(&noise(4, 1_000)), Digest::of(&noise(3, 1_000))]);

    // A rule that keeps only what is broken leaves the newest that is whole, too.
    let tagged = Policy { tags: vec!["epoch-4".parse().unwrap()], ..Policy::default() };
    let report = prune(&store, &tagged, &dry).await.unwrap();
    assert_eq!(stayed(&report), [4, 2]);
    assert_eq!(report.kept[1].reasons, [Reason::Whole]);
    let report = prune(&store, &last(1), &later()).await.unwrap();
    assert_eq!((stayed(&report), report.removed.len()), (vec![4, 3, 2], 1));
}
