//! Engines: what runs containers. One trait, a driver for each.
//!
//! An engine says what is here ([`Engine::survey`]) and what a dump needs to know of a container
//! ([`Engine::source`]). An engine dumps a container, restores a member, says whether the member runs,
//! and takes away whatever came of it. A container is known to be a restore's own by its annotation
//! [`MARK`], which names the session of that restore and no other: nothing else is ever removed.

pub mod attach;
pub mod claims;
mod criu_log;
mod deaths;
pub mod descriptors;
pub mod files;
pub mod mounts;
pub mod open_files;
mod podman;
mod processes;
mod program;
mod runc;
mod ties;
mod volumes;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, PipeWriter};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use async_trait::async_trait;
use coordinator::SessionId;
use image_format::MemberId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::attach::Attachment;

pub use self::deaths::Deaths;
use self::podman::Podman;
pub use self::processes::{Marks, Ticks, kill, outsiders, wait_gone};
pub use self::program::{Program, ProgramError};
use self::runc::Runc;
pub use self::runc::bundle;
pub use self::runc::bundle::BundleError;
pub use self::ties::{Pod, PodTie, StartMount, Ties};
pub use self::volumes::{Volume, stored};
pub use self::words::chain;

/// The annotation by which runc and crun are told CRIU's configuration file.
pub const CRIU_CONFIG: &str = "org.criu.config";

/// The annotation that names a container's own configuration of CRIU, or the host's, where
/// [`CRIU_CONFIG`] names that of a session which is over: podman can be told in no other way to
/// restore lazily.
pub const OWN_CONFIG: &str = "io.syncpoint.criu-config";

/// The annotation of a container, and the label of a volume, that names the session of the restore
/// that made it.
pub const MARK: &str = "io.syncpoint.restored-by";

/// What runs containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// podman, through `podman container restore`.
    Podman,
    /// runc alone, with a bundle.
    Runc,
}

impl EngineKind {
    /// The program's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Runc => "runc",
        }
    }

    /// The driver.
    pub fn driver(self) -> &'static dyn Engine {
        match self {
            Self::Podman => &Podman,
            Self::Runc => &Runc,
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text is not an engine's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an engine: podman or runc")]
pub struct ParseEngineError {
    text: String,
}

impl FromStr for EngineKind {
    type Err = ParseEngineError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "podman" => Ok(Self::Podman),
            "runc" => Ok(Self::Runc),
            _ => Err(ParseEngineError { text: text.chars().take(64).collect() }),
        }
    }
}

/// Why an engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// One of its programs failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Its answer is not what this program knows.
    #[error("the answer of `{command}` is not understood")]
    Answer {
        /// The question.
        command: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Processes that it left could not be killed, or its mounts not be taken away.
    #[error("what is left of container {container} cannot be taken away")]
    Kill {
        /// The container.
        container: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A volume was filled, and its own folder could not be made as it was.
    #[error("the folder of the volume {volume} cannot get its owner and mode back")]
    Volume {
        /// The volume.
        volume: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What one engine has, as far as a restore needs to know.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// The version of its program, as that prints it.
    pub version: String,
    /// The name of the runtime that it uses.
    pub runtime: Option<String>,
    /// All of its containers.
    pub containers: Vec<Container>,
    /// Those of the wanted networks that are there.
    pub networks: BTreeMap<String, Network>,
    /// All of its volumes, by name.
    pub volumes: BTreeMap<String, Volume>,
    /// The names of its secrets, where a member has any.
    pub secrets: BTreeSet<String>,
    /// Its pods, where a member was in one.
    pub pods: Vec<Pod>,
    /// Those of the wanted images that are there, by id.
    pub images: BTreeSet<String>,
    /// Where it keeps containers.
    pub storage: Option<PathBuf>,
}

/// A container that an engine knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The engine's own id.
    pub id: String,
    /// Its names, the one that people use first.
    pub names: Vec<String>,
    /// Its state, in the engine's word, such as `running`.
    pub state: String,
}

impl Container {
    /// What people call it.
    pub fn name(&self) -> &str {
        self.names.first().unwrap_or(&self.id)
    }
}

/// A network that an engine knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Network {
    /// The ranges that its addresses come from.
    pub subnets: Vec<Subnet>,
    /// Who has which address now.
    pub taken: BTreeMap<IpAddr, String>,
}

/// A range of addresses, such as `10.90.0.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    address: IpAddr,
    length: u32,
}

impl Subnet {
    /// Whether an address is in the range. An IPv4 address is in no IPv6 range.
    pub fn contains(self, address: IpAddr) -> bool {
        // The bits after the prefix are shifted out; a shift by all the bits compares nothing.
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(32 - self.length.min(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(128 - self.length.min(128)).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for Subnet {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, length) = text.split_once('/').ok_or(())?;
        Ok(Self { address: address.parse().map_err(|_| ())?, length: length.parse().map_err(|_| ())? })
    }
}

/// A container that runs and is to be dumped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningContainer {
    /// The name that people know it by; runc has no other id.
    pub container: String,
    /// The engine's own id.
    pub id: String,
    /// The labels that the container was made with.
    pub labels: BTreeMap<String, String>,
    /// The file that the runtime hands to CRIU as its configuration, whether it is there or not.
    pub criu_config: PathBuf,
    /// The file with the lines that are to be in force: the same, unless it was restored lazily.
    pub own_config: PathBuf,
    /// The first of its processes.
    pub pid: i32,
    /// Where CRIU writes its log of a dump; `None` if that is for the dump to say.
    pub log: Option<PathBuf>,
    /// Where its files are.
    pub files: Files,
    /// What else it cannot be without.
    pub ties: Ties,
}

/// A container that is there, running or not: what it takes to watch it and to take it away. A restore that was cut off leaves containers of
/// which an engine says little more than the id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Present {
    /// Container id, as the engine prints it.
    pub id: String,
    /// The name that people know it by.
    pub container: String,
    /// Pid of the container's init process, in the host's pid namespace; 0 if it does not run.
    pub pid: i32,
    /// Named volumes that it mounts, as far as the engine says.
    pub volumes: BTreeSet<String>,
}

/// The files of a container that live outside CRIU's images.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// What it wrote over its image.
    pub root: Option<Layers>,
    /// Its named volumes that are stored with it, and where they are.
    pub volumes: BTreeMap<String, PathBuf>,
    /// Its named volumes that are stored with another member.
    pub elsewhere: BTreeSet<String>,
    /// Its `/dev/shm`.
    pub shm: Option<PathBuf>,
    /// What it printed, where its engine keeps that with the container.
    pub printed: Option<PathBuf>,
}

/// A writable layer and what lies below it, the topmost first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// The folder of the writable layer.
    pub upper: PathBuf,
    /// The folders of the layers below.
    pub lower: Vec<PathBuf>,
}

/// Where a dump goes.
#[derive(Debug)]
pub enum DumpInto {
    /// As an archive into this pipe.
    Pipe(PipeWriter),
    /// Into `images` and `work` of this folder.
    Folder(PathBuf),
}

/// What a restore of one member needs, and by what its container is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The member that is restored.
    pub member: MemberId,
    /// What is to run it.
    pub engine: EngineKind,
    /// The container's name; runc has no other id.
    pub container: String,
    /// Its id, where that is known before: podman keeps it, unless the container gets another name.
    pub id: Option<String>,
    /// Whether the container gets a name other than the dump's.
    pub renamed: bool,
    /// Its volumes, none of which is there before the restore.
    pub volumes: Vec<Volume>,
    /// podman: the archive. runc: the folder of CRIU's images.
    pub dump: PathBuf,
    /// podman: the pod that it goes into.
    #[serde(default)]
    pub pod: Option<String>,
    /// What runc needs besides.
    pub lone: Option<RuncPaths>,
    /// The restore that makes the container; the container's annotation [`MARK`] says so.
    pub session: SessionId,
    /// The session's configuration for CRIU, which CRIU reads beside the container's own or the host's.
    pub criu_config: PathBuf,
    /// The container's own configuration for CRIU, or the host's.
    pub own_config: PathBuf,
    /// Where CRIU works and writes its log, if its memory follows when its tasks run.
    #[serde(default)]
    pub follows: Option<PathBuf>,
}

impl Target {
    /// Whether the container with this [`MARK`] was made by this target's restore.
    pub fn made(&self, mark: Option<&str>) -> bool {
        mark.is_some_and(|session| session == self.session.to_string())
    }

    /// The file with the content of a volume that comes with it. Neither name has an `@`.
    pub fn content(&self, volume: &Volume) -> PathBuf {
        self.dump.with_file_name(format!("{}@{}.tar", self.member, volume.name))
    }
}

/// What a container needs that has no engine but its runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuncPaths {
    /// The bundle, made for this restore.
    pub bundle: PathBuf,
    /// Where runc and CRIU write their logs.
    pub work: PathBuf,
    /// Where the container writes what it prints.
    pub output: PathBuf,
}

/// How a member's container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The engine's own id.
    pub id: String,
    /// Whether its first process runs.
    pub running: bool,
    /// Whether it was made by the restore that asks.
    pub ours: bool,
}

/// The name of a container, and its labels.
pub type Labelled = (String, BTreeMap<String, String>);

/// What runs containers.
#[async_trait]
pub trait Engine: Send + Sync + fmt::Debug {
    /// What is here. `images` are ids.
    async fn survey(&self, networks: &BTreeSet<String>, images: &BTreeSet<String>) -> Result<Survey, EngineError>;

    /// Its pods.
    async fn pods(&self) -> Result<Vec<Pod>, EngineError>;

    /// The names of its secrets.
    async fn secrets(&self) -> Result<BTreeSet<String>, EngineError>;

    /// Makes an image available by its name, whichever way the engine is configured for; says its id.
    async fn pull(&self, image: &str) -> Result<String, EngineError>;

    /// Restores one member; returns when its tasks run, or at once when it has failed, with the engine's words. `kill`
    /// ends the engine's program.
    async fn restore(&self, target: &Target, kill: &CancellationToken) -> Result<(), String>;

    /// The running containers with this label.
    async fn labelled(&self, label: &str, value: &str) -> Result<Vec<String>, EngineError>;

    /// The names and labels of the containers, running or not, that have a label of this name.
    async fn with_label(&self, label: &str) -> Result<Vec<Labelled>, EngineError>;

    /// What a dump needs to know of the container of this name or id, if there is one.
    ///
    /// # Errors
    /// An answer that leaves out something that the dump would then leave out too.
    async fn source(&self, container: &str) -> Result<Option<RunningContainer>, EngineError>;

    /// The container of this name or id, if there is one.
    async fn present(&self, container: &str) -> Result<Option<Present>, EngineError>;

    /// Dumps one container, which runs on; returns when all of the dump is written. `kill` ends the engine's program.
    async fn dump(
        &self,
        source: &RunningContainer,
        attachment: Attachment,
        into: DumpInto,
        kill: &CancellationToken,
    ) -> Result<(), String>;

    /// Ends the container of this id.
    async fn stop(&self, id: &str) -> Result<(), EngineError>;

    /// Takes away a container with its processes, whoever made it. Its volumes stay.
    async fn evict(&self, present: &Present) -> Result<(), EngineError>;

    /// The containers, running or not, that mount one of these volumes.
    async fn volume_users(&self, volumes: &[&str]) -> Result<Vec<Container>, EngineError>;

    /// Which other containers each of these cannot be without, such as the one whose network it shares, by their ids.
    async fn dependencies(&self, _: &[Container]) -> Result<BTreeMap<String, Vec<String>>, EngineError> {
        Ok(BTreeMap::new())
    }

    /// Takes away a volume; one that is not there is fine.
    ///
    /// # Errors
    /// A container mounts it, or the engine refuses.
    async fn remove_volume(&self, volume: &str) -> Result<(), EngineError>;

    /// CRIU's words about a restore that failed, as long as what is left of it was not removed.
    async fn log_lines(&self, target: &Target) -> Vec<String>;

    /// The container of that name or id, if there is one.
    async fn find(&self, target: &Target) -> Result<Option<Found>, EngineError>;

    /// The same of several, in their order.
    async fn find_all(&self, targets: &[&Target]) -> Result<Vec<Option<Found>>, EngineError> {
        let mut all = Vec::with_capacity(targets.len());
        for target in targets {
            all.push(self.find(target).await?);
        }
        Ok(all)
    }

    /// Takes away the container with its processes, if it is the target's own. Its volumes stay.
    async fn remove(&self, target: &Target, marks: &Marks) -> Result<(), EngineError>;

    /// All of its volumes. An engine that has none needs nothing of what follows.
    async fn volumes(&self) -> Result<Vec<Volume>, EngineError> {
        Ok(Vec::new())
    }

    /// Makes a volume that is not there, marked as this session's, with the content of a tar. What
    /// is mounted as the volume stays mounted.
    async fn make_volume(&self, _: &Volume, _: SessionId, _: &Path) -> Result<(), EngineError> {
        Ok(())
    }

    /// Leaves what is mounted as a volume to the containers that have it.
    async fn release_volume(&self, _: &Volume) -> Result<(), EngineError> {
        Ok(())
    }
}

/// Kills processes without holding up the runtime.
async fn kill_left(container: &str, marks: Marks) -> Result<(), EngineError> {
    let killed =
        tokio::task::spawn_blocking(move || kill(&marks)).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    killed.map_err(|source| EngineError::Kill { container: container.to_owned(), source })
}

/// The folder with the configurations that runtimes hand to CRIU where a container's annotations name none.
const CRIU_CONFIGS: &str = "/etc/criu";

/// Where a runtime looks for CRIU's configuration, by the annotations of a container, and where the
/// lines are that are meant.
pub fn criu_configs<'a>(runtime: &str, annotation: impl Fn(&str) -> Option<&'a str>) -> (PathBuf, PathBuf) {
    let file = if runtime == "crun" { "crun.conf" } else { "runc.conf" };
    let read = annotation(CRIU_CONFIG).map_or_else(|| Path::new(CRIU_CONFIGS).join(file), PathBuf::from);
    let own = annotation(OWN_CONFIG).map_or_else(|| read.clone(), PathBuf::from);
    (read, own)
}

/// Whether a process runs. One that has ended does not, also while nobody has collected it.
pub fn is_alive(pid: i32) -> bool {
    let Some(pid) = Pid::from_raw(pid) else { return false };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    // A handle is readable from when its process has ended, also while nobody has collected it.
    poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&Timespec::default())) != Ok(1)
}

/// CRIU's log of a restore.
const RESTORE_LOG: &str = "restore.log";

/// CRIU's words, or why they cannot be had: a failure is never without any.
pub fn log_lines(path: &Path) -> Vec<String> {
    criu_log::error_lines(path).unwrap_or_else(|error| vec![format!("{} cannot be read: {error}", path.display())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_was_restored_lazily_keeps_its_own_configuration_of_criu() {
        let read = |runtime: &str, annotations: &[(&str, &'static str)]| {
            let find = |name: &str| annotations.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
            let (read, own) = criu_configs(runtime, find);
            [read, own].map(|path| path.to_str().unwrap().to_owned())
        };
        assert_eq!(read("runc", &[]), ["/etc/criu/runc.conf"; 2]);
        assert_eq!(read("crun", &[]), ["/etc/criu/crun.conf"; 2]);
        assert_eq!(read("runc", &[(CRIU_CONFIG, "/own")]), ["/own"; 2]);
        assert_eq!(read("runc", &[(CRIU_CONFIG, "/session"), (OWN_CONFIG, "/own")]), ["/session", "/own"]);
    }

    #[test]
    fn a_process_that_ended_is_not_alive_even_before_it_is_collected() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        assert!(is_alive(pid));
        child.kill().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while is_alive(pid) && std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        assert!(!is_alive(pid));
        child.wait().unwrap();
        assert!(!is_alive(pid) && !is_alive(0));
    }

    #[test]
    fn subnets_contain_their_addresses() {
        for (subnet, address, inside) in [
            ("10.90.0.0/24", "10.90.0.255", true),
            ("10.90.0.0/24", "10.90.1.0", false),
            ("10.88.0.0/16", "10.88.255.1", true),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("10.0.0.1/32", "10.0.0.1", true),
            ("10.0.0.1/32", "10.0.0.0", false),
            ("fd00::/64", "fd00::1:2", true),
            ("fd00::/64", "fd00:0:0:1::", false),
            ("::/0", "fd00::", true),
            ("10.0.0.0/8", "::ffff:10.0.0.1", false),
        ] {
            let subnet: Subnet = subnet.parse().unwrap();
            assert_eq!(subnet.contains(address.parse().unwrap()), inside, "{subnet:?} {address}");
        }
        for bad in ["", "10.0.0.0", "10.0.0.0/x", "x/8", "10.0.0/8"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn engines_have_names() {
        for kind in [EngineKind::Podman, EngineKind::Runc] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("docker".parse::<EngineKind>().is_err());
    }
}
