//! Logging in and out.

use registry::{LoginError, Settings, StoreError, login, logout};

use crate::server::{Auth, PASSWORD, Server, USER};
use crate::support::put;

#[tokio::test]
async fn good_credentials_are_kept_and_used() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let server = Server::start(auth).await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("containers/auth.json");
        let settings = Settings { credentials: None, ..server.settings() };
        login(&server.host(), USER, PASSWORD, &file, &settings).await.unwrap();
        let settings = Settings { auth_files: vec![file.clone()], ..settings };
        put(&server.store_with("sdp/ledger", &settings).await, b"pages").await.unwrap();
        assert!(logout(&server.host(), &file).await.unwrap());
        let error = put(&server.store_with("sdp/ledger", &settings).await, b"more").await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn bad_credentials_are_not_kept() {
    for auth in [Auth::Basic, Auth::Bearer] {
        let server = Server::start(auth).await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        let error = login(&server.host(), USER, "wrong", &file, &server.settings()).await.unwrap_err();
        assert!(matches!(error, LoginError::Check(StoreError::Denied { .. })), "{error:?}");
        assert!(!file.exists());
    }
}
