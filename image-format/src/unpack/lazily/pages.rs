//! The memory that may follow: which there is, and the parts of the image that it is in.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read, Write};

use super::super::layers::Current;
use super::super::memory::{bad, of_link, pages_of};
use super::index::{Index, Placed};
use super::{UnpackError, touched};
use crate::archive::{ArchiveError, CHUNK, read_full};
use crate::generation::{FirstPage, PAGE, PAGE_LEN, Scratch, Tables, digests_of};
use crate::image::LayerRef;
use crate::{BlobSource, Digest, EntryName, Limits};

/// Pages of a process that follow one another, in one mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LazyRun {
    /// Address of the first one.
    pub address: u64,
    /// How many, of 4096 bytes each.
    pub pages: u64,
}

/// A process, and the memory of it that may follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LazyProcess {
    /// Its number inside the container, by which CRIU names it.
    pub pid: u32,
    /// By rising addresses.
    pub runs: Vec<LazyRun>,
}

/// The layers of pages of an image.
#[derive(Debug)]
pub(super) struct Parts {
    all: Vec<Part>,
    limits: Limits,
}

#[derive(Debug)]
struct Part {
    layer: LayerRef,
    diff_id: Digest,
    generation: u32,
    /// `None`: it begins its generation, with whatever file of pages.
    first_page: Option<FirstPage>,
}

impl Parts {
    /// Nothing if one of them does not say with which page it begins.
    pub fn new(links: Vec<(LayerRef, Digest)>, limits: &Limits) -> Option<Self> {
        let part = |(layer, diff_id): (LayerRef, Digest)| {
            let (link, first_page) = (layer.link?, layer.first_page);
            let known = link.part == 1 || first_page.is_some();
            known.then_some(Part { layer, diff_id, generation: link.generation, first_page })
        };
        Some(Self { all: links.into_iter().map(part).collect::<Option<_>>()?, limits: of_link(limits) })
    }
}

/// What is here already, since it came with what had to be there first.
pub(super) struct Here {
    parts: BTreeSet<usize>,
    pieces: Vec<Piece>,
    pub data: Scratch,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    table: usize,
    ordinal: u64,
    pages: u64,
    at: u64,
}

impl Here {
    pub fn new(data: Scratch) -> Self {
        Self { parts: BTreeSet::new(), pieces: Vec::new(), data }
    }

    /// Notes what was added to the data.
    pub fn added(&mut self, table: usize, ordinal: u64, pages: u64, at: u64) {
        let follows = |last: &&mut Piece| {
            last.table == table && last.ordinal + last.pages == ordinal && last.at + last.pages * PAGE == at
        };
        match self.pieces.last_mut().filter(follows) {
            Some(last) => last.pages += pages,
            None => self.pieces.push(Piece { table, ordinal, pages, at }),
        }
    }

    /// Notes that all of a part is here.
    pub fn has(&mut self, part: usize) {
        self.parts.insert(part);
    }
}

/// Where pages go: the table, the ordinal of the first one, and all of them.
pub(super) type ToTable<'a> = dyn FnMut(usize, u64, &[u8]) -> io::Result<()> + 'a;

/// Where the memory of processes goes: the process as [`LazyPages::processes`] counts them, the address of the first page, and
/// all of the pages, which are in one mapping.
pub type ToProcess<'a> = dyn FnMut(usize, u64, &[u8]) -> io::Result<()> + 'a;

/// The memory of an image that may follow when its tasks run. Its parts are read in any order, also side by side; each page
/// is checked against its digest before it is given, each part against its own once it was read.
pub struct LazyPages {
    image: Digest,
    tables: Tables,
    parts: Parts,
    pub(super) indexes: Vec<Index>,
    /// The process of each table.
    process_of: Vec<Option<usize>>,
    /// The table of each process.
    table_of: Vec<usize>,
    processes: Vec<LazyProcess>,
    here: Here,
    remembered: u64,
}

impl fmt::Debug for LazyPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyPages").field("image", &self.image).field("pages", &self.pages()).finish_non_exhaustive()
    }
}

impl LazyPages {
    pub(super) fn new(image: Digest, tables: Tables, parts: Parts, indexes: Vec<Index>, here: Here) -> Self {
        let (mut processes, mut table_of, mut process_of) = (Vec::new(), Vec::new(), vec![None; indexes.len()]);
        for (table, index) in indexes.iter().enumerate().filter(|(_, index)| !index.later.is_empty()) {
            let Some(pid) = index.pid else { continue };
            let runs = index.later.iter().map(|span| LazyRun { address: span.address, pages: span.pages });
            process_of[table] = Some(processes.len());
            table_of.push(table);
            processes.push(LazyProcess { pid, runs: runs.collect() });
        }
        Self { image, tables, parts, indexes, process_of, table_of, processes, here, remembered: 0 }
    }

    /// Says what is here.
    pub(super) fn keep(&mut self, mut here: Here) {
        here.pieces.sort_by_key(|piece| (piece.table, piece.ordinal));
        self.here = here;
    }

    /// The processes that have memory that may follow.
    #[must_use]
    pub fn processes(&self) -> &[LazyProcess] {
        &self.processes
    }

    /// How many pages may follow.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.processes.iter().flat_map(|process| &process.runs).map(|run| run.pages).sum()
    }

    /// How many parts there are; they are numbered from 0.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.parts.all.len()
    }

    /// Bytes of a part, as it is stored.
    #[must_use]
    pub fn part_bytes(&self, part: usize) -> u64 {
        self.parts.all.get(part).map_or(0, |part| part.layer.descriptor.size)
    }

    /// Whether a part was read when the dump was unpacked: [`LazyPages::read_here`] gives what it has.
    #[must_use]
    pub fn is_here(&self, part: usize) -> bool {
        self.here.parts.contains(&part)
    }

    /// The part in which a page of a process is, as far as can be told without reading it. Nothing for what is no page of it.
    #[must_use]
    pub fn likely_part(&self, process: usize, address: u64) -> Option<usize> {
        let table = *self.table_of.get(process)?;
        let index = &self.indexes[table];
        self.parts_of(table, Placed { pages: 1, ..index.place_of(index.later.at(address)?)? }).next()
    }

    /// The parts that a run of pages is in, unless one is guessed wrongly: in which of several parts a file of pages begins that none
    /// of them begins with.
    pub(super) fn parts_of(&self, table: usize, placed: Placed) -> impl Iterator<Item = usize> + use<> {
        let find = |index| self.find(table, placed.generation, index);
        let found = find(placed.index).zip(find(placed.index + placed.pages - 1));
        found.into_iter().flat_map(|(first, last)| first..=last)
    }

    fn find(&self, table: usize, generation: u32, index: u64) -> Option<usize> {
        let file = self.indexes[table].table.pages_id;
        let mut parts = self.parts.all.iter().enumerate().filter(|(_, part)| part.generation == generation);
        let (start, _) = parts.clone().next()?;
        let of_file = |part: &Part| part.first_page.filter(|page| page.file == file);
        let begins_before = |(_, part): &(usize, &Part)| of_file(part).is_some_and(|page| page.index <= index);
        if let Some((part, _)) = parts.clone().rfind(begins_before) {
            return Some(part);
        }
        if let Some((after, _)) = parts.clone().find(|(_, part)| of_file(part).is_some()) {
            return Some(after.saturating_sub(1).max(start));
        }
        // Files of pages are in the order of the tables, at least in the newest generation.
        let number = |page: FirstPage| self.indexes.iter().position(|index| index.table.pages_id == page.file);
        let is_before = |page: FirstPage| number(page).is_some_and(|at| at < table);
        let before = parts.rfind(|(_, part)| part.first_page.is_some_and(is_before));
        Some(before.map_or(start, |(part, _)| part))
    }

    /// Reads a part, and gives the pages in it that may follow.
    ///
    /// # Errors
    /// A layer that cannot be fetched, is damaged, or has other pages than it should; [`UnpackError::Write`] for what `to` says.
    pub fn read(&self, part: usize, blobs: &dyn BlobSource, to: &mut ToProcess<'_>) -> Result<(), UnpackError> {
        self.read_part(part, blobs, &mut |table, ordinal, bytes| self.give(table, ordinal, bytes, to))
    }

    /// Gives all that is here already.
    ///
    /// # Errors
    /// [`UnpackError::Scratch`]; [`UnpackError::Write`] for what `to` says.
    pub fn read_here(&self, to: &mut ToProcess<'_>) -> Result<(), UnpackError> {
        let failed = |source| UnpackError::Scratch { image: self.image, source };
        let mut buf = vec![0; CHUNK];
        for piece in &self.here.pieces {
            let (mut ordinal, mut from) = (piece.ordinal, self.here.data.reader(piece.at, piece.pages * PAGE));
            loop {
                let read = read_full(&mut from, &mut buf).map_err(failed)?;
                if read == 0 {
                    break;
                }
                self.give(piece.table, ordinal, &buf[..read], to).map_err(UnpackError::Write)?;
                ordinal += read as u64 / PAGE;
            }
        }
        Ok(())
    }

    /// Takes pages that tasks asked for first when this image was restored before, as [`touched_pages`](crate::touched_pages) made them: they
    /// are here from now on. Says how many; those whose digest is not the table's are none.
    ///
    /// # Errors
    /// A stream that makes no sense. What was read before counts.
    pub fn remember(&mut self, stream: &[u8]) -> io::Result<u64> {
        let mut found = Vec::new();
        let read = touched::read(stream, |pid, address, page| {
            let process = self.processes.iter().position(|process| process.pid == pid);
            let table = process.and_then(|process| self.table_of.get(process)).copied();
            let ordinal = table.and_then(|table| Some((table, self.indexes[table].later.at(address)?)));
            if let Some((table, ordinal)) = ordinal.filter(|_| address.is_multiple_of(PAGE))
                && self.find_here(table, ordinal).is_none()
                && self.is_right(table, ordinal, page)?
            {
                found.push(Piece { table, ordinal, pages: 1, at: self.here.data.len() });
                self.here.data.write_all(page)?;
            }
            Ok(())
        });
        found.sort_by_key(|piece| (piece.table, piece.ordinal));
        found.dedup_by_key(|piece| (piece.table, piece.ordinal));
        self.remembered += found.len() as u64;
        self.here.pieces.extend(found);
        self.here.pieces.sort_by_key(|piece| (piece.table, piece.ordinal));
        read.map(|()| self.remembered)
    }

    /// How many pages were remembered.
    #[must_use]
    pub fn remembered(&self) -> u64 {
        self.remembered
    }

    /// The image's manifest.
    #[must_use]
    pub fn image(&self) -> Digest {
        self.image
    }

    fn find_here(&self, table: usize, ordinal: u64) -> Option<u64> {
        let pieces = &self.here.pieces;
        let next = pieces.partition_point(|piece| (piece.table, piece.ordinal) <= (table, ordinal));
        let piece = next.checked_sub(1).and_then(|at| pieces.get(at))?;
        let within = piece.table == table && ordinal < piece.ordinal + piece.pages;
        within.then(|| piece.at + (ordinal - piece.ordinal) * PAGE)
    }

    /// One page, if it is here already.
    ///
    /// # Errors
    /// [`UnpackError::Scratch`].
    pub fn page_here(&self, process: usize, address: u64) -> Result<Option<Vec<u8>>, UnpackError> {
        let table = self.table_of.get(process).copied();
        let ordinal = table.and_then(|table| Some((table, self.indexes[table].later.at(address)?)));
        let Some(at) = ordinal.and_then(|(table, ordinal)| self.find_here(table, ordinal)) else { return Ok(None) };
        let mut page = vec![0; PAGE_LEN];
        let mut from = self.here.data.reader(at, PAGE);
        from.read_exact(&mut page).map_err(|source| UnpackError::Scratch { image: self.image, source })?;
        Ok(Some(page))
    }

    fn give(&self, table: usize, ordinal: u64, bytes: &[u8], to: &mut ToProcess<'_>) -> io::Result<()> {
        let Some(process) = self.process_of[table] else { return Ok(()) };
        for span in self.indexes[table].later.within(ordinal, bytes.len() as u64 / PAGE) {
            let start = (span.ordinal - ordinal) as usize * PAGE_LEN;
            to(process, span.address, &bytes[start..start + span.pages as usize * PAGE_LEN])?;
        }
        Ok(())
    }

    /// Reads a part, and gives all of its live pages.
    pub(super) fn read_part(
        &self,
        part: usize,
        blobs: &dyn BlobSource,
        to: &mut ToTable<'_>,
    ) -> Result<(), UnpackError> {
        let Some(Part { layer, diff_id, generation, first_page }) = self.parts.all.get(part) else { return Ok(()) };
        let limits = &self.parts.limits;
        let mut current = Current::open(self.image, (layer.clone(), *diff_id), blobs, limits)?;
        let mut buf = vec![0; CHUNK];
        let mut bytes = 0_u64;
        let mut first_page = *first_page;
        while let Some(entry) = current.next_entry()? {
            bytes = bytes.saturating_add(entry.size());
            if bytes > limits.total_bytes {
                let (entry, limit) = (EntryName::new(&entry.name), limits.total_bytes);
                return Err(current.failed(ArchiveError::TooLarge { entry, size: bytes, limit }));
            }
            let Some(file) = pages_of(&entry) else { continue };
            let mut index = match first_page.take() {
                Some(first) if first.file != file => {
                    return Err(bad(self.image, &entry.name, "is not what its layer should begin with"));
                }
                Some(first) => first.index,
                None => 0,
            };
            let table = self.indexes.iter().position(|index| index.table.pages_id == file);
            let Some(table) = table else { continue };
            let mut left = entry.size() / PAGE;
            while left > 0 {
                let pages = left.min((buf.len() / PAGE_LEN) as u64);
                let block = &mut buf[..pages as usize * PAGE_LEN];
                let read = read_full(&mut current.reader, block);
                if read.map_err(|error| current.failed(ArchiveError::read(error)))? < block.len() {
                    return Err(current.failed(ArchiveError::Truncated));
                }
                for live in self.indexes[table].live(*generation, index, pages) {
                    let start = (live.index - index) as usize * PAGE_LEN;
                    let bytes = &block[start..start + live.pages as usize * PAGE_LEN];
                    self.check(table, live.ordinal, bytes, &entry.name)?;
                    to(table, live.ordinal, bytes).map_err(UnpackError::Write)?;
                }
                (left, index) = (left - pages, index.saturating_add(pages));
            }
        }
        current.close()
    }

    fn check(&self, table: usize, ordinal: u64, bytes: &[u8], entry: &[u8]) -> Result<(), UnpackError> {
        match self.is_right(table, ordinal, bytes) {
            Ok(true) => Ok(()),
            Ok(false) => Err(bad(self.image, entry, "has a page with another digest")),
            Err(source) => Err(UnpackError::Scratch { image: self.image, source }),
        }
    }

    fn is_right(&self, table: usize, ordinal: u64, bytes: &[u8]) -> io::Result<bool> {
        let mut digests = self.tables.digests_within(&self.indexes[table].table, ordinal, bytes.len() as u64 / PAGE);
        for found in digests_of(bytes) {
            if digests.next()? != Some(found) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
