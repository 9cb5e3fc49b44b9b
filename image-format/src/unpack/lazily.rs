//! Unpacks an image so that its tasks can run before their memory is there, and reads that memory part by part, in any order.
//!
//! ```text
//! state, files, digests ──▶ the dump: pagemaps whose lazy pages are nowhere (flags 2), files of pages without them
//!                             │
//! parts with pages that must  ├──▶ those pages ──▶ the files of pages
//! be there first              └──▶ their lazy pages ──▶ a file without a name ─┐
//! other parts ─────────────────────────────────────────────────────────────────┴──▶ LazyPages: read as they are asked for
//! ```
//!
//! Which pages are lazy is for CRIU to say (`PE_LAZY`: private anonymous memory, no stack). Those that a child is not to inherit
//! stay out of it: whoever fills a child's memory cannot tell that they are not its own.

mod index;
mod pages;
mod touched;

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read, Write};

use self::index::Index;
use self::pages::{Here, Parts};
pub use self::pages::{LazyPages, LazyProcess, LazyRun, ToProcess};
pub use self::touched::touched_pages;
use super::layers::Layer;
use super::memory::{Memory, Rebuild, Replaced, bad};
use super::{Target, UnpackError, UnpackOptions};
use crate::archive::{CHUNK, Entry, EntryKind};
use crate::criu::{AddressSpace, ImageKind, Mapping, Records};
use crate::generation::{PAGE, Pagemap, PagemapWriter, Place, Run, Scratch, lazy_runs};
use crate::{BlobSource, Digest};

/// Bytes of `mm-*.img`; 65,530 mappings, which the kernel allows, have some 4 MiB.
const MAX_MM: u64 = 16 << 20;
/// `1 << MADV_DONTFORK | 1 << MADV_WIPEONFORK`: a child does not have these pages.
const NOT_INHERITED: u64 = 1 << 10 | 1 << 18;

/// An image that is being unpacked without the memory that may follow.
pub(super) struct Lazily<'a> {
    image: Digest,
    memory: Memory,
    blobs: &'a dyn BlobSource,
    options: &'a UnpackOptions,
    /// By process.
    mappings: HashMap<u32, Vec<Mapping>>,
    /// By pagemap.
    split: HashMap<String, Split>,
}

/// The runs of one pagemap.
#[derive(Debug, Default)]
struct Split {
    /// Those that have to be there first.
    first: Vec<Run>,
    /// Those that may follow, none of them across two mappings.
    later: Vec<Run>,
}

impl<'a> Lazily<'a> {
    pub fn new(
        image: Digest,
        memory: Option<Memory>,
        blobs: &'a dyn BlobSource,
        options: &'a UnpackOptions,
    ) -> Result<Self, UnpackError> {
        let memory = memory.ok_or_else(|| not_lazy(image, "its pages are not in generations"))?;
        Ok(Self { image, memory, blobs, options, mappings: HashMap::new(), split: HashMap::new() })
    }

    /// Writes the files of pages without what may follow, after everything else, and gives that.
    pub fn write(self, created: u64, target: &mut dyn Target) -> Result<LazyPages, UnpackError> {
        let Self { image, memory, blobs, options, mut split, .. } = self;
        let Memory { tables, links, pages: mut places, .. } = memory;
        let failed = |source| UnpackError::Scratch { image, source };
        let parts = Parts::new(links, &options.limits).ok_or_else(|| {
            not_lazy(image, "it was packed by an older version, which does not say where its pages begin")
        })?;
        let names: HashMap<u32, &str> = tables.named().map(|(name, table)| (table.pages_id, name)).collect();
        let mut indexes = Vec::new();
        for table in tables.iter() {
            let name = names.get(&table.pages_id).copied().unwrap_or_default();
            let Split { first, later } = split.remove(name).unwrap_or_default();
            indexes.push(Index::new(&tables, table, number(name, "pagemap-"), &first, &later).map_err(failed)?);
        }
        if indexes.iter().all(|index| index.later.is_empty()) {
            return Err(not_lazy(image, "none of its memory may follow"));
        }
        let mut pages = LazyPages::new(image, tables, parts, indexes, Here::new(Scratch::new(&options.scratch)));
        let (first, here) = read_first(&pages, blobs, Here::new(Scratch::new(&options.scratch)))?;
        let mut buf = vec![0; CHUNK];
        for (number, index) in pages.indexes.iter().enumerate() {
            let mut entry = places.take(&index.table)?;
            entry.kind = EntryKind::File { size: index.first.pages() * PAGE };
            target.begin(&entry, created)?;
            for (at, count) in first.places(number) {
                let mut from = here.data.reader(at, count * PAGE);
                loop {
                    match from.read(&mut buf).map_err(failed)? {
                        0 => break,
                        read => target.write(&buf[..read])?,
                    }
                }
            }
            target.end(&entry)?;
        }
        pages.keep(here);
        Ok(pages)
    }
}

/// Reads the parts that have pages that have to be there first, with all that is in them.
fn read_first(pages: &LazyPages, blobs: &dyn BlobSource, mut here: Here) -> Result<(First, Here), UnpackError> {
    let mut wanted = BTreeSet::new();
    for (table, index) in pages.indexes.iter().enumerate() {
        wanted.extend(index.first_places().flat_map(|placed| pages.parts_of(table, placed)));
    }
    let mut first = First::new(&pages.indexes);
    // Where parts begin is known; in which one a file begins that no part begins with is a guess. So the rest is looked at, if
    // need be.
    let rest: Vec<usize> = (0..pages.parts()).filter(|part| !wanted.contains(part)).collect();
    for part in wanted.into_iter().chain(rest) {
        if first.missing == 0 {
            break;
        }
        pages.read_part(part, blobs, &mut |table, ordinal, bytes| {
            let (at, count) = (here.data.len(), bytes.len() as u64 / PAGE);
            here.data.write_all(bytes)?;
            for span in pages.indexes[table].first.within(ordinal, count) {
                first.found(table, span.before, at + (span.ordinal - ordinal) * PAGE, span.pages);
            }
            here.added(table, ordinal, count, at);
            Ok(())
        })?;
        here.has(part);
    }
    match first.missing {
        0 => Ok((first, here)),
        _ => Err(bad(pages.image(), b"checkpoint/pages-*.img", "lacks pages that the table has")),
    }
}

fn not_lazy(image: Digest, reason: &str) -> UnpackError {
    UnpackError::NotLazy { image, reason: reason.to_owned() }
}

impl Rebuild for Lazily<'_> {
    fn replace(&mut self, entry: &Entry, layer: &mut Layer<'_, '_>) -> Result<Replaced, UnpackError> {
        let image = self.image;
        let name = str::from_utf8(&entry.name).unwrap_or_default();
        if name.starts_with("checkpoint/userns-") {
            // CRIU asks for the pages from within it, which the kernel denies.
            return Err(not_lazy(image, "its processes are in a user namespace of their own"));
        }
        if let Some(pid) = number(name, "checkpoint/mm-") {
            if entry.size() > MAX_MM {
                return Err(not_lazy(image, "a process has too many mappings"));
            }
            let bytes = layer.read_head(entry.size())?;
            let space = Records::open(ImageKind::Memory, &bytes).and_then(Records::one::<AddressSpace>);
            let space = space.map_err(|_| not_lazy(image, "the mappings of a process cannot be read"))?;
            self.mappings.insert(pid, space.mappings);
            return Ok(Replaced::Bytes(bytes));
        }
        let (mappings, split) = (&self.mappings, &mut self.split);
        self.memory.replace(entry, layer, |file, bytes| {
            let mappings = number(file, "pagemap-").and_then(|pid| mappings.get(&pid));
            let unreadable = |_| bad(image, file.as_bytes(), "cannot be read");
            let (bytes, its) = split_pagemap(&bytes, mappings.map_or(&[][..], Vec::as_slice)).map_err(unreadable)?;
            split.insert(file.to_owned(), its);
            Ok(bytes)
        })
    }
}

/// Where the pages are that have to be there first, as they are found.
struct First {
    /// By table, and by the number of the page among those of its table.
    at: Vec<Vec<u64>>,
    missing: u64,
}

/// What is not found yet.
const NOWHERE: u64 = u64::MAX;

impl First {
    fn new(indexes: &[Index]) -> Self {
        let at: Vec<Vec<u64>> = indexes.iter().map(|index| vec![NOWHERE; index.first.pages() as usize]).collect();
        let missing = at.iter().map(|at| at.len() as u64).sum();
        Self { at, missing }
    }

    fn found(&mut self, table: usize, before: u64, at: u64, pages: u64) {
        let places = self.at[table].iter_mut().skip(before as usize).take(pages as usize);
        for (number, place) in places.enumerate() {
            self.missing -= u64::from(*place == NOWHERE);
            *place = at + number as u64 * PAGE;
        }
    }

    /// The places of one table's pages, in their order; those that follow one another together.
    fn places(&self, table: usize) -> Vec<(u64, u64)> {
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for place in &self.at[table] {
            match joined.last_mut() {
                Some((at, pages)) if *at + *pages * PAGE == *place => *pages += 1,
                _ => joined.push((*place, 1)),
            }
        }
        joined
    }
}

/// The number in the name of one of CRIU's images.
fn number(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.strip_suffix(".img")?.parse().ok()
}

/// The pagemap that CRIU takes with `lazy-pages`, and what its pages are.
fn split_pagemap(bytes: &[u8], mappings: &[Mapping]) -> io::Result<(Vec<u8>, Split)> {
    let map = Pagemap::read(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    let runs = lazy_runs(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut mappings = mappings.iter().peekable();
    let mut split = Split::default();
    let mut written = Vec::new();
    let mut writer = PagemapWriter::new(&mut written, map.pages_id, map.wide);
    for (run, lazy) in runs {
        let mut rest = run;
        while rest.pages > 0 {
            while mappings.next_if(|mapping| mapping.end <= rest.address).is_some() {}
            let mapping = mappings.peek().filter(|mapping| mapping.start <= rest.address);
            let end = mapping.map_or(rest.end(), |mapping| mapping.end.min(rest.end()));
            let some = Run { address: rest.address, pages: (end - rest.address).div_ceil(PAGE).min(rest.pages) };
            let later = lazy && mapping.is_some_and(|mapping| mapping.advice.unwrap_or(0) & NOT_INHERITED == 0);
            if later {
                writer.push(some, Place::Later)?;
                split.later.push(some);
            } else {
                writer.push(some, Place::Here)?;
                split.first.push(some);
            }
            rest = Run { address: some.end(), pages: rest.pages - some.pages };
        }
    }
    writer.finish()?;
    Ok((written, split))
}
