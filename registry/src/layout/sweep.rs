//! Removes checkpoints from a layout and frees their space.
//!
//! What goes is decided under the lock, from `index.json` as it is then; reading the manifests is done before, so that the lock
//! is held for a moment only. First `index.json` is replaced, then files are renamed out of `blobs/`, then the lock is given back
//! and the files are deleted. After a crash in between some files are left that nothing refers to; the next time they go.

use std::collections::HashMap;
use std::time::SystemTime;

use image_format::Digest;

use super::LayoutStore;
use super::folder::Lock;
use super::mark::{self, Files, Marks, Node};
use crate::StoreError;
use crate::links::Links;
use crate::retention::{Removal, Removed};

impl LayoutStore {
    /// Removes what `removal` says, and all that nothing else needs.
    pub(super) fn sweep(&self, removal: &Removal) -> Result<Removed, StoreError> {
        let mut files = Known { store: self, nodes: HashMap::new() };
        let marks = mark::mark(&self.read_index()?.named(), removal, &mut files)?;
        if removal.dry_run {
            return Ok(report(&marks, &self.leaving(&marks)?));
        }
        let lock = self.folder.lock(Lock::Exclusive)?;
        let mut index = self.read_index()?;
        let marks = mark::mark(&index.named(), removal, &mut files)?;
        let leaving = self.leaving(&marks)?;
        if !marks.entries.is_empty() {
            index.remove(&marks.entries);
            self.folder.replace_index(&index.to_bytes())?;
        }
        for (digest, _) in &leaving {
            self.folder.remove_blob(digest)?;
        }
        drop(lock);
        self.folder.delete_removed()?;
        Ok(report(&marks, &leaving))
    }

    /// The files that go, with their sizes. Roots come first, so that a reader who misses a file below a
    /// root finds that the root is gone too.
    fn leaving(&self, marks: &Marks) -> Result<Vec<(Digest, u64)>, StoreError> {
        if !marks.unreadable.is_empty() {
            return Ok(Vec::new());
        }
        let files = self.folder.list_blobs()?.into_iter();
        let goes = files.filter(|(digest, _, time)| marks.goes(digest, *time)).map(|(digest, size, _)| (digest, size));
        let mut leaving: Vec<(Digest, u64)> = goes.collect();
        leaving.sort_by_key(|(digest, _)| !marks.checkpoints.contains(digest));
        Ok(leaving)
    }
}

fn report(marks: &Marks, leaving: &[(Digest, u64)]) -> Removed {
    let manifests = leaving.iter().filter(|(digest, _)| marks.manifests.contains(digest)).count();
    Removed {
        checkpoints: marks.checkpoints.clone(),
        manifests,
        blobs: leaving.len() - manifests,
        bytes: leaving.iter().map(|(_, size)| size).sum(),
        freed: true,
        unreadable: marks.unreadable.clone(),
        unreadable_tags: Vec::new(),
        stale: Vec::new(),
    }
}

/// The layout's files. What a manifest refers to never changes, so it is read once; a missing or damaged one is looked at again.
struct Known<'a> {
    store: &'a LayoutStore,
    nodes: HashMap<Digest, Node>,
}

impl Files for Known<'_> {
    fn node(&mut self, digest: &Digest) -> Result<Option<Node>, StoreError> {
        if let Some(node) = self.nodes.get(digest) {
            return Ok(Some(node.clone()));
        }
        let document = match self.store.read_manifest(digest) {
            Ok(document) => document,
            Err(error @ StoreError::Io { .. }) => return Err(error),
            Err(_) => return Ok(None),
        };
        let Ok(links) = Links::parse(document.bytes()) else { return Ok(None) };
        let node = Node {
            manifests: links.manifests.iter().map(|manifest| manifest.digest).collect(),
            blobs: links.blobs().map(|blob| blob.digest).collect(),
            subject: links.subject.map(|subject| subject.digest),
        };
        self.nodes.insert(*digest, node.clone());
        Ok(Some(node))
    }

    fn time(&mut self, digest: &Digest) -> Result<Option<SystemTime>, StoreError> {
        self.store.folder.blob_time(digest)
    }
}
