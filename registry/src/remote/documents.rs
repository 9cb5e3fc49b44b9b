//! Manifests, indexes and tags.

use std::time::Instant;

use bytes::Bytes;
use image_format::annotation::{MEDIA_INDEX, MEDIA_MANIFEST};
use image_format::{Digest, Document};
use reqwest::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue, LINK};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::auth::Access;
use super::http::{Call, Http, TooLong};
use super::upload::check_digest;
use crate::links::{Links, MAX_DOCUMENT};
use crate::{Selector, StoreError, Tag, TagList};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Entries of a list of tags that are no tags: more of them than this are not told of.
const MAX_ODD: usize = 100;
/// Pages of a list; more is a circle.
const MAX_PAGES: usize = 1000;
/// Bytes of all pages of a list of tags.
const MAX_TAG_BYTES: u64 = 16 << 20;
/// Tags of a repository.
const MAX_TAGS: usize = 100_000;
/// All pages of a list may take so many times longer than one answer.
const LIST_PATIENCE: u32 = 10;

/// What is left of what a whole list may take, whose pages come from whoever the registry believes.
pub(super) struct Budget<'a> {
    http: &'a Http,
    what: String,
    limit: u64,
    read: u64,
    started: Instant,
}

impl<'a> Budget<'a> {
    pub(super) fn new(http: &'a Http, what: impl Into<String>, limit: u64) -> Self {
        Self { http, what: what.into(), limit, read: 0, started: Instant::now() }
    }

    /// Counts a page.
    pub(super) fn take(&mut self, page: &Bytes) -> Result<(), StoreError> {
        self.read += page.len() as u64;
        if self.read > self.limit {
            let (store, what) = (self.http.transport.name().to_owned(), self.what.clone());
            return Err(StoreError::TooLarge { store, what, size: self.read, limit: self.limit });
        }
        let patience = self.http.transport.timeout().saturating_mul(LIST_PATIENCE);
        if self.started.elapsed() > patience {
            let reason = format!("it is not complete after {} s", patience.as_secs_f32());
            return Err(self.http.transport.refused(&format!("reading {}", self.what), reason));
        }
        Ok(())
    }
}

/// Fetches what a tag or digest names.
pub(super) async fn get(http: &Http, selector: &Selector) -> Result<Document, StoreError> {
    let (what, body, _) = get_bytes(http, selector).await?;
    let links = Links::parse(&body).map_err(|error| http.transport.corrupt(&what, error.to_string()))?;
    Ok(Document::new(links.media_type(), body.into()))
}

/// Fetches the bytes of what a tag or digest names, checked against the digest: the one asked for, or the one that the
/// registry says the tag has. Gives a name for messages, too.
pub(super) async fn get_bytes(http: &Http, selector: &Selector) -> Result<(String, Bytes, HeaderMap), StoreError> {
    let (call, what) = call(http, Method::GET, selector, Access::Pull, "reading");
    let (response, body) = read(http, &call, &what).await?;
    let digest = Digest::of(&body);
    match selector {
        Selector::Digest(wanted) if *wanted != digest => {
            return Err(http.transport.corrupt(&what, format!("its bytes have the digest {digest}")));
        }
        Selector::Digest(_) => {}
        Selector::Tag(_) => check_digest(http, &digest, &response)?,
    }
    Ok((what, body, response.headers().clone()))
}

/// Whether a manifest is there.
pub(super) async fn has(http: &Http, digest: &Digest) -> Result<bool, StoreError> {
    let (call, what) = call(http, Method::HEAD, &Selector::Digest(*digest), Access::Pull, "looking for");
    let response = http.call(&call).await?;
    match response.status() {
        StatusCode::OK => Ok(true),
        StatusCode::NOT_FOUND => Ok(false),
        _ => Err(http.refuse(&call, &what, response).await),
    }
}

/// Puts a manifest under its digest, or under a tag, which is as good; gives the headers of the answer.
pub(super) async fn put(http: &Http, document: &Document, tag: Option<&Tag>) -> Result<HeaderMap, StoreError> {
    match put_if(http, document, tag, None).await? {
        Some(headers) => Ok(headers),
        None => {
            Err(http.transport.refused(&format!("putting manifest {}", document.digest()), "412 without a condition"))
        }
    }
}

/// The same under a condition (`If-Match` and the like), for registries that keep such; nothing
/// where it does not hold.
pub(super) async fn put_if(
    http: &Http,
    document: &Document,
    tag: Option<&Tag>,
    condition: Option<(HeaderName, HeaderValue)>,
) -> Result<Option<HeaderMap>, StoreError> {
    let digest = document.digest();
    let size = document.bytes().len() as u64;
    if size > MAX_DOCUMENT {
        let (store, what) = (http.transport.name().to_owned(), format!("manifest {digest}"));
        return Err(StoreError::TooLarge { store, what, size, limit: MAX_DOCUMENT });
    }
    let selector = tag.map_or(Selector::Digest(digest), |tag| Selector::Tag(tag.clone()));
    let (call, what) = call(http, Method::PUT, &selector, Access::Push, "putting");
    let media_type = HeaderValue::from_str(document.media_type())
        .map_err(|_| http.transport.refused(&call.operation, "its media type cannot be sent"))?;
    let conditional = condition.is_some();
    let mut call = call.body(media_type, Bytes::copy_from_slice(document.bytes()));
    call.headers.extend(condition);
    let response = http.call(&call).await?;
    if conditional && response.status() == StatusCode::PRECONDITION_FAILED {
        return Ok(None);
    }
    if !response.status().is_success() {
        return Err(http
            .refuse(&call, &format!("repository {} or what {what} refers to", http.repository()), response)
            .await);
    }
    check_digest(http, &digest, &response)?;
    Ok(Some(response.headers().clone()))
}

/// All tags.
pub(super) async fn tags(http: &Http) -> Result<Vec<Tag>, StoreError> {
    Ok(tag_list(http).await?.tags)
}

/// All tags, and what else the registry lists among them.
pub(super) async fn tag_list(http: &Http) -> Result<TagList, StoreError> {
    #[derive(Deserialize)]
    struct Page {
        tags: Option<Vec<Value>>,
    }

    let what = format!("repository {}", http.repository());
    let mut budget = Budget::new(http, "the list of tags", MAX_TAG_BYTES);
    let (mut tags, mut odd) = (Vec::new(), Vec::new());
    let mut next = Some(http.url("tags/list?n=1000"));
    for _ in 0..MAX_PAGES {
        let Some(url) = next else {
            tags.sort();
            tags.dedup();
            odd.sort();
            odd.dedup();
            return Ok(TagList { tags, odd });
        };
        let call = Call::new(Method::GET, url, Access::Pull, "listing tags");
        let (response, body) = read(http, &call, &what).await?;
        budget.take(&body)?;
        let page: Page = serde_json::from_slice(&body)
            .map_err(|_| http.transport.refused(&call.operation, "the answer is no list of tags"))?;
        for tag in page.tags.unwrap_or_default() {
            match tag.as_str().and_then(|tag| tag.parse().ok()) {
                Some(tag) => tags.push(tag),
                None if odd.len() < MAX_ODD => odd.push(shown(&tag)),
                None => {}
            }
        }
        if tags.len() > MAX_TAGS {
            return Err(http.transport.refused(&call.operation, format!("there are more than {MAX_TAGS} tags")));
        }
        next = next_page(http, &response)?;
    }
    Err(http.transport.refused("listing tags", format!("there are more than {MAX_PAGES} pages")))
}

/// An entry that is no tag, as it can be shown.
fn shown(entry: &Value) -> String {
    let shown = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    entry.to_string().chars().take(80).map(shown).collect()
}

/// Deletes a tag. Not all registries can do that without deleting the manifest, which is not asked for.
pub(super) async fn delete_tag(http: &Http, tag: &Tag) -> Result<(), StoreError> {
    let (call, what) = call(http, Method::DELETE, &Selector::Tag(tag.clone()), Access::Delete, "deleting");
    let response = http.call(&call).await?;
    match response.status() {
        status if status.is_success() => Ok(()),
        StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            let status = response.status();
            let reason = format!("this registry cannot delete a tag by itself ({status})");
            Err(http.transport.refused(&call.operation, reason))
        }
        _ => Err(http.refuse(&call, &what, response).await),
    }
}

fn call(http: &Http, method: Method, selector: &Selector, access: Access, doing: &str) -> (Call, String) {
    let (path, what) = match selector {
        Selector::Digest(digest) => (format!("manifests/{digest}"), format!("manifest {digest}")),
        Selector::Tag(tag) => (format!("manifests/{tag}"), format!("tag {tag}")),
    };
    let accept = format!("{MEDIA_INDEX}, {MEDIA_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}");
    let mut call = Call::new(method, http.url(&path), access, format!("{doing} {what}"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        call = call.header(ACCEPT, accept);
    }
    (call, what)
}

/// Reads a document of the size that is accepted for manifests. A connection that breaks in its middle is made again.
pub(super) async fn read(http: &Http, call: &Call, what: &str) -> Result<(Response, Bytes), StoreError> {
    match read_or(http, call, what, |_| false).await? {
        Ok(read) => Ok(read),
        Err(response) => Err(http.refuse(call, what, response).await),
    }
}

/// The same; answers of some statuses are given back unread.
pub(super) async fn read_or(
    http: &Http,
    call: &Call,
    what: &str,
    unread: impl Fn(StatusCode) -> bool,
) -> Result<Result<(Response, Bytes), Response>, StoreError> {
    let limit = usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX);
    let mut tries = http.tries();
    loop {
        let mut response = http.call(call).await?;
        match response.status() {
            StatusCode::OK => {}
            status if unread(status) => return Ok(Err(response)),
            _ => return Err(http.refuse(call, what, response).await),
        }
        match http.transport.read(&call.operation, &mut response, limit).await {
            Ok(Ok(body)) => return Ok(Ok((response, body))),
            Ok(Err(TooLong(size))) => {
                let (store, what) = (http.transport.name().to_owned(), what.to_owned());
                return Err(StoreError::TooLarge { store, what, size, limit: MAX_DOCUMENT });
            }
            Err(failure) => tries.again(failure).await?,
        }
    }
}

/// The address of `Link: <address>; rel="next"`.
pub(super) fn next_page(http: &Http, response: &Response) -> Result<Option<Url>, StoreError> {
    let links = response.headers().get_all(LINK).iter().filter_map(|link| link.to_str().ok());
    let Some(target) = links.filter_map(next_link).next() else { return Ok(None) };
    match http.transport.join(response.url(), target) {
        Some(url) if http.transport.is_inside(&url) => Ok(Some(url)),
        Some(_) | None => Err(http.transport.refused("listing", "the next page is not an address of this registry")),
    }
}

/// The first target in a `Link` header whose relation is `next` (RFC 8288). Commas and semicolons
/// also stand in addresses and within quotes.
fn next_link(mut text: &str) -> Option<&str> {
    loop {
        let (target, rest) = text.split_once('<')?.1.split_once('>')?;
        let parameters = unquoted(rest, ',').next().unwrap_or_default();
        let next = |parameter: &str| {
            let (name, value) = parameter.split_once('=').unwrap_or_default();
            let mut relations = value.trim().trim_matches('"').split_whitespace();
            name.trim().eq_ignore_ascii_case("rel") && relations.any(|rel| rel.eq_ignore_ascii_case("next"))
        };
        if unquoted(parameters, ';').any(next) {
            return Some(target);
        }
        text = &rest[parameters.len()..];
    }
}

/// The parts of a text between separators that do not stand within quotes.
fn unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |c: char| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
}
