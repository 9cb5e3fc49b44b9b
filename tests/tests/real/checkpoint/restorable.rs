//! What is checkpointed can be restored; what cannot be restored is refused by name before anything is frozen.

use std::fs;

use syncpoint_tests::{Ledger, bin, command, run, run_failing, wait_until};

use super::Layout;

const APPLICATION: &str = "io.syncpoint.application=tied";

/// Busybox under the names that these tests call.
const IMAGE: &str = "localhost/syncpoint-tied:1";

/// What a container runs that does nothing: unlike `sleep`, it goes on when a freeze has interrupted it.
const IDLE: &str = "trap : TERM; while true; do sleep 1; done";

/// An empty podman with the image in it.
fn start() -> Ledger {
    let ledger = Ledger;
    ledger.wipe();
    let image = command("podman", ["image", "exists", IMAGE]).status();
    if !image.is_ok_and(|status| status.success()) {
        let root = tempfile::TempDir::new().unwrap();
        fs::create_dir_all(root.path().join("bin")).unwrap();
        fs::copy("/bin/busybox", root.path().join("bin/busybox")).unwrap();
        for name in ["sh", "sleep", "cat", "ls", "ln", "readlink"] {
            std::os::unix::fs::symlink("busybox", root.path().join("bin").join(name)).unwrap();
        }
        let tar = root.path().join("root.tar");
        run(command("tar", ["--create", "--directory"]).arg(root.path()).arg("--file").arg(&tar).arg("bin"));
        run(command("podman", ["import"]).arg(&tar).arg(IMAGE));
    }
    assert!(bin("syncpoint").exists());
    ledger
}

/// Starts a member.
fn member(name: &str, options: &[&str], script: &str) {
    let first = ["run", "--detach", "--name", name, "--label", APPLICATION];
    let script = format!("{script}; echo ready; {IDLE}");
    run(command("podman", first).args(options).args([IMAGE, "sh", "-c", &script]));
    wait_until("it is ready", || run(&mut command("podman", ["logs", name])).contains("ready"));
}

fn inside(name: &str, script: &str) -> String {
    run(&mut command("podman", ["exec", name, "sh", "-c", script]))
}

#[test]
fn links_that_lead_out_come_back_as_they_were() {
    let ledger = start();
    let layout = Layout::new();
    let links = ["/data/out", "/dev/shm/out", "/bin/out"];
    let make = links.map(|link| format!("ln -s ../../../../etc/passwd {link}")).join("; ");
    member("links", &["--volume", "links-data:/data"], &make);
    run(&mut layout.checkpoint("tied", &[]));
    ledger.wipe();
    run(&mut layout.syncpoint(["restore", &layout.tag(1), "--insecure-no-verify"]));
    for link in links {
        assert_eq!(inside("links", &format!("readlink {link}")), "../../../../etc/passwd\n", "{link}");
    }
    assert_eq!(inside("links", "ls -A /data /dev/shm").lines().filter(|line| line.contains("syncpoint")).count(), 0);
    ledger.wipe();
}

#[test]
fn what_cannot_be_restored_is_refused_before_anything_is_frozen() {
    let ledger = start();
    let layout = Layout::new();
    let folder = tempfile::TempDir::new().unwrap();
    let at = folder.path().to_str().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "s").unwrap();
    run(command("podman", ["secret", "create", "--replace", "tied-key"]).arg(&secret));
    run(&mut command("podman", ["run", "--detach", "--name", "other", IMAGE, "sh", "-c", IDLE]));
    for (number, (options, words)) in [
        (vec!["--secret", "tied-key"], "the secret tied-key is mounted at /run/secrets/tied-key"),
        (vec!["--volume", &format!("{at}:/data:O")], "an overlay volume (:O) is mounted at /data"),
        (
            vec!["--mount", &format!("type=image,source={IMAGE},destination=/img")],
            "an image (type=image) is mounted at /img",
        ),
        (vec!["--network", "container:other"], "shares its namespaces"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("tied-{number}");
        member(&name, &options, ":");
        let (code, said) = run_failing(&mut layout.checkpoint("tied", &[]));
        assert_eq!(code, 7, "{said}");
        assert!(said.contains(&format!("member {name}")) && said.contains(words), "{said}");
        run(&mut command("podman", ["rm", "--force", "--time", "0", &name]));
    }
    for name in ["tied-first", "tied-second"] {
        member(name, &["--volume", "tied-shared:/data"], ":");
    }
    let (code, said) = run_failing(&mut layout.checkpoint("tied", &[]));
    let words = "members tied-first and tied-second share the volume tied-shared";
    assert!(code == 7 && said.contains(words), "{code}: {said}");
    run(&mut command("podman", ["rm", "--force", "--time", "0", "tied-first", "tied-second"]));
    // A secret elsewhere is restored, and named where it is missing.
    member("kept", &["--secret", "tied-key,target=/etc/key"], ":");
    run(&mut layout.checkpoint("tied", &[]));
    ledger.wipe();
    run(&mut command("podman", ["secret", "rm", "tied-key"]));
    let restore = || layout.syncpoint(["restore", &layout.tag(1), "--insecure-no-verify"]);
    let (code, said) = run_failing(&mut restore());
    assert!(code == 7 && said.contains("there is no secret tied-key"), "{code}: {said}");
    run(command("podman", ["secret", "create", "tied-key"]).arg(&secret));
    run(&mut restore());
    assert_eq!(inside("kept", "cat /etc/key"), "s");
    ledger.wipe();
}

#[test]
fn members_of_a_pod_go_back_into_one() {
    let ledger = start();
    let layout = Layout::new();
    let pod = || {
        let infra = ["--infra-image", IMAGE, "--infra-command", "/bin/sleep 100000"];
        run(command("podman", ["pod", "create", "--name", "tied-pod"]).args(infra));
    };
    let remove = || run(&mut command("podman", ["pod", "rm", "--force", "--all", "--time", "0"]));
    pod();
    member("in-pod", &["--pod", "tied-pod"], ":");
    run(&mut layout.checkpoint("tied", &[]));
    remove();
    let restore = || layout.syncpoint(["restore", &layout.tag(1), "--insecure-no-verify"]);
    let (code, said) = run_failing(&mut restore());
    assert!(code == 7 && said.contains("there is no pod tied-pod"), "{code}: {said}");
    pod();
    run(&mut restore());
    let within = run(&mut command("podman", ["ps", "--pod", "--filter", "name=in-pod", "--format", "{{.PodName}}"]));
    assert_eq!(within.trim(), "tied-pod");
    remove();
    ledger.wipe();
}

#[test]
fn who_will_not_be_in_it_and_who_does_not_run_on_is_told() {
    let ledger = start();
    let layout = Layout::new();
    member("told", &["--volume", "told-data:/data"], ":");
    run(&mut command("podman", ["exec", "--detach", "told", "sh", "-c", IDLE]));
    run(&mut command("podman", ["create", "--name", "holder", "--volume", "told-data:/data", IMAGE, "sh"]));
    let output = layout.checkpoint("tied", &[]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("(sh) will not be in the checkpoint"), "{said}");
    assert!(said.contains("holder, which is no member, has the volume told-data too"), "{said}");
    ledger.wipe();

    let sleeper = ["run", "--detach", "--name", "sleeper", "--label", APPLICATION, IMAGE, "sleep", "1000"];
    run(&mut command("podman", sleeper));
    let (code, said) = run_failing(&mut layout.checkpoint("tied", &[]));
    assert!(code == 1 && said.contains("sleeper does not run any more"), "{code}: {said}");
    ledger.wipe();
}
