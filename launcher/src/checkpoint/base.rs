//! What the members' pages are compared with: their images in the newest checkpoint of the line.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use image_format::{Base, Digest, GlobalCheckpoint, MemberId};
use registry::find_base;
use tokio::time::timeout;

use super::commit::Line;
use super::{CheckpointOptions, Destination, Watcher};

/// The bases by member. Those without one store all of their pages.
pub(super) type Bases = BTreeMap<MemberId, Arc<Base>>;

/// Which images may be bases, by member, those of other hosts included.
pub(super) fn candidates(line: &Line, options: &CheckpointOptions) -> BTreeMap<MemberId, Digest> {
    let last = line.last.as_ref().filter(|_| !options.rebase && options.chain.generations > 1);
    let members = last.into_iter().flat_map(GlobalCheckpoint::members);
    members.map(|entry| (entry.id.clone(), entry.manifest.digest)).collect()
}

/// Fetches what is needed of each, while the application still runs. Nothing rests on it: what cannot be had, or not within the time,
/// only makes a checkpoint larger, and is told.
pub(super) async fn find(
    images: impl IntoIterator<Item = (MemberId, Digest)>,
    within: Duration,
    destination: &Destination,
    options: &CheckpointOptions,
    scratch: &Path,
    watcher: &dyn Watcher,
) -> Bases {
    let found = stream::iter(images).map(|(member, image)| async move {
        let base = tokio::select! {
            base = timeout(within, find_base(&destination.store, &image, scratch.to_owned())) => base,
            () = options.cancel.cancelled() => return None,
        };
        let why = match base {
            Ok(Ok(base)) => return Some((member, Arc::new(base))),
            Ok(Err(error)) => crate::error::chain(&error),
            Err(_) => format!("the image before cannot be read within {} s", within.as_secs_f32()),
        };
        watcher.note(&format!("{member}: a new chain begins: {why}"));
        None
    });
    found.buffer_unordered(options.jobs.max(1)).filter_map(|found| async { found }).collect().await
}
