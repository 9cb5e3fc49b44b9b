//! The containers of a guarded application, watched by handles of their first processes.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;

use engine::{EngineError, Engines};
use futures_util::future::{join_all, select_all};
use launcher::ContainerSpec;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Containers that all ran when they were looked at.
#[derive(Debug, Default)]
pub(super) struct Running {
    handles: Vec<(String, AsyncFd<OwnedFd>)>,
    /// The named volumes that they mount.
    pub(super) volumes: BTreeSet<String>,
}

impl Running {
    /// Waits until the first process of one of them has ended, and gives the container's name.
    pub async fn lost(&self) -> String {
        let ended = self.handles.iter().map(|(container, handle)| {
            Box::pin(async move {
                // A handle becomes readable when its process ends. One that cannot be watched is as good as lost.
                let _ = handle.ready(Interest::READABLE).await;
                container.clone()
            })
        });
        match self.handles.is_empty() {
            true => std::future::pending().await,
            false => select_all(ended).await.0,
        }
    }
}

/// What was found.
#[derive(Debug)]
pub(super) enum Look {
    All(Running),
    /// These are not there, or do not run.
    Missing(Vec<String>),
}

/// Looks after all containers, side by side.
///
/// # Errors
/// An engine does not answer.
pub(super) async fn look(engines: &Engines, wanted: &[ContainerSpec]) -> Result<Look, LookError> {
    let (mut running, mut missing) = (Running::default(), Vec::new());
    for (wanted, found) in wanted.iter().zip(join_all(wanted.iter().map(|wanted| watch(engines, wanted))).await) {
        match found? {
            Some((handle, volumes)) => {
                running.handles.push((wanted.container.clone(), handle));
                running.volumes.extend(volumes);
            }
            None => missing.push(wanted.container.clone()),
        }
    }
    Ok(if missing.is_empty() { Look::All(running) } else { Look::Missing(missing) })
}

/// The names of those that run; one of which nothing is known is left out.
pub(super) async fn running(engines: &Engines, wanted: &[ContainerSpec]) -> Vec<String> {
    let found = join_all(wanted.iter().map(|wanted| watch(engines, wanted))).await;
    let running = wanted.iter().zip(found).filter(|(_, found)| matches!(found, Ok(Some(_))));
    running.map(|(wanted, _)| wanted.container.clone()).collect()
}

/// Why it is not known what runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookError {
    /// An engine was asked and did not answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A process cannot be watched.
    #[error("the first process of container {container} cannot be watched")]
    Watch {
        /// The container.
        container: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A handle of the container's first process, if that runs, and the volumes that the container mounts.
async fn watch(
    engines: &Engines,
    wanted: &ContainerSpec,
) -> Result<Option<(AsyncFd<OwnedFd>, BTreeSet<String>)>, LookError> {
    let Some((engine, found)) = engines.present(&wanted.container, wanted.engine).await? else { return Ok(None) };
    let failed = |source: io::Error| LookError::Watch { container: found.container.clone(), source };
    let Some(pid) = Pid::from_raw(found.pid) else { return Ok(None) };
    let handle = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(handle) => handle,
        Err(Errno::SRCH) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    // Between the answer and the handle the number may have become another's.
    let again = engines.get(engine).present(&found.id).await?;
    if again.is_none_or(|again| again.pid != found.pid) {
        return Ok(None);
    }
    #[expect(
        deprecated,
        reason = "what replaces it is unsafe, which is denied here; a handle of a process can be waited for"
    )]
    let registered = AsyncFd::with_interest(handle, Interest::READABLE);
    let handle = registered.map_err(failed)?;
    Ok(Some((handle, found.volumes)))
}
