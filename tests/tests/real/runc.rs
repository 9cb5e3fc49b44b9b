//! `syncpoint restore` of members of runc, without podman.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use image_format::files::remove_tree;
use nix::sys::signal::Signal;
use syncpoint_tests::{Process, Registry, command, run, run_failing, wait_until};

use crate::setup::{Keys, WorkFolder, files_below};

/// Containers of runc, dumped, made into a global checkpoint, and gone. Each depends on those before it.
pub struct Lone {
    members: &'static [&'static str],
    registry: Registry,
    keys: Keys,
    folder: WorkFolder,
    reference: String,
}

impl Lone {
    pub fn prepare(port: u16, members: &'static [&'static str]) -> Self {
        let (registry, keys, folder) = (Registry::start(port), Keys::generate(), WorkFolder::new());
        let reference = registry.repository("sdp/lone:epoch-1");
        let mut link = vec!["link".to_owned(), "--to".into(), reference.clone()];
        link.extend(["--application", "lone", "--sign-by", &keys.private()].map(str::to_owned));
        for (number, member) in members.iter().enumerate() {
            let (bundle, image) = (folder.path().join(member), folder.path().join("image"));
            make_bundle(&bundle, number);
            dump(member, &bundle, &image);
            let to = registry.repository(&format!("sdp/lone:{member}"));
            let (image, config) = (image.to_str().unwrap(), bundle.join("config.json"));
            let pack = ["pack", image, "--bundle", config.to_str().unwrap(), "--to", &to, "--member", member];
            run(registry.syncpoint(pack).args(["--depends-on", &members[..number].join(",")]));
            remove_tree(image.as_ref()).unwrap();
            link.push(format!("{member}={to}"));
        }
        run(&mut registry.syncpoint(&link));
        Self { members, registry, keys, folder, reference }
    }

    /// A restore with a work folder of its own.
    pub fn restore(&self) -> Command {
        let key = self.keys.public();
        let mut restore = self.registry.syncpoint(["restore", &self.reference, "--key", &key, "--attempts", "1"]);
        restore.arg("--work-dir").arg(self.work_dir());
        for member in self.members {
            restore.args(["--bundle", &format!("{member}={}", self.folder.path().join(member).display())]);
        }
        restore
    }

    fn work_dir(&self) -> std::path::PathBuf {
        self.folder.path().join("work")
    }

    pub fn assert_runs(&self) {
        for member in self.members {
            let state = run(&mut command("runc", ["state", member]));
            assert!(state.contains("\"running\""), "{state}");
        }
    }

    pub fn wipe(&self) {
        self.members.iter().for_each(|member| drop(run(&mut command("runc", ["delete", "--force", member]))));
    }
}

/// A bundle of the demo's consumer, which listens on a port of its own in a network of its own.
fn make_bundle(bundle: &Path, number: usize) {
    let listen = format!("127.0.0.1:{}", 7000 + number);
    bundle_of(bundle, &["consumer", "--listen", &listen]);
}

/// A bundle of the ledger with these arguments, in a network of its own.
pub fn bundle_of(bundle: &Path, ledger: &[&str]) {
    let rootfs = bundle.join("rootfs");
    for dir in ["bin", "data", "proc", "dev", "sys"] {
        fs::create_dir_all(rootfs.join(dir)).unwrap();
    }
    fs::copy(syncpoint_tests::bin("demo/ledger"), rootfs.join("bin/ledger")).unwrap();
    run(command("runc", ["spec"]).current_dir(bundle));
    let config = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = [&["/bin/ledger"], ledger].concat().into();
    spec["root"]["readonly"] = false.into();
    fs::write(&config, spec.to_string()).unwrap();
}

/// Runs the bundle until it counts, and dumps it.
fn dump(member: &str, bundle: &Path, image: &Path) {
    run(command("runc", ["run", "--detach", "--bundle", bundle.to_str().unwrap(), member])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null()));
    wait_until("it wrote its state", || bundle.join("rootfs/data/state").exists());
    run(command("runc", ["checkpoint", "--image-path", image.to_str().unwrap(), member]).stdin(Stdio::null()));
    let _ = command("runc", ["delete", "--force", member]).output();
}

#[test]
fn runc_members_are_restored_without_podman() {
    let lone = Lone::prepare(5015, &["lone"]);
    run(&mut lone.restore());
    lone.assert_runs();
    lone.wipe();
}

/// CRIU mounts the control groups into its work folder while it restores; killed there, it leaves them.
#[test]
fn a_criu_of_runc_that_is_killed_leaves_nothing_in_the_way() {
    let lone = Lone::prepare(5017, &["first", "second"]);
    for round in 0..2 {
        let mut restore = lone.restore();
        let launcher = restore.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The second is held back, so that the first waits at its hook.
        let second = Process::wait_for("the second's runc", |process| {
            process.command.starts_with("runc ")
                && process.command.contains(" restore ")
                && process.command.ends_with("second ")
        });
        second.signal(Signal::SIGSTOP);
        let hook = Process::wait_for("the first's hook", |process| process.is_hook("first", "pre-restore"));
        let mounted = mounts_below(&lone.work_dir());
        hook.signal_parent(Signal::SIGKILL);
        second.signal(Signal::SIGCONT);
        let output = launcher.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(8), "round {round}: {said}");
        assert!(said.contains("first") && !said.contains("not taken away"), "round {round}: {said}");
        println!("round {round}: {} mounts in the work folder when CRIU was killed", mounted.len());
        assert_eq!(mounts_below(&lone.work_dir()), [""; 0], "round {round}");
        let left: Vec<_> = files_below(&lone.work_dir()).into_iter().filter(|path| path.is_dir()).collect();
        assert!(left.is_empty(), "round {round}: {left:?}");
        assert!(!Process::all().iter().any(|process| process.command.starts_with("/bin/ledger")), "round {round}");
    }
    run(&mut lone.restore());
    lone.assert_runs();
    // The names are taken now.
    let (code, said) = run_failing(&mut lone.restore());
    assert_eq!(code, 7, "{said}");
    lone.wipe();
}

/// The mount points in a folder.
fn mounts_below(dir: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(dir)).map(str::to_owned).collect()
}
