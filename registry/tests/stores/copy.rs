//! Copies that are interrupted at every step, and done again.

use std::fs;
use std::path::Path;

use image_format::annotation::{MEDIA_INDEX, MEDIA_LAYER, MEDIA_MANIFEST};
use image_format::{Digest, Document, canonical_json};
use registry::{CopyError, CopyOptions, CopyReport, LayoutStore, Selector, Store, StoreError, copy};
use serde_json::{Value, json};

use crate::support::{Failing, MEDIA_EMPTY, entries, files, image, index, layout, manifest, noise, put, read, tag};

/// A global checkpoint of two members that share a layer, everything signed in both forms.
async fn checkpoint(store: &LayoutStore) -> Document {
    let shared = noise(1, 100_000);
    let a = image(store, &[&shared, &noise(2, 200_000)]).await;
    let b = image(store, &[&shared, &noise(3, 300_000)]).await;
    let root = index(&[&a, &b]);
    store.put_manifest(&root, Some(&tag("epoch-7"))).await.unwrap();
    for document in [&root, &a, &b] {
        attach(store, document, document.digest().to_string().as_bytes()).await;
        let empty = put(store, MEDIA_EMPTY, b"{}").await;
        let bundle = put(store, "application/x-bundle", &document.bytes()[1..]).await;
        manifest(store, json!({"config": empty, "layers": [bundle], "subject": document.descriptor()})).await;
    }
    root
}

/// Something under the `.sig` tag.
async fn attach(store: &LayoutStore, subject: &Document, payload: &[u8]) {
    let payload = put(store, "application/vnd.dev.cosign.simplesigning.v1+json", payload).await;
    let config = put(store, MEDIA_EMPTY, b"{}").await;
    let content = json!({"schemaVersion": 2, "mediaType": MEDIA_MANIFEST, "config": config, "layers": [payload]});
    let document = Document::new(MEDIA_MANIFEST, canonical_json(&content).unwrap());
    store.put_manifest(&document, Some(&signature_tag(subject))).await.unwrap();
}

fn signature_tag(subject: &Document) -> registry::Tag {
    tag(&format!("sha256-{}.sig", subject.digest().hex()))
}

fn options() -> CopyOptions<'static> {
    CopyOptions { tag: Some(tag("copied")), ..CopyOptions::default() }
}

fn blobs(dir: &Path) -> usize {
    files(dir).keys().filter(|name| name.starts_with("blobs/")).count()
}

#[tokio::test]
async fn a_copy_brings_everything_and_a_second_one_nothing() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (layout(source.path()), layout(target.path()));
    let root = checkpoint(&from).await;
    let report = copy(&from, &root.descriptor(), &to, &options()).await.unwrap();
    // Three layers and two configs; for each of three manifests a payload and a bundle; `{}` is config of them all.
    assert_eq!((report.blobs_sent, report.manifests), (5 + 6 + 1, 3 + 6));
    assert_eq!(blobs(target.path()), blobs(source.path()));
    assert_eq!(to.resolve(&Selector::Tag(tag("copied"))).await.unwrap(), root.descriptor());
    assert_eq!(to.referrers(&root.digest()).await.unwrap(), from.referrers(&root.digest()).await.unwrap());
    let again = copy(&from, &root.descriptor(), &to, &options()).await.unwrap();
    assert_eq!((again.blobs_sent, again.blobs_existing, again.manifests), (0, 5, 0));

    let bare = tempfile::tempdir().unwrap();
    let unsigned = CopyOptions { signatures: false, ..CopyOptions::default() };
    let report = copy(&from, &root.descriptor(), &layout(bare.path()), &unsigned).await.unwrap();
    assert_eq!((report.blobs_sent, report.manifests), (5, 3));
    assert_eq!(entries(bare.path()), [(root.digest(), None)]);
}

#[tokio::test]
async fn interrupted_at_every_step_no_tag_is_seen_and_the_next_run_sends_the_rest() {
    let source = tempfile::tempdir().unwrap();
    let from = layout(source.path());
    let root = checkpoint(&from).await;
    let whole = tempfile::tempdir().unwrap();
    copy(&from, &root.descriptor(), &layout(whole.path()), &options()).await.unwrap();
    let mut steps = 0;
    loop {
        let target = tempfile::tempdir().unwrap();
        let to = layout(target.path());
        let failing = Failing::after(&to, steps, steps % 2 == 1);
        // One at a time, so that nothing is still on its way to the disk when the copy has failed.
        let one = CopyOptions { jobs: 1, ..options() };
        if copy(&from, &root.descriptor(), &failing, &one).await.is_ok() {
            break;
        }
        assert!(to.resolve(&Selector::Tag(tag("copied"))).await.is_err(), "tagged at step {steps}");
        let there = blobs(target.path());
        let second = copy(&from, &root.descriptor(), &to, &options()).await.unwrap();
        assert_eq!(there + second.blobs_sent + second.manifests, blobs(whole.path()), "step {steps}");
        assert_eq!(files(target.path()), files(whole.path()), "step {steps}");
        steps += 1;
    }
    assert!(steps > 20, "{steps}");
}

#[tokio::test]
async fn signatures_that_are_there_are_kept() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (layout(source.path()), layout(target.path()));
    let root = checkpoint(&from).await;
    attach(&to, &root, b"somebody else's").await;
    copy(&from, &root.descriptor(), &to, &options()).await.unwrap();
    let attached = to.resolve(&Selector::Tag(signature_tag(&root))).await.unwrap();
    let attached: Value = serde_json::from_slice(to.manifest(&attached.digest).await.unwrap().bytes()).unwrap();
    let payloads: Vec<_> = attached["layers"].as_array().unwrap().iter().map(|layer| layer["digest"].clone()).collect();
    assert_eq!(
        payloads,
        [json!(Digest::of(b"somebody else's")), json!(Digest::of(root.digest().to_string().as_bytes()))]
    );
    // Nothing is appended twice.
    let report = copy(&from, &root.descriptor(), &to, &options()).await.unwrap();
    assert_eq!(report.manifests, 0);
}

#[tokio::test]
async fn a_damaged_source_is_noticed() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (layout(source.path()), layout(target.path()));
    let layer = noise(5, 2 << 20);
    let root = image(&from, &[&layer]).await;
    let path = source.path().join("blobs/sha256").join(Digest::of(&layer).hex());
    let mut bytes = layer.clone();
    bytes[1 << 20] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = copy(&from, &root.descriptor(), &to, &options()).await.unwrap_err();
    assert!(matches!(error, CopyError::Store(StoreError::Corrupt { .. })), "{error}");
    assert_eq!(to.tags().await.unwrap(), []);
    fs::remove_file(&path).unwrap();
    let error = copy(&from, &root.descriptor(), &to, &options()).await.unwrap_err();
    assert!(matches!(error, CopyError::Store(StoreError::NotFound { .. })), "{error}");
}

#[tokio::test]
async fn an_index_that_lies_or_nests_is_refused() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (layout(source.path()), layout(target.path()));
    let refused =
        async |root: &Document| copy(&from, &root.descriptor(), &to, &options()).await.unwrap_err().to_string();

    let mut nested = image(&from, &[b"x"]).await;
    for _ in 0..6 {
        nested = index(&[&nested]);
        from.put_manifest(&nested, None).await.unwrap();
    }
    assert!(refused(&nested).await.contains("nested over"));

    let member = image(&from, &[b"y"]).await;
    let mut lying = member.descriptor();
    lying.size += 1;
    let content = json!({"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": [lying]});
    let root = Document::new(MEDIA_INDEX, canonical_json(&content).unwrap());
    from.put_manifest(&root, None).await.unwrap();
    assert!(refused(&root).await.contains("not what refers to it says"));

    let layer = put(&from, MEDIA_LAYER, b"z").await;
    let mut other = layer.clone();
    other.size = 100;
    let root = manifest(&from, json!({"config": layer, "layers": [other]})).await;
    assert!(refused(&root).await.contains("says 1 bytes and another one 100"));

    let missing = index(&[&Document::new(MEDIA_MANIFEST, b"nowhere".to_vec())]);
    from.put_manifest(&missing, None).await.unwrap();
    assert!(refused(&missing).await.contains("is not in oci:"));
    assert_eq!(entries(target.path()), []);
}

#[tokio::test]
async fn jobs_change_nothing_but_time() {
    let source = tempfile::tempdir().unwrap();
    let from = layout(source.path());
    let root = checkpoint(&from).await;
    let mut reports: Vec<CopyReport> = Vec::new();
    for jobs in [0, 1, 16] {
        let target = tempfile::tempdir().unwrap();
        let to = layout(target.path());
        reports.push(copy(&from, &root.descriptor(), &to, &CopyOptions { jobs, ..options() }).await.unwrap());
        for layer in [noise(1, 100_000), noise(3, 300_000)] {
            let descriptor = Document::new(MEDIA_LAYER, layer.clone()).descriptor();
            assert!(read(&to, &descriptor).await.unwrap() == layer);
        }
    }
    assert!(reports.iter().all(|report| *report == reports[0]), "{reports:?}");
}
