//! Makes a generation while a dump passes by.
//!
//! A pagemap that is understood is held until its file of pages comes, or until the end. The first such file decides whether
//! there is a base to compare with. Pages that are all new go straight into the layer of a part; what is compared is put
//! aside until the part is full or the dump is through, since a file in an archive says its size first.

mod hashed;
mod links;
mod worth;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::Path;

use self::hashed::Hashed;
use self::worth::Worth;
use super::base::{Base, ChainLimits, Dump};
use super::pagemap::{NotUnderstood, Pagemap};
use super::table::{Known, MAX_PAGEMAP, Source};
use super::{Link, OWN_FOLDER, PAGE, PAGE_LEN, Scratch, digests_of};
use crate::LayerContent;
use crate::archive::{ArchiveError, CHUNK, Entry, read_full};
use crate::pack::{OpenLayers, PackError, Slot};
use crate::page_server::{Received, ReceivedImage};

/// Parts of a generation; beyond, parts become larger. CRIU asks every link above a page for it.
const PARTS: u64 = 64;
/// Bytes of all pagemaps that are held.
pub(crate) const MAX_HELD: u64 = MAX_PAGEMAP;

/// The generation of a dump.
#[derive(Debug)]
pub(crate) struct Generations<'b> {
    base: Option<&'b Base>,
    /// The pages, if they came in a stream.
    received: Option<&'b Received>,
    limits: ChainLimits,
    /// Whether pagemaps are still taken.
    open: bool,
    held: Vec<Held>,
    by_name: HashMap<String, usize>,
    /// By the number of the file of pages; nothing where two pagemaps name the same one.
    by_pages: HashMap<u32, Option<usize>>,
    /// Those whose pages came, in that order.
    order: Vec<usize>,
    link: Option<Link>,
    next_pages_id: u32,
    /// Bytes of pages of the part at hand, and how many it takes.
    part: u64,
    part_limit: u64,
    /// What the pages of the part at hand are worth, and whether it is compressed.
    worth: Worth,
    compressed: bool,
    pagemaps: Scratch,
    runs: Scratch,
    digests: Scratch,
    /// Changed pages of the part at hand that were put aside, and all that it has.
    changed: Scratch,
    segments: Vec<Segment>,
    /// Why there is no base though one was given, and what else a person should know.
    notes: Vec<String>,
}

/// A pagemap and what is known of its pages.
#[derive(Debug)]
struct Held {
    name: String,
    entry: Entry,
    map: Pagemap,
    /// Where the file's own bytes are.
    bytes_at: u64,
    bytes_len: u64,
    state: State,
}

/// Changed pages of one pagemap that follow one another.
#[derive(Debug)]
struct Segment {
    /// Whose they are.
    held: usize,
    bytes: u64,
    /// Where they are among what was received. Without it, they are next in what was put aside.
    spool_at: Option<u64>,
}

#[derive(Debug)]
enum State {
    /// Its pages have not come.
    Waiting,
    /// It is left as it is, and is written already.
    Given,
    Taken(Box<Taken>),
}

/// A pagemap whose pages are in the generation.
#[derive(Debug)]
struct Taken {
    /// The entry of its file of pages.
    pages: Entry,
    /// The number in the names of its files of pages in the chain.
    pages_id: u32,
    /// Pages that have passed.
    seen: u64,
    /// How many of them are in this generation.
    own: u64,
    /// How many of these are in earlier parts.
    own_before: u64,
    runs_at: u64,
    runs: u64,
    /// The run that may still grow.
    run: Option<Source>,
    digests_at: u64,
}

impl Taken {
    /// Writes the run that grew so far, if there is one.
    fn end_run(&mut self, runs: &mut Scratch) -> Result<(), PackError> {
        let Some(run) = self.run.take() else {
            return Ok(());
        };
        self.runs += 1;
        runs.write_all(&run.to_bytes()).map_err(PackError::Scratch)
    }
}

impl<'b> Generations<'b> {
    /// Pages that were compared as they came go over the base that they were compared with.
    pub fn new(base: Option<&'b Base>, received: Option<&'b Received>, limits: ChainLimits, scratch: &Path) -> Self {
        let scratch = || Scratch::new(scratch);
        Self {
            base: received.and_then(|received| received.base()).map(AsRef::as_ref).or(base),
            received,
            limits,
            open: true,
            held: Vec::new(),
            by_name: HashMap::new(),
            by_pages: HashMap::new(),
            order: Vec::new(),
            link: None,
            next_pages_id: 1,
            part: 0,
            part_limit: limits.part_bytes,
            worth: Worth::new(),
            compressed: true,
            pagemaps: scratch(),
            runs: scratch(),
            digests: scratch(),
            changed: scratch(),
            segments: Vec::new(),
            notes: received.map(|received| received.notes().to_vec()).unwrap_or_default(),
        }
    }

    /// Holds a pagemap back. `false`: it is not one to hold.
    pub fn offer(&mut self, name: &str, entry: &Entry, bytes: &[u8]) -> Result<bool, PackError> {
        let file = name.strip_prefix("checkpoint/").filter(|file| file.starts_with("pagemap-") && !file.contains('/'));
        let Some(file) = file.filter(|file| file.ends_with(".img") && self.open) else {
            return Ok(false);
        };
        let id = Pagemap::pages_id(bytes);
        let taken = |held: &Held| id == Some(held.map.pages_id) && matches!(held.state, State::Taken(_));
        if self.held.iter().any(taken) {
            // Its pages are in the generation, by another pagemap.
            return Err(PackError::LateChain { entry: crate::EntryName::new(&entry.name) });
        }
        let held = self.hold(file, name, entry, bytes)?;
        if let Some(id) = id.filter(|_| !held) {
            // podman exports what an earlier checkpoint left behind, so that two pagemaps can name one file.
            self.by_pages.insert(id, None);
        }
        Ok(held)
    }

    fn hold(&mut self, file: &str, name: &str, entry: &Entry, bytes: &[u8]) -> Result<bool, PackError> {
        if bytes.len() as u64 != entry.size() || self.pagemaps.len() + entry.size() > MAX_HELD {
            self.notes.push(format!("{name} is too large to be compared, and its pages are packed as they are"));
            return Ok(false);
        }
        let map = match Pagemap::read(bytes) {
            Ok(map) if map.pages == 0 => return Ok(false),
            Ok(map) => map,
            Err(NotUnderstood::HasParent) => {
                // The dump has a chain of its own, which must stay where it is.
                return self.give_up(entry, "it is a dump over another one").map(|()| false);
            }
            Err(NotUnderstood::Because(reason)) => {
                self.notes.push(format!("{name} is packed as it is, with its pages: {reason}"));
                return Ok(false);
            }
        };
        let index = self.held.len();
        self.by_pages.entry(map.pages_id).and_modify(|both| *both = None).or_insert(Some(index));
        self.by_name.insert(name.to_owned(), index);
        let (bytes_at, bytes_len) = (self.pagemaps.len(), entry.size());
        self.pagemaps.write_all(bytes).map_err(PackError::Scratch)?;
        let (name, entry) = (file.to_owned(), entry.clone());
        self.held.push(Held { name, entry, map, bytes_at, bytes_len, state: State::Waiting });
        Ok(true)
    }

    /// Looks at a name that the chain itself needs. What of the dump has it, keeps it.
    pub fn saw(&mut self, entry: &Entry) -> Result<(), PackError> {
        let name = &entry.name[..];
        let below = |folder: &[u8]| name.strip_prefix(folder).is_some_and(|rest| matches!(rest, [] | [b'/', ..]));
        let own = below(b"checkpoint/parent") || below(OWN_FOLDER.as_bytes()) || name.starts_with(b"checkpoint/gen-");
        if own && self.open { self.give_up(entry, "it has files with names that a chain needs") } else { Ok(()) }
    }

    fn give_up(&mut self, entry: &Entry, reason: &str) -> Result<(), PackError> {
        if self.link.is_some() {
            return Err(PackError::LateChain { entry: crate::EntryName::new(&entry.name) });
        }
        self.open = false;
        self.notes.push(format!("the dump's pages are packed as they are: {reason}"));
        Ok(())
    }

    /// Before a hard link: what it names must stay a file of the dump. `false` if that is too late.
    pub fn keep(&mut self, target: &[u8], layers: &mut OpenLayers<'_, '_>) -> Result<bool, PackError> {
        let name = str::from_utf8(target).unwrap_or_default();
        if let Some(index) = self.by_name.get(name).copied() {
            match self.held[index].state {
                State::Waiting => self.give(index, layers)?,
                State::Given => {}
                State::Taken(_) => return Ok(false),
            }
        }
        let taken = |held: &Held| matches!(&held.state, State::Taken(taken) if taken.pages.name == target);
        Ok(!self.held.iter().any(taken))
    }

    /// Writes a held pagemap as it was.
    fn give(&mut self, index: usize, layers: &mut OpenLayers<'_, '_>) -> Result<(), PackError> {
        let held = &mut self.held[index];
        held.state = State::Given;
        let mut bytes = self.pagemaps.reader(held.bytes_at, held.bytes_len);
        layers.append(Slot::Content(LayerContent::State), &held.entry, &mut bytes)
    }

    /// Takes a file of pages, if its pagemap is held and counts as many. `false`: it is to be packed as it is. If they came in a
    /// stream, `received` says which, and only if all of them are there, `content` gives them.
    pub fn take(
        &mut self,
        name: &str,
        entry: &Entry,
        content: &mut dyn Read,
        received: Option<&ReceivedImage>,
        dump: Dump<'_>,
        layers: &mut OpenLayers<'_, '_>,
    ) -> Result<bool, PackError> {
        let id = name.strip_prefix("checkpoint/pages-").and_then(|rest| rest.strip_suffix(".img"));
        let number = id.and_then(|id| id.parse::<u32>().ok().filter(|number| number.to_string() == id));
        let held = number.filter(|_| self.open).and_then(|number| self.by_pages.get(&number).copied().flatten());
        let Some(index) = held else {
            return Ok(false);
        };
        let Held { map, state: State::Waiting, .. } = &self.held[index] else {
            return Ok(false);
        };
        if map.pages.checked_mul(PAGE) != Some(entry.size()) {
            return Ok(false);
        }
        if self.link.is_none() {
            self.begin(dump)?;
        }
        let pages_id = self.chain_pages_id(index);
        self.order.push(index);
        let (runs_at, digests_at) = (self.runs.len(), self.digests.len());
        self.held[index].state = State::Taken(Box::new(Taken {
            pages: entry.clone(),
            pages_id,
            seen: 0,
            own: 0,
            own_before: 0,
            runs_at,
            runs: 0,
            run: None,
            digests_at,
        }));
        match (self.base, self.received.zip(received)) {
            (Some(_), Some((all, image))) if all.base().is_some() => self.take_compared(index, all, image, layers)?,
            (Some(base), _) => self.compare(index, base, content, layers)?,
            (None, _) => self.pass(index, content, layers)?,
        }
        self.end_run(index)?;
        Ok(true)
    }

    /// Decides whether there is a base, now that the pagemaps are known.
    fn begin(&mut self, dump: Dump<'_>) -> Result<(), PackError> {
        let waiting = self.held.iter().filter(|held| matches!(held.state, State::Waiting));
        let bytes = waiting.fold(0, |sum: u64, held| sum.saturating_add(held.map.pages.saturating_mul(PAGE)));
        if let Some((base, received)) = self.base.zip(self.received.filter(|received| received.base().is_some())) {
            if let Some(reason) = base.is_of_another(&dump) {
                return Err(received.not_over_base(base, reason).into());
            }
        } else if let Some(base) = self.base
            && let Some(reason) = base.refuses(&Dump { bytes, ..dump }, &self.limits)
        {
            self.notes.push(format!("a new chain begins: {reason}"));
            self.base = None;
        }
        let smallest = self.limits.part_bytes.max(PAGE) / PAGE * PAGE;
        self.part_limit = smallest.max((bytes / PARTS).next_multiple_of(PAGE));
        let generation = self.base.map_or(1, |base| base.generations + 1);
        self.link = Some(Link { generation, part: 1 });
        let used = self.base.into_iter().flat_map(|base| base.tables.iter().map(|table| table.pages_id));
        self.next_pages_id = used.max().unwrap_or(0).saturating_add(1);
        Ok(())
    }

    /// A pagemap keeps its number for the length of the chain.
    fn chain_pages_id(&mut self, index: usize) -> u32 {
        let known = self.base.and_then(|base| base.tables.get(&self.held[index].name));
        known.map(|table| table.pages_id).unwrap_or_else(|| {
            let next = self.next_pages_id;
            self.next_pages_id = next.saturating_add(1);
            next
        })
    }

    fn link(&self) -> Link {
        self.link.unwrap_or(Link { generation: 1, part: 1 })
    }

    /// Every page is new: the file goes into one part after the other as it comes.
    fn pass(&mut self, index: usize, content: &mut dyn Read, layers: &mut OpenLayers<'_, '_>) -> Result<(), PackError> {
        let mut left = self.held[index].map.pages * PAGE;
        while left > 0 {
            if self.part >= self.part_limit {
                self.close_part(layers)?;
            }
            let piece = left.min(self.part_limit - self.part);
            self.open_part(Some(index), layers)?;
            let entry = self.pages_entry(index, piece);
            let mut hashed =
                Hashed::new(content.take(piece), &mut self.digests, layers.chooses().then_some(&mut self.worth));
            layers.append(Slot::Link, &entry, &mut hashed)?;
            self.part += piece;
            left -= piece;
            let generation = self.link().generation;
            let mut pages = piece / PAGE;
            while pages > 0 {
                let some = pages.min(1 << 20);
                self.saw_pages(index, generation, None, some as u32)?;
                pages -= some;
            }
        }
        Ok(())
    }

    /// Puts aside what is not in the base.
    fn compare(
        &mut self,
        index: usize,
        base: &'b Base,
        content: &mut dyn Read,
        layers: &mut OpenLayers<'_, '_>,
    ) -> Result<(), PackError> {
        let known = base.tables.get(&self.held[index].name);
        let known = known.map(|table| Known::new(&base.tables, table)).transpose();
        let mut known = known.map_err(PackError::Scratch)?;
        let runs = self.held[index].map.runs.clone();
        let mut addresses = runs.iter().flat_map(|run| (0..run.pages).map(|page| run.address + page * PAGE));
        let generation = self.link().generation;
        let mut block = vec![0; CHUNK];
        let mut left = self.held[index].map.pages * PAGE;
        while left > 0 {
            let part = left.min(CHUNK as u64) as usize;
            let read = read_full(content, &mut block[..part])
                .map_err(|error| layers.bad_content(ArchiveError::read(error)))?;
            if read < part {
                return Err(layers.bad_content(ArchiveError::Truncated));
            }
            left -= part as u64;
            let pages = block[..part].chunks_exact(PAGE_LEN).zip(digests_of(&block[..part]));
            for ((page, digest), address) in pages.zip(addresses.by_ref()) {
                self.digests.write_all(&digest).map_err(PackError::Scratch)?;
                let before = match &mut known {
                    Some(known) => known.at(address).map_err(PackError::Scratch)?,
                    None => None,
                };
                match before.filter(|(before, ..)| *before == digest) {
                    Some((_, generation, place)) => self.saw_pages(index, generation, Some(place), 1)?,
                    None => {
                        if self.part >= self.part_limit {
                            self.close_part(layers)?;
                        }
                        self.changed.write_all(page).map_err(PackError::Scratch)?;
                        self.add_segment(index, PAGE, None);
                        self.saw_pages(index, generation, None, 1)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes pages that were compared as they came.
    fn take_compared(
        &mut self,
        index: usize,
        all: &Received,
        image: &ReceivedImage,
        layers: &mut OpenLayers<'_, '_>,
    ) -> Result<(), PackError> {
        io::copy(&mut all.digests(image), &mut self.digests).map_err(PackError::Scratch)?;
        let generation = self.link().generation;
        let mut spool_at = image.spool_at();
        let mut sources = all.sources(image);
        while let Some(source) = sources.next().map_err(PackError::Scratch)? {
            if source.generation < generation {
                self.saw_pages(index, source.generation, Some(source.index), source.pages)?;
                continue;
            }
            let mut left = source.pages;
            while left > 0 {
                if self.part >= self.part_limit {
                    self.close_part(layers)?;
                }
                let room = (self.part_limit - self.part) / PAGE;
                let pages = left.min(u32::try_from(room).unwrap_or(u32::MAX));
                let bytes = u64::from(pages) * PAGE;
                self.add_segment(index, bytes, Some(spool_at));
                self.saw_pages(index, generation, None, pages)?;
                spool_at += bytes;
                left -= pages;
            }
        }
        Ok(())
    }

    /// Adds changed pages to the part at hand.
    fn add_segment(&mut self, held: usize, bytes: u64, spool_at: Option<u64>) {
        self.part += bytes;
        match self.segments.last_mut() {
            Some(last) if last.held == held => last.bytes += bytes,
            _ => self.segments.push(Segment { held, bytes, spool_at }),
        }
    }

    /// Notes where pages are: at a place in an older generation, or next in this one.
    fn saw_pages(&mut self, index: usize, generation: u32, place: Option<u64>, pages: u32) -> Result<(), PackError> {
        let State::Taken(taken) = &mut self.held[index].state else {
            return Ok(());
        };
        let place = place.unwrap_or_else(|| {
            taken.own += u64::from(pages);
            taken.own - u64::from(pages)
        });
        taken.seen += u64::from(pages);
        if let Some(run) = &mut taken.run
            && run.generation == generation
            && run.index + u64::from(run.pages) == place
            && let Some(sum) = run.pages.checked_add(pages)
        {
            run.pages = sum;
            return Ok(());
        }
        taken.end_run(&mut self.runs)?;
        taken.run = Some(Source { index: place, pages, generation });
        Ok(())
    }

    fn end_run(&mut self, index: usize) -> Result<(), PackError> {
        match &mut self.held[index].state {
            State::Taken(taken) => taken.end_run(&mut self.runs),
            State::Waiting | State::Given => Ok(()),
        }
    }
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Generated {
    pub chain: Option<super::Chain>,
    pub notes: Vec<String>,
}
