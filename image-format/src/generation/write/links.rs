//! What a generation is written as: the links of the chain, then what the top folder and the tables have to say.

use std::collections::BTreeMap;
use std::io::{self, Read};

use super::{Generated, Generations, Held, Segment, State};
use crate::LayerContent;
use crate::archive::{Entry, EntryKind};
use crate::generation::base::Base;
use crate::generation::pagemap::{PagemapWriter, Place, Run};
use crate::generation::table::{self, RECORD, Source, Sources};
use crate::generation::{Chain, FirstPage, Link, OWN_FOLDER, PAGE, Scratch};
use crate::pack::{OpenLayers, PackError, Slot};

impl Generations<'_> {
    /// Where the link at hand lies.
    fn folder(&self) -> String {
        format!("checkpoint/{}", self.link().folder())
    }

    pub(super) fn pages_entry(&self, index: usize, size: u64) -> Entry {
        let id = match &self.held[index].state {
            State::Taken(taken) => taken.pages_id,
            State::Waiting | State::Given => 0,
        };
        file(&format!("{}/pages-{id}.img", self.folder()), size)
    }

    /// The link below the one at hand.
    fn below(&self) -> Option<Link> {
        let link = self.link();
        match link.part {
            1 => self.base.and_then(|base| base.links.last()).and_then(|layer| layer.link),
            part => Some(Link { part: part - 1, ..link }),
        }
    }

    /// Begins the layer of the part at hand, unless that was done. `first` is whose pages come first in it.
    pub(super) fn open_part(&mut self, first: Option<usize>, layers: &mut OpenLayers<'_, '_>) -> Result<(), PackError> {
        if layers.is_open(Slot::Link) {
            return Ok(());
        }
        let first_page = first.and_then(|index| match &self.held[index].state {
            State::Taken(taken) => Some(FirstPage { file: taken.pages_id, index: taken.own_before }),
            State::Waiting | State::Given => None,
        });
        layers.begin_link(self.link(), first_page, self.compressed);
        let folder = self.folder();
        for name in ["checkpoint", &folder] {
            layers.append(Slot::Link, &Entry::plain(name, EntryKind::Directory), &mut io::empty())?;
        }
        if let Some(below) = self.below() {
            let target = format!("../{}", below.folder()).into_bytes();
            let parent = Entry::plain(format!("{folder}/parent"), EntryKind::Symlink { target });
            layers.append(Slot::Link, &parent, &mut io::empty())?;
        }
        Ok(())
    }

    /// Writes what was put aside and the pagemaps of the link, and goes on to the next part.
    pub(super) fn close_part(&mut self, layers: &mut OpenLayers<'_, '_>) -> Result<(), PackError> {
        self.open_part(self.segments.first().map(|segment| segment.held), layers)?;
        let mut at = 0;
        for Segment { held, bytes, spool_at } in std::mem::take(&mut self.segments) {
            let entry = self.pages_entry(held, bytes);
            if let Some((received, spool_at)) = self.received.zip(spool_at) {
                layers.append(Slot::Link, &entry, &mut received.spooled(spool_at, bytes))?;
                continue;
            }
            layers.append(Slot::Link, &entry, &mut self.changed.reader(at, bytes))?;
            at += bytes;
        }
        self.changed.clear().map_err(PackError::Scratch)?;
        for index in 0..self.held.len() {
            self.end_run(index)?;
        }
        let folder = self.folder();
        // By name, whatever order the dump has.
        let by_name: BTreeMap<&str, &Held> = self.held.iter().map(|held| (held.name.as_str(), held)).collect();
        let mut written = Scratch::new(layers.scratch());
        for (name, held) in by_name {
            written.clear().map_err(PackError::Scratch)?;
            if self.write_pagemap(held, &mut written).map_err(PackError::Scratch)? {
                let entry = file(&format!("{folder}/{name}"), written.len());
                layers.append(Slot::Link, &entry, &mut written.reader(0, written.len()))?;
            }
        }
        layers.close_link()?;
        for held in &mut self.held {
            if let State::Taken(taken) = &mut held.state {
                taken.own_before = taken.own;
            }
        }
        self.part = 0;
        self.compressed = self.worth.next();
        self.link = self.link.map(|link| Link { part: link.part + 1, ..link });
        Ok(())
    }

    /// The pagemap of the link at hand: the pages in it, and those in links below, since CRIU asks link by link. Of pages that
    /// have not passed it is not known whether they are in the base; those that may be are said to be below, which is only
    /// asked for if they are.
    fn write_pagemap(&self, held: &Held, out: &mut Scratch) -> io::Result<bool> {
        let known = self.base.and_then(|base| Some((&base.tables, base.tables.get(&held.name)?)));
        let (taken, pages_id) = match (&held.state, known) {
            (State::Taken(taken), _) => (Some(taken), taken.pages_id),
            (State::Waiting | State::Given, Some((_, table))) => (None, table.pages_id),
            (State::Waiting | State::Given, None) => return Ok(false),
        };
        let generation = self.link().generation;
        let mut writer = PagemapWriter::new(out, pages_id, held.map.wide);
        let mut any = false;
        let (mut seen, mut sources) = match taken {
            Some(taken) => (taken.seen, Sources::new(&self.runs, taken.runs_at, taken.runs)),
            None => (0, Sources::new(&self.runs, 0, 0)),
        };
        let own_before = taken.map_or(0, |taken| taken.own_before);
        let base_map = known.map(|(tables, table)| tables.pagemap(table)).transpose()?;
        let mut base_runs = base_map.iter().flat_map(|map| &map.runs).copied().peekable();
        let mut source: Option<Source> = None;
        for run in &held.map.runs {
            let mut rest = *run;
            while seen > 0 && rest.pages > 0 {
                let Some(at) = (match source.take() {
                    Some(source) => Some(source),
                    None => sources.next()?,
                }) else {
                    break;
                };
                let mut some = rest.pages.min(at.pages.into());
                let here = at.generation == generation && at.index >= own_before;
                if at.generation == generation && !here {
                    some = some.min(own_before - at.index);
                }
                let place = if here { Place::Here } else { Place::Below };
                writer.push(Run { address: rest.address, pages: some }, place)?;
                any = true;
                // No more than the source has, which is a number of 32 bits.
                let pages = at.pages - some as u32;
                source = (pages > 0).then_some(Source { index: at.index + some, pages, ..at });
                rest = Run { address: rest.address + some * PAGE, pages: rest.pages - some };
                seen = seen.saturating_sub(some);
            }
            while base_runs.next_if(|base| base.end() <= rest.address).is_some() {}
            while let Some(base) = base_runs.peek().copied().filter(|base| rest.pages > 0 && base.address < rest.end())
            {
                let start = base.address.max(rest.address);
                let end = base.end().min(rest.end());
                writer.push(Run { address: start, pages: (end - start) / PAGE }, Place::Below)?;
                any = true;
                if base.end() > rest.end() {
                    break;
                }
                base_runs.next();
            }
        }
        if any {
            writer.finish()?;
        }
        Ok(any)
    }

    /// Ends the generation: what is left of the pages, then what the top folder and the table have to say.
    pub fn finish(mut self, layers: &mut OpenLayers<'_, '_>) -> Result<Generated, PackError> {
        for index in 0..self.held.len() {
            if matches!(self.held[index].state, State::Waiting) {
                self.give(index, layers)?;
            }
        }
        if self.link.is_none() {
            return Ok(Generated { chain: None, notes: self.notes });
        }
        // A generation without a page has a link nevertheless.
        if self.part > 0 || self.link().part == 1 {
            self.close_part(layers)?;
        }
        let state = Slot::Content(LayerContent::State);
        for index in &self.order {
            let Held { name, entry, map, state: State::Taken(taken), .. } = &self.held[*index] else {
                continue;
            };
            let below = map.all_below();
            let size = below.len() as u64;
            let pagemap =
                Entry { name: format!("checkpoint/{name}").into(), kind: EntryKind::File { size }, ..entry.clone() };
            layers.append(state, &pagemap, &mut &below[..])?;
            let pages = Entry { kind: EntryKind::File { size: 0 }, ..taken.pages.clone() };
            layers.append(state, &pages, &mut io::empty())?;
        }
        let target = self.below().map(Link::folder).unwrap_or_default().into_bytes();
        layers.append(state, &Entry::plain("checkpoint/parent", EntryKind::Symlink { target }), &mut io::empty())?;
        self.write_tables(layers)?;
        let base = self.base.map(Base::image);
        let chain = Chain { generations: self.link().generation, base };
        let links = self.base.map(|base| base.links.clone()).unwrap_or_default();
        layers.reuse(links);
        Ok(Generated { chain: Some(chain), notes: self.notes })
    }

    fn write_tables(&self, layers: &mut OpenLayers<'_, '_>) -> Result<(), PackError> {
        let digests = Slot::Content(LayerContent::Digests);
        layers.append(digests, &Entry::plain(OWN_FOLDER, EntryKind::Directory), &mut io::empty())?;
        for index in &self.order {
            let Held { name, map, bytes_at, bytes_len, state: State::Taken(taken), .. } = &self.held[*index] else {
                continue;
            };
            let pagemap = file(&format!("{OWN_FOLDER}/{name}"), *bytes_len);
            layers.append(digests, &pagemap, &mut self.pagemaps.reader(*bytes_at, *bytes_len))?;
            let head = table::head(taken.pages_id, self.link().generation, map.pages, taken.runs);
            let runs = self.runs.reader(taken.runs_at, taken.runs * RECORD);
            let found = self.digests.reader(taken.digests_at, map.pages * RECORD);
            let name = format!("{OWN_FOLDER}/{}", table::table_name(name));
            let entry = file(&name, table::size(map.pages, taken.runs));
            layers.append(digests, &entry, &mut (&head[..]).chain(runs).chain(found))?;
        }
        Ok(())
    }
}

fn file(name: &str, size: u64) -> Entry {
    Entry::plain(name, EntryKind::File { size })
}
