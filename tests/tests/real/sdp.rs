//! SKA's Configuration DB on a real etcd: what the console's words print and write, and what happens while etcd is gone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use guard::sdp::{Acquired, CatalogueEntry, Database, DatabaseError, Desired, Endpoint, Held, Prefix, desired};

use serde_json::Value;
use syncpoint_tests::{Etcd, Ledger, Registry, Task, bin, run, run_failing, wait_until};
use tempfile::TempDir;

use crate::setup::Keys;

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

#[test]
fn a_database_behind_tls_and_a_password() {
    const PASSWORD: &str = "nobody-guesses";
    let etcd = Etcd::start_closed(23790, PASSWORD);
    let ask = |protocol: &str, password: Option<&str>| {
        let mut command = console(&etcd, &["interval", "30000"]);
        command.env("SDP_CONFIG_PROTOCOL", protocol).env("SSL_CERT_FILE", etcd.authority());
        if let Some(password) = password {
            command.env("SDP_CONFIG_USERNAME", "root").env("SDP_CONFIG_PASSWORD", password);
        }
        command
    };
    assert_eq!(run(&mut ask("https", Some(PASSWORD))), "/checkpoint/settings/default/interval = 30000\n");
    assert_eq!(etcd.get("/checkpoint/settings/default/interval"), "30000");
    for password in [None, Some("something-else")] {
        let (code, words) = run_failing(&mut ask("https", password));
        assert!(code == 4 && !words.contains("something-else"), "{code}: {words}");
    }
    let (code, words) = run_failing(ask("https", Some(PASSWORD)).env_remove("SSL_CERT_FILE"));
    assert!(code == 9 && words.contains("certificate"), "its authority is not known: {code}: {words}");
    let (code, words) = run_failing(&mut ask("http", Some(PASSWORD)));
    assert!(code != 0 && !words.contains(PASSWORD), "{words}");
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

/// `syncpoint guard --sdp` at work.
struct Service {
    dir: TempDir,
    process: Child,
}

impl Service {
    fn start(etcd: &Etcd, registry: &Registry, keys: &Keys) -> Self {
        let dir = TempDir::new().unwrap();
        let plan = format!("key = \"{}\"\n[guard]\nprobation = \"1s\"\n[retention]\nkeep-last = 2\n", keys.private());
        fs::write(dir.path().join("plan.toml"), plan).unwrap();
        let process = Self::spawn(&dir, etcd, registry);
        Self { dir, process }
    }

    fn spawn(dir: &TempDir, etcd: &Etcd, registry: &Registry) -> Child {
        let log = File::options().append(true).create(true).open(dir.path().join("log")).unwrap();
        let mut command = registry.syncpoint(["guard", "--sdp", "--log-format", "json", "--metrics", "127.0.0.1:5097"]);
        command.args(["--storage", &registry.repository("sdp")]);
        command.arg("--plan").arg(dir.path().join("plan.toml")).arg("--state-dir").arg(dir.path().join("state"));
        command.env("SDP_CONFIG_PORT", etcd.port().to_string()).stderr(log).stdout(Stdio::null()).spawn().unwrap()
    }

    fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn count(&self, event: &str) -> usize {
        self.events().iter().filter(|found| found["event"] == event).count()
    }

    fn wait_for(&self, event: &str, more_than: usize) {
        wait_until(&format!("{event} after {more_than}"), || self.count(event) > more_than);
    }

    fn wait_for_words(&self, words: &str) {
        let says = |event: &Value| event["message"].as_str().is_some_and(|message| message.contains(words));
        wait_until(words, || self.events().iter().any(says));
    }

    fn metrics(&self) -> String {
        run(&mut syncpoint_tests::command("curl", ["--silent", "http://127.0.0.1:5097/metrics"]))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.dir.path().join("log")).unwrap_or_default());
        }
    }
}

#[test]
fn processing_blocks_are_guarded_while_the_database_says_so() {
    let (mut etcd, registry, keys) = (Etcd::start(23790), Registry::start(5098), Keys::generate());
    let ledger = Ledger;
    ledger.wipe();
    let deployment = format!("proc-{BLOCK}-receive");
    for (ordinal, name) in ["receive-x7f", "receive-q2b"].iter().enumerate() {
        let labels = [format!("deployment={deployment}"), "role=receiver".to_owned(), format!("ordinal={ordinal}")];
        let labels: Vec<_> = labels.iter().map(|label| format!("--label=io.syncpoint.sdp.{label}")).collect();
        let labels: Vec<_> = labels.iter().map(String::as_str).collect();
        ledger.run(name, &labels, &["writer", "--interval-ms", "20", "--print-every", "100000"]);
    }
    run(&mut console(&etcd, &["interval", "2000"]));
    run(&mut console(&etcd, &["storage", "127.0.0.1:1/of-somebody-else"]));
    let state_key = format!("/pb/{BLOCK}/state");
    let state = |status: &str| format!("{{\"status\": \"{status}\"}}");
    etcd.put(&format!("/pb/{BLOCK}"), "{}");
    etcd.put(&state_key, &state("STARTING"));
    let mut service = Service::start(&etcd, &registry, &keys);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(service.count("checkpoint"), 0, "it does not run yet");

    // It runs, and its memory would go where nobody on this machine allowed it.
    etcd.put(&state_key, &state("RUNNING"));
    service.wait_for_words("127.0.0.1:1/of-somebody-else");
    assert_eq!(service.count("checkpoint") + service.count("watching"), 0);

    // It goes where it may: it is guarded, and what became permanent stands in the catalogue.
    run(&mut console(&etcd, &["storage", &registry.repository("sdp")]));
    service.wait_for("checkpoint", 1);
    let catalogue = format!("/checkpoint/catalogue/{BLOCK}/");
    let entries = || run(&mut etcd.tool(["get", &catalogue, "--prefix", "--keys-only"])).split_whitespace().count();
    wait_until("two are in the catalogue", || entries() >= 2);
    assert!(etcd.get(&format!("{catalogue}{:020}", 1)).contains(&format!("{deployment}.receiver.1")));
    assert!(service.metrics().contains(&format!("syncpoint_running{{application=\"{BLOCK}\"}} 1")));

    // It was found to have failed, though its containers run: it is rolled back, once.
    let before = Ledger::running();
    etcd.put(&state_key, &state("FAILED"));
    service.wait_for("rolled-back", 0);
    service.wait_for("checkpoint", service.count("checkpoint"));
    assert_eq!((service.count("rolled-back"), Ledger::running()), (1, before));
    etcd.put(&state_key, &state("RUNNING"));
    // A container dies, and in the middle of what follows the guard does: the next one knows of whom the block is made.
    Task::of("receive-x7f").signal(nix::sys::signal::Signal::SIGKILL);
    service.wait_for("rolling-back", 1);
    service.process.kill().unwrap();
    service.process.wait().unwrap();
    service.process = Service::spawn(&service.dir, &etcd, &registry);
    service.wait_for("rolled-back", 1);
    service.wait_for("checkpoint", service.count("checkpoint"));

    // The interval is changed while it is at work, and holds from the next tick on.
    run(&mut console(&etcd, &["--pb", BLOCK, "interval", "60000"]));
    // One more may come, at the tick that was set before, and takes its time on a busy machine.
    std::thread::sleep(Duration::from_secs(12));
    let made = service.count("checkpoint");
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(service.count("checkpoint"), made);
    run(&mut console(&etcd, &["--pb", BLOCK, "interval", "1000"]));

    // Nothing is known any more: nothing is done, and what runs of the application runs on.
    etcd.stop();
    service.wait_for_words("the lease is over");
    let (made, begun) = (service.count("checkpoint"), service.count("rolling-back"));
    Task::of("receive-q2b").signal(nix::sys::signal::Signal::SIGKILL);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!((service.count("checkpoint"), service.count("rolling-back")), (made, begun));
    assert_eq!(Ledger::running(), ["receive-x7f"]);
    etcd.restart();
    service.wait_for("rolled-back", 2);
    service.wait_for("checkpoint", made);
    assert_eq!(Ledger::running(), ["receive-q2b", "receive-x7f"]);

    // It is finished: it is left alone.
    etcd.put(&state_key, &state("FINISHED"));
    service.wait_for_words("it is not guarded any more");
    let made = service.count("checkpoint");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(service.count("checkpoint"), made);
    assert!(!service.metrics().contains(BLOCK));
    assert_eq!(etcd.get(&format!("/checkpoint/owner/{BLOCK}")), "");
    ledger.wipe();
}
