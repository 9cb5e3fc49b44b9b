//! What of a layout stays when checkpoints are removed. No file is touched here.
//!
//! ```text
//! entry of index.json                                        stays
//!   tag, other than sha256-HEX...                            unless it names a checkpoint to be removed
//!   sha256-HEX... (signatures), or without a tag a subject   with what it is about; if that is not known, while it is young
//!   no tag                                                   while it is young
//! file below blobs/sha256                                    stays
//!   reached from an entry that stays                         always
//!   named by a removed manifest that is at least as young    never: nobody has spoken for it since
//!   any other                                                while it is young
//! ```
//!
//! A file is as young as its last change (`ctime`), and writers change what they find there and are going to refer to
//! ([`crate::Store::hold`]). So what is spoken for is younger than every manifest that named it before, and stays for the time of
//! grace, and what only removed checkpoints named goes at once, however young they were.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use image_format::Digest;

use crate::retention::Removal;
use crate::{StoreError, Tag};

/// What a manifest or index refers to.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    pub(super) manifests: Vec<Digest>,
    pub(super) blobs: Vec<Digest>,
    pub(super) subject: Option<Digest>,
}

/// The files, as they are now.
pub(super) trait Files {
    /// A manifest; `None` where it is missing or damaged. Errors are those of the file system.
    fn node(&mut self, digest: &Digest) -> Result<Option<Node>, StoreError>;
    /// When a file was written or spoken for.
    fn time(&mut self, digest: &Digest) -> Result<Option<SystemTime>, StoreError>;
}

/// An entry of `index.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) digest: Digest,
    pub(super) name: Option<String>,
}

impl Entry {
    /// What the tag says that it is about: the manifest of `sha256-HEX` or `sha256-HEX.sig`.
    fn about(&self) -> Option<Digest> {
        self.name.as_ref()?.parse::<Tag>().ok()?.about()
    }
}

/// What was decided.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Entries that go.
    pub(super) entries: Vec<Entry>,
    /// Checkpoints that go.
    pub(super) checkpoints: Vec<Digest>,
    /// Manifests that something kept refers to and that cannot be read.
    pub(super) unreadable: Vec<Digest>,
    /// Manifests that go.
    pub(super) manifests: HashSet<Digest>,
    kept: HashSet<Digest>,
    /// Blobs that removed manifests name, and how young the youngest of these is.
    named: HashMap<Digest, SystemTime>,
    before: Option<SystemTime>,
}

impl Marks {
    /// Whether a file goes.
    pub(super) fn goes(&self, digest: &Digest, time: SystemTime) -> bool {
        let young = self.before.is_some_and(|before| time > before);
        let fallen = || self.manifests.contains(digest) || self.named.get(digest).is_some_and(|named| *named >= time);
        !self.kept.contains(digest) && (!young || fallen())
    }
}

/// Decides, for entries as they are at one moment.
pub(super) fn mark(entries: &[Entry], removal: &Removal, files: &mut dyn Files) -> Result<Marks, StoreError> {
    let marks = Marks { before: Some(removal.before), ..Marks::default() };
    let mut marker = Marker { files, marks, seen: HashSet::new(), before: removal.before };
    let attached = marker.tagged(entries, removal)?;
    marker.fall()?;
    marker.attached(attached)?;
    Ok(marker.marks)
}

struct Marker<'a> {
    files: &'a mut dyn Files,
    marks: Marks,
    /// Manifests that were kept.
    seen: HashSet<Digest>,
    before: SystemTime,
}

impl Marker<'_> {
    /// Keeps a manifest and all that it leads to.
    fn keep(&mut self, root: Digest) -> Result<(), StoreError> {
        let mut next = vec![root];
        while let Some(digest) = next.pop() {
            if !self.seen.insert(digest) {
                continue;
            }
            self.marks.kept.insert(digest);
            match self.files.node(&digest)? {
                Some(node) => {
                    self.marks.kept.extend(node.blobs);
                    next.extend(node.manifests);
                }
                None => self.marks.unreadable.push(digest),
            }
        }
        Ok(())
    }

    fn is_young(&mut self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.files.time(digest)?.is_some_and(|time| time > self.before))
    }

    /// Entries that stay or go by themselves. Gives those that are about something else.
    fn tagged(&mut self, entries: &[Entry], removal: &Removal) -> Result<Vec<(Entry, Digest)>, StoreError> {
        let doomed: HashMap<Digest, &[Tag]> =
            removal.checkpoints.iter().map(|(digest, tags)| (*digest, tags.as_slice())).collect();
        let is_known = |entry: &Entry| {
            let tags = doomed.get(&entry.digest).copied().unwrap_or_default();
            entry.name.as_ref().is_none_or(|name| tags.iter().any(|tag| tag.as_str() == name))
        };
        // What got another tag since it was looked at stays.
        let saved: HashSet<Digest> =
            entries.iter().filter(|entry| !is_known(entry)).map(|entry| entry.digest).collect();
        let mut attached = Vec::new();
        let mut gone = HashSet::new();
        for entry in entries {
            if doomed.contains_key(&entry.digest) && !saved.contains(&entry.digest) {
                gone.insert(entry.digest);
                self.marks.entries.push(entry.clone());
            } else if let Some(subject) = entry.about() {
                attached.push((entry.clone(), subject));
            } else if entry.name.is_some() {
                self.keep(entry.digest)?;
            } else if let Some(subject) = self.files.node(&entry.digest)?.and_then(|node| node.subject) {
                attached.push((entry.clone(), subject));
            } else if self.is_young(&entry.digest)? {
                self.keep(entry.digest)?;
            } else {
                self.marks.entries.push(entry.clone());
            }
        }
        self.marks.checkpoints = removal.checkpoints.iter().map(|(digest, _)| *digest).collect();
        self.marks.checkpoints.retain(|digest| gone.contains(digest));
        Ok(attached)
    }

    /// Goes down from the entries that go. A manifest that was spoken for after all that named it went stays.
    fn fall(&mut self) -> Result<(), StoreError> {
        let mut level: HashMap<Digest, SystemTime> = HashMap::new();
        for digest in self.marks.entries.iter().map(|entry| entry.digest) {
            level.insert(digest, SystemTime::UNIX_EPOCH);
        }
        let roots: HashSet<Digest> = level.keys().copied().collect();
        while !level.is_empty() {
            let mut next: HashMap<Digest, SystemTime> = HashMap::new();
            for (digest, named) in std::mem::take(&mut level) {
                if self.marks.kept.contains(&digest) || self.marks.manifests.contains(&digest) {
                    continue;
                }
                let Some(time) = self.files.time(&digest)? else { continue };
                if !roots.contains(&digest) && time > self.before && time > named {
                    self.keep(digest)?;
                    continue;
                }
                let children = self.remove(digest, time)?;
                for child in children {
                    let named = next.entry(child).or_insert(time);
                    *named = time.max(*named);
                }
            }
            level = next;
        }
        Ok(())
    }

    /// Lets a manifest go. Gives the manifests that it names.
    fn remove(&mut self, digest: Digest, time: SystemTime) -> Result<Vec<Digest>, StoreError> {
        self.marks.manifests.insert(digest);
        let Some(node) = self.files.node(&digest)? else { return Ok(Vec::new()) };
        for blob in node.blobs {
            let named = self.marks.named.entry(blob).or_insert(time);
            *named = time.max(*named);
        }
        Ok(node.manifests)
    }

    /// Signatures and the like go with what they are about, and what is about them with them.
    fn attached(&mut self, mut pending: Vec<(Entry, Digest)>) -> Result<(), StoreError> {
        loop {
            let before = pending.len();
            for (entry, subject) in std::mem::take(&mut pending) {
                if self.seen.contains(&subject) {
                    self.keep(entry.digest)?;
                } else if self.marks.manifests.contains(&subject) {
                    self.attached_goes(entry)?;
                } else {
                    pending.push((entry, subject));
                }
            }
            if pending.len() == before {
                break;
            }
        }
        for (entry, _) in pending {
            match self.is_young(&entry.digest)? {
                true => self.keep(entry.digest)?,
                false => self.attached_goes(entry)?,
            }
        }
        Ok(())
    }

    fn attached_goes(&mut self, entry: Entry) -> Result<(), StoreError> {
        if !self.marks.kept.contains(&entry.digest)
            && let Some(time) = self.files.time(&entry.digest)?
        {
            self.remove(entry.digest, time)?;
        }
        self.marks.entries.push(entry);
        Ok(())
    }
}
