//! The containers of a guarded application, watched by handles of their first processes.

use std::io;
use std::os::fd::OwnedFd;

use futures_util::future::{join_all, select_all};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::engine::{EngineError, Source};
use crate::{EngineKind, Wanted};

/// Containers that all ran when they were looked at.
#[derive(Debug)]
pub(super) struct Running(Vec<(String, AsyncFd<OwnedFd>)>);

impl Running {
    /// Waits until the first process of one of them has ended, and gives the container's name.
    pub async fn lost(&self) -> String {
        let ended = self.0.iter().map(|(container, handle)| {
            Box::pin(async move {
                // A handle becomes readable when its process ends. One that cannot be watched is as good as lost.
                let _ = handle.ready(Interest::READABLE).await;
                container.clone()
            })
        });
        match self.0.is_empty() {
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
pub(super) async fn look(wanted: &[Wanted]) -> Result<Look, LookError> {
    let (mut running, mut missing) = (Vec::new(), Vec::new());
    for (wanted, found) in wanted.iter().zip(join_all(wanted.iter().map(watch)).await) {
        match found? {
            Some(handle) => running.push((wanted.container.clone(), handle)),
            None => missing.push(wanted.container.clone()),
        }
    }
    Ok(if missing.is_empty() { Look::All(Running(running)) } else { Look::Missing(missing) })
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

async fn watch(wanted: &Wanted) -> Result<Option<AsyncFd<OwnedFd>>, LookError> {
    let Some((engine, source)) = source(wanted).await? else { return Ok(None) };
    let container = source.container.clone();
    let failed = |source: io::Error| LookError::Watch { container: container.clone(), source };
    let Some(pid) = Pid::from_raw(source.pid) else { return Ok(None) };
    let handle = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(handle) => handle,
        Err(Errno::SRCH) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    // Between the answer and the handle the number may have become another's.
    let again = engine.driver().source(&source.id).await?;
    if again.is_none_or(|again| again.pid != source.pid) {
        return Ok(None);
    }
    #[expect(
        deprecated,
        reason = "what replaces it is unsafe, which is denied here; a handle of a process can be waited for"
    )]
    let registered = AsyncFd::with_interest(handle, Interest::READABLE);
    registered.map(Some).map_err(failed)
}

async fn source(wanted: &Wanted) -> Result<Option<(EngineKind, Source)>, EngineError> {
    for engine in engines(wanted) {
        match engine.driver().source(&wanted.container).await {
            Ok(Some(source)) => return Ok(Some((engine, source))),
            Ok(None) => {}
            Err(EngineError::Program(error)) if error.is_missing() && wanted.engine.is_none() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn engines(wanted: &Wanted) -> Vec<EngineKind> {
    wanted.engine.map_or_else(|| vec![EngineKind::Podman, EngineKind::Runc], |engine| vec![engine])
}

/// Ends all of them and takes them away, so that nothing of this incarnation runs, or is in the way of the next one.
///
/// # Errors
/// What could not be taken away.
pub(crate) async fn evict(wanted: &[Wanted]) -> Result<(), EngineError> {
    let evicted = wanted.iter().map(|wanted| async move {
        match source(wanted).await? {
            Some((engine, source)) => engine.driver().evict(&source).await,
            None => Ok(()),
        }
    });
    join_all(evicted).await.into_iter().collect()
}
