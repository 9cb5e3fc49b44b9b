//! What refers to a manifest: by the registry's own list, or by the tag `sha256-HEX` that clients keep themselves where
//! there is none (distribution specification 1.1, "Referrers Tag Schema").

use image_format::annotation::MEDIA_INDEX;
use image_format::{Descriptor, Digest, Document, canonical_json};
use reqwest::header::{ACCEPT, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::auth::Access;
use super::documents;
use super::http::{Call, Http};
use crate::retry::Failure;
use crate::{Selector, StoreError, Tag};

const LIST: &str = "the list of referrers";
/// Pages of one list.
const MAX_PAGES: usize = 100;
/// How often a list is written again because somebody else wrote it at the same time.
const MAX_RACES: usize = 5;

/// The manifests whose subject is `digest`.
pub(super) async fn list(http: &Http, digest: &Digest) -> Result<Vec<Descriptor>, StoreError> {
    let mut entries = Vec::new();
    match listed(http, digest).await? {
        Some(found) => entries.extend(found),
        None => entries.extend(tagged(http, digest).await?),
    }
    let mut found: Vec<Descriptor> = Vec::new();
    for entry in entries {
        // Other programs may use other digests than SHA-256; none of ours does.
        if entry.get("digest").and_then(Value::as_str).is_some_and(|digest| !digest.starts_with("sha256:")) {
            continue;
        }
        let descriptor = Descriptor::deserialize(entry).map_err(|error| corrupt(http, digest, &error))?;
        if !found.contains(&descriptor) {
            found.push(descriptor);
        }
    }
    Ok(found)
}

/// Puts a manifest that has a subject, and sees to it that it is listed.
pub(super) async fn put(http: &Http, subject: &Digest, document: &Document) -> Result<(), StoreError> {
    let fields: Fields = match serde_json::from_slice(document.bytes()) {
        Ok(fields) => fields,
        Err(error) => return Err(http.transport.refused("putting a referrer", format!("it is no manifest: {error}"))),
    };
    if fields.subject.as_ref().map(|named| named.digest) != Some(*subject) {
        let reason = format!("the manifest {} does not name it as its subject", document.digest());
        return Err(http.transport.refused(&format!("putting a referrer of {subject}"), reason));
    }
    let headers = documents::put(http, document, None).await?;
    if headers.get("oci-subject").is_some_and(|value| value.as_bytes() == subject.to_string().as_bytes()) {
        return Ok(());
    }
    let entry = fields.entry(document);
    // Others read, change and write the same tag. Whoever wrote last sees after a moment whether all is still there.
    let mut tries = http.tries();
    for _ in 0..MAX_RACES {
        let mut entries = tagged(http, subject).await?;
        if entries.iter().any(|listed| listed.get("digest") == entry.get("digest")) {
            return Ok(());
        }
        entries.push(entry.clone());
        documents::put(http, &index(http, &entries)?, Some(&tag(http, subject)?)).await?;
        let entries = tagged(http, subject).await?;
        if entries.iter().any(|listed| listed.get("digest") == entry.get("digest")) {
            return Ok(());
        }
        tries.again(Failure::passing(raced(http, subject))).await?;
    }
    Err(raced(http, subject))
}

/// What of a manifest goes into the list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    artifact_type: Option<String>,
    config: Option<Value>,
    annotations: Option<Map<String, Value>>,
    subject: Option<Descriptor>,
}

impl Fields {
    fn entry(self, document: &Document) -> Map<String, Value> {
        let Descriptor { media_type, digest, size } = document.descriptor();
        let mut entry = Map::new();
        entry.insert("mediaType".to_owned(), json!(media_type));
        entry.insert("digest".to_owned(), json!(digest));
        entry.insert("size".to_owned(), json!(size));
        let of_config = self.config.and_then(|config| config.get("mediaType").cloned());
        if let Some(artifact_type) = self.artifact_type.map(Value::String).or(of_config) {
            entry.insert("artifactType".to_owned(), artifact_type);
        }
        if let Some(annotations) = self.annotations.filter(|annotations| !annotations.is_empty()) {
            entry.insert("annotations".to_owned(), Value::Object(annotations));
        }
        entry
    }
}

/// The entries of a list; members that are not ours are kept.
type Entries = Vec<Map<String, Value>>;

#[derive(Deserialize)]
struct Listing {
    manifests: Option<Entries>,
}

/// The registry's own list; `None` where it keeps none.
async fn listed(http: &Http, digest: &Digest) -> Result<Option<Entries>, StoreError> {
    let operation = format!("listing the referrers of {digest}");
    let mut entries = Vec::new();
    let mut next = Some(http.url(&format!("referrers/{digest}")));
    for page in 0..MAX_PAGES {
        let Some(url) = next else { return Ok(Some(entries)) };
        let call =
            Call::new(Method::GET, url, Access::Pull, &operation).header(ACCEPT, HeaderValue::from_static(MEDIA_INDEX));
        let unknown = |status| page == 0 && is_unknown(status);
        let Ok((response, body)) = documents::read_or(http, &call, LIST, unknown).await? else {
            return Ok(None);
        };
        let listing: Listing = serde_json::from_slice(&body).map_err(|error| corrupt(http, digest, &error))?;
        entries.extend(listing.manifests.unwrap_or_default());
        next = documents::next_page(http, &response)?;
    }
    Err(http.transport.refused(&operation, format!("there are more than {MAX_PAGES} pages")))
}

/// A registry that does not have the address answers 404; some older ones say it in other words.
fn is_unknown(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)
}

/// The list under the tag; empty where there is no such tag.
async fn tagged(http: &Http, digest: &Digest) -> Result<Entries, StoreError> {
    // Not read as the manifests of others are: these lists may hold digests that nothing here can use.
    let bytes = match documents::get_bytes(http, &Selector::Tag(tag(http, digest)?)).await {
        Ok((_, bytes)) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let listing: Listing = serde_json::from_slice(&bytes).map_err(|error| corrupt(http, digest, &error))?;
    Ok(listing.manifests.unwrap_or_default())
}

fn index(http: &Http, entries: &Entries) -> Result<Document, StoreError> {
    let content = json!({ "schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": entries });
    let bytes =
        canonical_json(&content).map_err(|error| http.transport.refused("listing referrers", error.to_string()))?;
    Ok(Document::new(MEDIA_INDEX, bytes))
}

fn tag(http: &Http, digest: &Digest) -> Result<Tag, StoreError> {
    let tag = format!("sha256-{}", digest.hex()).parse();
    tag.map_err(|error: crate::ParseReferenceError| http.transport.refused("listing referrers", error.to_string()))
}

fn corrupt(http: &Http, digest: &Digest, error: &serde_json::Error) -> StoreError {
    http.transport.corrupt(&format!("{LIST} of {digest}"), error.to_string())
}

fn raced(http: &Http, subject: &Digest) -> StoreError {
    http.transport.refused(&format!("{LIST} of {subject}"), "others keep changing it at the same time")
}
