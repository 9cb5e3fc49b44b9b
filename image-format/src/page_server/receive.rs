//! Takes a stream as it comes, while tasks are frozen: checks what it says, writes the pagemaps, and says where the pages go, which
//! is where they wait, so that they are copied once.
//!
//! ```text
//! room() ─▶ whoever holds the connection reads into it ─▶ filled() ─▶ blocks of pages ─▶ (thread, mostly afterwards) compared, spooled
//! ```
//!
//! A thread of its own compares and spools them. Until the stream has ended it gets only what may not wait any longer: it works beside the
//! sender, on the same processors. What compresses and stores comes afterwards, from [`Received`].

use std::collections::HashSet;
use std::io::{self, IoSliceMut};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;

use super::keep::{BLOCK, Block, Keeping, Kept};
use super::received::{Received, ReceivedImage};
use super::{Decoder, Event, Form, PageFlags, PageImage, PageStreamError, opened, parent};
use crate::criu::{ImageKind, PagemapEntry, PagemapHead};
use crate::generation::{Base, MAX_HELD, PAGE, Run};

/// How much of a stream is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveLimits {
    /// Bytes of pages that wait in memory to be compared and spooled. Beyond, the sender waits.
    pub waiting_bytes: usize,
    /// Bytes of these that are made ready before the stream begins, since memory that nobody has used yet is slow. At most all.
    pub ready_bytes: usize,
    /// Bytes of pages that are spooled in memory. Beyond, they go into a file.
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
        Self {
            waiting_bytes: 256 << 20,
            ready_bytes: 0,
            memory_bytes: 64 << 20,
            pages: 1 << 30,
            images: 50_000,
            pagemap_bytes: 32 << 20,
        }
    }
}

/// Bytes that are read beside pages: heads, and what follows them until it is known that it is pages. There is always room for as many, and
/// so for each packet that Linux makes of pages (64 KiB).
const HEADS: usize = 128 << 10;

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
    folder: PathBuf,
    base: Option<Arc<Base>>,
    /// An error was found, and what follows has no meaning.
    broken: bool,
    known: HashSet<PageImage>,
    pagemap_bytes: usize,
    pages: u64,
    images: Vec<Image>,
    /// The address behind the last run of the last image.
    end: u64,
    /// Pages that wait until the block is full, and the runs that begin with them.
    block: Block,
    runs: Vec<Run>,
    /// Blocks that were made ready and are not used yet.
    ready: Vec<Block>,
    /// Where heads come to.
    heads: Vec<u8>,
    /// What keeps pages, as soon as there are some.
    keeping: Option<Keeping>,
    notes: Vec<String>,
}

/// An image that was opened.
#[derive(Debug)]
struct Image {
    image: PageImage,
    pagemap: Vec<u8>,
    pages: u64,
}

impl Receiving {
    /// At the beginning of a stream. Pages that do not stay in memory go into a file without a name in the folder `spool`, which
    /// is made when it is needed; what is equal to the page at the same address of `base` is not kept at all.
    ///
    /// The base has to be asked first whether it can be one: [`Base::refuses_stream`].
    #[must_use]
    pub fn new(spool: &Path, base: Option<Arc<Base>>, limits: ReceiveLimits) -> Self {
        let ready = limits.ready_bytes.min(limits.waiting_bytes).div_ceil(BLOCK);
        Self {
            decoder: Decoder::new(),
            limits,
            folder: spool.to_owned(),
            base,
            broken: false,
            known: HashSet::new(),
            pagemap_bytes: 0,
            pages: 0,
            images: Vec::new(),
            end: 0,
            block: Block::ready(),
            runs: Vec::new(),
            ready: (0..ready).map(|_| Block::ready()).collect(),
            heads: vec![0; HEADS],
            keeping: None,
            notes: Vec::new(),
        }
    }

    /// Where the next bytes of the stream are to be put, the first of them first. [`Receiving::filled`] takes them.
    pub fn room(&mut self) -> [IoSliceMut<'_>; 2] {
        let pages = self.pages_room();
        [IoSliceMut::new(&mut self.block.room()[..pages]), IoSliceMut::new(&mut self.heads)]
    }

    /// Bytes of the announced pages for which the block has room.
    fn pages_room(&mut self) -> usize {
        let left = usize::try_from(self.decoder.bytes_left()).unwrap_or(usize::MAX);
        self.block.room().len().min(left)
    }

    /// Takes so many bytes that were put where [`Receiving::room`] said, which are no more than it has room for, and gives those to send
    /// back, as [`Receiving::take`] does.
    ///
    /// # Errors
    /// As [`Receiving::take`].
    pub fn filled(&mut self, len: usize) -> Result<Vec<u8>, ReceiveError> {
        let pages = self.pages_room().min(len);
        let heads = mem::take(&mut self.heads);
        let taken = self.take_in_place(pages).and_then(|()| self.take(&heads[..(len - pages).min(HEADS)]));
        self.heads = heads;
        taken
    }

    fn take_in_place(&mut self, bytes: usize) -> Result<(), ReceiveError> {
        if self.broken {
            return Err(PageStreamError::Broken.into());
        }
        self.decoder.skip(bytes);
        self.block.fill(bytes);
        let sent = if self.block.is_full() { self.send_block() } else { Ok(()) };
        self.broken |= sent.is_err();
        sent
    }

    /// Takes the next bytes of the stream from elsewhere and gives those to send back, in that order. The answer to the end of the stream
    /// is not among them: when [`Receiving::is_closed`], send [`super::CLOSED`]. Waits while as many pages wait as may.
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

    /// Whether the sender has sent everything and waits for the answer to that. All of it is here then, but may still wait to be
    /// compared or spooled: what [`Receiving::finish`] can find from here on is what a store can do as well, a disk that is full.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.decoder.is_closed()
    }

    /// Pages that were announced so far.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// What was received. Waits until all of it is compared and spooled, so that it is called best when the tasks run again.
    ///
    /// # Errors
    /// [`PageStreamError::Torn`] if the stream was not closed; an error that was found before; a file that cannot be written.
    pub fn finish(mut self) -> Result<Received, ReceiveError> {
        if self.broken {
            return Err(PageStreamError::Broken.into());
        }
        self.decoder.finish()?;
        let kept = match self.keeping.take() {
            Some(keeping) => keeping.finish()?,
            None => return Err(PageStreamError::Empty.into()),
        };
        let images = self.images.into_iter().zip(kept.images).zip(1..);
        let images = images.map(|((Image { image, pagemap, pages }, kept), pages_id)| ReceivedImage {
            image,
            pages_id,
            pagemap,
            pages,
            kept,
        });
        let Kept { spool, digests, sources, .. } = kept;
        Ok(Received { base: self.base, images: images.collect(), spool, digests, sources, notes: self.notes })
    }

    fn take_events(&mut self, bytes: &mut &[u8], answers: &mut Vec<u8>) -> Result<(), ReceiveError> {
        while let Some(event) = self.decoder.next_event(bytes)? {
            match event {
                Event::Open(image) => {
                    self.open(image)?;
                    answers.extend(opened(false));
                }
                Event::Parent(_) => answers.extend(parent(false)),
                Event::Pages { address, pages, flags } => self.begin_run(address, pages, flags)?,
                Event::Bytes(bytes) => self.take_pages(bytes)?,
                Event::Close => self.send_block()?,
            }
        }
        Ok(())
    }

    fn open(&mut self, image: PageImage) -> Result<(), ReceiveError> {
        self.send_block()?;
        if self.images.len() >= self.limits.images {
            return Err(PageStreamError::TooMuch { what: "images", limit: self.limits.images as u64 }.into());
        }
        if !self.known.insert(image) {
            return Err(PageStreamError::Twice { image }.into());
        }
        let keeping = match &mut self.keeping {
            Some(keeping) => keeping,
            none => {
                let (base, note) = usable(self.base.take(), self.decoder.form()).map_err(ReceiveError::Base)?;
                self.base = base.clone();
                self.notes.extend(note);
                none.insert(Keeping::start(&self.folder, base, &self.limits).map_err(ReceiveError::Spool)?)
            }
        };
        keeping.open(image);
        // No more than there are images.
        let pages_id = self.images.len() as u32 + 1;
        let mut pagemap = Vec::new();
        ImageKind::Pagemap.magic().iter().for_each(|magic| pagemap.extend(magic.to_le_bytes()));
        add_record(&mut pagemap, &PagemapHead { pages_id });
        let bytes = pagemap.len();
        self.images.push(Image { image, pagemap, pages: 0 });
        self.end = 0;
        self.count_pagemap(bytes)
    }

    fn begin_run(&mut self, address: u64, pages: u64, flags: PageFlags) -> Result<(), ReceiveError> {
        let Some(Image { image, pagemap, pages: sum }) = self.images.last_mut() else {
            return Err(PageStreamError::NothingOpen.into());
        };
        let image = *image;
        if !flags.is_present() {
            return Err(PageStreamError::Elsewhere { image, flags: flags.bits() }.into());
        }
        if address < self.end {
            return Err(PageStreamError::Order { image, address }.into());
        }
        self.pages = self.pages.saturating_add(pages);
        if self.pages > self.limits.pages {
            return Err(PageStreamError::TooMuch { what: "pages", limit: self.limits.pages }.into());
        }
        *sum += pages;
        self.runs.push(Run { address, pages });
        // The decoder has seen that all of the run has an address.
        self.end = address + pages * PAGE;
        let (short_count, count) = match (self.decoder.form(), u32::try_from(pages)) {
            (Some(Form::Short), Ok(pages)) => (pages, None),
            _ => (0, Some(pages)),
        };
        let before = pagemap.len();
        add_record(pagemap, &PagemapEntry { address, short_count, in_parent: None, flags: Some(flags.bits()), count });
        let more = pagemap.len() - before;
        self.count_pagemap(more)
    }

    /// Over a base every pagemap has to become part of the chain, which bounds them.
    fn count_pagemap(&mut self, bytes: usize) -> Result<(), ReceiveError> {
        let limit = match self.base {
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
        while !bytes.is_empty() {
            let room = self.block.room();
            let (part, rest) = bytes.split_at(bytes.len().min(room.len()));
            room[..part.len()].copy_from_slice(part);
            self.block.fill(part.len());
            bytes = rest;
            if self.block.is_full() {
                self.send_block()?;
            }
        }
        Ok(())
    }

    /// Hands over what was taken of the open image: whole pages, since a block has so many and an image as well.
    fn send_block(&mut self) -> Result<(), ReceiveError> {
        let Some(keeping) = self.keeping.as_mut().filter(|_| !self.block.is_empty()) else { return Ok(()) };
        let next = self.ready.pop().or_else(|| keeping.used()).unwrap_or_else(Block::ready);
        keeping.add(mem::replace(&mut self.block, next), mem::take(&mut self.runs))
    }
}

/// The base, unless the version of CRIU that is told by its heads cannot read a chain with counts of 64 bits.
fn usable(base: Option<Arc<Base>>, form: Option<Form>) -> io::Result<(Option<Arc<Base>>, Option<String>)> {
    if let Some(base) = base.as_ref().filter(|_| form == Some(Form::Short))
        && base.tables().any_wide()?
    {
        let image = base.image().short();
        let note = format!(
            "a new chain begins: the base {image} was written by CRIU 4.2 or newer, and this dump by an older one"
        );
        return Ok((None, Some(note)));
    }
    Ok((base, None))
}

/// A record of an image file of CRIU.
fn add_record(file: &mut Vec<u8>, record: &impl Message) {
    file.extend((record.encoded_len() as u32).to_le_bytes());
    // A vector has room for everything.
    let _ = record.encode(file);
}
