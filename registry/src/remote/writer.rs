//! Sending a blob whose digest is known only at its end: one streaming PATCH, then the PUT that names it.
//!
//! A blob that fits into one piece is held back until its digest is known, and then sent as any other: not at all if it
//! is there. Of a larger one the first pieces are kept, and those after the first wait for a moment, measured by how long
//! the registry took to open the upload: one that refuses (401, 429, 503) does so while all that was sent can be sent
//! again. After that a break is an error, as registries cannot tell where to go on; only chunked uploads
//! ([`crate::Settings::chunked_upload`]) can. Once a registry has taken more of a blob than is kept, those that follow wait
//! no longer than they must: it is slow to open an upload while it puts another one on its disk.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use image_format::{Descriptor, Digest};
use reqwest::Response;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::PollSender;

use super::body::{self, Fed, Feeder, PIECE, Unfed};
use super::http::{Call, Http};
use super::upload::{self, Session};
use crate::retry::Failure;
use crate::{BlobReader, BlobUpload, BlobWriter, Reopen, StoreError};

const OPERATION: &str = "sending a new blob";
/// How many pieces are kept.
const KEPT: usize = 4;
/// How long the rest of a blob waits for a refusal of its first piece.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A blob on its way.
pub(super) struct RemoteWriter {
    http: Arc<Http>,
    chunked: bool,
    piece: BytesMut,
    size: u64,
    /// Running once there is more than one piece.
    upload: Option<Running>,
}

struct Running {
    pieces: PollSender<Fed>,
    task: JoinHandle<Result<Session, StoreError>>,
}

impl RemoteWriter {
    pub(super) fn new(http: Arc<Http>, chunked: bool) -> Self {
        Self { http, chunked, piece: BytesMut::new(), size: 0, upload: None }
    }

    /// Hands something to the task that sends; it is running afterwards.
    fn poll_feed(&mut self, cx: &mut Context<'_>, fed: impl FnOnce(&mut BytesMut) -> Fed) -> Poll<io::Result<()>> {
        let Self { http, chunked, .. } = self;
        let running = self.upload.get_or_insert_with(|| Running::start(http.clone(), *chunked));
        ready!(running.poll_ready(cx))?;
        let fed = fed(&mut self.piece);
        Poll::Ready(running.pieces.send_item(fed).map_err(|_| finished()))
    }

    async fn put_small(&mut self, digest: &Digest) -> Result<(), StoreError> {
        struct Small(Bytes);

        #[async_trait]
        impl Reopen for Small {
            async fn open(&self) -> Result<BlobReader, StoreError> {
                Ok(Box::pin(io::Cursor::new(self.0.clone())))
            }
        }

        let source = Small(self.piece.split().freeze());
        let descriptor = Descriptor { media_type: String::new(), digest: *digest, size: self.size };
        let upload = BlobUpload { descriptor: &descriptor, source: &source, mount_from: None, progress: &() };
        upload::put(&self.http, self.chunked, &upload).await.map(drop)
    }
}

impl Running {
    fn start(http: Arc<Http>, chunked: bool) -> Self {
        let (pieces, taken) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            if chunked { send_chunks(&http, taken).await } else { send_stream(&http, taken).await }
        });
        Self { pieces: PollSender::new(pieces), task }
    }

    /// Waits for room. When the task has ended instead, its error is the writer's.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(self.pieces.poll_reserve(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(_) => match ready!(Pin::new(&mut self.task).poll(cx)) {
                Ok(Err(error)) => Poll::Ready(Err(io::Error::other(error))),
                Ok(Ok(_)) | Err(_) => Poll::Ready(Err(finished())),
            },
        }
    }
}

impl AsyncWrite for RemoteWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.piece.len() >= PIECE {
            ready!(this.poll_feed(cx, |piece| Fed::Piece(piece.split().freeze())))?;
        }
        if this.piece.capacity() == this.piece.len() {
            // Small blobs stay small; large ones soon have pieces of full size.
            let more = if this.upload.is_some() { PIECE } else { buf.len().max(this.piece.len()) };
            this.piece.reserve(more.clamp(1, PIECE));
        }
        let count = buf.len().min(PIECE - this.piece.len());
        this.piece.extend_from_slice(&buf[..count]);
        this.size += count as u64;
        Poll::Ready(Ok(count))
    }

    /// Nothing is durable before the commit, so there is nothing to wait for.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[async_trait]
impl BlobWriter for RemoteWriter {
    async fn commit(mut self: Box<Self>, digest: &Digest, size: u64) -> Result<(), StoreError> {
        let http = self.http.clone();
        if self.size != size {
            let reason = format!("{} bytes were written instead of {size}", self.size);
            return Err(http.transport.corrupt(&format!("blob {digest}"), reason));
        }
        if self.upload.is_none() {
            return self.put_small(digest).await;
        }
        let carried = |error| StoreError::from_stream(http.transport.name(), OPERATION, error);
        if !self.piece.is_empty() {
            let feed = |piece: &mut BytesMut| Fed::Piece(piece.split().freeze());
            std::future::poll_fn(|cx| self.poll_feed(cx, feed)).await.map_err(carried)?;
        }
        std::future::poll_fn(|cx| self.poll_feed(cx, |_| Fed::End)).await.map_err(carried)?;
        let Some(Running { task, .. }) = self.upload.take() else { return Err(carried(finished())) };
        let session = task.await.map_err(|_| carried(finished()))??;
        session.finish(&http, digest, size).await
    }
}

fn finished() -> io::Error {
    io::Error::other("the blob is finished, or has failed before")
}

fn unwanted(http: &Http) -> StoreError {
    http.transport.refused(OPERATION, "it is not wanted any more")
}

async fn send_stream(http: &Http, taken: mpsc::Receiver<Fed>) -> Result<Session, StoreError> {
    let mut source = Source { taken, kept: Vec::new(), gone: false, ended: false };
    let mut tries = http.tries();
    loop {
        let before = Instant::now();
        let mut session = Session::start(http, OPERATION).await?;
        let pause = match http.takes_streams() {
            true => SHORTEST_PAUSE,
            false => (before.elapsed() * 3).clamp(SHORTEST_PAUSE, LONGEST_PAUSE),
        };
        match source.send(http, &session.patch(OPERATION), pause).await {
            Ok(response) => {
                session.moved(http, OPERATION, &response)?;
                return Ok(session);
            }
            Err(failure) => {
                session.cancel(http, OPERATION).await;
                tries.again(if source.gone { Failure::last(failure.error) } else { failure }).await?;
            }
        }
    }
}

/// The pieces of a blob, from its first one on as long as they are kept.
struct Source {
    taken: mpsc::Receiver<Fed>,
    kept: Vec<Bytes>,
    /// More was taken than is kept.
    gone: bool,
    ended: bool,
}

impl Source {
    /// Makes one request with all the pieces.
    async fn send(&mut self, http: &Http, call: &Call, pause: Duration) -> Result<Response, Failure<StoreError>> {
        let response = body::send(http, call, |feeder| self.feed(http, feeder, pause)).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(http.refuse(call, "the upload", response).await.into())
    }

    /// Hands all pieces to a connection.
    async fn feed(&mut self, http: &Http, feeder: Feeder, pause: Duration) -> Result<(), Unfed> {
        for (number, piece) in self.kept.iter().enumerate() {
            feeder.feed(Fed::Piece(piece.clone())).await?;
            if number == 0 {
                tokio::time::sleep(pause).await;
            }
        }
        while !self.ended {
            match self.taken.recv().await {
                Some(Fed::Piece(piece)) => {
                    let first = !self.gone && self.kept.is_empty();
                    self.keep(&piece);
                    feeder.feed(Fed::Piece(piece)).await?;
                    if self.gone {
                        http.took_a_stream();
                    }
                    if first {
                        tokio::time::sleep(pause).await;
                    }
                }
                Some(Fed::End) => self.ended = true,
                None => return Err(Unfed::Source(unwanted(http))),
            }
        }
        feeder.feed(Fed::End).await
    }

    fn keep(&mut self, piece: &Bytes) {
        if self.kept.len() == KEPT {
            self.gone = true;
            self.kept = Vec::new();
        }
        if !self.gone {
            self.kept.push(piece.clone());
        }
    }
}

async fn send_chunks(http: &Http, mut taken: mpsc::Receiver<Fed>) -> Result<Session, StoreError> {
    let mut session = Session::start(http, OPERATION).await?;
    let size = session.chunk_size(http, OPERATION)?;
    let mut chunk = BytesMut::with_capacity(size);
    loop {
        let ended = match taken.recv().await {
            Some(Fed::Piece(piece)) => {
                chunk.extend_from_slice(&piece);
                false
            }
            Some(Fed::End) => true,
            None => {
                session.cancel(http, OPERATION).await;
                return Err(unwanted(http));
            }
        };
        while chunk.len() >= size || (ended && !chunk.is_empty()) {
            let full = chunk.split_to(size.min(chunk.len())).freeze();
            session.send_chunk(http, full, OPERATION).await.map_err(|failure| failure.error)?;
        }
        if ended {
            return Ok(session);
        }
    }
}
