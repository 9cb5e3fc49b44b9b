//! Manifests, indexes and tags.

use bytes::Bytes;
use image_format::annotation::{MEDIA_INDEX, MEDIA_MANIFEST};
use image_format::{Digest, Document};
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, LINK};
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

/// Fetches what a tag or digest names.
pub(super) async fn get(http: &Http, selector: &Selector) -> Result<Document, StoreError> {
    let (what, body) = get_bytes(http, selector).await?;
    let links = Links::parse(&body).map_err(|error| http.transport.corrupt(&what, error.to_string()))?;
    Ok(Document::new(links.media_type(), body.into()))
}

/// Fetches the bytes of what a tag or digest names, checked against the digest: the one asked for, or the one that the
/// registry says the tag has. Gives a name for messages, too.
pub(super) async fn get_bytes(http: &Http, selector: &Selector) -> Result<(String, Bytes), StoreError> {
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
    Ok((what, body))
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
    let call = call.body(media_type, Bytes::copy_from_slice(document.bytes()));
    let response = http.call(&call).await?;
    if !response.status().is_success() {
        return Err(http
            .refuse(&call, &format!("repository {} or what {what} refers to", http.repository()), response)
            .await);
    }
    check_digest(http, &digest, &response)?;
    Ok(response.headers().clone())
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
        let page: Page = serde_json::from_slice(&body)
            .map_err(|_| http.transport.refused(&call.operation, "the answer is no list of tags"))?;
        for tag in page.tags.unwrap_or_default() {
            match tag.as_str().and_then(|tag| tag.parse().ok()) {
                Some(tag) => tags.push(tag),
                None if odd.len() < MAX_ODD => odd.push(shown(&tag)),
                None => {}
            }
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
    let mut targets = links.flat_map(|links| links.split(',')).filter_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let next = |parameter: &str| matches!(parameter.trim(), r#"rel="next""# | "rel=next");
        parameters.split(';').any(next).then_some(target)
    });
    let Some(target) = targets.next() else { return Ok(None) };
    match response.url().join(target) {
        Ok(url) if http.transport.is_inside(&url) => Ok(Some(url)),
        Ok(_) | Err(_) => Err(http.transport.refused("listing", "the next page is not an address of this registry")),
    }
}
