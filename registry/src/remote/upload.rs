//! Sending a blob whose digest is known: not at all if it is there, by mounting it, or in one streaming PUT.

use bytes::{Bytes, BytesMut};
use image_format::{Descriptor, Digest};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio::io::AsyncReadExt;
use url::Url;

use super::auth::Access;
use super::body::{self, Fed, Feeder, PIECE, Unfed};
use super::http::{Call, Http};
use crate::retry::{Failure, Retry};
use crate::{BlobReader, BlobUpload, Put, StoreError};

/// The size of one request of a chunked upload, unless the registry wants larger ones.
const CHUNK: usize = 4 << 20;
/// The largest chunk that is held in memory because a registry wants it.
const MAX_CHUNK: usize = 32 << 20;

const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Puts a blob, with as many tries as are allowed.
pub(super) async fn put(http: &Http, chunked: bool, upload: &BlobUpload<'_>) -> Result<Put, StoreError> {
    let mut tries = http.tries();
    let sender = Sender { http, chunked, upload, name: upload.descriptor.digest.to_string() };
    let put = loop {
        match sender.put().await {
            Ok(put) => break put,
            Err(failure) => tries.again(failure).await?,
        }
    };
    upload.progress.end(&sender.name, Some(put));
    Ok(put)
}

/// Whether a blob is there, and how large the registry says that it is. Proxies leave the size out
/// or say 0, so that 0 says nothing, but of the one blob that is empty.
pub(super) async fn head(http: &Http, digest: &Digest, access: Access) -> Result<Option<Option<u64>>, StoreError> {
    let what = format!("blob {digest}");
    let call = Call::new(Method::HEAD, http.url(&format!("blobs/{digest}")), access, format!("looking for {what}"));
    let response = http.call(&call).await?;
    match response.status() {
        StatusCode::NOT_FOUND => Ok(None),
        StatusCode::OK => {
            let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
            let length = length.and_then(|length| length.parse().ok());
            Ok(Some(length.filter(|length| *length > 0 || *digest == Digest::of(b""))))
        }
        _ => Err(http.refuse(&call, &what, response).await),
    }
}

/// One try to put one blob.
struct Sender<'a> {
    http: &'a Http,
    chunked: bool,
    upload: &'a BlobUpload<'a>,
    name: String,
}

impl Sender<'_> {
    async fn put(&self) -> Result<Put, Failure<StoreError>> {
        let Descriptor { digest, size, .. } = self.upload.descriptor;
        if let Some(found) = head(self.http, digest, Access::Push).await? {
            if let Some(found) = found.filter(|found| found != size) {
                let reason = format!("the registry has {found} bytes for it instead of {size}");
                return Err(self.http.transport.corrupt(&format!("blob {digest}"), reason).into());
            }
            return Ok(Put::Existed);
        }
        let session = match self.upload.mount_from.filter(|from| *from != self.http.repository()) {
            Some(from) => match self.mount(from).await? {
                Mount::Done => return Ok(Put::Mounted),
                Mount::Session(session) => session,
                Mount::No => Session::start(self.http, &self.operation()).await?,
            },
            None => Session::start(self.http, &self.operation()).await?,
        };
        self.upload.progress.begin(&self.name, Some(*size));
        let source = self.upload.source.open().await?;
        if self.chunked {
            self.send_chunks(session, source).await?;
        } else {
            self.stream(session, source).await?;
        }
        Ok(Put::Sent(*size))
    }

    fn operation(&self) -> String {
        format!("sending blob {}", self.name)
    }

    /// Asks the registry to take the blob from another of its repositories. It is free to answer with an upload
    /// instead; where it refuses altogether, sending shows whether there is anything wrong.
    async fn mount(&self, from: &str) -> Result<Mount, StoreError> {
        let mut url = self.http.url("blobs/uploads/");
        url.query_pairs_mut().append_pair("mount", &self.name).append_pair("from", from);
        let call = Call::new(Method::POST, url, Access::Mount(from.to_owned()), self.operation());
        match self.http.call(&call).await {
            Ok(response) if response.status() == StatusCode::CREATED => Ok(Mount::Done),
            Ok(response) if response.status() == StatusCode::ACCEPTED => {
                Session::read(self.http, &call, &response).map(Mount::Session)
            }
            Ok(_) | Err(StoreError::Denied { .. }) => Ok(Mount::No),
            Err(error) => Err(error),
        }
    }

    async fn stream(&self, session: Session, source: BlobReader) -> Result<(), Failure<StoreError>> {
        let Descriptor { digest, size, .. } = self.upload.descriptor;
        let call = Call::new(Method::PUT, session.finish_url(digest), Access::Push, self.operation())
            .header(CONTENT_TYPE, BYTES)
            .header(CONTENT_LENGTH, HeaderValue::from(*size));
        let response = body::send(self.http, &call, |feeder| self.feed(source, feeder)).await?;
        self.check(&call, response).await
    }

    /// Hands all bytes of the source to a connection.
    async fn feed(&self, mut source: BlobReader, feeder: Feeder) -> Result<(), Unfed> {
        let mut sent = 0;
        while sent < self.upload.descriptor.size {
            let piece = self.read(&mut source, PIECE, sent).await.map_err(Unfed::Source)?;
            let length = piece.len() as u64;
            feeder.feed(Fed::Piece(piece)).await?;
            sent += length;
            self.upload.progress.advance(&self.name, length);
        }
        // Only at its end does a source say whether its bytes were the right ones.
        self.read(&mut source, PIECE, sent).await.map_err(Unfed::Source)?;
        feeder.feed(Fed::End).await
    }

    /// Reads so many bytes after the first `sent`, fewer only at the end.
    async fn read(&self, source: &mut BlobReader, wanted: usize, sent: u64) -> Result<Bytes, StoreError> {
        let size = self.upload.descriptor.size;
        let left = usize::try_from(size - sent).unwrap_or(usize::MAX);
        // One more than there should be, to notice.
        let limit = wanted.min(left.saturating_add(1));
        let mut piece = BytesMut::with_capacity(limit);
        let mut source = source.take(limit as u64);
        while piece.len() < limit {
            let count = source
                .read_buf(&mut piece)
                .await
                .map_err(|error| StoreError::from_stream(self.http.transport.name(), &self.operation(), error))?;
            if count == 0 {
                break;
            }
        }
        if piece.len() > left || piece.len() < wanted.min(left) {
            let reason = format!("its source does not have the {size} bytes that it should have");
            return Err(self.http.transport.refused(&self.operation(), reason));
        }
        Ok(piece.freeze())
    }

    async fn check(&self, call: &Call, response: Response) -> Result<(), Failure<StoreError>> {
        if response.status().is_success() {
            return check_digest(self.http, &self.upload.descriptor.digest, &response).map_err(Failure::last);
        }
        // An upload that the registry has forgotten (it was restarted) is begun anew.
        let lost = response.status() == StatusCode::NOT_FOUND;
        let error = self.http.refuse(call, "the upload", response).await;
        Err(if lost { Failure::passing(error) } else { Failure::last(error) })
    }

    async fn send_chunks(&self, mut session: Session, mut source: BlobReader) -> Result<(), Failure<StoreError>> {
        let Descriptor { digest, size, .. } = self.upload.descriptor;
        let mut sent = 0;
        while sent < *size {
            let wanted = session.chunk_size(self.http, &self.operation())?;
            let chunk = self.read(&mut source, wanted, sent).await?;
            sent += chunk.len() as u64;
            let length = chunk.len() as u64;
            session.send_chunk(self.http, chunk, &self.operation()).await?;
            self.upload.progress.advance(&self.name, length);
        }
        self.read(&mut source, 1, sent).await?;
        Ok(session.finish(self.http, digest, *size).await?)
    }
}

enum Mount {
    Done,
    Session(Session),
    No,
}

/// An upload that the registry has begun.
#[derive(Debug)]
pub(super) struct Session {
    location: Url,
    sent: u64,
    /// Bytes of one chunk.
    chunk: usize,
}

impl Session {
    pub(super) async fn start(http: &Http, operation: &str) -> Result<Self, StoreError> {
        let call = Call::new(Method::POST, http.url("blobs/uploads/"), Access::Push, operation);
        let response = http.call(&call).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(http.refuse(&call, &format!("repository {}", http.repository()), response).await);
        }
        Self::read(http, &call, &response)
    }

    fn read(http: &Http, call: &Call, response: &Response) -> Result<Self, StoreError> {
        let minimum = response.headers().get("oci-chunk-min-length").and_then(|value| value.to_str().ok());
        let minimum = minimum.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let location = read_location(http, &call.operation, response)?
            .ok_or_else(|| http.transport.refused(&call.operation, "the registry does not say where to send it"))?;
        Ok(Self { location, sent: 0, chunk: CHUNK.max(minimum) })
    }

    /// The request that sends content of unknown length.
    pub(super) fn patch(&self, operation: &str) -> Call {
        Call::new(Method::PATCH, self.location.clone(), Access::Push, operation).header(CONTENT_TYPE, BYTES)
    }

    /// Goes on where the registry says.
    pub(super) fn moved(&mut self, http: &Http, operation: &str, response: &Response) -> Result<(), StoreError> {
        if let Some(location) = read_location(http, operation, response)? {
            self.location = location;
        }
        Ok(())
    }

    /// How many bytes a chunk has.
    pub(super) fn chunk_size(&self, http: &Http, operation: &str) -> Result<usize, StoreError> {
        if self.chunk > MAX_CHUNK {
            let reason = format!("the registry wants chunks of {} bytes; at most {MAX_CHUNK} are sent", self.chunk);
            return Err(http.transport.refused(operation, reason));
        }
        Ok(self.chunk)
    }

    /// Sends the next bytes in a request of their own. After trouble the registry is asked how far it has come.
    pub(super) async fn send_chunk(
        &mut self,
        http: &Http,
        chunk: Bytes,
        operation: &str,
    ) -> Result<(), Failure<StoreError>> {
        let mut rest = chunk;
        let mut tries = http.tries();
        while !rest.is_empty() {
            let end = self.sent + rest.len() as u64;
            let range = HeaderValue::from_str(&format!("{}-{}", self.sent, end - 1));
            let range = range.map_err(|error| http.transport.refused(operation, error.to_string()))?;
            let mut call = self.patch(operation).header(CONTENT_RANGE, range);
            call.body = rest.clone();
            match http.attempt_within(&call, http.transport.commit_timeout()).await {
                Ok(response) if response.status().is_success() => {
                    self.moved(http, operation, &response)?;
                    self.sent = end;
                    return Ok(());
                }
                Ok(response) if response.status() == StatusCode::RANGE_NOT_SATISFIABLE => {
                    let error = http.refuse(&call, "the upload", response).await;
                    tries.again(Failure::passing(error)).await?;
                }
                Ok(response) => {
                    let lost = response.status() == StatusCode::NOT_FOUND;
                    let error = http.refuse(&call, "the upload", response).await;
                    return Err(if lost { Failure::passing(error) } else { Failure::last(error) });
                }
                Err(failure) if failure.retry == Retry::Now => {
                    tries.again(failure).await?;
                    continue;
                }
                Err(failure) => tries.again(failure).await?,
            }
            let kept = self.ask(http, operation).await?;
            let already = kept.checked_sub(self.sent).filter(|already| *already <= rest.len() as u64);
            let Some(already) = already else {
                let reason =
                    format!("the registry has {kept} bytes of it; between {} and {end} were expected", self.sent);
                return Err(http.transport.refused(operation, reason).into());
            };
            rest = rest.split_off(usize::try_from(already).unwrap_or(usize::MAX));
            self.sent = kept;
        }
        Ok(())
    }

    /// How many bytes the registry has.
    async fn ask(&mut self, http: &Http, operation: &str) -> Result<u64, Failure<StoreError>> {
        let call = Call::new(Method::GET, self.location.clone(), Access::Push, operation);
        let response = http.call(&call).await?;
        if !response.status().is_success() {
            let lost = response.status() == StatusCode::NOT_FOUND;
            let error = http.refuse(&call, "the upload", response).await;
            return Err(if lost { Failure::passing(error) } else { Failure::last(error) });
        }
        self.moved(http, operation, &response)?;
        // "0-0" stands for one byte and for none; only nothing was sent before the first.
        let range = response.headers().get(RANGE).and_then(|value| value.to_str().ok());
        let last: Option<u64> = range.and_then(|range| range.rsplit_once('-')).and_then(|(_, last)| last.parse().ok());
        Ok(last.filter(|last| *last > 0).map_or(0, |last| last + 1))
    }

    /// Where the upload is closed under its digest. What the registry put into the address is kept as it is.
    fn finish_url(&self, digest: &Digest) -> Url {
        let mut url = self.location.clone();
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        url
    }

    /// Closes an upload whose bytes are all there.
    pub(super) async fn finish(self, http: &Http, digest: &Digest, size: u64) -> Result<(), StoreError> {
        let operation = format!("keeping blob {digest}");
        let call = Call::new(Method::PUT, self.finish_url(digest), Access::Push, operation).header(CONTENT_TYPE, BYTES);
        let mut tries = http.tries();
        let mut repeated = false;
        loop {
            match http.attempt_within(&call, http.transport.commit_timeout()).await {
                Ok(response) if response.status().is_success() => return check_digest(http, digest, &response),
                Ok(response) => {
                    // The answer that got lost may have been the good one.
                    if repeated && head(http, digest, Access::Push).await? == Some(Some(size)) {
                        return Ok(());
                    }
                    return Err(http.refuse(&call, "the upload", response).await);
                }
                Err(failure) => {
                    repeated |= failure.retry != Retry::Now;
                    tries.again(failure).await?;
                }
            }
        }
    }

    /// Tells the registry to forget the upload. It would do so itself, later; so its answer does not matter.
    pub(super) async fn cancel(self, http: &Http, operation: &str) {
        let call = Call::new(Method::DELETE, self.location, Access::Push, operation);
        let _ = http.attempt(&call).await;
    }
}

/// Where the content is to be sent, which must be a place that is meant to have it.
fn read_location(http: &Http, operation: &str, response: &Response) -> Result<Option<Url>, StoreError> {
    let target = response.headers().get(LOCATION).and_then(|target| target.to_str().ok());
    let Some(url) = target.and_then(|target| http.transport.join(response.url(), target)) else { return Ok(None) };
    http.transport.check_upload(&url, operation)?;
    Ok(Some(url))
}

/// A registry that says which digest it kept must say the right one. One of another algorithm says
/// nothing here.
pub(super) fn check_digest(http: &Http, digest: &Digest, response: &Response) -> Result<(), StoreError> {
    let Some(kept) = response.headers().get("docker-content-digest") else { return Ok(()) };
    if kept.as_bytes() == digest.to_string().as_bytes() || !kept.as_bytes().starts_with(b"sha256:") {
        return Ok(());
    }
    let kept = String::from_utf8_lossy(kept.as_bytes()).chars().take(100).collect::<String>();
    Err(http.transport.corrupt(&digest.to_string(), format!("the registry kept it as {kept}")))
}
