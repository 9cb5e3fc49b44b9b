//! The memory of an image in generations, and what stands for it in the dump's own folder.

use std::collections::HashMap;

use super::layers::{Layer, Layers};
use super::{UnpackError, UnpackOptions};
use crate::archive::{ArchiveError, Entry, EntryKind, EntryName};
use crate::generation::{PAGE, Table, Tables};
use crate::image::{CheckpointImage, LayerRef};
use crate::{Digest, Limits};

/// Base-2 logarithm of the largest zstd window of a link. Several are open at the same time.
const WINDOW_LOG: u32 = 23;

/// How memory comes back while an image is unpacked.
pub(super) trait Rebuild {
    /// What an entry of the top folder stands for.
    fn replace(&mut self, entry: &Entry, layer: &mut Layer<'_, '_>) -> Result<Replaced, UnpackError>;
}

/// What an entry stands for.
pub(super) enum Replaced {
    /// For itself.
    No,
    /// For something that comes later, or for nothing.
    Nothing,
    /// For a file of these bytes.
    Bytes(Vec<u8>),
}

/// The chain of an image that is being unpacked.
pub(super) struct Memory {
    pub image: Digest,
    pub generations: u32,
    pub tables: Tables,
    /// The links, from the oldest on, with the digests of their plain contents.
    pub links: Vec<(LayerRef, Digest)>,
    pub pages: Places,
    /// Where the top folder's link must lead.
    newest: Vec<u8>,
}

/// The entries of the dump's files of pages, by their names, as they stand in the state.
pub(super) struct Places {
    image: Digest,
    found: HashMap<String, Option<Entry>>,
}

impl Places {
    /// The entry of the file of pages of one table, once.
    pub fn take(&mut self, table: &Table) -> Result<Entry, UnpackError> {
        let name = pages_name(table);
        let found = self.found.remove(&name).flatten();
        found.ok_or_else(|| bad(self.image, name.as_bytes(), "is missing, though the table has its pages"))
    }
}

impl Memory {
    /// Takes the chain out of an image's layers; nothing if there is none.
    pub fn open(
        image: &CheckpointImage,
        layers: &mut Layers<'_>,
        options: &UnpackOptions,
    ) -> Result<Option<Self>, UnpackError> {
        let Some(chain) = image.chain() else {
            return Ok(None);
        };
        let image = image.manifest().digest;
        let links = layers.take_links();
        let newest = links.last().and_then(|(layer, _)| layer.link).map(|link| link.folder().into_bytes());
        let tables = layers.read_tables(chain.generations, &options.scratch)?;
        let (size, limit) = (tables.pages().saturating_mul(PAGE), options.limits.total_bytes);
        if size > limit {
            let entry = EntryName::new(b"checkpoint/pages-*.img");
            let source = ArchiveError::TooLarge { entry, size, limit };
            return Err(UnpackError::Layer { image, layer: image, source });
        }
        let found = tables.iter().map(|table| (pages_name(table), None)).collect();
        let (generations, newest) = (chain.generations, newest.unwrap_or_default());
        Ok(Some(Self { image, generations, tables, links, pages: Places { image, found }, newest }))
    }

    /// Takes what an entry of the top folder stands for. Of a pagemap that is the one that CRIU wrote, or what `pagemap` makes of
    /// it; it is given the name within the folder, too.
    pub fn replace(
        &mut self,
        entry: &Entry,
        layer: &mut Layer<'_, '_>,
        pagemap: impl FnOnce(&str, Vec<u8>) -> Result<Vec<u8>, UnpackError>,
    ) -> Result<Replaced, UnpackError> {
        let bad = |reason: &str| bad(self.image, &entry.name, reason);
        if entry.name == b"checkpoint/parent" {
            let parent = EntryKind::Symlink { target: self.newest.clone() };
            return if entry.kind == parent {
                Ok(Replaced::Nothing)
            } else {
                Err(bad("is not the link to the newest generation"))
            };
        }
        let Some(name) = str::from_utf8(&entry.name).ok() else {
            return Ok(Replaced::No);
        };
        if let Some(place) = self.pages.found.get(name) {
            if place.is_some() || entry.kind != (EntryKind::File { size: 0 }) {
                return Err(bad("has pages where they are in generations"));
            }
            self.pages.found.insert(name.to_owned(), Some(entry.clone()));
            return Ok(Replaced::Nothing);
        }
        let named = name.strip_prefix("checkpoint/").and_then(|name| Some((name, self.tables.get(name)?)));
        let Some((file, table)) = named else {
            return Ok(Replaced::No);
        };
        let failed = |source| UnpackError::Scratch { image: self.image, source };
        let below = self.tables.pagemap(table).map_err(failed)?.all_below();
        if entry.kind != (EntryKind::File { size: below.len() as u64 }) || layer.read_head(entry.size())? != below {
            return Err(bad("does not name the pages that the table has"));
        }
        pagemap(file, self.tables.pagemap_bytes(table).map_err(failed)?).map(Replaced::Bytes)
    }
}

/// The limits within which a link is read.
pub(super) fn of_link(limits: &Limits) -> Limits {
    Limits { zstd_window_log: limits.zstd_window_log.min(WINDOW_LOG), ..limits.clone() }
}

pub(super) fn bad(image: Digest, entry: &[u8], reason: &str) -> UnpackError {
    UnpackError::Chain { image, entry: EntryName::new(entry), reason: reason.to_owned() }
}

pub(super) fn pages_name(table: &Table) -> String {
    format!("checkpoint/pages-{}.img", table.dump_pages_id)
}

/// The number of a file of pages.
pub(super) fn pages_of(entry: &Entry) -> Option<u32> {
    let EntryKind::File { .. } = entry.kind else {
        return None;
    };
    let name = str::from_utf8(&entry.name).ok()?.rsplit('/').next()?;
    name.strip_prefix("pages-")?.strip_suffix(".img")?.parse().ok()
}
