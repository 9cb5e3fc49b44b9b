//! Writes layers: tar, hashed, compressed, hashed again and stored by a thread of its own, so that reading the dump,
//! compressing and sending go on side by side.
//!
//! ```text
//! entries -> chunks of 256 KiB -> (thread) diff_id -> compression -> digest -> BlobSink
//! ```

use std::io::{self, Read, Write};
use std::mem;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use crate::archive::{ArchiveError, CHUNK, END, Encoder, Entry, padding, write_header};
use crate::generation::{FirstPage, Link};
use crate::{BlobSink, Compression, Descriptor, Digest, HashWriter, LayerContent};

/// Chunks on their way to a layer's thread. More would only use more memory.
const CHUNKS_IN_FLIGHT: usize = 4;

/// One layer as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Media type, digest and size of the blob.
    pub descriptor: Descriptor,
    /// Digest of the plain tar, as the config's `rootfs.diff_ids` lists it.
    pub diff_id: Digest,
    /// Bytes of the plain tar.
    pub diff_size: u64,
    /// What the layer holds.
    pub content: LayerContent,
    /// The link of a chain of generations that it is.
    pub link: Option<Link>,
    /// The first page of the link; absent where it has none, or where nobody said.
    pub first_page: Option<FirstPage>,
}

/// A layer that is being written. Dropped without [`LayerWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct LayerWriter<'scope> {
    chunk: Vec<u8>,
    filled: usize,
    chunks: SyncSender<Chunk>,
    used: Receiver<Vec<u8>>,
    plain_bytes: u64,
    thread: ScopedJoinHandle<'scope, io::Result<LayerInfo>>,
}

#[derive(Debug)]
enum Chunk {
    Bytes(Vec<u8>, usize),
    /// The layer is complete. Without it, the end of the channel means that writing was given up.
    End,
}

/// Why an entry did not get into a layer.
#[derive(Debug)]
pub(crate) enum AppendError {
    /// Its content could not be read.
    Content(ArchiveError),
    /// The layer's thread has failed; [`LayerWriter::finish`] says why.
    Layer,
}

impl<'scope> LayerWriter<'scope> {
    pub fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        sink: Box<dyn BlobSink>,
        compression: Compression,
        content: LayerContent,
        (link, first_page): (Option<Link>, Option<FirstPage>),
    ) -> io::Result<Self> {
        let (chunks, incoming) = sync_channel(CHUNKS_IN_FLIGHT);
        let (give_back, used) = sync_channel(CHUNKS_IN_FLIGHT + 2);
        let write = move || {
            let written = write_layer(sink, compression, content, &incoming, &give_back);
            written.map(|layer| LayerInfo { link, first_page, ..layer })
        };
        let thread = Builder::new().name(format!("layer {content}")).spawn_scoped(scope, write)?;
        Ok(Self { chunk: vec![0; CHUNK], filled: 0, chunks, used, plain_bytes: 0, thread })
    }

    /// Bytes of the tar so far.
    pub fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Adds an entry and the bytes that its reader gives.
    pub fn append(&mut self, entry: &Entry, content: &mut (impl Read + ?Sized)) -> Result<(), AppendError> {
        write_header(entry, 0, self).map_err(|_| AppendError::Layer)?;
        let mut left = entry.size();
        while left > 0 {
            let space = &mut self.chunk[self.filled..];
            let part = left.min(space.len() as u64) as usize;
            let read =
                content.read(&mut space[..part]).map_err(|error| AppendError::Content(ArchiveError::read(error)))?;
            if read == 0 {
                return Err(AppendError::Content(ArchiveError::Truncated));
            }
            left -= read as u64;
            self.advance(read).map_err(|_| AppendError::Layer)?;
        }
        self.write_all(padding(entry.size())).map_err(|_| AppendError::Layer)
    }

    /// Ends the tar and hands back the thread that compresses and stores the rest of it.
    pub fn finish(mut self) -> ScopedJoinHandle<'scope, io::Result<LayerInfo>> {
        // A thread that is gone has failed, and says so when it is joined.
        let written = self.write_all(&END).and_then(|()| self.send_chunk());
        if written.is_ok() {
            drop(self.chunks.send(Chunk::End));
        }
        self.thread
    }

    fn advance(&mut self, bytes: usize) -> io::Result<()> {
        self.filled += bytes;
        self.plain_bytes += bytes as u64;
        if self.filled == self.chunk.len() { self.send_chunk() } else { Ok(()) }
    }

    /// All chunks but the last are full, however the input came in.
    fn send_chunk(&mut self) -> io::Result<()> {
        let next = match self.used.try_recv() {
            Ok(chunk) => chunk,
            Err(TryRecvError::Empty) => vec![0; CHUNK],
            Err(TryRecvError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        let chunk = Chunk::Bytes(mem::replace(&mut self.chunk, next), mem::take(&mut self.filled));
        self.chunks.send(chunk).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for LayerWriter<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let space = &mut self.chunk[self.filled..];
        let part = buf.len().min(space.len());
        space[..part].copy_from_slice(&buf[..part]);
        self.advance(part)?;
        Ok(part)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a layer's thread does. It commits nothing unless the writer said that the layer is complete.
fn write_layer(
    sink: Box<dyn BlobSink>,
    compression: Compression,
    content: LayerContent,
    chunks: &Receiver<Chunk>,
    give_back: &SyncSender<Vec<u8>>,
) -> io::Result<LayerInfo> {
    if compression == Compression::None {
        // The tar is the blob: one digest is enough.
        let mut tar = HashWriter::new(sink);
        write_chunks(chunks, give_back, &mut tar)?;
        let (sink, digest, size) = tar.finish();
        sink.commit(digest, size)?;
        let descriptor = Descriptor { media_type: compression.layer_media_type(), digest, size };
        return Ok(LayerInfo { descriptor, diff_id: digest, diff_size: size, content, link: None, first_page: None });
    }
    let mut tar = HashWriter::new(Encoder::new(HashWriter::new(sink), compression));
    write_chunks(chunks, give_back, &mut tar)?;
    let (encoder, diff_id, diff_size) = tar.finish();
    let (sink, digest, size) = encoder.finish()?.finish();
    sink.commit(digest, size)?;
    let descriptor = Descriptor { media_type: compression.layer_media_type(), digest, size };
    Ok(LayerInfo { descriptor, diff_id, diff_size, content, link: None, first_page: None })
}

/// Writes what comes until the layer is complete; an error if it never will be.
fn write_chunks(chunks: &Receiver<Chunk>, give_back: &SyncSender<Vec<u8>>, to: &mut impl Write) -> io::Result<()> {
    loop {
        match chunks.recv() {
            Ok(Chunk::Bytes(chunk, filled)) => {
                to.write_all(&chunk[..filled])?;
                // The writer may have finished and be gone; then nobody needs the memory.
                drop(give_back.try_send(chunk));
            }
            Ok(Chunk::End) => return Ok(()),
            Err(_) => return Err(io::Error::other("the layer was given up")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};
    use std::thread;

    use super::*;
    use crate::archive::EntryKind;

    /// Takes some bytes at a time and forgets them; fails after a number of them, if one is given.
    #[derive(Clone, Default)]
    struct Sink {
        seed: usize,
        room: Option<usize>,
        committed: Arc<Mutex<Vec<Digest>>>,
    }

    impl Write for Sink {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.seed = next(self.seed);
            let part = buf.len().min(self.seed % 50_000 + 1);
            if let Some(room) = &mut self.room {
                *room = room.checked_sub(part).ok_or(io::ErrorKind::StorageFull)?;
            }
            Ok(part)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl BlobSink for Sink {
        fn commit(self: Box<Self>, digest: Digest, _: u64) -> io::Result<()> {
            self.committed.lock().unwrap().push(digest);
            Ok(())
        }
    }

    /// Gives its bytes in pieces of any size.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.1 = next(self.1);
            let part = buf.len().min(self.1 % 300_000 + 1);
            self.0.read(&mut buf[..part])
        }
    }

    fn next(seed: usize) -> usize {
        (seed.wrapping_mul(25_214_903_917).wrapping_add(11) % (1 << 48)) >> 3
    }

    fn file(size: usize) -> Entry {
        let (name, kind) = (b"pages".to_vec(), EntryKind::File { size: size as u64 });
        Entry { name, kind, mode: 0o600, uid: 0, gid: 0, mtime: 0, xattrs: BTreeMap::new() }
    }

    fn write(content: &[u8], compression: Compression, sink: Sink) -> io::Result<LayerInfo> {
        let seed = sink.seed;
        thread::scope(|scope| {
            let mut layer =
                LayerWriter::start(scope, Box::new(sink), compression, LayerContent::Pages, (None, None)).unwrap();
            for part in content.chunks(3_000_000) {
                if layer.append(&file(part.len()), &mut Pieces(part, seed)).is_err() {
                    break;
                }
            }
            layer.finish().join().unwrap()
        })
    }

    fn content() -> Vec<u8> {
        (0..2_500_000_u32).flat_map(|n| ((n / 5).wrapping_mul(2_654_435_761) >> 18).to_le_bytes()).collect()
    }

    #[test]
    fn a_layer_depends_on_its_content_alone() {
        let content = content();
        for compression in Compression::ALL {
            let first = write(&content, *compression, Sink::default()).unwrap();
            assert_eq!(first.diff_size % 512, 0);
            for seed in 1..10 {
                let again = write(&content, *compression, Sink { seed, ..Sink::default() }).unwrap();
                assert_eq!(again, first, "{compression}, seed {seed}");
            }
        }
    }

    #[test]
    fn a_failing_store_fails_the_layer() {
        let content = content();
        for room in [0, 1_000_000] {
            let sink = Sink { room: Some(room), ..Sink::default() };
            let error = write(&content, Compression::None, sink.clone()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert!(sink.committed.lock().unwrap().is_empty());
        }
    }

    #[test]
    fn a_layer_that_is_given_up_is_not_kept() {
        let sink = Sink::default();
        thread::scope(|scope| {
            let layer =
                LayerWriter::start(scope, Box::new(sink.clone()), Compression::Zstd, LayerContent::State, (None, None));
            let mut layer = layer.unwrap();
            assert!(layer.append(&file(10), &mut io::repeat(1).take(10)).is_ok());
            let error = layer.append(&file(10), &mut io::empty());
            assert!(matches!(error, Err(AppendError::Content(ArchiveError::Truncated))));
        });
        assert!(sink.committed.lock().unwrap().is_empty());
    }
}
