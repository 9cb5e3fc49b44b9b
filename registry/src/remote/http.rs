//! Requests to one registry: who is asked, with which proof, what is tried again, and what an answer means.

use std::error::Error;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::header::{HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Body, Client, Method, Response, StatusCode};
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;
use zeroize::Zeroizing;

use super::auth::{Access, Auth, Challenge};
use crate::credentials::{self, Sought};
use crate::reference::address;
use crate::retry::{Failure, Retry, Tries, parse_retry_after};
use crate::tls::Tls;
use crate::{Settings, StoreError};

/// Redirects of one request; more is a circle.
const MAX_REDIRECTS: usize = 5;
/// How much of an error's text is read.
const MAX_ERROR_TEXT: usize = 64 << 10;
/// How many characters of it are shown.
const MAX_WORDS: usize = 300;
/// A registry may take this many times longer than for other answers to check and keep what it was sent.
const COMMIT_PATIENCE: u32 = 10;
/// The whole of a small body may take this many times longer than the next piece of it.
const BODY_PATIENCE: u32 = 4;

/// Connections to a registry, and to the hosts that it refers to.
#[derive(Debug)]
pub(super) struct Transport {
    name: String,
    base: Url,
    inside: Client,
    outside: Client,
    plain_http: bool,
    upload_hosts: Vec<String>,
    timeout: Duration,
}

impl Transport {
    fn new(host: &str, name: String, settings: &Settings, insecure: bool) -> Result<Self, StoreError> {
        let unusable = |source: Box<dyn Error + Send + Sync>| StoreError::Settings { store: name.clone(), source };
        let scheme = if settings.plain_http { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{}/", address(host))).map_err(|error| unusable(error.into()))?;
        let tls = Tls::load(host, settings, insecure).map_err(|error| unusable(error.into()))?;
        let client = |tls| {
            let builder = Client::builder()
                .tls_backend_preconfigured(tls)
                .user_agent(&settings.user_agent)
                // One connection for each transfer: over one HTTP/2 connection they would share one TLS stream, and so
                // one core.
                .http1_only()
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .connect_timeout(settings.timeout)
                .pool_max_idle_per_host(settings.jobs.saturating_add(2));
            let builder = if is_loopback(&base) { builder.no_proxy() } else { builder };
            builder.build().map_err(|error| unusable(error.without_url().into()))
        };
        let (inside, outside) = (client(tls.inside)?, client(tls.outside)?);
        let Settings { plain_http, timeout, .. } = *settings;
        let upload_hosts = settings.upload_hosts.clone();
        Ok(Self { base, inside, outside, plain_http, upload_hosts, timeout, name })
    }

    /// An address that a server gives. Where TLS ends in a proxy, registries give their own name
    /// with `http:`; the scheme and port that reached the registry are kept then.
    pub(super) fn join(&self, from: &Url, target: &str) -> Option<Url> {
        let mut url = from.join(target).ok()?;
        let downgraded = url.scheme() == "http" && self.base.scheme() == "https";
        let own = url.host() == self.base.host() && (url.port().is_none() || url.port() == self.base.port());
        if downgraded && own {
            url.set_scheme("https").ok()?;
            url.set_port(self.base.port()).ok()?;
        }
        Some(url)
    }

    /// The registry's own address, for what it says relative to it.
    pub(super) fn base(&self) -> &Url {
        &self.base
    }

    /// Whether content may be sent to `url`: to the registry itself, to a name below its own, or to
    /// a host that the settings allow. Memory never goes to another host only because a server says
    /// so.
    pub(super) fn check_upload(&self, url: &Url, operation: &str) -> Result<(), StoreError> {
        self.client(url, operation)?;
        let (Some(host), Some(own)) = (url.host_str(), self.base.host_str()) else {
            return Err(self.refused(operation, "it leads to what is no address"));
        };
        let with_port = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let below = host.strip_suffix(own).is_some_and(|rest| rest.ends_with('.')) && self.base.domain().is_some();
        let below = below && url.port_or_known_default() == self.base.port_or_known_default();
        let allowed = self.upload_hosts.iter().any(|allowed| *allowed == host || *allowed == with_port);
        if self.is_inside(url) || below || allowed {
            return Ok(());
        }
        let from = self.base.port().map_or_else(|| own.to_owned(), |port| format!("{own}:{port}"));
        let reason = format!(
            "{from} wants the bytes sent to another host, {with_port}; nothing was sent there (--upload-host {with_port} allows it)"
        );
        Err(self.refused(operation, reason))
    }

    /// Whether a request to `url` goes to the registry itself.
    pub(super) fn is_inside(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// The client for `url`. Encryption is never given up because a server says so.
    pub(super) fn client(&self, url: &Url, operation: &str) -> Result<&Client, StoreError> {
        match url.scheme() {
            "https" => {}
            "http" if self.plain_http => {}
            _ => return Err(self.refused(operation, "it leads to an address without TLS")),
        }
        Ok(if self.is_inside(url) { &self.inside } else { &self.outside })
    }

    /// The time-out of a single wait.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The time-out for the answer to an upload.
    pub(super) fn commit_timeout(&self) -> Duration {
        self.timeout.saturating_mul(COMMIT_PATIENCE)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn refused(&self, operation: &str, reason: impl Into<String>) -> StoreError {
        StoreError::Refused { store: self.name.clone(), operation: operation.to_owned(), reason: reason.into() }
    }

    pub(super) fn denied(&self, reason: impl Into<String>) -> StoreError {
        StoreError::Denied { store: self.name.clone(), reason: reason.into() }
    }

    pub(super) fn corrupt(&self, what: &str, reason: impl Into<String>) -> StoreError {
        StoreError::Corrupt { store: self.name.clone(), what: what.to_owned(), reason: reason.into() }
    }

    pub(super) fn unreachable(&self, operation: &str, source: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
        StoreError::Unreachable { store: self.name.clone(), operation: operation.to_owned(), source: source.into() }
    }

    pub(super) fn timed_out(&self, operation: &str, after: Duration) -> Failure<StoreError> {
        let reason = format!("no answer within {} s", after.as_secs_f32());
        Failure::passing(self.unreachable(operation, std::io::Error::new(std::io::ErrorKind::TimedOut, reason)))
    }

    /// Trouble of the connection. It may pass, unless the other side's certificate is not to be trusted.
    pub(super) fn broken(&self, operation: &str, error: reqwest::Error) -> Failure<StoreError> {
        let lasting = error.is_builder() || is_about_trust(&error);
        // The address may hold what a redirect handed out as a key.
        let error = self.unreachable(operation, error.without_url());
        if lasting { Failure::last(error) } else { Failure::passing(error) }
    }

    /// Reads a whole small body. Both the next piece and the whole have to come in time: a server
    /// that sends a byte now and then holds nobody up for long.
    pub(super) async fn read(
        &self,
        operation: &str,
        response: &mut Response,
        limit: usize,
    ) -> Result<Result<Bytes, TooLong>, Failure<StoreError>> {
        if let Some(length) = response.content_length().filter(|length| *length > limit as u64) {
            return Ok(Err(TooLong(length)));
        }
        let mut body = BytesMut::new();
        let patience = self.timeout.saturating_mul(BODY_PATIENCE);
        let started = Instant::now();
        loop {
            let wait = self.timeout.min(patience.saturating_sub(started.elapsed()));
            match tokio::time::timeout(wait, response.chunk()).await {
                Ok(Ok(Some(piece))) if body.len() + piece.len() > limit => {
                    return Ok(Err(TooLong((body.len() + piece.len()) as u64)));
                }
                Ok(Ok(Some(piece))) => body.extend_from_slice(&piece),
                Ok(Ok(None)) => return Ok(Ok(body.freeze())),
                Ok(Err(error)) => return Err(self.broken(operation, error)),
                Err(_) if started.elapsed() >= patience => {
                    let reason = format!("only {} bytes came within {} s", body.len(), patience.as_secs_f32());
                    let error = std::io::Error::new(std::io::ErrorKind::TimedOut, reason);
                    return Err(Failure::passing(self.unreachable(operation, error)));
                }
                Err(_) => return Err(self.timed_out(operation, self.timeout)),
            }
        }
    }

    /// What a server has to say about a status that is not success.
    pub(super) async fn reason(&self, mut response: Response, secrets: &[Zeroizing<String>]) -> String {
        let status = response.status();
        let mut said = match self.read("", &mut response, MAX_ERROR_TEXT).await {
            Ok(Ok(body)) => error_text(&body),
            // The status alone must do.
            Ok(Err(_)) | Err(_) => String::new(),
        };
        for secret in secrets.iter().filter(|secret| secret.len() > 3) {
            said = said.replace(secret.as_str(), "…");
        }
        let said: String = said.chars().take(MAX_WORDS).collect();
        if said.is_empty() { status.to_string() } else { format!("{status}: {said}") }
    }
}

/// A body that has (at least) so many bytes, which are more than wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct TooLong(pub(super) u64);

/// A request that can be made again.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) access: Access,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// What this is for, in messages: "reading blob sha256:...".
    pub(super) operation: String,
}

impl Call {
    pub(super) fn new(method: Method, url: Url, access: Access, operation: impl Into<String>) -> Self {
        Self { method, url, access, headers: HeaderMap::new(), body: Bytes::new(), operation: operation.into() }
    }

    pub(super) fn header(mut self, name: reqwest::header::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub(super) fn body(mut self, media_type: HeaderValue, body: Bytes) -> Self {
        self.body = body;
        self.header(reqwest::header::CONTENT_TYPE, media_type)
    }
}

/// A registry, with the way in.
#[derive(Debug)]
pub(super) struct Http {
    pub(super) transport: Transport,
    repository: String,
    auth: Auth,
    retries: u32,
    /// Whether it has taken a good part of a stream, and so did not refuse it.
    takes_streams: AtomicBool,
    /// Held while a list of referrers is read, changed and written, so that transfers side by side
    /// do not race.
    lists: Mutex<()>,
    /// What `/v2/` was answered with, where that is not how a registry introduces itself.
    introduction: OnceLock<StatusCode>,
}

impl Http {
    /// Nothing is sent yet.
    pub(super) async fn new(
        host: &str,
        repository: &str,
        settings: &Settings,
        insecure: bool,
    ) -> Result<Self, StoreError> {
        let name = if repository.is_empty() { host.to_owned() } else { format!("{host}/{repository}") };
        let found = credentials::find(host, repository, settings).await;
        let sought = found.map_err(|error| StoreError::Settings { store: name.clone(), source: error.into() })?;
        Self::with_credential(host, repository, sought, settings, insecure)
    }

    pub(super) fn with_credential(
        host: &str,
        repository: &str,
        sought: Sought,
        settings: &Settings,
        insecure: bool,
    ) -> Result<Self, StoreError> {
        let name = if repository.is_empty() { host.to_owned() } else { format!("{host}/{repository}") };
        Ok(Self {
            transport: Transport::new(host, name, settings, insecure)?,
            repository: repository.to_owned(),
            auth: Auth::new(sought, repository),
            retries: settings.retries,
            takes_streams: AtomicBool::new(false),
            lists: Mutex::default(),
            introduction: OnceLock::new(),
        })
    }

    pub(super) fn takes_streams(&self) -> bool {
        self.takes_streams.load(Ordering::Relaxed)
    }

    pub(super) fn took_a_stream(&self) {
        self.takes_streams.store(true, Ordering::Relaxed);
    }

    /// To be held while a list of referrers is changed.
    pub(super) fn lists(&self) -> &Mutex<()> {
        &self.lists
    }

    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    pub(super) fn tries(&self) -> Tries {
        Tries::new(self.retries)
    }

    /// `/v2/REPOSITORY/` and what follows. All parts are checked texts (repositories, tags, digests), so nothing in
    /// them changes the path.
    pub(super) fn url(&self, rest: &str) -> Url {
        let mut url = self.transport.base.clone();
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        url.set_path(&format!("v2/{}/{path}", self.repository));
        url.set_query(query);
        url
    }

    /// `/v2/`, the address at which a registry says that it is one.
    pub(super) fn root_url(&self) -> Url {
        let mut url = self.transport.base.clone();
        url.set_path("v2/");
        url
    }

    /// Asks the registry how it wants proof. It answers 200 to everybody, or 401 with the ways that
    /// it offers. Some gateways pass on repositories only; then the first refusal says how proof is
    /// wanted.
    pub(super) async fn introduce(&self) -> Result<(), StoreError> {
        let call = Call::new(Method::GET, self.root_url(), Access::Ping, "connecting");
        let mut tries = self.tries();
        let response = loop {
            match tokio::time::timeout(self.transport.timeout, self.ask(&call)).await {
                Ok(Ok(response)) => break response,
                Ok(Err(failure)) => tries.again(failure).await?,
                Err(_) => tries.again(self.transport.timed_out(&call.operation, self.transport.timeout)).await?,
            }
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED => self.auth.learn(&self.transport, &Challenge::all(response.headers())).await,
            status => drop(self.introduction.set(status)),
        }
        Ok(())
    }

    /// Makes a request without proof.
    async fn ask(&self, call: &Call) -> Result<Response, Failure<StoreError>> {
        let client = self.transport.client(&call.url, &call.operation)?;
        let response = client.request(call.method.clone(), call.url.clone()).send().await;
        let response = response.map_err(|error| self.transport.broken(&call.operation, error))?;
        let response = self.follow(call, response, None).await?;
        if is_passing(response.status()) {
            let retry = retry_later(&response);
            let reason = self.transport.reason(response, &[]).await;
            return Err(Failure { error: self.transport.refused(&call.operation, reason), retry });
        }
        Ok(response)
    }

    /// Makes a request, again and again while trouble may pass. Any status that does not stand for such trouble, nor
    /// for missing proof, is an answer.
    pub(super) async fn call(&self, call: &Call) -> Result<Response, StoreError> {
        let mut tries = self.tries();
        loop {
            match self.attempt(call).await {
                Ok(response) => return Ok(response),
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    /// Makes a request once.
    pub(super) async fn attempt(&self, call: &Call) -> Result<Response, Failure<StoreError>> {
        self.attempt_within(call, self.transport.timeout).await
    }

    /// Makes a request once that the registry may think about for longer.
    pub(super) async fn attempt_within(&self, call: &Call, limit: Duration) -> Result<Response, Failure<StoreError>> {
        match tokio::time::timeout(limit, self.send(call)).await {
            Ok(answer) => answer,
            Err(_) => Err(self.transport.timed_out(&call.operation, limit)),
        }
    }

    /// Makes a request once; how long that may take is the caller's affair.
    async fn send(&self, call: &Call) -> Result<Response, Failure<StoreError>> {
        let (response, proof) = self.exchange(call, call.body.clone().into()).await?;
        let response = self.follow(call, response, proof.as_ref()).await?;
        self.judge(call, response, proof).await
    }

    /// Makes a request once, with any body, and gives the head of the answer as soon as it is there, and the proof that
    /// was sent.
    pub(super) async fn exchange(
        &self,
        call: &Call,
        body: Body,
    ) -> Result<(Response, Option<HeaderValue>), Failure<StoreError>> {
        let (operation, transport) = (call.operation.as_str(), &self.transport);
        let proof = match transport.is_inside(&call.url) {
            true => self.auth.proof(transport, &call.access).await?,
            false => None,
        };
        let request = self.request(call, &call.url, proof.as_ref())?.body(body);
        let response = request.send().await.map_err(|error| transport.broken(operation, error))?;
        Ok((response, proof))
    }

    /// Tells answers from trouble that may pass, and sees to it that it does.
    pub(super) async fn judge(
        &self,
        call: &Call,
        response: Response,
        proof: Option<HeaderValue>,
    ) -> Result<Response, Failure<StoreError>> {
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED && self.transport.is_inside(response.url()) {
            return Err(self.unauthorized(call, proof.as_ref(), response).await);
        }
        if is_passing(status) {
            let retry = retry_later(&response);
            let reason = self.transport.reason(response, &self.auth.secrets().await).await;
            return Err(Failure { error: self.transport.refused(&call.operation, reason), retry });
        }
        Ok(response)
    }

    fn request(
        &self,
        call: &Call,
        url: &Url,
        proof: Option<&HeaderValue>,
    ) -> Result<reqwest::RequestBuilder, StoreError> {
        let client = self.transport.client(url, &call.operation)?;
        let request = client.request(call.method.clone(), url.clone()).headers(call.headers.clone());
        Ok(match proof.filter(|_| self.transport.is_inside(url)) {
            Some(proof) => request.header(reqwest::header::AUTHORIZATION, proof.clone()),
            None => request,
        })
    }

    /// Registries send the readers of blobs elsewhere, and gateways whoever asks at an old address.
    /// The proof of who we are stays here, and so does content, see [`Transport::check_upload`].
    async fn follow(
        &self,
        call: &Call,
        mut response: Response,
        proof: Option<&HeaderValue>,
    ) -> Result<Response, Failure<StoreError>> {
        let (operation, transport) = (call.operation.as_str(), &self.transport);
        let reads = call.method == Method::GET || call.method == Method::HEAD;
        for _ in 0..MAX_REDIRECTS {
            let redirect = match response.status() {
                StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
                // After these another method would be due, which is none that a registry wants.
                status => reads && status.is_redirection() && status != StatusCode::NOT_MODIFIED,
            };
            let Some(target) = response.headers().get(LOCATION).filter(|_| redirect) else {
                return Ok(response);
            };
            let url = target.to_str().ok().and_then(|target| transport.join(response.url(), target));
            let url = url.ok_or_else(|| transport.refused(operation, "it redirects to what is no address"))?;
            if !reads {
                transport.check_upload(&url, operation)?;
            }
            let request = self.request(call, &url, proof)?.body(call.body.clone());
            response = request.send().await.map_err(|error| transport.broken(operation, error))?;
        }
        Err(transport.refused(operation, format!("it redirects more than {MAX_REDIRECTS} times")).into())
    }

    /// What to do about a 401: try again with a new token, or give up.
    async fn unauthorized(&self, call: &Call, proof: Option<&HeaderValue>, response: Response) -> Failure<StoreError> {
        let challenges = Challenge::all(response.headers());
        let reason = self.transport.reason(response, &self.auth.secrets().await).await;
        let error = self.transport.denied(format!("{}: {reason}{}", call.operation, self.auth.hint()));
        match self.auth.renew(&self.transport, &call.access, proof, &challenges).await {
            Ok(true) => Failure { error, retry: Retry::Now },
            Ok(false) => Failure::last(error),
            Err(failure) => failure,
        }
    }

    /// The error for an answer that is not the one hoped for; `what` is what was asked for.
    pub(super) async fn refuse(&self, call: &Call, what: &str, response: Response) -> StoreError {
        let status = response.status();
        if status == StatusCode::NOT_FOUND {
            let store = match self.introduction.get() {
                None => self.transport.name.clone(),
                Some(status) => format!("{} (which answers {status} to /v2/: is it a registry?)", self.transport.name),
            };
            return StoreError::NotFound { store, what: what.to_owned() };
        }
        let reason = self.transport.reason(response, &self.auth.secrets().await).await;
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                self.transport.denied(format!("{}: {reason}", call.operation))
            }
            _ => self.transport.refused(&call.operation, reason),
        }
    }
}

/// 408, 429 and the 5xx that come from load or from a restart. 403 and 404 are answers.
pub(super) fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502..=504)
}

/// Another try after the wait that the answer asks for, if it does.
pub(super) fn retry_later(response: &Response) -> Retry {
    let asked = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    Retry::Later(asked.and_then(|text| parse_retry_after(text, SystemTime::now())))
}

/// TLS itself said no, here or on the other side; that does not pass by waiting.
fn is_about_trust(error: &(dyn Error + 'static)) -> bool {
    // The source of an `io::Error` is the source of what it wraps, so what it wraps is looked at by itself.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|wrapped| is_about_trust(wrapped))
        || error.source().is_some_and(is_about_trust)
}

/// As other tools have it, what runs on this machine is not reached through a proxy.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// `CODE: message` of an error in the form of the distribution specification, or any other text, on one line.
fn error_text(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<ErrorEntry>,
    }
    #[derive(serde::Deserialize)]
    struct ErrorEntry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }

    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(Errors { errors }) => {
            let one = |error: ErrorEntry| format!("{}: {}", error.code, error.message);
            errors.into_iter().take(3).map(one).collect::<Vec<_>>().join("; ")
        }
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_in_words() {
        let body = br#"{"errors":[{"code":"NAME_UNKNOWN","message":"no such\nrepository","detail":{"a":1}}]}"#;
        assert_eq!(error_text(body), "NAME_UNKNOWN: no such repository");
        assert_eq!(error_text(b"\x1b[31m404 page\0 not found\n"), "[31m404 page not found");
    }

    #[test]
    fn what_passes() {
        let passing: Vec<u16> = (400..600).filter(|code| is_passing(StatusCode::from_u16(*code).unwrap())).collect();
        assert_eq!(passing, [408, 429, 500, 502, 503, 504]);
    }
}
