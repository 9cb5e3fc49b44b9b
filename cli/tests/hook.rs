//! The real `syncpoint-hook` over the real socket, with a test in the place of CRIU and a sleeping child in that of the
//! restored tasks.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use coordinator::{Deadlines, Hook, Outcome, Rendezvous, SessionId, SessionKind, SessionPlan};
use image_format::{Epoch, MemberId};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_syncpoint-hook");

/// Longer than any step takes, shorter than a person waits.
const LONG: Duration = Duration::from_secs(20);

const BARRIERS: [Hook; 3] = [Hook::PreRestore, Hook::PostRestore, Hook::PreResume];

/// A session and, for each member, a CRIU that the test plays.
struct Set {
    root: TempDir,
    rendezvous: Rendezvous,
    members: Vec<Fake>,
}

/// One member: where its hook lies, and what stands for its tasks.
struct Fake {
    id: MemberId,
    hook: PathBuf,
    task: Child,
}

impl Set {
    async fn of(kind: SessionKind, count: usize, deadlines: Deadlines) -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let ids: Vec<MemberId> = (0..count).map(|n| format!("member-{n}").parse().expect("an id")).collect();
        let plan = SessionPlan {
            kind,
            id: SessionId::random().expect("random numbers"),
            epoch: Epoch(7),
            application: "app".parse().expect("an id"),
            members: ids.clone(),
            deadlines,
        };
        let rendezvous = Rendezvous::start(root.path(), plan, Path::new(PROGRAM)).await.expect("a session");
        let members = ids.into_iter().map(|id| {
            let config = std::fs::read_to_string(rendezvous.criu_config(&id)).expect("a configuration");
            let hook = config.strip_prefix("action-script=").expect("the script").trim_end().into();
            Fake { id, hook, task: Command::new("sleep").arg("1000").spawn().expect("a task") }
        });
        let members = members.collect();
        Self { root, rendezvous, members }
    }

    async fn restore(count: usize) -> Self {
        Self::of(SessionKind::Restore, count, Deadlines { gather: LONG, hold: LONG }).await
    }

    /// Runs one hook of every member to its end.
    fn pass(&self, hook: Hook) -> Vec<Output> {
        let running: Vec<Child> = self.members.iter().map(|member| member.start(hook)).collect();
        running.into_iter().map(end).collect()
    }

    /// Runs every hook before this one, and sees that all pass.
    fn pass_up_to(&self, last: Hook) {
        for hook in BARRIERS.into_iter().take_while(|hook| *hook != last) {
            for output in self.pass(hook) {
                assert_passed(&output);
            }
        }
    }

    async fn aborted(&mut self) -> (Option<MemberId>, Option<Hook>, String) {
        match self.rendezvous.outcome().await {
            Outcome::Aborted { member, hook, reason } => (member, hook, reason),
            Outcome::Released { .. } => panic!("released"),
        }
    }
}

impl Fake {
    fn start(&self, hook: Hook) -> Child {
        let mut command = Command::new(&self.hook);
        command.env_clear().env("CRTOOLS_SCRIPT_ACTION", hook.as_str()).env("CRTOOLS_IMAGE_DIR", "/proc/1/fd/9");
        if hook != Hook::PreRestore {
            command.env("CRTOOLS_INIT_PID", self.task.id().to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the hook")
    }

    /// How the task ended, or `None` if it lives on after some time.
    fn task_end(&mut self, within: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.task.try_wait().expect("the task") {
                return Some(status);
            }
            if Instant::now() > until {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn assert_killed(&mut self) {
        assert_eq!(self.task_end(LONG).and_then(|status| status.signal()), Some(9), "{}", self.id);
    }

    fn assert_alive(&mut self) {
        assert_eq!(self.task_end(Duration::from_millis(50)), None, "{}", self.id);
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.task.kill();
        let _ = self.task.wait();
    }
}

fn end(child: Child) -> Output {
    child.wait_with_output().expect("an end")
}

fn assert_passed(output: &Output) {
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
}

fn assert_refused(output: &Output, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.starts_with("Error (syncpoint-hook): ") && said.contains(words), "{said:?} has no {words:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_is_restored_together() {
    let mut set = Set::restore(3).await;
    let mut events = set.rendezvous.events();
    for hook in [
        Hook::PreRestore,
        Hook::SetupNamespaces,
        Hook::PostSetupNamespaces,
        Hook::PostRestore,
        Hook::NetworkUnlock,
        Hook::PreResume,
    ] {
        set.pass(hook).iter().for_each(assert_passed);
        // CRIU runs a script twice that it finds twice in its configuration.
        set.pass(hook).iter().for_each(assert_passed);
    }
    let Outcome::Released { timings } = set.rendezvous.outcome().await else { panic!("aborted") };
    assert_eq!(timings.members.len(), 3);
    for passages in timings.members.values() {
        assert_eq!(passages.iter().map(|passage| passage.hook).collect::<Vec<_>>(), BARRIERS);
        assert!(passages.iter().all(|passage| passage.arrived <= passage.passed));
    }
    set.pass(Hook::PostResume).iter().for_each(assert_passed);
    assert!(set.rendezvous.finished().await.is_whole());
    set.members.iter_mut().for_each(Fake::assert_alive);
    let mut steps = 0;
    while events.try_recv().is_ok() {
        steps += 1;
    }
    assert_eq!(steps, 3 * (2 * BARRIERS.len() + 1), "arrived and passed at each barrier, and running");
    let Set { root, rendezvous, members: _members } = set;
    rendezvous.close().await.expect("a folder that goes");
    assert_eq!(std::fs::read_dir(root.path()).expect("the root").count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_killed_while_it_waits_aborts_the_set() {
    for hook in BARRIERS {
        let mut set = Set::restore(3).await;
        set.pass_up_to(hook);
        let first = set.members[0].start(hook);
        let mut victim = set.members[1].start(hook);
        std::thread::sleep(Duration::from_millis(100));
        victim.kill().expect("a kill");
        let _ = end(victim);
        assert_refused(&end(first), "member member-1 vanished");
        let (member, at, _) = set.aborted().await;
        assert_eq!((member, at), (Some(set.members[1].id.clone()), Some(hook)));
        assert_refused(&end(set.members[2].start(hook)), "member member-1 vanished");
        if hook == Hook::PreResume {
            set.members.iter_mut().for_each(Fake::assert_killed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rendezvous_that_dies_stops_everybody() {
    for hook in BARRIERS {
        let Set { root: _root, rendezvous, mut members } = {
            let set = Set::restore(2).await;
            set.pass_up_to(hook);
            set
        };
        let waiting = members[0].start(hook);
        std::thread::sleep(Duration::from_millis(100));
        drop(rendezvous);
        assert_refused(&end(waiting), "the rendezvous has gone");
        assert_refused(&end(members[1].start(hook)), "nobody can be reached");
        if hook == Hook::PreResume {
            members.iter_mut().for_each(Fake::assert_killed);
        }
    }
}

#[test]
fn without_a_session_it_is_silent() {
    let plain = tempfile::tempdir().expect("a folder");
    let link = plain.path().join("hook");
    std::os::unix::fs::symlink(PROGRAM, &link).expect("a link");
    let mut task = Command::new("sleep").arg("1000").spawn().expect("a task");
    for program in [PathBuf::from(PROGRAM), link] {
        for hook in
            ["pre-dump", "network-lock", "post-dump", "pre-restore", "post-restore", "pre-resume", "post-resume"]
        {
            let output = Command::new(&program)
                .env("CRTOOLS_SCRIPT_ACTION", hook)
                .env("CRTOOLS_INIT_PID", task.id().to_string())
                .output()
                .expect("the hook");
            assert_passed(&output);
        }
    }
    assert_eq!(task.try_wait().expect("the task"), None);
    task.kill().expect("a kill");
    task.wait().expect("an end");
}
