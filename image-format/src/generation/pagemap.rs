//! Pagemaps that are understood to the last byte, and the ones that a generation has.

use std::io::{self, Write};

use prost::Message;

use super::PAGE;
use crate::criu::{CriuError, ImageKind, PagemapEntry, PagemapHead, Records};

/// `PE_PARENT` of CRIU: the page is in the parent's images.
const IN_PARENT: u32 = 1;
/// `PE_LAZY`: the page might have been left out, and was not.
const LAZY: u32 = 2;
/// `PE_PRESENT`: the page is in this file of pages.
const PRESENT: u32 = 4;

/// Pages that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Address of the first one.
    pub address: u64,
    pub pages: u64,
}

impl Run {
    /// The address behind the last page.
    pub fn end(&self) -> u64 {
        self.address + self.pages * PAGE
    }
}

/// A pagemap whose pages are all in the dump's own file of pages, by rising addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pagemap {
    /// The number in the name of the file of pages.
    pub pages_id: u32,
    /// Whether counts of pages have 64 bits, as newer versions of CRIU write them.
    pub wide: bool,
    pub runs: Vec<Run>,
    /// Pages of all runs.
    pub pages: u64,
}

/// Why a pagemap is left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotUnderstood {
    /// Some of its pages are in a dump that was made before.
    HasParent,
    /// Why.
    Because(&'static str),
}

impl Pagemap {
    /// Reads a pagemap, in which nothing may be that is not known: a field more may mean that pages are something else.
    pub fn read(bytes: &[u8]) -> Result<Self, NotUnderstood> {
        let damaged = |_| NotUnderstood::Because("it cannot be decoded");
        let mut records = Records::open(ImageKind::Pagemap, bytes).map_err(damaged)?;
        if records.is_big_endian() {
            return Err(NotUnderstood::Because("it is of a machine with another order of bytes"));
        }
        let head: PagemapHead = known(&mut records)?.ok_or(NotUnderstood::Because("it has no record"))?;
        let mut map = Self { pages_id: head.pages_id, wide: false, runs: Vec::new(), pages: 0 };
        while let Some(entry) = known::<PagemapEntry>(&mut records)? {
            map.add(&entry)?;
        }
        Ok(map)
    }

    /// The number of the file of pages that a pagemap names, whatever else it holds.
    pub fn pages_id(bytes: &[u8]) -> Option<u32> {
        let mut records = Records::open(ImageKind::Pagemap, bytes).ok()?;
        records.next_record::<PagemapHead>().ok()?.map(|head| head.pages_id)
    }

    fn add(&mut self, entry: &PagemapEntry) -> Result<(), NotUnderstood> {
        let flags = entry.flags.unwrap_or(if entry.in_parent == Some(true) { IN_PARENT } else { PRESENT });
        if entry.in_parent == Some(true) || flags & IN_PARENT != 0 {
            return Err(NotUnderstood::HasParent);
        }
        if flags & !LAZY != PRESENT {
            return Err(NotUnderstood::Because("it has flags that are not known"));
        }
        let pages = entry.count.unwrap_or(entry.short_count.into());
        // CRIU 4.2 writes 0 where it has a count of 64 bits.
        let fits = entry.short_count == 0 && entry.count.is_some() || u64::from(entry.short_count) == pages;
        if pages == 0 || !fits {
            return Err(NotUnderstood::Because("it has counts of pages that are not known"));
        }
        let run = Run { address: entry.address, pages };
        let start = self.runs.last().map_or(0, Run::end);
        let bytes = pages.checked_mul(PAGE).and_then(|bytes| run.address.checked_add(bytes));
        if !run.address.is_multiple_of(PAGE) || run.address < start || bytes.is_none() {
            return Err(NotUnderstood::Because("its addresses overlap, go backwards or pass the end"));
        }
        self.wide |= entry.count.is_some();
        self.runs.push(run);
        self.pages = self.pages.saturating_add(pages);
        Ok(())
    }

    /// The same pages, all of them in the parent's images: what lies in the top folder of a dump in generations.
    pub fn all_below(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = PagemapWriter::new(&mut bytes, self.pages_id, self.wide);
        // A vector takes everything.
        let _ = self.runs.iter().try_for_each(|run| writer.push(*run, Place::Below)).and_then(|()| writer.finish());
        bytes
    }
}

/// The runs of a pagemap that [`Pagemap::read`] understands, and whether their pages might have been left out: whether a restored task may run
/// before it has them.
pub(crate) fn lazy_runs(bytes: &[u8]) -> Result<Vec<(Run, bool)>, CriuError> {
    let mut records = Records::open(ImageKind::Pagemap, bytes)?;
    records.next_record::<PagemapHead>()?;
    let mut runs = Vec::new();
    while let Some(entry) = records.next_record::<PagemapEntry>()? {
        let run = Run { address: entry.address, pages: entry.count.unwrap_or(entry.short_count.into()) };
        runs.push((run, entry.flags.unwrap_or(PRESENT) & LAZY != 0));
    }
    Ok(runs)
}

/// The next record, if it holds nothing but what is known.
fn known<M: Message + Default>(records: &mut Records<'_>) -> Result<Option<M>, NotUnderstood> {
    let damaged = |_| NotUnderstood::Because("it cannot be decoded");
    let raw = records.clone().next_bytes().map_err(damaged)?;
    let record: Option<M> = records.next_record().map_err(damaged)?;
    match (&record, raw) {
        (Some(record), Some(raw)) if record.encode_to_vec() != raw => {
            Err(NotUnderstood::Because("it has fields that are not known"))
        }
        _ => Ok(record),
    }
}

/// Where the pages of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the file of pages beside the pagemap.
    Here,
    /// In a link of the chain further down.
    Below,
    /// Nowhere yet: it comes when it is asked for.
    Later,
}

/// Writes a pagemap as CRIU does. Runs that follow one another become one.
#[derive(Debug)]
pub(crate) struct PagemapWriter<W> {
    out: W,
    wide: bool,
    started: bool,
    pages_id: u32,
    last: Option<(Run, Place)>,
}

impl<W: Write> PagemapWriter<W> {
    pub fn new(out: W, pages_id: u32, wide: bool) -> Self {
        Self { out, wide, started: false, pages_id, last: None }
    }

    pub fn push(&mut self, run: Run, place: Place) -> io::Result<()> {
        if let Some((last, known)) = &mut self.last
            && *known == place
            && last.end() == run.address
        {
            last.pages += run.pages;
            return Ok(());
        }
        let before = self.last.replace((run, place));
        self.write(before)
    }

    /// Writes what is left.
    pub fn finish(mut self) -> io::Result<()> {
        let last = self.last.take();
        self.write(last)
    }

    fn write(&mut self, run: Option<(Run, Place)>) -> io::Result<()> {
        if !std::mem::replace(&mut self.started, true) {
            for magic in ImageKind::Pagemap.magic() {
                self.out.write_all(&magic.to_le_bytes())?;
            }
            self.record(&PagemapHead { pages_id: self.pages_id })?;
        }
        let Some((Run { address, pages }, place)) = run else {
            return Ok(());
        };
        let flags = match place {
            Place::Here => PRESENT,
            Place::Below => IN_PARENT,
            Place::Later => LAZY,
        };
        let count = self.wide.then_some(pages);
        // As CRIU 4.2 does.
        let short_count = if self.wide { Ok(0) } else { u32::try_from(pages) };
        let short_count = short_count.map_err(|_| io::Error::other("a run of over 2^32 pages"))?;
        self.record(&PagemapEntry { address, short_count, in_parent: None, flags: Some(flags), count })
    }

    fn record(&mut self, record: &impl Message) -> io::Result<()> {
        let bytes = record.encode_to_vec();
        self.out.write_all(&(bytes.len() as u32).to_le_bytes())?;
        self.out.write_all(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: u64, pages: u32, flags: Option<u32>) -> PagemapEntry {
        PagemapEntry { address, short_count: pages, in_parent: None, flags, count: None }
    }

    fn file(entries: &[PagemapEntry]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = PagemapWriter::new(&mut bytes, 7, false);
        writer.write(None).unwrap();
        entries.iter().for_each(|entry| writer.record(entry).unwrap());
        bytes
    }

    #[test]
    fn what_criu_writes_is_understood() {
        let wide = PagemapEntry { count: Some(2), ..entry(0x9000, 0, Some(PRESENT)) };
        let entries = [entry(0x1000, 3, Some(PRESENT | LAZY)), entry(0x4000, 1, None), wide];
        let map = Pagemap::read(&file(&entries)).unwrap();
        let runs = [(0x1000, 3), (0x4000, 1), (0x9000, 2)].map(|(address, pages)| Run { address, pages });
        assert_eq!(map, Pagemap { pages_id: 7, wide: true, runs: runs.to_vec(), pages: 6 });

        let below = map.all_below();
        assert_eq!(Pagemap::read(&below), Err(NotUnderstood::HasParent));
        let mut records = Records::open(ImageKind::Pagemap, &below).unwrap();
        assert_eq!(records.next_record(), Ok(Some(PagemapHead { pages_id: 7 })));
        let joined = PagemapEntry { count: Some(4), ..entry(0x1000, 0, Some(IN_PARENT)) };
        assert_eq!(records.next_record(), Ok(Some(joined)));
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        let present = Some(PRESENT);
        assert_eq!(Pagemap::read(&file(&[entry(0, 1, Some(IN_PARENT))])), Err(NotUnderstood::HasParent));
        let old = PagemapEntry { in_parent: Some(true), ..entry(0, 1, None) };
        assert_eq!(Pagemap::read(&file(&[old])), Err(NotUnderstood::HasParent));
        for (bad, why) in [
            (vec![entry(0, 1, Some(LAZY))], "flags"),
            (vec![entry(0, 1, Some(PRESENT | 8))], "flags"),
            (vec![entry(0, 0, present)], "counts"),
            (vec![PagemapEntry { count: Some(1 << 32 | 2), ..entry(0, 1, present) }], "counts"),
            (vec![entry(1, 1, present)], "addresses"),
            (vec![entry(0x2000, 2, present), entry(0x3000, 1, present)], "addresses"),
            (vec![entry(0x2000, 1, present), entry(0x1000, 1, present)], "addresses"),
            (vec![entry(!0xfff, 1, present)], "addresses"),
            (vec![PagemapEntry { count: Some(u64::MAX), ..entry(0, 0, present) }], "addresses"),
        ] {
            let found = Pagemap::read(&file(&bad));
            assert!(matches!(found, Err(NotUnderstood::Because(text)) if text.contains(why)), "{bad:?}: {found:?}");
        }
        let mut more = file(&[]);
        let record = [entry(0, 1, present).encode_to_vec(), vec![0x30, 1]].concat();
        more.extend((record.len() as u32).to_le_bytes());
        more.extend(record);
        assert_eq!(Pagemap::read(&more), Err(NotUnderstood::Because("it has fields that are not known")));
        for cut in 0..12 {
            assert!(Pagemap::read(&more[..cut]).is_err());
        }
        let mut swapped = more;
        swapped[..8].as_chunks_mut::<4>().0.iter_mut().for_each(|magic| magic.reverse());
        assert!(
            matches!(Pagemap::read(&swapped), Err(NotUnderstood::Because(text)) if text.contains("order of bytes"))
        );
    }
}
