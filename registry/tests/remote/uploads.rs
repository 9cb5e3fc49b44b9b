//! Sending blobs.

use std::sync::Mutex;

use hyper::Method;
use image_format::Digest;
use registry::{BlobUpload, Progress, Put, Settings, Store, StoreError};
use tokio::io::AsyncWriteExt;

use crate::server::{Auth, Fault, Server, status};
use crate::support::{Source, create, descriptor, noise, put, put_from, words};

const REPO: &str = "sdp/ledger";
const MIB: usize = 1 << 20;

/// What the registry has under the blob's digest.
fn kept(server: &Server, bytes: &[u8]) -> bool {
    server.state().repository(REPO).blobs.get(&Digest::of(bytes)).is_some_and(|kept| kept == bytes)
}

#[tokio::test]
async fn a_known_blob_goes_in_one_put() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let bytes = noise(1, 3 * MIB + 5);
    assert_eq!(put(&store, &bytes).await.unwrap(), Put::Sent(bytes.len() as u64));
    assert!(kept(&server, &bytes));
    let state = server.state();
    let sent = state.seen.iter().find(|seen| seen.method == Method::PUT).unwrap();
    assert_eq!(sent.header("content-length"), Some(bytes.len().to_string().as_str()));
    assert_eq!(state.count(Method::PATCH, ""), 0);
}

#[tokio::test]
async fn an_empty_blob_is_a_blob() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    assert_eq!(put(&store, b"").await.unwrap(), Put::Sent(0));
    assert!(kept(&server, b""));
}

#[tokio::test]
async fn what_is_there_is_not_sent() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    server.state().add_blob(REPO, b"pages");
    let source = Source::new(b"pages");
    assert_eq!(put_from(&store, &source, b"pages", Some("sdp/other")).await.unwrap(), Put::Existed);
    assert_eq!((source.opened(), server.state().count(Method::POST, "")), (0, 0));
}

#[tokio::test]
async fn a_blob_of_another_size_is_not_the_blob() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    server.state().repository(REPO).blobs.insert(Digest::of(b"pages"), "page".into());
    assert!(matches!(put(&store, b"pages").await, Err(StoreError::Corrupt { .. })));
}

#[tokio::test]
async fn a_blob_is_mounted_where_it_is() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    server.state().add_blob("sdp/other", b"pages");
    let source = Source::new(b"pages");
    assert_eq!(put_from(&store, &source, b"pages", Some("sdp/other")).await.unwrap(), Put::Mounted);
    assert!(kept(&server, b"pages"));
    assert_eq!(source.opened(), 0);
}

#[tokio::test]
async fn a_mount_that_becomes_an_upload_is_used() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let source = Source::new(b"pages");
    assert_eq!(put_from(&store, &source, b"pages", Some("sdp/other")).await.unwrap(), Put::Sent(5));
    assert!(kept(&server, b"pages"));
    assert_eq!(server.state().count(Method::POST, ""), 1);
}

#[tokio::test]
async fn a_mount_that_is_refused_does_no_harm() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    server.fault(Method::POST, "uploads", 1, status(403));
    assert_eq!(put_from(&store, &Source::new(b"pages"), b"pages", Some("sdp/other")).await.unwrap(), Put::Sent(5));
}

#[tokio::test]
async fn locations_may_be_absolute() {
    let server = Server::start(Auth::Bearer).await;
    server.state().absolute_locations = true;
    let store = server.store(REPO).await;
    put(&store, b"pages").await.unwrap();
    let bytes = noise(2, 2 * MIB);
    create(&store, &bytes).await.unwrap();
    assert!(kept(&server, b"pages") && kept(&server, &bytes));
}

#[tokio::test]
async fn memory_goes_elsewhere_only_where_that_was_allowed() {
    let server = Server::start(Auth::Basic).await;
    let elsewhere = Server::with(Auth::None, server.certificates.clone(), false).await;
    let location = format!("https://{}/v2/{REPO}/blobs/uploads/x?_state=1", elsewhere.host());
    let mut answers = Vec::new();
    for status in [202, 307, 308] {
        answers.push((Method::POST, status));
    }
    answers.push((Method::PATCH, 202));
    for (method, status) in answers {
        let lead = || Fault::Answer(status, vec![("location", location.clone())], String::new());
        server.fault(method.clone(), "uploads", 1, lead());
        let store = server.store(REPO).await;
        let error = create(&store, &noise(7, 2 * MIB)).await.unwrap_err().to_string();
        // It names both hosts and what allows it.
        for named in [server.host(), elsewhere.host(), format!("--upload-host {}", elsewhere.host())] {
            assert!(error.contains(&named), "{method} {status}: {error}");
        }
        assert!(elsewhere.state().seen.is_empty(), "{method} {status}");
    }
    let allowed = Settings { upload_hosts: vec![elsewhere.host()], ..server.settings() };
    let store = server.store_with(REPO, &allowed).await;
    server.fault(Method::POST, "uploads", 1, Fault::Answer(202, vec![("location", location)], String::new()));
    put(&store, b"pages").await.unwrap();
    let state = elsewhere.state();
    assert_eq!(state.count(Method::PUT, "/blobs/uploads/x"), 1);
    assert!(state.seen.iter().all(|seen| seen.header("authorization").is_none()));
}

#[tokio::test]
async fn an_upload_without_tls_is_refused() {
    let server = Server::start(Auth::None).await;
    let plain = Server::plain().await;
    let store = server.store(REPO).await;
    let location = format!("http://{}/v2/{REPO}/blobs/uploads/x", plain.host());
    server.fault(Method::POST, "uploads", 1, Fault::Answer(202, vec![("location", location)], String::new()));
    let error = put(&store, b"pages").await.unwrap_err();
    assert!(error.to_string().contains("without TLS"), "{error}");
    assert!(plain.state().seen.is_empty());
}

#[tokio::test]
async fn a_torn_put_is_made_again_from_the_start() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let bytes = noise(3, 4 * MIB);
    server.fault(Method::PUT, "uploads", 2, Fault::TornRequest(MIB));
    let source = Source::new(&bytes);
    assert_eq!(put_from(&store, &source, &bytes, None).await.unwrap(), Put::Sent(bytes.len() as u64));
    assert!(kept(&server, &bytes));
    assert_eq!(source.opened(), 3);
}

#[tokio::test]
async fn tries_are_bounded() {
    let server = Server::start(Auth::None).await;
    let store = server.store_with(REPO, &Settings { retries: 2, ..server.settings() }).await;
    server.fault(Method::PUT, "uploads", 100, Fault::TornRequest(MIB));
    let bytes = noise(4, 2 * MIB);
    let source = Source::new(&bytes);
    let error = put_from(&store, &source, &bytes, None).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    assert_eq!(source.opened(), 3);
}

#[tokio::test]
async fn an_answer_that_got_lost_is_no_failure() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    server.fault(Method::PUT, "uploads", 1, Fault::TornAnswer(None));
    assert_eq!(put(&store, b"pages").await.unwrap(), Put::Existed);
    server.fault(Method::PUT, "uploads", 1, Fault::TornAnswer(None));
    let bytes = noise(5, 2 * MIB);
    create(&store, &bytes).await.unwrap();
    assert!(kept(&server, &bytes));
}

#[tokio::test]
async fn an_upload_that_the_registry_forgot_is_begun_anew() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    server.fault(Method::PUT, "uploads", 1, status(404));
    assert_eq!(put(&store, b"pages").await.unwrap(), Put::Sent(5));
}

#[tokio::test]
async fn a_registry_that_keeps_something_else_is_noticed() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let other = Digest::of(b"other").to_string();
    server.fault(Method::PUT, "uploads", 1, Fault::Header("docker-content-digest", Some(other)));
    assert!(matches!(put(&store, b"pages").await, Err(StoreError::Corrupt { .. })));
}

#[tokio::test]
async fn a_source_with_other_bytes_is_refused() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let bytes = noise(6, MIB);
    for wrong in [&noise(6, MIB + 1), &noise(6, MIB - 1), &noise(7, MIB)] {
        let error = put_from(&store, &Source::new(wrong), &bytes, None).await.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
    }
    assert!(server.state().repository(REPO).blobs.is_empty());
}

#[tokio::test]
async fn a_source_that_fails_is_its_own_error() {
    let server = Server::start(Auth::None).await;
    for chunked_upload in [false, true] {
        let store = server.store_with(REPO, &Settings { chunked_upload, ..server.settings() }).await;
        let bytes = noise(8, 2 * MIB);
        let source = Source { fails_at: Some(MIB + 7), ..Source::new(&bytes) };
        let error = put_from(&store, &source, &bytes, None).await.unwrap_err();
        assert!(words(&error).contains("the disk is on fire"), "{error:?}");
        assert_eq!(source.opened(), 1);
    }
    assert!(server.state().repository(REPO).blobs.is_empty());
}

#[tokio::test]
async fn a_new_blob_streams_in_one_patch() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let bytes = noise(9, 5 * MIB + 1);
    create(&store, &bytes).await.unwrap();
    assert!(kept(&server, &bytes));
    let state = server.state();
    assert_eq!((state.count(Method::PATCH, ""), state.count(Method::PUT, "")), (1, 1));
    assert!(state.seen.iter().all(|seen| seen.header("content-range").is_none()));
}

#[tokio::test]
async fn a_small_new_blob_is_not_sent_twice() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    create(&store, b"config").await.unwrap();
    assert!(kept(&server, b"config"));
    create(&store, b"config").await.unwrap();
    assert_eq!(server.state().count(Method::PUT, ""), 1);
}

#[tokio::test]
async fn a_new_blob_must_be_what_is_committed() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    for length in [10, 2 * MIB] {
        let bytes = noise(10, length);
        let mut writer = store.create_blob().await.unwrap();
        writer.write_all(&bytes).await.unwrap();
        let error = writer.commit(&Digest::of(&bytes), length as u64 + 1).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        let mut writer = store.create_blob().await.unwrap();
        writer.write_all(&bytes).await.unwrap();
        let error = writer.commit(&Digest::of(b"other"), length as u64).await.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
    }
    assert!(server.state().repository(REPO).blobs.is_empty());
}

#[tokio::test]
async fn a_new_blob_that_is_dropped_leaves_nothing() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    for chunked_upload in [false, true] {
        let store = server.store_with(REPO, &Settings { chunked_upload, ..server.settings() }).await;
        let mut writer = store.create_blob().await.unwrap();
        writer.write_all(&noise(11, 3 * MIB)).await.unwrap();
        drop(writer);
    }
    drop(store.create_blob().await.unwrap());
    for _ in 0..100 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        if server.state().count(Method::DELETE, "uploads") == 2 {
            break;
        }
    }
    let mut state = server.state();
    assert!(state.uploads.is_empty() && state.repository(REPO).blobs.is_empty());
    assert_eq!(state.count(Method::PUT, ""), 0);
}

#[tokio::test]
async fn a_new_blob_refused_at_its_begin_is_sent_again() {
    for fault in [status(503), status(429), Fault::TornRequest(0)] {
        let server = Server::start(Auth::None).await;
        let store = server.store(REPO).await;
        server.fault(Method::PATCH, "uploads", 2, fault);
        let bytes = noise(12, 2 * MIB);
        create(&store, &bytes).await.unwrap();
        assert!(kept(&server, &bytes));
        assert!(server.state().uploads.is_empty());
    }
}

#[tokio::test]
async fn a_new_blob_torn_in_its_middle_is_an_error() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    server.fault(Method::PATCH, "uploads", 1, Fault::TornRequest(5 * MIB));
    let error = create(&store, &noise(13, 40 * MIB)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    assert!(server.state().repository(REPO).blobs.is_empty());
}

#[tokio::test]
async fn chunks_are_sent_on_request() {
    let server = Server::start(Auth::None).await;
    let store = server.store_with(REPO, &Settings { chunked_upload: true, ..server.settings() }).await;
    let (known, new) = (noise(14, 9 * MIB), noise(15, 9 * MIB));
    put(&store, &known).await.unwrap();
    create(&store, &new).await.unwrap();
    assert!(kept(&server, &known) && kept(&server, &new));
    let state = server.state();
    let ranges: Vec<_> = state.seen.iter().filter_map(|seen| seen.header("content-range")).collect();
    assert_eq!(ranges, ["0-4194303", "4194304-8388607", "8388608-9437183"].repeat(2));
}

#[tokio::test]
async fn chunks_are_as_large_as_the_registry_wants() {
    let server = Server::start(Auth::None).await;
    server.state().chunk_minimum = Some(6 * MIB);
    let store = server.store_with(REPO, &Settings { chunked_upload: true, ..server.settings() }).await;
    put(&store, &noise(16, 7 * MIB)).await.unwrap();
    let sizes: Vec<_> = server.state().seen.iter().filter(|s| s.method == Method::PATCH).map(|s| s.body).collect();
    assert_eq!(sizes, [6 << 20, 1 << 20]);
    server.state().chunk_minimum = Some(1 << 30);
    let error = put(&store, &noise(17, 7 * MIB)).await.unwrap_err();
    assert!(error.to_string().contains("chunks"), "{error}");
}

#[tokio::test]
async fn a_chunk_that_broke_goes_on_where_the_registry_is() {
    for fault in [Fault::TornRequest(MIB), Fault::TornAnswer(None), status(500), status(416)] {
        let server = Server::start(Auth::None).await;
        let store = server.store_with(REPO, &Settings { chunked_upload: true, ..server.settings() }).await;
        server.fault(Method::PATCH, "uploads", 1, fault);
        let (known, new) = (noise(18, 9 * MIB), noise(19, 5 * MIB));
        put(&store, &known).await.unwrap();
        create(&store, &new).await.unwrap();
        assert!(kept(&server, &known) && kept(&server, &new));
    }
}

#[tokio::test]
async fn progress_is_told() {
    #[derive(Default)]
    struct Told(Mutex<Vec<String>>, Mutex<u64>);
    impl Progress for Told {
        fn begin(&self, _: &str, size: Option<u64>) {
            self.0.lock().unwrap().push(format!("begin {size:?}"));
        }
        fn advance(&self, _: &str, bytes: u64) {
            *self.1.lock().unwrap() += bytes;
        }
        fn end(&self, blob: &str, how: Option<Put>) {
            self.0.lock().unwrap().push(format!("end {blob} {how:?}"));
        }
    }
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let bytes = noise(20, 2 * MIB);
    let (told, descriptor) = (Told::default(), descriptor(&bytes));
    let source = Source::new(&bytes);
    let upload = || BlobUpload { descriptor: &descriptor, source: &source, mount_from: None, progress: &told };
    store.put_blob(upload()).await.unwrap();
    store.put_blob(upload()).await.unwrap();
    let digest = Digest::of(&bytes);
    let begin = "begin Some(2097152)".to_owned();
    let ends = [format!("end {digest} Some(Sent(2097152))"), format!("end {digest} Some(Existed)")];
    assert_eq!(*told.0.lock().unwrap(), [&[begin], &ends[..]].concat());
    assert_eq!(*told.1.lock().unwrap(), 2 << 20);
}
