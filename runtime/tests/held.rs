//! The program itself, with a stand-in for the real runtime: what is held, released, killed and left, without root or CRIU.
//!
//! The stand-in restores a process that sleeps, and runs the action script as CRIU does.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use coordinator::SessionId;
use runtime::ticket::{ANNOTATION, Seat, Ticket};
use serde_json::{Value, json};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

const STAND_IN: &str = r#"#!/bin/bash
top=$(dirname "$0")
echo "$*" >>"$top/calls"
id=${*: -1}
while (($# > 0)) && [[ $1 == -* ]]; do
  case $1 in --log | --log-format | --root) shift 2 ;; *) shift ;; esac
done
case $1 in
restore)
  [[ ! -e $top/broken ]] || { echo '{"level":"error","msg":"criu failed: it is broken"}' >>"$top/work/runtime.log"; exit 1; }
  sleep 1000 900>&- >/dev/null 2>&1 </dev/null &
  init=$!
  mkdir "$top/root/$id" && echo $init >"$top/root/$id/pid"
  [[ ! -e $top/slow ]] || sleep 1000
  gate=$(sed -n 's/^action-script=//p' "$CRIU_CONFIG_FILE" | tail -n 1)
  export CRTOOLS_INIT_PID=$init CRTOOLS_IMAGE_DIR=/proc/$$/fd/9
  if [[ ! -e $top/without-gate ]]; then
    CRTOOLS_SCRIPT_ACTION=post-restore sh -c "$gate" || { kill -9 $init; rm -r "$top/root/$id"; exit 1; }
  fi
  echo ran >>"$top/ran"
  ;;
state) [[ -e $top/root/$id ]] && echo "{\"id\":\"$id\",\"status\":\"running\",\"pid\":$(<"$top/root/$id/pid")}" ;;
delete) kill -9 "$(cat "$top/root/$id/pid")" 2>/dev/null; rm -rf "$top/root/$id" ;;
fail) exit 7 ;;
esac
"#;

struct Bed {
    top: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let bed = Self { top: tempfile::tempdir().unwrap() };
        for dir in ["run", "root", "bundle", "images", "work"] {
            fs::DirBuilder::new().mode(0o700).create(bed.at(dir)).unwrap();
        }
        fs::write(bed.at("stand-in"), STAND_IN).unwrap();
        fs::set_permissions(bed.at("stand-in"), fs::Permissions::from_mode(0o755)).unwrap();
        bed
    }

    fn at(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    /// A call of the program.
    fn call(&self, arguments: &[&str]) -> Command {
        let mut call = Command::new(env!("CARGO_BIN_EXE_syncpoint-runtime"));
        call.arg("--real-runtime").arg(self.at("stand-in")).arg("--run-root").arg(self.at("run"));
        call.arg("--root").arg(self.at("root")).args(arguments).stdin(Stdio::null());
        call
    }

    /// Runs a call; standard output goes nowhere where a container would keep it open.
    fn run(&self, arguments: &[&str]) -> Output {
        let errors = tempfile::NamedTempFile::new().unwrap();
        let mut call = self.call(arguments);
        if arguments.contains(&"create") {
            call.stdout(Stdio::null()).stderr(errors.reopen().unwrap());
            let status = call.status().unwrap();
            return Output { status, stdout: Vec::new(), stderr: fs::read(errors.path()).unwrap() };
        }
        call.output().unwrap()
    }

    fn succeeds(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8_lossy(&ran.stdout).into_owned()
    }

    fn fails(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(1), "{arguments:?}: {said}");
        said
    }

    /// Writes a ticket, and its annotation into the bundle.
    fn invite(&self) -> Seat {
        let seat = Seat { session: SessionId::random().unwrap(), member: "m".parse().unwrap() };
        let folder = seat.folder(&self.at("run"));
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&folder).unwrap();
        fs::write(folder.join("criu.conf"), "").unwrap();
        let config = json!({"root": {"path": "rootfs"}, "annotations": {ANNOTATION: seat.to_string()}});
        fs::write(self.at("bundle/config.json"), config.to_string()).unwrap();
        let ticket = Ticket {
            version: Ticket::VERSION,
            member: seat.member.clone(),
            session: seat.session,
            images: self.at("images"),
            work: self.at("work"),
            criu_config: folder.join("criu.conf"),
            rootfs: None,
            shm: None,
            spec: None,
            lazily: false,
        };
        ticket.write(&self.at("run")).unwrap();
        seat
    }

    fn create<'a>(&self, bundle: &'a str, pid: &'a str) -> [&'a str; 6] {
        ["create", "--bundle", bundle, "--pid-file", pid, "c"]
    }

    /// Restores and holds; gives the first process.
    fn hold(&self) -> u32 {
        self.invite();
        let (bundle, pid) = (self.at("bundle"), self.at("pid"));
        self.succeeds(&self.create(bundle.to_str().unwrap(), pid.to_str().unwrap()));
        fs::read_to_string(pid).unwrap().parse().unwrap()
    }

    fn config(&self) -> String {
        fs::read_to_string(self.at("bundle/config.json")).unwrap()
    }

    fn ran(&self) -> bool {
        self.at("ran").exists()
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.at("calls")).unwrap_or_default()
    }

    /// How many tickets nobody took.
    fn tickets(&self) -> usize {
        let sessions = fs::read_dir(self.at("run")).unwrap().flatten();
        sessions.filter(|session| Path::new(&session.path()).join("m/ticket.json").exists()).count()
    }

    /// Nothing of the container is there any more.
    fn assert_gone(&self, init: u32) {
        wait_until("it is gone", || !is_alive(init) && !self.at("root/c").exists() && self.notes().is_empty());
        assert!(!self.config().contains("org.criu.config"), "the bundle is as it was");
    }

    /// The folders of containers that are held.
    fn notes(&self) -> Vec<PathBuf> {
        let roots = fs::read_dir(self.at("run/runtime")).into_iter().flatten().flatten().map(|root| root.path());
        let roots = roots.filter(|root| root.extension().is_none_or(|end| end != "ran"));
        roots.flat_map(|root| fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path())).collect()
    }

    /// The process whose arguments hold these words.
    fn process(&self, words: &str) -> Option<u32> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let top = self.top.path().to_str().unwrap();
        let says = |pid: &u32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            command.contains(top) && command.contains(words)
        };
        pids.filter(|pid| is_alive(*pid)).find(says)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = self.run(&["delete", "--force", "c"]);
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "it never came to this: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn what_is_none_of_its_business_is_the_real_runtimes() {
    let bed = Bed::new();
    fs::write(bed.at("bundle/config.json"), r#"{"annotations":{"a":"b"}}"#).unwrap();
    let bundle = bed.at("bundle");
    let lines = [
        vec!["--debug", "create", "--bundle", bundle.to_str().unwrap(), "c"],
        vec!["start", "c"],
        vec!["kill", "--all", "c", "9"],
        vec!["exec", "-t", "c", "sh", "-c", "a b"],
        vec!["--version"],
        vec![],
    ];
    for line in &lines {
        bed.succeeds(line);
        let expected = [&["--root", bed.at("root").to_str().unwrap()], &line[..]].concat().join(" ");
        assert_eq!(bed.calls().lines().last(), Some(&*expected));
    }
    assert_eq!(bed.run(&["fail"]).status.code(), Some(7));
    assert!(bed.notes().is_empty());
    let mut missing = Command::new(env!("CARGO_BIN_EXE_syncpoint-runtime"));
    let missing = missing.args(["--real-runtime", "/no/such", "state", "c"]).output().unwrap();
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/no/such cannot be run"));
}

#[test]
fn it_is_held_at_create_and_runs_from_start_on() {
    let bed = Bed::new();
    let init = bed.hold();
    assert!(is_alive(init) && !bed.ran());
    let state: Value = serde_json::from_str(&bed.succeeds(&["state", "c"])).unwrap();
    assert_eq!((state["status"].as_str(), state["pid"].as_u64()), (Some("created"), Some(init.into())));
    for what in ["exec", "pause", "resume", "checkpoint", "update", "ps"] {
        assert!(bed.fails(&[what, "c"]).contains("is restored and held"), "{what}");
    }
    assert!(bed.config().contains("org.criu.config"));
    bed.succeeds(&["start", "c"]);
    assert!(is_alive(init) && bed.ran() && bed.notes().is_empty());
    assert!(!bed.config().contains("org.criu.config"), "the bundle is as it was");
    let state: Value = serde_json::from_str(&bed.succeeds(&["state", "c"])).unwrap();
    assert_eq!(state["status"], "running");
    bed.succeeds(&["delete", "--force", "c"]);
    bed.assert_gone(init);
    // It ran: a later create is what it is for any container.
    let (bundle, pid) = (bed.at("bundle"), bed.at("pid"));
    let create = bed.create(bundle.to_str().unwrap(), pid.to_str().unwrap());
    bed.succeeds(&create);
    assert!(bed.calls().ends_with(&format!("{}\n", create.join(" "))), "{}", bed.calls());
    // Held and given up, it is none that ran.
    bed.hold();
    bed.succeeds(&["delete", "c"]);
    assert!(bed.fails(&create).contains("there is no ticket"));
}

#[test]
fn kill_and_delete_of_what_is_held_leave_nothing() {
    let bed = Bed::new();
    for line in [&["kill", "c", "TERM"][..], &["delete", "c"], &["delete", "--force", "c"]] {
        let init = bed.hold();
        bed.succeeds(line);
        assert!(!is_alive(init) && !bed.ran() && bed.notes().is_empty(), "{line:?}");
        bed.assert_gone(init);
    }
}

#[test]
fn whoever_is_killed_takes_it_along() {
    let bed = Bed::new();
    // The stand-in is runc and CRIU in one.
    for who in ["@supervise", "/gate", "stand-in"] {
        let init = bed.hold();
        kill(bed.process(who).unwrap_or_else(|| panic!("{who} is there")));
        // What is left of a supervisor that was killed is taken away by whoever comes next.
        wait_until("start is refused", || {
            bed.run(&["start", "c"]).status.code() == Some(1) || !bed.at("root/c").exists()
        });
        bed.succeeds(&["delete", "--force", "c"]);
        bed.assert_gone(init);
        assert!(!bed.ran(), "{who}");
    }
    let init = bed.hold();
    bed.succeeds(&["start", "c"]);
    assert!(bed.ran() && is_alive(init));
}

#[test]
fn a_create_that_is_killed_leaves_nothing() {
    let bed = Bed::new();
    bed.invite();
    fs::write(bed.at("slow"), "").unwrap();
    let (bundle, pid) = (bed.at("bundle"), bed.at("pid"));
    let create = bed.create(bundle.to_str().unwrap(), pid.to_str().unwrap());
    let mut create = bed.call(&create).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("it restores", || bed.at("root/c/pid").exists());
    create.kill().unwrap();
    create.wait().unwrap();
    wait_until("its notes are gone", || bed.notes().is_empty());
    assert!(!bed.at("root/c").exists() && bed.process("stand-in").is_none() && !pid.exists() && !bed.ran());
}

#[test]
fn a_newer_create_ends_the_older_attempt() {
    let bed = Bed::new();
    let older = bed.hold();
    let newer = bed.hold();
    assert!(!is_alive(older) && is_alive(newer) && !bed.ran());
    // Two at once: one of them is held in the end.
    let bundle = bed.at("bundle");
    let creates: Vec<_> = (0..2)
        .map(|number| {
            bed.invite();
            let pid = bed.at(&format!("pid{number}"));
            let line = bed.create(bundle.to_str().unwrap(), pid.to_str().unwrap());
            let mut create = bed.call(&line);
            let said = fs::File::create(bed.at(&format!("said{number}"))).unwrap();
            let child = create.stdout(Stdio::null()).stderr(said).spawn().unwrap();
            // It has read its bundle once its ticket is taken.
            wait_until("the ticket is taken", || bed.tickets() == 0);
            child
        })
        .collect();
    for mut create in creates {
        create.wait().unwrap();
    }
    let alive: Vec<_> = (0..2)
        .filter_map(|number| fs::read_to_string(bed.at(&format!("pid{number}"))).ok()?.parse().ok())
        .filter(|pid| is_alive(*pid))
        .collect();
    let said = (0..2).map(|number| fs::read_to_string(bed.at(&format!("said{number}"))).unwrap()).collect::<String>();
    assert!(!is_alive(newer) && alive.len() == 1, "{alive:?} {said}");
    bed.succeeds(&["start", "c"]);
    assert_eq!(fs::read_to_string(bed.at("ran")).unwrap(), "ran\n");
}

#[test]
fn what_goes_wrong_is_told_and_never_a_fresh_start() {
    let bed = Bed::new();
    let (bundle, pid, log) = (bed.at("bundle"), bed.at("pid"), bed.at("log"));
    let create = bed.create(bundle.to_str().unwrap(), pid.to_str().unwrap());
    let create = [&["--log", log.to_str().unwrap(), "--log-format", "json"], &create[..]].concat();
    let seat = bed.invite();
    fs::write(bed.at("broken"), "").unwrap();
    assert!(bed.fails(&create).contains("m was not restored") && !pid.exists());
    let logged = fs::read_to_string(&log).unwrap();
    let logged: Value = serde_json::from_str(logged.lines().last().unwrap()).unwrap();
    assert!(logged["msg"].as_str().unwrap().contains("criu failed: it is broken"), "{logged}");
    fs::remove_file(bed.at("broken")).unwrap();
    assert!(bed.fails(&create).contains("there is no ticket"));
    assert!(!bed.calls().contains(" create "), "the real runtime was never asked to create anything");

    // A CRIU that does not know of the gate: what it let run is ended.
    bed.invite();
    fs::write(bed.at("without-gate"), "").unwrap();
    assert!(bed.fails(&create).contains("could not be held"));
    assert!(!bed.at("root/c").exists() && bed.notes().is_empty());
    fs::remove_file(bed.at("without-gate")).unwrap();
    fs::remove_file(bed.at("ran")).unwrap();

    let config = json!({"annotations": {ANNOTATION: "../../etc"}});
    fs::write(bed.at("bundle/config.json"), config.to_string()).unwrap();
    assert!(bed.fails(&create).contains("SESSION/MEMBER"));
    let run = ["run", "--bundle", bundle.to_str().unwrap(), "c"];
    assert!(bed.fails(&run).contains("create and start it"));

    // Somebody else's container of that id stays what it is.
    bed.invite();
    fs::create_dir(bed.at("root/c")).unwrap();
    assert!(bed.fails(&create).contains("there is a container c already"));
    assert!(bed.at("root/c").exists() && bed.notes().is_empty());
    fs::remove_dir(bed.at("root/c")).unwrap();
    drop(seat);
}

#[test]
fn it_is_not_held_for_ever() {
    let bed = Bed::new();
    bed.invite();
    let (bundle, pid) = (bed.at("bundle"), bed.at("pid"));
    let create = bed.create(bundle.to_str().unwrap(), pid.to_str().unwrap());
    bed.succeeds(&[&["--hold-seconds", "1"], &create[..]].concat());
    let init = fs::read_to_string(&pid).unwrap().parse().unwrap();
    assert!(is_alive(init));
    bed.assert_gone(init);
    assert!(!bed.ran());
}
