//! The layers of an image that is being made: which are open, which are being stored, which are done.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read};
use std::path::PathBuf;
use std::thread::{Scope, ScopedJoinHandle};

use super::{PackError, PackOptions};
use crate::archive::{ArchiveError, Entry, EntryKind, EntryName, parent};
use crate::dump::DumpError;
use crate::generation::{FirstPage, Link};
use crate::layer::{AppendError, LayerInfo, LayerWriter};
use crate::{BlobStore, Compression, Digest, LayerContent};

/// Plain bytes after which a layer of pages takes no further file. Blobs of bounded size are sent side by side, and
/// those that arrived are not sent again after a break.
const PAGES_LAYER: u64 = 256 << 20;

/// Which of the open layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Slot {
    /// The one of that content.
    Content(LayerContent),
    /// The link of a chain of generations.
    Link,
}

/// Takes entries and gives layers.
pub(crate) struct OpenLayers<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    path: PathBuf,
    options: &'env PackOptions,
    store: &'env dyn BlobStore,
    open: BTreeMap<Slot, LayerWriter<'scope>>,
    /// What the open layer of pages holds so far.
    pages: HashSet<Digest>,
    /// The link whose layer is open or will be, and how it is compressed.
    link: Option<Link>,
    first_page: Option<FirstPage>,
    link_compression: Compression,
    /// A layer of pages that is full and still being stored.
    closing: Option<LayerThread<'scope>>,
    /// Layers of pages that are stored.
    closed: Vec<LayerInfo>,
    /// Links that are stored since long.
    reused: Vec<LayerInfo>,
}

type LayerThread<'scope> = ScopedJoinHandle<'scope, io::Result<LayerInfo>>;

impl<'scope, 'env> OpenLayers<'scope, 'env> {
    pub fn new(
        scope: &'scope Scope<'scope, 'env>,
        path: PathBuf,
        options: &'env PackOptions,
        store: &'env dyn BlobStore,
    ) -> Self {
        Self {
            scope,
            path,
            options,
            store,
            open: BTreeMap::new(),
            pages: HashSet::new(),
            link: None,
            first_page: None,
            link_compression: options.compression,
            closing: None,
            closed: Vec::new(),
            reused: Vec::new(),
        }
    }

    /// Where temporary files go.
    pub fn scratch(&self) -> &'env std::path::Path {
        &self.options.scratch
    }

    /// Whether a link's layer is compressed only if that is worth it.
    pub fn chooses(&self) -> bool {
        self.options.compression == Compression::Zstd
    }

    pub fn is_open(&self, slot: Slot) -> bool {
        self.open.contains_key(&slot)
    }

    /// The link of what is appended next to [`Slot::Link`], and whether zstd is worth it.
    pub fn begin_link(&mut self, link: Link, first_page: Option<FirstPage>, worth: bool) {
        (self.link, self.first_page) = (Some(link), first_page);
        let plain = self.chooses() && !worth;
        self.link_compression = if plain { Compression::None } else { self.options.compression };
    }

    pub fn close_link(&mut self) -> Result<(), PackError> {
        self.close(Slot::Link)
    }

    /// Names layers that are in the store already, in their order.
    pub fn reuse(&mut self, links: Vec<LayerInfo>) {
        self.reused = links;
    }

    /// Makes room for a file of pages, and for its folder: a layer must bring along the folders of its files, or engines
    /// give them permissions of their own.
    pub fn prepare_pages(&mut self, entry: &Entry) -> Result<(), PackError> {
        let slot = Slot::Content(LayerContent::Pages);
        if self.open.get_mut(&slot).is_some_and(|layer| layer.plain_bytes() > PAGES_LAYER) {
            self.pages.clear();
            self.close(slot)?;
        }
        if let EntryKind::HardLink { target } = &entry.kind
            && !self.pages.contains(&Digest::of(target))
        {
            let (entry, target) = (EntryName::new(&entry.name), EntryName::new(target));
            return Err(PackError::HardLinkAcrossLayers { entry, target });
        }
        if let Some(folder) = parent(&entry.name)
            && self.pages.insert(Digest::of(folder))
        {
            self.append(slot, &Entry::plain(folder, EntryKind::Directory), &mut io::empty())?;
        }
        self.pages.insert(Digest::of(&entry.name));
        Ok(())
    }

    /// At most two layers of pages are in memory: the open one, and one that is being stored.
    fn close(&mut self, slot: Slot) -> Result<(), PackError> {
        let thread = self.open.remove(&slot).map(LayerWriter::finish);
        if let Some(before) = std::mem::replace(&mut self.closing, thread) {
            self.closed.push(join(before)?);
        }
        Ok(())
    }

    pub fn append(&mut self, slot: Slot, entry: &Entry, content: &mut dyn Read) -> Result<(), PackError> {
        if !self.open.contains_key(&slot) {
            let (content, link, compression) = match slot {
                Slot::Content(content) => (content, (None, None), self.options.compression),
                Slot::Link => (LayerContent::Pages, (self.link, self.first_page), self.link_compression),
            };
            let start = |sink| LayerWriter::start(self.scope, sink, compression, content, link);
            let writer = self.store.create().and_then(start);
            self.open.insert(slot, writer.map_err(|source| PackError::Store { what: "layer", source })?);
        }
        let Some(writer) = self.open.get_mut(&slot) else {
            return Ok(());
        };
        match writer.append(entry, content) {
            Ok(()) => Ok(()),
            Err(AppendError::Content(source)) => Err(self.bad_content(source)),
            Err(AppendError::Layer) => self.open.remove(&slot).map_or(Ok(()), |writer| join(writer.finish()).map(drop)),
        }
    }

    /// All layers in the manifest's order: what is small or new first, then the links of the chain, then other pages.
    pub fn finish(mut self) -> Result<Vec<LayerInfo>, PackError> {
        self.close(Slot::Content(LayerContent::Pages))?;
        let threads: Vec<_> = self.open.into_values().map(LayerWriter::finish).collect();
        let mut pages = self.closed;
        if let Some(thread) = self.closing {
            pages.push(join(thread)?);
        }
        let mut layers = threads.into_iter().map(join).collect::<Result<Vec<_>, _>>()?;
        let (links, plain): (Vec<_>, Vec<_>) = pages.into_iter().partition(|layer| layer.link.is_some());
        layers.extend(self.reused);
        layers.extend(links);
        layers.extend(plain);
        Ok(layers)
    }

    pub fn bad_content(&self, source: ArchiveError) -> PackError {
        DumpError::Content { path: self.path.clone(), source }.into()
    }
}

fn join(thread: LayerThread<'_>) -> Result<LayerInfo, PackError> {
    let result = thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread of a layer ended unexpectedly")));
    result.map_err(|source| PackError::Store { what: "layer", source })
}
