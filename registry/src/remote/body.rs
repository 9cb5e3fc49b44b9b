//! The body of an upload: pieces handed to a connection while it sends them.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use reqwest::{Body, Response};
use tokio::sync::mpsc;

use super::http::{Call, Http};
use crate::StoreError;
use crate::retry::Failure;

/// Bytes handed over at a time: large enough that handing over costs nothing, and more than the 256 KiB that servers
/// in Go want to have read before they answer a request that they refuse.
pub(super) const PIECE: usize = 512 << 10;

/// What is handed over.
#[derive(Debug)]
pub(super) enum Fed {
    /// The next bytes.
    Piece(Bytes),
    /// There are no more. Where it is missing the request is torn, so that no registry takes a part for the whole.
    End,
}

/// Why a connection was not handed everything.
#[derive(Debug)]
pub(super) enum Unfed {
    /// It takes no more: it has its answer already, or an error.
    Closed,
    /// It took nothing for too long.
    Stalled,
    /// The bytes are not to be had.
    Source(StoreError),
}

/// The end of a body where pieces go in. Dropped early, it tears the request.
pub(super) struct Feeder {
    pieces: mpsc::Sender<Fed>,
    patience: Duration,
}

impl Feeder {
    /// A body, and the way to fill it. A connection that takes nothing for `patience` is stuck; how long all of it takes
    /// does not matter.
    fn new(patience: Duration) -> (Self, Body) {
        let (pieces, taken) = mpsc::channel(1);
        let body = stream::unfold(taken, |mut taken: mpsc::Receiver<Fed>| async move {
            let piece = match taken.recv().await {
                Some(Fed::Piece(piece)) => Ok(piece),
                Some(Fed::End) => return None,
                None => Err(io::Error::new(io::ErrorKind::Interrupted, "the upload was given up")),
            };
            Some((piece, taken))
        });
        (Self { pieces, patience }, Body::wrap_stream(body))
    }

    pub(super) async fn feed(&self, fed: Fed) -> Result<(), Unfed> {
        match tokio::time::timeout(self.patience, self.pieces.send(fed)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Unfed::Closed),
            Err(_) => Err(Unfed::Stalled),
        }
    }
}

/// Makes a request whose body is handed over by `feed`. An answer that comes before the end of the body ends it.
pub(super) async fn send<F: Future<Output = Result<(), Unfed>>>(
    http: &Http,
    call: &Call,
    feed: impl FnOnce(Feeder) -> F,
) -> Result<Response, Failure<StoreError>> {
    let transport = &http.transport;
    let (feeder, body) = Feeder::new(transport.timeout());
    let mut answer = std::pin::pin!(http.exchange(call, body));
    let answer = tokio::select! {
        answer = &mut answer => answer?,
        fed = feed(feeder) => match fed {
            Ok(()) | Err(Unfed::Closed) => match tokio::time::timeout(transport.commit_timeout(), answer).await {
                Ok(answer) => answer?,
                Err(_) => return Err(transport.timed_out(&call.operation, transport.commit_timeout())),
            },
            Err(Unfed::Stalled) => return Err(transport.timed_out(&call.operation, transport.timeout())),
            Err(Unfed::Source(error)) => return Err(error.into()),
        },
    };
    let (response, proof) = answer;
    http.judge(call, response, proof).await
}
