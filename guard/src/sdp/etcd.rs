//! A client of etcd 3, as far as the Configuration DB needs it: its JSON gateway (`/v3/...`), which ska-sdp-config uses too.
//!
//! Not over gRPC: every crate for that runs `protoc` when it is built, which then everybody who builds this would have to have.
//! In JSON, keys and values are base64, and numbers of 64 bits are texts; zeros and empty things are left out.
//! All reads are linearizable: an etcd without its quorum gives no answer rather than an old one.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, Response};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

/// An answer that is longer is not read.
const MAX_ANSWER: usize = 64 << 20;
/// How much of an error's words is shown.
const MAX_WORDS: usize = 300;

/// Where etcd is, and who asks.
#[derive(Clone)]
pub struct Endpoint {
    /// A name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether TLS is spoken.
    pub protocol: Protocol,
    /// A PEM file with a client certificate and its key.
    pub certificate: Option<PathBuf>,
    /// Name and password, if etcd asks for them.
    pub user: Option<(String, Zeroizing<String>)>,
    /// How long an answer may take.
    pub timeout: Duration,
}

impl Default for Endpoint {
    /// `http://127.0.0.1:2379`, as ska-sdp-config.
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 2379,
            protocol: Protocol::Http,
            certificate: None,
            user: None,
            timeout: Duration::from_secs(5),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|(name, _)| name);
        f.debug_struct("Endpoint").field("url", &self.to_string()).field("user", &user).finish_non_exhaustive()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.protocol {
            Protocol::Http => "http",
            Protocol::Https => "https",
        };
        match self.host.contains(':') && !self.host.starts_with('[') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

/// How etcd is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// In the open.
    Http,
    /// Over TLS, with the system's authorities.
    Https,
}

/// What may go wrong between here and the Configuration DB.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatabaseError {
    /// The client cannot be made as it was asked for.
    #[error("the Configuration DB at {endpoint} cannot be asked as it is set up")]
    Settings {
        /// Where it is.
        endpoint: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// There is no answer. What was to be written may have been written.
    #[error("the Configuration DB at {endpoint} does not answer")]
    Unreachable {
        /// Where it is.
        endpoint: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The user is not known, or may not do this.
    #[error("the Configuration DB at {endpoint} refuses access: {reason}")]
    Denied {
        /// Where it is.
        endpoint: String,
        /// In its words.
        reason: String,
    },
    /// It says no.
    #[error("the Configuration DB at {endpoint} refuses: {reason}")]
    Refused {
        /// Where it is.
        endpoint: String,
        /// In its words.
        reason: String,
    },
    /// What it says is not understood.
    #[error("the Configuration DB at {endpoint} answers what is not understood")]
    Answer {
        /// Where it is.
        endpoint: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A value there is not what it should be.
    #[error("the value of {key} in the Configuration DB is not understood: {reason}")]
    Value {
        /// Which.
        key: String,
        /// Why.
        reason: String,
    },
    /// Others wrote the same keys each time.
    #[error("the Configuration DB was changed by others meanwhile, {tries} times in a row")]
    Busy {
        /// How often it was tried.
        tries: u32,
    },
    /// What was held to write is no longer held.
    #[error("{key} in the Configuration DB is no longer this guard's")]
    Fenced {
        /// The owner's key.
        key: String,
    },
}

/// A number of 64 bits, which is a text in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Int(pub(super) i64);

impl Serialize for Int {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(i64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(Self(number)),
            Either::Text(text) => text.parse().map(Self).map_err(serde::de::Error::custom),
        }
    }
}

/// Bytes, which are base64 in JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bytes64(pub(super) Vec<u8>);

impl Serialize for Bytes64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

impl From<&str> for Bytes64 {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Header {
    #[serde(deserialize_with = "or_default")]
    pub(super) revision: Int,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeyValue {
    #[serde(deserialize_with = "or_default")]
    pub(super) key: Bytes64,
    #[serde(deserialize_with = "or_default")]
    pub(super) value: Bytes64,
    #[serde(deserialize_with = "or_default")]
    pub(super) mod_revision: Int,
    #[serde(deserialize_with = "or_default")]
    pub(super) create_revision: Int,
}

/// What a range or a transaction answers.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Range {
    #[serde(deserialize_with = "or_default")]
    pub(super) kvs: Vec<KeyValue>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct TxnAnswer {
    #[serde(deserialize_with = "or_default")]
    pub(super) header: Header,
    #[serde(deserialize_with = "or_default")]
    pub(super) succeeded: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) responses: Vec<Operation>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Operation {
    #[serde(deserialize_with = "or_default")]
    pub(super) response_range: Range,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LeaseAnswer {
    #[serde(rename = "ID", deserialize_with = "or_default")]
    pub(super) id: Int,
    #[serde(rename = "TTL", deserialize_with = "or_default")]
    pub(super) ttl: Int,
}

/// Stream answers come wrapped.
#[derive(Debug, Deserialize)]
struct Wrapped {
    result: LeaseAnswer,
}

/// What went wrong, as far as the gateway says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Complaint {
    /// Of gRPC.
    code: Option<u64>,
    words: Option<String>,
}

impl Complaint {
    fn read(body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let words = |name: &str| match body.get(name)? {
            Value::Null => None,
            Value::String(words) => Some(words.clone()).filter(|words| !words.is_empty()),
            other => Some(other.to_string()),
        };
        Self { code: body.get("code").and_then(Value::as_u64), words: words("message").or_else(|| words("error")) }
    }
}

/// What is `null` is left out.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Connections to etcd.
#[derive(Debug)]
pub(super) struct Etcd {
    endpoint: Endpoint,
    client: Client,
    token: Mutex<Option<HeaderValue>>,
}

impl Etcd {
    pub(super) fn new(endpoint: Endpoint) -> Result<Self, DatabaseError> {
        let unusable = |source| DatabaseError::Settings { endpoint: endpoint.to_string(), source };
        let tls = tls(&endpoint).map_err(unusable)?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(endpoint.timeout)
            .build()
            .map_err(|error| unusable(error.without_url().into()))?;
        Ok(Self { client, endpoint, token: Mutex::default() })
    }

    /// One transaction; `compare` and `success` as etcd has them.
    pub(super) async fn txn(&self, compare: Vec<Value>, success: Vec<Value>) -> Result<TxnAnswer, DatabaseError> {
        self.ask("kv/txn", &json!({ "compare": compare, "success": success })).await
    }

    pub(super) async fn grant(&self, ttl: Duration) -> Result<LeaseAnswer, DatabaseError> {
        self.ask("lease/grant", &json!({ "TTL": ttl.as_secs().max(1).to_string() })).await
    }

    /// The time the lease has from now on; none if it has ended.
    pub(super) async fn keep_alive(&self, lease: Int) -> Result<Option<Duration>, DatabaseError> {
        let answer: Wrapped = self.ask("lease/keepalive", &json!({ "ID": lease })).await?;
        let ttl = u64::try_from(answer.result.ttl.0).unwrap_or(0);
        Ok((ttl > 0 && answer.result.id == lease).then(|| Duration::from_secs(ttl)))
    }

    pub(super) async fn revoke(&self, lease: Int) -> Result<(), DatabaseError> {
        self.ask::<Value>("lease/revoke", &json!({ "ID": lease })).await.map(drop)
    }

    /// Asks, with a new proof of who asks if the old one is not taken any more.
    async fn ask<A: DeserializeOwned>(&self, path: &str, question: &Value) -> Result<A, DatabaseError> {
        let known = self.token.lock().await.clone();
        let proof = match (&self.endpoint.user, known) {
            (Some(_), None) => Some(self.log_in().await?),
            (_, known) => known,
        };
        match self.post(path, question, proof.as_ref()).await {
            Err(Failure::Stale(_)) if self.endpoint.user.is_some() => {
                let proof = self.log_in().await?;
                self.post(path, question, Some(&proof)).await.map_err(Failure::into_error)
            }
            answer => answer.map_err(Failure::into_error),
        }
    }

    async fn log_in(&self) -> Result<HeaderValue, DatabaseError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Zeroizing<String>,
        }
        let Some((name, password)) = &self.endpoint.user else {
            return Err(self.denied("it wants to know who asks".to_owned()));
        };
        let question = json!({ "name": name, "password": password.as_str() });
        let answer: Answer = self.post("auth/authenticate", &question, None).await.map_err(Failure::into_error)?;
        let mut token = HeaderValue::from_str(&answer.token).map_err(|error| self.answer(error))?;
        token.set_sensitive(true);
        *self.token.lock().await = Some(token.clone());
        Ok(token)
    }

    async fn post<A: DeserializeOwned>(
        &self,
        path: &str,
        question: &Value,
        proof: Option<&HeaderValue>,
    ) -> Result<A, Failure> {
        let url = format!("{}/v3/{path}", self.endpoint);
        let mut request = self.client.post(url).header(CONTENT_TYPE, "application/json").body(question.to_string());
        if let Some(proof) = proof {
            request = request.header(AUTHORIZATION, proof.clone());
        }
        let mut response = request.send().await.map_err(|error| self.unreachable(error.without_url()))?;
        let body = self.read(&mut response).await?;
        if response.status().is_success() {
            return serde_json::from_slice(&body).map_err(|error| self.answer(error).into());
        }
        Err(self.complaint(Complaint::read(&body), response.status().as_u16()))
    }

    async fn read(&self, response: &mut Response) -> Result<Vec<u8>, DatabaseError> {
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.unreachable(error.without_url()))? {
            if body.len() + piece.len() > MAX_ANSWER {
                return Err(self.answer(io::Error::other("the answer is too long")));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// By the codes of gRPC, which the gateway passes on.
    fn complaint(&self, complaint: Complaint, status: u16) -> Failure {
        let words = complaint.words.unwrap_or_else(|| format!("HTTP status {status}"));
        let reason: String = words.chars().take(MAX_WORDS).collect();
        match complaint.code {
            Some(16) => Failure::Stale(self.denied(reason)),
            Some(7) => self.denied(reason).into(),
            Some(1 | 4 | 14) => self.unreachable(io::Error::other(reason)).into(),
            _ if reason.contains("authentication failed") || reason.contains("user name is empty") => {
                self.denied(reason).into()
            }
            _ => DatabaseError::Refused { endpoint: self.endpoint.to_string(), reason }.into(),
        }
    }

    fn denied(&self, reason: String) -> DatabaseError {
        DatabaseError::Denied { endpoint: self.endpoint.to_string(), reason }
    }

    fn unreachable(&self, source: impl Into<Box<dyn Error + Send + Sync>>) -> DatabaseError {
        DatabaseError::Unreachable { endpoint: self.endpoint.to_string(), source: source.into() }
    }

    pub(super) fn answer(&self, source: impl Into<Box<dyn Error + Send + Sync>>) -> DatabaseError {
        DatabaseError::Answer { endpoint: self.endpoint.to_string(), source: source.into() }
    }
}

/// Whether another proof may help.
enum Failure {
    Stale(DatabaseError),
    Other(DatabaseError),
}

impl Failure {
    fn into_error(self) -> DatabaseError {
        match self {
            Self::Stale(error) | Self::Other(error) => error,
        }
    }
}

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Self {
        Self::Other(error)
    }
}

/// The system's authorities, and the client's certificate if there is one.
fn tls(endpoint: &Endpoint) -> Result<ClientConfig, Box<dyn Error + Send + Sync>> {
    let mut roots = RootCertStore::empty();
    if endpoint.protocol == Protocol::Https {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = builder.with_root_certificates(roots);
    let Some(file) = &endpoint.certificate else { return Ok(builder.with_no_client_auth()) };
    let unreadable = |error| format!("{} is no certificate with its key: {error}", file.display());
    let chain = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let key = PrivateKeyDer::from_pem_file(file).map_err(unreadable)?;
    Ok(builder.with_client_auth_cert(chain.map_err(unreadable)?, key)?)
}

/// The end of the range of all keys that begin with `prefix`.
pub(super) fn end_of(prefix: &str) -> Bytes64 {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Bytes64(end);
        }
    }
    // To the last key of all.
    Bytes64(vec![0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_bytes_are_as_the_gateway_writes_them() {
        let text = r#"{"header":{"revision":"7"},"succeeded":true,
            "responses":[{"response_range":{"kvs":[{"key":"Zm9v","mod_revision":"2","value":"YmFy"}]}},{}]}"#;
        let answer: TxnAnswer = serde_json::from_str(text).unwrap();
        assert_eq!((answer.header.revision, answer.succeeded, answer.responses.len()), (Int(7), true, 2));
        let [found] = answer.responses[0].response_range.kvs.as_slice() else { panic!("one key") };
        assert_eq!(
            (found.key.0.as_slice(), found.value.0.as_slice(), found.mod_revision),
            (&b"foo"[..], &b"bar"[..], Int(2))
        );
        assert_eq!(serde_json::to_string(&Int(-3)).unwrap(), "\"-3\"");
    }

    #[test]
    fn what_is_null_is_left_out() {
        let text =
            r#"{"header":null,"succeeded":true,"responses":[{"response_range":{"kvs":null}},{"response_range":null}]}"#;
        let answer: TxnAnswer = serde_json::from_str(text).unwrap();
        assert_eq!((answer.header.revision, answer.succeeded, answer.responses.len()), (Int(0), true, 2));
        let lease: LeaseAnswer = serde_json::from_str(r#"{"ID":"7","TTL":null,"error":""}"#).unwrap();
        assert_eq!((lease.id, lease.ttl), (Int(7), Int(0)));
    }

    #[test]
    fn a_complaint_is_understood_as_far_as_it_goes() {
        let read = |body: &str| {
            let Complaint { code, words } = Complaint::read(body.as_bytes());
            (code, words.unwrap_or_default())
        };
        assert_eq!(read(r#"{"error":"etcdserver: invalid auth token","code":16,"message":null}"#).0, Some(16));
        assert_eq!(read(r#"{"error":{"a":1},"code":"16"}"#), (None, r#"{"a":1}"#.to_owned()));
        assert_eq!(read(r#"{"message":"no","error":"x","code":7}"#), (Some(7), "no".to_owned()));
        assert_eq!(read("<html>"), (None, String::new()));
    }

    #[test]
    fn the_end_of_a_range() {
        assert_eq!(end_of("/pb/").0, b"/pb0");
        assert_eq!(end_of("").0, [0]);
    }

    #[test]
    fn passwords_are_not_shown() {
        let user = Some(("sdp".to_owned(), Zeroizing::new("hunter2".to_owned())));
        let endpoint = Endpoint { user, host: "::1".into(), ..Endpoint::default() };
        let shown = format!("{endpoint:?} {endpoint}");
        assert!(shown.contains("http://[::1]:2379") && !shown.contains("hunter2"), "{shown}");
    }
}
