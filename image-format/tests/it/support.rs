//! What the tests share: a store in memory, archives made by hand, and where the real dumps lie.

use std::collections::HashMap;
use std::io::{self, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use image_format::{
    BlobSink, BlobSource, BlobStore, CheckpointImage, Compression, Descriptor, Digest, DumpSource, PackOptions,
    PackedImage, UnpackOptions, pack, unpack_archive,
};

/// Blobs by digest.
#[derive(Debug, Clone, Default)]
pub struct Memory(pub Arc<Mutex<HashMap<Digest, Vec<u8>>>>);

struct Sink(Memory, Vec<u8>);

impl BlobStore for Memory {
    fn create(&self) -> io::Result<Box<dyn BlobSink>> {
        Ok(Box::new(Sink(self.clone(), Vec::new())))
    }
}

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.1.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobSink for Sink {
    fn commit(self: Box<Self>, digest: Digest, size: u64) -> io::Result<()> {
        assert_eq!((Digest::of(&self.1), self.1.len() as u64), (digest, size), "a blob under a wrong name");
        self.0.0.lock().unwrap().insert(digest, self.1);
        Ok(())
    }
}

impl BlobSource for Memory {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send>> {
        let blob = self.0.lock().unwrap().get(&descriptor.digest).cloned();
        Ok(Box::new(Cursor::new(blob.ok_or(io::ErrorKind::NotFound)?)))
    }
}

impl Memory {
    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// A file below fixtures/dumps.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/dumps").join(name)
}

pub fn pack_path(path: &Path, options: &PackOptions, store: &Memory) -> PackedImage {
    let source = DumpSource::open(path, None).unwrap();
    pack(source, options, store).unwrap_or_else(|error| panic!("{}: {error:?}", path.display()))
}

/// Packs an archive that exists in memory only.
pub fn pack_bytes(bytes: &[u8], options: &PackOptions, store: &Memory) -> Result<PackedImage, image_format::PackError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dump");
    std::fs::write(&path, bytes).unwrap();
    pack(DumpSource::open(&path, None).unwrap(), options, store)
}

pub fn image_of(packed: &PackedImage) -> CheckpointImage {
    CheckpointImage::parse(&packed.manifest).unwrap()
}

pub fn archive_of(packed: &PackedImage, store: &Memory) -> Vec<u8> {
    unpack_archive(&image_of(packed), store, Compression::None, &UnpackOptions::default(), Vec::new()).unwrap()
}

/// One entry of an archive, as another reader sees it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct File {
    pub name: Vec<u8>,
    pub kind: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub target: Option<Vec<u8>>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub content: Vec<u8>,
}

/// The entries of a plain or compressed archive, by the tar crate's own reader.
pub fn entries(bytes: &[u8]) -> Vec<File> {
    let plain: Box<dyn Read> = match Compression::of_content(bytes) {
        Compression::None => Box::new(bytes),
        Compression::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
        Compression::Zstd => Box::new(zstd::Decoder::new(bytes).unwrap()),
    };
    let mut archive = tar::Archive::new(plain);
    let mut entries = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let xattrs = entry.pax_extensions().unwrap().into_iter().flatten().filter_map(|record| {
            let record = record.unwrap();
            Some((record.key_bytes().strip_prefix(b"SCHILY.xattr.")?.to_vec(), record.value_bytes().to_vec()))
        });
        let xattrs = xattrs.collect();
        let header = entry.header();
        let name = entry.path_bytes();
        let name = name.strip_prefix(b"./").unwrap_or(&name);
        entries.push(File {
            name: name.strip_suffix(b"/").unwrap_or(name).to_vec(),
            kind: if header.entry_type().is_gnu_sparse() { b'0' } else { header.entry_type().as_byte() },
            mode: header.mode().unwrap(),
            uid: header.uid().unwrap(),
            gid: header.gid().unwrap(),
            target: entry.link_name_bytes().map(|target| target.into_owned()),
            xattrs,
            content,
        });
    }
    entries
}

pub fn sorted(mut entries: Vec<File>) -> Vec<File> {
    entries.sort();
    entries
}
