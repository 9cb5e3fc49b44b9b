//! Other places with the same content, see [`crate::Registries`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use super::http::Http;
use super::reach;
use crate::registries::{Other, Route};
use crate::{Settings, StoreError};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// What a tag names, or which tags there are.
    Tag,
    /// Content by its digest.
    Digest,
}

/// The mirrors of one repository, in the order in which they are asked.
#[derive(Debug, Clone)]
pub(super) struct Mirrors {
    all: Arc<[Mirror]>,
    settings: Arc<Settings>,
}

#[derive(Debug)]
struct Mirror {
    place: Other,
    http: OnceCell<Arc<Http>>,
    /// It was not reached, and is not asked again.
    lost: AtomicBool,
}

impl Mirrors {
    /// Nothing is asked yet. What somebody typed for the registry itself, credentials and client
    /// certificates, is not for its mirrors; what files say about their hosts is.
    pub(super) fn new(route: &Route, settings: &Settings) -> Self {
        let mirror =
            |place: &Other| Mirror { place: place.clone(), http: OnceCell::new(), lost: AtomicBool::new(false) };
        let retries = settings.retries.min(2);
        let settings = Settings { credentials: None, client_cert: None, retries, ..settings.clone() };
        Self { all: route.others.iter().map(mirror).collect(), settings: Arc::new(settings) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What the first mirror that has it answers. The error is that of a mirror that was reached
    /// and does not have it.
    pub(super) async fn first<'a, T>(
        &self,
        wanted: Wanted,
        ask: &(impl Fn(Arc<Http>) -> BoxFuture<'a, Result<T, StoreError>> + Send + Sync),
    ) -> Result<T, Option<StoreError>> {
        let mut missing = None;
        for mirror in self.all.iter() {
            let asked = match wanted {
                Wanted::Tag => mirror.place.tags,
                Wanted::Digest => mirror.place.digests,
            };
            if !asked || mirror.lost.load(Ordering::Relaxed) {
                continue;
            }
            let Other { host, repository, insecure, .. } = &mirror.place;
            let connect = async { reach(host, repository, &self.settings, *insecure).await.map(Arc::new) };
            let answer = match mirror.http.get_or_try_init(|| connect).await {
                Ok(http) => ask(http.clone()).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(found) => return Ok(found),
                Err(StoreError::Unreachable { .. } | StoreError::Settings { .. }) => {
                    mirror.lost.store(true, Ordering::Relaxed);
                }
                Err(error @ StoreError::NotFound { .. }) => missing = Some(error),
                Err(_) => {}
            }
        }
        Err(missing)
    }
}
