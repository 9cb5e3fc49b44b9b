//! Generations: what is packed over a base comes back as it was, both through unpacking and the way CRIU reads a chain.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use image_format::{Base, ChainLimits, Compression, LayerContent, Limits, MemberId, PackOptions, PackedImage};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use prost::Message;

use crate::support::{Memory, archive_of, entries, fixture, image_of, pack_bytes, sorted};

const PAGE: usize = 4096;

/// The memory of a process or a shared segment: what its pages hold, by their numbers.
pub type Pages = BTreeMap<u64, u16>;

/// The memory of all, by the names of their pagemaps, in the order of their files of pages.
#[derive(Debug, Clone, Default)]
pub struct Machine(pub Vec<(String, Pages)>);

pub fn page(content: u16) -> Vec<u8> {
    content.to_le_bytes().iter().copied().cycle().take(PAGE).collect()
}

/// A pagemap as CRIU writes it, with runs as long as they can be.
fn pagemap(pages_id: u32, pages: &Pages, wide: bool) -> Vec<u8> {
    use image_format::criu::{PagemapEntry, PagemapHead};
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in pages.keys() {
        match runs.last_mut() {
            Some((start, count)) if *start + *count == *number => *count += 1,
            _ => runs.push((*number, 1)),
        }
    }
    let entries = runs.into_iter().map(|(start, count)| {
        let flags = Some(if start % 2 == 0 { 4 } else { 6 });
        PagemapEntry {
            address: start * PAGE as u64,
            short_count: if wide { 0 } else { count as u32 },
            in_parent: None,
            flags,
            count: wide.then_some(count),
        }
        .encode_to_vec()
    });
    let mut bytes: Vec<u8> = [0x5456_4319_u32, 0x5608_4025].iter().flat_map(|magic| magic.to_le_bytes()).collect();
    for record in [PagemapHead { pages_id }.encode_to_vec()].into_iter().chain(entries) {
        bytes.extend((record.len() as u32).to_le_bytes());
        bytes.extend(record);
    }
    bytes
}

/// Where the second mapping begins, which a child does not inherit, and the third.
pub const MAPPINGS: [u64; 2] = [13, 26];

/// The mappings of a process.
fn mappings() -> Vec<u8> {
    use image_format::criu::{AddressSpace, Mapping};
    let [second, third] = MAPPINGS.map(|page| page * PAGE as u64);
    let mapping = |start, end, advice| Mapping { start, end, advice };
    let mappings =
        vec![mapping(0, second, None), mapping(second, third, Some(1 << 10)), mapping(third, 1 << 47, Some(0))];
    let record = AddressSpace { mappings }.encode_to_vec();
    let head = [0x5456_4319_u32, 0x5749_2820, record.len() as u32];
    head.iter().flat_map(|number| number.to_le_bytes()).chain(record).collect()
}

/// A dump as podman exports it, with a real dump's other files.
pub fn dump(machine: &Machine) -> Vec<u8> {
    dump_with(machine, |number| number % 2 == 0)
}

/// The same, with counts of 64 bits in the pagemaps of these numbers.
pub fn dump_with(machine: &Machine, wide: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o640);
        header.set_uid(7);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content).unwrap();
    };
    let real = std::fs::read(fixture("podman-none.tar")).unwrap();
    for file in entries(&real).iter().filter(|file| file.kind == b'0') {
        let name = String::from_utf8(file.name.clone()).unwrap();
        if !["/pagemap-", "/pages-", "/mm-"].iter().any(|other| name.contains(other)) {
            add(&name, &file.content);
        }
    }
    for process in machine.0.iter().filter_map(|(name, _)| name.strip_prefix("pagemap-")) {
        if !process.starts_with("shmem") {
            add(&format!("checkpoint/mm-{process}"), &mappings());
        }
    }
    for (number, (name, pages)) in machine.0.iter().enumerate() {
        add(&format!("checkpoint/{name}"), &pagemap(number as u32 + 1, pages, wide(number)));
    }
    for (number, (_, pages)) in machine.0.iter().enumerate() {
        let content: Vec<u8> = pages.values().flat_map(|content| page(*content)).collect();
        add(&format!("checkpoint/pages-{}.img", number + 1), &content);
    }
    builder.into_inner().unwrap()
}

pub fn options(base: Option<Base>, limits: ChainLimits) -> PackOptions {
    let member: MemberId = "m".parse().unwrap();
    PackOptions {
        member: Some(member),
        base: base.map(Arc::new),
        chain: limits,
        compression: Compression::None,
        scratch: std::env::temp_dir(),
        ..PackOptions::default()
    }
}

pub fn base_of(packed: &PackedImage, store: &Memory) -> Base {
    Base::load(&image_of(packed), store, &Limits::default(), &std::env::temp_dir()).unwrap()
}

/// The files of an image, as an engine finds them when it has laid the layers over one another.
fn files_of(packed: &PackedImage, store: &Memory) -> HashMap<String, (Vec<u8>, Option<Vec<u8>>)> {
    let mut files = HashMap::new();
    for layer in image_of(packed).layers() {
        let blob = store.0.lock().unwrap()[&layer.descriptor.digest].clone();
        for file in entries(&blob).into_iter().filter(|file| file.kind != b'5') {
            files.insert(String::from_utf8(file.name).unwrap(), (file.content, file.target));
        }
    }
    files
}

/// Reads one page the way CRIU does (4.2, `criu/pagemap.c`): from the folder's own file of pages, or from its parent's.
fn read_page(files: &HashMap<String, (Vec<u8>, Option<Vec<u8>>)>, folder: &str, name: &str, number: u64) -> Vec<u8> {
    use image_format::criu::{ImageKind, PagemapEntry, PagemapHead, Records};
    let (bytes, _) = files.get(&format!("{folder}/{name}")).unwrap_or_else(|| panic!("{folder} has no {name}"));
    let mut records = Records::open(ImageKind::Pagemap, bytes).unwrap();
    let head: PagemapHead = records.next_record().unwrap().unwrap();
    let mut before = 0;
    while let Some(entry) = records.next_record::<PagemapEntry>().unwrap() {
        let start = entry.address / PAGE as u64;
        let count = entry.count.unwrap_or(entry.short_count.into());
        if (start..start + count).contains(&number) {
            if entry.flags == Some(1) {
                let (_, target) = &files[&format!("{folder}/parent")];
                let target = String::from_utf8(target.clone().unwrap()).unwrap();
                let parent = format!("checkpoint/{}", target.trim_start_matches("../"));
                return read_page(files, &parent, name, number);
            }
            let at = (before + number - start) as usize * PAGE;
            return files[&format!("{folder}/pages-{}.img", head.pages_id)].0[at..at + PAGE].to_vec();
        }
        before += entry.present();
    }
    panic!("{folder}/{name} has no page {number}");
}

/// Checks an image against the dump that it was made of.
fn check(packed: &PackedImage, dump: &[u8], machine: &Machine, store: &Memory) {
    assert!(sorted(entries(&archive_of(packed, store))) == sorted(entries(dump)), "unpacked");
    let files = files_of(packed, store);
    for (name, pages) in &machine.0 {
        for (number, content) in pages {
            let found = read_page(&files, "checkpoint", name, *number);
            assert!(found == page(*content), "{name}, page {number}");
        }
    }
    crate::lazily::check(&image_of(packed), machine, store);
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => (1..6_u32).prop_map(|pid| format!("pagemap-{pid}.img")),
        1 => (1..3_u32).prop_map(|id| format!("pagemap-shmem-{id}.img")),
    ]
}

pub fn machine() -> impl Strategy<Value = Machine> {
    let pages = btree_map(0..40_u64, 0..4_u16, 1..24);
    let processes = btree_map(name(), pages, 1..5).prop_map(|all| all.into_iter().collect::<Vec<_>>());
    processes.prop_shuffle().prop_map(Machine)
}

/// Pages of processes that change or go, what another machine has, and what happens to whole processes.
pub type Step = (Vec<(usize, u64, Option<u16>)>, Machine, u8);

/// What becomes of memory: pages that change, come or go, and whole processes of another machine.
pub fn step() -> impl Strategy<Value = Step> {
    (vec((0..5_usize, 0..40_u64, prop::option::weighted(0.8, 4..9_u16)), 0..20), machine(), 0..8_u8)
}

pub fn apply(machine: &Machine, (changes, other, how): &Step) -> Machine {
    let mut next = machine.clone();
    match how {
        0 => next = other.clone(),
        1 => next.0.reverse(),
        2 if next.0.len() > 1 => drop(next.0.remove(0)),
        3 => {
            let new = other.0.iter().filter(|(name, _)| machine.0.iter().all(|(known, _)| known != name));
            next.0.extend(new.cloned());
        }
        _ => {}
    }
    for (process, page, content) in changes {
        let count = next.0.len();
        let pages = &mut next.0[process % count].1;
        match content {
            Some(content) => drop(pages.insert(*page, *content)),
            None if pages.len() > 1 => drop(pages.remove(page)),
            None => {}
        }
    }
    next
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn chains_give_back_every_dump(
        first in machine(),
        steps in vec(step(), 0..5),
        part_pages in 1..30_u64,
        generations in 1..5_u32,
    ) {
        let store = Memory::default();
        let limits = ChainLimits { generations, stored_percent: 10_000, part_bytes: part_pages * PAGE as u64 };
        let mut machine = first;
        let archive = dump(&machine);
        let mut packed = pack_bytes(&archive, &options(None, limits), &store).unwrap();
        check(&packed, &archive, &machine, &store);
        let again = pack_bytes(&archive_of(&packed, &store), &options(None, limits), &store).unwrap();
        prop_assert_eq!(&again.manifest, &packed.manifest);
        for step in &steps {
            let before = packed.chain.unwrap().generations;
            machine = apply(&machine, step);
            let archive = dump(&machine);
            let base = base_of(&with_manifest(&again, &packed.manifest), &store);
            packed = pack_bytes(&archive, &options(Some(base), limits), &store).unwrap();
            let expected = if before < generations { before + 1 } else { 1 };
            prop_assert_eq!(packed.chain.as_ref().unwrap().generations, expected);
            check(&packed, &archive, &machine, &store);
        }
    }
}

/// The image of that manifest.
fn with_manifest(any: &PackedImage, manifest: &image_format::Document) -> PackedImage {
    PackedImage { manifest: manifest.clone(), ..any.clone() }
}

/// Bytes of the layers of pages and digests that an image does not share with its base.
fn new_bytes(packed: &PackedImage, base: &PackedImage) -> u64 {
    let old = |layer: &image_format::LayerInfo| base.layers.iter().any(|known| known.descriptor == layer.descriptor);
    let pages = |layer: &&image_format::LayerInfo| matches!(layer.content, LayerContent::Pages | LayerContent::Digests);
    packed.layers.iter().filter(pages).filter(|layer| !old(layer)).map(|layer| layer.descriptor.size).sum()
}

#[test]
fn a_change_costs_what_it_changed() {
    let store = Memory::default();
    let mut machine = Machine(vec![("pagemap-1.img".to_owned(), (0..2_000).map(|n| (n * 2, n as u16)).collect())]);
    let first = pack_bytes(&dump(&machine), &options(None, ChainLimits::default()), &store).unwrap();
    for number in (0..2_000).step_by(20) {
        machine.0[0].1.insert(number * 2, 60_000 + (number % 5_000) as u16);
    }
    let changed = dump(&machine);
    let base = base_of(&first, &store);
    let second = pack_bytes(&changed, &options(Some(base), ChainLimits::default()), &store).unwrap();
    check(&second, &changed, &machine, &store);
    let (new, plain) = (new_bytes(&second, &first), 2_000 * PAGE as u64);
    // Pagemaps of single pages are as dear as it gets, so the bound is one percent above that of a real process.
    assert!(new * 100 <= plain * 7, "{new} bytes for 5 % of {plain}");
    let contents: Vec<_> =
        second.layers.iter().map(|layer| (layer.content, layer.link.map(|link| link.to_string()))).collect();
    let links = contents.iter().filter_map(|(_, link)| link.as_deref()).collect::<Vec<_>>();
    assert_eq!(links, ["1.1", "2.1"]);
    assert_eq!(second.chain.unwrap().base, Some(first.manifest.digest()));
    assert!(contents.iter().any(|(content, _)| *content == LayerContent::Digests));
}

pub fn one_process(pages: u64) -> Machine {
    Machine(vec![("pagemap-1.img".to_owned(), (0..pages).map(|number| (number, number as u16)).collect())])
}

/// The layer of digests of an image, with another content in its place: every reader must refuse it.
fn with_table(packed: &PackedImage, store: &Memory, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let layer = packed.layers.iter().find(|layer| layer.content == LayerContent::Digests).unwrap();
    let mut tar = store.0.lock().unwrap()[&layer.descriptor.digest].clone();
    let at = tar.windows(8).position(|window| window == b"synctab\x01").unwrap();
    let mut table = tar[at..].to_vec();
    change(&mut table);
    tar.truncate(at);
    tar.extend(table);
    let other = store.clone();
    // Under the old name, so that only what is in it can be found wrong.
    other.0.lock().unwrap().insert(layer.descriptor.digest, tar);
    let error = Base::load(&image_of(packed), &other, &Limits::default(), &std::env::temp_dir()).unwrap_err();
    let error: &dyn std::error::Error = &error;
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn tables_that_lie_are_refused() {
    let set =
        |at: usize, bytes: &'static [u8]| move |table: &mut Vec<u8>| table[at..at + bytes.len()].copy_from_slice(bytes);
    for (at, bytes, why) in [
        (0, &b"other"[..], "no table of pages"),
        (7, &[2], "version 2"),
        (12, &[9], "generation 9"),
        (16, &[6], "not 128 bytes"),
        (24, &[255, 255, 255, 255, 255, 255, 255, 255], "not 128 bytes"),
        (32, &[0, 0, 0, 0, 0, 0, 0, 255], "passes the end"),
        (40, &[4], "runs for 4 pages"),
        (40, &[0], "empty or goes backwards"),
        (44, &[0], "unknown generation 0"),
        (44, &[2], "unknown generation 2"),
    ] {
        let store = Memory::default();
        let packed = pack_bytes(&dump(&one_process(5)), &options(None, ChainLimits::default()), &store).unwrap();
        let said = with_table(&packed, &store, set(at, bytes));
        assert!(said.contains(why) && said.contains("pagemap-1.table"), "{at}: {said}");
    }
}

#[test]
fn a_base_of_another_member_begins_a_new_chain() {
    let store = Memory::default();
    let first = pack_bytes(&dump(&one_process(5)), &options(None, ChainLimits::default()), &store).unwrap();
    let other = PackOptions {
        member: Some("n".parse().unwrap()),
        ..options(Some(base_of(&first, &store)), ChainLimits::default())
    };
    let packed = pack_bytes(&dump(&one_process(5)), &other, &store).unwrap();
    assert_eq!(packed.chain.unwrap().generations, 1);
    assert!(packed.notes[0].contains("is of m, not of n"), "{:?}", packed.notes);
    let small = ChainLimits { stored_percent: 50, ..ChainLimits::default() };
    let packed = pack_bytes(&dump(&one_process(5)), &options(Some(base_of(&first, &store)), small), &store).unwrap();
    assert!(packed.notes[0].contains("over the limit of 50 %"), "{:?}", packed.notes);
}

#[test]
fn a_part_after_one_of_noise_is_stored_plain() {
    const PART: usize = 256 * PAGE;
    let noise = (0..PART as u64 / 8).flat_map(|n| {
        let word = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes()
    });
    let noise: Vec<u8> = noise.collect();
    let machine = Machine(vec![("pagemap-1.img".to_owned(), (0..6 * 256).map(|n| (n, n as u16)).collect())]);
    let mut archive = dump(&machine);
    let at = tar::Archive::new(&archive[..]).entries().unwrap().map(Result::unwrap).find_map(|entry| {
        let pages = entry.path().unwrap().ends_with("pages-1.img");
        pages.then_some(entry.raw_file_position() as usize)
    });
    for part in [0, 1, 2, 5] {
        archive[at.unwrap() + part * PART..][..PART].copy_from_slice(&noise);
    }
    let store = Memory::default();
    let limits = ChainLimits { part_bytes: PART as u64, ..ChainLimits::default() };
    let options = PackOptions { compression: Compression::Zstd, ..options(None, limits) };
    let packed = pack_bytes(&archive, &options, &store).unwrap();
    let mut parts: Vec<_> = packed.layers.iter().filter_map(|layer| Some((layer.link?.part, layer))).collect();
    parts.sort_by_key(|(part, _)| *part);
    let compressed: Vec<_> = parts.iter().map(|(_, layer)| layer.descriptor.media_type.contains("zstd")).collect();
    // The fourth was judged by the third, and is the last that could be compressed and is not.
    assert_eq!(compressed, [true, false, false, false, true, true]);
    for (part, layer) in parts {
        assert_eq!(layer.descriptor.digest == layer.diff_id, !compressed[part as usize - 1], "one digest is enough");
    }
    assert_eq!(sorted(entries(&archive_of(&packed, &store))), sorted(entries(&archive)));
}
