//! Copies a checkpoint image or a global checkpoint, with its signatures, from any store to any other.
//!
//! The order makes what is visible whole at every moment: blobs, then manifests from the leaves up, then the
//! signatures of all of them, then the tag. What is there already is not sent again, so a copy that was interrupted
//! is finished by copying again.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use image_format::{Descriptor, Digest, Document};

use crate::links::{Links, MAX_DOCUMENT};
use crate::sign::attachment::{Attachment, signature_tag};
use crate::{BlobReader, BlobUpload, Progress, Put, Reopen, Selector, Store, StoreError, Tag};

/// Manifests of one copy, signatures included, are held in memory up to this many bytes.
const MAX_DOCUMENTS: u64 = 32 << 20;
/// An index of indexes of indexes: nothing real is nested deeper.
const MAX_DEPTH: usize = 4;
/// A bound against an index that would make requests without end.
const MAX_MANIFESTS: usize = 10_000;

/// How to copy.
pub struct CopyOptions<'a> {
    /// Transfers at the same time.
    pub jobs: usize,
    /// Whether to take signatures (cosign's `.sig` tags) and other referrers along.
    pub signatures: bool,
    /// The tag to set at the very end.
    pub tag: Option<Tag>,
    /// Told of blobs on their way.
    pub progress: &'a dyn Progress,
}

impl std::fmt::Debug for CopyOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { jobs, signatures, tag, progress: _ } = self;
        let mut all = f.debug_struct("CopyOptions");
        all.field("jobs", jobs).field("signatures", signatures).field("tag", tag).finish_non_exhaustive()
    }
}

impl Default for CopyOptions<'_> {
    fn default() -> Self {
        Self { jobs: 4, signatures: true, tag: None, progress: &() }
    }
}

/// What a copy did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Blobs whose bytes were sent.
    pub blobs_sent: usize,
    /// The bytes of those.
    pub bytes_sent: u64,
    /// Blobs that were there before.
    pub blobs_existing: usize,
    /// The bytes of those.
    pub bytes_existing: u64,
    /// Blobs that the registry took from another of its repositories.
    pub blobs_mounted: usize,
    /// Manifests and indexes that were put, signatures included.
    pub manifests: usize,
}

impl CopyReport {
    fn count(&mut self, size: u64, how: Put) {
        match how {
            Put::Existed => {
                self.blobs_existing += 1;
                self.bytes_existing += size;
            }
            Put::Mounted => self.blobs_mounted += 1,
            Put::Sent(bytes) => {
                self.blobs_sent += 1;
                self.bytes_sent += bytes;
            }
        }
    }
}

/// Why a copy was not finished. What was sent stays and is not sent again next time.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An index that leads to more than any checkpoint has.
    #[error("{root} in {store} leads to too much: {reason}")]
    TooMuch {
        /// The store's name.
        store: String,
        /// What was to be copied.
        root: Digest,
        /// The bound that was passed.
        reason: String,
    },
    /// A signature attachment at the destination that cannot be added to.
    #[error("the signatures under {tag} in {store} cannot be added to: {reason}")]
    Attachment {
        /// The destination's name.
        store: String,
        /// The `.sig` tag.
        tag: Tag,
        /// What is wrong with it.
        reason: String,
    },
}

/// Copies `root` and everything that it refers to.
///
/// Signatures under a `.sig` tag that the destination has already are kept, and the source's are added to them.
/// Referrers that are indexes are not followed, and neither are referrers of referrers.
///
/// # Errors
/// The first thing that goes wrong ends the copy; the tag is not set then.
pub async fn copy(
    from: &dyn Store,
    root: &Descriptor,
    to: &dyn Store,
    options: &CopyOptions<'_>,
) -> Result<CopyReport, CopyError> {
    let (mount_from, held) = (mount_source(from, to), AtomicU64::new(0));
    let copier = Copier { from, to, options, root: root.digest, mount_from, held };
    let tree = copier.gather(root).await?;
    let mut signatures = Vec::new();
    if options.signatures {
        let found = stream::iter(&tree.manifests).map(|manifest| copier.attached(manifest.document.digest()));
        signatures = found.buffered(copier.jobs()).try_collect().await?;
    }

    let mut report = CopyReport::default();
    copier.send_blobs(&tree.blobs()?, &mut report).await?;
    for manifest in &tree.manifests {
        let document = &manifest.document;
        // A root without a tag is put even where it is, so that a layout lists it.
        let is_root = document.digest() == root.digest;
        let listed = !is_root || options.tag.is_some();
        if !is_root {
            to.hold(&[document.digest()]).await?;
        }
        if !(listed && to.has_manifest(&document.digest()).await?) {
            to.put_manifest(document, None).await?;
            report.manifests += 1;
        }
    }
    for attached in &signatures {
        copier.send_attached(attached, &mut report).await?;
    }
    if let (Some(tag), Some(last)) = (&options.tag, tree.manifests.last()) {
        to.put_manifest(&last.document, Some(tag)).await?;
    }
    Ok(report)
}

/// The source's repository, if the destination is on the same registry.
fn mount_source<'a>(from: &'a dyn Store, to: &dyn Store) -> Option<&'a str> {
    let (host, repository) = from.repository().split_once('/')?;
    let (other_host, other_repository) = to.repository().split_once('/')?;
    let same_registry = host == other_host && !from.name().starts_with("oci:") && !to.name().starts_with("oci:");
    (same_registry && repository != other_repository).then_some(repository)
}

struct Copier<'a> {
    from: &'a dyn Store,
    to: &'a dyn Store,
    options: &'a CopyOptions<'a>,
    root: Digest,
    mount_from: Option<&'a str>,
    /// Bytes of manifests that were fetched, signatures included.
    held: AtomicU64,
}

struct Manifest {
    document: Document,
    links: Links,
}

/// The manifests below a root, each one after all that it refers to; the root is the last.
struct Tree {
    store: String,
    manifests: Vec<Manifest>,
}

impl Tree {
    fn blobs(&self) -> Result<Vec<Descriptor>, StoreError> {
        distinct(&self.store, self.manifests.iter().flat_map(|manifest| manifest.links.blobs()))
    }
}

/// Each blob once. The same one with two sizes is a lie somewhere.
fn distinct<'a>(store: &str, blobs: impl Iterator<Item = &'a Descriptor>) -> Result<Vec<Descriptor>, StoreError> {
    let mut sizes = HashMap::new();
    let mut all = Vec::new();
    for blob in blobs {
        match sizes.insert(blob.digest, blob.size) {
            None => all.push(blob.clone()),
            Some(size) if size == blob.size => {}
            Some(size) => {
                return Err(StoreError::Corrupt {
                    store: store.to_owned(),
                    what: format!("blob {}", blob.digest),
                    reason: format!("one manifest says {size} bytes and another one {}", blob.size),
                });
            }
        }
    }
    Ok(all)
}

/// What others say about one manifest.
struct Attached {
    subject: Digest,
    signatures: Option<Manifest>,
    referrers: Vec<Manifest>,
}

impl Copier<'_> {
    fn jobs(&self) -> usize {
        self.options.jobs.max(1)
    }

    fn too_much(&self, reason: String) -> CopyError {
        CopyError::TooMuch { store: self.from.name().to_owned(), root: self.root, reason }
    }

    /// Counts a manifest that is going to be held. Anybody may have attached any number of them.
    fn hold(&self, manifest: &Manifest) -> Result<(), CopyError> {
        let size = manifest.document.bytes().len() as u64;
        if self.held.fetch_add(size, Ordering::Relaxed) + size > MAX_DOCUMENTS {
            return Err(self.too_much(format!("over {MAX_DOCUMENTS} bytes of manifests")));
        }
        Ok(())
    }

    async fn fetch(&self, digest: &Digest, size: Option<u64>) -> Result<Manifest, StoreError> {
        let store = || self.from.name().to_owned();
        let what = || format!("manifest {digest}");
        if let Some(size) = size.filter(|size| *size > MAX_DOCUMENT) {
            return Err(StoreError::TooLarge { store: store(), what: what(), size, limit: MAX_DOCUMENT });
        }
        let corrupt = |reason| StoreError::Corrupt { store: store(), what: what(), reason };
        let document = self.from.manifest(digest).await?;
        let actual = document.bytes().len() as u64;
        if size.is_some_and(|size| size != actual) {
            return Err(corrupt(format!("it has {actual} bytes, which is not what refers to it says")));
        }
        let links = Links::parse(document.bytes()).map_err(|error| corrupt(error.to_string()))?;
        Ok(Manifest { document, links })
    }

    /// Fetches the manifests level by level, then puts them in order.
    async fn gather(&self, root: &Descriptor) -> Result<Tree, CopyError> {
        let mut found: HashMap<Digest, Manifest> = HashMap::new();
        let mut level = vec![root.clone()];
        let mut seen = HashSet::from([root.digest]);
        while !level.is_empty() {
            let mut fetches = stream::iter(std::mem::take(&mut level))
                .map(|descriptor| async move { self.fetch(&descriptor.digest, Some(descriptor.size)).await })
                .buffered(self.jobs());
            let mut next = Vec::new();
            while let Some(manifest) = fetches.try_next().await? {
                self.hold(&manifest)?;
                next.extend(manifest.links.manifests.iter().filter(|child| seen.insert(child.digest)).cloned());
                found.insert(manifest.document.digest(), manifest);
            }
            if seen.len() > MAX_MANIFESTS {
                return Err(self.too_much(format!("over {MAX_MANIFESTS} manifests")));
            }
            level = next;
        }
        let mut manifests = Vec::new();
        self.place(&root.digest, 0, &mut found, &mut manifests)?;
        Ok(Tree { store: self.from.name().to_owned(), manifests })
    }

    /// Moves a manifest behind all that it refers to.
    fn place(
        &self,
        digest: &Digest,
        depth: usize,
        found: &mut HashMap<Digest, Manifest>,
        placed: &mut Vec<Manifest>,
    ) -> Result<(), CopyError> {
        if depth > MAX_DEPTH {
            return Err(self.too_much(format!("indexes nested over {MAX_DEPTH} deep")));
        }
        // Gone already: it was placed as somebody else's child. It cannot be its own parent, digests see to that.
        if let Some(manifest) = found.remove(digest) {
            for child in &manifest.links.manifests {
                self.place(&child.digest, depth + 1, found, placed)?;
            }
            placed.push(manifest);
        }
        Ok(())
    }

    async fn attached(&self, subject: Digest) -> Result<Attached, CopyError> {
        let tag = Selector::Tag(signature_tag(&subject));
        let signatures = match self.from.resolve(&tag).await {
            Ok(descriptor) => Some(self.fetch(&descriptor.digest, Some(descriptor.size)).await?),
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        signatures.as_ref().map_or(Ok(()), |manifest| self.hold(manifest))?;
        let mut referrers = Vec::new();
        for descriptor in self.from.referrers(&subject).await? {
            match self.fetch(&descriptor.digest, Some(descriptor.size)).await {
                Ok(manifest) if manifest.links.manifests.is_empty() => {
                    // Lists that a registry does not keep itself may name what is no referrer.
                    if manifest.links.subject.as_ref().is_some_and(|named| named.digest == subject) {
                        self.hold(&manifest)?;
                        referrers.push(manifest);
                    }
                }
                // They may also name what was deleted. Nobody signed them: one bad entry must not
                // hold up the rest.
                Ok(_) => {}
                Err(error) if error.is_of_content() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Attached { subject, signatures, referrers })
    }

    async fn send_blobs(&self, blobs: &[Descriptor], report: &mut CopyReport) -> Result<(), StoreError> {
        let mut sent = stream::iter(blobs)
            .map(|descriptor| async move {
                let source = SourceBlob { from: self.from, descriptor };
                let upload = BlobUpload {
                    descriptor,
                    source: &source,
                    mount_from: self.mount_from,
                    progress: self.options.progress,
                };
                self.to.put_blob(upload).await.map(|how| (descriptor.size, how))
            })
            .buffer_unordered(self.jobs());
        while let Some((size, how)) = sent.try_next().await? {
            report.count(size, how);
        }
        Ok(())
    }

    async fn send_attached(&self, attached: &Attached, report: &mut CopyReport) -> Result<(), CopyError> {
        if let Some(signatures) = &attached.signatures {
            self.send_signatures(&attached.subject, signatures, report).await?;
        }
        if attached.referrers.is_empty() {
            return Ok(());
        }
        let there = self.to.referrers(&attached.subject).await?;
        for referrer in &attached.referrers {
            if there.iter().any(|listed| listed.digest == referrer.document.digest()) {
                continue;
            }
            self.send_blobs(&distinct(self.from.name(), referrer.links.blobs())?, report).await?;
            self.to.put_referrer(&attached.subject, &referrer.document).await?;
            report.manifests += 1;
        }
        Ok(())
    }

    async fn send_signatures(
        &self,
        subject: &Digest,
        signatures: &Manifest,
        report: &mut CopyReport,
    ) -> Result<(), CopyError> {
        let tag = signature_tag(subject);
        let there = match self.to.resolve(&Selector::Tag(tag.clone())).await {
            Ok(descriptor) if descriptor.digest == signatures.document.digest() => return Ok(()),
            Ok(descriptor) => Some(self.to.manifest(&descriptor.digest).await?),
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        self.send_blobs(&distinct(self.from.name(), signatures.links.blobs())?, report).await?;
        let Some(there) = there else {
            self.to.put_manifest(&signatures.document, Some(&tag)).await?;
            report.manifests += 1;
            return Ok(());
        };
        let wrong =
            |reason: String| CopyError::Attachment { store: self.to.name().to_owned(), tag: tag.clone(), reason };
        let mut merged = Attachment::parse(&there).map_err(wrong)?;
        let ours = Attachment::parse(&signatures.document).map_err(wrong)?;
        let added = ours.layers().iter().filter(|layer| merged.add((*layer).clone())).count();
        if added > 0 {
            let (config, manifest) = merged.to_documents().map_err(|error| wrong(error.to_string()))?;
            put_small_blob(self.to, &config, self.options.progress).await?;
            self.to.put_manifest(&manifest, Some(&tag)).await?;
            report.manifests += 1;
        }
        Ok(())
    }
}

/// A blob of the source, opened as often as the destination needs it.
struct SourceBlob<'a> {
    from: &'a dyn Store,
    descriptor: &'a Descriptor,
}

#[async_trait]
impl Reopen for SourceBlob<'_> {
    async fn open(&self) -> Result<BlobReader, StoreError> {
        self.from.read_blob(self.descriptor).await
    }
}

/// Puts a blob that is in memory.
pub(crate) async fn put_small_blob(
    to: &dyn Store,
    document: &Document,
    progress: &dyn Progress,
) -> Result<Put, StoreError> {
    struct Bytes<'a>(&'a [u8]);

    #[async_trait]
    impl Reopen for Bytes<'_> {
        async fn open(&self) -> Result<BlobReader, StoreError> {
            Ok(Box::pin(std::io::Cursor::new(self.0.to_vec())))
        }
    }

    let source = Bytes(document.bytes());
    let descriptor = document.descriptor();
    to.put_blob(BlobUpload { descriptor: &descriptor, source: &source, mount_from: None, progress }).await
}
