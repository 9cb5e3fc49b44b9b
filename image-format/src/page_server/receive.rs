//! Takes a stream as it comes: checks it, hashes its pages, and keeps those that are not in the base.
//!
//! This runs while tasks are frozen, so it only hashes, compares and copies. What compresses and stores comes afterwards,
//! from [`Received`].

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use prost::Message;

use super::received::{Received, ReceivedImage};
use super::spool::Spool;
use super::{Decoder, Event, Form, PageFlags, PageImage, PageStreamError, opened, parent};
use crate::criu::{ImageKind, PagemapEntry, PagemapHead};
use crate::generation::{Base, Known, MAX_HELD, PAGE, PAGE_LEN, Scratch, Source, digest_of};

/// How much of a stream is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveLimits {
    /// Bytes of pages that are held in memory before a file is made.
    pub memory_bytes: usize,
    /// Pages, those of the base included.
    pub pages: u64,
    /// Images: processes and segments of shared memory.
    pub images: usize,
    /// Bytes of all pagemaps, which are held in memory; some 20 a run of pages. Over a base it is at most 4 MiB.
    pub pagemap_bytes: usize,
}

impl Default for ReceiveLimits {
    fn default() -> Self {
        Self { memory_bytes: 64 << 20, pages: 1 << 30, images: 50_000, pagemap_bytes: 32 << 20 }
    }
}

/// Why a stream is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// What it says.
    #[error(transparent)]
    Stream(#[from] PageStreamError),
    /// The pages cannot be kept.
    #[error("cannot keep the pages of a stream")]
    Spool(#[source] io::Error),
    /// The pages cannot be compared.
    #[error("cannot read the table of pages of the base")]
    Base(#[source] io::Error),
}

/// A stream on its way. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct Receiving {
    decoder: Decoder,
    limits: ReceiveLimits,
    /// An error was found, and what follows has no meaning.
    broken: bool,
    known: HashSet<PageImage>,
    pagemap_bytes: usize,
    pages: u64,
    /// The image that is open.
    open: Option<Open>,
    /// The front of a page that came in pieces.
    begun: Vec<u8>,
    received: Received,
}

/// The image that is open.
#[derive(Debug)]
struct Open {
    image: ReceivedImage,
    /// The address behind the last run.
    end: u64,
    /// The address of the next page.
    next: u64,
    /// Its pages in the base, if they are there.
    before: Option<Known<BaseData>>,
    /// The run of pages that may still grow.
    source: Option<Source>,
}

/// The tables of a base that is held for as long as it is read.
#[derive(Debug, Clone)]
struct BaseData(Arc<Base>);

impl std::ops::Deref for BaseData {
    type Target = Scratch;

    fn deref(&self) -> &Scratch {
        self.0.tables().data()
    }
}

impl Receiving {
    /// At the beginning of a stream. Pages that do not stay in memory go into a file without a name in the folder `spool`, which
    /// is made when it is needed; what is equal to the page at the same address of `base` is not kept at all.
    ///
    /// The base has to be asked first whether it can be one: [`Base::refuses_stream`].
    #[must_use]
    pub fn new(spool: &Path, base: Option<Arc<Base>>, limits: ReceiveLimits) -> Self {
        Self {
            decoder: Decoder::new(),
            limits,
            broken: false,
            known: HashSet::new(),
            pagemap_bytes: 0,
            pages: 0,
            open: None,
            begun: Vec::with_capacity(PAGE_LEN),
            received: Received {
                base,
                images: Vec::new(),
                spool: Spool::new(spool, limits.memory_bytes),
                digests: Scratch::new(spool),
                sources: Scratch::new(spool),
                notes: Vec::new(),
            },
        }
    }

    /// Takes the next bytes of the stream and gives those to send back, in that order. The answer to the end of the stream is not
    /// among them: when [`Receiving::is_closed`] and everything is safe, send [`super::CLOSED`].
    ///
    /// # Errors
    /// What is no stream of a dump's own pages, or too much of it; a file that cannot be written. Nothing can be taken after one.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, ReceiveError> {
        if self.broken {
            return Err(PageStreamError::Broken.into());
        }
        let mut answers = Vec::new();
        let taken = self.take_events(&mut bytes, &mut answers);
        self.broken = taken.is_err();
        taken.map(|()| answers)
    }

    /// Whether the sender has sent everything and waits for the answer to that.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.decoder.is_closed()
    }

    /// Pages so far, and bytes of those that were kept.
    #[must_use]
    pub fn progress(&self) -> (u64, u64) {
        (self.pages, self.received.spooled_bytes())
    }

    /// What was received.
    ///
    /// # Errors
    /// [`PageStreamError::Torn`] if the stream was not closed; an error that was found before.
    pub fn finish(mut self) -> Result<Received, ReceiveError> {
        if self.broken {
            return Err(PageStreamError::Broken.into());
        }
        self.decoder.finish()?;
        self.end_image()?;
        Ok(self.received)
    }

    fn take_events(&mut self, bytes: &mut &[u8], answers: &mut Vec<u8>) -> Result<(), ReceiveError> {
        while let Some(event) = self.decoder.next_event(bytes)? {
            match event {
                Event::Open(image) => {
                    self.open_image(image)?;
                    answers.extend(opened(false));
                }
                Event::Parent(_) => answers.extend(parent(false)),
                Event::Pages { address, pages, flags } => self.begin_run(address, pages, flags)?,
                Event::Bytes(bytes) => self.take_pages(bytes)?,
                Event::Close => self.end_image()?,
            }
        }
        Ok(())
    }

    fn open_image(&mut self, image: PageImage) -> Result<(), ReceiveError> {
        self.end_image()?;
        if self.received.images.is_empty() {
            self.check_base().map_err(ReceiveError::Base)?;
        }
        if self.received.images.len() >= self.limits.images {
            return Err(PageStreamError::TooMuch { what: "images", limit: self.limits.images as u64 }.into());
        }
        if !self.known.insert(image) {
            return Err(PageStreamError::Twice { image }.into());
        }
        // No more than there are images.
        let pages_id = self.received.images.len() as u32 + 1;
        let mut pagemap = Vec::new();
        ImageKind::Pagemap.magic().iter().for_each(|magic| pagemap.extend(magic.to_le_bytes()));
        add_record(&mut pagemap, &PagemapHead { pages_id });
        self.count_pagemap(pagemap.len())?;
        let before = match &self.received.base {
            Some(base) => base.known(&image.to_string(), BaseData(base.clone())).map_err(ReceiveError::Base)?,
            None => None,
        };
        let Received { spool, digests, sources, .. } = &self.received;
        let (spool_at, digests_at, sources_at) = (spool.len(), digests.len(), sources.len());
        let image = ReceivedImage {
            image,
            pages_id,
            pagemap,
            pages: 0,
            spooled: 0,
            spool_at,
            digests_at,
            sources_at,
            sources: 0,
        };
        self.open = Some(Open { image, end: 0, next: 0, before, source: None });
        Ok(())
    }

    /// A version of CRIU that does not know counts of 64 bits could not read a chain that has them.
    fn check_base(&mut self) -> io::Result<()> {
        if let Some(base) = &self.received.base
            && self.decoder.form() == Some(Form::Short)
            && base.tables().any_wide()?
        {
            let image = base.image().short();
            let note = format!(
                "a new chain begins: the base {image} was written by CRIU 4.2 or newer, and this dump by an older one"
            );
            self.received.notes.push(note);
            self.received.base = None;
        }
        Ok(())
    }

    fn begin_run(&mut self, address: u64, pages: u64, flags: PageFlags) -> Result<(), ReceiveError> {
        let form = self.decoder.form();
        let Some(Open { image, end, next, .. }) = &mut self.open else {
            return Err(PageStreamError::NothingOpen.into());
        };
        if !flags.is_present() {
            return Err(PageStreamError::Elsewhere { image: image.image, flags: flags.bits() }.into());
        }
        if address < *end {
            return Err(PageStreamError::Order { image: image.image, address }.into());
        }
        self.pages = self.pages.saturating_add(pages);
        if self.pages > self.limits.pages {
            return Err(PageStreamError::TooMuch { what: "pages", limit: self.limits.pages }.into());
        }
        // The decoder has seen that all of the run has an address.
        (*end, *next) = (address + pages * PAGE, address);
        image.pages += pages;
        let (short_count, count) = match (form, u32::try_from(pages)) {
            (Some(Form::Short), Ok(pages)) => (pages, None),
            _ => (0, Some(pages)),
        };
        let entry = PagemapEntry { address, short_count, in_parent: None, flags: Some(flags.bits()), count };
        let before = image.pagemap.len();
        add_record(&mut image.pagemap, &entry);
        let more = image.pagemap.len() - before;
        self.count_pagemap(more)
    }

    /// Over a base every pagemap has to become part of the chain, which bounds them.
    fn count_pagemap(&mut self, bytes: usize) -> Result<(), ReceiveError> {
        let limit = match self.received.base {
            Some(_) => self.limits.pagemap_bytes.min(MAX_HELD as usize),
            None => self.limits.pagemap_bytes,
        };
        self.pagemap_bytes += bytes;
        if self.pagemap_bytes > limit {
            return Err(PageStreamError::TooMuch { what: "bytes of pagemaps", limit: limit as u64 }.into());
        }
        Ok(())
    }

    fn take_pages(&mut self, mut bytes: &[u8]) -> Result<(), ReceiveError> {
        let Some(open) = &mut self.open else {
            return Err(PageStreamError::NothingOpen.into());
        };
        if !self.begun.is_empty() {
            let (more, rest) = bytes.split_at(bytes.len().min(PAGE_LEN - self.begun.len()));
            self.begun.extend_from_slice(more);
            if self.begun.len() < PAGE_LEN {
                return Ok(());
            }
            open.take_whole(&self.begun, &mut self.received)?;
            self.begun.clear();
            bytes = rest;
        }
        let (whole, rest) = bytes.split_at(bytes.len() / PAGE_LEN * PAGE_LEN);
        open.take_whole(whole, &mut self.received)?;
        self.begun.extend_from_slice(rest);
        Ok(())
    }

    fn end_image(&mut self) -> Result<(), ReceiveError> {
        if let Some(mut open) = self.open.take() {
            open.end_source(&mut self.received).map_err(ReceiveError::Spool)?;
            self.received.images.push(open.image);
        }
        Ok(())
    }
}

impl Open {
    /// Takes whole pages.
    fn take_whole(&mut self, pages: &[u8], to: &mut Received) -> Result<(), ReceiveError> {
        let Some(generation) = to.base.as_ref().map(|base| base.generations() + 1) else {
            to.spool.add(pages).map_err(ReceiveError::Spool)?;
            self.image.spooled += (pages.len() / PAGE_LEN) as u64;
            let mut pages = pages.chunks_exact(PAGE_LEN);
            return pages.try_for_each(|page| to.digests.write_all(&digest_of(page))).map_err(ReceiveError::Spool);
        };
        for page in pages.chunks_exact(PAGE_LEN) {
            let digest = digest_of(page);
            to.digests.write_all(&digest).map_err(ReceiveError::Spool)?;
            let before = match &mut self.before {
                Some(before) => before.at(self.next).map_err(ReceiveError::Base)?,
                None => None,
            };
            self.next += PAGE;
            let (generation, index) = match before.filter(|(before, ..)| *before == digest) {
                Some((_, generation, index)) => (generation, index),
                None => {
                    to.spool.add(page).map_err(ReceiveError::Spool)?;
                    self.image.spooled += 1;
                    (generation, self.image.spooled - 1)
                }
            };
            self.add_source(generation, index, to).map_err(ReceiveError::Spool)?;
        }
        Ok(())
    }

    fn add_source(&mut self, generation: u32, index: u64, to: &mut Received) -> io::Result<()> {
        if let Some(source) = &mut self.source
            && source.generation == generation
            && source.index + u64::from(source.pages) == index
            && let Some(pages) = source.pages.checked_add(1)
        {
            source.pages = pages;
            return Ok(());
        }
        self.end_source(to)?;
        self.source = Some(Source { index, pages: 1, generation });
        Ok(())
    }

    fn end_source(&mut self, to: &mut Received) -> io::Result<()> {
        let Some(source) = self.source.take() else {
            return Ok(());
        };
        self.image.sources += 1;
        to.sources.write_all(&source.to_bytes())
    }
}

/// A record of an image file of CRIU.
fn add_record(file: &mut Vec<u8>, record: &impl Message) {
    file.extend((record.encoded_len() as u32).to_le_bytes());
    // A vector has room for everything.
    let _ = record.encode(file);
}
