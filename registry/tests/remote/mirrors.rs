//! What `registries.conf` says of a registry.

use std::path::Path;

use hyper::Method;
use registry::{CopyOptions, Registries, RemoteStore, Selector, Settings, Store, StoreError, copy};

use crate::server::{Auth, Server};
use crate::support::{descriptor, manifest, put, read, tag, words};

const REPO: &str = "sdp/ledger";
/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:1";

fn settings(server: &Server, dir: &Path, conf: &str) -> Settings {
    let file = dir.join("registries.conf");
    std::fs::write(&file, conf).unwrap();
    Settings { registries: Registries::read(&[file]).unwrap(), retries: 0, ..server.settings() }
}

#[tokio::test]
async fn a_blocked_registry_is_not_asked() {
    let (server, dir) = (Server::start(Auth::None).await, tempfile::tempdir().unwrap());
    let conf = format!("[[registry]]\nlocation = '{}/sdp'\nblocked = true\n", server.host());
    let settings = settings(&server, dir.path(), &conf);
    let error = RemoteStore::connect(&server.host(), REPO, &settings).await.unwrap_err();
    assert!(words(&error).contains("registries.conf blocks"), "{error:?}");
    assert!(server.state().seen.is_empty());
    server.store_with("other/x", &settings).await;
}

#[tokio::test]
async fn mirrors_have_content_and_the_registry_has_the_tags() {
    let (server, dir) = (Server::start(Auth::Basic).await, tempfile::tempdir().unwrap());
    let mirror = Server::with(Auth::None, server.certificates.clone(), false).await;
    let conf = format!(
        "[[registry]]\nlocation = '{}'\n[[registry.mirror]]\nlocation = '{NOWHERE}'\n[[registry.mirror]]\nlocation = '{}/m'\n",
        server.host(),
        mirror.host()
    );
    let settings = settings(&server, dir.path(), &conf);
    let store = server.store_with(REPO, &settings).await;
    let (old, new) = (manifest("old", None), manifest("new", None));
    let behind = mirror.store(&format!("m/{REPO}")).await;
    behind.put_manifest(&old, Some(&tag("a"))).await.unwrap();
    put(&behind, b"pages").await.unwrap();
    // What is written goes to the registry, and its tags are the newest.
    store.put_manifest(&new, Some(&tag("a"))).await.unwrap();
    put(&store, b"more").await.unwrap();
    assert_eq!(store.resolve(&Selector::Tag(tag("a"))).await.unwrap(), new.descriptor());
    // Content comes from the mirror if it is there, without the proof that is the registry's.
    server.state().seen.clear();
    assert_eq!(store.manifest(&old.digest()).await.unwrap(), old);
    assert_eq!(read(&store, &descriptor(b"pages")).await.unwrap(), b"pages");
    assert!(server.state().seen.is_empty());
    assert_eq!(store.manifest(&new.digest()).await.unwrap(), new);
    assert_eq!(read(&store, &descriptor(b"more")).await.unwrap(), b"more");
    assert!(mirror.state().seen.iter().all(|seen| seen.header("authorization").is_none()));
    assert_eq!(mirror.state().count(Method::PUT, "/m/sdp/ledger/manifests/new"), 0);
}

#[tokio::test]
async fn a_mirror_serves_alone_when_the_registry_is_away() {
    let (mirror, dir) = (Server::start(Auth::None).await, tempfile::tempdir().unwrap());
    let document = manifest("a", None);
    mirror.store("m/ledger").await.put_manifest(&document, Some(&tag("a"))).await.unwrap();
    let conf = format!(
        "[[registry]]\nprefix = '{NOWHERE}/sdp'\nlocation = '{NOWHERE}/sdp'\n[[registry.mirror]]\nlocation = '{}/m'\n",
        mirror.host()
    );
    let settings = settings(&mirror, dir.path(), &conf);
    let store = RemoteStore::connect(NOWHERE, REPO, &settings).await.unwrap();
    assert_eq!(store.tags().await.unwrap(), [tag("a")]);
    assert_eq!(store.resolve(&Selector::Tag(tag("a"))).await.unwrap(), document.descriptor());
    assert_eq!(store.manifest(&document.digest()).await.unwrap(), document);
    // A pull takes what the mirror has, and finds that there are no signatures.
    let to = mirror.store("copy/ledger").await;
    mirror.state().add_blob("m/ledger", b"{}");
    let options = CopyOptions { tag: Some(tag("b")), ..CopyOptions::default() };
    copy(&store, &document.descriptor(), &to, &options).await.unwrap();
    let error = store.resolve(&Selector::Tag(tag("b"))).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error:?}");
    // Nothing is written to a mirror.
    assert!(matches!(put(&store, b"pages").await, Err(StoreError::Unreachable { .. })));
}

#[tokio::test]
async fn an_insecure_registry_is_reached_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for server in [Server::start(Auth::None).await, Server::plain().await] {
        let conf = format!("[[registry]]\nlocation = '{}'\ninsecure = true\n", server.host());
        let settings = Settings { ca_files: Vec::new(), ..settings(&server, dir.path(), &conf) };
        put(&server.store_with(REPO, &settings).await, b"pages").await.unwrap();
        let strict = Settings { registries: Registries::default(), ..settings };
        assert!(RemoteStore::connect(&server.host(), REPO, &strict).await.is_err());
    }
}
