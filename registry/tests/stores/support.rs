//! Small images in layouts, and a store that fails when it is told to.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use image_format::annotation::{MEDIA_CONFIG, MEDIA_INDEX, MEDIA_LAYER, MEDIA_MANIFEST};
use image_format::{Descriptor, Digest, Document, canonical_json};
use registry::{
    BlobReader, BlobUpload, BlobWriter, LayoutStore, Put, Removal, Removed, Reopen, Selector, Store, StoreError, Tag,
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

pub const MEDIA_EMPTY: &str = "application/vnd.oci.empty.v1+json";

pub fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

/// Bytes that do not repeat, so that equal pieces are never found by chance.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

pub struct Memory(pub Vec<u8>);

#[async_trait]
impl Reopen for Memory {
    async fn open(&self) -> Result<BlobReader, StoreError> {
        Ok(Box::pin(std::io::Cursor::new(self.0.clone())))
    }
}

pub async fn put(store: &dyn Store, media_type: &str, bytes: &[u8]) -> Descriptor {
    let descriptor = Document::new(media_type, bytes.to_vec()).descriptor();
    let source = Memory(bytes.to_vec());
    store
        .put_blob(BlobUpload { descriptor: &descriptor, source: &source, mount_from: None, progress: &() })
        .await
        .unwrap();
    descriptor
}

pub async fn read(store: &dyn Store, descriptor: &Descriptor) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    store.read_blob(descriptor).await.map_err(std::io::Error::other)?.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// An image of uncompressed layers; its manifest is put without a tag.
pub async fn image(store: &dyn Store, layers: &[&[u8]]) -> Document {
    let mut descriptors = Vec::new();
    for layer in layers {
        descriptors.push(put(store, MEDIA_LAYER, layer).await);
    }
    let diff_ids: Vec<_> = descriptors.iter().map(|layer| layer.digest).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = put(store, MEDIA_CONFIG, &canonical_json(&config).unwrap()).await;
    manifest(store, json!({"config": config, "layers": descriptors})).await
}

/// A manifest of any content, without a tag.
pub async fn manifest(store: &dyn Store, mut content: Value) -> Document {
    content["schemaVersion"] = json!(2);
    content["mediaType"] = json!(MEDIA_MANIFEST);
    let document = Document::new(MEDIA_MANIFEST, canonical_json(&content).unwrap());
    match content.get("subject").and_then(|subject| subject["digest"].as_str()) {
        Some(subject) => store.put_referrer(&subject.parse().unwrap(), &document).await.unwrap(),
        None => store.put_manifest(&document, None).await.unwrap(),
    }
    document
}

pub fn index(members: &[&Document]) -> Document {
    let entries: Vec<Value> = members
        .iter()
        .enumerate()
        .map(|(number, member)| {
            let mut entry = serde_json::to_value(member.descriptor()).unwrap();
            entry["annotations"] = json!({"io.syncpoint.member": format!("m{number}")});
            entry
        })
        .collect();
    let content = json!({"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": entries});
    Document::new(MEDIA_INDEX, canonical_json(&content).unwrap())
}

pub fn layout(dir: &Path) -> LayoutStore {
    LayoutStore::create(dir).unwrap()
}

/// Entries of `index.json`: digest and tag.
pub fn entries(dir: &Path) -> Vec<(Digest, Option<String>)> {
    let index: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json")).unwrap()).unwrap();
    let entry = |entry: &Value| {
        let name = entry["annotations"]["org.opencontainers.image.ref.name"].as_str().map(str::to_owned);
        (entry["digest"].as_str().unwrap().parse().unwrap(), name)
    };
    index["manifests"].as_array().unwrap().iter().map(entry).collect()
}

/// All files below a folder with their sizes, without the lock.
pub fn files(dir: &Path) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().unwrap() != "lock" {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                all.insert(name, path.metadata().unwrap().len());
            }
        }
    }
    all
}

/// Passes everything on until so many changes went through; the one after that fails, and so do all later ones.
#[derive(Debug)]
pub struct Failing<'a> {
    pub store: &'a LayoutStore,
    pub changes: AtomicUsize,
    /// Cuts the failing blob in its middle instead of refusing it.
    pub torn: bool,
}

impl<'a> Failing<'a> {
    pub fn after(store: &'a LayoutStore, changes: usize, torn: bool) -> Self {
        Self { store, changes: AtomicUsize::new(changes), torn }
    }

    fn step(&self) -> Result<(), StoreError> {
        self.changes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).map(drop).map_err(
            |_| StoreError::Refused {
                store: "failing".to_owned(),
                operation: "a change".to_owned(),
                reason: "the test wants it".to_owned(),
            },
        )
    }
}

struct Torn<'a>(&'a dyn Reopen, u64);

#[async_trait]
impl Reopen for Torn<'_> {
    async fn open(&self) -> Result<BlobReader, StoreError> {
        Ok(Box::pin(self.0.open().await?.take(self.1)))
    }
}

#[async_trait]
impl Store for Failing<'_> {
    fn name(&self) -> &str {
        self.store.name()
    }
    async fn resolve(&self, selector: &Selector) -> Result<Descriptor, StoreError> {
        self.store.resolve(selector).await
    }
    async fn manifest(&self, digest: &Digest) -> Result<Document, StoreError> {
        self.store.manifest(digest).await
    }
    async fn has_manifest(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.store.has_manifest(digest).await
    }
    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.store.blob_size(digest).await
    }
    async fn read_blob(&self, descriptor: &Descriptor) -> Result<BlobReader, StoreError> {
        self.store.read_blob(descriptor).await
    }
    async fn create_blob(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.store.create_blob().await
    }
    async fn put_blob(&self, upload: BlobUpload<'_>) -> Result<Put, StoreError> {
        match self.step() {
            Ok(()) => self.store.put_blob(upload).await,
            Err(_) if self.torn => {
                let torn = Torn(upload.source, upload.descriptor.size / 2);
                self.store.put_blob(BlobUpload { source: &torn, ..upload }).await
            }
            Err(error) => Err(error),
        }
    }
    async fn put_manifest(&self, document: &Document, tag: Option<&Tag>) -> Result<(), StoreError> {
        self.step()?;
        self.store.put_manifest(document, tag).await
    }
    async fn tags(&self) -> Result<Vec<Tag>, StoreError> {
        self.store.tags().await
    }
    async fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, StoreError> {
        self.store.referrers(digest).await
    }
    async fn put_referrer(&self, subject: &Digest, document: &Document) -> Result<(), StoreError> {
        self.step()?;
        self.store.put_referrer(subject, document).await
    }
    async fn hold(&self, contents: &[Digest]) -> Result<(), StoreError> {
        self.store.hold(contents).await
    }
    async fn remove(&self, removal: &Removal) -> Result<Removed, StoreError> {
        self.step()?;
        self.store.remove(removal).await
    }
    async fn delete_tag(&self, tag: &Tag) -> Result<(), StoreError> {
        self.step()?;
        self.store.delete_tag(tag).await
    }
}
