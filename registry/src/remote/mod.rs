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
mod referrers;
mod sweep;
mod untag;
mod upload;
mod writer;

use std::sync::Arc;

use async_trait::async_trait;
use image_format::{Descriptor, Digest, Document};
use reqwest::{Method, StatusCode};

use crate::credentials::Credential;
use crate::retention::{Removal, Removed};
use crate::{BlobReader, BlobUpload, BlobWriter, Put, Selector, Settings, Store, StoreError, Tag, TagList};
use auth::Access;
use http::{Call, Http};
use writer::RemoteWriter;

/// One repository of a registry.
#[derive(Debug, Clone)]
pub struct RemoteStore {
    http: Arc<Http>,
    chunked: bool,
}

impl RemoteStore {
    /// Reads certificates and credentials, and asks `host` (`HOST` or `HOST:PORT`) whether it is a registry.
    ///
    /// # Errors
    /// Settings that cannot be used, and a host that cannot be reached or is no registry. Whether the credentials are
    /// good shows at the first use, see also [`crate::login`].
    pub async fn connect(host: &str, repository: &str, settings: &Settings) -> Result<Self, StoreError> {
        let http = Http::new(host, repository, settings).await?;
        http.introduce().await?;
        Ok(Self { http: Arc::new(http), chunked: settings.chunked_upload })
    }
}

/// Asks a registry whether it takes these credentials.
pub(crate) async fn check_credential(
    host: &str,
    credential: Credential,
    settings: &Settings,
) -> Result<(), StoreError> {
    let http = Http::with_credential(host, "", Some(credential), settings)?;
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
        documents::get(&self.http, selector).await.map(|document| document.descriptor())
    }

    async fn manifest(&self, digest: &Digest) -> Result<Document, StoreError> {
        documents::get(&self.http, &Selector::Digest(*digest)).await
    }

    async fn has_manifest(&self, digest: &Digest) -> Result<bool, StoreError> {
        documents::has(&self.http, digest).await
    }

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        match upload::head(&self.http, digest, Access::Pull).await? {
            Some(Some(size)) => Ok(Some(size)),
            None => Ok(None),
            Some(None) => {
                let operation = format!("looking for blob {digest}");
                Err(self.http.transport.refused(&operation, "the registry does not say how large it is"))
            }
        }
    }

    async fn read_blob(&self, descriptor: &Descriptor) -> Result<BlobReader, StoreError> {
        download::open(self.http.clone(), descriptor).await
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
        documents::tags(&self.http).await
    }

    async fn tag_list(&self) -> Result<TagList, StoreError> {
        documents::tag_list(&self.http).await
    }

    async fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, StoreError> {
        referrers::list(&self.http, digest).await
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
