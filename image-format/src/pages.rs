//! Compares what the pagemaps of a dump count with the pages that are there. CRIU 4.2 reads for ever from a dump whose
//! pages end too early, so such a dump must not become an image.

use std::collections::BTreeMap;

use crate::criu::{CriuError, ImageKind, PagemapEntry, PagemapHead, Records};

/// Bytes of a pagemap that is compared; a larger one counts some 400,000 runs of pages.
const MAX_PAGEMAP: u64 = 8 << 20;
/// The smallest page that any architecture has.
const PAGE: u64 = 4096;
/// The flags that are known: in the parent, lazy, present. With others, what lies in the file may be anything.
const FLAGS: u32 = 7;

/// Pagemaps and files of pages that passed by.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    /// Bytes, by the name of the file of pages.
    files: BTreeMap<String, u64>,
    /// By the name of the file of pages and of a pagemap: what that pagemap counts, in bytes.
    counted: BTreeMap<(String, String), u64>,
}

/// A file of pages that is too short.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Short {
    pub pages: String,
    pub found: u64,
    pub pagemap: String,
    pub counted: u64,
}

impl Pages {
    /// How many bytes of a file are of use, or `None` if none are.
    pub fn wants(name: &str) -> Option<u64> {
        is_pagemap(name).then_some(MAX_PAGEMAP)
    }

    /// Takes a file: its whole size, and its first bytes, as many as there are up to what [`Pages::wants`] says.
    pub fn add(&mut self, name: &str, size: u64, bytes: &[u8]) -> Result<(), CriuError> {
        if let Some((folder, file)) = split(name)
            && file.starts_with("pages-")
        {
            self.files.insert(format!("{folder}/{file}"), size);
        }
        if !is_pagemap(name) || size > MAX_PAGEMAP {
            return Ok(());
        }
        let Some((folder, _)) = split(name) else {
            return Ok(());
        };
        let mut records = Records::open(ImageKind::Pagemap, bytes)?;
        let Some(head) = records.next_record::<PagemapHead>()? else {
            return Ok(());
        };
        let mut pages: u64 = 0;
        while let Some(entry) = records.next_record::<PagemapEntry>()? {
            if entry.flags.unwrap_or(0) & !FLAGS != 0 {
                return Ok(());
            }
            pages = pages.saturating_add(entry.present());
        }
        let counted = pages.saturating_mul(PAGE);
        self.counted.insert((format!("{folder}/pages-{}.img", head.pages_id), name.to_owned()), counted);
        Ok(())
    }

    /// Takes a further name of a file.
    pub fn link(&mut self, name: &str, target: &str) {
        if let (Some((_, file)), Some(size)) = (split(name), self.files.get(target).copied())
            && file.starts_with("pages-")
        {
            self.files.insert(name.to_owned(), size);
        }
    }

    /// The first file that has fewer bytes than a pagemap counts, or is not there at all. Only pagemaps of processes that the
    /// dump has are looked at, if they are known: podman exports what an earlier checkpoint of the container left behind.
    pub fn short(self, processes: &[u32]) -> Option<Short> {
        let mut counted = self.counted.into_iter();
        counted.find_map(|((pages, pagemap), counted)| {
            let process =
                pagemap.strip_prefix("checkpoint/pagemap-").and_then(|rest| rest.strip_suffix(".img")?.parse().ok());
            if process.is_some_and(|process| !processes.is_empty() && !processes.contains(&process)) {
                return None;
            }
            let found = self.files.get(&pages).copied().unwrap_or(0);
            (found < counted).then_some(Short { pages, found, pagemap, counted })
        })
    }
}

fn is_pagemap(name: &str) -> bool {
    split(name).is_some_and(|(_, file)| file.starts_with("pagemap-"))
}

/// The folder and the name of an image file of CRIU.
fn split(name: &str) -> Option<(&str, &str)> {
    let (folder, file) = name.split_once('/')?;
    let is_image = matches!(folder, "checkpoint" | "pre-checkpoint") && file.ends_with(".img") && !file.contains('/');
    is_image.then_some((folder, file))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn pagemap(pages_id: u32, entries: &[PagemapEntry]) -> Vec<u8> {
        let mut bytes: Vec<u8> = [0x5456_4319_u32, 0x5608_4025].iter().flat_map(|magic| magic.to_le_bytes()).collect();
        let records = [PagemapHead { pages_id }.encode_to_vec()].into_iter();
        for record in records.chain(entries.iter().map(Message::encode_to_vec)) {
            bytes.extend((record.len() as u32).to_le_bytes());
            bytes.extend(record);
        }
        bytes
    }

    fn run(flags: Option<u32>, pages: u32) -> PagemapEntry {
        PagemapEntry { address: 0, short_count: pages, in_parent: None, flags, count: None }
    }

    fn short(files: &[(&str, u64, &[u8])]) -> Option<Short> {
        let mut pages = Pages::default();
        files.iter().for_each(|(name, size, bytes)| pages.add(name, *size, bytes).unwrap());
        pages.short(&[1, 42])
    }

    #[test]
    fn pages_that_are_missing_are_noticed() {
        let map = pagemap(3, &[run(Some(4), 2), run(Some(1), 100), run(None, 3)]);
        let len = map.len() as u64;
        let file = |size| ("checkpoint/pages-3.img", size, &[][..]);
        let map_of = |folder| (folder, len, &map[..]);
        let maps = map_of("checkpoint/pagemap-42.img");
        assert_eq!(short(&[file(5 * 4096), maps]), None);
        assert_eq!(short(&[maps, file(9 * 4096)]), None);
        let mut linked = Pages::default();
        linked.add("checkpoint/pages-1.img", 5 * 4096, &[]).unwrap();
        linked.link("checkpoint/pages-3.img", "checkpoint/pages-1.img");
        linked.add(maps.0, maps.1, maps.2).unwrap();
        assert_eq!(linked.short(&[]), None);
        let expected = |found| Short {
            pages: "checkpoint/pages-3.img".to_owned(),
            found,
            pagemap: "checkpoint/pagemap-42.img".to_owned(),
            counted: 5 * 4096,
        };
        assert_eq!(short(&[maps, file(5 * 4096 - 1)]), Some(expected(5 * 4096 - 1)));
        assert_eq!(short(&[maps]), Some(expected(0)));
        let mut left_behind = Pages::default();
        left_behind.add("checkpoint/pagemap-42.img", len, &map).unwrap();
        assert_eq!(left_behind.short(&[41]), None);
        let before = map_of("pre-checkpoint/pagemap-42.img");
        assert_eq!(short(&[before, file(1 << 20)]).unwrap().pages, "pre-checkpoint/pages-3.img");
        assert_eq!(short(&[map_of("elsewhere/pagemap-42.img")]), None);
    }

    #[test]
    fn what_is_not_understood_is_not_compared() {
        let strange = pagemap(1, &[run(Some(4), 2), run(Some(12), 2)]);
        assert_eq!(short(&[("checkpoint/pagemap-1.img", strange.len() as u64, &strange)]), None);
        let large = pagemap(1, &[run(Some(4), 2)]);
        assert_eq!(short(&[("checkpoint/pagemap-1.img", 9 << 20, &large)]), None);
        let most = pagemap(1, &[PagemapEntry { count: Some(u64::MAX), ..run(Some(4), 0) }]);
        assert!(short(&[("checkpoint/pagemap-1.img", most.len() as u64, &most)]).is_some());
        assert!(Pages::default().add("checkpoint/pagemap-1.img", 3, b"abc").is_err());
    }
}
