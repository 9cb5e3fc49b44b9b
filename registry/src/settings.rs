//! How registries are reached. Plain data: whoever fills it reads flags and environment, this library does not.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::Registries;

/// How to reach registries, prove who one is, and how patient to be. `Default` is usable: TLS with the system's roots,
/// no credentials.
///
/// Two things are left to the libraries below and so do come from the environment, as with other tools: `HTTPS_PROXY`,
/// `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` (loopback is never reached through a proxy), and `SSL_CERT_FILE` and
/// `SSL_CERT_DIR` in place of the system's roots.
#[derive(Clone)]
pub struct Settings {
    /// Plain http instead of TLS, without encryption and without knowing who answers.
    pub plain_http: bool,
    /// PEM files with certificate authorities that are trusted besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// Folders like `/etc/containers/certs.d`: in `HOST[:PORT]/`, `*.crt` are authorities, and `*.cert` with `*.key` a
    /// client certificate. Earlier folders win.
    pub certs_dirs: Vec<PathBuf>,
    /// A client certificate chain and its key, PEM. Beats those in [`Settings::certs_dirs`].
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// Files in the form of containers' `auth.json` or docker's `config.json`, earlier ones win. Missing ones are skipped.
    pub auth_files: Vec<PathBuf>,
    /// User and password; beat all files.
    pub credentials: Option<(String, String)>,
    /// Transfers at the same time.
    pub jobs: usize,
    /// How often a request is tried again after trouble that may pass; a transfer that goes on meanwhile starts to count
    /// anew.
    pub retries: u32,
    /// How long to wait for a connection, an answer, or the next piece of a body. There is no limit on a whole body.
    pub timeout: Duration,
    /// Sends blobs in pieces of 4 MiB, one request each, for proxies that limit the size of a request. Slower, but a
    /// broken piece is sent again by itself.
    pub chunked_upload: bool,
    /// What `registries.conf` says.
    pub registries: Registries,
    /// Hosts (`HOST` or `HOST:PORT`) besides the registry's own to which it may have content sent.
    pub upload_hosts: Vec<String>,
    /// The `User-Agent` of requests.
    pub user_agent: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            plain_http: false,
            ca_files: Vec::new(),
            certs_dirs: Vec::new(),
            client_cert: None,
            auth_files: Vec::new(),
            credentials: None,
            jobs: 4,
            retries: 5,
            timeout: Duration::from_secs(30),
            chunked_upload: false,
            registries: Registries::default(),
            upload_hosts: Vec::new(),
            user_agent: concat!("syncpoint/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("plain_http", &self.plain_http)
            .field("ca_files", &self.ca_files)
            .field("certs_dirs", &self.certs_dirs)
            .field("client_cert", &self.client_cert)
            .field("auth_files", &self.auth_files)
            .field("credentials", &self.credentials.as_ref().map(|(user, _)| user))
            .field("jobs", &self.jobs)
            .field("retries", &self.retries)
            .field("timeout", &self.timeout)
            .field("chunked_upload", &self.chunked_upload)
            .field("registries", &self.registries)
            .field("upload_hosts", &self.upload_hosts)
            .field("user_agent", &self.user_agent)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_password() {
        let settings = Settings { credentials: Some(("sdp".into(), "hunter2".into())), ..Settings::default() };
        let shown = format!("{settings:?}");
        assert!(shown.contains("sdp") && !shown.contains("hunter2"), "{shown}");
    }
}
