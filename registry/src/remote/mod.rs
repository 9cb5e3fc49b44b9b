//! A repository of an OCI registry as a store, over HTTP and TLS (OCI distribution specification 1.1).
//!
//! One HTTP client (reqwest on rustls) for all of it: [`http`] asks, tries again and tells errors apart, [`auth`]
//! proves who one is, [`download`], [`upload`] and [`writer`] move blobs, [`sweep`] removes checkpoints, [`untag`] tags, [`documents`] and
//! [`referrers`] do the rest.
//! Nothing here holds more of a blob than a few pieces of half a MiB (a chunk of 4 MiB where chunks are wanted).

mod auth;
mod body;
mod documents;
mod download;
mod http;
mod mirrors;
mod referrers;
mod sweep;
mod untag;
mod upload;
mod writer;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use image_format::{Descriptor, Digest, Document};
use reqwest::{Method, StatusCode};

use crate::credentials::{Credential, Sought};
use crate::retention::{Removal, Removed};
use crate::{BlobReader, BlobUpload, BlobWriter, Put, Selector, Settings, Store, StoreError, Tag, TagList};
use auth::Access;
use http::{Call, Http};
use mirrors::{Mirrors, Wanted};
use writer::RemoteWriter;

/// One repository of a registry.
#[derive(Debug, Clone)]
pub struct RemoteStore {
    http: Arc<Http>,
    chunked: bool,
    mirrors: Mirrors,
    /// The registry itself was not reached, but has mirrors.
    away: bool,
}

impl RemoteStore {
    /// Reads certificates and credentials, and asks `host` (`HOST` or `HOST:PORT`) whether it is a registry.
    ///
    /// # Errors
    /// Settings that cannot be used, and a host that cannot be reached or is no registry. Whether the credentials are
    /// good shows at the first use, see also [`crate::login`].
    pub async fn connect(host: &str, repository: &str, settings: &Settings) -> Result<Self, StoreError> {
        let route = settings.registries.route(host, repository);
        if let Some(file) = &route.blocked_by {
            let source = format!("{} blocks this registry", file.display()).into();
            return Err(StoreError::Settings { store: format!("{host}/{repository}"), source });
        }
        let mirrors = Mirrors::new(&route, settings);
        let (http, away) = match reach(host, repository, settings, route.insecure).await {
            Ok(http) => (http, false),
            Err(StoreError::Unreachable { .. }) if !mirrors.is_empty() => {
                (Http::new(host, repository, settings, route.insecure).await?, true)
            }
            Err(error) => return Err(error),
        };
        Ok(Self { http: Arc::new(http), chunked: settings.chunked_upload, mirrors, away })
    }

    /// Asks the registry, or its mirrors where it is away. If none of them is there either, its own
    /// error tells.
    async fn ask<'a, T>(
        &self,
        wanted: Wanted,
        ask: impl Fn(Arc<Http>) -> BoxFuture<'a, Result<T, StoreError>> + Send + Sync,
    ) -> Result<T, StoreError> {
        if !self.away {
            match ask(self.http.clone()).await {
                Err(StoreError::Unreachable { .. }) if !self.mirrors.is_empty() => {}
                own => return own,
            }
        }
        match self.mirrors.first(wanted, &ask).await {
            Ok(found) => Ok(found),
            Err(Some(missing)) => Err(missing),
            Err(None) => ask(self.http.clone()).await,
        }
    }
}

/// Connects to a registry: over TLS or, where the settings call it insecure and TLS is not to be
/// had, without.
async fn reach(host: &str, repository: &str, settings: &Settings, insecure: bool) -> Result<Http, StoreError> {
    let http = Http::new(host, repository, settings, insecure).await?;
    match http.introduce().await {
        Ok(()) => Ok(http),
        Err(StoreError::Unreachable { .. }) if insecure && !settings.plain_http => {
            let plain = Settings { plain_http: true, ..settings.clone() };
            let http = Http::new(host, repository, &plain, insecure).await?;
            http.introduce().await.map(|()| http)
        }
        Err(error) => Err(error),
    }
}

/// Asks a registry whether it takes these credentials.
pub(crate) async fn check_credential(
    host: &str,
    credential: Credential,
    settings: &Settings,
) -> Result<(), StoreError> {
    let route = settings.registries.route(host, "");
    let http = Http::with_credential(host, "", Sought::from(credential), settings, route.insecure)?;
    let call = Call::new(Method::GET, http.root_url(), Access::Ping, "logging in");
    let response = http.call(&call).await?;
    if response.status() == StatusCode::OK { Ok(()) } else { Err(http.refuse(&call, "a registry", response).await) }
}

#[async_trait]
impl Store for RemoteStore {
    fn name(&self) -> &str {
        self.http.transport.name()
    }

    async fn resolve(&self, selector: &Selector) -> Result<Descriptor, StoreError> {
        let asked = |http: Arc<Http>| async move { documents::get(&http, selector).await }.boxed();
        self.ask(Wanted::Tag, asked).await.map(|document| document.descriptor())
    }

    async fn manifest(&self, digest: &Digest) -> Result<Document, StoreError> {
        let asked = |http: Arc<Http>| async move { documents::get(&http, &Selector::Digest(*digest)).await }.boxed();
        match self.mirrors.first(Wanted::Digest, &asked).await {
            Ok(document) => Ok(document),
            Err(_) => asked(self.http.clone()).await,
        }
    }

    async fn has_manifest(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.ask(Wanted::Digest, |http: Arc<Http>| async move { documents::has(&http, digest).await }.boxed()).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let asked = |http: Arc<Http>| {
            async move {
                match upload::head(&http, digest, Access::Pull).await? {
                    Some(None) => download::size(&http, digest).await,
                    Some(size) => Ok(size),
                    None => Ok(None),
                }
            }
            .boxed()
        };
        self.ask(Wanted::Digest, asked).await
    }

    async fn read_blob(&self, descriptor: &Descriptor) -> Result<BlobReader, StoreError> {
        let asked = |http| download::open(http, descriptor).boxed();
        match self.mirrors.first(Wanted::Digest, &asked).await {
            Ok(reader) => Ok(reader),
            Err(_) => asked(self.http.clone()).await,
        }
    }

    async fn create_blob(&self) -> Result<Box<dyn BlobWriter>, StoreError> {
        Ok(Box::new(RemoteWriter::new(self.http.clone(), self.chunked)))
    }

    async fn put_blob(&self, upload: BlobUpload<'_>) -> Result<Put, StoreError> {
        upload::put(&self.http, self.chunked, &upload).await
    }

    async fn put_manifest(&self, document: &Document, tag: Option<&Tag>) -> Result<(), StoreError> {
        documents::put(&self.http, document, tag).await.map(drop)
    }

    async fn tags(&self) -> Result<Vec<Tag>, StoreError> {
        self.ask(Wanted::Tag, |http: Arc<Http>| async move { documents::tags(&http).await }.boxed()).await
    }

    async fn tag_list(&self) -> Result<TagList, StoreError> {
        self.ask(Wanted::Tag, |http: Arc<Http>| async move { documents::tag_list(&http).await }.boxed()).await
    }

    async fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, StoreError> {
        self.ask(Wanted::Tag, |http: Arc<Http>| async move { referrers::list(&http, digest).await }.boxed()).await
    }

    async fn put_referrer(&self, subject: &Digest, document: &Document) -> Result<(), StoreError> {
        referrers::put(&self.http, subject, document).await
    }

    /// Nothing to do: registries keep blobs for as long as their own garbage collection is told to.
    async fn hold(&self, _: &[Digest]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn remove(&self, removal: &Removal) -> Result<Removed, StoreError> {
        sweep::remove(&self.http, removal).await
    }

    async fn delete_tag(&self, tag: &Tag) -> Result<(), StoreError> {
        untag::delete_tag(self, tag).await
    }
}
