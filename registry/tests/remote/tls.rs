//! Whom to trust, and plain http.

use std::sync::Arc;

use registry::{RemoteStore, Settings, StoreError};

use crate::server::{Auth, Certificates, Server};
use crate::support::{put, words};

const REPO: &str = "sdp/ledger";

#[tokio::test]
async fn an_unknown_authority_is_refused_at_once() {
    let server = Server::start(Auth::None).await;
    let error = RemoteStore::connect(&server.host(), REPO, &Settings::default()).await.unwrap_err();
    assert!(words(&error).contains("UnknownIssuer"), "{error:?}");
    assert_eq!(server.state().connections, 1);
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_when_it_is_given() {
    let good = Arc::new(Certificates::self_signed(&["127.0.0.1"], 4000));
    let server = Server::with(Auth::None, good, false).await;
    put(&server.store(REPO).await, b"pages").await.unwrap();
    let error = RemoteStore::connect(&server.host(), REPO, &Settings::default()).await.unwrap_err();
    assert!(words(&error).contains("InvalidCertificate"), "{error:?}");
    for (names, until, wrong) in [(["localhost"], 4000, "NotValidForName"), (["127.0.0.1"], 2020, "Expired")] {
        let bad = Arc::new(Certificates::self_signed(&names, until));
        let server = Server::with(Auth::None, bad, false).await;
        let error = RemoteStore::connect(&server.host(), REPO, &server.settings()).await.unwrap_err();
        assert!(words(&error).contains(wrong), "{error:?}");
    }
}

#[tokio::test]
async fn keys_of_the_curve_p521_are_known() {
    let server = Server::with(Auth::None, Arc::new(Certificates::p521()), false).await;
    put(&server.store(REPO).await, b"pages").await.unwrap();
}

#[tokio::test]
async fn the_certs_folder_of_the_host_is_used() {
    let server = Server::start(Auth::None).await;
    let dir = tempfile::tempdir().unwrap();
    server.certs_dir(dir.path());
    let certs_dirs = vec![dir.path().join("missing"), dir.path().to_owned()];
    let store = server.store_with(REPO, &Settings { certs_dirs, ..Settings::default() }).await;
    put(&store, b"pages").await.unwrap();
}

#[tokio::test]
async fn a_client_certificate_is_shown_when_asked_for() {
    let server = Server::with(Auth::None, Arc::new(Certificates::new()), true).await;
    let error = RemoteStore::connect(&server.host(), REPO, &server.settings()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    let client_cert = Some(server.certificates.client.clone());
    let store = server.store_with(REPO, &Settings { client_cert, ..server.settings() }).await;
    put(&store, b"pages").await.unwrap();

    let dir = tempfile::tempdir().unwrap();
    let folder = server.certs_dir(dir.path());
    std::fs::copy(&server.certificates.client.0, folder.join("me.cert")).unwrap();
    std::fs::copy(&server.certificates.client.1, folder.join("me.key")).unwrap();
    let certs_dirs = vec![dir.path().to_owned()];
    let store = server.store_with(REPO, &Settings { certs_dirs, ..Settings::default() }).await;
    put(&store, b"pages").await.unwrap();
}

#[tokio::test]
async fn a_client_certificate_with_another_key_is_an_error() {
    let server = Server::start(Auth::None).await;
    let other = Certificates::new();
    let client_cert = Some((server.certificates.client.0.clone(), other.client.1.clone()));
    let settings = Settings { client_cert, ..server.settings() };
    let error = RemoteStore::connect(&server.host(), REPO, &settings).await.unwrap_err();
    assert!(words(&error).contains("client.key"), "{error:?}");
}

#[tokio::test]
async fn plain_http_only_when_asked_for() {
    let server = Server::plain().await;
    let settings = Settings { retries: 0, ..server.settings() };
    assert!(RemoteStore::connect(&server.host(), REPO, &settings).await.is_err());
    assert!(server.state().seen.is_empty());
    let store = server.store_with(REPO, &Settings { plain_http: true, ..settings }).await;
    put(&store, b"pages").await.unwrap();
}
