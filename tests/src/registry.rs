//! A real registry over TLS, for one test.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{command, run, syncpoint};

/// docker-registry on loopback with TLS and a user; ends when dropped. See `tests/testbed/registry`.
#[derive(Debug)]
pub struct Registry {
    dir: TempDir,
    port: u16,
}

impl Registry {
    /// Starts one on a port of its own.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(port: u16) -> Self {
        let registry = Self { dir: TempDir::new().expect("a temporary folder"), port };
        registry.restart();
        registry
    }

    /// Starts it again, with the same data, after [`Registry::kill`].
    pub fn restart(&self) {
        run(command("tests/testbed/registry", [self.dir.path().as_os_str(), self.port.to_string().as_ref()])
            .stderr(std::process::Stdio::inherit()));
    }

    /// Kills it at once.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Lets it answer nobody until [`Registry::resume`].
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = std::fs::read_to_string(self.dir.path().join("pid")).expect("the registry's pid file");
        crate::send(pid.trim().parse().expect("a number in the registry's pid file"), signal);
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// `127.0.0.1:PORT/NAME`.
    #[must_use]
    pub fn repository(&self, name: &str) -> String {
        format!("{}/{name}", self.address())
    }

    /// The user's credentials in podman's form.
    #[must_use]
    pub fn auth_file(&self) -> PathBuf {
        self.dir.path().join("auth.json")
    }

    /// The certificate of the authority that signed the server's.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Where its files are.
    #[must_use]
    pub fn data(&self) -> &Path {
        self.dir.path()
    }

    /// `syncpoint ARGUMENTS` with the credentials of this registry.
    #[must_use]
    pub fn syncpoint<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> std::process::Command {
        let mut command = syncpoint(arguments);
        command.env("REGISTRY_AUTH_FILE", self.auth_file());
        command
    }

    /// Another program with the credentials of this registry, as podman, skopeo, cosign and oras find them.
    #[must_use]
    pub fn tool<S: AsRef<std::ffi::OsStr>>(
        &self,
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> std::process::Command {
        let mut tool = command(program, arguments);
        // cosign and oras read docker's configuration, the others podman's.
        let docker = self.dir.path().join("docker");
        std::fs::create_dir_all(&docker).expect("a folder for docker's configuration");
        std::fs::copy(self.auth_file(), docker.join("config.json")).expect("the credentials in docker's form");
        tool.env("REGISTRY_AUTH_FILE", self.auth_file()).env("DOCKER_CONFIG", docker).env("COSIGN_PASSWORD", "test");
        tool
    }

    /// Tags of a repository, as the registry itself lists them (none if there is no such repository).
    #[must_use]
    pub fn tags(&self, repository: &str) -> Vec<String> {
        let password = std::fs::read_to_string(self.dir.path().join("password")).expect("the password file");
        let answer = run(&mut command(
            "curl",
            [
                "--silent",
                "--user",
                &format!("sdp:{}", password.trim()),
                &format!("https://{}/v2/{repository}/tags/list", self.address()),
            ],
        ));
        let answer: serde_json::Value = serde_json::from_str(&answer).expect("the registry answers in JSON");
        let tags = answer["tags"].as_array().map(Vec::as_slice).unwrap_or_default();
        tags.iter().filter_map(|tag| tag.as_str().map(str::to_owned)).collect()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.kill();
    }
}
