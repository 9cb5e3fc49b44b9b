//! Reading a blob: in one stream, checked at its end, gone on with where it broke.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use image_format::{Descriptor, Digest, HashWriter};
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio_util::io::StreamReader;

use super::auth::Access;
use super::http::{Call, Http};
use crate::retry::{Failure, Tries};
use crate::{BlobReader, StoreError};

/// A connection that brought so many bytes before it broke has earned the blob a full set of tries again.
const PROGRESS: u64 = 1 << 20;

/// The least that a connection has to bring, measured over the time that was spent waiting for it.
const SLOWEST: u64 = 1 << 10;
/// So many time-outs long a connection may be slower.
const SLOW_PATIENCE: u32 = 2;

/// How large a blob is, for registries whose answer to HEAD does not say it.
pub(super) async fn size(http: &Http, digest: &Digest) -> Result<Option<u64>, StoreError> {
    let what = format!("blob {digest}");
    let url = http.url(&format!("blobs/{digest}"));
    let call = Call::new(Method::GET, url, Access::Pull, format!("asking for the size of {what}"));
    let first = call.clone().header(RANGE, HeaderValue::from_static("bytes=0-0"));
    let response = http.call(&first).await?;
    let total = || response.headers().get(CONTENT_RANGE)?.to_str().ok()?.rsplit_once('/')?.1.trim().parse().ok();
    let size = match response.status() {
        StatusCode::NOT_FOUND => return Ok(None),
        StatusCode::OK => response.content_length(),
        StatusCode::PARTIAL_CONTENT => total(),
        _ => return Err(http.refuse(&first, &what, response).await),
    };
    size.map(Some).ok_or_else(|| http.transport.refused(&call.operation, "the registry does not say it"))
}

/// Opens a blob for reading.
pub(super) async fn open(http: Arc<Http>, descriptor: &Descriptor) -> Result<BlobReader, StoreError> {
    let mut download = Download {
        what: format!("blob {}", descriptor.digest),
        tries: http.tries(),
        http,
        blob: descriptor.clone(),
        response: None,
        hash: Some(HashWriter::new(io::sink())),
        passed: 0,
        skip: 0,
        since_break: 0,
        pace: Pace::default(),
    };
    download.connect().await?;
    let pieces = stream::try_unfold(download, |mut download| async move {
        let piece = download.next().await.map_err(io::Error::other)?;
        Ok::<_, io::Error>(piece.map(|piece| (piece, download)))
    });
    Ok(Box::pin(StreamReader::new(Box::pin(pieces))))
}

struct Download {
    http: Arc<Http>,
    blob: Descriptor,
    what: String,
    response: Option<Response>,
    /// Gone once the end was checked.
    hash: Option<HashWriter<io::Sink>>,
    /// Bytes handed on.
    passed: u64,
    /// Bytes that will come again and are not wanted.
    skip: u64,
    since_break: u64,
    pace: Pace,
    tries: Tries,
}

/// How fast a connection is. Only the time counts in which bytes were waited for: whoever reads
/// slowly is no reason to give a connection up.
#[derive(Default)]
struct Pace {
    waited: Duration,
    came: u64,
}

impl Pace {
    /// Counts a piece; false when too little came for too long.
    fn keeps_up(&mut self, waited: Duration, came: usize, patience: Duration) -> bool {
        self.waited += waited;
        self.came += came as u64;
        if self.waited < patience {
            return true;
        }
        let enough = self.came as f64 >= SLOWEST as f64 * self.waited.as_secs_f64();
        *self = Self::default();
        enough
    }
}

impl Download {
    /// The next piece, or `None` after the end, which is reached only if the bytes are the right ones.
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.hash.is_none() {
            return Ok(None);
        }
        loop {
            match self.receive().await {
                Ok(Some(piece)) if piece.is_empty() => {}
                Ok(Some(piece)) => return Ok(Some(piece)),
                Ok(None) => {
                    self.check()?;
                    return Ok(None);
                }
                Err(failure) => {
                    self.response = None;
                    self.pace = Pace::default();
                    if self.since_break >= PROGRESS {
                        self.tries = self.http.tries();
                    }
                    self.since_break = 0;
                    self.tries.again(failure).await?;
                }
            }
        }
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, Failure<StoreError>> {
        let operation = format!("reading {}", self.what);
        let response = match &mut self.response {
            Some(response) => response,
            empty => {
                empty.insert(Self::request(&self.http, &self.blob, &self.what, self.passed, &mut self.skip).await?)
            }
        };
        let transport = &self.http.transport;
        let asked = Instant::now();
        let mut piece = match tokio::time::timeout(transport.timeout(), response.chunk()).await {
            Err(_) => return Err(transport.timed_out(&operation, transport.timeout())),
            Ok(Err(error)) => return Err(transport.broken(&operation, error)),
            Ok(Ok(Some(piece))) => piece,
            Ok(Ok(None)) if self.passed == self.blob.size => return Ok(None),
            Ok(Ok(None)) => {
                let reason = format!("the answer ended after {} of {} bytes", self.passed, self.blob.size);
                return Err(Failure::passing(transport.unreachable(&operation, reason)));
            }
        };
        let patience = transport.timeout().saturating_mul(SLOW_PATIENCE);
        if !self.pace.keeps_up(asked.elapsed(), piece.len(), patience) {
            let reason = format!("it brings less than {SLOWEST} bytes a second");
            return Err(Failure::passing(transport.unreachable(&operation, reason)));
        }
        let unwanted = self.skip.min(piece.len() as u64);
        self.skip -= unwanted;
        let piece = piece.split_off(usize::try_from(unwanted).unwrap_or(usize::MAX));
        self.passed += piece.len() as u64;
        self.since_break += piece.len() as u64;
        if self.passed > self.blob.size {
            return Err(transport.corrupt(&self.what, format!("it has more than {} bytes", self.blob.size)).into());
        }
        if let Some(hash) = &mut self.hash {
            let hashed = hash.write_all(&piece);
            hashed.map_err(|error| transport.unreachable(&operation, error))?;
        }
        Ok(Some(piece))
    }

    /// Asks once before anything is handed out, so that a missing blob is an error of opening it.
    async fn connect(&mut self) -> Result<(), StoreError> {
        loop {
            match Self::request(&self.http, &self.blob, &self.what, 0, &mut self.skip).await {
                Ok(response) => {
                    self.response = Some(response);
                    return Ok(());
                }
                Err(failure) => self.tries.again(failure).await?,
            }
        }
    }

    /// Asks for what is missing; `skip` becomes the count of bytes that will come all the same.
    async fn request(
        http: &Http,
        blob: &Descriptor,
        what: &str,
        from: u64,
        skip: &mut u64,
    ) -> Result<Response, Failure<StoreError>> {
        let url = http.url(&format!("blobs/{}", blob.digest));
        let mut call = Call::new(Method::GET, url, Access::Pull, format!("reading {what}"));
        if from > 0 {
            let range = HeaderValue::from_str(&format!("bytes={from}-"));
            let range = range.map_err(|error| http.transport.refused(&call.operation, error.to_string()))?;
            call = call.header(RANGE, range);
        }
        let response = http.attempt(&call).await?;
        let (whole, expected) = match response.status() {
            StatusCode::OK => (true, blob.size),
            StatusCode::PARTIAL_CONTENT if from > 0 => (false, blob.size - from),
            _ => return Err(http.refuse(&call, what, response).await.into()),
        };
        if !whole && range_start(&response) != Some(from) {
            let reason = "it answers with another range than the one asked for";
            return Err(http.transport.refused(&call.operation, reason).into());
        }
        if let Some(length) = response.content_length().filter(|length| *length != expected) {
            let reason = format!("the registry wants to send {length} bytes instead of {expected}");
            return Err(http.transport.corrupt(what, reason).into());
        }
        *skip = if whole { from } else { 0 };
        Ok(response)
    }

    fn check(&mut self) -> Result<(), StoreError> {
        let Some(hash) = self.hash.take() else { return Ok(()) };
        let (_, digest, _) = hash.finish();
        if digest == self.blob.digest {
            return Ok(());
        }
        Err(self.http.transport.corrupt(&self.what, format!("its bytes have the digest {digest}")))
    }
}

/// The first number of `Content-Range: bytes 5-9/10`.
fn range_start(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.trim().strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}
