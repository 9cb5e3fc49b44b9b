//! What is checkpointed can be restored; what cannot be restored is refused by name before anything is frozen.

use std::fs;

use syncpoint_tests::{Ledger, Registry, bin, command, run, run_failing, wait_until};

use super::Layout;
use crate::setup::{Keys, members_of};

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
        for name in ["sh", "sleep", "cat", "ls", "ln", "readlink", "chown", "chmod", "stat"] {
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

#[test]
fn volumes_come_back_once_with_their_options_and_labels() {
    let ledger = start();
    let layout = Layout::new();
    let folder = tempfile::TempDir::new().unwrap();
    let device = format!("device={}", folder.path().display());
    let create = |more: &[&str]| run(command("podman", ["volume", "create"]).args(more));
    create(&["--label", "made=by-hand", "tied-shared"]);
    create(&["--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=2M,uid=7", "tied-tmpfs"]);
    create(&["--opt", "type=none", "--opt", "o=bind", "--opt", &device, "tied-bind"]);
    let shared = ["--volume", "tied-shared:/shared"];
    let own = ["--volume", "tied-tmpfs:/tmpfs", "--volume", "tied-bind:/bind", "--volume", "/anonymous"];
    let write = "echo 1 >/shared/a; echo 2 >/tmpfs/b; echo 3 >/bind/c; echo 4 >/anonymous/d; chmod 1701 /tmpfs";
    member("first", &[&shared[..], &own[..]].concat(), write);
    let write = "echo 5 >/shared/e; chown 3:4 /shared; chmod 751 /shared; ln -s ../../../../x /shared/out";
    member("second", &shared, write);
    run(&mut layout.checkpoint("tied", &[]));
    ledger.wipe();
    run(&mut layout.syncpoint(["restore", &layout.tag(1), "--insecure-no-verify"]));
    for name in ["first", "second"] {
        let seen = inside(name, "cat /shared/a /shared/e; readlink /shared/out; stat -c '%u %g %a' /shared");
        assert_eq!(seen, "1\n5\n../../../../x\n3 4 751\n", "{name}");
    }
    assert_eq!(inside("first", "echo 6 >/shared/f; cat /tmpfs/b /bind/c /anonymous/d"), "2\n3\n4\n");
    assert_eq!(inside("second", "cat /shared/f"), "6\n", "they share it still");
    assert_eq!(inside("first", "stat -c '%u %a' /tmpfs"), "7 1701\n");
    let inspect = |what: &str, name: &str| {
        run(&mut command("podman", ["volume", "inspect", "--format", what, name])).trim().to_owned()
    };
    assert_eq!(inspect("{{.Labels.made}}", "tied-shared"), "by-hand");
    assert_eq!(inspect("{{.Options.o}} {{.Options.type}}", "tied-tmpfs"), "size=2M,uid=7 tmpfs");
    assert_eq!(inspect("{{.Options.device}}", "tied-bind"), folder.path().display().to_string());
    assert!(inside("first", "cat /proc/mounts").lines().any(|line| line.starts_with("tmpfs /tmpfs ")));
    // What is restored can be checkpointed again, and its volumes go away when no container has
    // them.
    run(&mut layout.checkpoint("tied", &[]));
    run(&mut command("podman", ["rm", "--force", "--all", "--time", "0"]));
    let volumes = run(&mut command("podman", ["volume", "ls", "--quiet"]));
    run(command("podman", ["volume", "rm"]).args(volumes.lines()));
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains("/volumes/"), "nothing stays mounted");
    run(&mut layout.syncpoint(["restore", &layout.tag(2), "--insecure-no-verify"]));
    assert_eq!(inside("second", "cat /shared/f"), "6\n");
    ledger.wipe();
}

#[test]
fn a_restore_that_fails_takes_away_the_volumes_that_it_made_and_no_other() {
    let ledger = start();
    let layout = Layout::new();
    let shared = ["--volume", "tied-shared:/shared"];
    member("first", &[&shared[..], &["--volume", "tied-own:/own"]].concat(), "echo 1 >/shared/a");
    member("second", &shared, ":");
    run(&mut layout.checkpoint("tied", &[]));
    ledger.wipe();
    run(&mut command("podman", ["volume", "create", "tied-bystander"]));
    let volumes = || run(&mut command("podman", ["volume", "ls", "--quiet"]));

    // One that is there already is in the way before anything is made.
    run(&mut command("podman", ["volume", "create", "tied-shared"]));
    let (code, said) = run_failing(&mut layout.syncpoint(["restore", &layout.tag(1), "--insecure-no-verify"]));
    assert!(code == 7 && said.contains("there is a volume tied-shared already"), "{code}: {said}");
    assert_eq!(volumes(), "tied-bystander\ntied-shared\n");
    run(&mut command("podman", ["volume", "rm", "tied-shared"]));

    // CRIU's hooks say no, once the volumes are made. The second attempt makes them again.
    let restore = &mut layout.syncpoint(["restore", &layout.tag(1), "--insecure-no-verify", "--attempts", "2"]);
    let (code, said) = run_failing(restore.env("SYNCPOINT_HOOK", "/bin/false"));
    assert!(code == 8 && said.contains("attempt 1 failed") && !said.contains("cannot be made"), "{code}: {said}");
    assert_eq!(volumes(), "tied-bystander\n", "{said}");
    assert_eq!(run(&mut command("podman", ["ps", "--all", "--quiet"])), "");
    run(&mut layout.syncpoint(["restore", &layout.tag(1), "--insecure-no-verify"]));
    assert_eq!(inside("second", "cat /shared/a"), "1\n");
    ledger.wipe();
}

/// What makes room takes a volume of two members away once, and only when the checkpoint brings it
/// back.
#[test]
fn a_preempted_application_whose_members_share_a_volume_comes_back() {
    let ledger = start();
    let (layout, keys) = (Layout::new(), Keys::generate());
    let shared = ["--volume", "tied-shared:/shared"];
    member("first", &shared, "echo 1 >/shared/a");
    member("second", &shared, ":");
    let podman = |arguments: &[&str]| run(&mut command("podman", arguments));
    let private = keys.private();
    let preempt = || layout.syncpoint(["preempt", "tied", "--to", &layout.store(), "--sign-by", &private]);

    podman(&["create", "--name", "other", "--volume", "tied-shared:/data", IMAGE, "sh"]);
    let (code, said) = run_failing(&mut preempt());
    assert!(code == 7 && said.contains("volume tied-shared is held by container other too"), "{code}: {said}");
    assert_eq!(inside("second", "cat /shared/a"), "1\n", "nothing was touched");
    podman(&["rm", "other"]);

    run(&mut preempt());
    assert_eq!((podman(&["ps", "--all", "--quiet"]), podman(&["volume", "ls", "--quiet"])), Default::default());
    run(&mut layout.syncpoint(["resume", "tied", "--from", &layout.store(), "--key", &keys.public()]));
    for name in ["first", "second"] {
        assert_eq!(inside(name, "cat /shared/a"), "1\n", "{name}");
    }
    ledger.wipe();
}

/// `podman run` restores each member alone: the first one has the content of the volume that they
/// share, and another one finds it empty, or as the first one has it.
#[test]
fn podman_restores_members_that_share_a_volume_one_by_one() {
    let ledger = start();
    let (layout, registry) = (Layout::new(), Registry::start(5100));
    let repository = registry.repository("sdp/tied");
    let reference = format!("{repository}:epoch-1");
    let shared = ["--volume", "tied-shared:/shared"];
    member("first", &shared, "echo 1 >/shared/a");
    member("second", &shared, ":");
    run(&mut layout.checkpoint("tied", &[]));
    run(&mut registry.syncpoint(["push", &layout.tag(1), &reference]));
    let members = members_of(&registry, &reference);
    let image = |name: &str| {
        let (_, digest) = members.iter().find(|(member, _)| member == name).unwrap();
        format!("{repository}@{digest}")
    };
    let podman = |arguments: &[&str], name: &str| {
        run(registry.tool("podman", arguments).arg(image(name)));
    };
    ledger.wipe();
    podman(&["run", "--detach"], "second");
    assert_eq!(inside("second", "ls -A /shared"), "");
    ledger.wipe();
    podman(&["run", "--detach"], "first");
    podman(&["container", "restore", "--ignore-volumes"], "second");
    for name in ["first", "second"] {
        assert_eq!(inside(name, "cat /shared/a"), "1\n", "{name}");
    }
    ledger.wipe();
}
