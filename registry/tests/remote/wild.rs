//! Answers that registries, proxies and token servers were seen to give, which the specification
//! does not foresee.
//!
//! [`TABLE`] says for each answer who gives it, what skopeo, oras and cosign make of it, and what
//! this program makes of it. What the peers manage, this program has to manage: a row that fails is
//! printed with all of its words.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::pin::Pin;

use futures_util::FutureExt;
use hyper::Method;
use image_format::Document;
use registry::{CopyOptions, RemoteStore, Selector, Settings, Store, StoreError, copy};
use tokio::time::Duration;

use crate::server::{Auth, Fault, PASSWORD, Server, USER, base64, status};
use crate::support::{create, descriptor, manifest, noise, put, read, tag, words};

const REPO: &str = "sdp/ledger";
const ALWAYS: usize = usize::MAX;

type Check = fn() -> Pin<Box<dyn Future<Output = ()>>>;

struct Row {
    /// Who gives the answer.
    who: &'static str,
    /// The answer.
    answer: &'static str,
    /// What the peers make of it.
    peers: &'static str,
    /// What this program makes of it.
    us: &'static str,
    check: Check,
}

macro_rules! table {
    ($($who:literal, $answer:literal, $peers:literal, $us:literal => $check:expr;)*) => {
        &[$(Row { who: $who, answer: $answer, peers: $peers, us: $us, check: || Box::pin($check) }),*]
    };
}

const TABLE: &[Row] = table! {
    "GitLab", "no referrers API; the tag sha256-HEX answers with the subject itself",
        "cosign, oras: the subject is no list", "the same; a referrer is put, and copied images are whole" => gitlab();
    "older registries", "400 to /referrers/", "cosign, oras: the list under the tag", "the same" => referrers(status(400));
    "firewalls, Artifactory", "403 to /referrers/", "skopeo, cosign 2: do not ask", "the list under the tag" => referrers(status(403));
    "older Harbor", "405 to /referrers/", "oras: an error; cosign 2: does not ask", "the list under the tag" => referrers(status(405));
    "Nexus", "406 to /referrers/", "cosign: the list under the tag", "the same" => referrers(status(406));
    "single-page sites before a registry", "200 and HTML to /referrers/", "oras: the list under the tag", "the same" => referrers(html());
    "login pages", "302 to an HTML page for /referrers/", "oras: the list under the tag", "the same" => referrers_lead_to_a_page();
    "anyone who can write", "a list of referrers with an entry that is none", "oras: shows it", "the entry is passed over" => a_bad_entry();
    "proxies that buffer", "HEAD of a blob has Content-Length 0", "skopeo, oras: the blob is there", "the same" =>
        sizeless_head(Some("0"));
    "HTTP/2 gateways", "HEAD of a blob has no Content-Length", "skopeo, oras: the blob is there", "the same" => sizeless_head(None);
    "gateways that rename repositories", "307 to POST blobs/uploads/", "all: follow it", "the same" => moved_upload(307);
    "gateways that rename repositories", "308 to POST blobs/uploads/", "all: follow it", "the same" => moved_upload(308);
    "gateways", "307 to /v2/", "skopeo, cosign: follow it", "the same" => moved_root();
    "gateways that pass only repositories", "404 to /v2/", "oras: does not ask", "goes on; a 404 of a repository says so" => rootless(404);
    "gateways that pass only repositories", "403 to /v2/", "oras: does not ask", "goes on" => rootless(403);
    "proxies that end TLS", "Location and Link with http: and the registry's own name", "oras: repairs the port",
        "stays with https" => downgraded();
    "proxies", "a challenge with parameters without quotes that are no tokens", "oras: reads the scheme", "reads them" =>
        challenge("Bearer realm=https://HOST/token,service=a b:c,scope=repository:sdp/ledger:pull");
    "localised servers", "a challenge with a parameter that is not ASCII", "all: read the others", "the same" =>
        challenge("Bearer realm=\"https://HOST/token\",service=\"test\",error_description=\"nicht erlaubt: für Gäste\"");
    "IIS", "several schemes in one header", "all: take Bearer", "the same" =>
        challenge("Negotiate, NTLM, Bearer realm=\"https://HOST/token\", service=\"test\"");
    "old Nexus", "blanks around '=', and a trailing comma", "skopeo, oras: read it", "the same" =>
        challenge("BEARER realm = \"https://HOST/token\" , service = \"te\\\"st\" ,");
    "small servers", "a realm that is only a path", "none manages it", "a path of the same registry" =>
        challenge("Bearer realm=\"/token\",service=\"test\"");
    "older token servers", "expires_in below 0", "skopeo: takes 60 s", "the same" => token(r#""expires_in":-1"#);
    "token servers in PHP", "expires_in as a text, or with a fraction", "skopeo: an error", "takes the number" =>
        token(r#""expires_in":"300.5""#);
    "token servers", "expires_in and issued_at are null", "all: take the token", "the same" =>
        token(r#""expires_in":null,"issued_at":null"#);
    "token servers", "301 to the same address with a slash", "all: follow it", "the same" => moved_token_server();
    "Docker Desktop files on a server", "credsStore names a helper that is not there; nobody asks for credentials",
        "skopeo: does not look there", "goes on without" => missing_helper();
    "registries that had other clients", "tags that are null, empty, digests or sentences", "skopeo: lists them",
        "lists those that are tags" => odd_tags();
    "registries with nothing left", "tags is null", "all: no tags", "the same" => no_tags();
    "GitHub, Gitea", "Link with other relations, without quotes, with commas in the address", "oras: follows it", "the same" =>
        odd_links();
    "registries with SHA-512", "Docker-Content-Digest with another algorithm", "skopeo: computes its own", "the same" =>
        other_digest();
};

#[tokio::test]
async fn every_answer_of_the_table_is_managed() {
    let mut failed = String::new();
    for Row { who, answer, peers, us, check } in TABLE {
        let check = AssertUnwindSafe(check()).catch_unwind();
        let checked = tokio::time::timeout(Duration::from_secs(60), check).await;
        if !matches!(checked, Ok(Ok(()))) {
            failed.push_str(&format!("{who} | {answer} | {peers} | {us}\n"));
        }
    }
    assert!(failed.is_empty(), "not managed (registry | answer | peers | us):\n{failed}");
}

fn html() -> Fault {
    let headers = vec![("content-type", "text/html; charset=utf-8".to_owned())];
    Fault::Answer(200, headers, "<!doctype html><title>Registry</title>".to_owned())
}

fn redirect(status: u16, to: String) -> Fault {
    Fault::Answer(status, vec![("location", to)], String::new())
}

/// A subject and one referrer, which is found.
async fn refer(server: &Server) -> (RemoteStore, Document, Document) {
    let store = server.store(REPO).await;
    let subject = manifest("subject", None);
    store.put_manifest(&subject, Some(&tag("a"))).await.unwrap();
    let referrer = manifest("referrer", Some(&subject));
    store.put_referrer(&subject.digest(), &referrer).await.unwrap();
    (store, subject, referrer)
}

async fn gitlab() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    server.state().add_blob(REPO, b"{}");
    let member = manifest("member", None);
    store.put_manifest(&member, None).await.unwrap();
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": image_format::annotation::MEDIA_INDEX, "manifests": [member.descriptor()],
    });
    let index = Document::new(image_format::annotation::MEDIA_INDEX, index.to_string().into_bytes());
    store.put_manifest(&index, Some(&tag("a"))).await.unwrap();
    for subject in [&index, &member] {
        let headers = vec![
            ("content-type", subject.media_type().to_owned()),
            ("docker-content-digest", subject.digest().to_string()),
        ];
        let body = String::from_utf8(subject.bytes().to_vec()).unwrap();
        let list = format!("/manifests/sha256-{}", subject.digest().hex());
        // Not the tag of signatures, which begins in the same way.
        server.fault_at(Method::GET, &list, ALWAYS, Fault::Answer(200, headers, body));
    }
    assert_eq!(store.referrers(&index.digest()).await.unwrap(), []);
    let before = server.state().repository(REPO).manifests.len();
    store.put_referrer(&index.digest(), &manifest("bundle", Some(&index))).await.unwrap();
    // The bundle, and nothing that lists the members as referrers.
    {
        let mut state = server.state();
        let held = &state.repository(REPO).manifests;
        let lists = |(_, bytes): &&(String, bytes::Bytes)| {
            let text = String::from_utf8_lossy(bytes);
            text.contains("manifests") && text.contains(&member.digest().to_string())
        };
        assert_eq!(held.values().filter(lists).count(), 1);
        assert!(held.len() > before);
    }
    let to = server.store("sdp/copy").await;
    copy(&store, &index.descriptor(), &to, &CopyOptions { tag: Some(tag("b")), ..CopyOptions::default() })
        .await
        .unwrap();
}

async fn referrers(fault: Fault) {
    let server = Server::start(Auth::None).await;
    server.fault(Method::GET, "/referrers/", ALWAYS, fault);
    let (store, subject, referrer) = refer(&server).await;
    assert_eq!(store.referrers(&subject.digest()).await.unwrap(), [referrer.descriptor()]);
}

async fn referrers_lead_to_a_page() {
    let server = Server::start(Auth::None).await;
    server.fault(Method::GET, "/users/sign_in", ALWAYS, html());
    server.fault(Method::GET, "/referrers/", ALWAYS, redirect(302, "/users/sign_in".to_owned()));
    let (store, subject, referrer) = refer(&server).await;
    assert_eq!(store.referrers(&subject.digest()).await.unwrap(), [referrer.descriptor()]);
}

async fn a_bad_entry() {
    let server = Server::start(Auth::None).await;
    let (store, subject, referrer) = refer(&server).await;
    server.state().add_blob(REPO, b"{}");
    let other = manifest("no referrer of it", None);
    store.put_manifest(&other, None).await.unwrap();
    let list = serde_json::json!({ "schemaVersion": 2, "manifests": [
        { "digest": 7 }, other.descriptor(), { "mediaType": "x", "digest": "sha256:00", "size": -1 }, referrer.descriptor(),
    ]});
    let list = Document::new(image_format::annotation::MEDIA_INDEX, list.to_string().into_bytes());
    let name = format!("sha256-{}", subject.digest().hex());
    let held = (list.media_type().to_owned(), list.bytes().to_vec().into());
    server.state().repository(REPO).manifests.insert(list.digest(), held);
    server.state().repository(REPO).tags.insert(name, list.digest());
    assert!(store.referrers(&subject.digest()).await.unwrap().contains(&referrer.descriptor()));
    let to = server.store("sdp/copy").await;
    copy(&store, &subject.descriptor(), &to, &CopyOptions { tag: Some(tag("b")), ..CopyOptions::default() })
        .await
        .unwrap();
    assert_eq!(to.referrers(&subject.digest()).await.unwrap(), [referrer.descriptor()]);
}

async fn sizeless_head(length: Option<&'static str>) {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let bytes = noise(1, 100_000);
    server.state().add_blob(REPO, &bytes);
    let head = format!("/blobs/{}", descriptor(&bytes).digest);
    server.fault(Method::HEAD, &head, ALWAYS, Fault::Header("content-length", length.map(str::to_owned)));
    assert_eq!(put(&store, &bytes).await.unwrap(), registry::Put::Existed);
    assert_eq!(store.blob_size(&descriptor(&bytes).digest).await.unwrap(), Some(100_000));
    let missing = descriptor(b"missing").digest;
    assert_eq!(store.blob_size(&missing).await.unwrap(), None);
}

async fn moved_upload(code: u16) {
    let server = Server::start(Auth::Basic).await;
    let store = server.store(REPO).await;
    server.fault_at(
        Method::POST,
        "/v2/sdp/ledger/blobs/uploads/",
        ALWAYS,
        redirect(code, "/v2/sdp/renamed/blobs/uploads/".into()),
    );
    put(&store, b"small").await.unwrap();
    create(&store, &noise(2, 2 << 20)).await.unwrap();
    assert_eq!(server.state().repository("sdp/renamed").blobs.len(), 2);
}

async fn moved_root() {
    for auth in [Auth::None, Auth::Bearer] {
        let server = Server::start(auth).await;
        server.fault_at(Method::GET, "/v2/", ALWAYS, redirect(307, "/v2/sdp/tags/list".into()));
        server.state().repository("sdp");
        let store = server.store(REPO).await;
        put(&store, b"pages").await.unwrap();
    }
}

async fn rootless(code: u16) {
    for auth in [Auth::None, Auth::Basic, Auth::Bearer] {
        let server = Server::start(auth).await;
        server.fault_at(Method::GET, "/v2/", ALWAYS, status(code));
        let store = server.store(REPO).await;
        let missing = store.resolve(&Selector::Tag(tag("a"))).await.unwrap_err();
        assert!(matches!(missing, StoreError::NotFound { .. }), "{}", words(&missing));
        put(&store, b"pages").await.unwrap();
        assert_eq!(read(&store, &descriptor(b"pages")).await.unwrap(), b"pages");
    }
}

async fn downgraded() {
    let server = Server::start(Auth::Basic).await;
    let store = server.store(REPO).await;
    store.put_manifest(&manifest("a", None), Some(&tag("a"))).await.unwrap();
    store.put_manifest(&manifest("a", None), Some(&tag("b"))).await.unwrap();
    let uploads = format!("http://{}/v2/{REPO}/blobs/uploads/", server.address.ip());
    server.state().location_base = Some(uploads);
    put(&store, b"pages").await.unwrap();
    server.state().page = 1;
    let next = format!("<http://{}/v2/{REPO}/tags/list?n=1&last=a>; rel=\"next\"", server.host());
    server.fault(Method::GET, "/tags/list", 1, Fault::Header("link", Some(next)));
    assert_eq!(store.tags().await.unwrap(), [tag("a"), tag("b")]);
}

async fn challenge(text: &str) {
    let server = Server::start(Auth::Bearer).await;
    let text = text.replace("HOST", &server.host());
    server.state().challenge = Some(text);
    let store = server.store(REPO).await;
    put(&store, b"pages").await.unwrap();
    assert!(server.state().count(Method::GET, "/token") > 0);
}

async fn token(more: &str) {
    let server = Server::start(Auth::Bearer).await;
    server.state().token_more = Some(more.to_owned());
    let store = server.store(REPO).await;
    for n in 0..3 {
        put(&store, &noise(n, 100)).await.unwrap();
    }
    assert_eq!(server.state().count(Method::GET, "/token"), 1);
}

async fn moved_token_server() {
    let server = Server::start(Auth::Bearer).await;
    let text = format!("Bearer realm=\"https://{}/auth?x=1\",service=\"test\"", server.host());
    server.state().challenge = Some(text);
    server.fault(Method::GET, "/auth", ALWAYS, redirect(301, "/token?service=test".to_owned()));
    put(&server.store(REPO).await, b"pages").await.unwrap();
}

async fn missing_helper() {
    let dir = tempfile::tempdir().unwrap();
    let (desktop, good) = (dir.path().join("config.json"), dir.path().join("auth.json"));
    std::fs::write(&desktop, r#"{"credsStore":"none-of-these-is-here","credHelpers":{"127.0.0.1":"nor-this"}}"#)
        .unwrap();
    let open = Server::start(Auth::None).await;
    let settings =
        |server: &Server, auth_files: Vec<PathBuf>| Settings { credentials: None, auth_files, ..server.settings() };
    let store = RemoteStore::connect(&open.host(), REPO, &settings(&open, vec![desktop.clone()])).await;
    put(&store.unwrap_or_else(|error| panic!("{}", words(&error))), b"pages").await.unwrap();
    // A later file has what is needed.
    let closed = Server::start(Auth::Basic).await;
    let auth = serde_json::json!({"auths": {closed.host(): {"auth": base64(&format!("{USER}:{PASSWORD}"))}}});
    std::fs::write(&good, auth.to_string()).unwrap();
    let store = closed.store_with(REPO, &settings(&closed, vec![desktop.clone(), good])).await;
    put(&store, b"pages").await.unwrap();
    // Where they are needed, the refusal names the helper.
    let store = closed.store_with(REPO, &settings(&closed, vec![desktop])).await;
    let error = words(&put(&store, b"more").await.unwrap_err());
    assert!(error.contains("docker-credential-none-of-these-is-here"), "{error}");
}

async fn odd_tags() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let long = "x".repeat(129);
    let digest = descriptor(b"x").digest.to_string();
    let page = serde_json::json!({"tags": ["b", null, "", digest, 7, "two words", {"name": "c"}, long, "../x", "a"]});
    server.fault(Method::GET, "/tags/list", 1, Fault::Answer(200, vec![], page.to_string()));
    assert_eq!(store.tags().await.unwrap(), [tag("a"), tag("b")]);
}

async fn no_tags() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    for body in [r#"{"name":"sdp/ledger","tags":null}"#, r#"{"name":"sdp/ledger"}"#] {
        server.fault(Method::GET, "/tags/list", 1, Fault::Answer(200, vec![], body.to_owned()));
        assert!(store.tags().await.unwrap().is_empty());
    }
}

async fn odd_links() {
    for link in [
        r#"</v2/sdp/ledger/tags/list?n=1&last=a>; type="x,y"; rel=next"#,
        r#"</v2/sdp/ledger/tags/list?n=1,000&last=a>;rel="next""#,
        r#"</first>; rel="first", </v2/sdp/ledger/tags/list?last=a> ; REL = "prev next""#,
        r#"<?last=a>; title="a; rel=\"first\", <b>"; rel="next""#,
    ] {
        let server = Server::start(Auth::None).await;
        let store = server.store(REPO).await;
        for name in ["a", "b"] {
            store.put_manifest(&manifest("a", None), Some(&tag(name))).await.unwrap();
        }
        let page = Fault::Answer(200, vec![("link", link.to_owned())], r#"{"tags":["a"]}"#.to_owned());
        server.fault(Method::GET, "/tags/list", 1, page);
        assert_eq!(store.tags().await.unwrap(), [tag("a"), tag("b")], "{link}");
    }
}

async fn other_digest() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let other = Fault::Header("docker-content-digest", Some(format!("sha512:{}", "0".repeat(128))));
    server.fault(Method::GET, "/manifests/", ALWAYS, other);
    let document = manifest("a", None);
    store.put_manifest(&document, Some(&tag("a"))).await.unwrap();
    assert_eq!(store.resolve(&Selector::Tag(tag("a"))).await.unwrap(), document.descriptor());
}
