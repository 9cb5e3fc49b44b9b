//! Proving who one is.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hyper::Method;
use registry::{RemoteStore, Settings, Store, StoreError};

use crate::server::{Auth, Fault, PASSWORD, Server, USER, base64, status};
use crate::support::{Source, create, manifest, noise, put, put_from, tag, words};

const REPO: &str = "sdp/ledger";
const MIB: usize = 1 << 20;

/// Settings without credentials given by hand.
fn with_files(server: &Server, auth_files: Vec<PathBuf>) -> Settings {
    Settings { credentials: None, auth_files, ..server.settings() }
}

fn auth_file(dir: &Path, name: &str, key: &str, entry: serde_json::Value) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, serde_json::json!({ "auths": { key: entry } }).to_string()).unwrap();
    path
}

fn good() -> serde_json::Value {
    serde_json::json!({ "auth": base64(&format!("{USER}:{PASSWORD}")) })
}

fn bad() -> serde_json::Value {
    serde_json::json!({ "auth": base64("nobody:nothing") })
}

#[tokio::test]
async fn tokens_are_fetched_once_for_many_transfers() {
    let server = Server::start(Auth::Bearer).await;
    let store = server.store(REPO).await;
    let puts: Vec<_> = (0..8)
        .map(|seed| {
            let store = store.clone();
            tokio::spawn(async move { put(&store, &noise(seed, 1000)).await })
        })
        .collect();
    for put in puts {
        put.await.unwrap().unwrap();
    }
    assert_eq!(server.state().count(Method::GET, "/token"), 1);
    assert_eq!(server.state().scopes, [format!("repository:{REPO}:pull,push")]);
}

#[tokio::test]
async fn a_mount_asks_for_both_repositories() {
    let server = Server::start(Auth::Bearer).await;
    let store = server.store(REPO).await;
    server.state().add_blob("sdp/other", b"pages");
    put_from(&store, &Source::new(b"pages"), b"pages", Some("sdp/other")).await.unwrap();
    assert!(server.state().scopes.contains(&"repository:sdp/other:pull".to_owned()));
}

#[tokio::test]
async fn a_token_that_expires_in_a_push_is_replaced() {
    for (method, path) in [(Method::POST, "uploads"), (Method::PUT, "uploads"), (Method::PUT, "manifests")] {
        let server = Server::start(Auth::Bearer).await;
        let store = server.store(REPO).await;
        server.fault(method.clone(), path, 1, Fault::Expire);
        let bytes = noise(1, 4 * MIB);
        put(&store, &bytes).await.unwrap();
        store.put_manifest(&manifest("a", None), Some(&tag("a"))).await.unwrap();
        assert_eq!(server.state().count(Method::GET, "/token"), 2, "{method} {path}");
    }
}

#[tokio::test]
async fn a_token_that_expires_under_a_new_blob_is_replaced() {
    for method in [Method::POST, Method::PATCH, Method::PUT] {
        let server = Server::start(Auth::Bearer).await;
        let store = server.store(REPO).await;
        server.fault(method.clone(), "uploads", 1, Fault::Expire);
        let bytes = noise(2, 2 * MIB);
        create(&store, &bytes).await.unwrap_or_else(|error| panic!("{method}: {error:?}"));
        assert_eq!(server.state().count(Method::GET, "/token"), 2, "{method}");
    }
}

#[tokio::test]
async fn a_token_is_replaced_only_once() {
    let server = Server::start(Auth::Bearer).await;
    let store = server.store(REPO).await;
    server.fault(Method::GET, "/manifests/", 100, Fault::Expire);
    let error = store.resolve(&registry::Selector::Tag(tag("a"))).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    assert_eq!(server.state().count(Method::GET, "/manifests/"), 2);
}

#[tokio::test]
async fn an_identity_token_buys_tokens() {
    let server = Server::start(Auth::Bearer).await;
    let dir = tempfile::tempdir().unwrap();
    let entry = serde_json::json!({ "identitytoken": "identity-secret" });
    let file = auth_file(dir.path(), "auth.json", &server.host(), entry);
    let store = server.store_with(REPO, &with_files(&server, vec![file])).await;
    put(&store, b"pages").await.unwrap();
    assert_eq!(server.state().count(Method::POST, "/token"), 1);
    assert_eq!(server.state().scopes, [format!("repository:{REPO}:pull,push")]);
}

#[tokio::test]
async fn without_credentials_the_error_says_so() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let server = Server::start(auth).await;
        let store = server.store_with(REPO, &with_files(&server, vec![])).await;
        let error = put(&store, b"pages").await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
        assert!(error.to_string().contains("no credentials are known"), "{error}");
    }
}

#[tokio::test]
async fn wrong_credentials_are_refused_and_not_tried_again() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let server = Server::start(auth).await;
        let credentials = Some((USER.to_owned(), "wrong-secret".to_owned()));
        let store = server.store_with(REPO, &Settings { credentials, ..server.settings() }).await;
        let before = server.state().seen.len();
        let error = put(&store, b"pages").await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
        assert!(server.state().seen.len() <= before + 2);
    }
}

#[tokio::test]
async fn no_right_is_no_passing_trouble() {
    let server = Server::start(Auth::Basic).await;
    let store = server.store(REPO).await;
    server.fault(Method::POST, "uploads", 100, status(403));
    let error = put(&store, b"pages").await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    assert_eq!(server.state().count(Method::POST, ""), 1);
}

#[tokio::test]
async fn a_token_server_that_is_busy_is_asked_again() {
    let server = Server::start(Auth::Bearer).await;
    let store = server.store(REPO).await;
    server.fault(Method::GET, "/token", 2, status(503));
    put(&store, b"pages").await.unwrap();
    server.fault(Method::GET, "/token", 1, Fault::Answer(200, vec![], r#"{"token":""}"#.to_owned()));
    let error = store.tags().await.unwrap_err();
    assert!(error.to_string().contains("holds no token"), "{error}");
}

#[tokio::test]
async fn a_token_server_without_tls_gets_nothing() {
    let server = Server::start(Auth::None).await;
    let plain = Server::plain().await;
    let settings = Settings { credentials: Some((USER.into(), PASSWORD.into())), ..server.settings() };
    let store = server.store_with(REPO, &settings).await;
    let challenge = format!("Bearer realm=\"http://{}/token\"", plain.host());
    server.fault(Method::HEAD, "/blobs/", 9, Fault::Answer(401, vec![("www-authenticate", challenge)], String::new()));
    let error = put(&store, b"pages").await.unwrap_err();
    assert!(error.to_string().contains("without TLS"), "{error}");
    assert!(plain.state().seen.is_empty());
}

#[tokio::test]
async fn secrets_stay_out_of_messages() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let server = Server::start(auth).await;
        let store = server.store(REPO).await;
        let echo = format!(r#"{{"errors":[{{"code":"X","message":"you sent {PASSWORD} AUTHORIZATION"}}]}}"#);
        for code in [400, 401, 403, 500] {
            server.fault(Method::HEAD, "/manifests/", 9, Fault::Answer(code, vec![], echo.clone()));
            server.fault(Method::GET, "/tags/", 9, Fault::Answer(code, vec![], echo.clone()));
            let settings = Settings { retries: 0, ..server.settings() };
            let store = RemoteStore::connect(&server.host(), REPO, &settings).await.unwrap();
            for error in [
                store.has_manifest(&image_format::Digest::of(b"x")).await.unwrap_err(),
                store.tags().await.unwrap_err(),
            ] {
                let words = words(&error);
                for secret in [PASSWORD, "token-secret", &base64(&format!("{USER}:{PASSWORD}"))] {
                    assert!(!words.contains(secret), "{words}");
                }
            }
        }
        assert!(!format!("{store:?}").contains("secret"), "{store:?}");
    }
}

#[tokio::test]
async fn the_first_file_with_credentials_wins() {
    let server = Server::start(Auth::Basic).await;
    let dir = tempfile::tempdir().unwrap();
    let host = server.host();
    let none = auth_file(dir.path(), "none.json", "localhost:1", bad());
    let right = auth_file(dir.path(), "right.json", &host, good());
    let wrong = auth_file(dir.path(), "wrong.json", &host, bad());
    let missing = dir.path().join("missing.json");
    let files = |files: [&PathBuf; 4]| with_files(&server, files.map(Clone::clone).to_vec());
    let store = server.store_with(REPO, &files([&missing, &none, &right, &wrong])).await;
    put(&store, b"pages").await.unwrap();
    let store = server.store_with(REPO, &files([&missing, &none, &wrong, &right])).await;
    assert!(matches!(put(&store, b"pages").await, Err(StoreError::Denied { .. })));
    // What is given by hand beats them all.
    let by_hand = Settings { credentials: server.settings().credentials, ..files([&missing, &none, &wrong, &right]) };
    put(&server.store_with(REPO, &by_hand).await, b"pages").await.unwrap();
}

#[tokio::test]
async fn the_longest_prefix_of_a_file_wins() {
    let server = Server::start(Auth::Basic).await;
    let dir = tempfile::tempdir().unwrap();
    let host = server.host();
    let path = dir.path().join("auth.json");
    let auths = serde_json::json!({ &host: bad(), format!("{host}/sdp"): good(), format!("{host}/sdp/led"): bad() });
    std::fs::write(&path, serde_json::json!({ "auths": auths }).to_string()).unwrap();
    let store = server.store_with(REPO, &with_files(&server, vec![path])).await;
    put(&store, b"pages").await.unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_named() {
    let server = Server::start(Auth::Basic).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("auth.json");
    std::fs::write(&path, "{").unwrap();
    let settings = with_files(&server, vec![path.clone()]);
    let error = RemoteStore::connect(&server.host(), REPO, &settings).await.unwrap_err();
    assert!(words(&error).contains(path.to_str().unwrap()), "{error:?}");
}

/// Helpers are found on the PATH, which a test must not change for all of its process.
#[test]
fn credential_helpers_are_asked() {
    let dir = tempfile::tempdir().unwrap();
    let helper = dir.path().join("docker-credential-test");
    let broken = dir.path().join("docker-credential-broken");
    std::fs::write(&broken, "#!/bin/sh\necho the keyring is locked; exit 1\n").unwrap();
    std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = format!(
        r#"#!/bin/sh
read key
case "$1 $key" in
  "get 127.0.0.1:"*/*) echo "credentials not found in native keychain"; exit 1 ;;
  "get 127.0.0.1:"*) echo '{{"ServerURL":"","Username":"{USER}","Secret":"{PASSWORD}"}}' ;;
  *) echo "credentials not found in native keychain"; exit 1 ;;
esac
"#
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::join_paths(
        std::iter::once(dir.path().to_owned()).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "auth::with_a_helper_on_the_path", "--ignored", "--nocapture"])
        .env("PATH", path.unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
#[ignore = "run by credential_helpers_are_asked, with a helper on its PATH"]
async fn with_a_helper_on_the_path() {
    let server = Server::start(Auth::Basic).await;
    let dir = tempfile::tempdir().unwrap();
    let host = server.host();
    let path = dir.path().join("config.json");
    for config in [
        serde_json::json!({ "credHelpers": { &host: "test" } }),
        serde_json::json!({ "credsStore": "test" }),
        serde_json::json!({ "auths": { &host: {} }, "credsStore": "test" }),
    ] {
        std::fs::write(&path, config.to_string()).unwrap();
        let store = server.store_with(REPO, &with_files(&server, vec![path.clone()])).await;
        put(&store, b"pages").await.unwrap();
    }
    // A helper that knows nothing is passed over; why one fails is told where credentials are
    // needed.
    for (helper, said) in [
        ("test", "no credentials are known"),
        ("broken", "the keyring is locked"),
        ("missing", "docker-credential-missing"),
    ] {
        let config = serde_json::json!({ "credHelpers": { format!("{host}/{REPO}"): helper } });
        std::fs::write(&path, config.to_string()).unwrap();
        let store = server.store_with(REPO, &with_files(&server, vec![path.clone()])).await;
        let error = put(&store, b"more").await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
        assert!(error.to_string().contains(said), "{error}");
    }
}
