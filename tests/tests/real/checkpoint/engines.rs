//! Whom a checkpoint touches: members of podman and of runc alone, and nobody else on the host.

use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use syncpoint_tests::{Ledger, Process, Task, command, run, run_failing, wait_until, write_script};
use tempfile::TempDir;

use super::Layout;
use super::exchange::PagesFiles;
use crate::runc::bundle_of;

const STEADY: [&str; 5] = ["writer", "--interval-ms", "10", "--print-every", "100000"];

/// `podman container checkpoint` and `restore`, without anything of ours: what it was, it carries on with.
fn checkpoint_and_restore_plainly(container: &str) {
    let task = Task::of(container);
    let podman = |step: &str| {
        run(command("timeout", ["20", "podman", "container", step]).args(["--tcp-established", container]));
    };
    podman("checkpoint");
    assert!(!task.is_alive(), "{container} ended with its checkpoint");
    podman("restore");
    let task = Task::of(container);
    let at = task.counter().expect("its counter is there");
    wait_until("it counts on", || task.counter() > Some(at + 3));
}

#[test]
fn plain_checkpoints_of_other_containers_are_not_touched() {
    let ledger = Ledger::start(&[]);
    ledger.run("bystander", &[], &STEADY);
    let layout = Layout::new();
    let mut checkpoint = layout.checkpoint("ledger", &[]);
    let mut syncpoint = checkpoint.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // Held at the gathering: the session lives, and its hooks wait.
    let runc = Process::wait_for("a runc", Process::is_runc_checkpoint);
    runc.signal(Signal::SIGSTOP);
    Process::wait_for("a hook", |process| {
        ["consumer", "producer", "auditor"].iter().any(|id| process.is_hook(id, "pre-dump"))
    });
    checkpoint_and_restore_plainly("bystander");
    assert!(syncpoint.try_wait().unwrap().is_none(), "the session is still going on");
    runc.signal(Signal::SIGCONT);
    let output = syncpoint.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    checkpoint_and_restore_plainly("bystander");
    // A member, too, is anybody's container when there is no session.
    checkpoint_and_restore_plainly("auditor");
    ledger.counters_past(ledger.said().into_iter().max().unwrap_or_default());
    ledger.wipe();
}

/// What a container of runc alone keeps in its bundle is its owner's; this one keeps its counter in memory.
#[test]
fn members_of_runc_and_of_podman_are_checkpointed_together() {
    let ledger = Ledger;
    ledger.wipe();
    let (layout, bundle) = (Layout::new(), TempDir::new().unwrap());
    bundle_of(bundle.path(), &[&STEADY[..], &["--state", "/dev/shm/state"]].concat());
    let folder = bundle.path().to_str().unwrap();
    run(command("runc", ["run", "--detach", "--bundle", folder, "lone"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null()));
    ledger.run("writer", &[], &STEADY);
    let tasks = || [lone(), Task::of("writer")];
    let counters =
        || tasks().map(|task| task.counter_in(if task.container == "lone" { "/dev/shm/state" } else { "/data/state" }));
    wait_until("both count", || counters().iter().all(|counter| *counter > Some(10)));
    let bundle_option = format!("lone={folder}");
    let asked = ["--bundle", &bundle_option, "lone", "writer"];
    let (code, words) = run_failing(&mut layout.checkpoint("mixed", &asked));
    assert!(code == 7 && words.contains("the root filesystem of container lone"), "{code}: {words}");
    assert!(words.contains("--without-rootfs"), "{words}");
    run(&mut layout.checkpoint("mixed", &[&["--without-rootfs", "lone"], &asked[..]].concat()));
    let before = counters();
    wait_until("both run on", || counters().iter().zip(before).all(|(counter, before)| *counter > before));

    tasks().iter().for_each(|task| task.signal(Signal::SIGKILL));
    run(&mut command("runc", ["delete", "--force", "lone"]));
    ledger.wipe();
    run(&mut layout.syncpoint(["restore", &layout.tag(1), "--insecure-no-verify", "--bundle", &bundle_option]));
    wait_until("both carry on", || counters().iter().zip(before).all(|(counter, before)| *counter > before));
    run(&mut command("runc", ["delete", "--force", "lone"]));
    ledger.wipe();
}

/// `ulimit` before `syncpoint` with everything that it was asked for.
fn with_limit(limit: &str, of: &Command) -> Command {
    let mut limited = command("sh", ["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")]);
    limited.arg(of.get_program()).args(of.get_args());
    limited.envs(of.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited
}

/// A search path on which podman does something of the shell's first.
pub fn podman_after(folder: &TempDir, first: &str) -> String {
    let podman = run(&mut command("sh", ["-c", "command -v podman"]));
    let wrapper = folder.path().join("podman");
    write_script(&wrapper, &format!("#!/bin/bash\n{first}\nexec {} \"$@\"\n", podman.trim()));
    format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap())
}

/// As one that is run by sudo.
pub const CLOSE_DESCRIPTORS: &str = "for fd in /proc/$$/fd/*; do
fd=${fd##*/}
if [ \"$fd\" -gt 99 ] && [ \"$fd\" -ne 255 ]; then eval \"exec $fd>&-\"; fi
done";

#[test]
fn memory_goes_over_tls_where_an_engine_hands_crius_socket_to_nobody() {
    let ledger = Ledger::start(&["--ballast-mib", "8"]);
    let (layout, folder) = (Layout::new(), TempDir::new().unwrap());
    let path = podman_after(&folder, CLOSE_DESCRIPTORS);
    let files = PagesFiles::watch();
    let output = layout.checkpoint("ledger", &[]).env("PATH", path).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    assert!(words.contains("does not hand CRIU the socket") && words.contains("over TLS instead"), "{words}");
    assert_eq!(files.seen(), 0, "files of pages were written");
    ledger.counters_past(ledger.said().into_iter().max().unwrap_or_default());
    ledger.wipe();
    run(&mut layout.syncpoint(["restore", &layout.tag(1), "--insecure-no-verify"]));
    ledger.counters_past(0);
    ledger.wipe();
}

/// The testbed's crun knows of no configuration for CRIU, so that no hook can run.
#[test]
fn a_runtime_that_tells_criu_nothing_is_named_at_once() {
    let ledger = Ledger;
    ledger.wipe();
    ledger.run("writer", &["--runtime", "crun"], &STEADY);
    let task = Task::of("writer");
    wait_until("it counts", || task.counter() > Some(10));
    let layout = Layout::new();
    let (code, words) = run_failing(&mut layout.checkpoint("ledger", &["--gather-timeout", "5m", "writer"]));
    assert_eq!(code, 8, "{words}");
    assert!(words.contains("without CRIU having run its hooks; crun tells CRIU"), "{words}");
    let at = task.counter();
    wait_until("it runs on", || task.counter() > at);
    ledger.wipe();
}

/// A soft limit that would not do is raised, but not for podman; a hard one is a refusal.
#[test]
fn limits_of_open_files_are_raised_as_far_as_they_may_be() {
    let ledger = Ledger::start(&[]);
    let (layout, folder) = (Layout::new(), TempDir::new().unwrap());
    let seen = folder.path().join("seen");
    let path = podman_after(&folder, &format!("ulimit -Sn >>{}", seen.display()));

    let (code, words) = run_failing(&mut with_limit("-n 150", &layout.checkpoint("ledger", &[])));
    assert!(
        code == 7 && words.contains("3 members take up to 176 open files, and this process may have no more than 150"),
        "{words}"
    );
    run(with_limit("-S -n 40", &layout.checkpoint("ledger", &[])).env("PATH", path));
    let seen = std::fs::read_to_string(seen).unwrap();
    assert!(!seen.is_empty() && seen.lines().all(|line| line == "40"), "{seen}");
    let furthest = ledger.counters_past(ledger.said().into_iter().max().unwrap_or_default()).into_iter().max();
    ledger.wipe();
    let restore = ["restore", &layout.tag(1), "--insecure-no-verify"];
    run(&mut with_limit("-S -n 40", &layout.syncpoint(restore)));
    ledger.counters_past(furthest.unwrap_or_default());
    ledger.wipe();
}

fn lone() -> Task {
    let state: serde_json::Value = serde_json::from_str(&run(&mut command("runc", ["state", "lone"]))).unwrap();
    let pid = state["pid"].as_i64().and_then(|pid| pid.try_into().ok()).expect("runc gives a process id");
    Task { container: "lone".to_owned(), pid }
}
