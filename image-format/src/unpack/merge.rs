//! Puts files of pages together again from the generations that they are in, all of them.
//!
//! One stream a generation is open, and each goes through its layers once, as long as the processes come in the same order in
//! all of them; where they do not, a stream begins anew. Every page is checked against its digest.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};

use super::layers::{Current, Layer};
use super::memory::{Memory, Rebuild, Replaced, of_link, pages_name, pages_of};
use super::{Target, UnpackError};
use crate::archive::{ArchiveError, CHUNK, Entry, EntryKind, EntryName, read_full};
use crate::generation::{PAGE, PAGE_LEN, Table, Tables, digests_of};
use crate::image::LayerRef;
use crate::{BlobSource, Digest, Limits};

/// The memory of an image that is being unpacked whole.
pub(super) struct Merge<'a> {
    memory: Memory,
    generations: Vec<Stream<'a>>,
}

impl<'a> Merge<'a> {
    pub fn new(memory: Memory, blobs: &'a dyn BlobSource, limits: &Limits) -> Self {
        let limits = of_link(limits);
        let mut generations: Vec<_> =
            (0..memory.generations).map(|_| Stream::new(memory.image, blobs, limits.clone())).collect();
        for (layer, diff_id) in &memory.links {
            if let Some(stream) = layer.link.and_then(|link| generations.get_mut(link.generation as usize - 1)) {
                stream.parts.push((layer.clone(), *diff_id));
            }
        }
        Self { memory, generations }
    }

    /// Writes all files of pages, after everything else, and reads every layer to its end.
    pub fn write(mut self, created: u64, target: &mut dyn Target) -> Result<(), UnpackError> {
        let mut buf = vec![0; CHUNK];
        let memory = &mut self.memory;
        for table in memory.tables.iter() {
            let mut entry = memory.pages.take(table)?;
            entry.kind = EntryKind::File { size: table.pages * PAGE };
            target.begin(&entry, created)?;
            merge(memory.image, &memory.tables, table, &mut self.generations, &mut buf, target)?;
            target.end(&entry)?;
        }
        self.generations.into_iter().try_for_each(Stream::finish)
    }
}

impl Rebuild for Merge<'_> {
    fn replace(&mut self, entry: &Entry, layer: &mut Layer<'_, '_>) -> Result<Replaced, UnpackError> {
        self.memory.replace(entry, layer, |_, bytes| Ok(bytes))
    }
}

/// Writes the pages of one pagemap.
fn merge(
    image: Digest,
    tables: &Tables,
    table: &Table,
    generations: &mut [Stream<'_>],
    buf: &mut [u8],
    target: &mut dyn Target,
) -> Result<(), UnpackError> {
    let failed = |source| UnpackError::Scratch { image, source };
    let bad =
        |reason: String| UnpackError::Chain { image, entry: EntryName::new(pages_name(table).as_bytes()), reason };
    let (mut sources, mut digests) = (tables.sources(table), tables.digests(table));
    // Filled from several runs, so that short ones do not become short writes.
    let mut filled = 0;
    while let Some(source) = sources.next().map_err(failed)? {
        let Some(stream) = generations.get_mut(source.generation as usize - 1) else {
            return Err(bad(format!("is in the unknown generation {}", source.generation)));
        };
        let mut left = source.pages as usize;
        let mut index = source.index;
        while left > 0 {
            let pages = left.min((buf.len() - filled) / PAGE_LEN);
            let part = &mut buf[filled..filled + pages * PAGE_LEN];
            if !stream.read(table.pages_id, index, part)? {
                return Err(bad(format!("lacks page {index} of generation {}", source.generation)));
            }
            for found in digests_of(part) {
                if digests.next().map_err(failed)? != Some(found) {
                    return Err(bad(format!("has a page in generation {} with another digest", source.generation)));
                }
            }
            (left, index, filled) = (left - pages, index + pages as u64, filled + part.len());
            if filled == buf.len() {
                target.write(buf)?;
                filled = 0;
            }
        }
    }
    target.write(&buf[..filled])
}

/// The pages of one generation, part after part.
struct Stream<'a> {
    image: Digest,
    blobs: &'a dyn BlobSource,
    limits: Limits,
    parts: Vec<(LayerRef, Digest)>,
    rest: VecDeque<(LayerRef, Digest)>,
    started: bool,
    current: Option<Current>,
    /// The file of pages at hand: its number, and how many of its pages have not passed.
    file: Option<(u32, u64)>,
    /// How many pages of each file have passed, in all parts.
    passed: HashMap<u32, u64>,
    /// Bytes of all entries since the start.
    bytes: u64,
}

impl<'a> Stream<'a> {
    fn new(image: Digest, blobs: &'a dyn BlobSource, limits: Limits) -> Self {
        Self {
            image,
            blobs,
            limits,
            parts: Vec::new(),
            rest: VecDeque::new(),
            started: false,
            current: None,
            file: None,
            passed: HashMap::new(),
            bytes: 0,
        }
    }

    /// Reads pages that follow one another. `false`: they are not all there.
    fn read(&mut self, pages_id: u32, mut index: u64, mut buf: &mut [u8]) -> Result<bool, UnpackError> {
        if !self.started || self.passed.get(&pages_id).is_some_and(|passed| *passed > index) {
            self.start();
        }
        while !buf.is_empty() {
            let here = self.passed.get(&pages_id).copied().unwrap_or(0);
            match self.file {
                Some((number, left)) if number == pages_id && index < here + left => {
                    self.skip(index - here)?;
                    let pages = (left - (index - here)).min((buf.len() / PAGE_LEN) as u64);
                    let (part, further) = buf.split_at_mut(pages as usize * PAGE_LEN);
                    self.read_pages(part)?;
                    (index, buf) = (index + pages, further);
                }
                Some((_, left)) => {
                    self.pass(left);
                    self.file = None;
                }
                None => {
                    if !self.next_file()? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    fn start(&mut self) {
        self.rest = self.parts.iter().cloned().collect();
        (self.started, self.current, self.file) = (true, None, None);
        self.passed.clear();
        self.bytes = 0;
    }

    /// Counts pages of the file at hand as gone.
    fn pass(&mut self, pages: u64) {
        if let Some((number, left)) = &mut self.file {
            *left -= pages;
            *self.passed.entry(*number).or_default() += pages;
        }
    }

    fn skip(&mut self, pages: u64) -> Result<(), UnpackError> {
        let bytes = pages * PAGE;
        self.pass(pages);
        let Some(current) = &mut self.current else { return Ok(()) };
        let skipped = io::copy(&mut (&mut current.reader).take(bytes), &mut io::sink());
        match skipped.map_err(|error| current.failed(ArchiveError::read(error)))? == bytes {
            true => Ok(()),
            false => Err(current.failed(ArchiveError::Truncated)),
        }
    }

    fn read_pages(&mut self, buf: &mut [u8]) -> Result<(), UnpackError> {
        self.pass((buf.len() / PAGE_LEN) as u64);
        let Some(current) = &mut self.current else { return Ok(()) };
        let read = read_full(&mut current.reader, buf);
        match read.map_err(|error| current.failed(ArchiveError::read(error)))? == buf.len() {
            true => Ok(()),
            false => Err(current.failed(ArchiveError::Truncated)),
        }
    }

    /// Goes on to the next file of pages. What else lies in a link is for CRIU alone.
    fn next_file(&mut self) -> Result<bool, UnpackError> {
        loop {
            let Some(current) = &mut self.current else {
                let Some(part) = self.rest.pop_front() else {
                    return Ok(false);
                };
                self.current = Some(Current::open(self.image, part, self.blobs, &self.limits)?);
                continue;
            };
            match current.next_entry()? {
                Some(entry) => {
                    self.bytes = self.bytes.saturating_add(entry.size());
                    let limit = self.limits.total_bytes;
                    if self.bytes > limit {
                        let (entry, size) = (EntryName::new(&entry.name), entry.size());
                        return Err(current.failed(ArchiveError::TooLarge { entry, size, limit }));
                    }
                    if let Some(number) = pages_of(&entry) {
                        self.file = Some((number, entry.size() / PAGE));
                        return Ok(true);
                    }
                }
                None => self.current.take().map_or(Ok(()), Current::close)?,
            }
        }
    }

    fn finish(mut self) -> Result<(), UnpackError> {
        if !self.started {
            self.start();
        }
        while self.next_file()? {}
        Ok(())
    }
}
