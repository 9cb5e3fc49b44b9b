//! An OCI image layout folder as a store.
//!
//! ```text
//! DIR/
//!   oci-layout           written last when the layout is made
//!   index.json           the entries; replaced by a rename under the lock
//!   blobs/sha256/HEX     manifests, configs and layers; each renamed into place after it was checked and synced
//!   .syncpoint/lock      held (flock): alone, while index.json is read, changed and replaced, and while files are removed;
//!                        with others, while a blob gets its name or is made young. Never while bytes move
//!   .syncpoint/blob-*    blobs being written, each locked by its writer; unlocked ones are swept by the next writer
//!   .syncpoint/gone-*    removed blobs that are being deleted
//! ```
//!
//! A crash at any point leaves a readable layout: names appear by renames of complete, synced files only. Files are
//! 0600 and folders 0700, because memory images are secrets.
//!
//! **Which manifests have an entry in `index.json`**: whatever nothing else listed leads to. A tag is an entry with the
//! annotation `org.opencontainers.image.ref.name`, as skopeo and oras write it. A manifest put without a tag gets an
//! entry without that annotation, which goes away when an index is put that names the manifest, or when the manifest
//! gets a tag. Referrers always have an entry, and are found by reading the listed manifests' `subject`. A manifest whose
//! tag moved on or was deleted stays listed without a tag, until retention removes it.
//!
//! **What readers can rely on**: a file that is open stays whole, and what a tag leads to is not removed before the tag. **What
//! writers can rely on**: what they wrote, or said that they would refer to ([`Store::hold`], which makes it young), is not removed
//! for the time of grace. Should they take longer, what they put under a tag is refused if it is no longer complete.

mod folder;
mod index;
mod mark;
mod stream;
mod sweep;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use image_format::{Descriptor, Digest, Document};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::links::{Links, MAX_DOCUMENT};
use crate::retention::{Removal, Removed};
use crate::{BlobReader, BlobUpload, BlobWriter, Put, Selector, Store, StoreError, Tag};
use folder::{Folder, Lock};
use index::LayoutIndex;
use stream::{BlobFileReader, BlobFileWriter, Digested, PIECE};

/// An OCI image layout, 1.0. Several stores, in several processes, may write into the same folder.
#[derive(Clone)]
pub struct LayoutStore {
    folder: Arc<Folder>,
    /// What each listed manifest's `subject` is. Content behind a digest never changes, so neither does this.
    subjects: Arc<Mutex<HashMap<Digest, Option<Digest>>>>,
}

impl fmt::Debug for LayoutStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LayoutStore").field(&self.folder.name()).finish()
    }
}

impl LayoutStore {
    /// Opens a layout that is there. Nothing is written.
    ///
    /// # Errors
    /// A folder that is missing, unreadable or no OCI layout 1.x.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Folder::open(dir).map(Self::over)
    }

    /// Opens a layout, and makes it first where the folder is missing, empty, or was left half-made.
    ///
    /// # Errors
    /// A folder with other things in it, or one that cannot be made.
    pub fn create(dir: &Path) -> Result<Self, StoreError> {
        Folder::create(dir, &LayoutIndex::empty().to_bytes()).map(Self::over)
    }

    fn over(folder: Folder) -> Self {
        Self { folder: Arc::new(folder), subjects: Arc::default() }
    }

    /// Runs file system work where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(result) => result,
            Err(error) => Err(self.folder.io_error("running a file system task", std::io::Error::other(error))),
        }
    }

    fn read_index(&self) -> Result<LayoutIndex, StoreError> {
        let bytes = self.folder.read_index()?;
        LayoutIndex::parse(&bytes).map_err(|reason| self.folder.corrupt("index.json", reason))
    }

    /// Reads, changes and replaces `index.json` as one step among all writers.
    fn change_index<T>(&self, change: impl FnOnce(&mut LayoutIndex) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let _lock = self.folder.lock(Lock::Exclusive)?;
        let mut index = self.read_index()?;
        let before = index.to_bytes();
        let result = change(&mut index)?;
        let after = index.to_bytes();
        if after != before {
            self.folder.replace_index(&after)?;
        }
        Ok(result)
    }

    fn read_manifest(&self, digest: &Digest) -> Result<Document, StoreError> {
        let Some(bytes) = self.folder.read_document(digest)? else {
            return Err(self.folder.not_found(format!("manifest {digest}")));
        };
        if Digest::of(&bytes) != *digest {
            return Err(self.folder.corrupt(format!("manifest {digest}"), "its bytes have another digest"));
        }
        let links = Links::parse(&bytes)
            .map_err(|error| self.folder.corrupt(format!("manifest {digest}"), error.to_string()))?;
        Ok(Document::new(links.media_type(), bytes))
    }

    /// Whether a manifest is here and undamaged: a damaged one is to be put again, which replaces it.
    fn has_whole_manifest(&self, digest: &Digest) -> Result<bool, StoreError> {
        match self.read_manifest(digest) {
            Ok(_) => Ok(true),
            Err(error) if error.is_of_content() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn write_manifest(&self, document: &Document, tag: Option<&Tag>) -> Result<(), StoreError> {
        let digest = document.digest();
        let size = document.bytes().len() as u64;
        if size > MAX_DOCUMENT {
            return Err(self.folder.too_large(format!("manifest {digest}"), size, MAX_DOCUMENT));
        }
        let links = Links::parse(document.bytes()).map_err(|error| StoreError::Refused {
            store: self.folder.name().to_owned(),
            operation: format!("putting manifest {digest}"),
            reason: error.to_string(),
        })?;
        if !(self.has_whole_manifest(&digest)? && self.folder.touch_blob(&digest, Some(size))?) {
            self.folder.write_blob(&digest, document.bytes())?;
        }
        self.folder.sync_blobs()?;
        self.change_index(|index| {
            if tag.is_some_and(|tag| tag.about().is_none()) {
                self.check_complete(&digest, &links)?;
            }
            index.put(&document.descriptor(), links.artifact_type.as_deref(), tag).map_err(|reason| {
                StoreError::Refused {
                    store: self.folder.name().to_owned(),
                    operation: format!("putting manifest {digest}"),
                    reason,
                }
            })?;
            for member in &links.manifests {
                if self.subject_of(&member.digest)?.is_none() {
                    index.drop_untagged(&member.digest);
                }
            }
            Ok(())
        })
    }

    /// What a tag is going to lead to has to be here. To be called with the lock held.
    fn check_complete(&self, root: &Digest, links: &Links) -> Result<(), StoreError> {
        let refused = |reason: String| StoreError::Refused {
            store: self.folder.name().to_owned(),
            operation: format!("putting manifest {root}"),
            reason: format!("it would be incomplete: {reason}"),
        };
        let mut level = vec![links.clone()];
        let mut seen = HashSet::new();
        while let Some(links) = level.pop() {
            for blob in links.blobs() {
                if self.folder.blob_size(&blob.digest)? != Some(blob.size) {
                    return Err(refused(format!("blob {} is not here, or no longer", blob.digest)));
                }
            }
            for child in links.manifests.iter().filter(|child| seen.insert(child.digest)) {
                let document = match self.read_manifest(&child.digest) {
                    Ok(document) => document,
                    Err(error @ StoreError::Io { .. }) => return Err(error),
                    Err(error) => return Err(refused(error.to_string())),
                };
                level.push(Links::parse(document.bytes()).map_err(|error| refused(error.to_string()))?);
            }
        }
        Ok(())
    }

    /// The `subject` of a manifest that is here; `None` for one that has none, is missing or cannot be read.
    ///
    /// A damaged manifest must not hide the good ones next to it, so only trouble with the file system is an error.
    fn subject_of(&self, digest: &Digest) -> Result<Option<Digest>, StoreError> {
        if let Some(subject) = self.subjects.lock().unwrap_or_else(PoisonError::into_inner).get(digest) {
            return Ok(*subject);
        }
        let subject = match self.read_manifest(digest) {
            Ok(document) => {
                Links::parse(document.bytes()).ok().and_then(|links| links.subject.map(|subject| subject.digest))
            }
            Err(StoreError::Io { store, operation, source }) => {
                return Err(StoreError::Io { store, operation, source });
            }
            Err(_) => return Ok(None),
        };
        self.subjects.lock().unwrap_or_else(PoisonError::into_inner).insert(*digest, subject);
        Ok(subject)
    }

    fn list_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, StoreError> {
        let mut found = Vec::new();
        for entry in self.read_index()?.descriptors() {
            if !found.contains(&entry) && self.subject_of(&entry.digest)? == Some(*subject) {
                found.push(entry);
            }
        }
        Ok(found)
    }
}

#[async_trait]
impl Store for LayoutStore {
    fn name(&self) -> &str {
        self.folder.name()
    }

    async fn resolve(&self, selector: &Selector) -> Result<Descriptor, StoreError> {
        let selector = selector.clone();
        self.blocking(move |store| match &selector {
            Selector::Digest(digest) => store.read_manifest(digest).map(|document| document.descriptor()),
            Selector::Tag(tag) => match store.read_index()?.tagged(tag) {
                Ok(Some(descriptor)) => Ok(descriptor),
                Ok(None) => Err(store.folder.not_found(selector.to_string())),
                Err(reason) => Err(store.folder.corrupt("index.json", reason)),
            },
        })
        .await
    }

    async fn manifest(&self, digest: &Digest) -> Result<Document, StoreError> {
        let digest = *digest;
        self.blocking(move |store| store.read_manifest(&digest)).await
    }

    async fn has_manifest(&self, digest: &Digest) -> Result<bool, StoreError> {
        let digest = *digest;
        self.blocking(move |store| store.has_whole_manifest(&digest)).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let digest = *digest;
        self.blocking(move |store| store.folder.blob_size(&digest)).await
    }

    async fn read_blob(&self, descriptor: &Descriptor) -> Result<BlobReader, StoreError> {
        let wanted = descriptor.clone();
        self.blocking(move |store| {
            let what = || format!("blob {}", wanted.digest);
            let Some((file, size)) = store.folder.open_blob(&wanted.digest)? else {
                return Err(store.folder.not_found(what()));
            };
            if size != wanted.size {
                let reason = format!("it has {size} bytes instead of {}", wanted.size);
                return Err(store.folder.corrupt(what(), reason));
            }
            let reader: BlobReader = Box::pin(BlobFileReader::new(store.folder.clone(), file, wanted));
            Ok(reader)
        })
        .await
    }

    async fn create_blob(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        self.blocking(|store| {
            let writer: Box<dyn BlobWriter> =
                Box::new(BlobFileWriter::create(store.folder.clone(), Digested::ByWriter)?);
            Ok(writer)
        })
        .await
    }

    async fn put_blob(&self, upload: BlobUpload<'_>) -> Result<Put, StoreError> {
        let Descriptor { digest, size, .. } = *upload.descriptor;
        let name = digest.to_string();
        upload.progress.begin(&name, Some(size));
        if self.blocking(move |store| store.folder.touch_blob(&digest, Some(size))).await? {
            upload.progress.end(&name, Some(Put::Existed));
            return Ok(Put::Existed);
        }
        // One byte more than promised is enough to know: the folder is not filled with what will be refused.
        let mut reader = upload.source.open().await?.take(size.saturating_add(1));
        let create = |store: &Self| BlobFileWriter::create(store.folder.clone(), Digested::Here);
        let mut writer = Box::new(self.blocking(create).await?);
        let failed = |error| StoreError::from_stream(self.name(), &format!("writing blob {name}"), error);
        let mut buffer = Vec::with_capacity(PIECE / 4);
        while reader.read_buf(&mut buffer).await.map_err(failed)? > 0 {
            writer.write_all(&buffer).await.map_err(failed)?;
            upload.progress.advance(&name, buffer.len() as u64);
            buffer.clear();
        }
        writer.commit(&digest, size).await?;
        upload.progress.end(&name, Some(Put::Sent(size)));
        Ok(Put::Sent(size))
    }

    async fn put_manifest(&self, document: &Document, tag: Option<&Tag>) -> Result<(), StoreError> {
        let (document, tag) = (document.clone(), tag.cloned());
        self.blocking(move |store| store.write_manifest(&document, tag.as_ref())).await
    }

    async fn tags(&self) -> Result<Vec<Tag>, StoreError> {
        self.blocking(|store| Ok(store.read_index()?.tags())).await
    }

    async fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, StoreError> {
        let digest = *digest;
        self.blocking(move |store| store.list_referrers(&digest)).await
    }

    async fn put_referrer(&self, subject: &Digest, document: &Document) -> Result<(), StoreError> {
        let named = Links::parse(document.bytes()).ok().and_then(|links| links.subject).map(|named| named.digest);
        if named != Some(*subject) {
            return Err(StoreError::Refused {
                store: self.name().to_owned(),
                operation: format!("putting a referrer of {subject}"),
                reason: format!("the manifest {} does not name it as its subject", document.digest()),
            });
        }
        self.put_manifest(document, None).await
    }

    async fn hold(&self, contents: &[Digest]) -> Result<(), StoreError> {
        let contents = contents.to_vec();
        let hold =
            move |store: &Self| contents.iter().try_for_each(|digest| store.folder.touch_blob(digest, None).map(drop));
        self.blocking(hold).await
    }

    async fn remove(&self, removal: &Removal) -> Result<Removed, StoreError> {
        let removal = removal.clone();
        self.blocking(move |store| store.sweep(&removal)).await
    }

    async fn delete_tag(&self, tag: &Tag) -> Result<(), StoreError> {
        let tag = tag.clone();
        self.blocking(move |store| {
            store.change_index(|index| {
                if index.delete_tag(&tag) { Ok(()) } else { Err(store.folder.not_found(format!("tag {tag}"))) }
            })
        })
        .await
    }
}
