//! Without a ticket, with the settings of criu-coordinator instead, and a standing coordinator.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coordinator::{Deadlines, Hook, Listen, Outcome, Service, ServiceEvent, ServicePlan};
use image_format::Epoch;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::support::Authority;
use crate::{LONG, PROGRAM, assert_passed, assert_refused, end};

const DUMP: [Hook; 3] = [Hook::PreDump, Hook::NetworkLock, Hook::PostDump];
const RESTORE: [Hook; 3] = [Hook::PreRestore, Hook::PostRestore, Hook::PreResume];

/// A coordinator, and members with image folders that say who they are.
struct Set {
    root: TempDir,
    authority: Authority,
    service: Service,
    events: mpsc::UnboundedReceiver<ServiceEvent>,
    task: Child,
}

impl Set {
    async fn new(gather: Duration) -> Self {
        let authority = Authority::new();
        let plan = ServicePlan {
            listen: Listen {
                address: "127.0.0.1:0".parse().expect("an address"),
                tls: authority.coordinator(&["127.0.0.1"]),
            },
            application: "app".parse().expect("an id"),
            epoch: Epoch(1),
            deadlines: Deadlines { gather, hold: LONG },
        };
        let mut service = Service::start(plan).await.expect("a service");
        let events = service.events();
        let root = tempfile::tempdir().expect("a folder");
        let set =
            Self { root, authority, service, events, task: Command::new("sleep").arg("1000").spawn().expect("a task") };
        for (member, dependencies) in [("A", "B"), ("B", "A")] {
            std::fs::create_dir(set.images(member)).expect("a folder");
            let port = set.service.address().port();
            let words = format!(r#"{{"id": "{member}", "dependencies": "{dependencies}", "port": "{port}"}}"#);
            std::fs::write(set.images(member).join("criu-coordinator.json"), words).expect("written");
            set.authority.member(member);
        }
        set
    }

    fn images(&self, member: &str) -> PathBuf {
        self.root.path().join(member)
    }

    fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// As CRIU would run it, with the images of this member.
    fn command(&self, member: &str, hook: Hook) -> Command {
        let mut command = Command::new(PROGRAM);
        let issued = self.authority.ca().with_file_name("{id}");
        command
            .env_clear()
            .env("CRTOOLS_SCRIPT_ACTION", hook.as_str())
            .env("CRTOOLS_IMAGE_DIR", self.images(member))
            .env("CRTOOLS_INIT_PID", self.task.id().to_string())
            .env("SYNCPOINT_HOOK_CA", self.authority.ca())
            .env("SYNCPOINT_HOOK_CERTIFICATE", issued.with_extension("crt"))
            .env("SYNCPOINT_HOOK_KEY", issued.with_extension("key"))
            .env("SYNCPOINT_HOOK_STATE_DIR", self.state())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self, member: &str, hook: Hook) -> Child {
        self.command(member, hook).spawn().expect("the hook")
    }

    /// The same below another process: another CRIU.
    fn start_under_another(&self, member: &str, hook: Hook) -> Child {
        let mut other = Command::new("sh");
        other.args(["-c", "\"$0\"; exit $?", PROGRAM]).env_clear();
        for (name, value) in self.command(member, hook).get_envs() {
            if let Some(value) = value {
                other.env(name, value);
            }
        }
        other.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a shell")
    }

    fn pass(&self, hook: Hook) {
        let running = ["A", "B"].map(|member| self.start(member, hook));
        running.map(end).iter().for_each(assert_passed);
    }

    async fn outcome(&mut self) -> Outcome {
        loop {
            if let ServiceEvent::Decided { outcome, .. } = self.events.recv().await.expect("an event") {
                return outcome;
            }
        }
    }

    fn assert_killed(&mut self) {
        assert_eq!(self.task.wait().expect("an end").signal(), Some(9));
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.task.kill();
        let _ = self.task.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_is_dumped_and_restored_again_and_again() {
    let mut set = Set::new(LONG).await;
    for round in 0..2 {
        for hook in DUMP {
            set.pass(hook);
            // CRIU runs a script twice that it finds twice in its configuration.
            set.pass(hook);
        }
        set.pass(Hook::NetworkUnlock);
        assert!(matches!(set.outcome().await, Outcome::Released { .. }), "{round}");
        for hook in RESTORE {
            set.pass(hook);
            set.pass(hook);
        }
        set.pass(Hook::NetworkUnlock);
        set.pass(Hook::PostResume);
        assert!(matches!(set.outcome().await, Outcome::Released { .. }), "{round}");
        assert!(set.state().join("A/released").exists());
    }
    let mode = |path: &Path| path.metadata().expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&set.state()), mode(&set.state().join("A"))), (0o700, 0o700));
    assert_eq!(mode(&set.state().join("A/session.json")), 0o600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_criu_that_has_not_joined_obeys_no_ticket_of_another() {
    let mut set = Set::new(LONG).await;
    set.pass(Hook::PreRestore);
    set.pass(Hook::PostRestore);
    // The same member, another CRIU: the ticket is there, but it is not its own.
    let stranger = set.start_under_another("A", Hook::PreResume);
    assert_refused(&end(stranger), "this CRIU has not joined a session at pre-restore");
    set.assert_killed();

    let mut set = Set::new(LONG).await;
    set.pass(Hook::PreDump);
    let waiting = set.start("B", Hook::NetworkLock);
    let again = set.start_under_another("A", Hook::PreDump);
    assert_refused(&end(waiting), "member A failed: it began again");
    assert!(matches!(set.outcome().await, Outcome::Aborted { .. }));
    assert_passed_with(set.start_under_another("B", Hook::PreDump), again);
}

fn assert_passed_with(one: Child, other: Child) {
    [one, other].map(end).iter().for_each(assert_passed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_cannot_join_fails_closed() {
    let set = Set::new(Duration::from_millis(500)).await;
    assert_refused(&end(set.start("A", Hook::PreDump)), "the time was up before all were there; missing: B");
    assert_refused(&end(set.start("A", Hook::PostDump)), "has not joined");
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = silent.local_addr().expect("a port").port().to_string();
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("a port").port().to_string();
    let other = Authority::new();
    let change = |words: &str, variable: &str, value: &Path| {
        let log = set.root.path().join("log");
        let mut command = set.command("A", Hook::PreDump);
        command.env(format!("SYNCPOINT_HOOK_{variable}"), value).env("SYNCPOINT_HOOK_LOG_FILE", &log);
        let since = Instant::now();
        assert_refused(&command.output().expect("the hook"), words);
        assert!(since.elapsed() < Duration::from_secs(7), "{words}");
        assert!(std::fs::read_to_string(&log).expect("a log").contains(words), "{words}");
    };
    change("nobody can be reached", "PORT", nobody.as_ref());
    change("the handshake", "PORT", silent.as_ref());
    change("UnknownIssuer", "CA", other.ca());
    change("cannot read", "KEY", "/nowhere.key".as_ref());
    let mut stranger = set.command("A", Hook::PreDump);
    let output = stranger
        .env("SYNCPOINT_HOOK_ID", "C")
        .env("SYNCPOINT_HOOK_CERTIFICATE", set.authority.member("A").certificate)
        .env("SYNCPOINT_HOOK_KEY", set.authority.member("A").key)
        .output()
        .expect("the hook");
    assert_refused(&output, "the certificate is that of A, which does not speak for C");
    let foreign = set.root.path().join("foreign");
    std::fs::create_dir(&foreign).expect("a folder");
    std::fs::set_permissions(&foreign, PermissionsExt::from_mode(0o777)).expect("a mode");
    change("can be written by others", "STATE_DIR", &foreign);
    let mut without = set.command("A", Hook::PreDump);
    let output = without.env_remove("SYNCPOINT_HOOK_CA").output().expect("the hook");
    assert_refused(&output, "no ca is given");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_nothing_tells_of_is_left_alone() {
    let set = Set::new(LONG).await;
    std::fs::create_dir(set.images("C")).expect("a folder");
    for hook in DUMP.into_iter().chain(RESTORE).chain([Hook::NetworkUnlock, Hook::PostResume]) {
        assert_passed(&end(set.start("C", hook)));
    }
    assert!(!set.state().exists());
}
