//! The engines of one host: which driver serves which kind.

use std::pin::Pin;
use std::sync::Arc;

use crate::container::{Present, RunningContainer};
use crate::docker::Docker;
use crate::driver::Engine;
use crate::error::EngineError;
use crate::kind::EngineKind;
use crate::podman::Podman;
use crate::runc::Runc;

/// A driver for each kind of engine. Whether an engine is installed is for its driver to find out.
#[derive(Debug, Clone)]
pub struct Engines {
    podman: Arc<dyn Engine>,
    docker: Arc<dyn Engine>,
    runc: Arc<dyn Engine>,
}

/// What an engine is going to answer.
type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<Option<T>, EngineError>> + Send + 'a>>;

impl Engines {
    /// The drivers of the engines on this host.
    #[must_use]
    pub fn here() -> Self {
        Self { podman: Arc::new(Podman), docker: Arc::new(Docker), runc: Arc::new(Runc) }
    }

    /// One driver for every kind.
    #[must_use]
    pub fn all(driver: &Arc<dyn Engine>) -> Self {
        Self { podman: Arc::clone(driver), docker: Arc::clone(driver), runc: Arc::clone(driver) }
    }

    /// The driver of this kind.
    #[must_use]
    pub fn get(&self, kind: EngineKind) -> &Arc<dyn Engine> {
        match kind {
            EngineKind::Podman => &self.podman,
            EngineKind::Docker => &self.docker,
            EngineKind::Runc => &self.runc,
        }
    }

    /// What a dump needs to know of the container of this name or id. Without a kind the container
    /// is looked for in every engine, in the order of [`EngineKind::ALL`].
    ///
    /// # Errors
    /// As [`Engine::source`]. An engine that is not installed, or whose daemon does not run, has no container.
    pub async fn source(
        &self,
        container: &str,
        kind: Option<EngineKind>,
    ) -> Result<Option<(EngineKind, RunningContainer)>, EngineError> {
        self.first(kind, |engine| engine.source(container)).await
    }

    /// The container of this name or id. Without a kind the container is looked for in every
    /// engine, in the order of [`EngineKind::ALL`].
    ///
    /// # Errors
    /// As [`Engine::present`]. An engine that is not installed has no container.
    pub async fn present(
        &self,
        container: &str,
        kind: Option<EngineKind>,
    ) -> Result<Option<(EngineKind, Present)>, EngineError> {
        self.first(kind, |engine| engine.present(container)).await
    }

    async fn first<'a, T>(
        &'a self,
        kind: Option<EngineKind>,
        ask: impl Fn(&'a dyn Engine) -> Answer<'a, T>,
    ) -> Result<Option<(EngineKind, T)>, EngineError> {
        let kinds = EngineKind::ALL.iter().copied().filter(|one| kind.is_none_or(|kind| kind == *one));
        for one in kinds {
            match ask(self.get(one).as_ref()).await {
                Ok(Some(found)) => return Ok(Some((one, found))),
                Ok(None) => {}
                Err(error) if error.is_absent() && kind.is_none() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}
