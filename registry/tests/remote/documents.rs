//! Manifests, tags and referrers.

use std::time::Duration;

use hyper::Method;
use image_format::annotation::{MEDIA_INDEX, MEDIA_MANIFEST};
use image_format::{Digest, Document};
use registry::{CopyError, CopyOptions, Selector, Settings, Store, StoreError, copy};

use crate::server::{Auth, Fault, Server, status};
use crate::support::{manifest, tag, words};

const REPO: &str = "sdp/ledger";

#[tokio::test]
async fn a_manifest_has_a_digest_and_a_tag() {
    let server = Server::start(Auth::Bearer).await;
    let store = server.store(REPO).await;
    let document = manifest("a", None);
    assert!(!store.has_manifest(&document.digest()).await.unwrap());
    store.put_manifest(&document, None).await.unwrap();
    assert!(store.has_manifest(&document.digest()).await.unwrap());
    assert_eq!(store.manifest(&document.digest()).await.unwrap(), document);
    assert!(store.tags().await.unwrap().is_empty());
    store.put_manifest(&document, Some(&tag("epoch-1"))).await.unwrap();
    for selector in [Selector::Tag(tag("epoch-1")), Selector::Digest(document.digest())] {
        assert_eq!(store.resolve(&selector).await.unwrap(), document.descriptor());
    }
    let missing = store.resolve(&Selector::Tag(tag("epoch-2"))).await.unwrap_err();
    assert!(matches!(missing, StoreError::NotFound { .. }), "{missing:?}");
}

#[tokio::test]
async fn a_manifest_that_differs_from_its_digest_is_refused() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let document = manifest("a", None);
    store.put_manifest(&document, Some(&tag("a"))).await.unwrap();
    // By digest, and by a tag whose digest the registry tells.
    let other = Document::new(MEDIA_MANIFEST, manifest("b", None).bytes().to_vec());
    let held = (MEDIA_MANIFEST.to_owned(), other.bytes().to_vec().into());
    server.state().repository(REPO).manifests.insert(document.digest(), held);
    for selector in [Selector::Digest(document.digest()), Selector::Tag(tag("a"))] {
        let error = store.resolve(&selector).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_registry_that_keeps_another_manifest_is_noticed() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let lie = Fault::Header("docker-content-digest", Some(Digest::of(b"x").to_string()));
    server.fault(Method::PUT, "/manifests/", 1, lie);
    let error = store.put_manifest(&manifest("a", None), Some(&tag("a"))).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
}

#[tokio::test]
async fn what_is_no_manifest_is_refused() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    for body in ["{}", "[]", "<html>", &"[".repeat(100_000)] {
        let held = (MEDIA_MANIFEST.to_owned(), body.to_owned().into());
        server.state().repository(REPO).manifests.insert(Digest::of(body.as_bytes()), held);
        let error = store.manifest(&Digest::of(body.as_bytes())).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_huge_manifest_is_refused_by_its_length() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let huge = vec![b' '; 100 << 20];
    let digest = Digest::of(&huge);
    server.state().repository(REPO).manifests.insert(digest, (MEDIA_MANIFEST.to_owned(), huge.into()));
    let error = store.manifest(&digest).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { size: 104_857_600, limit: 4_194_304, .. }), "{error:?}");
}

#[tokio::test]
async fn a_manifest_without_end_is_refused() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let document = manifest("a", None);
    store.put_manifest(&document, None).await.unwrap();
    server.fault(Method::GET, "/manifests/", 1, Fault::Endless);
    let error = store.manifest(&document.digest()).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error:?}");
    // Not much more than the limit was ever on its way: what buffers of both sides hold.
    let state = server.state();
    assert!(state.seen.iter().all(|seen| seen.body < 32 << 20));
}

#[tokio::test]
async fn a_manifest_too_large_for_registries_is_not_sent() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let document = Document::new(MEDIA_MANIFEST, vec![b' '; (4 << 20) + 1]);
    assert!(matches!(store.put_manifest(&document, None).await, Err(StoreError::TooLarge { .. })));
    assert_eq!(server.state().count(Method::PUT, ""), 0);
}

#[tokio::test]
async fn a_torn_manifest_is_read_again() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let document = manifest("a", None);
    store.put_manifest(&document, None).await.unwrap();
    server.fault(Method::GET, "/manifests/", 2, Fault::TornAnswer(Some(10)));
    assert_eq!(store.manifest(&document.digest()).await.unwrap(), document);
}

#[tokio::test]
async fn a_put_whose_answer_got_lost_is_repeated() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    server.fault(Method::PUT, "/manifests/", 1, Fault::TornAnswer(None));
    store.put_manifest(&manifest("a", None), Some(&tag("a"))).await.unwrap();
    assert_eq!(server.state().count(Method::PUT, "/manifests/"), 2);
}

#[tokio::test]
async fn tags_come_in_pages() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let missing = store.tags().await.unwrap_err();
    assert!(matches!(missing, StoreError::NotFound { .. }), "{missing:?}");
    server.state().page = 2;
    let document = manifest("a", None);
    for name in ["e", "b", "d", "a", "c"] {
        store.put_manifest(&document, Some(&tag(name))).await.unwrap();
    }
    let tags: Vec<String> = store.tags().await.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(tags, ["a", "b", "c", "d", "e"]);
    assert_eq!(server.state().count(Method::GET, "/tags/list"), 1 + 3);
}

#[tokio::test]
async fn the_next_page_is_of_the_same_registry() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    store.put_manifest(&manifest("a", None), Some(&tag("a"))).await.unwrap();
    let link = "<https://127.0.0.1:1/v2/x/tags/list>; rel=\"next\"".to_owned();
    server.fault(Method::GET, "/tags/list", 1, Fault::Header("link", Some(link)));
    let error = store.tags().await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
}

#[tokio::test]
async fn pages_without_end_are_refused() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    store.put_manifest(&manifest("a", None), Some(&tag("a"))).await.unwrap();
    let link = format!("</v2/{REPO}/tags/list>; rel=\"next\"");
    server.fault(Method::GET, "/tags/list", usize::MAX, Fault::Header("link", Some(link)));
    let error = store.tags().await.unwrap_err();
    assert!(error.to_string().contains("pages"), "{error}");
}

#[tokio::test]
async fn a_tag_is_deleted_where_that_can_be_done() {
    let server = Server::start(Auth::Bearer).await;
    let store = server.store(REPO).await;
    let document = manifest("a", None);
    store.put_manifest(&document, Some(&tag("a"))).await.unwrap();
    // Some only delete manifests, and then with all tags: then the tag goes with an empty one.
    store.put_manifest(&document, Some(&tag("b"))).await.unwrap();
    server.state().deletes_manifests = true;
    store.delete_tag(&tag("b")).await.unwrap();
    assert_eq!(store.tags().await.unwrap(), [tag("a")]);
    assert!(store.has_manifest(&document.digest()).await.unwrap());
    server.state().deletes_tags = true;
    store.delete_tag(&tag("a")).await.unwrap();
    assert!(store.tags().await.unwrap().is_empty());
    assert!(store.has_manifest(&document.digest()).await.unwrap());
    let missing = store.delete_tag(&tag("a")).await.unwrap_err();
    assert!(matches!(missing, StoreError::NotFound { .. }), "{missing:?}");
    assert!(server.state().scopes.contains(&format!("repository:{REPO}:pull,push,delete")));
}

#[tokio::test]
async fn the_registrys_own_list_of_referrers_is_used() {
    let server = Server::start(Auth::None).await;
    server.state().native_referrers = true;
    server.state().page = 2;
    let store = server.store(REPO).await;
    let subject = manifest("subject", None);
    store.put_manifest(&subject, None).await.unwrap();
    let mut put = Vec::new();
    for name in ["a", "b", "c"] {
        let referrer = manifest(name, Some(&subject));
        store.put_referrer(&subject.digest(), &referrer).await.unwrap();
        put.push(referrer.descriptor());
    }
    let mut found = store.referrers(&subject.digest()).await.unwrap();
    put.sort_by_key(|descriptor| descriptor.digest);
    found.sort_by_key(|descriptor| descriptor.digest);
    assert_eq!(found, put);
    assert!(store.tags().await.unwrap().is_empty());
    assert!(store.referrers(&Digest::of(b"nobody")).await.unwrap().is_empty());
}

#[tokio::test]
async fn without_one_a_tag_holds_the_list() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let subject = manifest("subject", None);
    store.put_manifest(&subject, None).await.unwrap();
    assert!(store.referrers(&subject.digest()).await.unwrap().is_empty());
    let (a, b) = (manifest("a", Some(&subject)), manifest("b", Some(&subject)));
    for referrer in [&a, &b, &a] {
        store.put_referrer(&subject.digest(), referrer).await.unwrap();
    }
    assert_eq!(store.referrers(&subject.digest()).await.unwrap(), [a.descriptor(), b.descriptor()]);
    let list = tag(&format!("sha256-{}", subject.digest().hex()));
    assert_eq!(store.tags().await.unwrap(), std::slice::from_ref(&list));
    let digest = store.resolve(&Selector::Tag(list)).await.unwrap();
    assert_eq!(digest.media_type, MEDIA_INDEX);
    let list = store.manifest(&digest.digest).await.unwrap();
    let list: serde_json::Value = serde_json::from_slice(list.bytes()).unwrap();
    assert_eq!(list["manifests"][0]["artifactType"], "application/x.test");
    assert_eq!(list["manifests"][0]["annotations"]["name"], "a");
}

#[tokio::test]
async fn entries_of_others_are_kept() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let subject = manifest("subject", None);
    let list = tag(&format!("sha256-{}", subject.digest().hex()));
    let other = serde_json::json!({
        "mediaType": MEDIA_MANIFEST, "digest": format!("sha512:{}", "0".repeat(128)), "size": 1, "x": {"y": [1]},
    });
    let good = serde_json::json!({
        "mediaType": MEDIA_MANIFEST, "digest": Digest::of(b"z"), "size": 1, "platform": {"os": "x"},
    });
    let before = serde_json::json!({"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": [good, other]});
    // The store's own reader takes SHA-256 only, so this goes past it.
    let bytes = before.to_string().into_bytes();
    let digest = Digest::of(&bytes);
    server.state().repository(REPO).manifests.insert(digest, (MEDIA_INDEX.to_owned(), bytes.into()));
    server.state().repository(REPO).tags.insert(list.to_string(), digest);
    let referrer = manifest("a", Some(&subject));
    store.put_referrer(&subject.digest(), &referrer).await.unwrap();
    let found: Vec<Digest> =
        store.referrers(&subject.digest()).await.unwrap().iter().map(|found| found.digest).collect();
    assert_eq!(found, [Digest::of(b"z"), referrer.digest()]);
    let mut state = server.state();
    let repository = state.repository(REPO);
    let now: serde_json::Value =
        serde_json::from_slice(&repository.manifests[&repository.tags[list.as_str()]].1).unwrap();
    assert_eq!(now["manifests"][0], good);
    assert_eq!(now["manifests"][1], other);
}

#[tokio::test]
async fn referrers_put_at_the_same_time_are_all_listed() {
    let server = Server::start(Auth::None).await;
    let subject = manifest("subject", None);
    let store = server.store(REPO).await;
    store.put_manifest(&subject, None).await.unwrap();
    let puts = ["a", "b", "c", "d"].map(|name| {
        let (store, referrer, subject) = (store.clone(), manifest(name, Some(&subject)), subject.digest());
        tokio::spawn(async move { store.put_referrer(&subject, &referrer).await })
    });
    for put in puts {
        put.await.unwrap().unwrap();
    }
    assert_eq!(store.referrers(&subject.digest()).await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_referrer_of_something_else_is_refused() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let subject = manifest("subject", None);
    for referrer in [manifest("a", None), manifest("b", Some(&manifest("other", None)))] {
        let error = store.put_referrer(&subject.digest(), &referrer).await.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
    }
    assert!(server.state().repositories.is_empty());
}

#[tokio::test]
async fn trouble_with_the_list_of_referrers_is_not_taken_for_its_absence() {
    for (code, denied) in [(401, true), (500, false)] {
        let server = Server::start(Auth::None).await;
        let store = server.store_with(REPO, &Settings { retries: 0, ..server.settings() }).await;
        server.fault(Method::GET, "/referrers/", 1, status(code));
        let error = store.referrers(&Digest::of(b"x")).await.unwrap_err();
        assert_eq!(matches!(error, StoreError::Denied { .. }), denied, "{error:?}");
    }
    // Who has no right to read is told at the tag.
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    server.fault(Method::GET, "", 2, status(403));
    let error = store.referrers(&Digest::of(b"x")).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
}

/// Clients of their own, which know nothing of each other.
#[tokio::test]
async fn clients_that_put_referrers_at_the_same_time_lose_none() {
    for conditions in [false, true] {
        let server = Server::start(Auth::None).await;
        server.state().conditions = conditions;
        let subject = manifest("subject", None);
        server.store(REPO).await.put_manifest(&subject, None).await.unwrap();
        let mut puts = Vec::new();
        for name in ["a", "b", "c", "d"] {
            let (store, referrer) = (server.store(REPO).await, manifest(name, Some(&subject)));
            let subject = subject.digest();
            puts.push(tokio::spawn(async move { store.put_referrer(&subject, &referrer).await }));
        }
        for put in puts {
            put.await.unwrap().unwrap();
        }
        let store = server.store(REPO).await;
        assert_eq!(store.referrers(&subject.digest()).await.unwrap().len(), 4, "conditions: {conditions}");
    }
}

#[tokio::test]
async fn a_registry_that_misunderstands_conditions_takes_referrers() {
    let server = Server::start(Auth::None).await;
    let (store, subject) = (server.store(REPO).await, manifest("subject", None));
    store.put_manifest(&subject, None).await.unwrap();
    let list = format!("/manifests/sha256-{}", subject.digest().hex());
    server.fault_with(Method::PUT, &list, "if-none-match", status(412));
    let referrer = manifest("a", Some(&subject));
    store.put_referrer(&subject.digest(), &referrer).await.unwrap();
    assert_eq!(store.referrers(&subject.digest()).await.unwrap(), [referrer.descriptor()]);
}

/// Whatever comes before a signature is checked has an end: pages that are many or large, and pages
/// that are slow.
#[tokio::test]
async fn lists_of_strangers_have_an_end() {
    let subject = Digest::of(b"x");
    for (path, entry) in [("/tags/list", "tags"), ("/referrers/", "manifests")] {
        let server = Server::start(Auth::None).await;
        let store = server.store(REPO).await;
        let item = match entry {
            "tags" => |n: usize| serde_json::json!(format!("{n:0100}")),
            _ => |n: usize| serde_json::json!({"mediaType": "m", "digest": Digest::of(&n.to_le_bytes()), "size": n}),
        };
        let page: Vec<_> = (0..30_000).map(item).collect();
        let body = serde_json::json!({ entry: page }).to_string();
        let link = vec![("link", format!("</v2/{REPO}{path}{subject}>; rel=\"next\""))];
        server.fault(Method::GET, path, usize::MAX, Fault::Answer(200, link, body));
        let asked = async {
            match entry {
                "tags" => store.tags().await.map(drop),
                _ => store.referrers(&subject).await.map(drop),
            }
        };
        let error = tokio::time::timeout(Duration::from_secs(30), asked).await.unwrap().unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { .. } | StoreError::Refused { .. }), "{error:?}");
        assert!(server.state().count(Method::GET, path) < 10);
    }
}

#[tokio::test]
async fn what_strangers_attached_is_not_all_held() {
    let server = Server::start(Auth::None).await;
    server.state().native_referrers = true;
    let store = server.store(REPO).await;
    server.state().add_blob(REPO, b"{}");
    let subject = manifest("subject", None);
    store.put_manifest(&subject, Some(&tag("a"))).await.unwrap();
    for n in 0..40 {
        let referrer = manifest(&format!("{n}{}", "x".repeat(1 << 20)), Some(&subject));
        store.put_referrer(&subject.digest(), &referrer).await.unwrap();
    }
    server.state().seen.clear();
    let to = server.store("sdp/copy").await;
    let error = copy(&store, &subject.descriptor(), &to, &CopyOptions::default()).await.unwrap_err();
    assert!(matches!(error, CopyError::TooMuch { .. }), "{error:?}");
    assert!(server.state().count(Method::GET, "/manifests/sha256:") < 40);
}

#[tokio::test]
async fn many_referrers_are_told_apart_quickly() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let entries: Vec<_> = (0..10_000_usize)
        .map(|n| serde_json::json!({"mediaType": "m", "digest": Digest::of(&n.to_le_bytes()), "size": n}))
        .collect();
    let body = serde_json::json!({ "manifests": entries }).to_string();
    server.fault(Method::GET, "/referrers/", 1, Fault::Answer(200, vec![], body));
    let asked = tokio::time::timeout(Duration::from_secs(10), store.referrers(&Digest::of(b"x"))).await;
    assert_eq!(asked.unwrap().unwrap().len(), 10_000);
}

#[tokio::test]
async fn a_manifest_that_drips_is_given_up() {
    let server = Server::start(Auth::None).await;
    let settings = Settings { timeout: Duration::from_millis(500), retries: 0, ..server.settings() };
    let store = server.store_with(REPO, &settings).await;
    let document = manifest("a", None);
    store.put_manifest(&document, None).await.unwrap();
    server.fault(Method::GET, "/manifests/", 1, Fault::Drip(Duration::from_millis(50)));
    let began = std::time::Instant::now();
    let error = store.manifest(&document.digest()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    assert!(words(&error).contains("bytes came within"), "{}", words(&error));
    assert!(began.elapsed() < Duration::from_secs(10));
}
