//! A store whose operations end: when somebody says so, and when it does no more than trickle.
//!
//! A store that does not answer, or answers with a byte every other second, holds up whoever waits for it for as long as it likes.
//! Everything that is asked of a store goes through here where somebody may want to stop: then no caller has to think of it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use image_format::{Descriptor, Digest, Document};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::retention::{Removal, Removed};
use crate::{BlobReader, BlobUpload, BlobWriter, Progress, Put, Selector, Store, StoreError, Tag, TagList};

/// How long an operation may take that moves documents and no blob, with all its retries.
const DOCUMENT: Duration = Duration::from_secs(600);

/// Within this much time of waiting for a blob, so many bytes of it must have come or gone.
const WINDOW: Duration = Duration::from_secs(60);
const LEAST: u64 = 4096;

/// How long an upload may go without a byte: a registry that has all of a large blob reads it again before it answers.
const UPLOAD_WINDOW: Duration = Duration::from_secs(600);

/// How long the setting of a tag may still take when it is cancelled: it is the one step of which nobody could say otherwise whether it
/// has happened.
const LAST_STEP: Duration = Duration::from_secs(5);

/// The same store, whose operations fail with [`StoreError::Cancelled`] once `cancel` is cancelled, those that are under way included.
#[must_use]
pub fn cancellable(store: Arc<dyn Store>, cancel: CancellationToken) -> Arc<dyn Store> {
    Arc::new(Cancellable { store, cancel })
}

#[derive(Debug)]
struct Cancellable {
    store: Arc<dyn Store>,
    cancel: CancellationToken,
}

impl Cancellable {
    fn cancelled(&self, operation: &str) -> StoreError {
        StoreError::Cancelled { store: self.store.name().to_owned(), operation: operation.to_owned() }
    }

    fn late(&self, operation: &str, reason: String) -> StoreError {
        StoreError::Unreachable {
            store: self.store.name().to_owned(),
            operation: operation.to_owned(),
            source: io::Error::new(io::ErrorKind::TimedOut, reason).into(),
        }
    }

    /// Ends with the operation, or when it is cancelled.
    async fn until_cancelled<T>(
        &self,
        operation: &str,
        doing: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(self.cancelled(operation)),
            done = doing => done,
        }
    }

    /// The same, and within the time that documents may take.
    async fn document<T>(
        &self,
        operation: &str,
        doing: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let within = async {
            let late = |_| self.late(operation, format!("it was not through after {} s", DOCUMENT.as_secs()));
            timeout(DOCUMENT, doing).await.map_err(late).flatten()
        };
        self.until_cancelled(operation, within).await
    }

    fn end(&self, operation: &'static str) -> End {
        let token = self.cancel.clone();
        End {
            store: self.store.name().to_owned(),
            operation,
            cancelled: Box::pin(token.cancelled_owned()),
            pace: Pace::new(WINDOW),
        }
    }
}

#[async_trait]
impl Store for Cancellable {
    fn name(&self) -> &str {
        self.store.name()
    }

    fn repository(&self) -> &str {
        self.store.repository()
    }

    async fn resolve(&self, selector: &Selector) -> Result<Descriptor, StoreError> {
        self.document("asking what a name stands for", self.store.resolve(selector)).await
    }

    async fn manifest(&self, digest: &Digest) -> Result<Document, StoreError> {
        self.document("reading a manifest", self.store.manifest(digest)).await
    }

    async fn has_manifest(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.document("asking for a manifest", self.store.has_manifest(digest)).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.document("asking for a blob", self.store.blob_size(digest)).await
    }

    async fn read_blob(&self, descriptor: &Descriptor) -> Result<BlobReader, StoreError> {
        const OPERATION: &str = "reading a blob";
        let inner = self.document(OPERATION, self.store.read_blob(descriptor)).await?;
        Ok(Box::pin(Reader { inner, end: self.end(OPERATION) }))
    }

    async fn create_blob(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        const OPERATION: &str = "writing a blob";
        let inner = self.document(OPERATION, self.store.create_blob()).await?;
        Ok(Box::new(Writer { inner, cancel: self.cancel.clone(), end: self.end(OPERATION) }))
    }

    async fn put_blob(&self, upload: BlobUpload<'_>) -> Result<Put, StoreError> {
        const OPERATION: &str = "sending a blob";
        let counted = Counted { progress: upload.progress, bytes: AtomicU64::new(0) };
        let stalled = async {
            let mut before = 0;
            loop {
                sleep(UPLOAD_WINDOW).await;
                let now = counted.bytes.load(Ordering::Relaxed);
                if now < before + LEAST {
                    return;
                }
                before = now;
            }
        };
        let uploading = async {
            tokio::select! {
                put = self.store.put_blob(BlobUpload { progress: &counted, ..upload }) => put,
                () = stalled => Err(self.late(OPERATION, slow(UPLOAD_WINDOW))),
            }
        };
        self.until_cancelled(OPERATION, uploading).await
    }

    async fn put_manifest(&self, document: &Document, tag: Option<&Tag>) -> Result<(), StoreError> {
        const OPERATION: &str = "putting a manifest";
        let putting = self.store.put_manifest(document, tag);
        if tag.is_none() || self.cancel.is_cancelled() {
            return self.document(OPERATION, putting).await;
        }
        let given_up = async {
            self.cancel.cancelled().await;
            sleep(LAST_STEP).await;
        };
        tokio::select! {
            biased;
            put = putting => put,
            () = given_up => Err(self.cancelled(OPERATION)),
            () = sleep(DOCUMENT) => Err(self.late(OPERATION, slow(DOCUMENT))),
        }
    }

    async fn tags(&self) -> Result<Vec<Tag>, StoreError> {
        self.document("listing tags", self.store.tags()).await
    }

    async fn tag_list(&self) -> Result<TagList, StoreError> {
        self.document("listing tags", self.store.tag_list()).await
    }

    async fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, StoreError> {
        self.document("listing referrers", self.store.referrers(digest)).await
    }

    async fn put_referrer(&self, subject: &Digest, document: &Document) -> Result<(), StoreError> {
        self.document("putting a referrer", self.store.put_referrer(subject, document)).await
    }

    async fn hold(&self, contents: &[Digest]) -> Result<(), StoreError> {
        self.until_cancelled("holding content", self.store.hold(contents)).await
    }

    async fn remove(&self, removal: &Removal) -> Result<Removed, StoreError> {
        self.until_cancelled("removing checkpoints", self.store.remove(removal)).await
    }

    async fn delete_tag(&self, tag: &Tag) -> Result<(), StoreError> {
        self.document("deleting a tag", self.store.delete_tag(tag)).await
    }
}

fn slow(window: Duration) -> String {
    format!("fewer than {LEAST} bytes went through in {} s", window.as_secs())
}

/// Counts what goes through, and passes on what is told.
struct Counted<'a> {
    progress: &'a dyn Progress,
    bytes: AtomicU64,
}

impl Progress for Counted<'_> {
    fn begin(&self, blob: &str, size: Option<u64>) {
        self.progress.begin(blob, size);
    }

    fn advance(&self, blob: &str, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.progress.advance(blob, bytes);
    }

    fn end(&self, blob: &str, how: Option<Put>) {
        self.progress.end(blob, how);
    }
}

/// What ends a stream before it ends itself.
struct End {
    store: String,
    operation: &'static str,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    pace: Pace,
}

impl End {
    /// What the stream said, unless it is to end.
    fn check<T>(
        &mut self,
        context: &mut Context<'_>,
        said: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> u64,
    ) -> Poll<io::Result<T>> {
        let names = |end: &Self| (end.store.clone(), end.operation.to_owned());
        if self.cancelled.as_mut().poll(context).is_ready() {
            let (store, operation) = names(self);
            return Poll::Ready(Err(io::Error::other(StoreError::Cancelled { store, operation })));
        }
        let moved = match &said {
            Poll::Pending => None,
            Poll::Ready(Ok(done)) => Some(bytes(done)),
            Poll::Ready(Err(_)) => return said,
        };
        if self.pace.is_too_slow(context, moved) {
            let (store, operation) = names(self);
            let source = io::Error::new(io::ErrorKind::TimedOut, slow(self.pace.window)).into();
            return Poll::Ready(Err(io::Error::other(StoreError::Unreachable { store, operation, source })));
        }
        said
    }
}

/// How fast a stream is. Only the time counts in which it is waited for: whoever reads it may be slow.
struct Pace {
    window: Duration,
    /// Waited for in this window, before the wait that goes on now.
    waited: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
    bytes: u64,
}

impl Pace {
    fn new(window: Duration) -> Self {
        Self { window, waited: Duration::ZERO, waiting: None, bytes: 0 }
    }

    /// `moved` bytes went through, or it is waited for.
    fn is_too_slow(&mut self, context: &mut Context<'_>, moved: Option<u64>) -> bool {
        let Some(moved) = moved else {
            let (_, end) = self.waiting.get_or_insert_with(|| {
                let now = Instant::now();
                (now, Box::pin(sleep_until(now + self.window.saturating_sub(self.waited))))
            });
            if end.as_mut().poll(context).is_pending() {
                return false;
            }
            let too_slow = self.bytes < LEAST;
            *self = Self::new(self.window);
            // The next window begins, and wakes whoever waits at its end.
            return too_slow || self.is_too_slow(context, None);
        };
        self.bytes += moved;
        if let Some((since, _)) = self.waiting.take() {
            self.waited += since.elapsed();
        }
        if self.waited < self.window {
            return false;
        }
        let too_slow = self.bytes < LEAST && moved > 0;
        *self = Self::new(self.window);
        too_slow
    }
}

struct Reader {
    inner: BlobReader,
    end: End,
}

impl AsyncRead for Reader {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { inner, end } = &mut *self;
        let before = buf.filled().len();
        let said = inner.as_mut().poll_read(context, buf);
        let moved = buf.filled().len().saturating_sub(before) as u64;
        end.check(context, said, |()| moved)
    }
}

struct Writer {
    inner: Box<dyn BlobWriter>,
    cancel: CancellationToken,
    end: End,
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { inner, end, .. } = &mut *self;
        let said = Pin::new(inner).poll_write(context, buf);
        end.check(context, said, |written| *written as u64)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { inner, end, .. } = &mut *self;
        let said = Pin::new(inner).poll_flush(context);
        end.check(context, said, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { inner, end, .. } = &mut *self;
        let said = Pin::new(inner).poll_shutdown(context);
        end.check(context, said, |()| 0)
    }
}

#[async_trait]
impl BlobWriter for Writer {
    async fn commit(self: Box<Self>, digest: &Digest, size: u64) -> Result<(), StoreError> {
        let Self { inner, cancel, end } = *self;
        let End { store, operation, .. } = end;
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(StoreError::Cancelled { store, operation: operation.to_owned() }),
            done = inner.commit(digest, size) => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::{Create, Location, Settings, open};

    const SOON: Duration = Duration::from_millis(50);

    /// A registry that says that it is one, and then never says a word again, and what ends all that is asked of it.
    async fn silent() -> (Arc<dyn Store>, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                if held.is_empty() {
                    let mut request = [0; 4096];
                    let read = stream.read(&mut request).await.unwrap();
                    assert!(request[..read].starts_with(b"GET /v2/ "));
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                }
                held.push(stream);
            }
        });
        let location = Location::Registry { host, repository: "sdp/app".to_owned() };
        let settings = Settings { plain_http: true, ..Settings::default() };
        let cancel = CancellationToken::new();
        (cancellable(open(&location, &settings, Create::No).await.unwrap(), cancel.clone()), cancel)
    }

    struct Bytes;

    #[async_trait]
    impl crate::Reopen for Bytes {
        async fn open(&self) -> Result<BlobReader, StoreError> {
            Ok(Box::pin(&b"x"[..]))
        }
    }

    /// That the operation ends soon after it is cancelled, and says so.
    macro_rules! assert_ends {
        ($($operation:expr),+ $(,)?) => {$(
            let (store, cancel) = silent().await;
            let asked = $operation;
            let stop = async {
                sleep(SOON).await;
                cancel.cancel();
                std::future::pending::<()>().await
            };
            let ended = tokio::select! {
                ended = timeout(LAST_STEP + Duration::from_secs(2), asked(store)) => ended.expect(stringify!($operation)),
                () = stop => unreachable!(),
            };
            assert!(matches!(ended, Err(StoreError::Cancelled { .. })), "{ended:?}: {}", stringify!($operation));
        )+};
    }

    #[tokio::test]
    async fn whatever_a_silent_registry_is_asked_can_be_cancelled() {
        let digest = Digest::of(b"x");
        let descriptor = || Descriptor { media_type: "application/octet-stream".to_owned(), digest, size: 1 };
        let subject = format!(r#"{{"mediaType":"x/y","digest":"{digest}","size":1}}"#);
        let bytes = format!(r#"{{"schemaVersion":2,"subject":{subject}}}"#).into_bytes();
        let document = || Document::new("application/vnd.oci.image.manifest.v1+json", bytes.clone());
        assert_ends!(
            async |store: Arc<dyn Store>| store.resolve(&Selector::Digest(digest)).await.map(drop),
            async |store: Arc<dyn Store>| store.manifest(&digest).await.map(drop),
            async |store: Arc<dyn Store>| store.has_manifest(&digest).await.map(drop),
            async |store: Arc<dyn Store>| store.blob_size(&digest).await.map(drop),
            async |store: Arc<dyn Store>| {
                let mut bytes = Vec::new();
                let read = store.read_blob(&descriptor()).await?.read_to_end(&mut bytes).await;
                read.map(drop).map_err(|error| StoreError::from_stream("x", "x", error))
            },
            async |store: Arc<dyn Store>| store.create_blob().await?.commit(&digest, 0).await,
            async |store: Arc<dyn Store>| {
                let upload = BlobUpload { descriptor: &descriptor(), source: &Bytes, mount_from: None, progress: &() };
                store.put_blob(upload).await.map(drop)
            },
            async |store: Arc<dyn Store>| store.put_manifest(&document(), None).await,
            async |store: Arc<dyn Store>| store.put_manifest(&document(), Some(&"a".parse().unwrap())).await,
            async |store: Arc<dyn Store>| store.tags().await.map(drop),
            async |store: Arc<dyn Store>| store.tag_list().await.map(drop),
            async |store: Arc<dyn Store>| store.referrers(&digest).await.map(drop),
            async |store: Arc<dyn Store>| store.put_referrer(&digest, &document()).await,
            async |store: Arc<dyn Store>| {
                let checkpoints = vec![(digest, vec!["a".parse().unwrap()])];
                let removal = Removal { checkpoints, before: SystemTime::now(), dry_run: false, jobs: 1 };
                store.remove(&removal).await.map(drop)
            },
            async |store: Arc<dyn Store>| store.delete_tag(&"a".parse().unwrap()).await,
        );
    }

    #[tokio::test]
    async fn nothing_begins_once_it_is_cancelled() {
        let (store, cancel) = silent().await;
        cancel.cancel();
        let ended = store.put_manifest(&Document::new("x", Vec::new()), Some(&"a".parse().unwrap())).await.unwrap_err();
        assert!(matches!(&ended, StoreError::Cancelled { .. }), "{ended}");
    }

    /// So many bytes, one every so often.
    struct Trickle {
        every: Duration,
        left: usize,
        next: Pin<Box<Sleep>>,
    }

    impl AsyncRead for Trickle {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.left == 0 {
                return Poll::Ready(Ok(()));
            }
            std::task::ready!(self.next.as_mut().poll(context));
            let next = Instant::now() + self.every;
            self.next.as_mut().reset(next);
            self.left -= 1;
            buf.put_slice(b"x");
            Poll::Ready(Ok(()))
        }
    }

    const WINDOW: Duration = Duration::from_millis(200);

    async fn read_trickle(every: Duration, left: usize, pause: Duration) -> io::Result<usize> {
        let inner = Box::pin(Trickle { every, left, next: Box::pin(sleep(every)) });
        let (store, operation) = ("x".to_owned(), "reading a blob");
        let cancelled = Box::pin(CancellationToken::new().cancelled_owned());
        let mut reader = Reader { inner, end: End { store, operation, cancelled, pace: Pace::new(WINDOW) } };
        let (mut read, mut piece) = (0, [0; 64]);
        loop {
            match reader.read(&mut piece).await? {
                0 => return Ok(read),
                some => read += some,
            }
            sleep(pause).await;
        }
    }

    #[tokio::test]
    async fn a_trickle_ends_and_a_slow_reader_does_not() {
        let since = Instant::now();
        let ended = read_trickle(Duration::from_millis(10), 1 << 20, Duration::ZERO).await.unwrap_err();
        assert!(matches!(StoreError::from_stream("x", "x", ended), StoreError::Unreachable { .. }));
        assert!(since.elapsed() < WINDOW * 10, "{:?}", since.elapsed());
        assert!(read_trickle(WINDOW * 100, 1, Duration::ZERO).await.is_err(), "not one byte");
        // It is not the store that lets itself be waited for.
        assert_eq!(read_trickle(Duration::ZERO, 8, WINDOW / 2).await.unwrap(), 8);
    }
}
