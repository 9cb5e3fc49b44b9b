//! Pages that came in a stream: the image is the one that CRIU's own files would have given.

use std::io::Read;
use std::sync::Arc;

use crate::support::{File, Memory, entries, fixture, pack_bytes};
use image_format::criu::{ImageKind, PagemapEntry, PagemapHead, Records};
use image_format::page_server::{Form, ReceiveError, ReceiveLimits, Received, Receiving};
use image_format::{Base, Compression, DumpSource, Layout, PackError, PackOptions, PackedImage, pack};

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
    for piece in stream.chunks(piece) {
        receiving.take(piece)?;
    }
    assert!(receiving.is_closed() || receiving.progress().0 < u64::MAX);
    receiving.finish()
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
