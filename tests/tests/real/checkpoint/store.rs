//! A store that goes down: what was taken is kept, the application runs on, and the job is finished later.

use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use syncpoint_tests::{Ledger, MEMBERS, Registry, Task, run, run_failing, send, wait_until};
use tempfile::TempDir;

use crate::setup::Keys;

/// The whole of it with `--stop`: containers must not end before the tag is there.
#[test]
fn a_store_that_dies_while_members_are_sent_costs_nothing_but_time() {
    let registry = Registry::start(5041);
    let (keys, work) = (Keys::generate(), TempDir::new().unwrap());
    let work = work.path().to_str().unwrap();
    let repository = registry.repository("sdp/down");
    let ledger = Ledger::start(&["--ballast-mib", "64", "--churn-percent", "1"]);
    let tasks = MEMBERS.map(Task::of);
    let (key, to) = (keys.private(), ["--to", &repository]);
    let checkpoint = ["checkpoint", "--application", "ledger", "--stop", "--sign-by", &key, "--work-dir", work];
    let mut started = registry.syncpoint([&checkpoint[..], &to].concat());
    let started = started.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let uploads = registry.data().join("data/docker/registry/v2/repositories/sdp/down/_uploads");
    wait_until("something is sent", || uploads.read_dir().is_ok_and(|mut uploads| uploads.next().is_some()));
    registry.kill();
    let output = started.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(9), "{said}");
    let session =
        said.split("--resume ").nth(1).and_then(|rest| rest.split('`').next()).expect("the hint says how to go on");

    assert!(tasks.iter().all(Task::is_alive), "nothing was stopped: {said}");
    ledger.counters_past(ledger.said().into_iter().max().unwrap_or_default());
    let resume = ["checkpoint", "--resume", session, "--sign-by", &key, "--work-dir", work];
    let (code, words) = run_failing(&mut registry.syncpoint(resume));
    assert_eq!(code, 9, "still down: {words}");
    registry.restart();
    assert_eq!(registry.tags("sdp/down"), [""; 0], "nothing is tagged that is not whole");
    run(&mut registry.syncpoint(resume));
    assert!(registry.tags("sdp/down").contains(&"epoch-1".to_owned()));
    let (code, words) = run_failing(&mut registry.syncpoint(resume));
    assert_eq!(code, 3, "it is finished: {words}");
    assert!(tasks.iter().all(Task::is_alive), "{words}");

    let tag = format!("{repository}:epoch-1");
    run(&mut registry.syncpoint(["verify", &tag, "--key", &keys.public()]));
    ledger.wipe();
    run(&mut registry.syncpoint(["restore", &tag, "--key", &keys.public()]));
    ledger.counters_past(ledger.said().into_iter().max().unwrap_or_default());
}

/// Where the line is read, and where members are sent.
#[test]
fn a_store_that_stands_still_holds_up_nobody_who_wants_to_stop() {
    let registry = Registry::start(5057);
    let (keys, work) = (Keys::generate(), TempDir::new().unwrap());
    let work = work.path().to_str().unwrap();
    let repository = registry.repository("sdp/still");
    let ledger = Ledger::start(&["--ballast-mib", "64", "--churn-percent", "1"]);
    let tasks = MEMBERS.map(Task::of);
    let key = keys.private();
    let checkpoint =
        ["checkpoint", "--application", "ledger", "--to", &repository, "--sign-by", &key, "--work-dir", work];
    let uploads = registry.data().join("data/docker/registry/v2/repositories/sdp/still/_uploads");
    for while_sending in [false, true] {
        if !while_sending {
            registry.pause();
        }
        let mut started = registry.syncpoint(checkpoint);
        let started = started.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        if while_sending {
            wait_until("something is sent", || uploads.read_dir().is_ok_and(|mut uploads| uploads.next().is_some()));
            registry.pause();
        } else {
            sleep(Duration::from_secs(1));
        }
        send(started.id().try_into().unwrap(), Signal::SIGTERM);
        let since = Instant::now();
        let output = started.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{said}");
        assert!(since.elapsed() < Duration::from_secs(8), "{:?}: {said}", since.elapsed());
        registry.resume();
    }
    assert!(tasks.iter().all(Task::is_alive));
    ledger.counters_past(ledger.said().into_iter().max().unwrap_or_default());
    assert_eq!(registry.tags("sdp/still"), [""; 0]);
}
