//! The one trait behind which images live.

use std::fmt;
use std::io;
use std::pin::Pin;

use async_trait::async_trait;
use image_format::{Descriptor, Digest, Document};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::retention::{Removal, Removed};
use crate::{Selector, ShortNameError, Tag};

/// A blob being read. It ends with an error instead of end-of-file when the bytes do not match digest and size.
pub type BlobReader = Pin<Box<dyn AsyncRead + Send>>;

/// What a store could not do. Each names the store and the content, so that it can be shown as it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No such tag, manifest or blob.
    #[error("{what} is not in {store}")]
    NotFound {
        /// The store's name.
        store: String,
        /// What was looked for.
        what: String,
    },
    /// The store wants other credentials, or refuses these.
    #[error("{store} refused access: {reason}")]
    Denied {
        /// The store's name.
        store: String,
        /// What it answered, without secrets.
        reason: String,
    },
    /// Bytes that are not what their digest or size says.
    #[error("{what} in {store} is damaged: {reason}")]
    Corrupt {
        /// The store's name.
        store: String,
        /// Which content.
        what: String,
        /// In which way.
        reason: String,
    },
    /// Larger than this program is willing to take.
    #[error("{what} in {store} has {size} bytes; at most {limit} are accepted")]
    TooLarge {
        /// The store's name.
        store: String,
        /// Which content.
        what: String,
        /// Its size in bytes, as far as known.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The store answered against the rules of its protocol, or with an error of its own.
    #[error("{store}: {operation} failed: {reason}")]
    Refused {
        /// The store's name.
        store: String,
        /// What was tried.
        operation: String,
        /// What it answered.
        reason: String,
    },
    /// The store could not be reached, or the connection broke, also after retrying.
    #[error("{store}: {operation} failed")]
    Unreachable {
        /// The store's name.
        store: String,
        /// What was tried.
        operation: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Somebody did not want to wait any longer ([`cancellable`](crate::cancellable)).
    #[error("{store}: {operation} was cancelled")]
    Cancelled {
        /// The store's name.
        store: String,
        /// What was being done.
        operation: String,
    },
    /// Certificates, credentials or other settings for this store cannot be used.
    #[error("{store} cannot be reached with these settings")]
    Settings {
        /// The store's name.
        store: String,
        /// What is wrong with them.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A short name that stands for no repository.
    #[error(transparent)]
    ShortName(#[from] ShortNameError),
    /// The local file system said no.
    #[error("{store}: {operation} failed")]
    Io {
        /// The store's name.
        store: String,
        /// What was tried.
        operation: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// Whether the store said what is wrong with the content itself, which is missing, damaged or too
    /// large. Asking again gives the same answer.
    #[must_use]
    pub fn is_of_content(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Corrupt { .. } | Self::TooLarge { .. })
    }

    /// The error that a stream of a store ended with: one that the stream carried, or trouble of the file system.
    pub(crate) fn from_stream(store: &str, operation: &str, error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(carried) => carried,
            Err(source) => Self::Io { store: store.to_owned(), operation: operation.to_owned(), source },
        }
    }
}

/// What a store lists as its tags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagList {
    /// The tags, sorted.
    pub tags: Vec<Tag>,
    /// Entries that are no tags, as far as they can be shown.
    pub odd: Vec<String>,
}

/// How a blob got into a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It was there already; nothing was sent.
    Existed,
    /// It was mounted from another repository of the same registry; nothing was sent.
    Mounted,
    /// So many bytes were sent.
    Sent(u64),
}

/// Opens the same bytes again from their start, for a retry.
#[async_trait]
pub trait Reopen: Send + Sync {
    /// A reader over all the bytes.
    async fn open(&self) -> Result<BlobReader, StoreError>;
}

/// A blob that is being written whose digest is known only at the end. Dropped without `commit`, it leaves nothing.
#[async_trait]
pub trait BlobWriter: AsyncWrite + Send + Unpin {
    /// Keeps the blob under the digest that its writer took of the bytes on their way here. The store checks the size against
    /// what it received; a registry checks the digest too.
    async fn commit(self: Box<Self>, digest: &Digest, size: u64) -> Result<(), StoreError>;
}

/// What is to be put, where its bytes come from, and where the same registry may have it already.
pub struct BlobUpload<'a> {
    /// Digest and size, known before.
    pub descriptor: &'a Descriptor,
    /// Where the bytes come from.
    pub source: &'a dyn Reopen,
    /// Another repository of the same registry that holds the blob.
    pub mount_from: Option<&'a str>,
    /// Told of every piece that was sent.
    pub progress: &'a dyn Progress,
}

impl fmt::Debug for BlobUpload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobUpload").field("descriptor", &self.descriptor).finish_non_exhaustive()
    }
}

/// Is told how far a transfer has come. A transfer may be started again under the same digest after a break.
pub trait Progress: Send + Sync {
    /// A blob's transfer begins; its size is known or not.
    fn begin(&self, blob: &str, size: Option<u64>);
    /// So many further bytes went through.
    fn advance(&self, blob: &str, bytes: u64);
    /// The blob is there. `how` is `None` for one that was fetched.
    fn end(&self, blob: &str, how: Option<Put>);
}

/// The silent one.
impl Progress for () {
    fn begin(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: &str, _: u64) {}
    fn end(&self, _: &str, _: Option<Put>) {}
}

/// One repository: an OCI registry's, or an OCI layout folder.
///
/// Every byte that comes out was checked against its digest; everything that goes in is kept atomically. Nothing is
/// reachable by a tag before all that it refers to is there, as long as callers keep the order blobs, member manifests,
/// index, signatures, tag.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// What to call it in messages, such as `registry.example:5000/sdp/ledger` or `oci:/srv/checkpoints`.
    fn name(&self) -> &str;

    /// The repository as signatures name it (`docker-reference`): `HOST[:PORT]/REPO`, or the layout's name.
    fn repository(&self) -> &str {
        self.name()
    }

    /// What a tag or digest names: an index or a manifest.
    async fn resolve(&self, selector: &Selector) -> Result<Descriptor, StoreError>;

    /// A manifest or index, checked against its digest, at most 4 MiB.
    async fn manifest(&self, digest: &Digest) -> Result<Document, StoreError>;

    /// Is this manifest or index here?
    async fn has_manifest(&self, digest: &Digest) -> Result<bool, StoreError>;

    /// The size of a blob that is here.
    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError>;

    /// Reads a blob from its beginning to its end; broken transfers are resumed inside.
    async fn read_blob(&self, descriptor: &Descriptor) -> Result<BlobReader, StoreError>;

    /// Starts a blob whose digest is not known yet.
    async fn create_blob(&self) -> Result<Box<dyn BlobWriter>, StoreError>;

    /// Puts a blob whose digest is known: found there, mounted, or sent, with retries.
    async fn put_blob(&self, upload: BlobUpload<'_>) -> Result<Put, StoreError>;

    /// Puts a manifest or index under its digest, and under a tag where one is given.
    async fn put_manifest(&self, document: &Document, tag: Option<&Tag>) -> Result<(), StoreError>;

    /// All tags, sorted.
    async fn tags(&self) -> Result<Vec<Tag>, StoreError>;

    /// All tags, and what else is listed among them.
    async fn tag_list(&self) -> Result<TagList, StoreError> {
        Ok(TagList { tags: self.tags().await?, odd: Vec::new() })
    }

    /// The manifests whose `subject` is `digest`.
    async fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, StoreError>;

    /// Puts a manifest that has a `subject`, and makes it findable by [`Store::referrers`] of that subject.
    async fn put_referrer(&self, subject: &Digest, document: &Document) -> Result<(), StoreError>;

    /// Says that these manifests and blobs, as far as they are there, are going to be referred to, so that nobody who removes
    /// what nothing refers to takes them away meanwhile. To be asked before one looks whether they are there.
    async fn hold(&self, contents: &[Digest]) -> Result<(), StoreError>;

    /// Removes global checkpoints, their tags first, and all that only they refer to. Nothing that another tag leads to goes, also
    /// if the tag is set at the same time.
    async fn remove(&self, removal: &Removal) -> Result<Removed, StoreError>;

    /// Deletes a tag (the manifest stays, where the store tells the two apart).
    async fn delete_tag(&self, tag: &Tag) -> Result<(), StoreError>;
}

/// The first of these blobs that the store does not have in its size.
///
/// # Errors
/// A store that does not answer.
pub async fn first_missing<'d>(
    store: &dyn Store,
    blobs: impl IntoIterator<Item = &'d Descriptor, IntoIter: Send>,
) -> Result<Option<&'d Descriptor>, StoreError> {
    for blob in blobs {
        if store.blob_size(&blob.digest).await? != Some(blob.size) {
            return Ok(Some(blob));
        }
    }
    Ok(None)
}
