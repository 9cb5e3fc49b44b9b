//! What refers to a manifest: by the registry's own list, or by the tag `sha256-HEX` that clients keep themselves where
//! there is none (distribution specification 1.1, "Referrers Tag Schema").
//!
//! Both are lists that nobody signed: they are read up to a bound, and an entry that is none is
//! passed over.
//!
//! Clients that change the same list race: each one reads it, adds to it and writes it. So whoever
//! wrote looks again after a pause that is longer than others need between reading and writing, and
//! writes again if its entry is gone. Registries that honour `If-Match` are told what was read, and
//! refuse a list that was changed meanwhile.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use image_format::annotation::MEDIA_INDEX;
use image_format::{Descriptor, Digest, Document, canonical_json};
use reqwest::header::{ACCEPT, ETAG, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::auth::Access;
use super::documents::{self, Budget};
use super::http::{Call, Http};
use crate::retry::random_fraction;
use crate::{Selector, StoreError, Tag};

const LIST: &str = "the list of referrers";
/// Pages of one list.
const MAX_PAGES: usize = 100;
/// Bytes of all pages of one list.
const MAX_BYTES: u64 = 8 << 20;
/// Entries of one list.
const MAX_ENTRIES: usize = 10_000;
/// How often a list is written again because somebody else wrote it at the same time.
const MAX_RACES: usize = 8;
/// The pause before a list that was written is looked at again, as a multiple of the time that
/// reading and writing took, and its bounds.
const PAUSE: u32 = 6;
const SHORTEST_PAUSE: Duration = Duration::from_millis(150);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// The manifests whose subject is `digest`.
pub(super) async fn list(http: &Http, digest: &Digest) -> Result<Vec<Descriptor>, StoreError> {
    let entries = match listed(http, digest).await? {
        Some(entries) => entries,
        None => Tagged::read(http, digest).await?.entries.unwrap_or_default(),
    };
    if entries.len() > MAX_ENTRIES {
        return Err(http.transport.refused(&reading(digest), format!("there are more than {MAX_ENTRIES}")));
    }
    let mut known = HashSet::new();
    // Also passed over: digests other than SHA-256, which other programs may use and none of ours
    // does.
    let found = entries.iter().filter_map(|entry| Descriptor::deserialize(entry).ok());
    Ok(found.filter(|found| found.digest != *digest && known.insert(found.digest)).collect())
}

/// Puts a manifest that has a subject, and sees to it that it is listed.
///
/// A registry that answers the list's tag with the subject, also after a list was put there
/// (GitLab), keeps no list: there the manifest is put, and nobody finds it by its subject.
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
    let entry = Value::Object(fields.entry(document));
    // What was there before the last try to write, and whether that try was refused by its
    // condition.
    let (mut seen, mut wrote, mut conditional) = (None, false, true);
    for _ in 0..MAX_RACES {
        let began = Instant::now();
        {
            let _turn = http.lists().lock().await;
            let before = Tagged::read(http, subject).await?;
            if before.lists(&entry) || (wrote && before.is_subject) {
                return Ok(());
            }
            let Some(entries) = &before.entries else {
                let reason = "something else is there, which is not overwritten";
                return Err(http.transport.corrupt(&format!("{LIST} of {subject}"), reason));
            };
            // A condition that does not hold although nothing changed is one that this registry
            // does not understand.
            conditional &= seen.is_none() || seen != Some(before.digest);
            let condition = before.condition.clone().filter(|_| conditional);
            let list = index(http, entries.iter().chain([&entry]))?;
            let put = documents::put_if(http, &list, Some(&tag(subject)), condition).await?;
            seen = put.is_none().then_some(before.digest);
            if put.is_none() {
                continue;
            }
            wrote = true;
        }
        let pause = (began.elapsed() * PAUSE).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        tokio::time::sleep(pause.mul_f64(1.0 + random_fraction())).await;
    }
    match Tagged::read(http, subject).await? {
        now if now.lists(&entry) => Ok(()),
        _ => Err(http.transport.refused(&reading(subject), "others keep changing it at the same time")),
    }
}

fn reading(subject: &Digest) -> String {
    format!("listing the referrers of {subject}")
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

/// The entries of a list. Those that are not ours are kept as they are.
type Entries = Vec<Value>;

/// The entries of an index, if it is one.
fn entries(bytes: &[u8]) -> Option<Entries> {
    let mut index: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
    match index.remove("manifests")? {
        Value::Array(entries) => Some(entries),
        Value::Null => Some(Entries::new()),
        _ => None,
    }
}

/// The registry's own list; `None` where it keeps none.
async fn listed(http: &Http, digest: &Digest) -> Result<Option<Entries>, StoreError> {
    let operation = reading(digest);
    let mut budget = Budget::new(http, format!("{LIST} of {digest}"), MAX_BYTES);
    let mut all = Entries::new();
    let mut next = Some(http.url(&format!("referrers/{digest}")));
    for page in 0..MAX_PAGES {
        let Some(url) = next else { return Ok(Some(all)) };
        let call =
            Call::new(Method::GET, url, Access::Pull, &operation).header(ACCEPT, HeaderValue::from_static(MEDIA_INDEX));
        let unknown = |status| page == 0 && is_unknown(status);
        let Ok((response, body)) = documents::read_or(http, &call, LIST, unknown).await? else {
            return Ok(None);
        };
        budget.take(&body)?;
        match entries(&body) {
            Some(entries) => all.extend(entries),
            // A page for people, which servers show for addresses that they do not know.
            None if page == 0 => return Ok(None),
            None => return Err(http.transport.refused(&operation, "the next page is no list")),
        }
        next = documents::next_page(http, &response)?;
    }
    Err(http.transport.refused(&operation, format!("there are more than {MAX_PAGES} pages")))
}

/// A registry that does not have the address answers 404; gateways and older registries say it with
/// nearly any other status that stands for a wrong request. Who has no right to read finds that out
/// at the tag.
fn is_unknown(status: StatusCode) -> bool {
    let about_the_client = matches!(status.as_u16(), 401 | 408 | 429);
    (status.is_client_error() && !about_the_client) || status == StatusCode::NOT_IMPLEMENTED
}

/// What is under the tag of a list.
struct Tagged {
    /// The list; empty where there is no such tag, and nothing where something else is.
    entries: Option<Entries>,
    /// The registry answers with the subject itself.
    is_subject: bool,
    /// Of what is there.
    digest: Option<Digest>,
    /// For writing it: that it is still what was read.
    condition: Option<(HeaderName, HeaderValue)>,
}

impl Tagged {
    async fn read(http: &Http, subject: &Digest) -> Result<Self, StoreError> {
        // Not read as the manifests of others are: these lists may hold digests that nothing here
        // can use.
        match documents::get_bytes(http, &Selector::Tag(tag(subject))).await {
            Ok((_, bytes, headers)) => {
                let digest = Digest::of(&bytes);
                let is_subject = digest == *subject;
                let entries = if is_subject { Some(Entries::new()) } else { entries(&bytes) };
                let condition = headers.get(ETAG).filter(|_| !is_subject).map(|etag| (IF_MATCH, etag.clone()));
                Ok(Self { entries, is_subject, digest: Some(digest), condition })
            }
            Err(StoreError::NotFound { .. }) => {
                let condition = Some((IF_NONE_MATCH, HeaderValue::from_static("*")));
                Ok(Self { entries: Some(Entries::new()), is_subject: false, digest: None, condition })
            }
            Err(error) => Err(error),
        }
    }

    fn lists(&self, entry: &Value) -> bool {
        self.entries.iter().flatten().any(|listed| listed.get("digest") == entry.get("digest"))
    }
}

fn index<'a>(http: &Http, entries: impl Iterator<Item = &'a Value>) -> Result<Document, StoreError> {
    let entries: Vec<_> = entries.collect();
    let content = json!({ "schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": entries });
    let bytes =
        canonical_json(&content).map_err(|error| http.transport.refused("listing referrers", error.to_string()))?;
    Ok(Document::new(MEDIA_INDEX, bytes))
}

fn tag(digest: &Digest) -> Tag {
    Tag::of_digest(digest, "")
}
