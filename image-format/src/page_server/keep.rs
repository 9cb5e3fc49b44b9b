//! Keeps the pages of a stream, in a thread of its own: compares them with the base, if there is one, and spools what is new.
//!
//! ```text
//! Receiving -> blocks of pages that wait, as many as may -> (thread) digest, base -> Spool, records of a table
//! ```
//!
//! Blocks wait as long as they may: while they come tasks stand frozen, and the processors have enough to do with what brings them.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Write};
use std::ops::DerefMut;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use memmap2::{Advice, MmapOptions};

use super::spool::Spool;
use super::{PageImage, ReceiveError, ReceiveLimits};
use crate::generation::{Base, Known, PAGE, PAGE_LEN, PageDigest, Run, Scratch, Source, digests_of};

/// Bytes of a block, whole pages.
pub(super) const BLOCK: usize = 1 << 20;
/// Blocks of those that may wait that are with the thread already.
const HANDED_OVER: usize = 16;

/// Pages in memory.
pub(super) struct Block {
    bytes: Box<dyn DerefMut<Target = [u8]> + Send>,
    filled: usize,
}

impl Block {
    /// An empty one whose memory is really there, and is gone when it is dropped: what is allocated may be kept by the allocator.
    pub fn ready() -> Self {
        let mapped = MmapOptions::new().len(BLOCK).populate().map_anon();
        let bytes: Box<dyn DerefMut<Target = [u8]> + Send> = match mapped {
            Ok(mapped) => {
                // Otherwise whatever is started meanwhile has a copy to be, and each page is to be told apart again.
                let _ = mapped.advise(Advice::DontFork);
                Box::new(mapped)
            }
            Err(_) => Box::new(vec![0; BLOCK]),
        };
        Self { bytes, filled: 0 }
    }

    /// Where more goes.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.filled..]
    }

    /// Says that so much of the room is filled.
    pub fn fill(&mut self, bytes: usize) {
        self.filled += bytes;
    }

    pub fn is_full(&self) -> bool {
        self.filled == self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

/// Without the bytes, which are somebody's memory.
impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("filled", &self.filled).finish_non_exhaustive()
    }
}

/// What is to be done next.
#[derive(Debug)]
enum Order {
    /// The pages that follow are of this image.
    Image(PageImage),
    /// Whole pages, and the runs that begin with them.
    Pages(Block, Vec<Run>),
    /// The stream is through. Without it, the end of the channel means that it was given up.
    End,
}

/// The thread, seen from outside. Dropped, it ends and leaves nothing behind.
#[derive(Debug)]
pub(super) struct Keeping {
    /// What waits, and how many blocks are in it.
    waiting: VecDeque<Order>,
    blocks: usize,
    /// How many may.
    most: usize,
    orders: SyncSender<Order>,
    used: Receiver<Block>,
    thread: Option<JoinHandle<Result<Kept, ReceiveError>>>,
}

/// What was kept.
#[derive(Debug)]
pub(super) struct Kept {
    pub spool: Spool,
    /// With a base: digests of all pages.
    pub digests: Scratch,
    /// With a base: where each page is, in the records of a table of pages.
    pub sources: Scratch,
    pub images: Vec<KeptImage>,
}

/// Where the pages of an image are.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct KeptImage {
    pub spooled: u64,
    pub spool_at: u64,
    pub digests_at: u64,
    pub sources_at: u64,
    pub sources: u64,
}

impl Keeping {
    pub fn start(spool: &Path, base: Option<Arc<Base>>, limits: &ReceiveLimits) -> io::Result<Self> {
        // One that is filled and one that is kept are there in any case.
        let all = limits.waiting_bytes / BLOCK;
        let handed_over = all.min(HANDED_OVER);
        let (orders, incoming) = sync_channel(handed_over);
        let (give_back, used) = sync_channel(all + 2);
        let kept = Kept {
            spool: Spool::new(spool, limits.memory_bytes),
            digests: Scratch::new(spool),
            sources: Scratch::new(spool),
            images: Vec::new(),
        };
        let keeper = Keeper { base, kept, open: None };
        let thread =
            thread::Builder::new().name("pages".to_owned()).spawn(move || keeper.run(&incoming, &give_back))?;
        let most = all - handed_over;
        Ok(Self { waiting: VecDeque::new(), blocks: 0, most, orders, used, thread: Some(thread) })
    }

    /// The pages that follow are of this image.
    pub fn open(&mut self, image: PageImage) {
        self.waiting.push_back(Order::Image(image));
    }

    /// Takes a block, and hands over what may not wait any longer.
    pub fn add(&mut self, block: Block, runs: Vec<Run>) -> Result<(), ReceiveError> {
        self.waiting.push_back(Order::Pages(block, runs));
        self.blocks += 1;
        while self.blocks > self.most {
            self.order_next()?;
        }
        Ok(())
    }

    /// A block that was kept and is empty again.
    pub fn used(&self) -> Option<Block> {
        self.used.try_recv().ok()
    }

    /// Waits until everything is kept.
    pub fn finish(mut self) -> Result<Kept, ReceiveError> {
        while !self.waiting.is_empty() {
            self.order_next()?;
        }
        self.order(Order::End)?;
        self.join()
    }

    fn order_next(&mut self) -> Result<(), ReceiveError> {
        let Some(next) = self.waiting.pop_front() else { return Ok(()) };
        self.blocks -= usize::from(matches!(next, Order::Pages(..)));
        self.order(next)
    }

    fn order(&mut self, order: Order) -> Result<(), ReceiveError> {
        match self.orders.send(order) {
            Ok(()) => Ok(()),
            Err(_) => self.join().map(drop),
        }
    }

    fn join(&mut self) -> Result<Kept, ReceiveError> {
        let ended = || ReceiveError::Spool(io::Error::other("the thread that keeps pages ended unexpectedly"));
        self.thread.take().ok_or_else(ended)?.join().unwrap_or_else(|_| Err(ended()))
    }
}

#[derive(Debug)]
struct Keeper {
    base: Option<Arc<Base>>,
    kept: Kept,
    open: Option<Open>,
}

/// The image whose pages come.
#[derive(Debug)]
struct Open {
    kept: KeptImage,
    /// Runs whose pages have not all come.
    runs: VecDeque<Run>,
    /// Its pages in the base, if they are there.
    before: Option<Known<BaseData>>,
    /// The run of pages in one place that may still grow.
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

impl Keeper {
    fn run(mut self, orders: &Receiver<Order>, give_back: &SyncSender<Block>) -> Result<Kept, ReceiveError> {
        loop {
            match orders.recv() {
                Ok(Order::Image(image)) => self.begin(image)?,
                Ok(Order::Pages(mut block, runs)) => {
                    self.keep(block.filled(), runs)?;
                    block.filled = 0;
                    // The other side may have all that it needs, or be gone.
                    drop(give_back.try_send(block));
                }
                Ok(Order::End) => {
                    self.end()?;
                    return Ok(self.kept);
                }
                Err(RecvError) => return Err(ReceiveError::Spool(io::Error::other("the stream was given up"))),
            }
        }
    }

    fn begin(&mut self, image: PageImage) -> Result<(), ReceiveError> {
        self.end()?;
        let before = match &self.base {
            Some(base) => base.known(&image.to_string(), BaseData(base.clone())).map_err(ReceiveError::Base)?,
            None => None,
        };
        let Kept { spool, digests, sources, .. } = &self.kept;
        let (spool_at, digests_at, sources_at) = (spool.len(), digests.len(), sources.len());
        let kept = KeptImage { spooled: 0, spool_at, digests_at, sources_at, sources: 0 };
        self.open = Some(Open { kept, runs: VecDeque::new(), before, source: None });
        Ok(())
    }

    fn keep(&mut self, pages: &[u8], runs: Vec<Run>) -> Result<(), ReceiveError> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let Some(base) = &self.base else {
            open.kept.spooled += (pages.len() / PAGE_LEN) as u64;
            return self.kept.spool.add(pages).map_err(ReceiveError::Spool);
        };
        open.runs.extend(runs);
        let generation = base.generations() + 1;
        let mut pages = pages.chunks_exact(PAGE_LEN).zip(digests_of(pages));
        pages.try_for_each(|(page, digest)| open.compare(page, digest, generation, &mut self.kept))
    }

    fn end(&mut self) -> Result<(), ReceiveError> {
        if let Some(mut open) = self.open.take() {
            open.end_source(&mut self.kept).map_err(ReceiveError::Spool)?;
            self.kept.images.push(open.kept);
        }
        Ok(())
    }
}

impl Open {
    /// Takes the next page.
    fn compare(&mut self, page: &[u8], digest: PageDigest, generation: u32, to: &mut Kept) -> Result<(), ReceiveError> {
        to.digests.write_all(&digest).map_err(ReceiveError::Spool)?;
        let before = match (self.next_address(), &mut self.before) {
            (Some(address), Some(before)) => before.at(address).map_err(ReceiveError::Base)?,
            _ => None,
        };
        let (generation, index) = match before.filter(|(before, ..)| *before == digest) {
            Some((_, generation, index)) => (generation, index),
            None => {
                to.spool.add(page).map_err(ReceiveError::Spool)?;
                self.kept.spooled += 1;
                (generation, self.kept.spooled - 1)
            }
        };
        if let Some(source) = &mut self.source
            && source.generation == generation
            && source.index + u64::from(source.pages) == index
            && let Some(pages) = source.pages.checked_add(1)
        {
            source.pages = pages;
            return Ok(());
        }
        self.end_source(to).map_err(ReceiveError::Spool)?;
        self.source = Some(Source { index, pages: 1, generation });
        Ok(())
    }

    /// The address of the next page.
    fn next_address(&mut self) -> Option<u64> {
        let run = self.runs.front_mut()?;
        let address = run.address;
        *run = Run { address: address + PAGE, pages: run.pages - 1 };
        if run.pages == 0 {
            self.runs.pop_front();
        }
        Some(address)
    }

    fn end_source(&mut self, to: &mut Kept) -> io::Result<()> {
        let Some(source) = self.source.take() else {
            return Ok(());
        };
        self.kept.sources += 1;
        to.sources.write_all(&source.to_bytes())
    }
}
