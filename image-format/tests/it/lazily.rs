//! Images that are unpacked without the memory that may follow: what is written and what follows is the memory that was dumped.

use std::collections::BTreeMap;

use image_format::criu::{ImageKind, PagemapEntry, PagemapHead, Records};
use image_format::{
    ChainLimits, CheckpointImage, Document, LazyPages, UnpackError, UnpackOptions, touched_pages, unpack_archive_lazily,
};
use proptest::prelude::*;
use serde_json::Value;

use crate::generations::{MAPPINGS, Machine, dump, machine, options, page};
use crate::support::{Memory, entries, image_of, pack_bytes};

const PAGE: u64 = 4096;

fn unpack(image: &CheckpointImage, store: &Memory) -> Result<(Vec<u8>, LazyPages), UnpackError> {
    let options = UnpackOptions { scratch: std::env::temp_dir(), ..UnpackOptions::default() };
    unpack_archive_lazily(image, store, &options, Vec::new())
}

/// Whether a page may follow, by what CRIU and the mappings say; `runs` are those of [`dump`].
fn may_follow(name: &str, pages: &BTreeMap<u64, u16>, number: u64) -> bool {
    let start = (0..=number).rev().take_while(|before| pages.contains_key(before)).last().unwrap();
    start % 2 == 1 && !name.starts_with("pagemap-shmem") && !(MAPPINGS[0]..MAPPINGS[1]).contains(&number)
}

/// Checks that an image gives the memory of a machine: written, or afterwards, and each page in the way that it has to.
pub fn check(image: &CheckpointImage, machine: &Machine, store: &Memory) {
    let all = || machine.0.iter().flat_map(|(name, pages)| pages.keys().map(move |number| (name, pages, *number)));
    let unpacked = unpack(image, store);
    if !all().any(|(name, pages, number)| may_follow(name, pages, number)) {
        assert!(matches!(unpacked, Err(UnpackError::NotLazy { .. })), "{unpacked:?}");
        return;
    }
    let (archive, lazy) = unpacked.unwrap();
    let mut found = written(&archive);
    assert!(found.iter().all(|((name, number), _)| {
        let pages = &machine.0.iter().find(|(known, _)| known == name).unwrap().1;
        !may_follow(name, pages, *number)
    }));
    let mut follows = BTreeMap::new();
    let mut take = |process: usize, address: u64, bytes: &[u8]| {
        let name = format!("pagemap-{}.img", lazy.processes()[process].pid);
        let run = |run: &&image_format::LazyRun| (run.address..run.address + run.pages * PAGE).contains(&address);
        let within = lazy.processes()[process].runs.iter().find(run).unwrap();
        assert!(address + bytes.len() as u64 <= within.address + within.pages * PAGE, "across mappings");
        for (number, page) in bytes.chunks(PAGE as usize).enumerate() {
            assert_eq!(page.len() as u64, PAGE);
            let address = address + number as u64 * PAGE;
            follows.insert((lazy.processes()[process].pid, address), page.to_vec());
            assert!(found.insert((name.clone(), address / PAGE), page.to_vec()).is_none(), "{name} {address:x} twice");
        }
        Ok(())
    };
    lazy.read_here(&mut take).unwrap();
    for part in (0..lazy.parts()).rev().filter(|part| !lazy.is_here(*part)) {
        assert!(lazy.part_bytes(part) > 0);
        lazy.read(part, store, &mut take).unwrap();
    }
    check_remembered(image, &follows, store);
    assert_eq!(found.len(), all().count());
    for (name, pages) in &machine.0 {
        for (number, content) in pages {
            assert!(found[&(name.clone(), *number)] == page(*content), "{name}, page {number}");
        }
    }
}

/// Checks that pages that were asked for first are here the next time, if they are right, and that nothing else is.
fn check_remembered(image: &CheckpointImage, follows: &BTreeMap<(u32, u64), Vec<u8>>, store: &Memory) {
    let here = |lazy: &LazyPages| {
        let found = follows.iter().filter(|((pid, address), page)| {
            let process = lazy.processes().iter().position(|process| process.pid == *pid).unwrap();
            assert!(lazy.likely_part(process, *address).is_some_and(|part| part < lazy.parts()));
            let found = lazy.page_here(process, *address).unwrap();
            assert!(found.as_ref().is_none_or(|found| found == *page));
            found.is_some()
        });
        found.count() as u64
    };
    let (_, mut lazy) = unpack(image, store).unwrap();
    let before = here(&lazy);
    let mut remembered = follows.clone();
    remembered.insert((77, 0), vec![1; PAGE as usize]);
    remembered.insert((1, 1 << 46), vec![1; PAGE as usize]);
    let stream = touched_pages(&remembered).unwrap();
    for cut in [0, 1, stream.len() / 2] {
        drop(unpack(image, store).unwrap().1.remember(&stream[..cut]));
    }
    assert_eq!(lazy.remember(&stream).unwrap(), follows.len() as u64 - before);
    assert_eq!(here(&lazy), follows.len() as u64);
    let mut given = 0;
    lazy.read_here(&mut |_, _, bytes| {
        given += bytes.len() as u64 / PAGE;
        Ok(())
    })
    .unwrap();
    assert_eq!(given, follows.len() as u64);

    let (_, mut lazy) = unpack(image, store).unwrap();
    let wrong: BTreeMap<_, _> =
        follows.iter().map(|(page, bytes)| (*page, bytes.iter().map(|byte| !byte).collect())).collect();
    assert_eq!((lazy.remember(&touched_pages(&wrong).unwrap()).unwrap(), here(&lazy)), (0, before));
}

/// The pages that an archive has, by pagemap and number.
fn written(archive: &[u8]) -> BTreeMap<(String, u64), Vec<u8>> {
    let files: BTreeMap<String, Vec<u8>> =
        entries(archive).into_iter().map(|file| (String::from_utf8(file.name).unwrap(), file.content)).collect();
    let mut found = BTreeMap::new();
    for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("checkpoint/pagemap-")) {
        let mut records = Records::open(ImageKind::Pagemap, bytes).unwrap();
        let head: PagemapHead = records.next_record().unwrap().unwrap();
        let pages = &files[&format!("checkpoint/pages-{}.img", head.pages_id)];
        let mut here = pages.chunks(PAGE as usize);
        while let Some(entry) = records.next_record::<PagemapEntry>().unwrap() {
            let count = entry.count.unwrap_or(entry.short_count.into());
            match entry.flags {
                Some(2) => continue,
                Some(4) => {}
                other => panic!("flags {other:?}"),
            }
            for number in 0..count {
                let name = name.trim_start_matches("checkpoint/").to_owned();
                found.insert((name, entry.address / PAGE + number), here.next().unwrap().to_vec());
            }
        }
        assert_eq!(here.next(), None, "{name}");
    }
    found
}

/// The image whose manifest says something else of its layers.
fn altered(image: &Document, change: impl Fn(&mut serde_json::Map<String, Value>)) -> CheckpointImage {
    let mut manifest: Value = serde_json::from_slice(image.bytes()).unwrap();
    for layer in manifest["layers"].as_array_mut().unwrap() {
        change(layer["annotations"].as_object_mut().unwrap());
    }
    let bytes = serde_json::to_vec(&manifest).unwrap();
    CheckpointImage::parse(&Document::new(image_format::annotation::MEDIA_MANIFEST, bytes)).unwrap()
}

fn two_parts() -> Machine {
    Machine(vec![("pagemap-1.img".to_owned(), (0..100).map(|n| (2 * n + 1, n as u16)).collect())])
}

#[test]
fn without_the_first_pages_all_memory_has_to_be_there() {
    let store = Memory::default();
    let limits = ChainLimits { part_bytes: 50 * PAGE, ..ChainLimits::default() };
    let packed = pack_bytes(&dump(&two_parts()), &options(None, limits), &store).unwrap();
    let (_, lazy) = unpack(&image_of(&packed), &store).unwrap();
    assert_eq!((lazy.parts(), lazy.pages()), (2, 93));
    let old = altered(&packed.manifest, |said| drop(said.remove("io.syncpoint.layer.first-page")));
    let error = unpack(&old, &store).map(drop).unwrap_err();
    assert!(error.to_string().contains("packed by an older version"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever an image says of where its pages begin, they are right, or there is an error.
    #[test]
    fn lies_about_first_pages_show(machine in machine(), file in 0..4_u32, index in prop_oneof![0..50_u64, Just(u64::MAX)]) {
        let store = Memory::default();
        let limits = ChainLimits { part_bytes: 5 * PAGE, ..ChainLimits::default() };
        let packed = pack_bytes(&dump(&machine), &options(None, limits), &store).unwrap();
        let lying = altered(&packed.manifest, |said| {
            if let Some(place) = said.get_mut("io.syncpoint.layer.first-page") {
                *place = format!("{file}:{index}").into();
            }
        });
        if let Ok((archive, lazy)) = unpack(&lying, &store) {
            let mut right = |process: usize, address: u64, bytes: &[u8]| {
                let name = format!("pagemap-{}.img", lazy.processes()[process].pid);
                let pages = &machine.0.iter().find(|(known, _)| *known == name).unwrap().1;
                for (number, found) in bytes.chunks(PAGE as usize).enumerate() {
                    assert!(found == page(pages[&(address / PAGE + number as u64)]));
                }
                Ok(())
            };
            lazy.read_here(&mut right).unwrap();
            for part in 0..lazy.parts() {
                drop(lazy.read(part, &store, &mut right));
            }
            for ((name, number), found) in written(&archive) {
                let pages = &machine.0.iter().find(|(known, _)| *known == name).unwrap().1;
                assert!(found == page(pages[&number]));
            }
        }
    }
}
