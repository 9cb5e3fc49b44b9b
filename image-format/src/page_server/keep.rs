//! Keeps the pages of a stream, in a thread of its own: compares them with the base, if there is one, and spools what is new.
//!
//! ```text
//! Receiving -> blocks of pages, as many as may wait -> (thread) digest, base -> Spool, records of a table
//! ```

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};

use super::spool::Spool;
use super::{PageImage, ReceiveError, ReceiveLimits};
use crate::generation::{Base, Known, PAGE, PAGE_LEN, PageDigest, Run, Scratch, Source, digests_of};

/// Bytes of a block, whole pages.
pub(super) const BLOCK: usize = 1 << 20;

/// What is to be done next.
#[derive(Debug)]
enum Order {
    /// The pages that follow are of this image.
    Image(PageImage),
    /// Whole pages, and the runs that begin with them.
    Pages(Vec<u8>, Vec<Run>),
    /// The stream is through. Without it, the end of the channel means that it was given up.
    End,
}

/// The thread, seen from outside. Dropped, it ends and leaves nothing behind.
#[derive(Debug)]
pub(super) struct Keeping {
    orders: SyncSender<Order>,
    used: Receiver<Vec<u8>>,
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
        let (orders, incoming) = sync_channel(limits.waiting_bytes / BLOCK);
        let (give_back, used) = sync_channel(limits.waiting_bytes / BLOCK + 2);
        let kept = Kept {
            spool: Spool::new(spool, limits.memory_bytes),
            digests: Scratch::new(spool),
            sources: Scratch::new(spool),
            images: Vec::new(),
        };
        let keeper = Keeper { base, kept, open: None };
        let thread =
            thread::Builder::new().name("pages".to_owned()).spawn(move || keeper.run(&incoming, &give_back))?;
        Ok(Self { orders, used, thread: Some(thread) })
    }

    pub fn open(&mut self, image: PageImage) -> Result<(), ReceiveError> {
        self.order(Order::Image(image))
    }

    /// Hands a block over and gives an empty one.
    pub fn add(&mut self, block: Vec<u8>, runs: Vec<Run>) -> Result<Vec<u8>, ReceiveError> {
        self.order(Order::Pages(block, runs))?;
        match self.used.try_recv() {
            Ok(block) => Ok(block),
            Err(TryRecvError::Empty) => Ok(Vec::with_capacity(BLOCK)),
            Err(TryRecvError::Disconnected) => self.join().map(|_| Vec::new()),
        }
    }

    /// Waits until everything is kept.
    pub fn finish(mut self) -> Result<Kept, ReceiveError> {
        self.order(Order::End)?;
        self.join()
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
    fn run(mut self, orders: &Receiver<Order>, give_back: &SyncSender<Vec<u8>>) -> Result<Kept, ReceiveError> {
        loop {
            match orders.recv() {
                Ok(Order::Image(image)) => self.begin(image)?,
                Ok(Order::Pages(mut block, runs)) => {
                    self.keep(&block, runs)?;
                    block.clear();
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
