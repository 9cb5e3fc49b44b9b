//! From what a person typed to a store and a content in it.

use std::sync::Arc;

use image_format::{Artifact, CheckpointImage, Descriptor, Digest, Document};
use registry::{Create, Reference, Selector, Store, StoreError, Tag, cancellable};

use crate::context::Context;
use crate::error::{About, CommandError, While};
use crate::keys;
use crate::transport::Transport;

/// The tag that is read where none is named, as podman does.
pub const DEFAULT_TAG: &str = "latest";

/// Opens the store of a reference that is read. Whatever it is asked ends when the command is told
/// to stop.
pub async fn open(
    reference: &Reference,
    transport: &Transport,
    context: &Context,
) -> Result<Arc<dyn Store>, CommandError> {
    let store = opened(reference, transport, context, Create::No).await?;
    Ok(cancellable(store, context.cancel.token()))
}

/// Opens the store of a reference that is written; a layout is made if there is none. Whatever it is
/// asked ends when the command is told to stop.
pub async fn create(
    reference: &Reference,
    transport: &Transport,
    context: &Context,
) -> Result<Arc<dyn Store>, CommandError> {
    Ok(cancellable(create_lasting(reference, transport, context).await?, context.cancel.token()))
}

/// The same for a command that still has something to do when it was told to stop: only opening
/// the store ends then. What the command does with the store has tokens of its own.
pub async fn create_lasting(
    reference: &Reference,
    transport: &Transport,
    context: &Context,
) -> Result<Arc<dyn Store>, CommandError> {
    opened(reference, transport, context, Create::Layout).await
}

/// Opening ends when the command is told to stop.
async fn opened(
    reference: &Reference,
    transport: &Transport,
    context: &Context,
    create: Create,
) -> Result<Arc<dyn Store>, CommandError> {
    let settings = transport.settings(&context.environment)?;
    if let Some((_, key)) = &settings.client_cert {
        keys::warn_if_open(key, context);
    }
    tokio::select! {
        store = registry::open(reference.location(), &settings, create) => Ok(store?),
        () = context.cancel.token().cancelled_owned() => {
            let store = reference.location().to_string();
            Err(StoreError::Cancelled { store, operation: "opening it".to_owned() }.into())
        }
    }
}

/// What a reference names now; `latest` if it names no tag or digest.
pub async fn resolve(store: &dyn Store, reference: &Reference) -> Result<Descriptor, CommandError> {
    let (selector, chosen) = match reference.selector() {
        Some(selector) => (selector.clone(), true),
        None => (Selector::Tag(DEFAULT_TAG.parse()?), false),
    };
    let resolved = store.resolve(&selector).await;
    resolved.map_err(|error| {
        let missing = matches!(error, StoreError::NotFound { .. });
        let error = CommandError::from(error);
        match (missing, chosen) {
            (true, false) => error.hint(format!(
                "no tag was named, so {DEFAULT_TAG} was looked for; `syncpoint list` shows what there is"
            )),
            _ => error,
        }
    })
}

/// Opens the store of a reference that is read, and says what it names.
pub async fn find(
    reference: &Reference,
    transport: &Transport,
    context: &Context,
) -> Result<(Arc<dyn Store>, Descriptor), CommandError> {
    let store = open(reference, transport, context).await?;
    let root = resolve(&*store, reference).await.doing(|| format!("{reference} cannot be resolved"))?;
    Ok((store, root))
}

/// Reads a global checkpoint or a checkpoint image.
pub async fn artifact(store: &dyn Store, root: &Descriptor) -> Result<Artifact, CommandError> {
    let document = manifest(store, root).await?;
    Artifact::parse(&document).map_err(|error| About::new(name(store, root), error).into())
}

/// Reads a checkpoint image.
pub async fn member(store: &dyn Store, root: &Descriptor) -> Result<CheckpointImage, CommandError> {
    let document = manifest(store, root).await?;
    CheckpointImage::parse(&document).map_err(|error| About::new(name(store, root), error).into())
}

/// Reads a manifest that is as large as what refers to it says, as copying and verifying ask for too.
async fn manifest(store: &dyn Store, root: &Descriptor) -> Result<Document, StoreError> {
    let document = store.manifest(&root.digest).await?;
    let actual = document.bytes().len() as u64;
    if actual != root.size {
        return Err(StoreError::Corrupt {
            store: store.name().to_owned(),
            what: format!("manifest {}", root.digest),
            reason: format!("it has {actual} bytes where what refers to it says {}", root.size),
        });
    }
    Ok(document)
}

fn name(store: &dyn Store, root: &Descriptor) -> String {
    format!("{}@{}", store.name(), root.digest)
}

/// The tag that a reference which is written must name.
pub fn tag_to_write(reference: &Reference) -> Result<&Tag, CommandError> {
    match reference.selector() {
        Some(Selector::Tag(tag)) => Ok(tag),
        Some(Selector::Digest(_)) => {
            Err(CommandError::usage(format!("{reference} names a digest, which follows from what is written"))
                .hint("name a tag: REF:TAG"))
        }
        None => Err(CommandError::usage(format!("{reference} names no tag"))
            .hint(format!("what is written is written under a tag that was chosen: {reference}:TAG"))),
    }
}

/// The fixed form of a reference: its place and a digest.
pub fn pinned(reference: &Reference, digest: Digest) -> Reference {
    reference.with_selector(Some(Selector::Digest(digest)))
}
