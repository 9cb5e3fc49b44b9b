//! Checkpoints of a running application to which something happens: afterwards there is a permanent one, or none and the
//! application running on as before; never a mixture.

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use syncpoint_tests::{Ledger, Process, Registry, command, run, run_failing, send, wait_until};

use crate::setup::Keys;

/// Containers of the ledger with three auditors.
const FIVE: [&str; 5] = ["consumer", "producer", "auditor", "auditor-2", "auditor-3"];

const APPLICATION: &str = "ledger";

/// The longest that tasks may stand frozen.
const FREEZE: Duration = Duration::from_secs(4);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Task,
    Criu,
    Hook,
    Syncpoint,
    Registry,
}

/// The victim, asked for before: podman answers no questions about a container that is being dumped.
struct Producer {
    id: String,
    task: i32,
}

impl Producer {
    fn find() -> Self {
        let found = run(&mut command("podman", ["inspect", "--format", "{{.Id}} {{.State.Pid}}", "producer"]));
        let (id, task) = found.trim().split_once(' ').unwrap();
        Self { id: id.to_owned(), task: task.parse().unwrap() }
    }
}

/// Five members of one application.
fn five() -> Ledger {
    Ledger::start(&["--auditors", "3"])
}

fn start(registry: &Registry, keys: &Keys, more: &[&str]) -> Child {
    let to = registry.repository("sdp/torn");
    let freeze = format!("{}s", FREEZE.as_secs());
    let given = ["checkpoint", "--application", APPLICATION, "--to", &to, "--sign-by", &keys.private()];
    let mut command = registry.syncpoint([&given[..], &["--freeze-timeout", &freeze], more].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// How many global checkpoints are tagged.
fn checkpoints(registry: &Registry) -> usize {
    registry.tags("sdp/torn").iter().filter(|tag| tag.starts_with("epoch-")).count()
}

/// How far a member is, by the last line that it printed.
fn said(member: &str) -> u64 {
    let line = run(&mut command("podman", ["logs", "--tail", "1", member]));
    let line = line.lines().last().unwrap_or_default();
    line.trim().split(' ').nth(1).and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{member}: {line}"))
}

fn assert_counts_on(members: &[&str], what: &str) {
    for member in members {
        let before = said(member);
        wait_until(&format!("{what}: {member} counts on from {before}"), || said(member) > before + 3);
    }
}

/// The longest silence of a member since `from`, by the times of what it printed.
fn longest_silence(member: &str, from: &str) -> Duration {
    let lines = run(&mut command("podman", ["logs", "--timestamps", "--since", from, member]));
    let seconds = |line: &str| {
        // 2026-11-23T05:46:07.123456789Z or with a zone: within a test only hours and smaller units count.
        let clock = line.split('T').nth(1)?;
        let mut parts = clock.get(..15)?.split(':');
        let hours: f64 = parts.next()?.parse().ok()?;
        let minutes: f64 = parts.next()?.parse().ok()?;
        Some((hours * 60.0 + minutes) * 60.0 + parts.next()?.parse::<f64>().ok()?)
    };
    let times: Vec<f64> = lines.lines().filter_map(seconds).collect();
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    Duration::from_secs_f64(longest)
}

fn engines_have_ended() {
    wait_until("the engines have ended", || {
        !Process::all().iter().any(|process| process.command.contains("container checkpoint"))
    });
}

/// Holds a member back before `barrier`, so that the others wait there, kills, and lets it go.
fn strike(victim: Victim, barrier: &str, producer: &Producer, syncpoint: &mut Child, registry: &Registry) {
    // No hook yet that could be told to be anybody's.
    let runc = find(syncpoint, "another member's runc", |process| {
        process.is_runc_checkpoint() && !process.command.contains(&producer.id)
    });
    runc.signal(Signal::SIGSTOP);
    let mut held = runc.pid;
    for step in ["pre-dump", "network-lock"].into_iter().take_while(|step| *step != barrier) {
        // Nobody gets past this step either: in the place of the one that is held, one that waits here is.
        let hook = find(syncpoint, &format!("a hook that waits at {step}"), |process| {
            FIVE.iter().filter(|member| **member != "producer").any(|member| process.is_hook(member, step))
        });
        hook.signal_parent(Signal::SIGSTOP);
        send(held, Signal::SIGCONT);
        held = hook.parent;
    }
    let hook = find(syncpoint, "the producer's hook", |process| process.is_hook("producer", barrier));
    match victim {
        Victim::Task => nix::sys::signal::kill(nix::unistd::Pid::from_raw(producer.task), Signal::SIGKILL).unwrap(),
        Victim::Criu => hook.signal_parent(Signal::SIGKILL),
        Victim::Hook => hook.signal(Signal::SIGKILL),
        Victim::Syncpoint => syncpoint.kill().unwrap(),
        Victim::Registry => registry.kill(),
    }
    std::thread::sleep(Duration::from_millis(50));
    send(held, Signal::SIGCONT);
}

/// Waits for a process, as long as syncpoint runs.
fn find(syncpoint: &mut Child, what: &str, found: impl Fn(&Process) -> bool) -> Process {
    loop {
        if let Some(process) = Process::all().into_iter().find(&found) {
            return process;
        }
        if let Some(status) = syncpoint.try_wait().unwrap() {
            let mut words = String::new();
            syncpoint.stderr.take().unwrap().read_to_string(&mut words).unwrap();
            panic!("syncpoint ended before there was {what}: {status}\n{words}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn whatever_is_killed_at_whichever_hook_there_is_a_checkpoint_or_the_application_runs_on() {
    let registry = Registry::start(5030);
    let keys = Keys::generate();
    let mut table = String::from("victim     hook           code  outcome    afterwards longest silence of a member\n");
    let mut ledger = Some(five());
    let mut tags = 0;
    for barrier in ["pre-dump", "network-lock", "post-dump"] {
        for victim in [Victim::Criu, Victim::Hook, Victim::Syncpoint, Victim::Registry, Victim::Task] {
            let case = format!("{victim:?} at {barrier}");
            let producer = Producer::find();
            let from = run(&mut command("date", ["--utc", "+%Y-%m-%dT%H:%M:%S.%NZ"]));
            let mut syncpoint = start(&registry, &keys, &[]);
            strike(victim, barrier, &producer, &mut syncpoint, &registry);
            let output = syncpoint.wait_with_output().unwrap();
            let mut longest = String::new();
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!words.contains("RLIMIT_NOFILE"), "{case}: what is no reason is not shown: {words}");
            engines_have_ended();
            let code = output.status.code().unwrap_or(-1);
            let outcome = if victim == Victim::Registry {
                registry.restart();
                assert_eq!(checkpoints(&registry), tags, "{case}: nothing is tagged that was not finished");
                let session = words.split("--resume ").nth(1).unwrap_or_else(|| panic!("{case}: {words}"));
                let session = session.split('`').next().unwrap();
                let resume = ["checkpoint", "--resume", session, "--sign-by", &keys.private()];
                run(&mut registry.syncpoint(resume));
                "resumed"
            } else if output.status.success() || words.contains("the checkpoint is permanent, but") {
                "permanent"
            } else {
                "none"
            };
            let now = checkpoints(&registry);
            assert_eq!(now, tags + usize::from(outcome != "none"), "{case}: {words}");
            tags = now;
            if victim == Victim::Task {
                assert!(matches!(code, 0 | 1 | 8), "{case}: {words}");
                // Its peers die of the broken connection, and one can be gone before the killed one has ended dying; whoever
                // else is named, it is.
                let mut gone = words.lines().filter_map(|line| line.split_once(" not run any more"));
                let named = gone.any(|(names, _)| names.contains("producer"));
                assert!(code == 0 || named, "{case}: {words}");
                assert!(!Ledger::running().contains(&"producer".to_owned()), "{case}");
            } else {
                assert_counts_on(&FIVE, &format!("{case}: {words}"));
                let silences = FIVE.map(|member| longest_silence(member, from.trim()));
                let silence = silences.into_iter().max().unwrap_or_default();
                let limit = FREEZE + Duration::from_secs(1);
                assert!(silence <= limit, "{case}: a member stood still for {silence:?}");
                longest = format!("{silence:?}");
            }
            let mut restored = "";
            if outcome != "none" {
                // What is permanent restores, and the application carries on from there.
                let tag = registry.repository(&format!("sdp/torn:epoch-{tags}"));
                run(&mut registry.syncpoint(["verify", &tag, "--key", &keys.public()]));
                ledger.iter().for_each(Ledger::wipe);
                run(&mut registry.syncpoint(["restore", &tag, "--key", &keys.public()]));
                assert_counts_on(&FIVE, &format!("{case}: restored"));
                restored = "restored";
            } else if victim == Victim::Task {
                // The old one goes before the new one is started, for it takes everything along.
                drop(ledger.take());
                ledger = Some(five());
            }
            let victim = format!("{victim:?}");
            table += &format!("{victim:<11}{barrier:<15}{code:>4}  {outcome:<11}{restored:<11}{longest}\n");
        }
    }
    println!("{table}");
    // What was left behind is in nobody's way.
    let last = start(&registry, &keys, &[]).wait_with_output().unwrap();
    assert!(last.status.success(), "{}", String::from_utf8_lossy(&last.stderr));
    drop(ledger.take());
    let tag = registry.repository(&format!("sdp/torn:epoch-{}", tags + 1));
    run(&mut registry.syncpoint(["restore", &tag, "--key", &keys.public()]));
    assert_counts_on(&FIVE, "restored");
    Ledger.wipe();
}

#[test]
fn of_two_checkpoints_at_once_one_wins_and_the_other_says_so() {
    let registry = Registry::start(5031);
    let keys = Keys::generate();
    let ledger = Ledger::start(&[]);
    let first = start(&registry, &keys, &[]);
    let podman = Process::wait_for("a podman", |process| process.command.contains("container checkpoint"));
    podman.signal(Signal::SIGSTOP);
    let to = registry.repository("sdp/torn");
    let second = ["checkpoint", "--application", APPLICATION, "--to", &to, "--sign-by", &keys.private()];
    let (code, words) = run_failing(&mut registry.syncpoint(second));
    podman.signal(Signal::SIGCONT);
    assert_eq!(code, 7, "{words}");
    assert!(words.contains("the application ledger is being checkpointed"), "{words}");
    let first = first.wait_with_output().unwrap();
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    assert_eq!(checkpoints(&registry), 1);
    ledger.wipe();
}

#[test]
fn a_member_that_cannot_be_dumped_is_named_and_the_others_run_on() {
    let registry = Registry::start(5032);
    let keys = Keys::generate();
    let ledger = Ledger::start(&[]);
    // A device that CRIU knows nothing of, held open.
    let stranger = ["run", "--detach", "--name", "stranger", "--network", "syncpoint-demo", "--ip", "10.90.0.15"];
    let mut stranger = command("podman", stranger);
    stranger.args(["--label", "io.syncpoint.application=ledger", "--device", "/dev/loop-control"]);
    run(stranger.args([
        "localhost/syncpoint-demo:1",
        "/bin/sh",
        "-c",
        "exec 3</dev/loop-control; while :; do /bin/busybox sleep 1; done",
    ]));
    let output = start(&registry, &keys, &[]).wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(8), "{words}");
    assert!(words.contains("member stranger") && words.contains("CRIU: "), "{words}");
    assert_eq!(registry.tags("sdp/torn"), [""; 0]);
    assert_counts_on(&["consumer", "producer", "auditor"], &words);
    assert!(Ledger::running().contains(&"stranger".to_owned()));
    ledger.wipe();
}

#[test]
fn stopped_containers_end_only_once_there_is_a_checkpoint() {
    let registry = Registry::start(5033);
    let keys = Keys::generate();
    let ledger = Ledger::start(&[]);
    registry.kill();
    let failed = start(&registry, &keys, &["--stop"]).wait_with_output().unwrap();
    assert_eq!(failed.status.code(), Some(9), "{}", String::from_utf8_lossy(&failed.stderr));
    assert_counts_on(&["consumer", "producer", "auditor"], "no store, no stop");
    registry.restart();
    let stopped = start(&registry, &keys, &["--stop"]).wait_with_output().unwrap();
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    assert_eq!(Ledger::running(), [""; 0]);
    ledger.wipe();
    let tag = registry.repository("sdp/torn:epoch-1");
    run(&mut registry.syncpoint(["restore", &tag, "--key", &keys.public()]));
    assert_counts_on(&["consumer", "producer", "auditor"], "restored");
}
