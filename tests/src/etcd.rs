//! A real etcd, for one test.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::{command, run, syncpoint, wait_until};

/// etcd on loopback; ends when dropped.
#[derive(Debug)]
pub struct Etcd {
    dir: TempDir,
    port: u16,
    server: Option<Child>,
    /// Whether TLS is spoken, and who may ask, as `NAME:PASSWORD`.
    tls: bool,
    user: Option<String>,
}

impl Etcd {
    /// Starts one, and a port above for its peers, of which it has none.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(port: u16) -> Self {
        let mut etcd = Self::new(port, false);
        etcd.restart();
        etcd
    }

    /// Starts one that speaks TLS only, with a certificate of an authority of its own, and answers nobody but `root`.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start_closed(port: u16, password: &str) -> Self {
        let mut etcd = Self::new(port, true);
        let prefix = |name: &str| etcd.dir.path().join(name).display().to_string();
        run(&mut syncpoint(["key", "ca", "--output-prefix", &prefix("ca")]));
        let issue = ["key", "issue", "--ca", &prefix("ca"), "--coordinator", "127.0.0.1", "--output-prefix"];
        run(syncpoint(issue).arg(prefix("etcd")));
        etcd.restart();
        let user = format!("root:{password}");
        run(&mut etcd.tool(["user", "add", &user]));
        run(&mut etcd.tool(["user", "grant-role", "root", "root"]));
        run(&mut etcd.tool(["auth", "enable"]));
        etcd.user = Some(user);
        etcd
    }

    fn new(port: u16, tls: bool) -> Self {
        Self { dir: TempDir::new().expect("a temporary folder"), port, server: None, tls, user: None }
    }

    /// The certificate of its authority, in PEM.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.tls { "https" } else { "http" }, self.port)
    }

    /// Starts it again, with the same data, after [`Etcd::stop`].
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        let (clients, peers) = (self.url(), format!("http://127.0.0.1:{}", self.port + 1));
        let mut server = Command::new("etcd");
        server.arg("--data-dir").arg(self.dir.path().join("data"));
        server.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        server.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        server.args(["--initial-cluster", &format!("default={peers}"), "--log-level", "error"]);
        if self.tls {
            server.arg("--cert-file").arg(self.dir.path().join("etcd.crt"));
            server.arg("--key-file").arg(self.dir.path().join("etcd.key"));
        }
        self.server = Some(server.stdout(Stdio::null()).spawn().expect("etcd"));
        wait_until("etcd answers", || self.tool(["endpoint", "health"]).output().is_ok_and(|out| out.status.success()));
    }

    /// Ends it at once.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // It may have ended by itself, which is what was wanted.
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `etcdctl ARGUMENTS` on it.
    #[must_use]
    pub fn tool<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut tool = command("etcdctl", arguments);
        tool.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", self.url());
        if self.tls {
            tool.env("ETCDCTL_CACERT", self.authority());
        }
        if let Some(user) = &self.user {
            tool.env("ETCDCTL_USER", user);
        }
        tool
    }

    /// Writes a key as somebody else.
    pub fn put(&self, key: &str, value: &str) {
        run(&mut self.tool(["put", key, value]));
    }

    /// The text of a key; empty if it is not there.
    #[must_use]
    pub fn get(&self, key: &str) -> String {
        run(&mut self.tool(["get", key, "--print-value-only"])).trim_end().to_owned()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
    }
}
