//! Where each page of a pagemap is: its address, its place in the chain.
//!
//! The *ordinal* of a page is how many pages come before it in its pagemap.

use std::io;

use crate::generation::{PAGE, Run, Table, Tables};

/// Pages that follow one another, in the pagemap and among those that are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageRange {
    /// Ordinal of the first one.
    pub ordinal: u64,
    pub pages: u64,
    /// Address of the first one.
    pub address: u64,
    /// How many of those that are meant come before it.
    pub before: u64,
}

/// Some of the pages of a pagemap, by rising ordinals.
#[derive(Debug, Default)]
pub(super) struct PageRanges(Vec<PageRange>);

/// Pages that follow one another in a generation and in the pagemap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Placed {
    pub generation: u32,
    /// How many pages of this pagemap come before in the generation.
    pub index: u64,
    pub pages: u64,
    pub ordinal: u64,
}

/// Everything about one pagemap but its digests.
#[derive(Debug)]
pub(super) struct Index {
    pub table: Table,
    /// The process, unless it is of shared memory.
    pub pid: Option<u32>,
    /// What has to be there first, and what may follow.
    pub first: PageRanges,
    pub later: PageRanges,
    by_ordinal: Vec<Placed>,
    /// The same by generation and index.
    by_place: Vec<Placed>,
}

impl PageRanges {
    /// Of runs that are parts of the runs of a pagemap.
    pub fn new(all: &[Run], some: &[Run]) -> Self {
        let mut spans = Vec::new();
        let (mut passed, mut before) = (0, 0);
        let mut all = all.iter().peekable();
        for run in some {
            while let Some(whole) = all.next_if(|whole| whole.end() <= run.address) {
                passed += whole.pages;
            }
            let Some(whole) = all.peek() else { break };
            let ordinal = passed + (run.address - whole.address) / PAGE;
            spans.push(PageRange { ordinal, pages: run.pages, address: run.address, before });
            before += run.pages;
        }
        Self(spans)
    }

    pub fn iter(&self) -> impl Iterator<Item = &PageRange> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many pages.
    pub fn pages(&self) -> u64 {
        self.0.last().map_or(0, |span| span.before + span.pages)
    }

    /// Those of the pages from `ordinal` on that are meant.
    pub fn within(&self, ordinal: u64, pages: u64) -> impl Iterator<Item = PageRange> + '_ {
        let end = ordinal + pages;
        let from = self.0.partition_point(|span| span.ordinal + span.pages <= ordinal);
        self.0[from..].iter().take_while(move |span| span.ordinal < end).map(move |span| {
            let skipped = ordinal.saturating_sub(span.ordinal);
            PageRange {
                ordinal: span.ordinal + skipped,
                pages: end.min(span.ordinal + span.pages) - span.ordinal - skipped,
                address: span.address + skipped * PAGE,
                before: span.before + skipped,
            }
        })
    }

    /// The ordinal of the page at an address.
    pub fn at(&self, address: u64) -> Option<u64> {
        let next = self.0.partition_point(|span| span.address <= address);
        let span = self.0.get(next.checked_sub(1)?)?;
        let page = (address - span.address) / PAGE;
        (page < span.pages).then_some(span.ordinal + page)
    }
}

impl Index {
    pub fn new(tables: &Tables, table: &Table, pid: Option<u32>, first: &[Run], later: &[Run]) -> io::Result<Self> {
        let all = tables.pagemap(table)?.runs;
        let mut by_ordinal = Vec::new();
        let mut sources = tables.sources(table);
        let mut ordinal = 0;
        while let Some(source) = sources.next()? {
            let pages = u64::from(source.pages);
            by_ordinal.push(Placed { generation: source.generation, index: source.index, pages, ordinal });
            ordinal += pages;
        }
        let mut by_place = by_ordinal.clone();
        by_place.sort_unstable();
        let (first, later) = (PageRanges::new(&all, first), PageRanges::new(&all, later));
        Ok(Self { table: table.clone(), pid, first, later, by_ordinal, by_place })
    }

    /// Where a page is, and how many after it follow one another.
    pub fn place_of(&self, ordinal: u64) -> Option<Placed> {
        let next = self.by_ordinal.partition_point(|placed| placed.ordinal <= ordinal);
        let run = self.by_ordinal.get(next.checked_sub(1)?)?;
        let skipped = ordinal - run.ordinal;
        let pages = run.pages.checked_sub(skipped).filter(|rest| *rest > 0)?;
        Some(Placed { generation: run.generation, index: run.index + skipped, pages, ordinal })
    }

    /// Where the pages are that have to be there first.
    pub fn first_places(&self) -> impl Iterator<Item = Placed> + '_ {
        self.first.iter().flat_map(|span| {
            let end = span.ordinal + span.pages;
            let next = |placed: &Placed| self.place_of(placed.ordinal + placed.pages);
            std::iter::successors(self.place_of(span.ordinal), next)
                .take_while(move |placed| placed.ordinal < end)
                .map(move |placed| Placed { pages: placed.pages.min(end - placed.ordinal), ..placed })
        })
    }

    /// The live ones of the pages from `index` on in a generation.
    pub fn live(&self, generation: u32, index: u64, pages: u64) -> impl Iterator<Item = Placed> + '_ {
        let end = index.saturating_add(pages);
        let before = |placed: &Placed| (placed.generation, placed.index + placed.pages) <= (generation, index);
        let within = move |placed: &&Placed| placed.generation == generation && placed.index < end;
        let from = self.by_place.partition_point(before);
        self.by_place[from..].iter().take_while(within).map(move |placed| {
            let skipped = index.saturating_sub(placed.index);
            let pages = end.min(placed.index + placed.pages) - placed.index - skipped;
            Placed { generation, index: placed.index + skipped, pages, ordinal: placed.ordinal + skipped }
        })
    }
}
