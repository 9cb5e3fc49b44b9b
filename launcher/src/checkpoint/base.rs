//! What the members' pages are compared with: their images in the newest checkpoint of the line.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engine::chain;
use futures_util::stream::{self, StreamExt};
use image_format::{Base, Digest, GlobalCheckpoint, MemberId};
use registry::{Selector, Trust, find_base, newest, sign};
use tokio::time::timeout;

use super::commit::Line;
use super::{CheckpointErrorKind, CheckpointOptions, Destination, Watcher};

/// The bases by member. Those without one store all of their pages.
pub(super) type Bases = BTreeMap<MemberId, Arc<Base>>;

/// Which images may be bases, by member, those of other hosts included.
pub(super) fn candidates(line: &Line, options: &CheckpointOptions) -> BTreeMap<MemberId, Digest> {
    let last = line.last.as_ref().filter(|_| !options.rebase && options.chain.generations > 1);
    let members = last.into_iter().flat_map(GlobalCheckpoint::members);
    members.map(|entry| (entry.id.clone(), entry.manifest.digest)).collect()
}

/// Those of the images, named by another host, that are members of the newest checkpoint of the line by this host's own trust.
pub(super) async fn of_line(
    mut images: Vec<(MemberId, Digest)>,
    within: Duration,
    destination: &Destination,
    options: &CheckpointOptions,
    watcher: &dyn Watcher,
) -> Vec<(MemberId, Digest)> {
    if images.is_empty() || matches!(destination.trust, Trust::InsecureNoVerify) {
        return images;
    }
    let finding = newest(&*destination.store, &options.application, &destination.trust, options.jobs);
    let found = tokio::select! {
        found = timeout(within, finding) => found,
        () = options.cancel.cancelled() => return Vec::new(),
    };
    let (last, why) = match found {
        Ok(Ok(newest)) => (newest.listed, "it is not of a checkpoint that a key of this host signed last".to_owned()),
        Ok(Err(error)) => (None, chain(&error)),
        Err(_) => (None, format!("the line cannot be read within {} s", within.as_secs_f32())),
    };
    images.retain(|(member, image)| {
        let entry = last.as_ref().and_then(|last| last.global.member(member));
        let is_base = entry.is_some_and(|entry| entry.manifest.digest == *image);
        if !is_base {
            watcher.warning(&format!("{member}: a new chain begins, {} is no base: {why}", image.short()));
        }
        is_base
    });
    images
}

/// Refuses to have a key sign pages that a checkpoint nobody was asked about may have brought in.
pub(super) async fn check_signed(base: Digest, destination: &Destination) -> Result<(), CheckpointErrorKind> {
    let store = &*destination.store;
    let unsigned = |reason: String| CheckpointErrorKind::UnsignedBase { base, reason };
    let root = match store.resolve(&Selector::Digest(base)).await {
        Ok(root) => root,
        Err(error) if error.is_of_content() => return Err(unsigned(chain(&error))),
        Err(error) => return Err(error.into()),
    };
    match destination.trust.check(store, &root).await? {
        Ok(_) => Ok(()),
        Err(findings) => Err(unsigned(sign::reasons(&findings))),
    }
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
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("the image before cannot be read within {} s", within.as_secs_f32()),
        };
        watcher.note(&format!("{member}: a new chain begins: {why}"));
        None
    });
    found.buffer_unordered(options.jobs.max(1)).filter_map(|found| async { found }).collect().await
}
