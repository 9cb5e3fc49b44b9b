//! Blobs, sources and manifests for tests.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use image_format::annotation::MEDIA_MANIFEST;
use image_format::{Descriptor, Digest, Document, canonical_json};
use registry::{BlobReader, BlobUpload, Put, Reopen, Store, StoreError, Tag};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

/// Bytes that do not repeat.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

pub fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/octet-stream".to_owned(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
    }
}

/// A source that knows how often it was opened.
#[derive(Default)]
pub struct Source {
    pub bytes: Vec<u8>,
    pub opened: AtomicUsize,
    /// Where reading fails.
    pub fails_at: Option<usize>,
}

impl Source {
    pub fn new(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), ..Self::default() }
    }

    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Reopen for Source {
    async fn open(&self) -> Result<BlobReader, StoreError> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let good = self.bytes[..self.fails_at.unwrap_or(self.bytes.len())].to_vec();
        let end: BlobReader = if self.fails_at.is_some() { Box::pin(Broken) } else { Box::pin(tokio::io::empty()) };
        Ok(Box::pin(io::Cursor::new(good).chain(end)))
    }
}

struct Broken;

impl AsyncRead for Broken {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::Error::other("the disk is on fire")))
    }
}

pub async fn put(store: &dyn Store, bytes: &[u8]) -> Result<Put, StoreError> {
    put_from(store, &Source::new(bytes), bytes, None).await
}

pub async fn put_from(
    store: &dyn Store,
    source: &Source,
    bytes: &[u8],
    mount_from: Option<&str>,
) -> Result<Put, StoreError> {
    let descriptor = descriptor(bytes);
    store.put_blob(BlobUpload { descriptor: &descriptor, source, mount_from, progress: &() }).await
}

/// Writes a blob whose digest the store does not know before.
pub async fn create(store: &dyn Store, bytes: &[u8]) -> Result<(), StoreError> {
    let mut writer = store.create_blob().await?;
    // An error of writing carries the store's.
    if let Err(error) = writer.write_all(bytes).await {
        return Err(error.downcast().unwrap());
    }
    writer.commit(&Digest::of(bytes), bytes.len() as u64).await
}

pub async fn read(store: &dyn Store, wanted: &Descriptor) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    match store.read_blob(wanted).await?.read_to_end(&mut bytes).await {
        Ok(_) => Ok(bytes),
        Err(error) => Err(error.downcast().unwrap()),
    }
}

pub fn manifest(name: &str, subject: Option<&Document>) -> Document {
    let mut content = json!({
        "schemaVersion": 2, "mediaType": MEDIA_MANIFEST, "artifactType": "application/x.test",
        "config": descriptor(b"{}"), "layers": [], "annotations": { "name": name },
    });
    if let Some(subject) = subject {
        content["subject"] = json!(subject.descriptor());
    }
    Document::new(MEDIA_MANIFEST, canonical_json(&content).unwrap())
}

/// The error and all its causes, as a person would see them.
pub fn words(error: &dyn std::error::Error) -> String {
    let mut words = format!("{error} {error:?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(&format!(": {error} {error:?}"));
        cause = error.source();
    }
    words
}
