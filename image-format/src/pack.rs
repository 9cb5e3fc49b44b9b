//! Makes a checkpoint image of a dump in one pass, without holding or copying it.

mod layers;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) use self::layers::{OpenLayers, Slot};
use crate::archive::{ArchiveError, Entries, Entry, EntryKind, EntryName, Guard};
use crate::dump::{DumpError, DumpSource, Recognizer};
use crate::facts::{Facts, FactsBuilder, FactsError};
use crate::generation::{Base, Chain, ChainLimits, Dump, Generated, Generations};
use crate::image::{BuildError, ImageMetadata, build_config, build_manifest};
use crate::layer::LayerInfo;
use crate::page_server::{Placing, Received, ReceivedError, ReceivedFile, ReceivedImage};
use crate::pages::{Pages, Short};
use crate::{BlobStore, Compression, Document, LayerContent, Limits, MemberId, timestamp};

/// How files are spread over layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// By what changes together: state, files, pages; and pages in generations, so that the next image stores what changed.
    #[default]
    Generations,
    /// By what changes together, and files of pages as the engine laid them out.
    Split,
    /// All in one layer, in the dump's own order.
    Plain,
}

/// What a packed image shall be like.
#[derive(Debug, Clone)]
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
    /// The image with whose pages those of the dump are compared. Its layers must be in the store, or get there before the
    /// manifest does.
    pub base: Option<Arc<Base>>,
    /// When a base is not used although there is one.
    pub chain: ChainLimits,
    /// A folder for files without a name, for what is compared and is too much for memory.
    pub scratch: PathBuf,
    /// How much to take from the dump.
    pub limits: Limits,
}

impl Default for PackOptions {
    fn default() -> Self {
        Self {
            member: None,
            depends_on: Vec::new(),
            compression: Compression::default(),
            layout: Layout::default(),
            created: None,
            annotations: BTreeMap::new(),
            base: None,
            chain: ChainLimits::default(),
            scratch: SCRATCH.into(),
            limits: Limits::default(),
        }
    }
}

/// Where temporary files go if nobody says: a folder of the system that is not in memory.
pub(crate) const SCRATCH: &str = "/var/tmp";

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
    /// The chain of generations in which its pages are; none if they are packed as they were.
    pub chain: Option<Chain>,
    /// What a person may want to know of how the pages were packed, such as why there is no use of a base.
    pub notes: Vec<String>,
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
    /// Something that only a dump over another one has, behind pages that were taken for those of a whole one.
    #[error("entry {entry} comes after pages to which it does not fit; the split layout can hold it")]
    LateChain {
        /// The file.
        entry: EntryName,
    },
    /// What is compared does not fit into memory, and nowhere else.
    #[error("cannot use a temporary file")]
    Scratch(#[source] io::Error),
    /// The store did not take a blob.
    #[error("cannot store the {what}")]
    Store {
        /// Which blob.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What came in a stream of pages does not go with the dump.
    #[error(transparent)]
    Received(#[from] ReceivedError),
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
    let (source, received) = source.take_pages();
    let mut entries = source.into_entries(&options.limits)?;
    let packed = std::thread::scope(|scope| {
        let layers = OpenLayers::new(scope, path.clone(), options, store);
        let mut packer = Packer::new(path.clone(), options, received.as_deref(), layers);
        while let Some(entry) = entries.next_entry().map_err(|source| packer.bad_content(source))? {
            packer.add(entry, &mut entries)?;
        }
        packer.finish()
    })?;
    let kind = packed.recognizer.finish().map_err(|source| DumpError::Unknown { path: path.clone(), source });
    let facts = kind.map(|kind| packed.facts.finish(kind));
    let processes: Vec<u32> = facts.iter().flat_map(|facts| &facts.processes).map(|process| process.pid).collect();
    if let Some(placing) = &packed.placing {
        placing.finish(&processes)?;
    }
    if let Some(Short { pages, found, pagemap, counted }) = packed.pages_files.short(&processes) {
        let (pages, pagemap) = (EntryName::new(pages.as_bytes()), EntryName::new(pagemap.as_bytes()));
        return Err(DumpError::Short { path, pages, found, pagemap, counted }.into());
    }
    let facts = facts?;
    let created = options.created.clone().unwrap_or_else(|| timestamp::rfc3339(packed.inventory_mtime));

    let Generated { chain, notes } = packed.generated;
    let config = build_config(&facts, Some(&created), &packed.layers)?;
    put(store, &config).map_err(|source| PackError::Store { what: "config", source })?;
    let metadata = ImageMetadata {
        member: options.member.clone(),
        depends_on: options.depends_on.clone(),
        created: Some(created),
        annotations: options.annotations.clone(),
        chain: chain.clone(),
    };
    let manifest = build_manifest(&facts, &metadata, &config.descriptor(), &packed.layers)?;
    Ok(PackedImage { manifest, config, layers: packed.layers, facts, chain, notes })
}

fn put(store: &dyn BlobStore, document: &Document) -> io::Result<()> {
    let mut sink = store.create()?;
    sink.write_all(document.bytes())?;
    sink.commit(document.digest(), document.bytes().len() as u64)
}

/// Deals the entries of one dump out to layers.
struct Packer<'scope, 'env> {
    path: PathBuf,
    options: &'env PackOptions,
    guard: Guard,
    facts: FactsBuilder,
    recognizer: Recognizer,
    pages_files: Pages,
    inventory_mtime: Option<u64>,
    layers: OpenLayers<'scope, 'env>,
    generations: Generations<'env>,
    /// What came in a stream and is no entry of the dump.
    placing: Option<Placing<'env>>,
}

/// What is known when the last entry has passed.
struct Packed<'env> {
    layers: Vec<LayerInfo>,
    generated: Generated,
    facts: FactsBuilder,
    recognizer: Recognizer,
    pages_files: Pages,
    inventory_mtime: u64,
    placing: Option<Placing<'env>>,
}

impl<'scope, 'env> Packer<'scope, 'env> {
    fn new(
        path: PathBuf,
        options: &'env PackOptions,
        received: Option<&'env Received>,
        layers: OpenLayers<'scope, 'env>,
    ) -> Self {
        Self {
            path,
            options,
            guard: Guard::new(&options.limits),
            facts: FactsBuilder::default(),
            recognizer: Recognizer::default(),
            pages_files: Pages::default(),
            inventory_mtime: None,
            layers,
            generations: Generations::new(options.base.as_deref(), received, options.chain, &options.scratch),
            placing: received.map(Placing::new),
        }
    }

    fn add(&mut self, mut entry: Entry, content: &mut dyn Read) -> Result<(), PackError> {
        if let Some(placing) = &self.placing {
            placing.refuse_own(&entry.name)?;
        }
        if !self.guard.admit(&mut entry).map_err(|source| self.bad_content(source))? {
            return Ok(());
        }
        if let Some(placing) = &mut self.placing {
            placing.saw(&entry);
        }
        while let Some((entry, file)) = self.placing.as_mut().and_then(|placing| placing.next_before(&entry.name)) {
            self.add_received(entry, file)?;
        }
        self.deal(&entry, content, None)
    }

    /// Takes a file that came in a stream.
    fn add_received(&mut self, mut entry: Entry, file: ReceivedFile<'env>) -> Result<(), PackError> {
        self.guard.admit(&mut entry).map_err(|source| self.bad_content(source))?;
        let received = self.placing.as_ref().map(Placing::received);
        match file {
            ReceivedFile::Pagemap(image) => self.deal(&entry, &mut &image.pagemap[..], None),
            ReceivedFile::Pages(image) => match received {
                Some(received) => self.deal(&entry, &mut received.content(image), Some(image)),
                None => Ok(()),
            },
        }
    }

    /// Deals one entry out. If it is a file of pages that came in a stream, `received` is what came.
    fn deal(
        &mut self,
        entry: &Entry,
        content: &mut dyn Read,
        received: Option<&ReceivedImage>,
    ) -> Result<(), PackError> {
        match &entry.name[..] {
            b"checkpoint/inventory.img" => self.inventory_mtime = Some(entry.mtime),
            b"pre-checkpoint/inventory.img" => self.inventory_mtime = self.inventory_mtime.or(Some(entry.mtime)),
            _ => {}
        }
        let head = self.read_head(entry, content)?;
        if self.options.layout == Layout::Generations && self.add_to_generation(entry, &head, content, received)? {
            return Ok(());
        }
        if let Some(all) = self.placing.as_ref().map(Placing::received)
            && let Some(base) = all.base().filter(|_| received.is_some_and(|image| !image.is_whole()))
        {
            let reason = "its pages do not go into generations";
            return Err(all.not_over_base(base, reason).into());
        }
        let layer = self.layer_of(entry);
        if layer == LayerContent::Pages {
            self.layers.prepare_pages(entry)?;
        }
        self.layers.append(Slot::Content(layer), entry, &mut head.chain(content))
    }

    /// Whether the entry is taken by the generation. `head` is all of a pagemap, and nothing of a file of pages.
    fn add_to_generation(
        &mut self,
        entry: &Entry,
        head: &[u8],
        content: &mut dyn Read,
        received: Option<&ReceivedImage>,
    ) -> Result<bool, PackError> {
        self.generations.saw(entry)?;
        match &entry.kind {
            EntryKind::HardLink { target } if !self.generations.keep(target, &mut self.layers)? => {
                let (entry, target) = (EntryName::new(&entry.name), EntryName::new(target));
                return Err(PackError::HardLinkAcrossLayers { entry, target });
            }
            EntryKind::File { .. } => {}
            EntryKind::HardLink { .. } | EntryKind::Symlink { .. } | EntryKind::Directory => return Ok(false),
        }
        let Ok(name) = str::from_utf8(&entry.name) else {
            return Ok(false);
        };
        if self.generations.offer(name, entry, head)? {
            return Ok(true);
        }
        let (architecture, criu) = (self.facts.architecture(), self.facts.criu_version());
        let dump = Dump { member: self.options.member.as_ref(), architecture, criu, bytes: 0 };
        self.generations.take(name, entry, content, received, dump, &mut self.layers)
    }

    /// Reads of a file what is worth knowing.
    fn read_head(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<Vec<u8>, PackError> {
        self.recognizer.saw(entry);
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
            (_, EntryKind::HardLink { target }) => content_of(target),
            (_, EntryKind::Directory) => content_of(&[&entry.name, &b"/"[..]].concat()),
            (_, _) => content_of(&entry.name),
        }
    }

    fn finish(mut self) -> Result<Packed<'env>, PackError> {
        while let Some((entry, file)) = self.placing.as_mut().and_then(Placing::next_file) {
            self.add_received(entry, file)?;
        }
        let generated = self.generations.finish(&mut self.layers)?;
        Ok(Packed {
            layers: self.layers.finish()?,
            generated,
            facts: self.facts,
            recognizer: self.recognizer,
            pages_files: self.pages_files,
            inventory_mtime: self.inventory_mtime.unwrap_or(0),
            placing: self.placing,
        })
    }

    fn bad_content(&self, source: ArchiveError) -> PackError {
        DumpError::Content { path: self.path.clone(), source }.into()
    }
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
