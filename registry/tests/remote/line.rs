//! Reading a line of checkpoints from a registry: one bad entry hides neither the others nor the good ones.

use std::collections::BTreeMap;
use std::time::SystemTime;

use hyper::Method;
use image_format::{Document, Epoch, GlobalCheckpoint, MemberEntry};
use registry::sign::{Password, PrivateKey, sign};
use registry::{
    Catalogue, Newest, PassedOver, Policy, PruneOptions, Settings, Store, StoreError, Trust, catalogue, newest, prune,
};

use crate::server::{Auth, Fault, Server};
use crate::support::{manifest, put, tag, words};

const REPO: &str = "sdp/ledger";

fn global(epoch: u64) -> Document {
    let entry = MemberEntry {
        id: "a".parse().unwrap(),
        depends_on: Vec::new(),
        manifest: manifest("member", None).descriptor(),
        annotations: BTreeMap::new(),
    };
    let created = format!("2026-01-01T00:00:{:02}Z", epoch % 60);
    let application = "ledger".parse().unwrap();
    let global = GlobalCheckpoint::new(application, Epoch(epoch), None, created, vec![entry], BTreeMap::new());
    global.unwrap().to_document().unwrap()
}

/// Puts signed checkpoints of these epochs.
async fn line(store: &dyn Store, key: &PrivateKey, epochs: impl IntoIterator<Item = u64>) {
    store.put_manifest(&manifest("member", None), None).await.unwrap();
    for epoch in epochs {
        let document = global(epoch);
        store.put_manifest(&document, Some(&tag(&format!("epoch-{epoch}")))).await.unwrap();
        sign(store, &document.descriptor(), key, "x").await.unwrap();
    }
}

fn key() -> PrivateKey {
    let text = include_str!("../../../fixtures/keys/openssl.key");
    PrivateKey::load(text, &Password::new("syncpoint-test")).unwrap()
}

fn epochs(catalogue: &Catalogue) -> Vec<u64> {
    catalogue.listed.iter().map(|listed| listed.global.epoch().0).collect()
}

fn tags(passed_over: &[PassedOver]) -> Vec<&str> {
    passed_over.iter().map(|passed| passed.tag.as_str()).collect()
}

#[tokio::test]
async fn one_bad_answer_hides_no_other_checkpoint() {
    let key = key();
    let trust = Trust::Keys(vec![key.public_key()]);
    let server = Server::start(Auth::None).await;
    let store = server.store_with(REPO, &Settings { retries: 0, ..server.settings() }).await;
    line(&store, &key, 1..=4).await;
    let answer = |status| Fault::Answer(status, Vec::new(), String::new());
    let html = || Fault::Answer(200, Vec::new(), "<html>".to_owned());
    let faults = [403, 404, 412, 451, 500, 502, 302].map(answer).into_iter();
    let faults = faults.chain([html(), Fault::Flip, Fault::TornAnswer(None), Fault::TornAnswer(Some(5))]);
    for fault in faults {
        server.heal();
        server.fault(Method::HEAD, "/manifests/epoch-3", usize::MAX, answer(451));
        server.fault(Method::GET, "/manifests/epoch-3", usize::MAX, fault);
        let found = catalogue(&store, &trust, 2).await.unwrap_or_else(|error| panic!("{}", words(&error)));
        assert_eq!((epochs(&found), tags(&found.passed_over)), (vec![1, 2, 4], vec!["epoch-3"]));
    }
}

#[tokio::test]
async fn a_registry_that_is_gone_is_no_empty_line() {
    let key = key();
    let trust = Trust::Keys(vec![key.public_key()]);
    let server = Server::start(Auth::None).await;
    let store = server.store_with(REPO, &Settings { retries: 0, ..server.settings() }).await;
    line(&store, &key, 1..=2).await;
    server.fault(Method::GET, "/manifests/", usize::MAX, Fault::TornAnswer(None));
    server.fault(Method::HEAD, "/manifests/", usize::MAX, Fault::TornAnswer(None));
    let found = catalogue(&store, &trust, 2).await.unwrap();
    assert_eq!(tags(&found.passed_over), ["epoch-1", "epoch-2"]);
    // Now it does not list its tags either, but for the first time.
    server.fault(Method::GET, "/tags/list", usize::MAX, Fault::TornAnswer(None));
    let error = catalogue(&store, &trust, 2).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn what_no_key_of_the_line_signed_is_passed_over() {
    let key = key();
    let trust = Trust::Keys(vec![key.public_key()]);
    let other = PrivateKey::generate().unwrap();
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    line(&store, &key, 1..=2).await;
    line(&store, &other, 3..=3).await;
    store.put_manifest(&global(u64::MAX - 1), Some(&tag("planted"))).await.unwrap();

    let found = catalogue(&store, &trust, 2).await.unwrap();
    assert_eq!(epochs(&found), [1, 2]);
    assert_eq!(tags(&found.passed_over), ["epoch-3", "planted"]);
    let why = found.passed_over.iter().map(|passed| passed.why.to_string()).collect::<Vec<_>>();
    assert!(why[0].contains("no trusted key signed"), "{why:?}");
    assert!(why[1].contains("is not signed"), "{why:?}");

    let ledger = "ledger".parse().unwrap();
    let Newest { listed, passed_over } = newest(&store, &ledger, &trust, 2).await.unwrap();
    let listed = listed.unwrap();
    assert_eq!((listed.global.epoch(), listed.signatures.is_empty()), (Epoch(2), false));
    assert_eq!(tags(&passed_over), ["planted", "epoch-3"]);
    let both = Trust::Keys(vec![other.public_key(), key.public_key()]);
    assert_eq!(newest(&store, &ledger, &both, 2).await.unwrap().listed.unwrap().global.epoch(), Epoch(3));
    let nobody = Trust::Keys(Vec::new());
    assert!(newest(&store, &ledger, &nobody, 2).await.unwrap().listed.is_none());
    let anybody = newest(&store, &ledger, &Trust::InsecureNoVerify, 2).await.unwrap();
    assert_eq!(anybody.listed.unwrap().tag, tag("planted"));
}

#[tokio::test]
async fn entries_of_the_list_that_are_no_tags_are_named() {
    let key = key();
    let trust = Trust::Keys(vec![key.public_key()]);
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    line(&store, &key, 1..=2).await;
    let body = format!(
        r#"{{"name":"{REPO}","tags":["epoch-1",null,"","sha256:{}","a b","-x",7,{{}},"\u001b[31m","epoch-2"]}}"#,
        "0".repeat(64)
    );
    let json = vec![("content-type", "application/json".to_owned())];
    server.fault(Method::GET, "/tags/list", usize::MAX, Fault::Answer(200, json, body));
    let found = catalogue(&store, &trust, 2).await.unwrap();
    assert_eq!(epochs(&found), [1, 2]);
    let odd = tags(&found.passed_over);
    assert_eq!(odd.len(), 8, "{odd:?}");
    assert!(odd.contains(&"null") && odd.contains(&r#""a b""#) && odd.iter().all(|odd| odd.is_ascii()), "{odd:?}");
    assert!(found.passed_over[0].why.to_string().contains("is no tag"));
    let ledger = "ledger".parse().unwrap();
    assert_eq!(newest(&store, &ledger, &trust, 2).await.unwrap().listed.unwrap().global.epoch(), Epoch(2));
}

#[tokio::test]
async fn nothing_is_removed_that_an_unreadable_tag_may_need() {
    let key = key();
    let trust = Trust::Keys(vec![key.public_key()]);
    let server = Server::start(Auth::None).await;
    let store = server.store_with(REPO, &Settings { retries: 0, ..server.settings() }).await;
    server.state().deletes_manifests = true;
    line(&store, &key, 1..=4).await;
    put(&store, b"{}").await.unwrap();
    let options = PruneOptions::new(trust, SystemTime::now());
    let last = Policy { last: 1, ..Policy::default() };
    for method in [Method::GET, Method::HEAD] {
        server.fault(method, "/manifests/epoch-4", usize::MAX, Fault::Answer(451, Vec::new(), String::new()));
    }
    let report = prune(&store, &last, &options).await.unwrap_or_else(|error| panic!("{}", words(&error)));
    assert_eq!(tags(&report.passed_over), ["epoch-4"]);
    assert_eq!((report.removed.len(), report.store.unreadable_tags.as_slice()), (0, &[tag("epoch-4")][..]));
    assert_eq!(server.state().count(Method::DELETE, ""), 0);
    server.heal();
    let report = prune(&store, &last, &options).await.unwrap();
    assert_eq!((report.removed.len(), report.kept.len()), (3, 1));
}

#[tokio::test]
async fn planted_checkpoints_are_not_the_newest_that_stay() {
    let key = key();
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    server.state().deletes_manifests = true;
    put(&store, b"{}").await.unwrap();
    line(&store, &key, 1..=2).await;
    for epoch in 7..=9 {
        store.put_manifest(&global(epoch), Some(&tag(&format!("epoch-{epoch}")))).await.unwrap();
    }
    let last = Policy { last: 1, ..Policy::default() };
    let options = PruneOptions::new(Trust::Keys(vec![key.public_key()]), SystemTime::now());
    let report = prune(&store, &last, &options).await.unwrap();
    assert_eq!(tags(&report.passed_over), ["epoch-7", "epoch-8", "epoch-9"]);
    assert_eq!(report.kept.iter().map(|kept| kept.checkpoint.epoch.0).collect::<Vec<_>>(), [2]);
    assert_eq!(report.removed.iter().map(|removed| removed.epoch.0).collect::<Vec<_>>(), [1]);
    for epoch in [2, 7, 8, 9] {
        assert!(store.has_manifest(&global(epoch).digest()).await.unwrap(), "{epoch}");
    }
}

#[tokio::test]
async fn a_form_of_signatures_that_is_refused_does_not_hide_the_other() {
    let key = key();
    let trust = Trust::Keys(vec![key.public_key()]);
    let server = Server::start(Auth::None).await;
    server.state().native_referrers = true;
    let store = server.store_with(REPO, &Settings { retries: 0, ..server.settings() }).await;
    line(&store, &key, 1..=1).await;
    for path in [".sig", "/referrers/"] {
        server.heal();
        server.fault(Method::GET, path, usize::MAX, Fault::Answer(403, Vec::new(), String::new()));
        assert_eq!(epochs(&catalogue(&store, &trust, 2).await.unwrap()), [1], "{path}");
    }
}
