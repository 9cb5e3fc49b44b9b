//! The set to restore: a global checkpoint's members, or one checkpoint image alone.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use image_format::{
    ApplicationId, Artifact, ArtifactError, CheckpointImage, Descriptor, Facts, Limits, MemberId, UnpackError,
    read_state,
};
use registry::{Bridge, Store, StoreError};
use tokio::runtime::Handle;

/// The most members that are looked at; far more than one machine can run.
const MOST_MEMBERS: usize = 4096;

/// What is restored together.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) application: ApplicationId,
    /// In the order of their start.
    pub(crate) members: Vec<Member>,
    /// How many members start together, wave after wave.
    pub(crate) waves: Vec<usize>,
}

/// One member.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) id: MemberId,
    pub(crate) image: CheckpointImage,
    pub(crate) facts: Facts,
}

/// Why a set cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is no checkpoint.
    #[error("{digest} is no checkpoint")]
    Artifact {
        /// Which manifest.
        digest: image_format::Digest,
        /// Why.
        #[source]
        source: ArtifactError,
    },
    /// A member of a global checkpoint is itself an index.
    #[error("member {member} is an index, not an image")]
    Nested {
        /// The member.
        member: MemberId,
    },
    /// An image without a member id was given alone, and its name is none either.
    #[error("the image does not say which member it is, and its container has no name")]
    Nameless,
    /// More members than can be restored.
    #[error("it has {count} members; at most {MOST_MEMBERS} are restored")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// What a member's dump says about itself cannot be read.
    #[error("the state of {member} cannot be read")]
    State {
        /// The member, or its image where that has no member id.
        member: String,
        /// Why.
        #[source]
        source: Box<UnpackError>,
    },
    /// The runtime shut down in the middle.
    #[error("interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Reads manifests and the members' facts, `jobs` at a time.
pub(crate) async fn load(store: &Arc<dyn Store>, root: &Descriptor, jobs: usize) -> Result<Set, LoadError> {
    match artifact(store, root).await? {
        Artifact::Member(image) => {
            let facts = facts(store, None, &image).await?;
            let named = || facts.container_name.as_deref().and_then(|name| name.parse().ok());
            let id: MemberId = image.member().or_else(named).ok_or(LoadError::Nameless)?;
            // Both ids follow the same rule.
            let application = id.as_str().parse().map_err(|_| LoadError::Nameless)?;
            Ok(Set { application, members: vec![Member { id, image, facts }], waves: vec![1] })
        }
        Artifact::Global(global) => {
            let order = global.start_order();
            let waves: Vec<usize> = order.iter().map(Vec::len).collect();
            let count = waves.iter().sum();
            if count > MOST_MEMBERS {
                return Err(LoadError::TooMany { count });
            }
            let members =
                stream::iter(order.into_iter().flatten()).map(|entry| member(store, &entry.id, &entry.manifest));
            let members = members.buffered(jobs.max(1)).try_collect().await?;
            Ok(Set { application: global.application().clone(), members, waves })
        }
    }
}

async fn member(store: &Arc<dyn Store>, id: &MemberId, manifest: &Descriptor) -> Result<Member, LoadError> {
    match artifact(store, manifest).await? {
        Artifact::Member(image) => {
            let facts = facts(store, Some(id), &image).await?;
            Ok(Member { id: id.clone(), image, facts })
        }
        Artifact::Global(_) => Err(LoadError::Nested { member: id.clone() }),
    }
}

async fn artifact(store: &Arc<dyn Store>, descriptor: &Descriptor) -> Result<Artifact, LoadError> {
    let document = store.manifest(&descriptor.digest).await?;
    let (actual, expected) = (document.bytes().len() as u64, descriptor.size);
    if actual != expected {
        let reason = format!("it has {actual} bytes where what refers to it says {expected}");
        let (store, what) = (store.name().to_owned(), format!("manifest {}", descriptor.digest));
        return Err(StoreError::Corrupt { store, what, reason }.into());
    }
    Artifact::parse(&document).map_err(|source| LoadError::Artifact { digest: descriptor.digest, source })
}

async fn facts(store: &Arc<dyn Store>, id: Option<&MemberId>, image: &CheckpointImage) -> Result<Facts, LoadError> {
    let bridge = Bridge::new(Handle::current(), Arc::clone(store));
    let reading = image.clone();
    let read = tokio::task::spawn_blocking(move || read_state(&reading, &bridge, &Limits::default()).map_err(Box::new))
        .await?;
    read.map_err(|source| {
        let member = id.cloned().or_else(|| image.member());
        let member = member.map_or_else(|| image.manifest().digest.to_string(), |member| format!("member {member}"));
        LoadError::State { member, source }
    })
}
