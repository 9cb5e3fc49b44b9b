//! One application on two hosts: each has a launcher, a work folder and certificates of its own. The two launchers share the
//! machine and meet over mutual TLS, as do the hooks of the one with the rendezvous of the other.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;
use syncpoint_tests::{Ledger, Process, Registry, Task, command, run, run_failing, syncpoint, wait_until};
use tempfile::TempDir;

use super::engines::{CLOSE_DESCRIPTORS, podman_after};
use super::exchange::PagesFiles;
use crate::setup::Keys;

const PAIR: [&str; 2] = ["consumer", "producer"];

/// A registry, certificates, and what each host works with.
struct Hosts {
    registry: Registry,
    keys: Keys,
    folder: TempDir,
    port: u16,
}

impl Hosts {
    /// With a registry and a rendezvous on ports of their own.
    fn new(port: u16) -> Self {
        let folder = TempDir::new().unwrap();
        let hosts = Self { registry: Registry::start(port), keys: Keys::generate(), folder, port: port + 100 };
        run(&mut syncpoint(["key", "ca", "--output-prefix", &hosts.path("ca")]));
        let issue = |to: [&str; 2], name: &str| {
            let (ca, prefix) = (hosts.path("ca"), hosts.path(name));
            run(&mut syncpoint(["key", "issue", "--ca", &ca, to[0], to[1], "--output-prefix", &prefix]));
        };
        issue(["--coordinator", "localhost"], "here");
        PAIR.iter().for_each(|member| issue(["--member", member], member));
        hosts
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn repository(&self) -> String {
        self.registry.repository("sdp/hosts")
    }

    /// `checkpoint` on the host of the consumer.
    fn checkpoint(&self, more: &[&str]) -> Command {
        let (listen, to) = (format!("127.0.0.1:{}", self.port), self.repository());
        let mut command = self.registry.syncpoint(["checkpoint", "--application", "ledger", "--to", &to]);
        command.args(["--sign-by", &self.keys.private(), "--work-dir", &self.path("work-here")]);
        command.args(["--listen", &listen, "--with", "producer", "--tls-ca", &self.path("ca.crt")]);
        command.args(["--tls-certificate", &self.path("here.crt"), "--tls-key", &self.path("here.key")]);
        command.args(more).arg("consumer");
        command
    }

    /// `join` on the host of the producer, with certificates of this name.
    fn join(&self, certificate: &str, more: &[&str]) -> Command {
        let address = format!("localhost:{}", self.port);
        let mut command = self.registry.syncpoint(["join", &address, "--application", "ledger"]);
        command.args(["--to", &self.repository(), "--work-dir", &self.path("work-there")]);
        command.args(["--tls-ca", &self.path("ca.crt")]);
        command.args(["--tls-certificate", &self.path(&format!("{certificate}.crt"))]);
        command.args(["--tls-key", &self.path(&format!("{certificate}.key"))]);
        command.args(more).arg("producer");
        command
    }

    fn tags(&self) -> Vec<String> {
        self.registry.tags("sdp/hosts").into_iter().filter(|tag| tag.starts_with("epoch-")).collect()
    }

    /// No launcher left anything where it worked.
    fn assert_tidy(&self) {
        for work in ["work-here", "work-there"] {
            let left = std::fs::read_dir(self.path(work)).into_iter().flatten().flatten();
            let left: Vec<_> = left.map(|entry| entry.file_name()).filter(|name| name != "restores.lock").collect();
            assert!(left.is_empty(), "{work}: {left:?}");
        }
    }
}

fn spawn(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Exit code, standard output and standard error.
fn end(child: Child) -> (i32, String, String) {
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn pair(options: &[&str]) -> Ledger {
    Ledger::start(&[&["--auditors", "0"], options].concat())
}

fn go_on(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT).unwrap();
}

fn assert_run_on(tasks: &[Task; 2], what: &str) {
    let before = tasks.each_ref().map(|task| task.counter().unwrap_or_else(|| panic!("{what}: {}", task.container)));
    wait_until(what, || tasks.iter().zip(before).all(|(task, before)| task.counter() > Some(before + 20)));
}

#[test]
fn a_pair_on_two_hosts_is_checkpointed_while_it_runs_and_restored_without_a_number_lost() {
    let hosts = Hosts::new(5045);
    let ledger = pair(&["--interval-ms", "0", "--print-every", "1000", "--ballast-mib", "16"]);
    let (code, _, _) = end(spawn(syncpoint(["join", "localhost:1", "--application", "x"])));
    assert_eq!(code, 2, "where memory may go is to be said");
    // The one that waits comes first, and stays for more than one.
    let join = spawn(hosts.join("{id}", &["--json", "--pages", "stream"]));
    let mut before = 0;
    for round in 1..=3 {
        let tasks = PAIR.map(Task::of);
        let connection = tasks[1].connections();
        let files = PagesFiles::watch();
        run(&mut hosts.checkpoint(&["--pages", "tls"]));
        assert_eq!(files.seen(), 0, "no host wrote pages into files");
        assert_run_on(&tasks, "both ran on");
        let tag = format!("{}:epoch-{round}", hosts.repository());
        run(&mut hosts.registry.syncpoint(["verify", &tag, "--key", &hosts.keys.public()]));
        tasks.iter().for_each(|task| task.signal(Signal::SIGKILL));
        ledger.wipe();
        run(&mut hosts.registry.syncpoint(["restore", &tag, "--key", &hosts.keys.public()]));
        let tasks = PAIR.map(Task::of);
        assert_eq!(tasks[1].connections(), connection, "round {round}");
        // Both check every number that comes, and end at the first that does not fit.
        assert_run_on(&tasks, "both carry on");
        let at = tasks[0].counter().unwrap_or_default();
        assert!(at > before, "round {round}: {at} after {before}");
        before = at;
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(join.id().cast_signed()), Signal::SIGTERM).unwrap();
    let (code, told, said) = end(join);
    assert_eq!(code, 0, "{said}");
    let told: Vec<Value> = serde_json::Deserializer::from_str(&told).into_iter().map(Result::unwrap).collect();
    assert_eq!(told.iter().map(|report| report["epoch"].as_u64()).collect::<Vec<_>>(), [1, 2, 3].map(Some), "{said}");
    // After the first one only pages that changed are sent.
    let sent = |report: &Value| report["members"][0]["sent"].as_u64().unwrap();
    assert!(told[1..].iter().all(|report| sent(report) < sent(&told[0]) / 8), "{told:#?}");
    let tag = format!("docker://{}:epoch-3", hosts.repository());
    let index: Value =
        serde_json::from_str(&run(&mut hosts.registry.tool("skopeo", ["inspect", "--raw", &tag]))).unwrap();
    for entry in index["manifests"].as_array().unwrap() {
        assert_eq!(entry["annotations"]["io.syncpoint.generations"], "3", "{entry}");
    }
    hosts.assert_tidy();
    drop(ledger);
}

#[test]
fn a_host_whose_engine_hands_on_no_socket_takes_part_in_the_next_one() {
    let hosts = Hosts::new(5039);
    let (ledger, folder) = (pair(&[]), TempDir::new().unwrap());
    let mut join = hosts.join("{id}", &[]);
    join.env("PATH", podman_after(&folder, CLOSE_DESCRIPTORS));
    let join = spawn(join);
    let (code, said) = run_failing(&mut hosts.checkpoint(&[]));
    assert_eq!(code, 8, "{said}");
    assert!(said.contains("member producer") && said.contains("did not hand CRIU the descriptor"), "{said}");
    assert_run_on(&PAIR.map(Task::of), "both run on");
    run(&mut hosts.checkpoint(&[]));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(join.id().cast_signed()), Signal::SIGTERM).unwrap();
    let (code, told, said) = end(join);
    assert_eq!(code, 0, "{said}");
    assert!(told.contains("epoch 1") && said.contains("goes over TLS"), "{told}{said}");
    assert_run_on(&PAIR.map(Task::of), "both run on");
    hosts.assert_tidy();
    drop(ledger);
}

#[test]
fn both_hosts_stop_their_containers_once_the_checkpoint_is_permanent() {
    let hosts = Hosts::new(5046);
    let ledger = pair(&[]);
    let checkpoint = spawn(hosts.checkpoint(&["--stop"]));
    let (code, told, said) = end(spawn(hosts.join("producer", &["--once"])));
    assert_eq!(code, 0, "{told}{said}");
    assert!(told.contains("are stopped"), "{told}");
    let (code, told, said) = end(checkpoint);
    assert_eq!(code, 0, "{told}{said}");
    assert_eq!(Ledger::running(), [""; 0]);
    hosts.assert_tidy();
    ledger.wipe();
    let tag = format!("{}:epoch-1", hosts.repository());
    run(&mut hosts.registry.syncpoint(["restore", &tag, "--key", &hosts.keys.public()]));
    assert_run_on(&PAIR.map(Task::of), "both carry on");
}

#[test]
fn a_host_that_dies_while_all_stand_frozen_aborts_for_all() {
    let hosts = Hosts::new(5047);
    let ledger = Ledger::start(&[]);
    let tasks = PAIR.map(Task::of);
    let producer = run(&mut command("podman", ["inspect", "--format", "{{.Id}}", "producer"]));
    let here = ["auditor", "consumer"];
    let checkpoint = spawn(hosts.checkpoint(&["--freeze-timeout", "20s", "auditor"]));
    let mut join = spawn(hosts.join("{id}", &["--once"]));
    // The members of this host hold each other back by turns, until the producer alone stands at post-dump.
    let runc = Process::wait_for("a runc of this host", |process| {
        process.is_runc_checkpoint() && !process.command.contains(producer.trim())
    });
    runc.signal(Signal::SIGSTOP);
    let mut held = runc.pid;
    for step in ["pre-dump", "network-lock"] {
        let hook = Process::wait_for(&format!("a hook that waits at {step}"), |process| {
            here.iter().any(|member| process.is_hook(member, step))
        });
        hook.signal_parent(Signal::SIGSTOP);
        go_on(held);
        held = hook.parent;
    }
    Process::wait_for("the producer's hook", |process| process.is_hook("producer", "post-dump"));
    join.kill().unwrap();
    join.wait().unwrap();
    go_on(held);
    let (code, _, said) = end(checkpoint);
    assert_eq!(code, 8, "{said}");
    assert!(said.contains("member producer failed: the connection to its host ended"), "{said}");
    assert_run_on(&tasks, "both run on");
    assert_eq!(hosts.tags(), [""; 0]);

    // What the dead one left is taken away by the next one.
    let join = spawn(hosts.join("{id}", &["--once"]));
    run(&mut hosts.checkpoint(&["auditor"]));
    assert_eq!(end(join).0, 0);
    assert_run_on(&tasks, "both run on");
    assert_eq!(hosts.tags(), ["epoch-1"]);
    hosts.assert_tidy();
    drop(ledger);
}

#[test]
fn a_coordinating_host_that_dies_lets_the_others_run_on() {
    let hosts = Hosts::new(5048);
    let ledger = pair(&["--ballast-mib", "256"]);
    let tasks = PAIR.map(Task::of);
    let mut checkpoint = spawn(hosts.checkpoint(&[]));
    let join = spawn(hosts.join("{id}", &["--once"]));
    Process::wait_for("the producer's hook", |process| process.is_hook("producer", "network-lock"));
    checkpoint.kill().unwrap();
    checkpoint.wait().unwrap();
    let (code, _, said) = end(join);
    assert_eq!(code, 8, "{said}");
    assert!(said.contains("the connection to the coordinating host ended"), "{said}");
    assert_run_on(&tasks, "both run on");
    assert_eq!(hosts.tags(), [""; 0]);
    drop(ledger);
}

#[test]
fn nothing_is_touched_for_a_member_that_never_joins_or_is_not_who_it_says_or_goes_elsewhere() {
    let hosts = Hosts::new(5049);
    let ledger = pair(&[]);
    let tasks = PAIR.map(Task::of);
    let (code, said) = run_failing(&mut hosts.checkpoint(&["--gather-timeout", "500ms"]));
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("nobody joined in time for producer"), "{said}");

    let mut checkpoint = spawn(hosts.checkpoint(&["--gather-timeout", "5s"]));
    let (code, said) = run_failing(&mut hosts.join("consumer", &["--once"]));
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("the certificate is that of consumer, which does not speak for producer"), "{said}");
    let mut words = String::new();
    checkpoint.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    assert_eq!(checkpoint.wait().unwrap().code(), Some(7), "{words}");

    let checkpoint = spawn(hosts.checkpoint(&[]));
    let elsewhere = hosts.registry.repository("sdp/other");
    let mut other = hosts.registry.syncpoint(["join", &format!("localhost:{}", hosts.port), "--application", "ledger"]);
    other.args(["--to", &elsewhere, "--work-dir", &hosts.path("work-there"), "--tls-ca", &hosts.path("ca.crt")]);
    other.args(["--tls-certificate", &hosts.path("producer.crt"), "--tls-key", &hosts.path("producer.key")]);
    let (code, said) = run_failing(other.args(["--once", "producer"]));
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("sends memory to") && said.contains("sdp/other"), "{said}");
    let (code, _, said) = end(checkpoint);
    assert_eq!(code, 8, "{said}");
    assert!(said.contains("producer"), "{said}");

    assert_run_on(&tasks, "both run on");
    assert_eq!(hosts.tags(), [""; 0]);
    hosts.assert_tidy();
    drop(ledger);
}
