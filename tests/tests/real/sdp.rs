//! SKA's Configuration DB on a real etcd: what the console's words print and write, and what happens while etcd is gone.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use launcher::sdp::{Acquired, CatalogueEntry, Database, DatabaseError, Desired, Endpoint, Held, Prefix, desired};

use syncpoint_tests::{Etcd, bin, run, run_failing};

const BLOCK: &str = "pb-mvp01-20200425-00000";

/// `ska-sdp-checkpoint ARGUMENTS` on this etcd.
fn console(etcd: &Etcd, arguments: &[&str]) -> Command {
    let mut command = Command::new(bin("ska-sdp-checkpoint"));
    command.args(arguments).env("SDP_CONFIG_HOST", "127.0.0.1").env("SDP_CONFIG_PORT", etcd.port().to_string());
    command
}

fn database(etcd: &Etcd) -> Arc<Database> {
    let endpoint = Endpoint { port: etcd.port(), timeout: Duration::from_secs(2), ..Endpoint::default() };
    Arc::new(Database::new(endpoint, Prefix::default()).unwrap())
}

async fn held(database: &Arc<Database>, ttl: Duration) -> Held {
    match database.acquire(&BLOCK.parse().unwrap(), ttl).await.unwrap() {
        Acquired::Held(held) => held,
        Acquired::Taken { owner } => panic!("it is taken by {owner}"),
    }
}

fn entry(epoch: u64) -> CatalogueEntry {
    CatalogueEntry {
        application: BLOCK.parse().unwrap(),
        epoch: image_format::Epoch(epoch),
        created: "2026-02-03T04:05:06Z".to_owned(),
        digest: image_format::Digest::of(b"index"),
        repository: "registry:5000/sdp".parse::<registry::Reference>().unwrap().location().clone(),
        members: BTreeMap::from([("receiver.0".parse().unwrap(), image_format::Digest::of(b"member"))]),
        predecessor: None,
    }
}

#[tokio::test]
async fn a_guard_stops_acting_before_its_lease_can_end() {
    const TTL: Duration = Duration::from_secs(3);
    let mut etcd = Etcd::start(23790);
    let database = database(&etcd);
    let first = held(&database, TTL).await;
    // It lives on past the time of the lease, and nobody else gets it.
    tokio::time::sleep(TTL + Duration::from_secs(1)).await;
    assert!(first.holds());
    assert!(matches!(database.acquire(&BLOCK.parse().unwrap(), TTL).await.unwrap(), Acquired::Taken { .. }));
    etcd.stop();
    let stopped = Instant::now();
    first.over().cancelled().await;
    assert!(!first.holds() && stopped.elapsed() < TTL, "over after {:?}", stopped.elapsed());
    // What stands in the database is not known: that is an error, and no empty answer.
    assert!(matches!(database.now().await, Err(DatabaseError::Unreachable { .. })));
    etcd.restart();
    assert!(!first.holds(), "who was told to stop is not told to go on");
    let token = first.token();
    drop(first);
    let start = Instant::now();
    let second = loop {
        match database.acquire(&BLOCK.parse().unwrap(), TTL).await.unwrap() {
            Acquired::Held(held) => break held,
            Acquired::Taken { .. } => assert!(start.elapsed() < Duration::from_secs(20), "the old lease never ends"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(second.token() > token);
    // The first one's word is not taken any more; the second one's is, and twice is once.
    let block = BLOCK.parse().unwrap();
    assert!(matches!(database.record(&block, &entry(4), Some(token)).await, Err(DatabaseError::Fenced { .. })));
    database.record(&block, &entry(4), Some(second.token())).await.unwrap();
    database.record(&block, &entry(4), Some(second.token())).await.unwrap();
    let written = etcd.get(&format!("/checkpoint/catalogue/{BLOCK}/{:020}", 4));
    assert!(written.starts_with("{\n  \"application\": \"pb-mvp01-20200425-00000\",\n  \"created\""), "{written}");
    second.release().await.unwrap();
    assert_eq!(etcd.get(&format!("/checkpoint/owner/{BLOCK}")), "");
}

#[tokio::test]
async fn what_is_to_be_guarded_follows_the_database() {
    let etcd = Etcd::start(23790);
    let database = database(&etcd);
    etcd.put(&format!("/pb/{BLOCK}"), "{}");
    for (status, expected) in [("RUNNING", false), ("FINISHED", true)] {
        etcd.put(&format!("/pb/{BLOCK}/state"), &format!("{{\"status\": \"{status}\"}}"));
        let desired = desired(&database.now().await.unwrap(), &[]);
        assert_eq!(desired[&BLOCK.parse().unwrap()] == Desired::Leave, expected, "{status}");
    }
}

#[test]
fn the_console_prints_what_ska_prints() {
    let etcd = Etcd::start(23790);
    let said = |arguments: &[&str]| run(&mut console(&etcd, arguments));
    assert_eq!(said(&["-a", "list"]), "Keys with prefix /checkpoint: \n");
    assert_eq!(said(&["-q", "-a", "list"]), "");
    assert_eq!(said(&["interval"]), "/checkpoint/settings/default/interval = None\n");
    assert_eq!(said(&["interval", "30000"]), "/checkpoint/settings/default/interval = 30000\n");
    assert_eq!(said(&["-q", "interval"]), "30000\n");
    assert_eq!(said(&["--pb", BLOCK, "interval", "500"]), format!("/checkpoint/settings/{BLOCK}/interval = 500\n"));
    let location = "registry:5000/sdp";
    assert_eq!(said(&["storage", location]), format!("/checkpoint/settings/default/storage = \"{location}\"\n"));
    let keys = [
        "/checkpoint/settings/default/interval".to_owned(),
        "/checkpoint/settings/default/storage".to_owned(),
        format!("/checkpoint/settings/{BLOCK}/interval"),
    ];
    assert_eq!(said(&["--all", "list"]), format!("Keys with prefix /checkpoint: \n{}\n", keys.join("\n")));
    assert_eq!(said(&["-q", "list", "-a"]), format!("{}\n", keys.join("\n")));
    assert_eq!(said(&["-q", "-v", "-a", "list"]), format!("30000\n\"{location}\"\n500\n"));
    let all = format!("{} = 30000\n{} = \"{location}\"\n{} = 500\n", keys[0], keys[1], keys[2]);
    assert_eq!(said(&["-v", "-a", "list"]), format!("Keys with prefix /checkpoint: \n{all}"));
    // A prefix is a world of its own, and nothing was written anywhere else.
    assert_eq!(said(&["--prefix", "/test/", "-a", "list"]), "Keys with prefix /test/checkpoint: \n");
    assert_eq!(etcd.get("/checkpoint/settings/default/interval"), "30000");
    let written = run(&mut etcd.tool(["get", "", "--from-key", "--keys-only"]));
    assert!(written.split_whitespace().all(|key| key.starts_with("/checkpoint/settings/")), "{written}");
}

#[test]
fn without_etcd_nothing_is_said_and_nothing_is_written() {
    let mut etcd = Etcd::start(23790);
    run(&mut console(&etcd, &["interval", "30000"]));
    etcd.stop();
    for arguments in [&["interval"][..], &["interval", "1"], &["-a", "list"]] {
        let (code, said) = run_failing(&mut console(&etcd, arguments));
        assert_eq!(code, 9, "{said}");
        assert!(said.contains("does not answer"), "{said}");
    }
    etcd.restart();
    assert_eq!(run(&mut console(&etcd, &["-q", "interval"])), "30000\n");
}

#[test]
fn what_others_wrote_wrong_is_named() {
    let etcd = Etcd::start(23790);
    etcd.put("/checkpoint/settings/default/interval", "often");
    let (code, said) = run_failing(&mut console(&etcd, &["interval"]));
    assert_eq!(code, 6, "{said}");
    assert!(said.contains("/checkpoint/settings/default/interval"), "{said}");
    for arguments in [&["interval", "0"][..], &["list"], &["-a", "interval"], &["--pb", "pb-1", "interval"]] {
        let (code, said) = run_failing(&mut console(&etcd, arguments));
        assert_eq!(code, 2, "{arguments:?}: {said}");
    }
}
