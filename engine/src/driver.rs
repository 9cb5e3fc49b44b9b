//! The trait of which each engine has a driver.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::Path;

use async_trait::async_trait;
use coordinator::SessionId;
use tokio_util::sync::CancellationToken;

use crate::attach::Attachment;
use crate::container::{DumpInto, Present, RunningContainer};
use crate::error::EngineError;
use crate::processes::{Marks, kill};
use crate::survey::{Container, Survey};
use crate::target::{Found, Target};
use crate::ties::Pod;
use crate::volumes::Volume;

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
pub(crate) async fn kill_left(container: &str, marks: Marks) -> Result<(), EngineError> {
    let killed =
        tokio::task::spawn_blocking(move || kill(&marks)).await.unwrap_or_else(|error| Err(io::Error::other(error)));
    killed.map_err(|source| EngineError::Kill { container: container.to_owned(), source })
}
