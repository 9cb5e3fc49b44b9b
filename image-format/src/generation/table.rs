//! Tables of pages: for one pagemap, the digest of each page, and where in the chain it lies.
//!
//! ```text
//! offset 0    "synctab" and the version 1           all numbers have the least significant byte first
//!        8    u32  number of the files of pages in the links of the chain
//!       12    u32  the newest generation
//!       16    u64  pages
//!       24    u64  runs
//!       32    runs:    u64 index, u32 pages, u32 generation    16 bytes each
//!             digests: the first 16 bytes of BLAKE3            16 bytes each
//! ```
//!
//! Pages are in the order of the pagemap. A run names pages that follow one another both there and in one generation:
//! the first of them is the page `index` of all pages that this pagemap has in that generation, its parts put together.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::path::Path;

use super::digest::PageDigest;
use super::pagemap::Pagemap;
use super::{PAGE, Scratch};
use crate::archive::{Entry, EntryKind, EntryName};

const MAGIC: &[u8; 8] = b"synctab\x01";
const HEAD: u64 = 32;
/// Bytes of a run, and of a digest.
pub(crate) const RECORD: u64 = 16;
/// Bytes of one pagemap that takes part in generations.
pub(crate) const MAX_PAGEMAP: u64 = 4 << 20;
/// Bytes of all tables of one image: enough for a terabyte of memory.
const MAX_TABLES: u64 = 8 << 30;
/// Pages of all tables together: as many as may be in a dump.
const MAX_PAGES: u64 = 1 << 30;

/// Pages that follow one another in the dump and in a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source {
    pub index: u64,
    pub pages: u32,
    pub generation: u32,
}

impl Source {
    pub fn to_bytes(self) -> [u8; RECORD as usize] {
        let mut bytes = [0; RECORD as usize];
        bytes[..8].copy_from_slice(&self.index.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.pages.to_le_bytes());
        bytes[12..].copy_from_slice(&self.generation.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; RECORD as usize]) -> Self {
        let (index, rest) = (u64_at(&bytes, 0), &bytes[8..]);
        Self { index, pages: u32_at(rest, 0), generation: u32_at(rest, 4) }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// The head of a table.
pub(crate) fn head(pages_id: u32, generation: u32, pages: u64, runs: u64) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(pages_id.to_le_bytes());
    bytes.extend(generation.to_le_bytes());
    bytes.extend(pages.to_le_bytes());
    bytes.extend(runs.to_le_bytes());
    bytes
}

/// Bytes of a table.
pub(crate) fn size(pages: u64, runs: u64) -> u64 {
    HEAD + (pages + runs) * RECORD
}

/// Why the tables of an image cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// An entry that has no place in a layer of digests, or whose content is not what it should be.
    #[error("entry {entry}: {reason}")]
    Entry {
        /// Its name.
        entry: EntryName,
        /// What is wrong with it.
        reason: String,
    },
    /// The temporary file.
    #[error("cannot keep the tables of pages in a temporary file")]
    Scratch(#[source] io::Error),
}

/// One pagemap's table, which lies in [`Tables`].
#[derive(Debug, Clone)]
pub(crate) struct Table {
    /// The number in the name of the dump's file of pages.
    pub dump_pages_id: u32,
    /// The number in the names of the chain's files of pages.
    pub pages_id: u32,
    pub pages: u64,
    runs: u64,
    pagemap_at: u64,
    pagemap_len: u64,
    table_at: u64,
}

/// The tables of one image, checked, in a scratch file.
#[derive(Debug)]
pub(crate) struct Tables {
    data: Scratch,
    tables: Vec<Table>,
    by_name: HashMap<String, usize>,
    /// Numbers of files of pages: of the dump, and of the chain.
    taken: HashSet<(bool, u32)>,
    /// The pagemap whose table must come next.
    pagemap: Option<(String, u64, Pagemap)>,
    generations: u32,
    pages: u64,
}

impl Tables {
    pub fn new(generations: u32, scratch: &Path) -> Self {
        Self {
            data: Scratch::new(scratch),
            tables: Vec::new(),
            by_name: HashMap::new(),
            taken: HashSet::new(),
            pagemap: None,
            generations,
            pages: 0,
        }
    }

    /// Takes an entry of the layer of digests.
    pub fn add(&mut self, entry: &Entry, content: &mut impl Read) -> Result<(), AddError> {
        let bad = |reason: &str| AddError::bad(entry, reason);
        let name = str::from_utf8(&entry.name).unwrap_or_default();
        let EntryKind::File { size } = entry.kind else {
            let own = name == super::OWN_FOLDER && entry.kind == EntryKind::Directory;
            return if own { Ok(()) } else { Err(bad("has no place in a layer of digests")) };
        };
        let file = name.strip_prefix("syncpoint/").filter(|file| !file.contains('/'));
        let file = file.ok_or_else(|| bad("has no place in a layer of digests"))?;
        if self.data.len().saturating_add(size) > MAX_TABLES {
            return Err(bad(&format!("the tables are over the limit of {MAX_TABLES} bytes")));
        }
        let at = self.data.len();
        match self.pagemap.take() {
            None if file.starts_with("pagemap-") && file.ends_with(".img") => {
                if size > MAX_PAGEMAP {
                    return Err(bad(&format!("a pagemap of {size} bytes is over the limit of {MAX_PAGEMAP}")));
                }
                let mut bytes = Vec::new();
                content.take(size).read_to_end(&mut bytes).map_err(AddError::Content)?;
                let map = Pagemap::read(&bytes).map_err(|_| bad("is a pagemap that is not understood"))?;
                self.data.write_all(&bytes).map_err(AddError::scratch)?;
                self.pagemap = Some((file.to_owned(), at, map));
                Ok(())
            }
            Some((pagemap, pagemap_at, map)) if table_name(&pagemap) == file => {
                let copied = copy(&mut content.take(size), &mut self.data)?;
                if copied != size {
                    return Err(AddError::Content(io::ErrorKind::UnexpectedEof.into()));
                }
                let (pages_id, runs) = self.check(at, size, &map).map_err(|reason| bad(&reason))?;
                let (dump_pages_id, pages) = (map.pages_id, map.pages);
                if self.by_name.insert(pagemap, self.tables.len()).is_some() {
                    return Err(bad("is there twice"));
                }
                if !(self.taken.insert((false, dump_pages_id)) && self.taken.insert((true, pages_id))) {
                    return Err(bad("shares its file of pages with another pagemap"));
                }
                let (pagemap_len, table_at) = (at - pagemap_at, at);
                self.tables.push(Table { dump_pages_id, pages_id, pages, runs, pagemap_at, pagemap_len, table_at });
                Ok(())
            }
            _ => Err(bad("is not what follows: each pagemap is followed by its table")),
        }
    }

    /// Checks that nothing is missing at the end.
    pub fn finish(&self) -> Result<(), TableError> {
        match &self.pagemap {
            None => Ok(()),
            Some((pagemap, ..)) => {
                let reason = "its table is missing".to_owned();
                Err(TableError::Entry { entry: EntryName::new(pagemap.as_bytes()), reason })
            }
        }
    }

    /// Everything that the table of one pagemap says: its number, and how many runs there are.
    fn check(&mut self, at: u64, size: u64, map: &Pagemap) -> Result<(u32, u64), String> {
        let mut head = Vec::new();
        let read = self.data.reader(at, HEAD).read_to_end(&mut head);
        read.map_err(|error| error.to_string())?;
        if head.len() as u64 != HEAD || head[..7] != MAGIC[..7] {
            return Err("is no table of pages".to_owned());
        }
        if head[7] != MAGIC[7] {
            return Err(format!("is a table of version {}; only {} is known", head[7], MAGIC[7]));
        }
        let (pages_id, generation) = (u32_at(&head, 8), u32_at(&head, 12));
        let (pages, runs) = (u64_at(&head, 16), u64_at(&head, 24));
        if generation != self.generations {
            return Err(format!("is of generation {generation}, and the image of {}", self.generations));
        }
        let records = pages.checked_add(runs).and_then(|records| records.checked_mul(RECORD));
        if records.and_then(|bytes| bytes.checked_add(HEAD)) != Some(size) {
            return Err(format!("says {pages} pages and {runs} runs, which are not {size} bytes"));
        }
        if pages != map.pages || pages == 0 {
            return Err(format!("has {pages} pages, and its pagemap {}", map.pages));
        }
        self.pages = self.pages.saturating_add(pages);
        if self.pages > MAX_PAGES {
            return Err(format!("has more pages than the limit of {MAX_PAGES} for all tables"));
        }
        let mut seen = 0_u64;
        let mut next = vec![0_u64; self.generations as usize];
        let mut sources = Sources::new(&self.data, at + HEAD, runs);
        while let Some(source) = sources.next().map_err(|error| error.to_string())? {
            let next = (source.generation as usize).checked_sub(1).and_then(|generation| next.get_mut(generation));
            let next = next.ok_or_else(|| format!("has a run in the unknown generation {}", source.generation))?;
            let end = source.index.checked_add(source.pages.into()).filter(|end| *end <= MAX_PAGES);
            match end {
                Some(end) if source.pages > 0 && source.index >= *next => *next = end,
                Some(_) => return Err("has a run that is empty or goes backwards".to_owned()),
                None => return Err("has a run that passes the end".to_owned()),
            }
            seen = seen.saturating_add(source.pages.into());
        }
        if seen != pages {
            return Err(format!("has runs for {seen} pages where there are {pages}"));
        }
        Ok((pages_id, runs))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter()
    }

    /// The tables with the names of their pagemaps.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Table)> {
        self.by_name.iter().map(|(name, index)| (name.as_str(), &self.tables[*index]))
    }

    pub fn get(&self, name: &str) -> Option<&Table> {
        self.by_name.get(name).map(|index| &self.tables[*index])
    }

    /// Pages of all tables.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// What the tables lie in.
    pub fn data(&self) -> &Scratch {
        &self.data
    }

    /// Whether a pagemap has counts of 64 bits.
    pub fn any_wide(&self) -> io::Result<bool> {
        for table in &self.tables {
            if self.pagemap(table)?.wide {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The pagemap's own bytes.
    pub fn pagemap_bytes(&self, table: &Table) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.data.reader(table.pagemap_at, table.pagemap_len).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    pub fn pagemap(&self, table: &Table) -> io::Result<Pagemap> {
        let damaged = |_| io::Error::other("a pagemap that was read before cannot be read any more");
        Pagemap::read(&self.pagemap_bytes(table)?).map_err(damaged)
    }

    pub fn sources(&self, table: &Table) -> Sources<&Scratch> {
        Sources::new(&self.data, table.table_at + HEAD, table.runs)
    }

    /// The digests of its pages, each a [`PageDigest`].
    pub fn digests(&self, table: &Table) -> Records<&Scratch> {
        self.digests_within(table, 0, table.pages)
    }

    /// Those of some pages that follow one another, and no others are read.
    pub fn digests_within(&self, table: &Table, first: u64, pages: u64) -> Records<&Scratch> {
        Records::new(&self.data, table.table_at + HEAD + (table.runs + first) * RECORD, pages)
    }
}

/// The name of a pagemap's table.
pub(crate) fn table_name(pagemap: &str) -> String {
    format!("{}.table", pagemap.strip_suffix(".img").unwrap_or(pagemap))
}

/// Why an entry of a layer of digests was not taken: the layer, or what it holds.
#[derive(Debug)]
pub(crate) enum AddError {
    Content(io::Error),
    Table(TableError),
}

impl AddError {
    fn bad(entry: &Entry, reason: &str) -> Self {
        Self::Table(TableError::Entry { entry: EntryName::new(&entry.name), reason: reason.to_owned() })
    }

    fn scratch(error: io::Error) -> Self {
        Self::Table(TableError::Scratch(error))
    }
}

fn copy(from: &mut impl Read, to: &mut Scratch) -> Result<u64, AddError> {
    let (mut buf, mut copied) = (vec![0; 64 << 10], 0);
    loop {
        let read = from.read(&mut buf).map_err(AddError::Content)?;
        if read == 0 {
            return Ok(copied);
        }
        to.write_all(&buf[..read]).map_err(AddError::scratch)?;
        copied += read as u64;
    }
}

/// Records of 16 bytes, some thousand of them at a time.
#[derive(Debug)]
pub(crate) struct Records<D> {
    data: D,
    at: u64,
    left: u64,
    block: Vec<u8>,
    used: usize,
}

const BLOCK: u64 = 4096;

impl<D: Deref<Target = Scratch>> Records<D> {
    fn new(data: D, at: u64, records: u64) -> Self {
        Self { data, at, left: records, block: Vec::new(), used: 0 }
    }

    pub fn next(&mut self) -> io::Result<Option<[u8; RECORD as usize]>> {
        if self.used == self.block.len() {
            if self.left == 0 {
                return Ok(None);
            }
            let records = self.left.min(BLOCK);
            self.block.clear();
            self.used = 0;
            self.data.reader(self.at, records * RECORD).read_to_end(&mut self.block)?;
            self.left -= records;
            self.at += records * RECORD;
        }
        let record = self.block.get(self.used..).and_then(|rest| rest.first_chunk()).copied();
        self.used += RECORD as usize;
        record.map(Some).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Leaves records out.
    pub fn skip(&mut self, records: u64) {
        let here = ((self.block.len() - self.used) as u64 / RECORD).min(records);
        self.used += (here * RECORD) as usize;
        let further = (records - here).min(self.left);
        self.left -= further;
        self.at += further * RECORD;
    }
}

/// Where the pages of one pagemap lie, run by run.
#[derive(Debug)]
pub(crate) struct Sources<D> {
    records: Records<D>,
}

impl<D: Deref<Target = Scratch>> Sources<D> {
    pub fn new(data: D, at: u64, runs: u64) -> Self {
        Self { records: Records::new(data, at, runs) }
    }

    pub fn next(&mut self) -> io::Result<Option<Source>> {
        Ok(self.records.next()?.map(Source::from_bytes))
    }
}

/// Walks through the pages of a base by rising addresses.
#[derive(Debug)]
pub(crate) struct Known<D> {
    map: Pagemap,
    /// The run at hand, and how many pages there are before it.
    run: usize,
    before: u64,
    sources: Sources<D>,
    source: Option<Source>,
    /// The first page that `source` names.
    source_at: u64,
    digests: Records<D>,
    /// The page whose digest comes next.
    digest_at: u64,
}

impl<'a> Known<&'a Scratch> {
    pub fn new(tables: &'a Tables, table: &Table) -> io::Result<Self> {
        Self::over(tables.data(), tables, table)
    }
}

impl<D: Deref<Target = Scratch> + Clone> Known<D> {
    /// `data` gives [`Tables::data`] of these tables.
    pub fn over(data: D, tables: &Tables, table: &Table) -> io::Result<Self> {
        Ok(Self {
            map: tables.pagemap(table)?,
            run: 0,
            before: 0,
            sources: Sources::new(data.clone(), table.table_at + HEAD, table.runs),
            source: None,
            source_at: 0,
            digests: Records::new(data, table.table_at + HEAD + table.runs * RECORD, table.pages),
            digest_at: 0,
        })
    }

    /// The digest of the page at an address, which is none of those asked for before, and where it lies: generation, index.
    pub fn at(&mut self, address: u64) -> io::Result<Option<(PageDigest, u32, u64)>> {
        while let Some(run) = self.map.runs.get(self.run)
            && run.end() <= address
        {
            self.before += run.pages;
            self.run += 1;
        }
        let Some(run) = self.map.runs.get(self.run).filter(|run| run.address <= address) else {
            return Ok(None);
        };
        let page = self.before + (address - run.address) / PAGE;
        self.digests.skip(page - self.digest_at);
        self.digest_at = page + 1;
        let Some(digest) = self.digests.next()? else {
            return Ok(None);
        };
        loop {
            match self.source {
                Some(source) if page < self.source_at + u64::from(source.pages) => {
                    return Ok(Some((digest, source.generation, source.index + page - self.source_at)));
                }
                Some(source) => self.source_at += u64::from(source.pages),
                None => {}
            }
            self.source = self.sources.next()?;
            if self.source.is_none() {
                return Ok(None);
            }
        }
    }
}
