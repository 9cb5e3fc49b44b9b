//! What the members' pages are compared with: their images in the newest checkpoint of the line.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use image_format::{Base, MemberId};
use registry::find_base;

use super::commit::Line;
use super::members::Member;
use super::{CheckpointOptions, Destination, Watcher};

/// The bases by member. Those without one store all of their pages.
pub(super) type Bases = BTreeMap<MemberId, Arc<Base>>;

/// Fetches what is needed of each, while the application still runs. Nothing rests on it: what cannot be had only makes a
/// checkpoint larger, and is told.
pub(super) async fn find(
    line: &Line,
    members: &[Member],
    destination: &Destination,
    options: &CheckpointOptions,
    scratch: &Path,
    watcher: &dyn Watcher,
) -> Bases {
    let Some(last) = line.last.as_ref().filter(|_| !options.rebase && options.chain.generations > 1) else {
        return Bases::new();
    };
    let entries = members.iter().filter_map(|member| last.member(&member.id));
    let found = stream::iter(entries).map(|entry| async move {
        let base = tokio::select! {
            base = find_base(&destination.store, &entry.manifest.digest, scratch.to_owned()) => base,
            () = options.cancel.cancelled() => return None,
        };
        match base {
            Ok(base) => Some((entry.id.clone(), Arc::new(base))),
            Err(error) => {
                watcher.note(&format!("{}: a new chain begins: {}", entry.id, crate::error::chain(&error)));
                None
            }
        }
    });
    found.buffer_unordered(options.jobs.max(1)).filter_map(|found| async { found }).collect().await
}
