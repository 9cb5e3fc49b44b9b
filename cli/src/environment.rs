//! The environment, read once: the libraries read none, and a test can say what there is.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use guard::sdp::{Endpoint, Protocol};

/// The variables that mean something to the program, each with one line for people.
pub const VARIABLES: &[(&str, &str)] = &[
    ("REGISTRY_AUTH_FILE", "the file with registry credentials, as for podman and skopeo; --authfile comes first"),
    ("XDG_RUNTIME_DIR", "its containers/auth.json holds credentials"),
    ("XDG_CONFIG_HOME", "its containers/auth.json holds credentials too (default ~/.config)"),
    ("CONTAINERS_REGISTRIES_CONF", "the registries.conf to use, as for podman (default: the user's, else /etc's)"),
    ("DOCKER_CONFIG", "the folder of docker's config.json (default ~/.docker)"),
    ("HOME", "its .config/containers and .docker hold credentials and certificates"),
    ("COSIGN_PASSWORD", "the pass phrase of signing keys, as for cosign; asked for on a terminal if it is not set"),
    ("SYNCPOINT_HOOK", "the program that CRIU runs at its hooks (default: syncpoint-hook beside syncpoint)"),
    ("SSL_CERT_FILE, SSL_CERT_DIR", "where the system's certificate authorities are, if not in the usual places"),
    ("SDP_CONFIG_HOST, SDP_CONFIG_PORT", "where SKA's Configuration DB is (default 127.0.0.1 and 2379)"),
    ("SDP_CONFIG_PROTOCOL", "how it is spoken to: http (the default) or https"),
    ("SDP_CONFIG_CERT", "a PEM file with a client certificate and its key for it"),
    ("SDP_CONFIG_USERNAME, SDP_CONFIG_PASSWORD", "who asks it, if it wants to know"),
    ("HTTPS_PROXY, HTTP_PROXY, NO_PROXY", "proxies on the way to a registry"),
];

/// What the program may know of its environment.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    registry_auth_file: Option<PathBuf>,
    xdg_runtime_dir: Option<PathBuf>,
    xdg_config_home: Option<PathBuf>,
    registries_conf: Option<PathBuf>,
    docker_config: Option<PathBuf>,
    home: Option<PathBuf>,
    password: Option<Secret>,
    hook: Option<PathBuf>,
    sdp: Sdp,
}

/// SKA's variables, as they stand.
#[derive(Debug, Clone, Default)]
struct Sdp {
    host: Option<String>,
    port: Option<String>,
    protocol: Option<String>,
    certificate: Option<PathBuf>,
    username: Option<String>,
    password: Option<Secret>,
}

/// A text that is never shown.
#[derive(Clone)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Environment {
    /// The process's own.
    pub fn from_process() -> Self {
        Self::from(|name| std::env::var_os(name))
    }

    /// What `get` gives. An empty variable counts as unset, but for the pass phrase, which may be empty.
    fn from(get: impl Fn(&str) -> Option<OsString>) -> Self {
        let text = |name| get(name).and_then(|value| value.into_string().ok()).filter(|value| !value.is_empty());
        let path = |name| get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            registry_auth_file: path("REGISTRY_AUTH_FILE"),
            xdg_runtime_dir: path("XDG_RUNTIME_DIR"),
            xdg_config_home: path("XDG_CONFIG_HOME"),
            registries_conf: path("CONTAINERS_REGISTRIES_CONF"),
            docker_config: path("DOCKER_CONFIG"),
            home: path("HOME"),
            password: get("COSIGN_PASSWORD").and_then(|value| value.into_string().ok()).map(Secret),
            hook: path("SYNCPOINT_HOOK"),
            sdp: Sdp {
                host: text("SDP_CONFIG_HOST"),
                port: text("SDP_CONFIG_PORT"),
                protocol: text("SDP_CONFIG_PROTOCOL"),
                certificate: path("SDP_CONFIG_CERT"),
                username: text("SDP_CONFIG_USERNAME"),
                password: text("SDP_CONFIG_PASSWORD").map(Secret),
            },
        }
    }

    /// Files with credentials, in the order in which podman looks.
    pub fn auth_files(&self) -> Vec<PathBuf> {
        if let Some(file) = &self.registry_auth_file {
            return vec![file.clone()];
        }
        let home = |below| self.home.as_ref().map(|home| home.join(below));
        let config = self.xdg_config_home.clone().or_else(|| home(".config"));
        let docker = self.docker_config.clone().or_else(|| home(".docker"));
        let files = [config.map(|dir| dir.join("containers/auth.json")), docker.map(|dir| dir.join("config.json"))];
        std::iter::once(self.runtime_file()).chain(files.into_iter().flatten()).chain(home(".dockercfg")).collect()
    }

    /// The file that `login` writes: the first one that podman would read.
    pub fn login_file(&self) -> PathBuf {
        self.registry_auth_file.clone().unwrap_or_else(|| self.runtime_file())
    }

    fn runtime_file(&self) -> PathBuf {
        match &self.xdg_runtime_dir {
            Some(dir) => dir.join("containers/auth.json"),
            None => PathBuf::from(format!("/run/containers/{}/auth.json", nix::unistd::geteuid())),
        }
    }

    /// The `registries.conf` of this user and the files that add to it, in the order in which
    /// podman reads them.
    pub fn registries_files(&self) -> io::Result<Vec<PathBuf>> {
        let system = PathBuf::from("/etc/containers");
        let own = self.home.as_ref().map(|home| home.join(".config/containers"));
        let name = "registries.conf";
        let main = own.as_ref().map(|own| own.join(name)).filter(|file| file.exists());
        // With a file of one's own, the system's have nothing to say.
        let folders = match (&self.registries_conf, &main) {
            (None, Some(_)) => vec![own.clone()],
            _ => vec![Some(system.clone()), own.clone()],
        };
        // Who may not look into the home folder, as a service with another's $HOME, has none there.
        let absent = |folder: &PathBuf, error: &io::Error| match error.kind() {
            io::ErrorKind::NotFound => true,
            io::ErrorKind::PermissionDenied => Some(folder) == own.as_ref(),
            _ => false,
        };
        let mut more = Vec::new();
        for folder in folders.into_iter().flatten() {
            match files(&folder.join("registries.conf.d")) {
                Ok(files) => {
                    more.extend(files.into_iter().filter(|file| file.extension().is_some_and(|end| end == "conf")))
                }
                Err(error) if absent(&folder, &error) => {}
                Err(error) => return Err(error),
            }
        }
        let main = self.registries_conf.clone().or(main).unwrap_or_else(|| system.join(name));
        Ok(std::iter::once(main).chain(more).collect())
    }

    /// Folders with a folder of certificates for each registry.
    pub fn certs_dirs(&self) -> Vec<PathBuf> {
        let user = self.home.as_ref().map(|home| home.join(".config/containers/certs.d"));
        let system = ["/etc/containers/certs.d", "/etc/docker/certs.d"].map(PathBuf::from);
        user.into_iter().chain(system).collect()
    }

    /// The pass phrase of signing keys, if it is set.
    pub fn password(&self) -> Option<Secret> {
        self.password.clone()
    }

    /// Where SKA's Configuration DB is; in words what is wrong with the variables.
    pub fn configuration_db(&self) -> Result<Endpoint, String> {
        let Sdp { host, port, protocol, certificate, username, password } = &self.sdp;
        let mut endpoint = Endpoint { certificate: certificate.clone(), ..Endpoint::default() };
        if let Some(host) = host {
            endpoint.host.clone_from(host);
        }
        if let Some(port) = port {
            endpoint.port = port.parse().map_err(|_| format!("SDP_CONFIG_PORT is no port: {port}"))?;
        }
        endpoint.protocol = match protocol.as_deref() {
            None | Some("http") => Protocol::Http,
            Some("https") => Protocol::Https,
            Some(other) => return Err(format!("SDP_CONFIG_PROTOCOL is neither http nor https: {other}")),
        };
        if let Some(username) = username {
            let password = password.as_ref().map(|secret| secret.0.clone()).unwrap_or_default();
            endpoint.user = Some((username.clone(), password.into()));
        }
        Ok(endpoint)
    }

    /// The program that CRIU runs at its hooks: the variable's, else the one beside the program.
    pub fn hook_program(&self) -> PathBuf {
        let beside = || std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("syncpoint-hook")));
        self.hook.clone().or_else(beside).unwrap_or_else(|| PathBuf::from("syncpoint-hook"))
    }
}

/// The files of a folder, in the order of their names.
pub fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_conf_is_where_podman_looks() {
        let home = tempfile::tempdir().unwrap();
        let conf = home.path().join(".config/containers");
        fs::create_dir_all(conf.join("registries.conf.d")).unwrap();
        for name in ["registries.conf.d/b.conf", "registries.conf.d/a.conf", "registries.conf.d/README"] {
            fs::write(conf.join(name), "").unwrap();
        }
        let own = ["registries.conf.d/a.conf", "registries.conf.d/b.conf"].map(|name| conf.join(name));
        let home = home.path().to_str().unwrap();
        let both = environment(&[("HOME", home)]).registries_files().unwrap();
        assert_eq!(both[0], PathBuf::from("/etc/containers/registries.conf"));
        assert!(both.ends_with(&own));
        let told =
            environment(&[("HOME", home), ("CONTAINERS_REGISTRIES_CONF", "/a.conf")]).registries_files().unwrap();
        assert!(told[0].to_str() == Some("/a.conf") && told.ends_with(&own));
        fs::write(conf.join("registries.conf"), "").unwrap();
        let only = environment(&[("HOME", home)]).registries_files().unwrap();
        assert_eq!(only, [&[conf.join("registries.conf")][..], &own].concat());
    }

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::from(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn credentials_are_looked_for_where_podman_looks() {
        let all = environment(&[("XDG_RUNTIME_DIR", "/run/user/7"), ("HOME", "/home/a"), ("DOCKER_CONFIG", "")]);
        let files: Vec<_> = all.auth_files().iter().map(|file| file.display().to_string()).collect();
        assert_eq!(
            files,
            [
                "/run/user/7/containers/auth.json",
                "/home/a/.config/containers/auth.json",
                "/home/a/.docker/config.json",
                "/home/a/.dockercfg"
            ]
        );
        let moved = environment(&[("XDG_CONFIG_HOME", "/etc/me"), ("HOME", "/home/a")]);
        assert_eq!(moved.auth_files()[1], PathBuf::from("/etc/me/containers/auth.json"));
        let one = environment(&[("REGISTRY_AUTH_FILE", "/a.json"), ("HOME", "/home/a")]);
        assert_eq!(one.auth_files(), [PathBuf::from("/a.json")]);
        let run = format!("/run/containers/{}/auth.json", nix::unistd::geteuid());
        assert_eq!(environment(&[]).login_file(), PathBuf::from(run));
    }

    #[test]
    fn the_configuration_db_is_where_ska_looks() {
        assert_eq!(environment(&[]).configuration_db().unwrap().to_string(), "http://127.0.0.1:2379");
        let told = [("SDP_CONFIG_HOST", "etcd"), ("SDP_CONFIG_PORT", "1"), ("SDP_CONFIG_PROTOCOL", "https")];
        assert_eq!(environment(&told).configuration_db().unwrap().to_string(), "https://etcd:1");
        for wrong in [("SDP_CONFIG_PORT", "x"), ("SDP_CONFIG_PROTOCOL", "ftp")] {
            assert!(environment(&[wrong]).configuration_db().unwrap_err().contains(wrong.0));
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let environment = environment(&[("COSIGN_PASSWORD", "hunter2")]);
        assert!(!format!("{environment:?}").contains("hunter2"));
        assert_eq!(environment.password().map(|secret| secret.0).as_deref(), Some("hunter2"));
    }
}
