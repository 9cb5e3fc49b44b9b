//! Deleting a tag and nothing else.
//!
//! The distribution specification lets a registry delete a tag by its name, but older ones (docker-registry 2) only delete manifests, and
//! with them all tags that name them. There the tag is first moved to an empty manifest of its own, which is then deleted.

use serde_json::json;

use super::RemoteStore;
use super::{documents, sweep};
use crate::{Selector, StoreError, Tag, artifact};

const ARTIFACT_TYPE: &str = "application/vnd.syncpoint.untagged.v1";

/// Deletes a tag; what it names stays.
pub(super) async fn delete_tag(store: &RemoteStore, tag: &Tag) -> Result<(), StoreError> {
    let http = &*store.http;
    match documents::delete_tag(http, tag).await {
        Err(StoreError::Refused { .. }) => {}
        outcome => return outcome,
    }
    documents::get(http, &Selector::Tag(tag.clone())).await?;
    // No two tags share one, since it takes all its tags along.
    let annotations = json!({ "io.syncpoint.untagged": tag.as_str() });
    let document = artifact::manifest(ARTIFACT_TYPE, &artifact::empty().descriptor(), [("annotations", annotations)])
        .map_err(|error| http.transport.refused(&format!("deleting tag {tag}"), error.to_string()))?;
    artifact::put_config(store).await?;
    documents::put(http, &document, Some(tag)).await?;
    sweep::delete(http, &document.digest()).await
}
