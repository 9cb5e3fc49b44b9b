//! Signing and verifying: who is believed, and that everything wrong is found in one run.

use std::fs;
use std::path::Path;

use image_format::annotation::{MEDIA_INDEX, MEDIA_LAYER, MEDIA_MANIFEST};
use image_format::{Descriptor, Digest, Document, canonical_json};
use registry::sign::{
    Depth, Finding, Form, Password, PrivateKey, PublicKey, Severity, SignError, SignReport, VerifyReport, sign, verify,
};
use registry::{CopyOptions, LayoutStore, Selector, Store, StoreError, Tag, copy};
use serde_json::{Value, json};

use crate::support::{entries, files, image, index, layout, manifest, noise, put, tag};

const IDENTITY: &str = "registry.example/sdp/ledger:epoch-7";

fn key(name: &str) -> PrivateKey {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/keys").join(name);
    PrivateKey::load(&fs::read_to_string(file).unwrap(), &Password::new("syncpoint-test")).unwrap()
}

fn ours() -> PrivateKey {
    key("openssl.key")
}

struct Checkpoint {
    dir: tempfile::TempDir,
    store: LayoutStore,
    members: [Document; 2],
    root: Document,
}

impl Checkpoint {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = layout(dir.path());
        let members = [image(&store, &[b"a", &noise(1, 5000)]).await, image(&store, &[b"b"]).await];
        let root = index(&[&members[0], &members[1]]);
        store.put_manifest(&root, Some(&tag("epoch-7"))).await.unwrap();
        Self { dir, store, members, root }
    }

    async fn sign(&self, key: &PrivateKey) -> SignReport {
        sign(&self.store, &self.root.descriptor(), key, IDENTITY).await.unwrap()
    }

    async fn verify(&self, keys: &[PublicKey], depth: Depth) -> VerifyReport {
        verify(&self.store, &self.root.descriptor(), keys, depth, &()).await.unwrap()
    }

    fn blob(&self, digest: &Digest) -> std::path::PathBuf {
        self.dir.path().join("blobs/sha256").join(digest.hex())
    }

    /// Puts layers under a `.sig` tag, as anybody who can write there may.
    async fn put_attachment(&self, subject: &Document, layers: &[Value]) {
        let config = put(&self.store, "application/vnd.oci.empty.v1+json", b"{}").await;
        let content = json!({"schemaVersion": 2, "mediaType": MEDIA_MANIFEST, "config": config, "layers": layers});
        let document = Document::new(MEDIA_MANIFEST, canonical_json(&content).unwrap());
        self.store.put_manifest(&document, Some(&signature_tag(subject))).await.unwrap();
    }

    async fn attachment(&self, subject: &Document) -> Vec<Value> {
        let attached = self.store.resolve(&Selector::Tag(signature_tag(subject))).await.unwrap();
        let document = self.store.manifest(&attached.digest).await.unwrap();
        let content: Value = serde_json::from_slice(document.bytes()).unwrap();
        content["layers"].as_array().unwrap().clone()
    }
}

fn signature_tag(subject: &Document) -> Tag {
    tag(&format!("sha256-{}.sig", subject.digest().hex()))
}

#[tokio::test]
async fn what_is_signed_is_verified_in_both_forms() {
    let it = Checkpoint::new().await;
    assert_eq!(it.sign(&ours()).await, SignReport { manifests: 3, added: 6 });
    let report = it.verify(&[key("cosign-2.key").public_key(), ours().public_key()], Depth::Blobs).await;
    assert_eq!(report.findings, []);
    assert_eq!((report.manifests, report.blobs, report.bytes), (3, 5, blob_bytes(&it).await));
    assert_eq!(report.signatures.len(), 6);
    for document in it.members.iter().chain([&it.root]) {
        for (form, identity) in [(Form::Simple, Some(IDENTITY)), (Form::Bundle, None)] {
            let here = |good: &&registry::sign::GoodSignature| good.manifest == document.digest() && good.form == form;
            let good = report.signatures.iter().find(here).unwrap();
            assert_eq!(good.identity.as_deref(), identity);
            assert_eq!(good.key, ours().public_key().fingerprint());
        }
    }
    let shallow = it.verify(&[ours().public_key()], Depth::Signature).await;
    assert!(shallow.is_good());
    assert_eq!((shallow.signatures.len(), shallow.manifests, shallow.blobs), (2, 1, 0));
}

async fn blob_bytes(it: &Checkpoint) -> u64 {
    let mut sum = 0;
    for member in &it.members {
        let content: Value = serde_json::from_slice(member.bytes()).unwrap();
        let layers = content["layers"].as_array().unwrap().iter();
        sum += layers.chain([&content["config"]]).map(|blob| blob["size"].as_u64().unwrap()).sum::<u64>();
    }
    sum
}

#[tokio::test]
async fn signing_again_changes_nothing_and_others_stay() {
    let it = Checkpoint::new().await;
    it.sign(&key("cosign-2.key")).await;
    let theirs = it.attachment(&it.root).await;
    it.sign(&ours()).await;
    let before = (files(it.dir.path()), entries(it.dir.path()));
    assert_eq!(it.sign(&ours()).await, SignReport { manifests: 3, added: 0 });
    assert_eq!((files(it.dir.path()), entries(it.dir.path())), before);
    let both = it.attachment(&it.root).await;
    assert_eq!((both.len(), &both[0]), (2, &theirs[0]));
    for key in [ours(), key("cosign-2.key")] {
        let report = it.verify(&[key.public_key()], Depth::Manifests).await;
        assert!(report.is_good());
        assert!(report.findings.iter().all(|finding| matches!(finding, Finding::OtherKey { .. })), "{report:?}");
    }
    // Another name for the same image is another payload, but the bundle has no names.
    let renamed = sign(&it.store, &it.root.descriptor(), &ours(), "registry.example/other:1").await.unwrap();
    assert_eq!(renamed, SignReport { manifests: 3, added: 3 });
}

#[tokio::test]
async fn unsigned_and_otherwise_signed_are_told_apart() {
    let it = Checkpoint::new().await;
    let trusted = [ours().public_key()];
    let report = it.verify(&trusted, Depth::Manifests).await;
    let root = it.root.digest();
    let [a, b] = [it.members[0].digest(), it.members[1].digest()];
    let expected = [
        Finding::Unsigned { manifest: root },
        Finding::MemberUnsigned { manifest: a },
        Finding::MemberUnsigned { manifest: b },
    ];
    assert_eq!(report.findings, expected);
    assert!(!report.is_good());

    it.sign(&key("cosign-3.key")).await;
    let report = it.verify(&trusted, Depth::Signature).await;
    let expected = [
        Finding::OtherKey { manifest: root, form: Form::Simple },
        Finding::OtherKey { manifest: root, form: Form::Bundle },
        Finding::NotAccepted { manifest: root },
    ];
    assert_eq!(report.findings, expected);
    assert!(!it.verify(&[], Depth::Signature).await.is_good());
}

#[tokio::test]
async fn a_signature_of_another_image_does_not_count() {
    let it = Checkpoint::new().await;
    sign(&it.store, &it.members[0].descriptor(), &ours(), IDENTITY).await.unwrap();
    it.put_attachment(&it.root, &it.attachment(&it.members[0]).await).await;
    let report = it.verify(&[ours().public_key()], Depth::Signature).await;
    let signed = it.members[0].digest().to_string();
    let moved = Finding::OtherDigest { manifest: it.root.digest(), form: Form::Simple, signed };
    assert_eq!(report.findings, [moved, Finding::NotAccepted { manifest: it.root.digest() }]);
    assert!(!report.is_good());
}

#[tokio::test]
async fn a_bad_signature_never_hides_a_good_one() {
    let it = Checkpoint::new().await;
    it.sign(&ours()).await;
    let mut layers = it.attachment(&it.root).await;
    let good = layers[0].clone();
    let junk = put(&it.store, good["mediaType"].as_str().unwrap(), b"{").await;
    let missing = Descriptor { digest: Digest::of(b"missing"), ..junk.clone() };
    let mut huge = missing.clone();
    huge.size = 1 << 40;
    let signature = json!({"dev.cosignproject.cosign/signature": "AAAA"});
    let with = |descriptor: &Descriptor| {
        let mut layer = serde_json::to_value(descriptor).unwrap();
        layer["annotations"] = signature.clone();
        layer
    };
    let mut other_kind = good.clone();
    other_kind["mediaType"] = json!(MEDIA_LAYER);
    let bad = [with(&junk), serde_json::to_value(&junk).unwrap(), with(&missing), with(&huge), other_kind];
    layers.splice(0..0, bad);
    it.put_attachment(&it.root, &layers).await;
    // A bundle that is none, and one whose blob is gone.
    let bundle = "application/vnd.dev.sigstore.bundle.v0.3+json";
    let broken = put(&it.store, bundle, b"[]").await;
    let gone = Descriptor { media_type: bundle.to_owned(), ..missing.clone() };
    for layer in [&broken, &gone] {
        let content = json!({"config": junk, "layers": [layer], "subject": it.root.descriptor()});
        manifest(&it.store, content).await;
    }
    let report = it.verify(&[ours().public_key()], Depth::Signature).await;
    let malformed = report.findings.iter().filter(|finding| matches!(finding, Finding::MalformedSignature { .. }));
    assert_eq!((malformed.count(), report.findings.len()), (6, 7), "{report:#?}");
    assert_eq!(report.signatures.len(), 2);
    assert!(report.is_good());

    // The tag may also name something that is no attachment; the bundle still counts.
    it.store.put_manifest(&it.members[0], Some(&signature_tag(&it.root))).await.unwrap();
    assert!(it.verify(&[ours().public_key()], Depth::Signature).await.is_good());
    fs::write(it.blob(&it.members[0].digest()), b"{}").unwrap();
    let report = it.verify(&[ours().public_key()], Depth::Signature).await;
    assert!(report.is_good());
    assert!(
        matches!(report.findings[..], [Finding::MalformedSignature { form: Form::Simple, .. }, _, _]),
        "{report:?}"
    );
    let error = sign(&it.store, &it.root.descriptor(), &ours(), IDENTITY).await;
    assert!(matches!(error, Err(SignError::Store(_))));
}

#[tokio::test]
async fn everything_that_is_wrong_is_found_in_one_run() {
    let it = Checkpoint::new().await;
    it.sign(&ours()).await;
    let config = |document: &Document| -> Digest {
        let content: Value = serde_json::from_slice(document.bytes()).unwrap();
        content["config"]["digest"].as_str().unwrap().parse().unwrap()
    };
    let [a, b] = &it.members;
    let (layer, small) = (noise(1, 5000), Digest::of(b"a"));
    let mut changed = layer.clone();
    changed[4000] ^= 4;
    fs::write(it.blob(&Digest::of(&layer)), changed).unwrap();
    fs::write(it.blob(&small), b"too long").unwrap();
    fs::remove_file(it.blob(&config(a))).unwrap();
    fs::write(it.blob(&b.digest()), b"{}").unwrap();
    let report = it.verify(&[ours().public_key()], Depth::Blobs).await;
    let name = |finding: &Finding| format!("{finding:?}").split([' ', '{']).next().unwrap().to_owned();
    let names: Vec<_> = report.findings.iter().map(name).collect();
    assert_eq!(names, ["DamagedManifest", "MissingBlob", "WrongSize", "DamagedBlob"]);
    assert!(report.findings.iter().all(|finding| finding.severity() == Severity::Error && !finding.hint().is_empty()));
    // Without reading every byte, the changed one is not seen.
    let report = it.verify(&[ours().public_key()], Depth::Manifests).await;
    assert_eq!(report.findings.len(), 3);
    fs::remove_file(it.blob(&it.root.digest())).unwrap();
    // A root that was taken away meanwhile is gone, and nothing is said of its trust.
    let root = it.root.descriptor();
    let gone = verify(&it.store, &root, &[ours().public_key()], Depth::Blobs, &()).await.unwrap_err();
    assert!(matches!(gone, StoreError::NotFound { .. }), "{gone}");
    let gone = verify(&it.store, &root, &[], Depth::Signature, &()).await.unwrap_err();
    assert!(matches!(gone, StoreError::NotFound { .. }), "{gone}");
}

#[tokio::test]
async fn an_index_that_lies_is_found_out() {
    let it = Checkpoint::new().await;
    let mut lying = it.members[0].descriptor();
    lying.size += 1;
    let mut huge = it.members[1].descriptor();
    huge.size = 100 << 20;
    let content = json!({"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": [lying, huge]});
    let root = Document::new(MEDIA_INDEX, canonical_json(&content).unwrap());
    it.store.put_manifest(&root, None).await.unwrap();
    sign(&it.store, &root.descriptor(), &ours(), IDENTITY).await.unwrap();
    let report = verify(&it.store, &root.descriptor(), &[ours().public_key()], Depth::Blobs, &()).await.unwrap();
    let wrong = |finding: &Finding| matches!(finding, Finding::WrongSize { .. } | Finding::DamagedManifest { .. });
    assert_eq!(report.findings.iter().filter(|finding| wrong(finding)).count(), 2, "{report:?}");
    assert!(!report.is_good());
}

#[tokio::test]
async fn signatures_travel_with_a_copy() {
    let it = Checkpoint::new().await;
    it.sign(&ours()).await;
    let dir = tempfile::tempdir().unwrap();
    let to = layout(dir.path());
    copy(&it.store, &it.root.descriptor(), &to, &CopyOptions::default()).await.unwrap();
    let report = verify(&to, &it.root.descriptor(), &[ours().public_key()], Depth::Blobs, &()).await.unwrap();
    assert_eq!((report.findings.len(), report.signatures.len()), (0, 6));
}
