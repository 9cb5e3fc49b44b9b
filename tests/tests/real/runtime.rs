//! `syncpoint-runtime` below podman, below Docker and alone: ordinary containers as ever, members restored at create and released at start.
//!
//! There is no launcher here: the tests write tickets themselves, and a session's configuration whose hook only notes that it ran.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coordinator::SessionId;
use image_format::files::{archive_folder, archive_upper};
use nix::sys::signal::Signal;
use runtime::ticket::{ANNOTATION, RUN_ROOT, RootDiff, Seat, Ticket};
use serde_json::Value;
use syncpoint_tests::{PATIENCE, Process, Task, bin, command, run, run_failing, wait_until, write_script};

use crate::setup::WorkFolder;

/// The image: busybox, and a file that the counter deletes.
const IMAGE: &str = "localhost/counter:1";

/// Counts, prints, and writes what it counted to its root filesystem and to shared memory; keeps a new file of its own open.
const COUNT: &str = "rm /etc/gone; exec 3>/held; i=0; while :; do i=$((i+1)); echo $i; echo $i >/count; \
                     echo $i >/dev/shm/count; echo $i >&3; sleep 0.05; done";

/// How long something is looked at that must not happen.
const A_WHILE: Duration = Duration::from_millis(700);

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Podman,
    Docker,
}
use Engine::{Docker, Podman};

impl Engine {
    fn command(self) -> Command {
        Command::new(match self {
            Podman => "podman",
            Docker => "docker",
        })
    }

    /// Where its containers are runc's.
    fn root(self) -> &'static str {
        match self {
            Podman => "/run/runc",
            Docker => "/run/docker/runtime-runc/moby",
        }
    }

    fn inspect(self, name: &str, format: &str) -> String {
        run(self.command().args(["inspect", "--format", format, name])).trim().to_owned()
    }

    /// The numbers that a container printed.
    fn logged(self, name: &str) -> Vec<u64> {
        run(self.command().args(["logs", name])).lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn remove(self, name: &str) {
        let time: &[&str] = if self == Podman { &["--time", "0"] } else { &[] };
        run(self.command().args(["rm", "--force", name]).args(time));
    }

    /// What it handed to its runtime, and the folder that is the container's `/dev/shm`.
    fn bundle_and_shm(self, id: &str) -> (PathBuf, PathBuf) {
        match self {
            Podman => {
                let shm = Path::new(&self.inspect(id, "{{.StaticDir}}")).join("shm");
                (self.inspect(id, "{{.OCIConfigPath}}").into(), shm)
            }
            Docker => {
                let bundle = Path::new("/run/containerd/io.containerd.runtime.v2.task/moby").join(id);
                (bundle.join("config.json"), Path::new("/var/lib/docker/containers").join(id).join("mounts/shm"))
            }
        }
    }
}

/// An engine with an image, and a dump of a counter.
struct Bed {
    folder: WorkFolder,
    engine: Engine,
}

impl Bed {
    fn make() -> Self {
        Self::with(Podman)
    }

    fn with(engine: Engine) -> Self {
        let folder = WorkFolder::new();
        let root = folder.path().join("root");
        for dir in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in ["sh", "sleep", "rm", "cat", "true", "tty"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(root.join("etc/gone"), "an image's file").unwrap();
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").unwrap();
        let tar = folder.path().join("root.tar");
        archive_folder(&root, &mut File::create(&tar).unwrap()).unwrap();
        run(engine.command().args(["import", tar.to_str().unwrap(), IMAGE]));
        Self { folder, engine }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A counter under runc, dumped beside its engine, which notices nothing, and removed later. It stands still while memory
    /// and files are taken, as in a session. Gives the last number that it had printed by then.
    fn dump(&self) -> u64 {
        let engine = self.engine;
        let mut start = engine.command();
        start.args(["run", "--detach", "--name", "before"]).args(self.options());
        run(start.args([IMAGE, "/bin/sh", "-c", COUNT]));
        wait_until("it counts", || engine.logged("before").last() > Some(&10));
        let id = engine.inspect("before", "{{.Id}}");
        let (bundle, shm) = engine.bundle_and_shm(&id);
        for dir in ["images", "dump"] {
            fs::create_dir(self.at(dir)).unwrap();
        }
        let runc = |arguments: &[&str]| command("runc", [&["--root", engine.root()], arguments].concat());
        run(&mut runc(&["pause", &id]));
        let mut dump = runc(&["checkpoint", "--leave-running", "--file-locks", "--tcp-established", "--image-path"]);
        run(dump.arg(self.at("images")).arg("--work-path").arg(self.at("dump")).arg(&id));
        fs::copy(bundle, self.at("spec.dump")).unwrap();
        let upper = PathBuf::from(engine.inspect("before", "{{.GraphDriver.Data.UpperDir}}"));
        let lower = engine.inspect("before", "{{.GraphDriver.Data.LowerDir}}");
        let lower: Vec<_> = lower.split(':').map(Path::new).collect();
        let mut tar = File::create(self.at("rootfs-diff.tar")).unwrap();
        let deleted = archive_upper(&upper, &lower, &mut tar).unwrap();
        assert_eq!(deleted, ["/etc/gone"]);
        fs::write(self.at("deleted.files"), serde_json::to_vec(&deleted).unwrap()).unwrap();
        archive_folder(&shm, &mut File::create(self.at("shm.tar")).unwrap()).unwrap();
        let last = *engine.logged("before").last().unwrap();
        run(&mut runc(&["resume", &id]));
        wait_until("it goes on", || engine.logged("before").last() > Some(&(last + 5)));
        assert_eq!(engine.inspect("before", "{{.State.Status}}"), "running", "{engine:?} noticed nothing");
        engine.remove("before");
        last
    }

    /// Docker makes `/dev/shm` with the container, unless it is told that others may share it.
    fn options(&self) -> &'static [&'static str] {
        if self.engine == Docker { &["--ipc", "shareable"] } else { &[] }
    }

    /// A session with one ticket to the dump.
    fn invite(&self) -> Invitation {
        let seat = Seat { session: SessionId::random().unwrap(), member: "counter".parse().unwrap() };
        let folder = seat.folder(Path::new(RUN_ROOT));
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&folder).unwrap();
        let (hook, hooks) = (folder.join("hook"), folder.join("hooks"));
        write_script(&hook, &format!("#!/bin/sh\necho $CRTOOLS_SCRIPT_ACTION >>{}\n", hooks.display()));
        fs::write(folder.join("criu.conf"), format!("action-script={}\n", hook.display())).unwrap();
        let work = self.at(&seat.session.to_string());
        fs::create_dir(&work).unwrap();
        let ticket = Ticket {
            version: Ticket::VERSION,
            member: seat.member.clone(),
            session: seat.session,
            images: self.at("images"),
            work,
            criu_config: folder.join("criu.conf"),
            rootfs: Some(RootDiff { tar: self.at("rootfs-diff.tar"), deleted: Some(self.at("deleted.files")) }),
            shm: Some(self.at("shm.tar")),
            spec: Some(self.at("spec.dump")),
            lazily: false,
        };
        Invitation { ticket, hooks }
    }

    /// Makes a container for a ticket, without starting anything.
    fn create(&self, invitation: &Invitation, flags: &[&str]) {
        let annotation = format!("{ANNOTATION}={}", invitation.ticket.seat());
        let mut create = if self.engine == Podman { podman(flags) } else { self.engine.command() };
        create.args(["create", "--name", "counter", "--annotation", &annotation]).args(self.options());
        create.args(if self.engine == Docker { &["--runtime", "syncpoint"][..] } else { &[] });
        run(create.args([IMAGE, "/bin/sh", "-c", COUNT]));
    }
}

/// A ticket, and what the session's hook notes.
struct Invitation {
    ticket: Ticket,
    hooks: PathBuf,
}

impl Invitation {
    fn write(self) -> Self {
        self.ticket.write(Path::new(RUN_ROOT)).unwrap();
        self
    }

    /// The hooks that CRIU ran.
    fn hooks(&self) -> Vec<String> {
        fs::read_to_string(&self.hooks).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

/// podman with our runtime.
fn podman(flags: &[&str]) -> Command {
    let mut podman = Command::new("podman");
    podman.arg("--runtime").arg(bin("syncpoint-runtime"));
    podman.args(flags.iter().flat_map(|flag| ["--runtime-flag", flag]));
    podman
}

fn runtime<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut runtime = Command::new(bin("syncpoint-runtime"));
    runtime.args(arguments);
    runtime
}

/// Everything that an attempt could have left: processes, mounts, folders of runtimes.
fn left_of(id: &str) -> Vec<String> {
    let processes =
        Process::all().into_iter().filter(|process| process.command.contains(id)).map(|found| found.command);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let is_left = |line: &&str| line.contains("criu") && line.contains(id) || line.contains(".criu.cgyard.");
    let mut left: Vec<_> = processes.chain(mounts.lines().filter(is_left).map(str::to_owned)).collect();
    let folders = fs::read_dir(Path::new(RUN_ROOT).join("runtime")).into_iter().flatten().flatten();
    // That a container has run is known until the host is started again.
    let folders = folders.map(|folder| folder.path()).filter(|path| path.extension().is_none_or(|end| end != "ran"));
    let ours = folders.map(|folder| folder.join(id));
    let theirs = [Podman, Docker].map(|engine| Path::new(engine.root()).join(id));
    left.extend(ours.chain(theirs).filter(|path| path.exists()).map(|path| path.display().to_string()));
    left
}

/// Waits until nothing is left of a container that was removed.
fn assert_gone(id: &str) {
    let start = Instant::now();
    while !left_of(id).is_empty() {
        assert!(start.elapsed() < PATIENCE, "{:?}", left_of(id));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The restored counter goes on where it was dumped, with its files.
fn assert_goes_on(engine: Engine, name: &str, last: u64) {
    wait_until("it counts on", || engine.logged(name).len() > 10);
    let numbers = engine.logged(name);
    assert!(numbers.iter().copied().eq(last + 1..=last + numbers.len() as u64), "{numbers:?} after {last}");
    let read = |path: &str| run(engine.command().args(["exec", name, "cat", path]));
    for file in ["/count", "/dev/shm/count", "/held"] {
        // A file that is just being written anew is empty for a moment.
        wait_until(&format!("{file} is past {last}"), || {
            read(file).lines().last().and_then(|line| line.parse().ok()) > Some(last)
        });
    }
    let held: Vec<u64> = read("/held").lines().filter_map(|line| line.parse().ok()).collect();
    assert!(held.iter().copied().eq(1..=held.len() as u64), "{held:?}: nothing is lost and nothing is twice");
    let (id, pid) = (engine.inspect(name, "{{.Id}}"), engine.inspect(name, "{{.State.Pid}}"));
    let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(group.contains(&id), "its control group is its engine's: {group}");
    let gone = engine.command().args(["exec", name, "cat", "/etc/gone"]).output().unwrap();
    assert!(!gone.status.success(), "what was deleted is deleted");
}

#[test]
fn an_ordinary_container_under_the_runtime_is_as_ever() {
    let bed = Bed::make();
    assert_eq!(run(podman(&[]).args(["run", "--rm", IMAGE, "sh", "-c", "echo hello"])), "hello\n");
    let failing = podman(&[]).args(["run", "--rm", IMAGE, "sh", "-c", "exit 7"]).status().unwrap();
    assert_eq!(failing.code(), Some(7));
    let mut fed = podman(&[]);
    let mut fed =
        fed.args(["run", "--rm", "-i", IMAGE, "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut fed.stdin.take().unwrap(), b"through a pipe").unwrap();
    assert_eq!(fed.wait_with_output().unwrap().stdout, b"through a pipe");
    assert!(run(podman(&[]).args(["run", "--rm", "-t", IMAGE, "tty"])).starts_with("/dev/"));
    run(podman(&[]).args(["run", "--detach", "--name", "plain", IMAGE, "/bin/sh", "-c", COUNT]));
    wait_until("it counts", || Podman.logged("plain").len() > 5);
    assert_eq!(run(&mut command("podman", ["exec", "plain", "cat", "/etc/passwd"])), "root:x:0:0:root:/:/bin/sh\n");
    let plain = Task::of("plain");
    run(&mut command("podman", ["pause", "plain"]));
    run(&mut command("podman", ["unpause", "plain"]));
    run(&mut command("podman", ["stop", "--time", "0", "plain"]));
    assert!(!plain.is_alive());
    let (code, said) = run_failing(podman(&[]).args(["run", "--rm", IMAGE, "no-such-program"]));
    assert_eq!(code, 127, "{said}");
    let id = Podman.inspect("plain", "{{.Id}}");
    run(&mut command("podman", ["rm", "plain"]));
    assert_gone(&id);
    drop(bed);
    // As the real one speaks, so does this; how much later is printed.
    let real = run(&mut command("runc", ["--version"]));
    assert_eq!(run(&mut runtime(["--version"])), real);
    let time = |program: &dyn Fn() -> Command| {
        let mut times: Vec<_> = (0..40)
            .map(|_| {
                let start = Instant::now();
                run(&mut program());
                start.elapsed()
            })
            .collect();
        times.sort();
        times[times.len() / 2]
    };
    let (ours, theirs) = (time(&|| runtime(["--version"])), time(&|| command("runc", ["--version"])));
    println!("a call: {ours:?}, of runc alone {theirs:?}");
}

#[test]
fn a_member_is_held_at_create_and_goes_on_at_start() {
    let bed = Bed::make();
    let dumped = bed.dump();
    let invitation = bed.invite().write();
    bed.create(&invitation, &[]);
    run(podman(&[]).args(["init", "counter"]));
    assert_eq!(Podman.inspect("counter", "{{.State.Status}}"), "initialized");
    let count = Path::new(&Podman.inspect("counter", "{{.GraphDriver.Data.UpperDir}}")).join("count");
    let before = fs::read_to_string(&count).unwrap();
    std::thread::sleep(A_WHILE);
    assert_eq!(fs::read_to_string(&count).unwrap(), before, "nothing is counted while it is held");
    assert_eq!(Podman.logged("counter"), [0; 0]);
    assert!(!invitation.hooks().iter().any(|hook| hook == "post-restore"), "the gate stands before the session's hook");
    let id = Podman.inspect("counter", "{{.Id}}");
    let state: Value = serde_json::from_str(&run(&mut runtime(["state", &id]))).unwrap();
    assert_eq!(state["status"], "created");
    assert_eq!(state["pid"].to_string(), Podman.inspect("counter", "{{.State.Pid}}"));
    for what in [&["exec", &id, "true"][..], &["pause", &id]] {
        let (_, said) = run_failing(&mut runtime(what.iter().copied()));
        assert!(said.contains("is restored and held"), "{said}");
    }
    run(podman(&[]).args(["start", "counter"]));
    assert_goes_on(Podman, "counter", dumped);
    let hooks = ["pre-restore", "setup-namespaces", "post-setup-namespaces", "post-restore", "network-unlock"];
    assert_eq!(invitation.hooks()[..5], hooks, "each hook of the session ran once");
    let task = Task::of("counter");
    run(&mut command("podman", ["stop", "--time", "0", "counter"]));
    assert!(!task.is_alive());
    assert_eq!(Podman.inspect("counter", "{{.State.ExitCode}}"), "137");
    // What was restored and ran starts again as any container does.
    run(podman(&[]).args(["start", "counter"]));
    wait_until("it counts anew", || Podman.logged("counter").last().is_some_and(|last| *last < dumped));
    Podman.remove("counter");
    assert_gone(&id);
}

#[test]
fn whoever_dies_while_a_member_is_held_takes_it_along() {
    let bed = Bed::make();
    let dumped = bed.dump();
    let supervisor =
        |process: &Process, id: &str| process.command.contains("@supervise") && process.command.contains(id);
    let gate = |process: &Process, id: &str| process.command.contains(&format!("{id}/gate"));
    let runc = |process: &Process, id: &str| process.command.starts_with("runc ") && process.command.contains(id);
    let criu = |process: &Process, _: &str| process.command.starts_with("criu: restore");
    type IsVictim<'v> = &'v dyn Fn(&Process, &str) -> bool;
    let victims: [(&str, IsVictim<'_>); 4] =
        [("supervisor", &supervisor), ("gate", &gate), ("runc", &runc), ("CRIU", &criu)];
    for (who, is_victim) in victims {
        println!("-- {who} is killed");
        let invitation = bed.invite().write();
        bed.create(&invitation, &[]);
        run(podman(&[]).args(["init", "counter"]));
        let (id, task) = (Podman.inspect("counter", "{{.Id}}"), Task::of("counter"));
        assert!(task.is_alive());
        Process::wait_for(who, |process| is_victim(process, &id)).signal(Signal::SIGKILL);
        if who == "supervisor" || who == "runc" || who == "gate" {
            wait_until("its tasks are gone", || !task.is_alive());
        }
        let (_, said) = run_failing(podman(&[]).args(["start", "counter"]));
        println!("{said}");
        Podman.remove("counter");
        assert!(!task.is_alive());
        assert_gone(&id);
        assert!(!invitation.hooks().iter().any(|hook| hook == "pre-resume"), "{:?}", invitation.hooks());
    }
    let invitation = bed.invite().write();
    bed.create(&invitation, &[]);
    run(podman(&[]).args(["start", "counter"]));
    assert_goes_on(Podman, "counter", dumped);
    Podman.remove("counter");
}

#[test]
fn a_member_that_is_killed_removed_or_forgotten_while_it_is_held_never_runs() {
    let bed = Bed::make();
    bed.dump();
    let removals: [&[&str]; 2] = [&["kill", "counter"], &["rm", "--force", "--time", "0", "counter"]];
    for removal in removals {
        let invitation = bed.invite().write();
        bed.create(&invitation, &[]);
        run(podman(&[]).args(["init", "counter"]));
        let (id, task) = (Podman.inspect("counter", "{{.Id}}"), Task::of("counter"));
        // podman may say that it cannot kill what does not run; that it is gone afterwards is what counts.
        let said = podman(&[]).args(removal).output().unwrap();
        println!("{removal:?}: {}{}", said.status, String::from_utf8_lossy(&said.stderr));
        let _ = command("podman", ["rm", "--force", "--time", "0", "counter"]).output();
        assert!(!task.is_alive());
        assert_gone(&id);
        assert!(!invitation.hooks().iter().any(|hook| hook == "pre-resume"));
    }
    let invitation = bed.invite().write();
    bed.create(&invitation, &["hold-seconds=1"]);
    run(podman(&["hold-seconds=1"]).args(["init", "counter"]));
    let (id, task) = (Podman.inspect("counter", "{{.Id}}"), Task::of("counter"));
    wait_until("its time is over", || !task.is_alive());
    run_failing(podman(&[]).args(["start", "counter"]));
    Podman.remove("counter");
    assert_gone(&id);
}

#[test]
fn what_a_member_may_not_bring_is_refused_by_name_before_anything_is_made() {
    let bed = Bed::make();
    bed.dump();
    let dumped = fs::read(bed.at("spec.dump")).unwrap();
    let mut doctored: Value = serde_json::from_slice(&dumped).unwrap();
    doctored["process"]["capabilities"]["bounding"].as_array_mut().unwrap().push("CAP_SYS_ADMIN".into());
    doctored["mounts"].as_array_mut().unwrap().push(serde_json::json!({"destination": "/host", "type": "bind"}));
    doctored["linux"]["seccomp"].take();
    fs::write(bed.at("spec.dump"), doctored.to_string()).unwrap();
    let invitation = bed.invite().write();
    bed.create(&invitation, &[]);
    let id = Podman.inspect("counter", "{{.Id}}");
    let (_, said) = run_failing(podman(&[]).args(["start", "counter"]));
    for word in ["counter cannot be restored", "CAP_SYS_ADMIN", "/host"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let upper = PathBuf::from(Podman.inspect("counter", "{{.GraphDriver.Data.UpperDir}}"));
    assert!(!upper.join("count").exists(), "nothing was put into it");
    assert_eq!(invitation.hooks(), [""; 0]);
    Podman.remove("counter");
    assert_gone(&id);
    // CRIU's own failure is told in CRIU's words.
    fs::write(bed.at("spec.dump"), dumped).unwrap();
    let invitation = bed.invite();
    fs::create_dir(bed.at("empty")).unwrap();
    fs::copy(bed.at("images/descriptors.json"), bed.at("empty/descriptors.json")).unwrap();
    let invitation =
        Invitation { ticket: Ticket { images: bed.at("empty"), ..invitation.ticket }, ..invitation }.write();
    bed.create(&invitation, &[]);
    let id = Podman.inspect("counter", "{{.Id}}");
    let (_, said) = run_failing(podman(&[]).args(["start", "counter"]));
    assert!(said.contains("counter was not restored") && said.contains("CRIU: "), "{said}");
    Podman.remove("counter");
    assert_gone(&id);
}

/// Docker calls create and start in one go, so a member is held there for as long as the set's barriers take.
#[test]
fn under_docker_a_member_comes_back_and_a_failed_restore_leaves_nothing() {
    let daemons = WorkFolder::new();
    let registered = format!("syncpoint={}", bin("syncpoint-runtime").display());
    run(&mut command("tests/testbed/docker", [daemons.path().to_str().unwrap(), &registered]));
    let bed = Bed::with(Docker);
    let plain = ["run", "--rm", "--runtime", "syncpoint", IMAGE, "sh", "-c", "echo hello; exit 7"];
    let plain = Docker.command().args(plain).output().unwrap();
    assert_eq!((plain.status.code(), plain.stdout.as_slice()), (Some(7), b"hello\n".as_slice()));
    let last = bed.dump();

    let invitation = bed.invite().write();
    bed.create(&invitation, &[]);
    run(Docker.command().args(["start", "counter"]));
    assert_goes_on(Docker, "counter", last);
    assert_eq!(invitation.hooks().iter().filter(|hook| *hook == "post-restore").count(), 1);
    let (id, pid) = (Docker.inspect("counter", "{{.Id}}"), Docker.inspect("counter", "{{.State.Pid}}"));
    let task = Task { container: id.clone(), pid: pid.parse().unwrap() };
    run(Docker.command().args(["stop", "--time", "0", "counter"]));
    assert!(!task.is_alive());
    assert_eq!(Docker.inspect("counter", "{{.State.ExitCode}}"), "137");
    // What was restored and ran starts again as any container does.
    run(Docker.command().args(["start", "counter"]));
    wait_until("it counts anew", || Docker.logged("counter").last().is_some_and(|count| *count < last));
    Docker.remove("counter");
    assert_gone(&id);
    // A ticket is good once: another container with the same one is no fresh start.
    bed.create(&invitation, &[]);
    let (_, said) = run_failing(Docker.command().args(["start", "counter"]));
    assert!(said.contains("there is no ticket"), "{said}");
    Docker.remove("counter");

    // CRIU is killed while the session's hook holds it, after the gate: docker start is told so.
    let invitation = bed.invite().write();
    let hook = invitation.hooks.with_file_name("hook");
    write_script(&hook, "#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != post-restore ] || exec sleep 1000\n");
    bed.create(&invitation, &[]);
    let id = Docker.inspect("counter", "{{.Id}}");
    let mut start = Docker.command();
    let start = start.args(["start", "counter"]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let barrier = Process::wait_for("the hook", |process| process.command.starts_with("sleep 1000"));
    barrier.signal_parent(Signal::SIGKILL);
    let output = start.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("was not restored"), "{said}");
    Docker.remove("counter");
    barrier.signal(Signal::SIGKILL);
    assert_gone(&id);
    assert!(!Process::all().iter().any(|process| process.command.contains("i=$((i+1))")), "no task is left");

    let invitation = bed.invite().write();
    bed.create(&invitation, &[]);
    run(Docker.command().args(["start", "counter"]));
    assert_goes_on(Docker, "counter", last);
    Docker.remove("counter");
}

/// No engine: the runtime alone, as a shim calls it.
#[test]
fn a_newer_create_ends_an_older_one_and_never_do_two_copies_run() {
    let folder = WorkFolder::new();
    let at = |name: &str| folder.path().join(name);
    let rootfs = at("bundle/rootfs");
    for dir in ["bin", "etc", "proc", "sys", "dev"] {
        fs::create_dir_all(rootfs.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    for applet in ["sh", "sleep"] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    run(command("runc", ["spec"]).current_dir(at("bundle")));
    let mut spec: Value = serde_json::from_slice(&fs::read(at("bundle/config.json")).unwrap()).unwrap();
    spec["process"]["terminal"] = false.into();
    let count = "i=0; while :; do i=$((i+1)); echo $i >/count; sleep 0.05; done";
    spec["process"]["args"] = ["/bin/sh", "-c", count].map(Value::from).to_vec().into();
    spec["root"]["readonly"] = false.into();
    fs::write(at("bundle/config.json"), spec.to_string()).unwrap();
    let quiet = |command: &mut Command| {
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{command:?}: {status}");
    };
    let bundle = at("bundle");
    let bundle = bundle.to_str().unwrap();
    let counted = || fs::read_to_string(rootfs.join("count")).ok().and_then(|count| count.trim().parse::<u64>().ok());
    quiet(&mut command("runc", ["run", "--detach", "--bundle", bundle, "c1"]));
    wait_until("it counts", || counted() > Some(5));
    let images = at("images");
    quiet(&mut command("runc", ["checkpoint", "--image-path", images.to_str().unwrap(), "c1"]));
    let _ = command("runc", ["delete", "--force", "c1"]).output();

    let invite_with = |hook: &str| {
        let seat = Seat { session: SessionId::random().unwrap(), member: "counter".parse().unwrap() };
        let session = seat.folder(Path::new(RUN_ROOT));
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&session).unwrap();
        write_script(&session.join("hook"), hook);
        fs::write(session.join("criu.conf"), format!("action-script={}\n", session.join("hook").display())).unwrap();
        spec_with(&at("bundle/config.json"), &seat);
        let work = at(&seat.session.to_string());
        fs::create_dir(&work).unwrap();
        let ticket = Ticket {
            version: Ticket::VERSION,
            member: seat.member,
            session: seat.session,
            images: images.clone(),
            work,
            criu_config: session.join("criu.conf"),
            rootfs: None,
            shm: None,
            spec: None,
            lazily: false,
        };
        ticket.write(Path::new(RUN_ROOT)).unwrap();
        ticket.work
    };
    let invite = || invite_with("#!/bin/sh\n");
    let (log, pid) = (at("log"), at("pid"));
    let create = || {
        let mut create =
            runtime(["--log", log.to_str().unwrap(), "--log-format", "json", "create", "--bundle", bundle]);
        create.args(["--pid-file", pid.to_str().unwrap(), "c1"]);
        create.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        create
    };
    let task = || Task { container: "c1".to_owned(), pid: fs::read_to_string(&pid).unwrap().parse().unwrap() };
    invite();
    quiet(&mut create());
    let older = task();
    let before = counted();
    assert!(older.is_alive());
    invite();
    quiet(&mut create());
    let newer = task();
    assert!(!older.is_alive() && newer.is_alive() && newer.pid != older.pid);
    // A create that is killed while it waits takes its attempt along.
    let work = invite_with("#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != pre-restore ] || exec sleep 1000\n");
    let work = work.to_str().unwrap();
    let mut third = create().spawn().unwrap();
    let is_its = |found: &Process| found.command.starts_with("runc ") && found.command.contains(work);
    let runc = Process::wait_for("its runc", is_its);
    third.kill().unwrap();
    third.wait().unwrap();
    wait_until("the older one and its runc are gone", || !newer.is_alive() && !runc.is_still_there());
    assert_gone("c1");
    assert_eq!(counted(), before, "nothing was counted by any of them");
    // The annotation is there, and no ticket: never a fresh start.
    assert!(!create().status().unwrap().success());
    let last = fs::read_to_string(&log).unwrap();
    let last: Value = serde_json::from_str(last.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    assert!(last["msg"].as_str().unwrap().contains("there is no ticket"), "{last}");

    invite();
    quiet(&mut create());
    let state = || -> Value { serde_json::from_str(&run(&mut runtime(["state", "c1"]))).unwrap() };
    assert_eq!(state()["status"], "created");
    quiet(&mut runtime(["start", "c1"]));
    assert_eq!(state()["status"], "running");
    wait_until("it counts on", || counted() > before);
    // It runs: a newer create of the same name is refused, and does it no harm.
    invite();
    assert!(!create().status().unwrap().success());
    assert_eq!(state()["status"], "running");
    quiet(&mut runtime(["kill", "c1", "KILL"]));
    wait_until("it is dead", || state()["status"] == "stopped");
    quiet(&mut runtime(["delete", "c1"]));
    assert_gone("c1");

    invite();
    quiet(&mut create());
    let held = task();
    quiet(&mut runtime(["delete", "--force", "c1"]));
    assert!(!held.is_alive());
    assert_gone("c1");
}

/// Writes the annotation into a bundle.
fn spec_with(path: &Path, seat: &Seat) {
    let mut spec: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    spec["annotations"][ANNOTATION] = seat.to_string().into();
    fs::write(path, spec.to_string()).unwrap();
}
