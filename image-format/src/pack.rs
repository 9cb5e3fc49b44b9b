//! Makes a checkpoint image of a dump in one pass, without holding or copying it.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::thread::{Scope, ScopedJoinHandle};

use crate::archive::{ArchiveError, Entries, Entry, EntryKind, EntryName, Guard, parent};
use crate::dump::{DumpError, DumpSource, Recognizer};
use crate::facts::{Facts, FactsBuilder, FactsError};
use crate::image::{BuildError, ImageMetadata, build_config, build_manifest};
use crate::layer::{AppendError, LayerInfo, LayerWriter};
use crate::pages::{Pages, Short};
use crate::{BlobStore, Compression, Digest, Document, LayerContent, Limits, MemberId, timestamp};

/// Plain bytes after which a layer of pages takes no further file. Blobs of bounded size are sent side by side, and
/// those that arrived are not sent again after a break.
const PAGES_LAYER: u64 = 256 << 20;

/// How files are spread over layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// By what changes together: state, files, pages.
    #[default]
    Split,
    /// All in one layer, in the dump's own order.
    Plain,
}

/// What a packed image shall be like.
#[derive(Debug, Clone, Default)]
pub struct PackOptions {
    /// Which container of an application this is.
    pub member: Option<MemberId>,
    /// Members that must exist before this one.
    pub depends_on: Vec<MemberId>,
    /// Compression of the layers.
    pub compression: Compression,
    /// How many layers.
    pub layout: Layout,
    /// Creation time, RFC 3339; without it, the time at which CRIU wrote its inventory.
    pub created: Option<String>,
    /// Further annotations of the image.
    pub annotations: BTreeMap<String, String>,
    /// How much to take from the dump.
    pub limits: Limits,
}

/// A checkpoint image whose layers and config are stored. Its manifest is the caller's to store, last of all.
#[derive(Debug, Clone)]
pub struct PackedImage {
    /// The manifest, not stored yet.
    pub manifest: Document,
    /// The config, stored.
    pub config: Document,
    /// The layers, stored, in the manifest's order.
    pub layers: Vec<LayerInfo>,
    /// What the dump says about itself.
    pub facts: Facts,
}

/// Why a dump was not packed. Blobs that were complete by then may be in the store; nothing refers to them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The dump cannot be read, is not safe, or is none.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// What the dump says about itself cannot be read.
    #[error("cannot read the facts of {}", path.display())]
    Facts {
        /// The dump.
        path: PathBuf,
        /// Why.
        #[source]
        source: FactsError,
    },
    /// A hard link between files of different layers, which engines do not take.
    #[error("entry {entry}: a hard link to {target} in another layer; the plain layout can hold it")]
    HardLinkAcrossLayers {
        /// The link.
        entry: EntryName,
        /// What it names.
        target: EntryName,
    },
    /// The store did not take a blob.
    #[error("cannot store the {what}")]
    Store {
        /// Which blob.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The options do not make a valid image.
    #[error("cannot describe the image")]
    Describe(#[from] BuildError),
}

/// Packs a dump: its layers and the config go into the store, the manifest is given back.
///
/// Memory is constant whatever the size of the dump. Equal dumps give equal images, on any machine and for any user.
///
/// # Errors
/// A dump that is unsafe, damaged or none; a store that fails.
pub fn pack(source: DumpSource, options: &PackOptions, store: &dyn BlobStore) -> Result<PackedImage, PackError> {
    let path = source.path().to_owned();
    let mut entries = source.into_entries(&options.limits)?;
    let packed = std::thread::scope(|scope| {
        let mut packer = Packer::new(scope, path.clone(), options, store);
        while let Some(entry) = entries.next_entry().map_err(|source| packer.bad_content(source))? {
            packer.add(entry, &mut entries)?;
        }
        packer.finish()
    })?;
    if let Some(Short { pages, found, pagemap, counted }) = packed.pages_files.short() {
        let (pages, pagemap) = (EntryName::new(pages.as_bytes()), EntryName::new(pagemap.as_bytes()));
        return Err(DumpError::Short { path, pages, found, pagemap, counted }.into());
    }
    let kind = packed.recognizer.finish().map_err(|source| DumpError::Unknown { path, source })?;
    let facts = packed.facts.finish(kind);
    let created = options.created.clone().unwrap_or_else(|| timestamp::rfc3339(packed.inventory_mtime));

    let config = build_config(&facts, Some(&created), &packed.layers)?;
    put(store, &config).map_err(|source| PackError::Store { what: "config", source })?;
    let metadata = ImageMetadata {
        member: options.member.clone(),
        depends_on: options.depends_on.clone(),
        created: Some(created),
        annotations: options.annotations.clone(),
    };
    let manifest = build_manifest(&facts, &metadata, &config.descriptor(), &packed.layers)?;
    Ok(PackedImage { manifest, config, layers: packed.layers, facts })
}

fn put(store: &dyn BlobStore, document: &Document) -> io::Result<()> {
    let mut sink = store.create()?;
    sink.write_all(document.bytes())?;
    sink.commit(document.digest(), document.bytes().len() as u64)
}

/// Deals the entries of one dump out to layers.
struct Packer<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    path: PathBuf,
    options: &'env PackOptions,
    store: &'env dyn BlobStore,
    guard: Guard,
    facts: FactsBuilder,
    recognizer: Recognizer,
    pages_files: Pages,
    inventory_mtime: Option<u64>,
    open: BTreeMap<LayerContent, LayerWriter<'scope>>,
    /// What the open layer of pages holds so far.
    pages: HashSet<Digest>,
    /// A layer of pages that is full and still being stored.
    closing: Option<LayerThread<'scope>>,
    /// Layers of pages that are stored.
    closed: Vec<LayerInfo>,
}

type LayerThread<'scope> = ScopedJoinHandle<'scope, io::Result<LayerInfo>>;

/// What is known when the last entry has passed.
struct Packed {
    layers: Vec<LayerInfo>,
    facts: FactsBuilder,
    recognizer: Recognizer,
    pages_files: Pages,
    inventory_mtime: u64,
}

impl<'scope, 'env> Packer<'scope, 'env> {
    fn new(
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
            guard: Guard::new(&options.limits),
            facts: FactsBuilder::default(),
            recognizer: Recognizer::default(),
            pages_files: Pages::default(),
            inventory_mtime: None,
            open: BTreeMap::new(),
            pages: HashSet::new(),
            closing: None,
            closed: Vec::new(),
        }
    }

    fn add(&mut self, mut entry: Entry, content: &mut dyn Read) -> Result<(), PackError> {
        if !self.guard.admit(&mut entry).map_err(|source| self.bad_content(source))? {
            return Ok(());
        }
        match &entry.name[..] {
            b"checkpoint/inventory.img" => self.inventory_mtime = Some(entry.mtime),
            b"pre-checkpoint/inventory.img" => self.inventory_mtime = self.inventory_mtime.or(Some(entry.mtime)),
            _ => {}
        }
        let head = self.read_head(&entry, content)?;
        let layer = self.layer_of(&entry);
        if layer == LayerContent::Pages {
            self.prepare_pages(&entry)?;
        }
        self.append(layer, &entry, &mut head.chain(content))
    }

    /// Reads of a file what is worth knowing.
    fn read_head(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<Vec<u8>, PackError> {
        self.recognizer.saw(&entry.name);
        let mut head = Vec::new();
        if let EntryKind::HardLink { target } = &entry.kind
            && let (Ok(name), Ok(target)) = (str::from_utf8(&entry.name), str::from_utf8(target))
        {
            self.pages_files.link(name, target);
        }
        let name = str::from_utf8(&entry.name).ok().filter(|_| matches!(entry.kind, EntryKind::File { .. }));
        let Some(name) = name else {
            return Ok(head);
        };
        let Some(wanted) = FactsBuilder::wants(name).max(Pages::wants(name)) else {
            self.add_pages(name, entry.size(), &head)?;
            return Ok(head);
        };
        let read = content.take(wanted.min(entry.size())).read_to_end(&mut head);
        read.map_err(|error| self.bad_content(ArchiveError::read(error)))?;
        let facts = self.facts.add(name, entry.size(), &head);
        facts.map_err(|source| PackError::Facts { path: self.path.clone(), source })?;
        self.add_pages(name, entry.size(), &head)?;
        let known = self.recognizer.add(name, &head);
        known.map_err(|source| DumpError::Unknown { path: self.path.clone(), source })?;
        Ok(head)
    }

    fn add_pages(&mut self, name: &str, size: u64, head: &[u8]) -> Result<(), PackError> {
        let added = self.pages_files.add(name, size, head);
        added.map_err(|source| PackError::Facts {
            path: self.path.clone(),
            source: FactsError::Criu { name: name.to_owned(), source },
        })
    }

    /// A hard link goes where the file is: within one layer is where engines can make it.
    fn layer_of(&self, entry: &Entry) -> LayerContent {
        match (self.options.layout, &entry.kind) {
            (Layout::Plain, _) => LayerContent::Whole,
            (Layout::Split, EntryKind::HardLink { target }) => content_of(target),
            (Layout::Split, EntryKind::Directory) => content_of(&[&entry.name, &b"/"[..]].concat()),
            (Layout::Split, _) => content_of(&entry.name),
        }
    }

    /// Makes room for a file of pages, and for its folder: a layer must bring along the folders of its files, or engines
    /// give them permissions of their own.
    fn prepare_pages(&mut self, entry: &Entry) -> Result<(), PackError> {
        let is_full = |layer: &mut LayerWriter<'_>| layer.plain_bytes() > PAGES_LAYER;
        if self.open.get_mut(&LayerContent::Pages).is_some_and(is_full) {
            self.close_pages()?;
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
            let name = folder.to_vec();
            let (kind, xattrs) = (EntryKind::Directory, BTreeMap::new());
            let folder = Entry { name, kind, mode: 0o700, uid: 0, gid: 0, mtime: 0, xattrs };
            self.append(LayerContent::Pages, &folder, &mut io::empty())?;
        }
        self.pages.insert(Digest::of(&entry.name));
        Ok(())
    }

    /// At most two layers of pages are in memory: the open one, and one that is being stored.
    fn close_pages(&mut self) -> Result<(), PackError> {
        self.pages.clear();
        let thread = self.open.remove(&LayerContent::Pages).map(LayerWriter::finish);
        if let Some(before) = std::mem::replace(&mut self.closing, thread) {
            self.closed.push(join(before)?);
        }
        Ok(())
    }

    fn append(&mut self, layer: LayerContent, entry: &Entry, content: &mut dyn Read) -> Result<(), PackError> {
        if !self.open.contains_key(&layer) {
            let writer = self
                .store
                .create()
                .and_then(|sink| LayerWriter::start(self.scope, sink, self.options.compression, layer));
            self.open.insert(layer, writer.map_err(|source| PackError::Store { what: "layer", source })?);
        }
        let Some(writer) = self.open.get_mut(&layer) else {
            return Ok(());
        };
        match writer.append(entry, content) {
            Ok(()) => Ok(()),
            Err(AppendError::Content(source)) => Err(self.bad_content(source)),
            Err(AppendError::Layer) => {
                self.open.remove(&layer).map_or(Ok(()), |writer| join(writer.finish()).map(drop))
            }
        }
    }

    fn finish(mut self) -> Result<Packed, PackError> {
        self.close_pages()?;
        let threads: Vec<_> = self.open.into_values().map(LayerWriter::finish).collect();
        let mut pages = self.closed;
        if let Some(thread) = self.closing {
            pages.push(join(thread)?);
        }
        let mut layers = threads.into_iter().map(join).collect::<Result<Vec<_>, _>>()?;
        layers.append(&mut pages);
        let inventory_mtime = self.inventory_mtime.unwrap_or(0);
        Ok(Packed {
            layers,
            facts: self.facts,
            recognizer: self.recognizer,
            pages_files: self.pages_files,
            inventory_mtime,
        })
    }

    fn bad_content(&self, source: ArchiveError) -> PackError {
        DumpError::Content { path: self.path.clone(), source }.into()
    }
}

fn join(thread: LayerThread<'_>) -> Result<LayerInfo, PackError> {
    let result = thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread of a layer ended unexpectedly")));
    result.map_err(|source| PackError::Store { what: "layer", source })
}

/// Which layer a file belongs to, by its name alone, so that packing an unpacked image gives the same layers.
pub(crate) fn content_of(name: &[u8]) -> LayerContent {
    let in_folder = |folder: &[u8]| name.strip_prefix(folder);
    let image = in_folder(b"checkpoint/").or_else(|| in_folder(b"pre-checkpoint/"));
    let is_pages = image.and_then(|image| image.strip_prefix(b"pages-")?.strip_suffix(b".img"));
    match name {
        _ if is_pages.is_some_and(|id| !id.contains(&b'/')) => LayerContent::Pages,
        b"rootfs-diff.tar" | b"deleted.files" | b"devshm-checkpoint.tar" => LayerContent::Files,
        _ if name.starts_with(b"volumes/") => LayerContent::Files,
        _ => LayerContent::State,
    }
}
