//! The real `syncpoint-hook` over the real socket, with a test in the place of CRIU and a sleeping child in that of the
//! restored tasks.

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use coordinator::hook::{expect_handed, was_not_handed};
use coordinator::{Deadlines, Fence, Hook, Outcome, Rendezvous, SessionId, SessionKind, SessionPlan};
use image_format::{ApplicationId, Epoch, MemberId};
use serde_json::Value;
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
        // It is there at every test: a session that its holder has not lost goes on as any other.
        let fence = Some(Fence::raise(root.path(), &application(), None).expect("a fence"));
        let ids: Vec<MemberId> = (0..count).map(|n| format!("member-{n}").parse().expect("an id")).collect();
        let plan = SessionPlan {
            kind,
            id: SessionId::random().expect("random numbers"),
            epoch: Epoch(7),
            application: application(),
            members: ids.clone(),
            deadlines,
            fence,
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

    /// Runs a hook below a shell that calls itself CRIU, and that may therefore be stopped and killed.
    fn start_under_criu(&self, hook: Hook) -> Child {
        Command::new("sh")
            .args(["-c", "CRTOOLS_IMAGE_DIR=/proc/$$/fd/9 \"$0\"; exit $?"])
            .arg(&self.hook)
            .env_clear()
            .env("CRTOOLS_SCRIPT_ACTION", hook.as_str())
            .env("CRTOOLS_INIT_PID", self.task.id().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a shell")
    }

    fn change_ticket(&self, key: &str, value: Value) {
        let path = self.hook.with_file_name("session.json");
        let mut ticket: Value = serde_json::from_slice(&std::fs::read(&path).expect("a ticket")).expect("a ticket");
        ticket[key] = value;
        std::fs::write(path, ticket.to_string()).expect("written");
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

fn application() -> ApplicationId {
    "app".parse().expect("an id")
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The state letter of a process, or `None` if there is none.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn children(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_ascii_whitespace().map(|child| child.parse().expect("a pid")).collect()
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid.try_into().expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("a kill");
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
    let left: Vec<_> =
        std::fs::read_dir(root.path()).expect("the root").map(|entry| entry.expect("it").file_name()).collect();
    assert_eq!(left, ["fences"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_criu_that_was_not_handed_its_descriptor_freezes_nobody() {
    let deadlines = Deadlines { gather: LONG, hold: LONG };
    for handed in [true, false] {
        let mut set = Set::of(SessionKind::Dump, 2, deadlines).await;
        let (socket, other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let config = set.rendezvous.criu_config(&set.members[1].id);
        // The test stands for CRIU: it has this number itself, or another file by it.
        let number = if handed { socket.as_raw_fd() } else { other.as_raw_fd() };
        expect_handed(&config, number, &socket).expect("a note");
        let ended = set.pass(Hook::PreDump);
        assert_eq!(was_not_handed(&config), !handed);
        if handed {
            ended.iter().for_each(assert_passed);
        } else {
            let words = format!("its engine did not hand CRIU the descriptor {number}");
            ended.iter().for_each(|output| assert_refused(output, &words));
            let (member, hook, reason) = set.aborted().await;
            assert_eq!((member, hook), (Some(set.members[1].id.clone()), Some(Hook::PreDump)));
            assert!(reason.contains(&words), "{reason}");
        }
    }
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
async fn who_was_overtaken_freezes_and_releases_nobody() {
    let deadlines = Deadlines { gather: LONG, hold: LONG };
    let dump = [Hook::PreDump, Hook::NetworkLock, Hook::PostDump];
    for (kind, barriers) in [(SessionKind::Restore, BARRIERS), (SessionKind::Dump, dump)] {
        for (place, hook) in barriers.into_iter().enumerate() {
            let mut set = Set::of(kind, 2, deadlines).await;
            for before in &barriers[..place] {
                set.pass(*before).iter().for_each(assert_passed);
            }
            let waiting = set.members[0].start(hook);
            std::thread::sleep(Duration::from_millis(100));
            Fence::raise(set.root.path(), &application(), None).expect("a newer one");
            assert_refused(&end(set.members[1].start(hook)), "somebody newer acts for this application");
            let (member, at, reason) = set.aborted().await;
            assert_eq!((member, at), (Some(set.members[1].id.clone()), Some(hook)));
            assert!(reason.contains("is at 2, and this one has 1"), "{reason}");
            assert_refused(&end(waiting), "somebody newer acts");
            if hook == Hook::PreResume {
                set.members.iter_mut().for_each(Fake::assert_killed);
            } else {
                set.members.iter_mut().for_each(Fake::assert_alive);
            }
        }
    }
    // Nor does anybody who cannot know whether he was.
    let mut set = Set::restore(1).await;
    std::fs::remove_file(set.root.path().join("fences/app")).expect("a fence");
    assert_refused(&end(set.members[0].start(Hook::PreRestore)), "it is not known who may act");
    assert!(set.aborted().await.2.contains("it is not known who may act"));
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
        assert_refused(&end(members[1].start(hook)), "the session is lost");
        if hook == Hook::PreResume {
            members.iter_mut().for_each(Fake::assert_killed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn criu_stands_still_at_the_door_and_goes_on_with_the_release() {
    let set = Set::restore(2).await;
    set.pass_up_to(Hook::PreResume);
    let mut criu = set.members[0].start_under_criu(Hook::PreResume);
    wait_until("CRIU is stopped", || state(criu.id()) == Some('T'));
    assert_eq!(criu.try_wait().expect("CRIU"), None);
    assert_passed(&end(set.members[1].start(Hook::PreResume)));
    assert_passed(&end(criu));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_killed_at_the_door_takes_the_tasks_and_criu_with_it() {
    let mut set = Set::restore(2).await;
    set.pass_up_to(Hook::PreResume);
    let mut criu = set.members[0].start_under_criu(Hook::PreResume);
    wait_until("CRIU is stopped", || state(criu.id()) == Some('T'));
    let hook = children(criu.id())[0];
    kill(hook);
    assert_eq!(criu.wait().expect("CRIU").signal(), Some(9));
    set.members[0].assert_killed();
    let (member, at, _) = set.aborted().await;
    assert_eq!((member, at), (Some(set.members[0].id.clone()), Some(Hook::PreResume)));
    set.members[1].assert_alive();
    assert_refused(&end(set.members[1].start(Hook::PreResume)), "member member-0 vanished");
    set.members[1].assert_killed();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_and_its_guard_killed_at_the_door_leave_criu_standing_there() {
    let mut set = Set::restore(2).await;
    set.pass_up_to(Hook::PreResume);
    let mut criu = set.members[0].start_under_criu(Hook::PreResume);
    wait_until("CRIU is stopped", || state(criu.id()) == Some('T'));
    let hook = children(criu.id())[0];
    let guard = children(hook)[0];
    kill(guard);
    kill(hook);
    let (member, ..) = set.aborted().await;
    assert_eq!(member, Some(set.members[0].id.clone()));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((criu.try_wait().expect("CRIU"), state(criu.id())), (None, Some('T')));
    criu.kill().expect("a kill");
    criu.wait().expect("an end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_criu_that_dies_while_the_hook_waits_takes_the_tasks_with_it() {
    for hook in BARRIERS {
        let mut set = Set::restore(3).await;
        set.pass_up_to(hook);
        let waiting = set.members[1].start(hook);
        let mut criu = set.members[0].start_under_criu(hook);
        wait_until("the hook runs", || !children(criu.id()).is_empty());
        std::thread::sleep(Duration::from_millis(100));
        criu.kill().expect("a kill");
        let _ = criu.wait();
        let (member, at, _) = set.aborted().await;
        assert_eq!((member, at), (Some(set.members[0].id.clone()), Some(hook)));
        assert_refused(&end(waiting), "member member-0 vanished");
        if hook != Hook::PreRestore {
            set.members[0].assert_killed();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_ends_by_itself_if_the_rendezvous_hangs() {
    for hook in BARRIERS {
        let hold = Duration::from_millis(1_500);
        let mut set = Set::of(SessionKind::Restore, 1, Deadlines { gather: hold, hold }).await;
        let held_since = Instant::now();
        set.pass_up_to(hook);
        // In the place of the rendezvous: one that takes everything and never answers.
        let silent = set.root.path().join("silent");
        let _silent = std::os::unix::net::UnixListener::bind(&silent).expect("a socket");
        set.members[0].change_ticket("socket", silent.to_str().expect("a text").into());
        std::thread::sleep(Duration::from_millis(300));
        assert_refused(&end(set.members[0].start(hook)), "the time was up");
        let held = held_since.elapsed();
        assert!(held > hold && held < hold + Duration::from_secs(1) + Duration::from_millis(300), "{hook}: {held:?}");
        match hook {
            Hook::PreResume => set.members[0].assert_killed(),
            _ => set.members[0].assert_alive(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_whose_ticket_is_lost_still_knows_that_it_belongs_to_a_session() {
    for damage in ["removed", "broken"] {
        for hook in
            [Hook::PreDump, Hook::PostDump, Hook::PreRestore, Hook::PostRestore, Hook::PreResume, Hook::PostResume]
        {
            let mut set = Set::restore(1).await;
            let ticket = set.members[0].hook.with_file_name("session.json");
            match damage {
                "removed" => std::fs::remove_file(ticket).expect("removed"),
                _ => std::fs::write(ticket, "{").expect("written"),
            }
            assert_refused(&end(set.members[0].start(hook)), "the ticket");
            match hook {
                Hook::PreResume => set.members[0].assert_killed(),
                _ => set.members[0].assert_alive(),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_run_without_a_release_are_killed() {
    let mut set = Set::restore(2).await;
    set.pass_up_to(Hook::PreResume);
    // As if the hook at pre-resume had been lost without a trace.
    assert_refused(&end(set.members[0].start(Hook::PostResume)), "without having been released");
    set.members[0].assert_killed();
    let (member, at, _) = set.aborted().await;
    assert_eq!((member, at), (Some(set.members[0].id.clone()), Some(Hook::PostResume)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_are_gone_are_a_vote_of_no() {
    for hook in [Hook::PostRestore, Hook::PreResume] {
        let mut set = Set::restore(2).await;
        set.pass_up_to(hook);
        // A zombie, which its parent, this test, has not collected yet: CRIU's view of a task that died.
        kill(set.members[0].task.id());
        std::thread::sleep(Duration::from_millis(50));
        assert_refused(&end(set.members[0].start(hook)), "its tasks are gone");
        let (member, at, reason) = set.aborted().await;
        assert_eq!((member, at), (Some(set.members[0].id.clone()), Some(hook)), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_die_while_the_hook_waits_are_an_abort() {
    let mut set = Set::restore(2).await;
    set.pass_up_to(Hook::PreResume);
    let waiting = set.members[0].start(Hook::PreResume);
    std::thread::sleep(Duration::from_millis(100));
    kill(set.members[0].task.id());
    assert_refused(&end(waiting), "the tasks have gone");
    let (member, ..) = set.aborted().await;
    assert_eq!(member, Some(set.members[0].id.clone()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_task_is_killed_also_without_a_pid_namespace() {
    let mut set = Set::restore(1).await;
    set.pass_up_to(Hook::PreResume);
    kill(set.members[0].task.id());
    set.members[0].task.wait().expect("an end");
    set.members[0].task = Command::new("sh").args(["-c", "sleep 1000 & sleep 1000 & wait"]).spawn().expect("tasks");
    let task = set.members[0].task.id();
    wait_until("the tasks run", || children(task).len() == 2);
    let grandchildren = children(task);
    set.members[0].change_ticket("epoch", 1.into());
    assert_refused(&end(set.members[0].start(Hook::PreResume)), "epoch 1");
    set.members[0].assert_killed();
    wait_until("all are dead", || grandchildren.iter().all(|pid| matches!(state(*pid), None | Some('Z'))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_released_member_stays_released_whatever_becomes_of_the_rendezvous() {
    let set = Set::restore(1).await;
    set.pass_up_to(Hook::PostResume);
    let Set { root: _root, rendezvous, mut members } = set;
    drop(rendezvous);
    // The second run of a script that CRIU has twice.
    assert_passed(&end(members[0].start(Hook::PreResume)));
    assert_refused(&end(members[0].start(Hook::PostResume)), "the session is lost");
    members[0].assert_alive();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_waits_at_its_own_hooks_and_never_touches_the_tasks() {
    let dump = [Hook::PreDump, Hook::NetworkLock, Hook::PostDump];
    let deadlines = Deadlines { gather: LONG, hold: LONG };
    let set = Set::of(SessionKind::Dump, 3, deadlines).await;
    set.pass(Hook::PreDump).iter().for_each(assert_passed);
    set.pass(Hook::NetworkLock).iter().for_each(assert_passed);
    let mut standing: Vec<Child> = set.members.iter().map(|member| member.start(Hook::PostDump)).collect();
    assert!(set.rendezvous.to_capture().await);
    std::thread::sleep(Duration::from_millis(200));
    assert!(
        standing.iter_mut().all(|hook| hook.try_wait().expect("the hook").is_none()),
        "frozen while files are taken"
    );
    set.rendezvous.captured().await;
    standing.into_iter().map(end).for_each(|output| assert_passed(&output));
    set.pass(Hook::NetworkUnlock).iter().for_each(assert_passed);
    let Outcome::Released { timings } = set.rendezvous.outcome().await else { panic!("aborted") };
    assert!(timings.capture.is_some_and(|capture| capture.end - capture.begin >= Duration::from_millis(200)));
    assert!(!set.rendezvous.to_capture().await, "it is decided");
    for hook in dump {
        let mut set = Set::of(SessionKind::Dump, 3, deadlines).await;
        for before in dump.into_iter().take_while(|before| *before != hook) {
            set.pass(before).iter().for_each(assert_passed);
        }
        let waiting = set.members[0].start(hook);
        let mut victim = set.members[1].start(hook);
        std::thread::sleep(Duration::from_millis(100));
        victim.kill().expect("a kill");
        let _ = end(victim);
        assert_refused(&end(waiting), "member member-1 vanished");
        set.members.iter_mut().for_each(Fake::assert_alive);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_killed_during_the_capture_and_a_capture_that_takes_too_long_are_aborts() {
    let hold = Duration::from_millis(1_500);
    for killed in [true, false] {
        let deadlines = Deadlines { gather: LONG, hold: if killed { LONG } else { hold } };
        let mut set = Set::of(SessionKind::Dump, 2, deadlines).await;
        set.pass(Hook::PreDump).iter().for_each(assert_passed);
        let held_since = Instant::now();
        let waiting = set.members[0].start(Hook::PostDump);
        let mut other = set.members[1].start(Hook::PostDump);
        assert!(set.rendezvous.to_capture().await);
        let words = if killed {
            other.kill().expect("a kill");
            "member member-1 vanished"
        } else {
            "while the files of the members were captured"
        };
        assert_refused(&end(waiting), words);
        let _ = end(other);
        assert!(killed || held_since.elapsed() < hold + Duration::from_secs(1));
        set.rendezvous.captured().await;
        let (_, at, reason) = set.aborted().await;
        assert_eq!(at, Some(Hook::PostDump));
        assert!(reason.contains(words) && !set.rendezvous.to_capture().await, "{reason}");
        set.members.iter_mut().for_each(Fake::assert_alive);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_of_the_other_kind_are_silent() {
    let deadlines = Deadlines { gather: LONG, hold: LONG };
    let mut restore = Set::of(SessionKind::Restore, 1, deadlines).await;
    for hook in [Hook::PreDump, Hook::NetworkLock, Hook::PostDump, Hook::NetworkUnlock, Hook::SetupNamespaces] {
        restore.pass(hook).iter().for_each(assert_passed);
    }
    let mut dump = Set::of(SessionKind::Dump, 1, deadlines).await;
    for hook in [Hook::PreRestore, Hook::PostRestore, Hook::PreResume, Hook::PostResume] {
        dump.pass(hook).iter().for_each(assert_passed);
    }
    restore.members[0].assert_alive();
    dump.members[0].assert_alive();
}

/// CRIU gives it the folder of its images, in which a hook without a ticket looks for criu-coordinator's words.
#[test]
fn without_a_session_and_with_images_that_cannot_be_read_it_is_silent() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("written");
    let locked = folder.path().join("locked");
    std::fs::create_dir(&locked).expect("a folder");
    let nobody = std::fs::Permissions::from_mode(0o000);
    std::fs::set_permissions(&locked, nobody).expect("locked");
    let gone = PathBuf::from("/proc/1/fd/4294967295");
    for images in [folder.path().join("missing"), file, locked, gone] {
        for hook in
            ["pre-dump", "network-lock", "post-dump", "pre-restore", "post-restore", "pre-resume", "post-resume"]
        {
            let output = Command::new(PROGRAM)
                .env_clear()
                .env("CRTOOLS_SCRIPT_ACTION", hook)
                .env("CRTOOLS_IMAGE_DIR", &images)
                .output()
                .expect("the hook");
            assert_passed(&output);
            assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
        }
    }
}

#[test]
fn run_by_hand_it_says_what_it_is() {
    let output = Command::new(PROGRAM).env_remove("CRTOOLS_SCRIPT_ACTION").output().expect("the hook");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("run by CRIU"));
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
