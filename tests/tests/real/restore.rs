//! `syncpoint restore`: all of the set, or nothing of it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;
use syncpoint_tests::{Ledger, Process, Registry, command, run, run_failing, send, wait_until};
use tempfile::TempDir;

use crate::setup::{Keys, Wiped, files_below, global};

#[test]
fn a_restore_carries_on_again_and_again() {
    let registry = Registry::start(5010);
    let keys = Keys::generate();
    let wiped = Wiped::prepare(&registry, "sdp/ledger", &keys, &["--ballast-mib", "8", "--churn-percent", "10"]);
    for _ in 0..3 {
        run(&mut registry.syncpoint(["restore", &wiped.reference, "--key", &keys.public()]));
        wiped.assert_carries_on();
        wiped.ledger.wipe();
    }
}

#[test]
fn unsigned_and_foreign_signatures_are_refused_before_anything_is_touched() {
    let registry = Registry::start(5011);
    let keys = Keys::generate();
    let wiped = Wiped::prepare(&registry, "sdp/ledger", &keys, &[]);
    let other = Keys::generate();
    let (code, said) = run_failing(&mut registry.syncpoint(["restore", &wiped.reference, "--key", &other.public()]));
    assert_eq!(code, 5, "{said}");

    let unsigned = registry.repository("sdp/unsigned:epoch-1");
    run(&mut registry.syncpoint(["copy", "--no-signatures", &wiped.reference, &unsigned]));
    let (code, said) = run_failing(&mut registry.syncpoint(["restore", &unsigned, "--key", &keys.public()]));
    assert_eq!(code, 5, "{said}");
    let (code, said) = run_failing(&mut registry.syncpoint(["restore", &unsigned]));
    assert_eq!(code, 2, "no key is a usage error: {said}");
    assert_eq!(Ledger::containers(), [""; 0]);

    run(&mut registry.syncpoint(["restore", &unsigned, "--insecure-no-verify"]));
    wiped.assert_carries_on();
}

#[test]
fn a_damaged_blob_is_found_before_anything_is_touched() {
    let registry = Registry::start(5012);
    let keys = Keys::generate();
    let wiped = Wiped::prepare(&registry, "sdp/ledger", &keys, &["--ballast-mib", "4"]);
    let blobs = registry.data().join("data/docker/registry/v2/blobs");
    let size = |path: &std::path::PathBuf| fs::metadata(path).unwrap().len();
    let blob = files_below(&blobs).into_iter().filter(|path| path.is_file()).max_by_key(size).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(&blob).unwrap();
    let middle = size(&blob) / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();

    let (code, said) = run_failing(&mut registry.syncpoint(["restore", &wiped.reference, "--key", &keys.public()]));
    assert_eq!(code, 6, "{said}");
    assert_eq!(Ledger::containers(), [""; 0]);
    let (_, said) = run_failing(&mut registry.syncpoint(["verify", &wiped.reference, "--key", &keys.public()]));
    let digest = blob.parent().unwrap().file_name().unwrap().to_str().unwrap();
    assert!(said.contains(&digest[..12]), "the finding names the blob: {said}");

    file.write_all_at(&byte, middle).unwrap();
    run(&mut registry.syncpoint(["restore", &wiped.reference, "--key", &keys.public()]));
    wiped.assert_carries_on();
}

#[test]
fn what_is_in_the_way_is_reported_all_at_once() {
    let registry = Registry::start(5013);
    let keys = Keys::generate();
    let wiped = Wiped::prepare(&registry, "sdp/ledger", &keys, &[]);
    // The name of one member, and the address of another.
    run(&mut command("podman", ["create", "--name", "consumer", "localhost/syncpoint-demo:1", "/bin/sh"]));
    let address = ["run", "--detach", "--name", "squatter", "--network", "syncpoint-demo", "--ip", "10.90.0.11"];
    run(command("podman", address).args(["localhost/syncpoint-demo:1", "/bin/busybox", "sleep", "100"]));
    let (code, said) = run_failing(&mut registry.syncpoint(["restore", &wiped.reference, "--key", &keys.public()]));
    assert_eq!(code, 7, "{said}");
    assert!(said.contains("consumer") && said.contains("10.90.0.11"), "{said}");
    assert_eq!(Ledger::running(), ["squatter"]);
    wiped.ledger.wipe();
    run(&mut registry.syncpoint(["restore", &wiped.reference, "--key", &keys.public()]));
    // A second time, while the first set runs: refused.
    let (code, said) = run_failing(&mut registry.syncpoint(["restore", &wiped.reference, "--key", &keys.public()]));
    assert_eq!(code, 7, "{said}");
    wiped.assert_carries_on();
}

#[derive(Debug, Clone, Copy)]
enum Victim {
    Launcher,
    Criu,
    Hook,
}

/// Kill -9 of each victim at each barrier. One member is held back before the barrier, so that it cannot be passed.
#[test]
fn whatever_is_killed_at_whichever_barrier_nothing_runs_and_a_new_restore_succeeds() {
    let registry = Registry::start(5014);
    let keys = Keys::generate();
    let wiped = Wiped::prepare(&registry, "sdp/ledger", &keys, &[]);
    let mut table = String::from("victim    barrier       what restore said\n");
    for barrier in ["pre-restore", "post-restore", "pre-resume"] {
        for victim in [Victim::Launcher, Victim::Criu, Victim::Hook] {
            let mut launcher = registry
                .syncpoint(["restore", &wiped.reference, "--key", &keys.public(), "--attempts", "1"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let said = strike(victim, barrier, &mut launcher);
            let output = launcher.wait_with_output().unwrap();
            assert!(!output.status.success(), "{victim:?} at {barrier}");
            let said = said.unwrap_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned());
            wait_until("the engines have given up", || {
                !Process::all().iter().any(|process| process.command.contains("container restore"))
            });
            let tasks: Vec<_> =
                Process::all().into_iter().filter(|process| process.command.starts_with("/bin/ledger")).collect();
            assert!(tasks.is_empty(), "{victim:?} at {barrier}: {tasks:?}");
            assert_eq!(Ledger::running(), [""; 0], "{victim:?} at {barrier}");
            let line = said.lines().next().unwrap_or_default().to_owned();
            table += &format!("{:<10}{barrier:<14}{line}\n", format!("{victim:?}"));

            run(&mut registry.syncpoint(["restore", &wiped.reference, "--key", &keys.public()]));
            wiped.assert_carries_on();
            wiped.ledger.wipe();
        }
    }
    println!("{table}");
}

/// Holds another member back before `barrier`, kills, and lets it go. Gives a text for the table if the launcher cannot.
fn strike(victim: Victim, barrier: &str, launcher: &mut Child) -> Option<String> {
    // No CRIU yet that could be told to be the auditor's: its podman is held.
    let podman = Process::wait_for("the auditor's podman", |process| {
        process.command.contains("container restore") && process.command.contains("auditor")
    });
    podman.signal(Signal::SIGSTOP);
    let mut held = podman.pid;
    // Whoever comes to a barrier last does not wait there. So the two others hold each other back by turns: each waits for sure
    // while the other one is held, and its CRIU is stopped there before that one goes on.
    let before: &[_] = match barrier {
        "pre-restore" => &[],
        "post-restore" => &[("consumer", "pre-restore")],
        _ => &[("consumer", "pre-restore"), ("auditor", "post-restore")],
    };
    for (member, step) in before {
        let hook = Process::wait_for(&format!("the {member}'s hook"), |process| process.is_hook(member, step));
        hook.signal_parent(Signal::SIGSTOP);
        send(held, Signal::SIGCONT);
        held = hook.parent;
    }
    let hook = Process::wait_for("the producer's hook", |process| process.is_hook("producer", barrier));
    match victim {
        Victim::Launcher => launcher.kill().unwrap(),
        Victim::Criu => hook.signal_parent(Signal::SIGKILL),
        Victim::Hook => hook.signal(Signal::SIGKILL),
    }
    std::thread::sleep(std::time::Duration::from_millis(50));
    send(held, Signal::SIGCONT);
    matches!(victim, Victim::Launcher).then(|| "(killed)".to_owned())
}

#[test]
fn a_member_that_criu_cannot_restore_keeps_the_others_from_running() {
    let registry = Registry::start(5016);
    let keys = Keys::generate();
    let ledger = Ledger::start(&[]);
    let dumps = TempDir::new().unwrap();
    let archives = ledger.dump(dumps.path());
    ledger.wipe();
    // One of CRIU's files is missing: a dump that packs, links and verifies, but that CRIU refuses. (With a page too few
    // CRIU 4.2 would read for ever, and only the deadline would end it.)
    let tree = dumps.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let (archive, tree) = (archives[1].to_str().unwrap(), tree.to_str().unwrap());
    run(&mut command("tar", ["--zstd", "-xf", archive, "-C", tree]));
    fs::remove_file(Path::new(tree).join("checkpoint/mm-1.img")).unwrap();
    run(&mut command("tar", ["--zstd", "-cf", archive, "-C", tree, "."]));
    let reference = global(&registry, "sdp/broken", &keys, &archives);
    let restore = ["restore", &reference, "--key", &keys.public(), "--attempts", "2"];
    let (code, said) = run_failing(&mut registry.syncpoint(restore));
    assert_eq!(code, 8, "{said}");
    assert!(said.contains("producer") && said.contains("Error ("), "member and CRIU's own words: {said}");
    assert_eq!(Ledger::containers(), [""; 0], "everything that was made is removed");
}
