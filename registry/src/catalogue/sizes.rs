//! How large checkpoints are, and how much each of them added to what was there.

use std::collections::{HashMap, HashSet};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use image_format::{CheckpointImage, Descriptor, Digest};

use super::{Completeness, Listed, given};
use crate::{Store, StoreError};

/// What one checkpoint takes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Its layers before compression, as its manifests say; nothing where one does not say it.
    pub plain: Option<u64>,
    /// Its blobs as they are stored, each counted once.
    pub stored: u64,
    /// Those of them that no older one of the checkpoints refers to.
    pub added: u64,
}

/// The sizes of checkpoints, which come from the oldest to the newest; nothing for one with a member
/// whose manifest is missing or cannot be read, or with a blob that is missing.
///
/// # Errors
/// A store that does not answer.
pub async fn sizes(store: &dyn Store, checkpoints: &[&Listed], jobs: usize) -> Result<Vec<Option<Sizes>>, StoreError> {
    let mut members: Vec<Digest> = Vec::new();
    let mut asked = HashSet::new();
    for checkpoint in checkpoints {
        let manifests = checkpoint.global.members().iter().map(|member| member.manifest.digest);
        members.extend(manifests.filter(|manifest| asked.insert(*manifest)));
    }
    let images = stream::iter(members)
        .map(|member| async move { image(store, member).await.map(|image| (member, image)) })
        .buffer_unordered(jobs.max(1));
    let images: HashMap<Digest, Option<CheckpointImage>> = images.try_collect().await?;
    let mut complete = Completeness::new(store, jobs);
    let (mut known, mut first) = (HashSet::new(), HashMap::new());
    let mut found = Vec::new();
    for checkpoint in checkpoints {
        // One checkpoint under two tags added what it added once, and says so twice.
        if let Some(sizes) = first.get(&checkpoint.root.digest) {
            found.push(*sizes);
            continue;
        }
        let members = checkpoint.global.members().iter();
        let images: Option<Vec<_>> = members.map(|member| images.get(&member.manifest.digest)?.as_ref()).collect();
        let sizes = match images {
            Some(images) => {
                let sizes = add_up(&images, &mut known);
                let blobs: Vec<_> =
                    images.iter().flat_map(|image| blobs(image)).map(|(blob, _)| blob.clone()).collect();
                complete.missing_blob(&blobs).await?.is_none().then_some(sizes)
            }
            None => None,
        };
        first.insert(checkpoint.root.digest, sizes);
        found.push(sizes);
    }
    Ok(found)
}

async fn image(store: &dyn Store, member: Digest) -> Result<Option<CheckpointImage>, StoreError> {
    let document = given(store.manifest(&member).await)?;
    Ok(document.and_then(|document| CheckpointImage::parse(&document).ok()))
}

/// Layers and configuration, each with its size before compression, as far as that is known.
fn blobs(image: &CheckpointImage) -> impl Iterator<Item = (&Descriptor, Option<u64>)> {
    let layers = image.layers().iter().map(|layer| (&layer.descriptor, layer.plain_size));
    layers.chain([(image.config(), Some(0))])
}

fn add_up(images: &[&CheckpointImage], known: &mut HashSet<Digest>) -> Sizes {
    let mut own = HashSet::new();
    let mut sizes = Sizes { plain: Some(0), ..Sizes::default() };
    for image in images {
        for (blob, plain) in blobs(image) {
            if !own.insert(blob.digest) {
                continue;
            }
            sizes.plain = sizes.plain.zip(plain).map(|(sum, plain)| sum.saturating_add(plain));
            sizes.stored = sizes.stored.saturating_add(blob.size);
            if known.insert(blob.digest) {
                sizes.added = sizes.added.saturating_add(blob.size);
            }
        }
    }
    sizes
}
