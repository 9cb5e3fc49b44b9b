//! Reading blobs.

use std::time::{Duration, Instant};

use hyper::Method;
use image_format::{Descriptor, Digest};
use registry::{Settings, Store, StoreError};

use crate::server::{Auth, Fault, Server, status};
use crate::support::{descriptor, noise, read};

const REPO: &str = "sdp/ledger";
const MIB: usize = 1 << 20;

fn fill(server: &Server, seed: u64, len: usize) -> (Vec<u8>, Descriptor) {
    let bytes = noise(seed, len);
    server.state().add_blob(REPO, &bytes);
    let wanted = descriptor(&bytes);
    (bytes, wanted)
}

fn ranges(server: &Server) -> Vec<Option<String>> {
    let state = server.state();
    let gets = state.seen.iter().filter(|seen| seen.method == Method::GET && seen.path.contains("/blobs/"));
    gets.map(|seen| seen.header("range").map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_blob_is_read() {
    let server = Server::start(Auth::Basic).await;
    let store = server.store(REPO).await;
    for len in [0, 1, 3 * MIB + 1] {
        let (bytes, wanted) = fill(&server, len as u64, len);
        assert_eq!(read(&store, &wanted).await.unwrap(), bytes);
        assert_eq!(store.blob_size(&wanted.digest).await.unwrap(), Some(len as u64));
    }
}

#[tokio::test]
async fn a_missing_blob_is_an_error_of_opening_it() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let wanted = descriptor(b"pages");
    assert!(matches!(store.read_blob(&wanted).await.err().unwrap(), StoreError::NotFound { .. }));
    assert_eq!(store.blob_size(&wanted.digest).await.unwrap(), None);
    // Not tried again.
    assert_eq!(ranges(&server).len(), 1);
}

#[tokio::test]
async fn a_torn_download_goes_on_where_it_broke() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let (bytes, wanted) = fill(&server, 1, 5 * MIB);
    server.fault(Method::GET, "/blobs/", 1, Fault::TornAnswer(Some(2 * MIB)));
    assert_eq!(read(&store, &wanted).await.unwrap(), bytes);
    assert_eq!(ranges(&server), [None, Some(format!("bytes={}-", 2 * MIB))]);
}

#[tokio::test]
async fn a_registry_without_ranges_sends_all_again() {
    let server = Server::start(Auth::None).await;
    server.state().ranges = false;
    let store = server.store(REPO).await;
    let (bytes, wanted) = fill(&server, 2, 5 * MIB);
    server.fault(Method::GET, "/blobs/", 2, Fault::TornAnswer(Some(2 * MIB)));
    assert_eq!(read(&store, &wanted).await.unwrap(), bytes);
}

#[tokio::test]
async fn another_range_than_the_one_asked_for_is_refused() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let (_, wanted) = fill(&server, 3, 5 * MIB);
    server.fault(Method::GET, "/blobs/", 1, Fault::TornAnswer(Some(2 * MIB)));
    let range = format!("bytes {}-{}/{}", MIB, 5 * MIB - 1, 5 * MIB);
    server.fault(Method::GET, "/blobs/", 1, Fault::Header("content-range", Some(range)));
    let error = read(&store, &wanted).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
}

#[tokio::test]
async fn many_breaks_are_borne_while_bytes_come() {
    let server = Server::start(Auth::None).await;
    let store = server.store_with(REPO, &Settings { retries: 1, ..server.settings() }).await;
    let (bytes, wanted) = fill(&server, 4, 12 * MIB);
    server.fault(Method::GET, "/blobs/", 5, Fault::TornAnswer(Some(2 * MIB)));
    assert_eq!(read(&store, &wanted).await.unwrap(), bytes);
}

#[tokio::test]
async fn breaks_without_progress_are_bounded() {
    let server = Server::start(Auth::None).await;
    let store = server.store_with(REPO, &Settings { retries: 2, ..server.settings() }).await;
    let (_, wanted) = fill(&server, 5, 5 * MIB);
    server.fault(Method::GET, "/blobs/", 1000, Fault::TornAnswer(Some(10)));
    let error = read(&store, &wanted).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    assert_eq!(ranges(&server).len(), 3);
}

#[tokio::test]
async fn wrong_bytes_are_an_error_at_the_end() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let (_, wanted) = fill(&server, 6, MIB);
    server.fault(Method::GET, "/blobs/", 1, Fault::Flip);
    let error = read(&store, &wanted).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
}

#[tokio::test]
async fn another_size_is_an_error() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let (bytes, wanted) = fill(&server, 7, MIB);
    for size in [wanted.size - 1, wanted.size + 1] {
        let error = read(&store, &Descriptor { size, ..wanted.clone() }).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    }
    // Without a length the end shows it.
    server.fault(Method::GET, "/blobs/", 1, Fault::Endless);
    assert!(matches!(read(&store, &wanted).await, Err(StoreError::Corrupt { .. })));
    assert_eq!(read(&store, &wanted).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_length_that_lies_does_not_help() {
    let server = Server::start(Auth::None).await;
    let store = server.store_with(REPO, &Settings { retries: 1, ..server.settings() }).await;
    let bytes = noise(8, MIB);
    let digest = server.state().add_blob(REPO, &bytes);
    server.state().repository(REPO).blobs.insert(digest, bytes[..MIB / 2].to_vec().into());
    let lie = Fault::Header("content-length", Some(MIB.to_string()));
    server.fault(Method::GET, "/blobs/", 1, lie);
    let error = read(&store, &descriptor(&bytes)).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. } | StoreError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_redirect_is_followed_without_proof() {
    let server = Server::start(Auth::Bearer).await;
    let elsewhere = Server::with(Auth::None, server.certificates.clone(), false).await;
    let store = server.store(REPO).await;
    let (bytes, wanted) = fill(&elsewhere, 9, 3 * MIB);
    let location = format!("https://{}/v2/{REPO}/blobs/{}?key=secret", elsewhere.host(), wanted.digest);
    server.fault(Method::GET, "/blobs/", 9, Fault::Answer(307, vec![("location", location)], String::new()));
    elsewhere.fault(Method::GET, "/blobs/", 1, Fault::TornAnswer(Some(MIB)));
    assert_eq!(read(&store, &wanted).await.unwrap(), bytes);
    // After the break the registry was asked again, as addresses like this one are good for a moment only.
    assert!(ranges(&server).contains(&Some(format!("bytes={MIB}-"))));
    assert!(server.state().seen.iter().any(|seen| seen.header("authorization").is_some()));
    let state = elsewhere.state();
    assert_eq!(state.seen.len(), 2);
    assert!(state.seen.iter().all(|seen| seen.header("authorization").is_none()));
}

#[tokio::test]
async fn a_redirect_to_plain_http_is_refused() {
    let server = Server::start(Auth::None).await;
    let plain = Server::plain().await;
    let store = server.store(REPO).await;
    let (_, wanted) = fill(&plain, 10, 10);
    let location = format!("http://{}/v2/{REPO}/blobs/{}", plain.host(), wanted.digest);
    server.fault(Method::GET, "/blobs/", 1, Fault::Answer(302, vec![("location", location)], String::new()));
    let error = read(&store, &wanted).await.unwrap_err();
    assert!(error.to_string().contains("without TLS"), "{error}");
    assert!(plain.state().seen.is_empty());
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let (_, wanted) = fill(&server, 11, 10);
    let location = format!("/v2/{REPO}/blobs/{}", wanted.digest);
    server.fault(Method::GET, "/blobs/", 100, Fault::Answer(307, vec![("location", location)], String::new()));
    let error = read(&store, &wanted).await.unwrap_err();
    assert!(error.to_string().contains("redirects more than"), "{error}");
}

#[tokio::test]
async fn silence_is_not_waited_for() {
    let server = Server::start(Auth::None).await;
    let settings = Settings { timeout: Duration::from_millis(300), retries: 1, ..server.settings() };
    let store = server.store_with(REPO, &settings).await;
    let (bytes, wanted) = fill(&server, 12, 10);
    server.fault(Method::GET, "/blobs/", 1, Fault::Silence);
    assert_eq!(read(&store, &wanted).await.unwrap(), bytes);
    server.fault(Method::GET, "/blobs/", 2, Fault::Silence);
    let before = Instant::now();
    let error = read(&store, &wanted).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
}

#[tokio::test]
async fn passing_trouble_is_waited_out() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let (bytes, wanted) = fill(&server, 13, 10);
    for code in [408, 429, 500, 502, 503, 504] {
        server.fault(Method::GET, "/blobs/", 1, status(code));
        assert_eq!(read(&store, &wanted).await.unwrap(), bytes, "{code}");
    }
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let (bytes, wanted) = fill(&server, 14, 10);
    let wait = Fault::Answer(429, vec![("retry-after", "1".to_owned())], String::new());
    server.fault(Method::GET, "/blobs/", 1, wait);
    assert_eq!(read(&store, &wanted).await.unwrap(), bytes);
    let state = server.state();
    let gets: Vec<_> = state.seen.iter().filter(|seen| seen.path.contains("/blobs/")).map(|seen| seen.at).collect();
    assert!(gets[1] - gets[0] >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_wait_of_hours_is_an_error_now() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    let (_, wanted) = fill(&server, 15, 10);
    let wait = Fault::Answer(429, vec![("retry-after", "36000".to_owned())], String::new());
    server.fault(Method::GET, "/blobs/", 1, wait);
    let error = read(&store, &wanted).await.unwrap_err();
    assert!(error.to_string().contains("429"), "{error}");
}

#[tokio::test]
async fn lasting_trouble_is_not_tried_again() {
    let server = Server::start(Auth::None).await;
    let store = server.store(REPO).await;
    for code in [400, 403, 404, 410, 501] {
        let before = ranges(&server).len();
        let wanted = Descriptor { digest: Digest::of(b"x"), ..descriptor(b"x") };
        server.fault(Method::GET, "/blobs/", 1, status(code));
        assert!(read(&store, &wanted).await.is_err());
        assert_eq!(ranges(&server).len(), before + 1, "{code}");
    }
}

#[tokio::test]
async fn a_blob_that_drips_is_given_up() {
    let server = Server::start(Auth::None).await;
    let settings = Settings { timeout: Duration::from_millis(300), retries: 1, ..server.settings() };
    let store = server.store_with(REPO, &settings).await;
    let (_, wanted) = fill(&server, 20, 100_000);
    server.fault(Method::GET, "/blobs/", usize::MAX, Fault::Drip(Duration::from_millis(50)));
    let began = std::time::Instant::now();
    let error = read(&store, &wanted).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(20));
}
