//! Lets the format, which is synchronous, write into and read from a store, which is not.

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::sync::Arc;

use image_format::{BlobSink, BlobSource, BlobStore, Descriptor, Digest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle;

use crate::{BlobReader, BlobWriter, Store};

/// Bytes handed over at a time: large enough that changing worlds costs nothing.
const PIECE: usize = 1 << 20;
/// Writes of this size are not gathered: copying them would cost more.
const LARGE: usize = 64 << 10;

/// A store for use on threads that may block: inside `spawn_blocking`, or on threads of one's own.
///
/// Called from a task of the runtime itself, it would block that task, and tokio panics instead. Each open stream
/// holds one piece of 1 MiB here and whatever the store holds. Errors keep the [`crate::StoreError`] as their source.
#[derive(Clone)]
pub struct Bridge {
    handle: Handle,
    store: Arc<dyn Store>,
}

impl Bridge {
    /// A bridge that lets the store work on `handle`'s runtime.
    #[must_use]
    pub fn new(handle: Handle, store: Arc<dyn Store>) -> Self {
        Self { handle, store }
    }
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridge").field("store", &self.store).finish_non_exhaustive()
    }
}

impl BlobStore for Bridge {
    fn create(&self) -> io::Result<Box<dyn BlobSink>> {
        let writer = self.handle.block_on(self.store.create_blob()).map_err(io::Error::other)?;
        let stream = Stream { handle: self.handle.clone(), stream: Some(writer) };
        Ok(Box::new(Sink { stream, piece: Vec::new() }))
    }
}

impl BlobSource for Bridge {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send>> {
        let reader = self.handle.block_on(self.store.read_blob(descriptor)).map_err(io::Error::other)?;
        let stream = Stream { handle: self.handle.clone(), stream: Some(reader) };
        Ok(Box::new(BufReader::with_capacity(PIECE, stream)))
    }
}

/// Gathers small writes. Not a `BufWriter`, because that would still send its buffer when an unwanted blob is dropped.
struct Sink {
    stream: Stream<Box<dyn BlobWriter>>,
    piece: Vec<u8>,
}

impl Sink {
    fn spill(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let writer = self.stream.stream.as_mut().ok_or_else(finished)?;
        self.stream.handle.block_on(writer.write_all(&self.piece))?;
        self.piece.clear();
        Ok(())
    }
}

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.len() >= LARGE {
            self.spill()?;
            let writer = self.stream.stream.as_mut().ok_or_else(finished)?;
            self.stream.handle.block_on(writer.write_all(buf))?;
            return Ok(buf.len());
        }
        if self.piece.len() == PIECE {
            self.spill()?;
        }
        let count = buf.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&buf[..count]);
        Ok(count)
    }

    /// Hands on what is gathered. Nothing is durable before the commit, so nothing is waited for.
    fn flush(&mut self) -> io::Result<()> {
        self.spill()
    }
}

impl BlobSink for Sink {
    fn commit(mut self: Box<Self>, digest: Digest, size: u64) -> io::Result<()> {
        self.spill()?;
        let writer = self.stream.stream.take().ok_or_else(finished)?;
        self.stream.handle.block_on(writer.commit(&digest, size)).map_err(io::Error::other)
    }
}

/// An async stream that is used and dropped with its runtime at hand.
struct Stream<S> {
    handle: Handle,
    stream: Option<S>,
}

fn finished() -> io::Error {
    io::Error::other("the stream is finished")
}

impl Read for Stream<BlobReader> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.handle.block_on(self.stream.as_mut().ok_or_else(finished)?.read(buf))
    }
}

impl<S> Drop for Stream<S> {
    fn drop(&mut self) {
        // Closing a connection or a file may need the runtime's timers and threads.
        let _runtime = self.handle.enter();
        self.stream = None;
    }
}
