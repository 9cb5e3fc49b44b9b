//! Which files a dump brings along: those in its archives of the root filesystem's changes, of `/dev/shm` and of volumes. Nothing of
//! them is kept but what tells whether two are the same.

use std::collections::BTreeMap;
use std::io::{self, Read};

use super::{Layers, UnpackError};
use crate::archive::{ArchiveReader, CHUNK, DETOUR, Entries, Entry, EntryKind};
use crate::image::CheckpointImage;
use crate::{BlobSource, Digest, HashReader, Limits};

/// Bytes of all names that are held.
const MAX_NAMES: usize = 32 << 20;
/// Bytes of the list of deleted files.
const MAX_DELETED: u64 = 8 << 20;

/// One file of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileState {
    /// It is there; equal digests are equal contents, kinds, owners, permissions and attributes.
    There(Digest),
    /// It is in the image below, and was deleted.
    Deleted,
}

/// The files that a dump brings along, by their paths as the container sees them; those of volumes begin with `volume NAME:`. An archive
/// that is not understood counts as one file.
///
/// # Errors
/// As [`super::read_state`], and more names than are held.
pub fn read_files(
    image: &CheckpointImage,
    blobs: &dyn BlobSource,
    limits: &Limits,
) -> Result<BTreeMap<String, FileState>, UnpackError> {
    let mut layers = Layers::open(image, blobs, limits)?;
    layers.keep_files();
    let mut files = Files { found: BTreeMap::new(), names: 0 };
    while let Some(mut layer) = layers.next_layer()? {
        while let Some(entry) = layer.next_entry()? {
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            let added = match place(&name) {
                Some(place) => files.archive(&name, &place, &mut layer, limits),
                None if name == "deleted.files" => files.deleted(&mut layer),
                None => Ok(()),
            };
            added.map_err(|error| layer.failed(error))?;
        }
    }
    Ok(files.found)
}

/// Where an archive's files are in the container.
fn place(name: &str) -> Option<String> {
    match name {
        "rootfs-diff.tar" => Some("/".to_owned()),
        "devshm-checkpoint.tar" => Some("/dev/shm/".to_owned()),
        _ => Some(format!("volume {}:/", name.strip_prefix("volumes/")?.strip_suffix(".tar")?)),
    }
}

struct Files {
    found: BTreeMap<String, FileState>,
    names: usize,
}

impl Files {
    fn add(&mut self, name: &[u8], place: &str, state: FileState) -> io::Result<()> {
        let name = String::from_utf8_lossy(name);
        let name = format!("{place}{}", name.trim_start_matches("./").trim_start_matches('/'));
        self.names += name.len();
        if self.names > MAX_NAMES {
            return Err(io::Error::other(format!("its files have over {MAX_NAMES} bytes of names")));
        }
        self.found.insert(name, state);
        Ok(())
    }

    /// Reads an archive in the layer.
    fn archive(&mut self, name: &str, place: &str, from: &mut impl Read, limits: &Limits) -> io::Result<()> {
        let mut archive = ArchiveReader::new(HashReader::new(from), limits).with_comments();
        let mut links = BTreeMap::new();
        let understood = loop {
            match archive.next_entry() {
                Ok(Some(entry)) => {
                    let content = content(&mut archive)?;
                    let digest = of(&entry, content);
                    // A link on a detour is there under its other name only.
                    if matches!(entry.kind, EntryKind::Symlink { .. }) && is_detour(&entry.name) {
                        links.insert(entry.name, digest);
                        continue;
                    }
                    let link = match &entry.kind {
                        EntryKind::HardLink { target } => links.get(target).copied(),
                        _ => None,
                    };
                    self.add(&entry.name, place, FileState::There(link.unwrap_or(digest)))?;
                }
                Ok(None) => break true,
                // Such as a pipe; or the layer cannot be read, which shows when its rest is.
                Err(_) => break false,
            }
        };
        let mut whole = archive.into_inner();
        io::copy(&mut whole, &mut io::sink())?;
        if !understood {
            self.add(name.as_bytes(), "", FileState::There(whole.finish().1))?;
        }
        Ok(())
    }

    fn deleted(&mut self, from: &mut impl Read) -> io::Result<()> {
        let mut text = Vec::new();
        from.take(MAX_DELETED).read_to_end(&mut text)?;
        let names: Vec<String> = serde_json::from_slice(&text)?;
        names.iter().try_for_each(|name| self.add(name.as_bytes(), "/", FileState::Deleted))
    }
}

fn is_detour(name: &[u8]) -> bool {
    name.strip_prefix(b"./").unwrap_or(name).starts_with(DETOUR)
}

fn content(from: &mut impl Read) -> io::Result<Digest> {
    let mut hash = HashReader::new(from);
    let mut buf = vec![0; CHUNK];
    while hash.read(&mut buf)? > 0 {}
    Ok(hash.finish().1)
}

/// All that tells an entry from another of the same name; times are left out.
fn of(entry: &Entry, content: Digest) -> Digest {
    let Entry { kind, mode, uid, gid, xattrs, .. } = entry;
    Digest::of(format!("{kind:?} {mode:o} {uid} {gid} {xattrs:?} {content}").as_bytes())
}
