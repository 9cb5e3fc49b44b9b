//! Blobs of a layout as async streams: the file system work and the hashing run on the blocking threads, one piece
//! ahead of the consumer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use image_format::{Descriptor, Digest, HashReader, HashWriter};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::task::{JoinHandle, spawn_blocking};

use super::folder::Folder;
use crate::{BlobWriter, StoreError};

/// Bytes that move between threads at a time; a stream holds two such pieces.
pub(super) const PIECE: usize = 512 << 10;

/// Reads a blob and fails at its end when it does not match.
pub(super) struct BlobFileReader {
    ready: Vec<u8>,
    taken: usize,
    next: Next,
}

enum Next {
    Reading(JoinHandle<io::Result<(Option<Source>, Vec<u8>)>>),
    End,
    Failed,
}

struct Source {
    folder: Arc<Folder>,
    file: HashReader<File>,
    left: u64,
    descriptor: Descriptor,
}

impl BlobFileReader {
    /// To be called where a runtime is: reading starts at once.
    pub(super) fn new(folder: Arc<Folder>, file: File, descriptor: Descriptor) -> Self {
        let source = Source { folder, file: HashReader::new(file), left: descriptor.size, descriptor };
        Self { ready: Vec::new(), taken: 0, next: Next::Reading(spawn_blocking(|| source.read(Vec::new()))) }
    }
}

impl Source {
    /// The next piece, and the source unless that was the last one.
    fn read(mut self, mut piece: Vec<u8>) -> io::Result<(Option<Self>, Vec<u8>)> {
        piece.clear();
        let wanted = self.left.min(PIECE as u64);
        let read = (&mut self.file).take(wanted).read_to_end(&mut piece)? as u64;
        self.left -= read;
        if read == wanted && self.left > 0 {
            return Ok((Some(self), piece));
        }
        let (_, digest, size) = self.file.finish();
        let Descriptor { digest: expected, size: expected_size, .. } = self.descriptor;
        let reason = if size != expected_size {
            format!("it ended after {size} of {expected_size} bytes")
        } else if digest != expected {
            format!("its bytes have the digest {digest}")
        } else {
            return Ok((None, piece));
        };
        Err(io::Error::other(self.folder.corrupt(format!("blob {expected}"), reason)))
    }
}

impl AsyncRead for BlobFileReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.taken < self.ready.len() {
                let count = buf.remaining().min(self.ready.len() - self.taken);
                buf.put_slice(&self.ready[self.taken..self.taken + count]);
                self.taken += count;
                return Poll::Ready(Ok(()));
            }
            let outcome = match &mut self.next {
                Next::Reading(task) => ready!(Pin::new(task).poll(cx)).map_err(io::Error::other).flatten(),
                Next::End => return Poll::Ready(Ok(())),
                Next::Failed => return Poll::Ready(Err(io::Error::other("reading the blob failed before"))),
            };
            self.next = Next::Failed;
            let (source, piece) = outcome?;
            let spare = mem::replace(&mut self.ready, piece);
            self.taken = 0;
            self.next = match source {
                Some(source) => Next::Reading(spawn_blocking(|| source.read(spare))),
                None => Next::End,
            };
        }
    }
}

/// Bytes after which the disk is told to begin, so that little is left to wait for when the blob is complete.
const BEGIN: u64 = 8 << 20;

/// What is known of the digest of a blob that is being written.
#[derive(Clone, Copy)]
pub(super) enum Digested {
    /// Whoever writes it takes it from the same bytes: once is enough.
    ByWriter,
    /// It was promised, and is checked.
    Here,
}

/// A file that is being written.
struct Sink {
    file: NamedTempFile,
    hash: Option<HashWriter<io::Sink>>,
    size: u64,
    begun: u64,
}

impl Sink {
    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece)?;
        if let Some(hash) = &mut self.hash {
            hash.write_all(piece)?;
        }
        self.size += piece.len() as u64;
        if self.size - self.begun >= BEGIN {
            self.begin();
        }
        Ok(())
    }

    /// Linux begins to write what it is told not to be needed in memory, and drops of it only what is on the disk already,
    /// which these bytes are not. Where that means nothing it takes longer in the end.
    fn begin(&mut self) {
        let part = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        let _ = posix_fadvise(self.file.as_file(), part(self.begun), part(self.size - self.begun), advice);
        self.begun = self.size;
    }
}

/// Writes a blob into a temporary file, which goes away unless the blob is committed.
pub(super) struct BlobFileWriter {
    folder: Arc<Folder>,
    filling: Vec<u8>,
    spare: Vec<u8>,
    state: Writing,
}

enum Writing {
    Idle(Sink),
    Busy(JoinHandle<io::Result<(Sink, Vec<u8>)>>),
    Failed,
}

impl BlobFileWriter {
    pub(super) fn create(folder: Arc<Folder>, digested: Digested) -> Result<Self, StoreError> {
        let hash = match digested {
            Digested::ByWriter => None,
            Digested::Here => Some(HashWriter::new(io::sink())),
        };
        let state = Writing::Idle(Sink { file: folder.temporary()?, hash, size: 0, begun: 0 });
        Ok(Self { folder, filling: Vec::new(), spare: Vec::new(), state })
    }

    /// Waits until the piece before is written.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = match &mut self.state {
            Writing::Idle(_) => return Poll::Ready(Ok(())),
            Writing::Failed => return Poll::Ready(Err(io::Error::other("writing the blob failed before"))),
            Writing::Busy(task) => ready!(Pin::new(task).poll(cx)).map_err(io::Error::other).flatten(),
        };
        self.state = Writing::Failed;
        let (sink, spare) = outcome?;
        self.spare = spare;
        self.state = Writing::Idle(sink);
        Poll::Ready(Ok(()))
    }

    /// Starts writing what was filled in.
    fn poll_spill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_idle(cx))?;
        if self.filling.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.state = match mem::replace(&mut self.state, Writing::Failed) {
            Writing::Idle(mut sink) => {
                let mut piece = mem::replace(&mut self.filling, mem::take(&mut self.spare));
                Writing::Busy(spawn_blocking(move || {
                    sink.write(&piece)?;
                    piece.clear();
                    Ok((sink, piece))
                }))
            }
            other => other,
        };
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for BlobFileWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.filling.len() >= PIECE {
            ready!(self.poll_spill(cx))?;
        }
        let count = buf.len().min(PIECE - self.filling.len());
        self.filling.extend_from_slice(&buf[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_spill(cx))?;
        self.poll_idle(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

#[async_trait]
impl BlobWriter for BlobFileWriter {
    async fn commit(mut self: Box<Self>, digest: &Digest, size: u64) -> Result<(), StoreError> {
        let (digest, folder) = (*digest, self.folder.clone());
        let operation = format!("writing blob {digest}");
        let failed = |error| StoreError::from_stream(folder.name(), &operation, error);
        self.flush().await.map_err(failed)?;
        let Writing::Idle(sink) = mem::replace(&mut self.state, Writing::Failed) else {
            return Err(failed(io::Error::other("writing the blob failed before")));
        };
        let keeper = folder.clone();
        let keep = move || {
            let received = sink.hash.map(|hash| hash.finish().1);
            if sink.size == size && received.is_none_or(|received| received == digest) {
                return keeper.keep_blob(sink.file, &digest);
            }
            let had = received.map(|received| format!(" with the digest {received}")).unwrap_or_default();
            let reason = format!("{} bytes{had} arrived instead of {size} bytes", sink.size);
            Err(keeper.corrupt(format!("new blob {digest}"), reason))
        };
        spawn_blocking(keep).await.map_err(|error| failed(io::Error::other(error)))?
    }
}
