//! Who a member is and where it meets the others, as users of criu-coordinator tell it: by `criu-coordinator.json`, or by
//! the same words in the environment.
//!
//! | word | environment | in the image folder | in `/etc/criu` |
//! |---|---|---|---|
//! | `id` | `SYNCPOINT_HOOK_ID` | yes | found by `dependencies` |
//! | `dependencies` | `.._DEPENDENCIES`, `A:B` | `"A:B"` | `{"A": ["B"], ..}`, by beginnings of container ids |
//! | `address`, `port` | `.._ADDRESS`, `.._PORT` | yes | yes |
//! | `log-file` | `.._LOG_FILE` | no | yes |
//! | `ca`, `certificate`, `key` | `.._CA`, .. | no | yes; `{id}` in them stands for the member |
//! | `state-dir` | `.._STATE_DIR` | no | yes |
//!
//! The environment comes first, then the image folder, then `/etc/criu`. What lies in an image folder may have come with an
//! image of anybody's: it says who the member is, but names no file of this host.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use image_format::{MemberId, ParseIdError};
use rustix::fs::OFlags;
use serde::Deserialize;

use crate::proto::SessionKind;
use crate::ticket::Remote;
use crate::tls::TlsFiles;

const FILE: &str = "criu-coordinator.json";
const GLOBAL: &str = "/etc/criu";
const PREFIX: &str = "SYNCPOINT_HOOK_";
const LARGEST: u64 = 1 << 20;

/// Those of criu-coordinator.
const DEFAULT_ADDRESS: &str = "127.0.0.1";
const DEFAULT_PORT: &str = "8080";

const DEFAULT_STATE: &str = "/run/syncpoint/joined";

/// Everything that a hook without a ticket must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) member: MemberId,
    pub(super) dependencies: Vec<MemberId>,
    pub(super) remote: Remote,
    pub(super) log_file: Option<PathBuf>,
    pub(super) state: PathBuf,
}

/// Why the words make no sense.
#[derive(Debug, thiserror::Error)]
pub(super) enum WordsError {
    #[error("cannot read {path:?}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path:?} is not as criu-coordinator has it")]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("cannot write {path:?}, by which a restore would know who it is")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the id cannot be a member's")]
    Id(#[from] ParseIdError),
    #[error("there is no id")]
    NoId,
    #[error("no {word} is given: set it in {GLOBAL}/{FILE}, or {PREFIX}{variable}")]
    Missing { word: &'static str, variable: &'static str },
    #[error("{PREFIX}{variable} is no text")]
    NoText { variable: &'static str },
}

/// The words of one source.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Words {
    id: Option<String>,
    dependencies: Option<Dependencies>,
    address: Option<String>,
    port: Option<Port>,
    log_file: Option<PathBuf>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Dependencies {
    Colons(String),
    List(Vec<String>),
    Map(BTreeMap<String, Vec<String>>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Port {
    Text(String),
    Number(u16),
}

/// What CRIU says of the member.
pub(super) struct Criu<'a> {
    pub(super) kind: SessionKind,
    pub(super) images: Option<&'a Path>,
    pub(super) init: Option<i32>,
}

/// What is told of this member; `None` where nothing is, and the hook is silent.
pub(super) fn find(
    env: &impl Fn(&str) -> Option<OsString>,
    criu: &Criu<'_>,
    global: &Path,
) -> Result<Option<Settings>, WordsError> {
    let mut words = from_environment(env)?;
    // The others may stand in the environment of everything on a host; this one means that there is something to join.
    let asked = words.address.is_some();
    let local = match criu.images {
        Some(images) => from_file(&images.join(FILE))?.map(|local| Words {
            log_file: None,
            ca: None,
            certificate: None,
            key: None,
            state_dir: None,
            ..local
        }),
        None => None,
    };
    for more in [local, from_file(&global.join(FILE))?].into_iter().flatten() {
        words = words.or(more, criu)?;
    }
    match words.id {
        Some(_) => words.settle().map(Some),
        None if asked => Err(WordsError::NoId),
        // A container of which the map knows nothing is dumped and restored by itself.
        None => Ok(None),
    }
}

/// The folder of the file that speaks for all containers of a host.
pub(super) fn global() -> &'static Path {
    Path::new(GLOBAL)
}

impl Words {
    /// These, and where they are silent the others.
    fn or(mut self, other: Self, criu: &Criu<'_>) -> Result<Self, WordsError> {
        let mut dependencies = other.dependencies;
        if let (None, Some(Dependencies::Map(map))) = (&self.id, &dependencies) {
            // Only the tasks tell which container it is, and before a restore there are none.
            let found = match (criu.kind, criu.init) {
                (SessionKind::Dump, Some(init)) => name_of(init).and_then(|name| set_of(map, &name)),
                (SessionKind::Dump | SessionKind::Restore, _) => None,
            };
            if let Some((id, others)) = found {
                if let Some(images) = criu.images {
                    leave_for_restore(&images.join(FILE), &id, &others)?;
                }
                self.id = Some(id);
                dependencies = Some(Dependencies::List(others));
            }
        } else if let (Some(id), Some(Dependencies::Map(map))) = (&self.id, &dependencies) {
            dependencies = set_of(map, id).map(|(_, others)| Dependencies::List(others));
        }
        Ok(Self {
            id: self.id.or(other.id),
            dependencies: self.dependencies.or(dependencies),
            address: self.address.or(other.address),
            port: self.port.or(other.port),
            log_file: self.log_file.or(other.log_file),
            ca: self.ca.or(other.ca),
            certificate: self.certificate.or(other.certificate),
            key: self.key.or(other.key),
            state_dir: self.state_dir.or(other.state_dir),
        })
    }

    fn settle(self) -> Result<Settings, WordsError> {
        let member: MemberId = self.id.ok_or(WordsError::NoId)?.parse()?;
        let dependencies: Vec<String> = match self.dependencies {
            None | Some(Dependencies::Map(_)) => Vec::new(),
            Some(Dependencies::Colons(text)) => {
                text.split(':').map(str::trim).filter(|id| !id.is_empty()).map(str::to_owned).collect()
            }
            Some(Dependencies::List(list)) => list,
        };
        let dependencies = dependencies.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
        let file = |path: Option<PathBuf>, word, variable| {
            let path = path.ok_or(WordsError::Missing { word, variable })?;
            // A path that is no text has no place for an id either.
            Ok::<_, WordsError>(path.to_str().map(|text| text.replace("{id}", member.as_str()).into()).unwrap_or(path))
        };
        let tls = TlsFiles {
            ca: file(self.ca, "ca", "CA")?,
            certificate: file(self.certificate, "certificate", "CERTIFICATE")?,
            key: file(self.key, "key", "KEY")?,
        };
        let host = self.address.unwrap_or_else(|| DEFAULT_ADDRESS.to_owned());
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host };
        let port = match self.port {
            None => DEFAULT_PORT.to_owned(),
            Some(Port::Text(text)) => text,
            Some(Port::Number(number)) => number.to_string(),
        };
        let log_file = self.log_file.filter(|file| file.as_os_str() != "-");
        let state = self.state_dir.unwrap_or_else(|| DEFAULT_STATE.into());
        Ok(Settings {
            member,
            dependencies,
            remote: Remote { address: format!("{host}:{port}"), tls },
            log_file,
            state,
        })
    }
}

fn from_environment(env: &impl Fn(&str) -> Option<OsString>) -> Result<Words, WordsError> {
    let text = |variable| {
        let value = env(&format!("{PREFIX}{variable}")).filter(|value| !value.is_empty());
        value.map(|value| value.into_string().map_err(|_| WordsError::NoText { variable })).transpose()
    };
    let path =
        |variable: &str| env(&format!("{PREFIX}{variable}")).filter(|value| !value.is_empty()).map(PathBuf::from);
    Ok(Words {
        id: text("ID")?,
        dependencies: text("DEPENDENCIES")?.map(Dependencies::Colons),
        address: text("ADDRESS")?,
        port: text("PORT")?.map(Port::Text),
        log_file: path("LOG_FILE"),
        ca: path("CA"),
        certificate: path("CERTIFICATE"),
        key: path("KEY"),
        state_dir: path("STATE_DIR"),
    })
}

fn from_file(path: &Path) -> Result<Option<Words>, WordsError> {
    let failed = |source| WordsError::Read { path: path.to_owned(), source };
    // Neither a link out of an image nor a pipe that nobody writes to.
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0);
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        // A folder that this user may not look into tells it nothing.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).map_err(failed)?;
    let words = serde_json::from_slice(&bytes).map_err(|source| WordsError::Parse { path: path.to_owned(), source })?;
    Ok(Some(words))
}

/// The name by which a map may know a container, or a process that is in none: the id in its cgroup, or what it is called.
fn name_of(init: i32) -> Option<String> {
    let file = |name: &str| std::fs::read(format!("/proc/{init}/{name}")).ok();
    let cgroups = file("cgroup")?;
    let cgroups = String::from_utf8_lossy(&cgroups);
    let is_id = |part: &&str| part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut parts = cgroups.split(|c: char| !c.is_ascii_alphanumeric());
    match parts.rfind(is_id) {
        Some(id) => Some(id.to_owned()),
        // A process may be called by bytes that are no text.
        None => file("comm").map(|name| String::from_utf8_lossy(&name).trim().to_owned()),
    }
}

/// The name that the map has for this one, which is the longest beginning of it, and everybody who belongs together with it,
/// in whichever direction.
fn set_of(map: &BTreeMap<String, Vec<String>>, name: &str) -> Option<(String, Vec<String>)> {
    let id = map.keys().filter(|key| !key.is_empty() && name.starts_with(key.as_str())).max_by_key(|key| key.len())?;
    let mut set = BTreeSet::from([id.as_str()]);
    let mut open = vec![id.as_str()];
    while let Some(one) = open.pop() {
        let named = map.get(one).into_iter().flatten().map(String::as_str);
        let naming =
            map.iter().filter(|(_, others)| others.iter().any(|other| other == one)).map(|(key, _)| key.as_str());
        for other in named.chain(naming) {
            if set.insert(other) {
                open.push(other);
            }
        }
    }
    set.remove(id.as_str());
    Some((id.clone(), set.into_iter().map(str::to_owned).collect()))
}

/// Writes into the images who it is, as criu-coordinator does: a restore has no tasks yet that would tell.
fn leave_for_restore(path: &Path, id: &str, dependencies: &[String]) -> Result<(), WordsError> {
    let words = serde_json::json!({ "id": id, "dependencies": dependencies.join(":") });
    let write = || OpenOptions::new().write(true).create_new(true).open(path)?.write_all(words.to_string().as_bytes());
    write().map_err(|source| WordsError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `/etc/criu` and an image folder, and what is found of them.
    struct Host {
        global: tempfile::TempDir,
        images: tempfile::TempDir,
    }

    impl Host {
        fn new(global: &str, local: &str) -> Self {
            let host =
                Self { global: tempfile::tempdir().expect("a folder"), images: tempfile::tempdir().expect("a folder") };
            for (folder, text) in [(&host.global, global), (&host.images, local)] {
                if !text.is_empty() {
                    std::fs::write(folder.path().join(FILE), text).expect("written");
                }
            }
            host
        }

        fn find(
            &self,
            kind: SessionKind,
            init: Option<i32>,
            env: &[(&str, &str)],
        ) -> Result<Option<Settings>, WordsError> {
            let env = |name: &str| {
                let found = env.iter().find(|(variable, _)| name.strip_prefix(PREFIX) == Some(*variable));
                found.map(|(_, value)| OsString::from(value))
            };
            find(&env, &Criu { kind, images: Some(self.images.path()), init }, self.global.path())
        }
    }

    const FILES: &str = r#""ca": "/c/ca.crt", "certificate": "/c/{id}.crt", "key": "/c/{id}.key""#;

    fn ids(members: &[MemberId]) -> Vec<&str> {
        members.iter().map(MemberId::as_str).collect()
    }

    #[test]
    fn nothing_told_is_nothing_found() {
        let found = Host::new("", "").find(SessionKind::Dump, None, &[("CA", "/c/ca.crt"), ("ID", "")]);
        assert!(matches!(found, Ok(None)));
        let others = format!(r#"{{"address": "10.0.0.1", "dependencies": {{"0123": ["4567"]}}, {FILES}}}"#);
        let me = i32::try_from(std::process::id()).expect("a pid");
        for (kind, init) in [(SessionKind::Dump, Some(me)), (SessionKind::Restore, None)] {
            let host = Host::new(&others, "");
            assert!(matches!(host.find(kind, init, &[]), Ok(None)), "the map does not know this one");
            assert!(!host.images.path().join(FILE).exists());
        }
    }

    #[test]
    fn the_image_folder_says_who_and_the_host_says_how() {
        let local = r#"{"id": "A", "dependencies": "B:C", "address": "10.0.0.1", "port": "9", "log-file": "/etc/passwd",
                        "key": "/etc/shadow", "state-dir": "/"}"#;
        let global = format!(r#"{{"address": "10.0.0.2", "port": 8081, "log-file": "/var/log/x", {FILES}}}"#);
        let found = Host::new(&global, local).find(SessionKind::Restore, None, &[("PORT", "7")]).expect("words");
        let found = found.expect("settings");
        assert_eq!((found.member.as_str(), ids(&found.dependencies)), ("A", vec!["B", "C"]));
        assert_eq!(found.remote.address, "10.0.0.1:7");
        assert_eq!(found.remote.tls.key, Path::new("/c/A.key"), "an image names no file of this host");
        assert_eq!(
            (found.log_file.as_deref(), found.state.as_path()),
            (Some("/var/log/x".as_ref()), DEFAULT_STATE.as_ref())
        );
    }

    #[test]
    fn the_environment_alone_will_do() {
        let env =
            [("ID", "a"), ("DEPENDENCIES", "b"), ("CA", "1"), ("CERTIFICATE", "2"), ("KEY", "3"), ("ADDRESS", "::1")];
        let found = Host::new("", "").find(SessionKind::Dump, None, &env).expect("words").expect("settings");
        assert_eq!((found.remote.address.as_str(), ids(&found.dependencies)), ("[::1]:8080", vec!["b"]));
        let found = Host::new("", "").find(SessionKind::Dump, None, &env[..2]);
        assert!(matches!(found, Err(WordsError::Missing { word: "ca", .. })), "no plain TCP");
        let found = Host::new("", "").find(SessionKind::Dump, None, &[("ADDRESS", "::1")]);
        assert!(matches!(found, Err(WordsError::NoId)));
        let found = Host::new("", "").find(SessionKind::Dump, None, &[("ID", "../x")]);
        assert!(matches!(found, Err(WordsError::Missing { .. } | WordsError::Id(_))));
    }

    #[test]
    fn a_map_names_containers_by_how_their_ids_begin() {
        let map = |text: &str| serde_json::from_str::<BTreeMap<String, Vec<String>>>(text).expect("a map");
        let found = map(r#"{"ab": ["x"], "abc": ["d"], "e": ["abc"], "f": ["g"]}"#);
        assert_eq!(set_of(&found, "abcdef"), Some(("abc".to_owned(), vec!["d".to_owned(), "e".to_owned()])));
        assert_eq!(set_of(&found, "zz"), None);
        // This process is in no container, or in one: either way the map knows it by what it is called.
        let me = i32::try_from(std::process::id()).expect("a pid");
        let name = name_of(me).expect("a name");
        let global = format!(r#"{{"dependencies": {{"{name}": ["b"], "c": ["{name}"]}}, {FILES}}}"#);
        let host = Host::new(&global, "");
        let found = host.find(SessionKind::Dump, Some(me), &[]).expect("words").expect("settings");
        assert_eq!((found.member.as_str(), ids(&found.dependencies)), (&*name, vec!["b", "c"]));
        let restored = host.find(SessionKind::Restore, None, &[]).expect("words").expect("the images tell it");
        assert_eq!(restored, found);
    }

    #[test]
    fn what_is_no_file_or_no_json_is_an_error() {
        for text in ["{", "[]", r#"{"id": 5}"#] {
            assert!(matches!(Host::new("", text).find(SessionKind::Restore, None, &[]), Err(WordsError::Parse { .. })));
        }
        let host = Host::new("", "");
        std::os::unix::fs::symlink("/etc/passwd", host.images.path().join(FILE)).expect("a link");
        assert!(matches!(host.find(SessionKind::Restore, None, &[]), Err(WordsError::Read { .. })));
    }
}
