//! Memory is constant. A test program of its own, since the system counts memory by process.

use std::fs::{self, File};
use std::io::{self, BufWriter, Cursor, Read, Write};
use std::path::Path;
use std::sync::Arc;

use image_format::page_server::{ReceiveLimits, Receiving};
use image_format::{
    Base, BlobSink, BlobSource, BlobStore, CheckpointImage, Compression, Descriptor, Digest, DumpSource, LayerContent,
    Limits, PackOptions, UnpackOptions, pack, unpack_archive,
};

/// Bytes that packing and unpacking may need at most, for a dump of any size.
const BOUND: u64 = 64 << 20;
/// Twelve times the bound; three layers of pages.
const PAGES_FILE: u64 = 128 << 20;
const PAGES_FILES: u64 = 6;

/// Blobs as files, so that the store does not count.
struct Folder<'a>(&'a Path);

struct Sink {
    file: File,
    temporary: tempfile::TempPath,
    folder: std::path::PathBuf,
}

impl BlobStore for Folder<'_> {
    fn create(&self) -> io::Result<Box<dyn BlobSink>> {
        let (file, temporary) = tempfile::NamedTempFile::new_in(self.0)?.into_parts();
        Ok(Box::new(Sink { file, temporary, folder: self.0.to_owned() }))
    }
}

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.file.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobSink for Sink {
    fn commit(self: Box<Self>, digest: Digest, _: u64) -> io::Result<()> {
        self.temporary.persist(self.folder.join(digest.hex()))?;
        Ok(())
    }
}

impl BlobSource for Folder<'_> {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(File::open(self.0.join(descriptor.digest.hex()))?))
    }
}

/// Memory as processes have it: pages that are empty, that repeat, and that do not compress.
struct Pages(u64);

impl Read for Pages {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        for page in buf.chunks_mut(4096) {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut word = self.0 >> 32;
            match word % 3 {
                0 => page.fill(0),
                1 => page.fill(word as u8),
                _ => page.fill_with(|| {
                    word ^= word << 13;
                    word ^= word >> 7;
                    word ^= word << 17;
                    word as u8
                }),
            }
        }
        Ok(buf.len())
    }
}

fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// A real dump with far more pages than it had.
fn write_dump(path: &Path) {
    let real = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/dumps/podman-none.tar");
    let mut dump = tar::Builder::new(zstd::Encoder::new(BufWriter::new(File::create(path).unwrap()), 1).unwrap());
    for entry in tar::Archive::new(File::open(real).unwrap()).entries().unwrap() {
        let entry = entry.unwrap();
        if !entry.path_bytes().starts_with(b"checkpoint/pages-") {
            dump.append(&entry.header().clone(), entry).unwrap();
        }
    }
    for number in 1..=PAGES_FILES {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(PAGES_FILE);
        let pages = io::BufReader::with_capacity(64 << 10, Pages(number)).take(PAGES_FILE);
        dump.append_data(&mut header, format!("checkpoint/pages-{number}.img"), pages).unwrap();
    }
    dump.into_inner().unwrap().finish().unwrap();
}

#[test]
fn memory_does_not_grow_with_the_dump() {
    let scratch = tempfile::tempdir().unwrap();
    let (dump, blobs) = (scratch.path().join("dump"), scratch.path().join("blobs"));
    fs::create_dir(&blobs).unwrap();
    write_dump(&dump);
    for compression in [Compression::Zstd, Compression::Gzip] {
        let store = Folder(&blobs);
        let options = PackOptions { compression, ..PackOptions::default() };
        let packed = pack(DumpSource::open(&dump, None).unwrap(), &options, &store).unwrap();
        let pages = packed.layers.iter().filter(|layer| layer.content == LayerContent::Pages);
        assert_eq!(pages.count() as u64, PAGES_FILES / 2, "two files are over 256 MiB");
        let image = CheckpointImage::parse(&packed.manifest).unwrap();
        unpack_archive(&image, &store, Compression::Zstd, &UnpackOptions::default(), io::sink()).unwrap();
        assert!(peak() < BOUND, "{compression}: {} bytes", peak());
    }
    let base = generations(scratch.path(), &blobs);
    assert!(peak() < BOUND, "generations: {} bytes", peak());
    receive(scratch.path(), &base);
    assert!(peak() < BOUND, "a stream of pages: {} bytes", peak());
    refuse_bombs(scratch.path());
    assert!(peak() < BOUND, "bombs: {} bytes", peak());
}

/// Input that is small and asks for much.
fn refuse_bombs(scratch: &Path) {
    let zeros = |mut header: tar::Header, size: u64, length: u64| {
        header.set_size(size);
        header.set_cksum();
        Cursor::new(header.as_bytes().to_vec()).chain(io::repeat(0).take(length))
    };
    let file = tar::Header::new_gnu();
    let mut extension = tar::Header::new_ustar();
    extension.set_entry_type(tar::EntryType::XHeader);
    let mut long_name = tar::Header::new_gnu();
    long_name.set_entry_type(tar::EntryType::GNULongName);
    for bomb in [zeros(file, 1 << 62, 1 << 30), zeros(extension, 1 << 30, 1 << 30), zeros(long_name, 1 << 30, 1 << 30)]
    {
        let path = scratch.join("bomb");
        zstd::stream::copy_encode(bomb, File::create(&path).unwrap(), 1).unwrap();
        let blobs = Folder(scratch);
        assert!(pack(DumpSource::open(&path, None).unwrap(), &PackOptions::default(), &blobs).is_err());
    }
}

/// The same with pages that are compared: half a gigabyte, all of it other pages than before, and then put together again.
fn generations(scratch: &Path, blobs: &Path) -> Arc<Base> {
    let dump = scratch.join("generation");
    let mut base: Option<Arc<Base>> = None;
    for seed in [1, 2] {
        write_whole_dump(&dump, seed);
        let store = Folder(blobs);
        let options =
            PackOptions { base, compression: Compression::None, scratch: scratch.into(), ..PackOptions::default() };
        let packed = pack(DumpSource::open(&dump, None).unwrap(), &options, &store).unwrap();
        assert_eq!(packed.chain.as_ref().unwrap().generations, seed as u32, "{:?}", packed.notes);
        let image = CheckpointImage::parse(&packed.manifest).unwrap();
        let options = UnpackOptions { scratch: scratch.into(), ..UnpackOptions::default() };
        unpack_archive(&image, &store, Compression::None, &options, io::sink()).unwrap();
        base = Some(Base::load(&image, &store, &Limits::default(), scratch).unwrap().into());
    }
    base.unwrap()
}

/// As much in a stream, all of it other pages than those of the base, faster than they are spooled.
fn receive(scratch: &Path, base: &Arc<Base>) {
    let head = |command: u32, pages: u64, image: u64| {
        let numbers = [pages, if command == 6 | 4 << 16 { 0x1_0000 } else { 0 }, image];
        [command.into(), numbers[0], numbers[1], numbers[2]].into_iter().flat_map(u64::to_ne_bytes).collect::<Vec<_>>()
    };
    let limits = ReceiveLimits { waiting_bytes: 8 << 20, memory_bytes: 8 << 20, ..ReceiveLimits::default() };
    let mut receiving = Receiving::new(scratch, Some(base.clone()), limits);
    receiving.take(&head(4, 0, 1 << 8 | 1)).unwrap();
    receiving.take(&head(6 | 4 << 16, 4 * PAGES_FILE / 4096, 1 << 8 | 1)).unwrap();
    let mut piece = vec![0; 1 << 18];
    let mut pages = Pages(3);
    for _ in 0..4 * PAGES_FILE / piece.len() as u64 {
        pages.read_exact(&mut piece).unwrap();
        receiving.take(&piece).unwrap();
    }
    receiving.take(&head(0x1023, 0, 0)).unwrap();
    let received = receiving.finish().unwrap();
    assert_eq!(received.spooled_bytes(), received.changed() * 4096);
    assert!(received.changed() > received.pages() / 2, "pages of zeros are everywhere");
}

fn write_whole_dump(path: &Path, seed: u64) {
    let real = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/dumps/podman-none.tar");
    let mut dump = tar::Builder::new(BufWriter::new(File::create(path).unwrap()));
    for entry in tar::Archive::new(File::open(real).unwrap()).entries().unwrap() {
        let entry = entry.unwrap();
        let name = entry.path_bytes().into_owned();
        if !name.starts_with(b"checkpoint/pages-") && !name.starts_with(b"checkpoint/pagemap-") {
            dump.append(&entry.header().clone(), entry).unwrap();
        }
    }
    let (pages, size) = (4 * PAGES_FILE / 4096, 4 * PAGES_FILE);
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o600);
    // pages_id 1; address 0x10000, no short count, present, that many pages.
    let mut entry = vec![0x08, 0x80, 0x80, 0x04, 0x10, 0, 0x20, 4, 0x28];
    let mut left = pages;
    while left > 0 {
        entry.push((left & 0x7f) as u8 | if left > 0x7f { 0x80 } else { 0 });
        left >>= 7;
    }
    let mut map: Vec<u8> = [0x5456_4319_u32, 0x5608_4025, 2].iter().flat_map(|word| word.to_le_bytes()).collect();
    map.extend([8, 1]);
    map.extend((entry.len() as u32).to_le_bytes());
    map.extend(entry);
    header.set_size(map.len() as u64);
    dump.append_data(&mut header, "checkpoint/pagemap-1.img", &map[..]).unwrap();
    header.set_size(size);
    let content = io::BufReader::with_capacity(64 << 10, Pages(seed)).take(size);
    dump.append_data(&mut header, "checkpoint/pages-1.img", content).unwrap();
    dump.into_inner().unwrap().flush().unwrap();
}
