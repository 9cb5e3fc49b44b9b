//! A store that stops answering at one operation, for tests.

use std::future::pending;
use std::sync::Arc;

use async_trait::async_trait;
use image_format::{Descriptor, Digest, Document};
use registry::{BlobReader, BlobUpload, BlobWriter, Put, Removal, Removed, Selector, Store, StoreError, Tag, TagList};

/// What a store may be stuck at.
pub(crate) const OPERATIONS: &[&str] = &[
    "resolve",
    "manifest",
    "has_manifest",
    "blob_size",
    "read_blob",
    "create_blob",
    "put_blob",
    "put_manifest",
    "put_tag",
    "tags",
    "referrers",
    "put_referrer",
    "hold",
];

/// Another store, but for one operation, which never ends.
#[derive(Debug)]
pub(crate) struct Stuck {
    store: Arc<dyn Store>,
    at: &'static str,
}

impl Stuck {
    pub(crate) fn at(operation: &'static str, store: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(Self { store, at: operation })
    }

    async fn pass(&self, operation: &str) {
        if operation == self.at {
            pending::<()>().await;
        }
    }
}

#[async_trait]
impl Store for Stuck {
    fn name(&self) -> &str {
        self.store.name()
    }

    async fn resolve(&self, selector: &Selector) -> Result<Descriptor, StoreError> {
        self.pass("resolve").await;
        self.store.resolve(selector).await
    }

    async fn manifest(&self, digest: &Digest) -> Result<Document, StoreError> {
        self.pass("manifest").await;
        self.store.manifest(digest).await
    }

    async fn has_manifest(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.pass("has_manifest").await;
        self.store.has_manifest(digest).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.pass("blob_size").await;
        self.store.blob_size(digest).await
    }

    async fn read_blob(&self, descriptor: &Descriptor) -> Result<BlobReader, StoreError> {
        self.pass("read_blob").await;
        self.store.read_blob(descriptor).await
    }

    async fn create_blob(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.pass("create_blob").await;
        self.store.create_blob().await
    }

    async fn put_blob(&self, upload: BlobUpload<'_>) -> Result<Put, StoreError> {
        self.pass("put_blob").await;
        self.store.put_blob(upload).await
    }

    async fn put_manifest(&self, document: &Document, tag: Option<&Tag>) -> Result<(), StoreError> {
        self.pass(if tag.is_some() { "put_tag" } else { "put_manifest" }).await;
        self.store.put_manifest(document, tag).await
    }

    async fn tags(&self) -> Result<Vec<Tag>, StoreError> {
        self.pass("tags").await;
        self.store.tags().await
    }

    async fn tag_list(&self) -> Result<TagList, StoreError> {
        self.pass("tags").await;
        self.store.tag_list().await
    }

    async fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, StoreError> {
        self.pass("referrers").await;
        self.store.referrers(digest).await
    }

    async fn put_referrer(&self, subject: &Digest, document: &Document) -> Result<(), StoreError> {
        self.pass("put_referrer").await;
        self.store.put_referrer(subject, document).await
    }

    async fn hold(&self, contents: &[Digest]) -> Result<(), StoreError> {
        self.pass("hold").await;
        self.store.hold(contents).await
    }

    async fn remove(&self, removal: &Removal) -> Result<Removed, StoreError> {
        self.store.remove(removal).await
    }

    async fn delete_tag(&self, tag: &Tag) -> Result<(), StoreError> {
        self.store.delete_tag(tag).await
    }
}
