//! Pages that came in a stream: the image is the one that CRIU's own files would have given.

use std::io::Read;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

use crate::generations::{Machine, apply, base_of, dump_with, machine, one_process, options, step};
use crate::support::{File, Memory, entries, fixture, pack_bytes};
use image_format::criu::{ImageKind, PagemapEntry, PagemapHead, Records};
use image_format::page_server::{
    Form, PageImage, PageStreamError, ReceiveError, ReceiveLimits, Received, ReceivedError, Receiving,
};
use image_format::{Base, ChainLimits, Compression, DumpSource, Layout, PackError, PackOptions, PackedImage, pack};

const PAGE: u64 = 4096;
const OPEN: u32 = 4;
const PARENT: u32 = 5;
const ADD_F: u32 = 6;
const CLOSE: u32 = 0x1023;

/// A dump as it is with a page server: what CRIU writes, and what it sends.
struct Streamed {
    archive: Vec<u8>,
    stream: Vec<u8>,
}

fn head(form: Form, command: u32, pages: u64, address: u64, image: u64) -> Vec<u8> {
    let mut bytes = command.to_ne_bytes().to_vec();
    match form {
        Form::Short => bytes.extend(u32::try_from(pages).unwrap().to_ne_bytes()),
        Form::Long => {
            bytes.extend([0; 4]);
            bytes.extend(pages.to_ne_bytes());
        }
    }
    bytes.extend(address.to_ne_bytes());
    bytes.extend(image.to_ne_bytes());
    bytes
}

/// The number of an image in the protocol.
fn number(pagemap: &str) -> u64 {
    let id = pagemap.strip_prefix("pagemap-").unwrap().strip_suffix(".img").unwrap();
    match id.strip_prefix("shmem-") {
        Some(id) => id.parse::<u64>().unwrap() << 8 | 2,
        None => id.parse::<u64>().unwrap() << 8 | 1,
    }
}

/// Takes pagemaps and pages out of a dump, and sends them as CRIU would have done (4.2, `criu/page-xfer.c`).
fn stream_of(archive: &[u8], form: Form) -> Streamed {
    let files = entries(archive);
    let name = |file: &File| String::from_utf8(file.name.clone()).unwrap();
    let own = |name: &str| name.starts_with("checkpoint/pagemap-") || name.starts_with("checkpoint/pages-");
    let find = |wanted: &str| files.iter().find(|file| name(file) == wanted).unwrap();
    let pagemaps = files.iter().filter_map(|file| {
        let name = name(file).strip_prefix("checkpoint/").filter(|name| name.starts_with("pagemap-"))?.to_owned();
        Some((name, file.content.clone()))
    });
    let pagemaps: Vec<_> = pagemaps.collect();
    let mut order: Vec<_> = pagemaps.iter().collect();
    let read = |bytes| Records::open(ImageKind::Pagemap, bytes).unwrap();
    let pages_id = |bytes| read(bytes).next_record::<PagemapHead>().unwrap().unwrap().pages_id;
    order.sort_by_key(|(_, bytes)| pages_id(bytes));
    let mut stream = Vec::new();
    for (name, bytes) in order {
        let image = number(name);
        stream.extend(head(form, PARENT, 0, 0, image));
        stream.extend(head(form, OPEN, 0, 0, image));
        let mut records = read(bytes);
        let first: PagemapHead = records.next_record().unwrap().unwrap();
        let mut pages = &find(&format!("checkpoint/pages-{}.img", first.pages_id)).content[..];
        while let Some(entry) = records.next_record::<PagemapEntry>().unwrap() {
            let count = entry.count.unwrap_or(entry.short_count.into());
            let (run, rest) = pages.split_at((count * PAGE) as usize);
            stream.extend(head(form, entry.flags.unwrap() << 16 | ADD_F, count, entry.address, image));
            stream.extend(run);
            pages = rest;
        }
        assert!(pages.is_empty());
    }
    stream.extend(head(form, CLOSE, 0, 0, 0));
    Streamed { archive: without(archive, own), stream }
}

/// A plain archive without some of its files.
fn without(archive: &[u8], leave_out: impl Fn(&str) -> bool) -> Vec<u8> {
    let mut plain = Vec::new();
    match Compression::of_content(archive) {
        Compression::None => plain.extend(archive),
        Compression::Gzip => drop(flate2::read::GzDecoder::new(archive).read_to_end(&mut plain).unwrap()),
        Compression::Zstd => zstd::stream::copy_decode(archive, &mut plain).unwrap(),
    }
    let mut from = tar::Archive::new(&plain[..]);
    let mut to = tar::Builder::new(Vec::new());
    for entry in from.entries().unwrap() {
        let entry = entry.unwrap();
        if !leave_out(str::from_utf8(&entry.path_bytes()).unwrap()) {
            to.append(&entry.header().clone(), entry).unwrap();
        }
    }
    to.into_inner().unwrap()
}

/// Receives a stream that comes in pieces of this many bytes.
fn receive(stream: &[u8], piece: usize, base: Option<Arc<Base>>) -> Result<Received, ReceiveError> {
    receive_within(stream, piece, base, ReceiveLimits::default())
}

fn receive_within(
    stream: &[u8],
    piece: usize,
    base: Option<Arc<Base>>,
    limits: ReceiveLimits,
) -> Result<Received, ReceiveError> {
    let folder = tempfile::tempdir().unwrap();
    let mut receiving = Receiving::new(folder.path(), base, limits);
    for bytes in stream.chunks(piece) {
        if piece.is_multiple_of(2) {
            receiving.take(bytes)?;
        } else {
            read_from(bytes, &mut receiving)?;
        }
    }
    receiving.finish()
}

/// Takes bytes as from a socket, where they are to be put.
fn read_from(mut bytes: &[u8], receiving: &mut Receiving) -> Result<(), ReceiveError> {
    while !bytes.is_empty() {
        let read = bytes.read_vectored(&mut receiving.room()).unwrap();
        receiving.filled(read)?;
    }
    Ok(())
}

fn pack_received(
    archive: &[u8],
    received: Received,
    options: &PackOptions,
    store: &Memory,
) -> Result<PackedImage, PackError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dump");
    std::fs::write(&path, archive).unwrap();
    pack(DumpSource::open(&path, None).unwrap().with_pages(received), options, store)
}

/// The form whose counts a dump's pagemaps have.
fn form_of(archive: &[u8]) -> Form {
    let pagemap = entries(archive).into_iter().find(|file| file.name.starts_with(b"checkpoint/pagemap-")).unwrap();
    let mut records = Records::open(ImageKind::Pagemap, &pagemap.content).unwrap();
    records.next_record::<PagemapHead>().unwrap();
    match records.next_record::<PagemapEntry>().unwrap().and_then(|entry| entry.count) {
        Some(_) => Form::Long,
        None => Form::Short,
    }
}

#[test]
fn real_dumps_give_the_same_image() {
    for name in [
        "podman-zstd.tar.zst",
        "podman-gzip.tar.gz",
        "podman-none.tar",
        "podman-plain.tar.zst",
        "cri-o.tar",
        "containerd.tar",
        "set/consumer.tar.zst",
        "set/producer.tar.zst",
        "set/auditor.tar.zst",
    ] {
        let archive = std::fs::read(fixture(name)).unwrap();
        assert_eq!(form_of(&archive), Form::Long);
        let streamed = stream_of(&archive, Form::Long);
        assert!(streamed.archive.len() + streamed.stream.len() > 100_000);
        for layout in [Layout::Generations, Layout::Split, Layout::Plain] {
            let store = Memory::default();
            let options = PackOptions { layout, ..PackOptions::default() };
            let expected = pack_bytes(&archive, &options, &store).unwrap();
            let received = receive(&streamed.stream, 10_007, None).unwrap();
            assert_eq!(received.spooled_bytes(), received.pages() * PAGE);
            let packed = pack_received(&streamed.archive, received, &options, &store).unwrap();
            assert_eq!(packed.layers, expected.layers, "{name}, {layout:?}");
            assert_eq!(packed.manifest, expected.manifest, "{name}, {layout:?}");
            assert_eq!(packed.facts, expected.facts, "{name}, {layout:?}");
        }
    }
}

/// What a real CRIU sent, and what its own page server wrote of that (fixtures/stream).
#[test]
fn a_real_stream_gives_what_criu_writes() {
    let files = entries(&std::fs::read(fixture("page-stream.tar.zst")).unwrap());
    let (sent, written) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut stream = Vec::new();
    let mut images = 0;
    for file in files.iter().filter(|file| file.kind == b'0') {
        let name = str::from_utf8(&file.name).unwrap();
        if let Some(name) = name.strip_prefix("dump/") {
            std::fs::write(sent.path().join(name), &file.content).unwrap();
            std::fs::write(written.path().join(name), &file.content).unwrap();
        } else if let Some(name) = name.strip_prefix("written/") {
            // CRIU's page server counts files of pages from 65537 on, a dump that writes them itself from 1 on.
            let (name, content) = match name.strip_prefix("pages-").and_then(|rest| rest.strip_suffix(".img")) {
                Some(id) => (format!("pages-{}.img", id.parse::<u32>().unwrap() - 0x1_0000), file.content.clone()),
                None => (name.to_owned(), with_own_number(&file.content)),
            };
            std::fs::write(written.path().join(name), content).unwrap();
            images += 1;
        } else {
            stream.clone_from(&file.content);
        }
    }
    assert_eq!(images, 6, "two processes and what they share");
    for folder in [&sent, &written] {
        // As runc would have it; a dump of CRIU alone is no known engine's.
        std::fs::write(folder.path().join("descriptors.json"), "[]").unwrap();
    }
    for layout in [Layout::Generations, Layout::Plain] {
        let (store, options) = (Memory::default(), PackOptions { layout, ..PackOptions::default() });
        let expected = pack(DumpSource::open(written.path(), None).unwrap(), &options, &store).unwrap();
        for piece in [1, 4_098, 4_099, usize::MAX - 1, usize::MAX] {
            let received = receive(&stream, piece, None).unwrap();
            let source = DumpSource::open(sent.path(), None).unwrap().with_pages(received);
            assert_eq!(pack(source, &options, &store).unwrap().manifest, expected.manifest, "{layout:?}, {piece}");
        }
    }
}

/// A pagemap of CRIU's page server with the number that it would have had in a dump.
fn with_own_number(pagemap: &[u8]) -> Vec<u8> {
    let mut records = Records::open(ImageKind::Pagemap, pagemap).unwrap();
    let PagemapHead { pages_id } = records.next_record().unwrap().unwrap();
    let head = |pages_id: u32| PagemapHead { pages_id }.encode_to_vec();
    let (before, after) = (head(pages_id), head(pages_id - 0x1_0000));
    let rest = &pagemap[8 + 4 + before.len()..];
    [&pagemap[..8], &(after.len() as u32).to_le_bytes(), &after, rest].concat()
}

/// A machine's dump, ordinary and streamed.
fn both(machine: &Machine, form: Form) -> (Vec<u8>, Streamed) {
    let archive = dump_with(machine, |_| form == Form::Long);
    let streamed = stream_of(&archive, form);
    (archive, streamed)
}

/// Pages that are not where they were before.
fn changed(machine: &Machine, before: Option<&Machine>) -> u64 {
    let known = |name: &str, number: u64| {
        let (_, pages) = before?.0.iter().find(|(known, _)| known == name)?;
        pages.get(&number).copied()
    };
    let pages = machine.0.iter().flat_map(|(name, pages)| pages.iter().map(move |page| (name, page)));
    pages.filter(|(name, (number, content))| known(name, **number) != Some(**content)).count() as u64
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn chains_are_those_of_ordinary_dumps(
        first in machine(),
        steps in vec((step(), 1..20_000_usize, 0..200_000_usize), 1..5),
        part_pages in 1..30_u64,
        generations in 1..5_u32,
        long in any::<bool>(),
    ) {
        let form = if long { Form::Long } else { Form::Short };
        let store = Memory::default();
        let chain = ChainLimits { generations, stored_percent: 10_000, part_bytes: part_pages * PAGE };
        let mut machine = first;
        let (archive, _) = both(&machine, form);
        let mut packed = pack_bytes(&archive, &options(None, chain), &store).unwrap();
        for (step, piece, memory_bytes) in &steps {
            let before = machine.clone();
            machine = apply(&machine, step);
            let (archive, streamed) = both(&machine, form);
            let base = Arc::new(base_of(&packed, &store));
            let with_base = PackOptions { base: Some(base.clone()), ..options(None, chain) };
            let expected = pack_bytes(&archive, &with_base, &store).unwrap();
            let goes = base.refuses_stream(with_base.member.as_ref(), &chain).is_none();
            prop_assert_eq!(goes, expected.chain.as_ref().unwrap().generations > 1);
            let limits = ReceiveLimits { memory_bytes: *memory_bytes, waiting_bytes: memory_bytes % 2, ..ReceiveLimits::default() };
            let base = Some(base).filter(|_| goes);
            let received = receive_within(&streamed.stream, *piece, base, limits).unwrap();
            prop_assert_eq!(received.changed(), changed(&machine, Some(&before).filter(|_| goes)));
            prop_assert_eq!(received.spooled_bytes(), received.changed() * PAGE);
            let over_received = pack_received(&streamed.archive, received, &options(None, chain), &store).unwrap();
            prop_assert_eq!(&over_received.layers, &expected.layers);
            prop_assert_eq!(&over_received.manifest, &expected.manifest);
            // Compared when it is packed, not when it comes.
            let received = receive(&streamed.stream, *piece, None).unwrap();
            let later = pack_received(&streamed.archive, received, &with_base, &store).unwrap();
            prop_assert_eq!(&later.manifest, &expected.manifest);
            packed = expected;
        }
    }

    #[test]
    fn anything_is_received_or_refused(
        machine in machine(),
        long in any::<bool>(),
        keep in any::<prop::sample::Index>(),
        change in vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        noise in vec(any::<u8>(), 0..100),
        piece in 1..9_000_usize,
    ) {
        let form = if long { Form::Long } else { Form::Short };
        let (archive, streamed) = both(&machine, form);
        let store = Memory::default();
        let packed = pack_bytes(&archive, &options(None, ChainLimits::default()), &store).unwrap();
        let mut stream = streamed.stream;
        stream.truncate(keep.index(stream.len()) + 1);
        for (at, byte) in change {
            let len = stream.len();
            stream[at.index(len)] = byte;
        }
        stream.extend(noise);
        for base in [None, Some(Arc::new(base_of(&packed, &store)))] {
            let received = receive(&stream, piece, base.clone()).map(|received| (received.pages(), received.changed()));
            let whole = receive(&stream, usize::MAX, base).map(|received| (received.pages(), received.changed()));
            prop_assert_eq!(format!("{received:?}"), format!("{whole:?}"));
        }
    }
}

/// More pages than a block has, and more blocks than may wait.
#[test]
fn five_percent_are_spooled() {
    let store = Memory::default();
    let mut machine = one_process(2_000);
    let (archive, _) = both(&machine, Form::Long);
    let first = pack_bytes(&archive, &options(None, ChainLimits::default()), &store).unwrap();
    for number in (0..2_000).step_by(20) {
        machine.0[0].1.insert(number, 60_000);
    }
    let (_, streamed) = both(&machine, Form::Long);
    let limits = ReceiveLimits { waiting_bytes: 2 << 20, ..ReceiveLimits::default() };
    let base = Some(Arc::new(base_of(&first, &store)));
    let received = receive_within(&streamed.stream, 65_536, base, limits).unwrap();
    assert_eq!((received.pages(), received.changed()), (2_000, 100));
    assert_eq!(received.spooled_bytes(), 100 * PAGE);
}

/// A dump of one process over a base that has one page less.
fn over_base(store: &Memory) -> (Streamed, Arc<Base>) {
    let (archive, _) = both(&one_process(5), Form::Long);
    let first = pack_bytes(&archive, &options(None, ChainLimits::default()), store).unwrap();
    (both(&one_process(6), Form::Long).1, Arc::new(base_of(&first, store)))
}

#[test]
fn what_was_compared_is_packed_over_its_base_or_not_at_all() {
    let store = Memory::default();
    let (streamed, base) = over_base(&store);
    let good = options(None, ChainLimits::default());
    let refused = |options: &PackOptions, archive: &[u8]| {
        let received = receive(&streamed.stream, 4096, Some(base.clone())).unwrap();
        match pack_received(archive, received, options, &store) {
            Err(PackError::Received(error @ ReceivedError::NotOverBase { .. })) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let other = PackOptions { member: Some("n".parse().unwrap()), ..good.clone() };
    assert!(base.refuses_stream(other.member.as_ref(), &other.chain).unwrap().contains("is of m, not of n"));
    assert!(refused(&other, &streamed.archive).contains("is of m, not of n"));
    for layout in [Layout::Split, Layout::Plain] {
        let said = refused(&PackOptions { layout, ..good.clone() }, &streamed.archive);
        assert!(said.contains("do not go into generations"), "{said}");
    }
    let mut own_chain = tar::Builder::new(streamed.archive[..streamed.archive.len() - 1024].to_vec());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    own_chain.append_link(&mut header, "checkpoint/parent", "../pre-checkpoint").unwrap();
    let own_chain = own_chain.into_inner().unwrap();
    let received = receive(&streamed.stream, 4096, Some(base.clone())).unwrap();
    let packed = pack_received(&own_chain, received, &good, &store);
    assert!(matches!(packed, Err(PackError::LateChain { .. })), "{packed:?}");

    let few = ChainLimits { generations: 1, ..ChainLimits::default() };
    assert!(base.refuses_stream(good.member.as_ref(), &few).unwrap().contains("1 are the limit"));
    assert_eq!(base.refuses_stream(good.member.as_ref(), &good.chain), None);
}

#[test]
fn stream_and_dump_have_to_be_of_one_another() {
    let store = Memory::default();
    let good = options(None, ChainLimits::default());
    let (archive, streamed) = both(&one_process(5), Form::Long);
    let refused = |archive: &[u8], stream: &[u8]| {
        let received = receive(stream, 4096, None).unwrap();
        match pack_received(archive, received, &good, &store) {
            Err(PackError::Received(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let error = refused(&archive, &streamed.stream);
    assert!(matches!(&error, ReceivedError::OwnPages { .. }), "{error}");
    let pages_only = without(&archive, |name| name.starts_with("checkpoint/pagemap-"));
    assert!(matches!(refused(&pages_only, &streamed.stream), ReceivedError::OwnPages { .. }));

    let two = Machine(vec![one_process(5).0.remove(0), ("pagemap-15.img".to_owned(), one_process(2).0.remove(0).1)]);
    let (_, of_two) = both(&two, Form::Long);
    let image = PageImage::Task(15);
    let error = refused(&streamed.archive, &of_two.stream);
    assert!(matches!(error, ReceivedError::Foreign { image: foreign } if foreign == image), "{error}");
    let error = refused(&of_two.archive, &streamed.stream);
    assert!(matches!(&error, ReceivedError::Missing { image: missing, .. } if *missing == image), "{error}");

    // What an earlier checkpoint left behind is of a process that the dump does not have.
    let left = Machine(vec![one_process(5).0.remove(0), ("pagemap-7.img".to_owned(), one_process(2).0.remove(0).1)]);
    let received = receive(&streamed.stream, 4096, None).unwrap();
    pack_received(&both(&left, Form::Long).1.archive, received, &good, &store).unwrap();
}

#[test]
fn an_older_criu_begins_a_new_chain() {
    let store = Memory::default();
    let (_, base) = over_base(&store);
    let (archive, streamed) = both(&one_process(5), Form::Short);
    let received = receive(&streamed.stream, 4096, Some(base)).unwrap();
    assert_eq!(received.changed(), 5);
    assert!(received.base().is_none());
    let good = options(None, ChainLimits::default());
    let packed = pack_received(&streamed.archive, received, &good, &store).unwrap();
    assert_eq!(packed.manifest, pack_bytes(&archive, &good, &store).unwrap().manifest);
    assert!(packed.notes[0].contains("written by CRIU 4.2 or newer"), "{:?}", packed.notes);
}

#[test]
fn what_is_not_all_of_a_dump_is_refused() {
    let image = 42 << 8 | 1;
    let open = || head(Form::Long, OPEN, 0, 0, image);
    let add = |flags: u32, pages, address| head(Form::Long, flags << 16 | ADD_F, pages, address, image);
    let page = || vec![7; 4096];
    let refused = |messages: &[Vec<u8>], limits: ReceiveLimits| {
        let mut receiving = Receiving::new(&std::env::temp_dir(), None, limits);
        let error = receiving.take(&messages.concat()).unwrap_err();
        assert!(matches!(receiving.take(&[]), Err(ReceiveError::Stream(PageStreamError::Broken))));
        assert!(matches!(receiving.finish(), Err(ReceiveError::Stream(PageStreamError::Broken))));
        match error {
            ReceiveError::Stream(error) => error,
            other => panic!("{other:?}"),
        }
    };
    let (all, whose) = (ReceiveLimits::default(), PageImage::Task(42));
    for flags in [1, 2] {
        let error = refused(&[open(), add(flags, 1, 0)], all);
        assert_eq!(error, PageStreamError::Elsewhere { image: whose, flags });
    }
    for address in [0, 0x1000] {
        let error = refused(&[open(), add(4, 2, 0), page(), page(), add(4, 1, address)], all);
        assert_eq!(error, PageStreamError::Order { image: whose, address });
    }
    let other = head(Form::Long, OPEN, 0, 0, 43 << 8 | 1);
    let error = refused(&[open(), other.clone(), open()], all);
    assert_eq!(error, PageStreamError::Twice { image: whose });
    let too_much = |what, limit| PageStreamError::TooMuch { what, limit };
    let error = refused(&[open(), other], ReceiveLimits { images: 1, ..all });
    assert_eq!(error, too_much("images", 1));
    assert_eq!(refused(&[open(), add(4, 1 << 40, 0)], all), too_much("pages", 1 << 30));
    let few = ReceiveLimits { pagemap_bytes: 30, ..all };
    let error = refused(&[open(), add(4, 1, 0), page(), add(4, 1, 0x1000), page()], few);
    assert_eq!(error, too_much("bytes of pagemaps", 30));
}

#[test]
fn answers_go_back_in_order_and_the_last_one_is_the_holders() {
    let (_, streamed) = both(&one_process(3), Form::Long);
    let mut receiving = Receiving::new(&std::env::temp_dir(), None, ReceiveLimits::default());
    let end = streamed.stream.len();
    // PARENT and OPEN2: four bytes and one, neither has a parent.
    assert_eq!(receiving.take(&streamed.stream[..64]).unwrap(), [0; 5]);
    assert!(receiving.take(&streamed.stream[64..end - 1]).unwrap().is_empty());
    assert!(!receiving.is_closed());
    assert!(receiving.take(&streamed.stream[end - 1..]).unwrap().is_empty());
    assert!(receiving.is_closed());
    assert_eq!(receiving.pages(), 3);
    assert!(matches!(receiving.take(&[0]), Err(ReceiveError::Stream(PageStreamError::BehindClose))));
}

#[test]
fn every_truncation_is_torn() {
    let (_, streamed) = both(&one_process(3), Form::Long);
    for end in 0..streamed.stream.len() {
        let result = receive(&streamed.stream[..end], usize::MAX, None);
        assert!(matches!(result, Err(ReceiveError::Stream(PageStreamError::Torn { .. }))), "{end}");
    }
}

#[test]
fn a_spool_that_cannot_be_written_is_an_error() {
    let (_, streamed) = both(&one_process(1_000), Form::Long);
    let nowhere = std::path::Path::new("/nowhere/at/all");
    let limits = ReceiveLimits { memory_bytes: 0, ..ReceiveLimits::default() };
    let mut receiving = Receiving::new(nowhere, None, limits);
    let error = match receiving.take(&streamed.stream) {
        Ok(_) => receiving.finish().unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error, ReceiveError::Spool(_)), "{error}");
    // The sender of more than may wait is told at once.
    let mut receiving = Receiving::new(nowhere, None, ReceiveLimits { waiting_bytes: 0, ..limits });
    let end = streamed.stream.len() - 32;
    let mut more = streamed.stream[..end].to_vec();
    more.extend(
        (1_000..9_000_u64)
            .flat_map(|page| [head(Form::Long, 4 << 16 | ADD_F, 1, page * PAGE, 1 << 8 | 1), vec![1; 4096]].concat()),
    );
    let error = receiving.take(&more).unwrap_err();
    assert!(matches!(error, ReceiveError::Spool(_)), "{error}");
    let mut in_memory = Receiving::new(nowhere, None, ReceiveLimits::default());
    in_memory.take(&streamed.stream).unwrap();
    assert!(in_memory.finish().is_ok());
}
