//! What is to be restored, and what came of it.

use std::path::PathBuf;

use coordinator::SessionId;
use image_format::MemberId;
use serde::{Deserialize, Serialize};

use crate::kind::EngineKind;
use crate::volumes::Volume;

/// The annotation of a container, and the label of a volume, that names the session of the restore
/// that made it.
pub const MARK: &str = "io.syncpoint.restored-by";

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
    /// podman: the archive. Docker and runc: the folder of CRIU's images, beside which the rest of the dump is.
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
        match self.engine {
            EngineKind::Docker => self.dump.with_file_name("volumes").join(format!("{}.tar", volume.name)),
            EngineKind::Podman | EngineKind::Runc => {
                self.dump.with_file_name(format!("{}@{}.tar", self.member, volume.name))
            }
        }
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
