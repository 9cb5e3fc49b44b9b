//! With a ticket that leads to a session's rendezvous on another host.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coordinator::{Deadlines, Hook, Listen, Outcome, Outpost, Remote, Rendezvous, SessionId, SessionKind, SessionPlan};
use image_format::Epoch;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::Authority;
use crate::{LONG, PROGRAM, assert_refused, end, id};

/// A session of a member on the rendezvous' host and one on another.
struct Pair {
    _roots: [TempDir; 2],
    authority: Authority,
    rendezvous: Rendezvous,
    outpost: Outpost,
    task: Child,
}

impl Pair {
    async fn of(kind: SessionKind) -> Self {
        let plan = SessionPlan {
            kind,
            id: SessionId::random().expect("random numbers"),
            epoch: Epoch(7),
            application: "app".parse().expect("an id"),
            members: vec![id("near"), id("far")],
            deadlines: Deadlines { gather: LONG, hold: LONG },
            fence: None,
        };
        let roots = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
        let authority = Authority::new();
        let listen = Listen {
            address: "127.0.0.1:0".parse().expect("an address"),
            tls: authority.coordinator(&["localhost", "127.0.0.1"]),
        };
        let program = Path::new(PROGRAM);
        let started = Rendezvous::start_with(roots[0].path(), plan, program, Some(&listen)).await;
        let rendezvous = started.expect("a session");
        let address = rendezvous.address().expect("a port").to_string();
        let remote = Remote { address, tls: authority.member("far") };
        let joined = Outpost::join(roots[1].path(), remote, kind, id("far"), program, LONG).await;
        let task = Command::new("sleep").arg("1000").spawn().expect("a task");
        Self { _roots: roots, authority, rendezvous, outpost: joined.expect("joined"), task }
    }

    fn near(&self, hook: Hook) -> Child {
        self.start(&self.rendezvous.criu_config(&id("near")), hook)
    }

    fn far(&self, hook: Hook) -> Child {
        self.start(&self.outpost.criu_config(&id("far")), hook)
    }

    fn start(&self, config: &Path, hook: Hook) -> Child {
        let config = std::fs::read_to_string(config).expect("a configuration");
        let program: PathBuf = config.strip_prefix("action-script=").expect("the script").trim_end().into();
        Command::new(program)
            .env_clear()
            .env("CRTOOLS_SCRIPT_ACTION", hook.as_str())
            .env("CRTOOLS_IMAGE_DIR", "/proc/1/fd/9")
            .env("CRTOOLS_INIT_PID", self.task.id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the hook")
    }

    fn pass(&self, hook: Hook) {
        for output in [self.near(hook), self.far(hook)].map(end) {
            assert!(output.status.success() && output.stderr.is_empty(), "{hook}: {output:?}");
        }
    }

    fn change_ticket(&self, change: impl FnOnce(&mut Value)) {
        let path = self.outpost.criu_config(&id("far")).with_file_name("session.json");
        let mut ticket: Value = serde_json::from_slice(&std::fs::read(&path).expect("a ticket")).expect("a ticket");
        change(&mut ticket["remote"]);
        std::fs::write(path, ticket.to_string()).expect("written");
    }

    fn assert_killed(&mut self) {
        assert_eq!(self.task.wait().expect("an end").signal(), Some(9));
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.task.kill();
        let _ = self.task.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_restore_together() {
    let mut pair = Pair::of(SessionKind::Restore).await;
    for hook in [Hook::PreRestore, Hook::PostRestore, Hook::NetworkUnlock, Hook::PreResume] {
        pair.pass(hook);
        pair.pass(hook);
    }
    assert!(matches!(pair.rendezvous.outcome().await, Outcome::Released { .. }));
    pair.pass(Hook::PostResume);
    assert!(pair.rendezvous.finished().await.is_whole());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_are_dumped_together() {
    let pair = Pair::of(SessionKind::Dump).await;
    pair.pass(Hook::PreDump);
    pair.pass(Hook::NetworkLock);
    let standing = [pair.near(Hook::PostDump), pair.far(Hook::PostDump)];
    assert!(pair.rendezvous.to_capture().await);
    pair.rendezvous.captured().await;
    for output in standing.map(end) {
        assert!(output.status.success(), "{output:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_dies_on_the_other_host_and_a_rendezvous_that_dies_are_aborts() {
    let mut pair = Pair::of(SessionKind::Restore).await;
    pair.pass(Hook::PreRestore);
    let mut victim = pair.far(Hook::PostRestore);
    std::thread::sleep(Duration::from_millis(200));
    victim.kill().expect("a kill");
    let _ = end(victim);
    assert!(matches!(pair.rendezvous.outcome().await, Outcome::Aborted { member: Some(_), .. }));
    assert_refused(&end(pair.near(Hook::PostRestore)), "member far vanished");
    assert_refused(&end(pair.far(Hook::PreResume)), "member far vanished");
    pair.assert_killed();

    let mut pair = Pair::of(SessionKind::Restore).await;
    pair.pass(Hook::PreRestore);
    pair.pass(Hook::PostRestore);
    let waiting = pair.far(Hook::PreResume);
    std::thread::sleep(Duration::from_millis(200));
    pair.rendezvous.cancel("enough".to_owned()).await;
    assert_refused(&end(waiting), "given up: enough");
    pair.assert_killed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_gives_up_lets_its_own_members_go_whatever_the_other_one_says() {
    let pair = Pair::of(SessionKind::Dump).await;
    pair.pass(Hook::PreDump);
    // The other host says nothing: one member is still awaited there.
    let waiting = pair.far(Hook::NetworkLock);
    std::thread::sleep(Duration::from_millis(200));
    let since = Instant::now();
    pair.outpost.give_up();
    assert_refused(&end(waiting), "the launcher of this host gave up");
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    assert_refused(&end(pair.far(Hook::PostDump)), "the launcher of this host gave up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_wrong_between_the_hosts_stops_the_member() {
    // In the place of the rendezvous: one that takes everything and never answers, and one that is not there.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().expect("a port").to_string();
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("a port").to_string();
    let other = Authority::new();
    type Trouble<'a> = Box<dyn Fn(&Pair, &mut Value) + 'a>;
    let files = |of: fn(&Authority) -> coordinator::TlsFiles| -> Trouble<'_> {
        Box::new(move |pair, remote| {
            let files = of(&pair.authority);
            remote["certificate"] = files.certificate.to_str().into();
            remote["key"] = files.key.to_str().into();
        })
    };
    let troubles: Vec<(&str, Trouble<'_>)> = vec![
        ("nobody can be reached at", Box::new(|_, remote| remote["address"] = nobody.clone().into())),
        ("not HOST:PORT", Box::new(|_, remote| remote["address"] = "here".into())),
        ("cannot be found", Box::new(|_, remote| remote["address"] = "no-such-host.invalid:1".into())),
        ("handshake", Box::new(|_, remote| remote["address"] = silent.clone().into())),
        ("UnknownIssuer", Box::new(|_, remote| remote["ca"] = other.ca().to_str().into())),
        ("cannot read", Box::new(|_, remote| remote["key"] = "/nowhere.key".into())),
        ("the rendezvous broke off: received fatal alert: CertificateExpired", files(|ca| ca.expired("far"))),
        ("the certificate is that of near", files(|ca| ca.member("near"))),
        ("the certificate names no member", files(|ca| ca.common_name("no id at all"))),
    ];
    for (words, trouble) in troubles {
        let mut pair = Pair::of(SessionKind::Restore).await;
        pair.pass(Hook::PreRestore);
        pair.pass(Hook::PostRestore);
        pair.change_ticket(|remote| trouble(&pair, remote));
        let since = Instant::now();
        assert_refused(&end(pair.far(Hook::PreResume)), words);
        assert!(since.elapsed() < Duration::from_secs(7), "{words}: {:?}", since.elapsed());
        pair.assert_killed();
    }
}
