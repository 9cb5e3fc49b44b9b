//! Whether all that a checkpoint leads to is in the store.

use std::collections::HashMap;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use image_format::{Descriptor, Digest, GlobalCheckpoint};

use crate::links::Links;
use crate::{Store, StoreError};

/// Looks for what checkpoints of one store lead to. What several of them share is looked for once.
#[derive(Debug)]
pub(crate) struct Completeness<'s> {
    store: &'s dyn Store,
    jobs: usize,
    /// The blobs that each manifest names; nothing where the manifest cannot be read.
    manifests: HashMap<Digest, Option<Vec<Descriptor>>>,
    /// The sizes of blobs that are there.
    blobs: HashMap<Digest, Option<u64>>,
}

impl<'s> Completeness<'s> {
    /// Nothing is known yet.
    pub(crate) fn new(store: &'s dyn Store, jobs: usize) -> Self {
        Self { store, jobs: jobs.max(1), manifests: HashMap::new(), blobs: HashMap::new() }
    }

    /// The first manifest or blob that a checkpoint needs and the store does not give out; none if the checkpoint is whole. The
    /// bytes of blobs are not read.
    ///
    /// # Errors
    /// The store cannot be reached.
    pub(crate) async fn missing(&mut self, global: &GlobalCheckpoint) -> Result<Option<Digest>, StoreError> {
        let members: Vec<Digest> = global.members().iter().map(|member| member.manifest.digest).collect();
        self.read(&members).await?;
        let mut needed: Vec<Descriptor> = Vec::new();
        for member in &members {
            match self.manifests.get(member) {
                Some(Some(blobs)) => needed.extend(blobs.iter().cloned()),
                Some(None) | None => return Ok(Some(*member)),
            }
        }
        self.missing_blob(&needed).await
    }

    /// The first of these blobs that the store does not give out in its size.
    ///
    /// # Errors
    /// The store cannot be reached.
    pub(super) async fn missing_blob(&mut self, needed: &[Descriptor]) -> Result<Option<Digest>, StoreError> {
        self.look(needed).await?;
        let there = |blob: &Descriptor| self.blobs.get(&blob.digest).copied().flatten() == Some(blob.size);
        Ok(needed.iter().find(|blob| !there(blob)).map(|blob| blob.digest))
    }

    /// Reads manifests that were not read yet.
    async fn read(&mut self, manifests: &[Digest]) -> Result<(), StoreError> {
        let store = self.store;
        let unknown: Vec<Digest> =
            manifests.iter().filter(|manifest| !self.manifests.contains_key(*manifest)).copied().collect();
        let read = stream::iter(unknown).map(|manifest| async move {
            let document = given(store.manifest(&manifest).await)?;
            let links = document.and_then(|document| Links::parse(document.bytes()).ok());
            Ok::<_, StoreError>((manifest, links.map(|links| links.blobs().cloned().collect())))
        });
        let read: Vec<_> = read.buffer_unordered(self.jobs).try_collect().await?;
        self.manifests.extend(read);
        Ok(())
    }

    /// Looks for blobs that were not looked for yet.
    async fn look(&mut self, blobs: &[Descriptor]) -> Result<(), StoreError> {
        let store = self.store;
        let mut unknown: Vec<Digest> =
            blobs.iter().map(|blob| blob.digest).filter(|blob| !self.blobs.contains_key(blob)).collect();
        unknown.sort();
        unknown.dedup();
        let found = stream::iter(unknown).map(|blob| async move {
            let size = given(store.blob_size(&blob).await)?;
            Ok::<_, StoreError>((blob, size.flatten()))
        });
        let found: Vec<_> = found.buffer_unordered(self.jobs).try_collect().await?;
        self.blobs.extend(found);
        Ok(())
    }
}

/// What a store does not give out is nothing; a store that cannot be reached is an error.
pub(crate) fn given<T>(answer: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::Denied { .. } | StoreError::Refused { .. }) => Ok(None),
        Err(error) if error.is_of_content() => Ok(None),
        Err(error) => Err(error),
    }
}
