//! A registry in this process: OCI distribution over HTTPS, in memory, that breaks where it is told to.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use image_format::Digest;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use registry::{RemoteStore, Settings};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

pub const USER: &str = "sdp";
pub const PASSWORD: &str = "hunter2-secret";

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// How the server wants proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auth {
    None,
    Basic,
    /// A token server is at `/token` of the same address.
    Bearer,
}

/// A request that came in.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub at: Instant,
    pub body: u64,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// What goes wrong with a request.
pub enum Fault {
    /// This answer at once, without having read the body. `AUTHORIZATION` in it becomes the one that was sent.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// The connection ends after so many bytes of the request's body.
    TornRequest(usize),
    /// The request is done; the connection ends after so many bytes of the answer's body, or before it.
    TornAnswer(Option<usize>),
    /// No answer, ever.
    Silence,
    /// All tokens are worthless from here on.
    Expire,
    /// The answer's body has one bit flipped.
    Flip,
    /// The answer has a header with another value.
    Header(&'static str, Option<String>),
    /// A body that does not end.
    Endless,
    /// The answer's body comes byte by byte, with a pause before each.
    Drip(Duration),
}

struct Rule {
    method: Method,
    path: String,
    /// The path is all of it, not a part.
    whole: bool,
    /// The request has this header.
    with: Option<&'static str>,
    times: usize,
    fault: Fault,
}

#[derive(Default)]
pub struct Repository {
    pub blobs: HashMap<Digest, Bytes>,
    pub manifests: HashMap<Digest, (String, Bytes)>,
    pub tags: BTreeMap<String, Digest>,
}

/// What the registry holds and can do.
#[derive(Default)]
pub struct State {
    pub repositories: HashMap<String, Repository>,
    pub uploads: HashMap<String, Vec<u8>>,
    pub connections: usize,
    pub seen: Vec<Seen>,
    rules: Vec<Rule>,
    tokens: Vec<String>,
    made: usize,
    pub native_referrers: bool,
    pub mounts: bool,
    pub page: usize,
    pub deletes_tags: bool,
    pub deletes_manifests: bool,
    pub absolute_locations: bool,
    /// `If-Match` and `If-None-Match` are honoured for manifests, and `ETag` is told.
    pub conditions: bool,
    /// What comes before the id in the address of an upload.
    pub location_base: Option<String>,
    /// The challenge in place of the usual one.
    pub challenge: Option<String>,
    /// Further members of a token, in place of its life.
    pub token_more: Option<String>,
    pub chunk_minimum: Option<usize>,
    pub ranges: bool,
    pub scopes: Vec<String>,
}

impl State {
    pub fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    pub fn add_blob(&mut self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.repository(repository).blobs.insert(digest, Bytes::copy_from_slice(bytes));
        digest
    }

    /// Requests by method and part of the path.
    pub fn count(&self, method: Method, path: &str) -> usize {
        self.seen.iter().filter(|seen| seen.method == method && seen.path.contains(path)).count()
    }
}

/// The authority and what it signed, in files.
pub struct Certificates {
    /// Keeps the files.
    _dir: TempDir,
    pub ca: PathBuf,
    pub client: (PathBuf, PathBuf),
    server: (PathBuf, PathBuf),
}

impl Certificates {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let file = |name: &str, content: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let leaf = |name: &str, names: Vec<String>| {
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
            (file(&format!("{name}.cert"), certificate.pem()), file(&format!("{name}.key"), key.serialize_pem()))
        };
        let server = leaf("server", vec!["localhost".to_owned(), "127.0.0.1".to_owned()]);
        let client = leaf("client", vec!["sdp".to_owned()]);
        let ca = file("ca.crt", issuer.pem());
        Self { server, client, ca, _dir: dir }
    }

    /// A single certificate for the server that is its own authority, good for these names and until this year.
    pub fn self_signed(names: &[&str], until: i32) -> Self {
        Self::self_signed_with(&KeyPair::generate().unwrap(), names, until)
    }

    fn self_signed_with(key: &KeyPair, names: &[&str], until: i32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut certificate = CertificateParams::new(names).unwrap();
        certificate.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        certificate.not_after = rcgen::date_time_ymd(until, 1, 1);
        let (ca, key_file) = (dir.path().join("domain.crt"), dir.path().join("domain.key"));
        std::fs::write(&ca, certificate.self_signed(key).unwrap().pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        let pair = (ca.clone(), key_file);
        Self { server: pair.clone(), client: pair, ca, _dir: dir }
    }

    /// A server's certificate over a key of the curve P-521, which not every TLS library knows.
    pub fn p521() -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        Self::self_signed_with(&key, &["127.0.0.1"], 4000)
    }

    fn acceptor(&self, client_auth: bool) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = if client_auth {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(&self.ca).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let chain = vec![CertificateDer::from_pem_file(&self.server.0).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&self.server.1).unwrap();
        TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()))
    }
}

/// A running registry.
pub struct Server {
    pub address: SocketAddr,
    pub certificates: Arc<Certificates>,
    auth: Auth,
    state: Arc<Mutex<State>>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn start(auth: Auth) -> Self {
        Self::with(auth, Arc::new(Certificates::new()), false).await
    }

    pub async fn with(auth: Auth, certificates: Arc<Certificates>, client_auth: bool) -> Self {
        let acceptor = certificates.acceptor(client_auth);
        Self::listen(auth, certificates, Some(acceptor)).await
    }

    pub async fn plain() -> Self {
        Self::listen(Auth::None, Arc::new(Certificates::new()), None).await
    }

    async fn listen(auth: Auth, certificates: Arc<Certificates>, acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { mounts: true, page: 100, ranges: true, ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let handler = Handler { state: state.clone(), auth, address };
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                handler.state().connections += 1;
                tokio::spawn(serve(stream, acceptor.clone(), handler.clone()));
            }
        });
        Self { address, certificates, auth, state, task: task.abort_handle() }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The first requests of this method whose path holds `path` go wrong, so many times.
    pub fn fault(&self, method: Method, path: &str, times: usize, fault: Fault) {
        self.state().rules.push(Rule { method, path: path.to_owned(), whole: false, with: None, times, fault });
    }

    /// The same for exactly one path; one without `/v2/` is a repository's, whichever.
    pub fn fault_at(&self, method: Method, path: &str, times: usize, fault: Fault) {
        self.state().rules.push(Rule { method, path: path.to_owned(), whole: true, with: None, times, fault });
    }

    /// The same for requests with this header, always.
    pub fn fault_with(&self, method: Method, path: &str, with: &'static str, fault: Fault) {
        let (path, with) = (path.to_owned(), Some(with));
        self.state().rules.push(Rule { method, path, whole: false, with, times: usize::MAX, fault });
    }

    /// Nothing goes wrong any more.
    pub fn heal(&self) {
        self.state().rules.clear();
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn settings(&self) -> Settings {
        Settings {
            ca_files: vec![self.certificates.ca.clone()],
            credentials: (self.auth != Auth::None).then(|| (USER.to_owned(), PASSWORD.to_owned())),
            ..Settings::default()
        }
    }

    pub async fn store(&self, repository: &str) -> RemoteStore {
        self.store_with(repository, &self.settings()).await
    }

    pub async fn store_with(&self, repository: &str, settings: &Settings) -> RemoteStore {
        RemoteStore::connect(&self.host(), repository, settings).await.unwrap()
    }

    /// A folder as `certs.d` with this server's authority.
    pub fn certs_dir(&self, into: &Path) -> PathBuf {
        let host = into.join(self.host());
        std::fs::create_dir_all(&host).unwrap();
        std::fs::copy(&self.certificates.ca, host.join("ca.crt")).unwrap();
        host
    }
}

async fn serve(stream: TcpStream, acceptor: Option<TlsAcceptor>, handler: Handler) {
    let service = hyper::service::service_fn(move |request| {
        let handler = handler.clone();
        async move { handler.handle(request).await }
    });
    let http = hyper::server::conn::http1::Builder::new();
    // A connection that ends badly ends badly on purpose.
    let _ = match acceptor {
        None => http.serve_connection(TokioIo::new(stream), service).await,
        Some(acceptor) => match acceptor.accept(stream).await {
            Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await,
            Err(_) => return,
        },
    };
}

#[derive(Clone)]
struct Handler {
    state: Arc<Mutex<State>>,
    auth: Auth,
    address: SocketAddr,
}

fn answer(status: u16, headers: &[(&str, String)], body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut answer = Response::builder().status(status).body(body).unwrap();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        answer.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
    }
    answer
}

fn error(status: u16, code: &str) -> Answer {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"the test registry says {code}"}}]}}"#);
    answer(status, &[("content-type", "application/json".to_owned())], body)
}

/// Takes what still comes in for a moment, as servers do so that their answer is not lost with the connection.
fn linger(body: Incoming) {
    tokio::spawn(tokio::time::timeout(Duration::from_millis(500), body.collect()));
}

impl Handler {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// An error ends the connection.
    async fn handle(&self, request: Request<Incoming>) -> Result<Answer, io::Error> {
        let (parts, body) = request.into_parts();
        let seen = Seen {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers,
            at: Instant::now(),
            body: 0,
        };
        let number = {
            let mut state = self.state();
            state.seen.push(seen.clone());
            state.seen.len() - 1
        };
        let fault = self.fault(&seen);
        match fault {
            Some(Fault::Answer(status, headers, text)) => {
                linger(body);
                let sent = seen.header("authorization").unwrap_or_default();
                return Ok(answer(status, &headers, text.replace("AUTHORIZATION", sent)));
            }
            Some(Fault::TornRequest(limit)) => {
                self.read(number, body, limit).await;
                return Err(io::Error::other("torn"));
            }
            Some(Fault::Silence) => std::future::pending().await,
            Some(Fault::Expire) => self.state().tokens.clear(),
            _ => {}
        }
        if let Some(refused) = self.refuse(&seen) {
            linger(body);
            return Ok(refused);
        }
        let Some(body) = self.read(number, body, usize::MAX).await else {
            return Err(io::Error::other("the request was torn"));
        };
        let mut response = self.route(&seen, body);
        match fault {
            Some(Fault::TornAnswer(None)) => return Err(io::Error::other("torn")),
            Some(Fault::TornAnswer(Some(limit))) => {
                let (mut parts, body) = response.into_parts();
                let whole = body.collect().await?.to_bytes();
                parts.headers.entry("content-length").or_insert(HeaderValue::from(whole.len()));
                let pieces = [Ok(Frame::data(whole.slice(..limit.min(whole.len())))), Err(io::Error::other("torn"))];
                let stream = StreamBody::new(futures_util::stream::iter(pieces));
                response = Response::from_parts(parts, BodyExt::boxed_unsync(stream));
            }
            Some(Fault::Flip) => {
                let (parts, body) = response.into_parts();
                let mut whole = body.collect().await?.to_bytes().to_vec();
                whole[0] ^= 1;
                let body = Full::new(Bytes::from(whole)).map_err(|never: Infallible| match never {});
                response = Response::from_parts(parts, body.boxed_unsync());
            }
            Some(Fault::Header(name, value)) => {
                response.headers_mut().remove(name);
                if let Some(value) = value {
                    response.headers_mut().insert(name, HeaderValue::from_str(&value).unwrap());
                }
            }
            Some(Fault::Endless) => {
                let state = self.state.clone();
                let pieces = futures_util::stream::repeat_with(move || {
                    state.lock().unwrap().seen[number].body += 1 << 16;
                    Ok(Frame::data(Bytes::from(vec![b' '; 1 << 16])))
                });
                *response.body_mut() = BodyExt::boxed_unsync(StreamBody::new(pieces));
            }
            Some(Fault::Drip(pause)) => {
                let (mut parts, body) = response.into_parts();
                let whole = body.collect().await?.to_bytes();
                parts.headers.entry("content-length").or_insert(HeaderValue::from(whole.len()));
                let bytes = futures_util::stream::unfold(whole, move |mut rest| async move {
                    tokio::time::sleep(pause).await;
                    let next = (!rest.is_empty()).then(|| rest.split_to(1))?;
                    Some((Ok(Frame::data(next)), rest))
                });
                response = Response::from_parts(parts, BodyExt::boxed_unsync(StreamBody::new(bytes)));
            }
            _ => {}
        }
        Ok(response)
    }

    fn fault(&self, seen: &Seen) -> Option<Fault> {
        let mut state = self.state();
        let fits = |rule: &Rule| {
            let whole =
                if rule.path.starts_with("/v2/") { seen.path == rule.path } else { seen.path.ends_with(&rule.path) };
            let path = if rule.whole { whole } else { seen.path.contains(&rule.path) };
            let with = rule.with.is_none_or(|name| seen.headers.contains_key(name));
            rule.times > 0 && rule.method == seen.method && path && with
        };
        let rule = state.rules.iter_mut().find(|rule| fits(rule))?;
        rule.times -= 1;
        Some(match &rule.fault {
            Fault::Answer(status, headers, body) => Fault::Answer(*status, headers.clone(), body.clone()),
            Fault::TornRequest(limit) => Fault::TornRequest(*limit),
            Fault::TornAnswer(limit) => Fault::TornAnswer(*limit),
            Fault::Silence => Fault::Silence,
            Fault::Expire => Fault::Expire,
            Fault::Flip => Fault::Flip,
            Fault::Header(name, value) => Fault::Header(name, value.clone()),
            Fault::Endless => Fault::Endless,
            Fault::Drip(pause) => Fault::Drip(*pause),
        })
    }

    /// The body; `None` if it was torn or has more bytes than `limit`.
    async fn read(&self, number: usize, mut body: Incoming, limit: usize) -> Option<Bytes> {
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            bytes.extend_from_slice(&frame.ok()?.into_data().ok()?);
            self.state().seen[number].body = bytes.len() as u64;
            if bytes.len() > limit {
                return None;
            }
        }
        Some(bytes.into())
    }

    fn refuse(&self, seen: &Seen) -> Option<Answer> {
        let sent = seen.header("authorization");
        let basic = format!("Basic {}", base64(&format!("{USER}:{PASSWORD}")));
        let challenge = match self.auth {
            Auth::None => return None,
            Auth::Basic if sent == Some(&basic) => return None,
            Auth::Basic => "Basic realm=\"test\"".to_owned(),
            Auth::Bearer if seen.path == "/token" => return None,
            Auth::Bearer => {
                let token = sent.and_then(|sent| sent.strip_prefix("Bearer "));
                if token.is_some_and(|token| self.state().tokens.iter().any(|known| known == token)) {
                    return None;
                }
                let usual = || format!("Bearer realm=\"https://{}/token\",service=\"test\"", self.address);
                self.state().challenge.clone().unwrap_or_else(usual)
            }
        };
        let mut refused = error(401, "UNAUTHORIZED");
        refused.headers_mut().insert("www-authenticate", HeaderValue::from_bytes(challenge.as_bytes()).unwrap());
        Some(refused)
    }

    fn route(&self, seen: &Seen, body: Bytes) -> Answer {
        if seen.path == "/token" {
            return self.token(seen, &body);
        }
        if seen.path == "/v2/" {
            return answer(200, &[], "{}");
        }
        let Some(rest) = seen.path.strip_prefix("/v2/") else { return error(404, "NOT_FOUND") };
        for (mark, handle) in [
            ("/blobs/uploads/", Self::upload as fn(&Self, &Seen, &str, &str, Bytes) -> Answer),
            ("/blobs/", Self::blob),
            ("/manifests/", Self::manifest),
            ("/tags/list", Self::tags),
            ("/referrers/", Self::referrers),
        ] {
            if let Some((repository, name)) = rest.split_once(mark) {
                return handle(self, seen, repository, name, body);
            }
        }
        error(404, "NOT_FOUND")
    }

    fn token(&self, seen: &Seen, body: &[u8]) -> Answer {
        let basic = format!("Basic {}", base64(&format!("{USER}:{PASSWORD}")));
        let form = String::from_utf8_lossy(body);
        let identity = form.contains("grant_type=refresh_token") && form.contains("refresh_token=identity-secret");
        if seen.header("authorization") != Some(&basic) && !identity {
            return error(401, "UNAUTHORIZED");
        }
        let mut state = self.state();
        state.made += 1;
        let token = format!("token-secret-{}", state.made);
        state.tokens.push(token.clone());
        let text = if identity { form.into_owned() } else { seen.query.clone() };
        let scopes = url::form_urlencoded::parse(text.as_bytes()).filter(|(key, _)| key == "scope");
        let scopes: Vec<String> = scopes.map(|(_, scope)| scope.into_owned()).collect();
        state.scopes.extend(scopes);
        let more = state.token_more.clone().unwrap_or_else(|| r#""expires_in":300"#.to_owned());
        answer(200, &[], format!(r#"{{"token":"{token}",{more}}}"#))
    }

    fn location(&self, repository: &str, id: &str) -> (&'static str, String) {
        if let Some(base) = &self.state().location_base {
            return ("location", format!("{base}{id}?_state=a%2Fb%3D%3D"));
        }
        let path = format!("/v2/{repository}/blobs/uploads/{id}?_state=a%2Fb%3D%3D");
        let absolute = self.state().absolute_locations;
        ("location", if absolute { format!("https://{}{path}", self.address) } else { path })
    }

    fn upload(&self, seen: &Seen, repository: &str, id: &str, body: Bytes) -> Answer {
        let query: HashMap<String, String> = url::form_urlencoded::parse(seen.query.as_bytes()).into_owned().collect();
        if seen.method == Method::POST {
            if let (Some(digest), Some(from)) = (query.get("mount"), query.get("from")) {
                let mut state = self.state();
                let digest: Digest = digest.parse().unwrap();
                let found = state.repositories.get(from).and_then(|from| from.blobs.get(&digest)).cloned();
                if let Some(found) = found.filter(|_| state.mounts) {
                    state.repository(repository).blobs.insert(digest, found);
                    return answer(201, &[], "");
                }
            }
            let id = {
                let mut state = self.state();
                state.made += 1;
                let id = format!("upload-{}", state.made);
                state.uploads.insert(id.clone(), Vec::new());
                id
            };
            let mut headers = vec![self.location(repository, &id)];
            headers.extend(self.state().chunk_minimum.map(|minimum| ("oci-chunk-min-length", minimum.to_string())));
            return answer(202, &headers, "");
        }
        // What the registry put into the address comes back as it was.
        if !seen.query.starts_with("_state=a%2Fb%3D%3D") || !self.state().uploads.contains_key(id) {
            return error(404, "BLOB_UPLOAD_UNKNOWN");
        }
        let location = self.location(repository, id);
        let mut state = self.state();
        let have = state.uploads[id].len();
        match seen.method {
            Method::GET => answer(204, &[location, ("range", format!("0-{}", have.saturating_sub(1)))], ""),
            Method::DELETE => {
                state.uploads.remove(id);
                answer(204, &[], "")
            }
            Method::PATCH => {
                let start = seen.header("content-range").map(|range| range.split_once('-').unwrap().0.parse::<usize>());
                if start.is_some_and(|start| start != Ok(have)) {
                    return answer(416, &[location, ("range", format!("0-{}", have.saturating_sub(1)))], "");
                }
                let upload = state.uploads.get_mut(id).unwrap();
                upload.extend_from_slice(&body);
                let range = format!("0-{}", upload.len().saturating_sub(1));
                answer(202, &[location, ("range", range)], "")
            }
            Method::PUT => {
                let mut whole = state.uploads.remove(id).unwrap();
                whole.extend_from_slice(&body);
                let digest = Digest::of(&whole);
                if query.get("digest") != Some(&digest.to_string()) {
                    return error(400, "DIGEST_INVALID");
                }
                state.repository(repository).blobs.insert(digest, whole.into());
                let location = ("location", format!("/v2/{repository}/blobs/{digest}"));
                answer(201, &[location, ("docker-content-digest", digest.to_string())], "")
            }
            _ => error(405, "UNSUPPORTED"),
        }
    }

    fn blob(&self, seen: &Seen, repository: &str, name: &str, _: Bytes) -> Answer {
        let mut state = self.state();
        let digest: Digest = name.parse().unwrap();
        let Some(blob) = state.repository(repository).blobs.get(&digest).cloned() else {
            return error(404, "BLOB_UNKNOWN");
        };
        if seen.method == Method::HEAD {
            return answer(200, &[("content-length", blob.len().to_string())], "");
        }
        match seen.header("range").filter(|_| state.ranges) {
            None => answer(200, &[], blob),
            Some(range) => {
                let (start, end) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                let (start, end) = (start.parse().unwrap(), end.parse().unwrap_or(blob.len() - 1));
                let range = format!("bytes {start}-{end}/{}", blob.len());
                answer(206, &[("content-range", range)], blob.slice(start..=end))
            }
        }
    }

    fn manifest(&self, seen: &Seen, repository: &str, name: &str, body: Bytes) -> Answer {
        let mut state = self.state();
        let native = state.native_referrers;
        let (deletes, deletes_manifests) = (state.deletes_tags, state.deletes_manifests);
        let conditions = state.conditions;
        let repository = state.repository(repository);
        let digest = name.parse().ok().or_else(|| repository.tags.get(name).copied());
        let etag = digest.map(|digest| format!("\"{digest}\""));
        let changed = seen.header("if-match").is_some_and(|wanted| Some(wanted) != etag.as_deref())
            || (seen.header("if-none-match").is_some() && etag.is_some());
        match seen.method {
            Method::PUT if conditions && changed => error(412, "PRECONDITION_FAILED"),
            Method::PUT => {
                let digest = Digest::of(&body);
                if name.parse::<Digest>().is_err() {
                    repository.tags.insert(name.to_owned(), digest);
                } else if name != digest.to_string() {
                    return error(400, "DIGEST_INVALID");
                }
                let manifest: serde_json::Value = serde_json::from_slice(&body).unwrap();
                let media_type = seen.header("content-type").unwrap().to_owned();
                repository.manifests.insert(digest, (media_type, body));
                let location = seen.path.replace(name, &digest.to_string());
                let mut headers = vec![("docker-content-digest", digest.to_string()), ("location", location)];
                if let Some(subject) = manifest["subject"]["digest"].as_str().filter(|_| native) {
                    headers.push(("oci-subject", subject.to_owned()));
                }
                answer(201, &headers, "")
            }
            Method::DELETE if digest.is_none() => error(404, "MANIFEST_UNKNOWN"),
            Method::DELETE if deletes_manifests && name.starts_with("sha256:") => {
                let digest = digest.unwrap();
                repository.tags.retain(|_, named| *named != digest);
                match repository.manifests.remove(&digest) {
                    Some(_) => answer(202, &[], ""),
                    None => error(404, "MANIFEST_UNKNOWN"),
                }
            }
            Method::DELETE if deletes && repository.tags.remove(name).is_some() => answer(202, &[], ""),
            Method::DELETE => error(405, "UNSUPPORTED"),
            _ => match digest.and_then(|digest| repository.manifests.get(&digest).map(|found| (digest, found))) {
                None => error(404, "MANIFEST_UNKNOWN"),
                Some((digest, (media_type, bytes))) => {
                    let mut headers = vec![("content-type", media_type.clone())];
                    headers.push(("docker-content-digest", digest.to_string()));
                    headers.extend(conditions.then(|| ("etag", format!("\"{digest}\""))));
                    answer(200, &headers, if seen.method == Method::HEAD { Bytes::new() } else { bytes.clone() })
                }
            },
        }
    }

    fn tags(&self, seen: &Seen, repository: &str, _: &str, _: Bytes) -> Answer {
        let mut state = self.state();
        let page = state.page;
        let Some(known) = state.repositories.get_mut(repository) else { return error(404, "NAME_UNKNOWN") };
        let query: HashMap<String, String> = url::form_urlencoded::parse(seen.query.as_bytes()).into_owned().collect();
        let last = query.get("last").cloned().unwrap_or_default();
        let tags: Vec<&String> = known.tags.keys().filter(|tag| **tag > last).take(page).collect();
        let mut headers = Vec::new();
        if tags.len() == page {
            let last = tags[page - 1];
            headers.push(("link", format!("</v2/{repository}/tags/list?n={page}&last={last}>; rel=\"next\"")));
        }
        answer(200, &headers, serde_json::json!({ "name": repository, "tags": tags }).to_string())
    }

    fn referrers(&self, seen: &Seen, repository: &str, subject: &str, _: Bytes) -> Answer {
        let mut state = self.state();
        let page = state.page;
        if !state.native_referrers {
            return answer(404, &[], "404 page not found");
        }
        let mut found = Vec::new();
        for (digest, (media_type, bytes)) in &state.repository(repository).manifests {
            let manifest: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            if manifest["subject"]["digest"] == subject {
                found.push(serde_json::json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}));
            }
        }
        found.sort_by_key(|entry| entry["digest"].to_string());
        let start: usize = seen.query.strip_prefix("page=").map_or(0, |page| page.parse().unwrap());
        let rest: Vec<_> = found.into_iter().skip(start * page).collect();
        let mut headers = vec![("content-type", "application/vnd.oci.image.index.v1+json".to_owned())];
        if rest.len() > page {
            let next = start + 1;
            headers.push(("link", format!("<https://{}{}?page={next}>; rel=\"next\"", self.address, seen.path)));
        }
        let page: Vec<_> = rest.into_iter().take(page).collect();
        answer(200, &headers, serde_json::json!({"schemaVersion": 2, "manifests": page}).to_string())
    }
}

pub fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// A status as the server's rules have it.
pub fn status(status: u16) -> Fault {
    let reason = StatusCode::from_u16(status).unwrap().to_string();
    Fault::Answer(status, Vec::new(), reason)
}
