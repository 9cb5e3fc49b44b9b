//! Who one is to a registry: the credential files of podman and docker, and their helper programs.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use base64::{alphabet, engine::DecodePaddingMode};
use image_format::one_line;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::io::AsyncWriteExt;
use zeroize::Zeroizing;

use image_format::SECRET_VARIABLES;

use crate::Settings;
use crate::reference::{HUB, canonical_host};

/// A helper may ask a keyring, or a person; not for ever.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);

/// The name under which helpers and files keep an identity token instead of a user.
const TOKEN_USER: &str = "<token>";

/// The name of docker's files from before `config.json`: the whole of one is what is under `auths`
/// in newer ones.
const OLD_FILE: &str = ".dockercfg";

/// The key under which docker and its helpers keep what is for Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// Why credentials cannot be read or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// A credential file that cannot be read or replaced.
    #[error("failed to access credential file {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A credential file in another form.
    #[error("credential file {} is damaged: {reason}", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// In which way, without its contents.
        reason: String,
    },
    /// A credential helper that does not do its work.
    #[error("credential helper {helper} failed: {reason}")]
    Helper {
        /// The program.
        helper: String,
        /// What it said or did.
        reason: String,
    },
}

/// What proves who one is.
#[derive(Clone)]
pub(crate) enum Credential {
    /// User and password.
    Basic { user: String, password: Zeroizing<String> },
    /// A refresh token for the registry's token server.
    Identity(Zeroizing<String>),
    /// A bearer token for the registry itself.
    Bearer(Zeroizing<String>),
}

impl Credential {
    pub(crate) fn basic(user: &str, password: &str) -> Self {
        Self::Basic { user: user.to_owned(), password: Zeroizing::new(password.to_owned()) }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { user, .. } => f.debug_struct("Basic").field("user", user).finish_non_exhaustive(),
            Self::Identity(_) => f.write_str("Identity(..)"),
            Self::Bearer(_) => f.write_str("Bearer(..)"),
        }
    }
}

/// What came of looking for credentials.
#[derive(Debug, Default)]
pub(crate) struct Sought {
    pub(crate) credential: Option<Credential>,
    /// Why a credential helper gave none. It matters only where credentials are needed.
    pub(crate) trouble: Option<String>,
}

impl From<Credential> for Sought {
    fn from(credential: Credential) -> Self {
        Self { credential: Some(credential), trouble: None }
    }
}

/// The credentials for a repository: those given by hand, or those of the first file that has some; within a file the
/// longest of `HOST/a/b`, `HOST/a`, `HOST` wins. A helper that fails is passed over.
pub(crate) async fn find(host: &str, repository: &str, settings: &Settings) -> Result<Sought, CredentialError> {
    if let Some((user, password)) = &settings.credentials {
        return Ok(Credential::basic(user, password).into());
    }
    let mut trouble = None;
    for path in &settings.auth_files {
        let Some(file) = AuthFile::read(path)? else { continue };
        match file.find(host, repository).await {
            Ok(Some(credential)) => return Ok(credential.into()),
            Ok(None) => {}
            Err(error @ CredentialError::Helper { .. }) => drop(trouble.get_or_insert_with(|| error.to_string())),
            Err(error) => return Err(error),
        }
    }
    Ok(Sought { credential: None, trouble })
}

/// One `auth.json` or `config.json`. Members that nobody here knows are kept.
#[derive(Debug)]
pub(crate) struct AuthFile {
    path: PathBuf,
    content: Map<String, Value>,
}

impl AuthFile {
    /// A file without anything in it.
    pub(crate) fn empty(path: &Path) -> Self {
        Self { path: path.to_owned(), content: Map::new() }
    }

    /// `None` if there is no such file.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, CredentialError> {
        let text = match std::fs::read(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CredentialError::File { path: path.to_owned(), source }),
        };
        if text.trim_ascii().is_empty() {
            return Ok(Some(Self::empty(path)));
        }
        // Positions only: the messages of serde_json can quote what they could not read.
        let content = serde_json::from_slice(&text).map_err(|error| CredentialError::Format {
            path: path.to_owned(),
            reason: format!("no JSON object (line {}, column {})", error.line(), error.column()),
        })?;
        let content = match path.file_name() {
            Some(name) if name == OLD_FILE => Map::from_iter([("auths".to_owned(), Value::Object(content))]),
            _ => content,
        };
        Ok(Some(Self { path: path.to_owned(), content }))
    }

    pub(crate) fn content(&self) -> &Map<String, Value> {
        &self.content
    }

    /// The helper that keeps the credentials of exactly this key.
    pub(crate) fn helper(&self, key: &str) -> Option<&str> {
        named(self.content.get("credHelpers")?, key)?.as_str().filter(|name| !name.is_empty())
    }

    /// Adds or replaces one entry.
    pub(crate) fn set(&mut self, key: &str, user: &str, password: &str) -> Result<(), CredentialError> {
        let auth = STANDARD.encode(Zeroizing::new(format!("{user}:{password}")).as_bytes());
        let entry = serde_json::json!({ "auth": auth });
        self.auths()?.insert(key.to_owned(), entry);
        Ok(())
    }

    /// Removes one entry; whether there was one.
    pub(crate) fn remove(&mut self, key: &str) -> Result<bool, CredentialError> {
        Ok(self.auths()?.remove(key).is_some())
    }

    fn auths(&mut self) -> Result<&mut Map<String, Value>, CredentialError> {
        let Self { path, content } = self;
        match content.entry("auths").or_insert_with(|| Value::Object(Map::new())) {
            Value::Object(auths) => Ok(auths),
            _ => Err(CredentialError::Format { path: path.clone(), reason: "\"auths\" is no object".to_owned() }),
        }
    }

    async fn find(&self, host: &str, repository: &str) -> Result<Option<Credential>, CredentialError> {
        // A helper that fails is told of only if nothing else here has credentials.
        let mut failed = None;
        for key in keys(host, repository) {
            if let Some(helper) = self.helper(&key) {
                match Helper::new(helper)?.find(&key).await {
                    Ok(Some(credential)) => return Ok(Some(credential)),
                    Ok(None) => {}
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(entry) = self.content.get("auths").and_then(|auths| named(auths, &key))
                && let Some(credential) = self.credential(&key, entry)?
            {
                return Ok(Some(credential));
            }
        }
        let store = self.content.get("credsStore").and_then(Value::as_str);
        if let Some(store) = store.filter(|name| !name.is_empty()) {
            match Helper::new(store)?.find(host).await {
                Ok(Some(credential)) => return Ok(Some(credential)),
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    fn credential(&self, key: &str, entry: &Value) -> Result<Option<Credential>, CredentialError> {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let secret = |text: &str| Zeroizing::new(text.to_owned());
        if let Some(token) = text("identitytoken") {
            return Ok(Some(Credential::Identity(secret(token))));
        }
        if let Some(token) = text("registrytoken") {
            return Ok(Some(Credential::Bearer(secret(token))));
        }
        if let Some(auth) = text("auth") {
            return match decode(auth) {
                Some(credential) => Ok(Some(credential)),
                None => Err(CredentialError::Format {
                    path: self.path.clone(),
                    reason: format!("the entry of {key:?} is not USER:PASSWORD in base64"),
                }),
            };
        }
        Ok(text("username").zip(text("password")).map(|(user, password)| Credential::basic(user, password)))
    }
}

/// What is kept under a key. Docker also writes `https://HOST/v1/` for `HOST`, and has several names
/// for its own registry.
fn named<'a>(kept: &'a Value, key: &str) -> Option<&'a Value> {
    let kept = kept.as_object()?;
    let means = |written: &str| {
        let address = written.strip_prefix("https://").or_else(|| written.strip_prefix("http://"));
        let host = address.map_or(Some(written), |address| address.split('/').next());
        host.is_some_and(|host| canonical_host(host) == key)
    };
    kept.get(key).or_else(|| kept.iter().find(|(written, _)| means(written)).map(|(_, value)| value))
}

/// `HOST/a/b/c`, `HOST/a/b`, `HOST/a`, `HOST`.
fn keys(host: &str, repository: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path = repository;
    while !path.is_empty() {
        keys.push(format!("{host}/{path}"));
        path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    keys.push(host.to_owned());
    keys
}

fn decode(auth: &str) -> Option<Credential> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let bytes = Zeroizing::new(GeneralPurpose::new(&alphabet::STANDARD, config).decode(auth.trim()).ok()?);
    // Docker pads some with NUL.
    let (user, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
    Some(Credential::basic(user, password.trim_matches('\0')))
}

/// A `docker-credential-*` program.
#[derive(Debug)]
pub(crate) struct Helper {
    program: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: Zeroizing<String>,
}

impl Helper {
    pub(crate) fn new(name: &str) -> Result<Self, CredentialError> {
        let program = format!("docker-credential-{name}");
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.chars().all(plain) {
            Ok(Self { program })
        } else {
            Err(CredentialError::Helper { helper: program, reason: "its name is not one of a program".to_owned() })
        }
    }

    /// What the helper has for a key, which for Docker Hub is another one to docker than to podman.
    async fn find(&self, key: &str) -> Result<Option<Credential>, CredentialError> {
        match self.get(key).await? {
            None if key == HUB => self.get(HUB_KEY).await,
            found => Ok(found),
        }
    }

    /// `None` when the helper knows nothing of the key.
    async fn get(&self, key: &str) -> Result<Option<Credential>, CredentialError> {
        let (good, output) = self.run("get", key.as_bytes()).await?;
        if !good {
            let said = String::from_utf8_lossy(&output);
            return if is_nothing_there(&said) { Ok(None) } else { Err(self.failed(first_line(&said))) };
        }
        let answer: HelperAnswer = serde_json::from_slice(&output)
            .map_err(|_| self.failed("its answer is not what a helper answers".into()))?;
        Ok(Some(if answer.username == TOKEN_USER {
            Credential::Identity(answer.secret)
        } else {
            Credential::Basic { user: answer.username, password: answer.secret }
        }))
    }

    pub(crate) async fn store(&self, key: &str, user: &str, password: &str) -> Result<(), CredentialError> {
        let entry = serde_json::json!({ "ServerURL": key, "Username": user, "Secret": password });
        let (good, output) = self.run("store", Zeroizing::new(entry.to_string()).as_bytes()).await?;
        if good { Ok(()) } else { Err(self.failed(first_line(&String::from_utf8_lossy(&output)))) }
    }

    /// Whether there was something to forget.
    pub(crate) async fn erase(&self, key: &str) -> Result<bool, CredentialError> {
        let (good, output) = self.run("erase", key.as_bytes()).await?;
        let said = String::from_utf8_lossy(&output);
        if good || is_nothing_there(&said) { Ok(good) } else { Err(self.failed(first_line(&said))) }
    }

    fn failed(&self, reason: String) -> CredentialError {
        CredentialError::Helper { helper: self.program.clone(), reason }
    }

    fn command(&self, action: &str) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        command.arg(action).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        for name in SECRET_VARIABLES {
            command.env_remove(name);
        }
        command
    }

    async fn run(&self, action: &str, input: &[u8]) -> Result<(bool, Zeroizing<Vec<u8>>), CredentialError> {
        let run = async {
            let mut child = self.command(action).spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                match stdin.write_all(input).await {
                    // A helper that answers without having read its input is judged by its answer.
                    Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                    _ => {}
                }
            }
            child.wait_with_output().await
        };
        match tokio::time::timeout(HELPER_TIMEOUT, run).await {
            Ok(Ok(output)) => Ok((output.status.success(), Zeroizing::new(output.stdout))),
            Ok(Err(error)) => Err(self.failed(error.to_string())),
            Err(_) => Err(self.failed(format!("no answer within {} s", HELPER_TIMEOUT.as_secs()))),
        }
    }
}

/// What docker's helpers print, in all their versions, when they have nothing.
fn is_nothing_there(said: &str) -> bool {
    said.to_lowercase().contains("credentials not found")
}

fn first_line(said: &str) -> String {
    let line = one_line(said.lines().next().unwrap_or_default(), 200);
    if line.is_empty() { "it ended with an error and said nothing".to_owned() } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: Value) -> AuthFile {
        let Value::Object(content) = content else { panic!("an object") };
        AuthFile { path: "auth.json".into(), content }
    }

    fn auth(user: &str) -> Value {
        serde_json::json!({ "auth": STANDARD.encode(format!("{user}:p:w")) })
    }

    async fn user(file: &AuthFile, host: &str, repository: &str) -> Option<String> {
        match file.find(host, repository).await.unwrap() {
            Some(Credential::Basic { user, password }) => {
                assert_eq!(*password, "p:w");
                Some(user)
            }
            Some(other) => panic!("{other:?}"),
            None => None,
        }
    }

    #[tokio::test]
    async fn the_longest_prefix_wins() {
        let file = file(serde_json::json!({ "auths": {
            "localhost:5000": auth("host"), "localhost:5000/sdp": auth("sdp"), "localhost:5000/sdp/ledger": auth("ledger"),
        }}));
        assert_eq!(user(&file, "localhost:5000", "sdp/ledger").await.unwrap(), "ledger");
        assert_eq!(user(&file, "localhost:5000", "sdp/ledgers").await.unwrap(), "sdp");
        assert_eq!(user(&file, "localhost:5000", "sdpx").await.unwrap(), "host");
        assert_eq!(user(&file, "localhost", "sdp/ledger").await, None);
    }

    #[tokio::test]
    async fn dockers_form_of_a_host_is_understood() {
        let file = file(serde_json::json!({ "auths": { "https://localhost:5000/v1/": auth("old") } }));
        assert_eq!(user(&file, "localhost:5000", "a/b").await.unwrap(), "old");
    }

    #[tokio::test]
    async fn docker_hub_has_several_names() {
        for key in [
            "https://index.docker.io/v1/",
            "index.docker.io",
            "docker.io",
            "docker.io/me",
            "https://registry-1.docker.io/v2/",
            "registry-1.docker.io",
            "http://docker.io",
        ] {
            let file = file(serde_json::json!({ "auths": { key: auth("hub") } }));
            assert_eq!(user(&file, "docker.io", "me/app").await.as_deref(), Some("hub"), "{key}");
            assert_eq!(user(&file, "index.docker.io.example", "me/app").await, None, "{key}");
        }
    }

    #[tokio::test]
    async fn files_of_older_dockers_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".dockercfg");
        let entries = serde_json::json!({ "https://index.docker.io/v1/": auth("hub"), "localhost:5000": auth("own") });
        std::fs::write(&path, entries.to_string()).unwrap();
        let file = AuthFile::read(&path).unwrap().unwrap();
        assert_eq!(user(&file, "docker.io", "me/app").await.as_deref(), Some("hub"));
        assert_eq!(user(&file, "localhost:5000", "a").await.as_deref(), Some("own"));
    }

    #[tokio::test]
    async fn entries_have_several_forms() {
        let forms = [
            (serde_json::json!({"identitytoken": "i"}), "Identity(..)"),
            (serde_json::json!({"registrytoken": "r"}), "Bearer(..)"),
            (serde_json::json!({"username": "u", "password": "p"}), "Basic { user: \"u\", .. }"),
            (serde_json::json!({"auth": "dTpw"}), "Basic { user: \"u\", .. }"),
        ];
        for (entry, shown) in forms {
            let file = file(serde_json::json!({ "auths": { "localhost": entry } }));
            assert_eq!(format!("{:?}", file.find("localhost", "a").await.unwrap().unwrap()), shown);
        }
        let empty = file(serde_json::json!({ "auths": { "localhost": {} } }));
        assert!(empty.find("localhost", "a").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn damage_is_reported_without_the_content() {
        let broken = file(serde_json::json!({ "auths": { "localhost": { "auth": "aHVudGVyMg==" } } }));
        let error = broken.find("localhost", "a").await.unwrap_err().to_string();
        assert!(error.contains("auth.json") && !error.contains("aHVudGVy"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        std::fs::write(&path, r#"{"auths": hunter2}"#).unwrap();
        let error = AuthFile::read(&path).unwrap_err().to_string();
        assert!(error.contains("auth.json") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn helpers_are_programs_not_paths() {
        assert!(Helper::new("secretservice").is_ok());
        assert!(Helper::new("../../tmp/x").is_err());
    }

    #[tokio::test]
    async fn helpers_get_no_secrets() {
        let command = Helper::new("secretservice").unwrap().command("get");
        let removed: Vec<_> =
            command.as_std().get_envs().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
        assert_eq!(removed, SECRET_VARIABLES);
    }
}
