//! Configurations of CRIU that the user wrote, for one container or for the host: they are in force at every dump and every
//! restore, beside the session's, and a restored container keeps its own.

use std::fs;
use std::path::Path;

use syncpoint_tests::{Ledger, Task, command, run, wait_until, write_script};
use tempfile::TempDir;

use super::Layout;

/// A removed file that is open and larger than CRIU takes along by itself (1 MiB), and a counter.
const GHOST: &str = "/bin/busybox dd if=/dev/zero of=/data/big bs=1M count=2 2>/dev/null; exec 3<>/data/big; \
                     /bin/busybox rm /data/big; i=0; \
                     while :; do i=$((i+1)); echo $i >/data/state; /bin/busybox sleep 0.05; done";

/// A configuration without which no container of these can be dumped, and an action script that notes when it is run.
fn configuration(folder: &Path, name: &str) -> String {
    let (script, notes) = (folder.join(format!("{name}.sh")), folder.join(name));
    write_script(&script, &format!("#!/bin/sh\necho $CRTOOLS_SCRIPT_ACTION >>{}\n", notes.display()));
    format!("# {name}\nghost-limit 8M\nlink-remap\naction-script \"{}\"", script.display())
}

#[test]
fn a_restored_container_keeps_its_configuration_of_criu_or_the_hosts() {
    let ledger = Ledger;
    ledger.wipe();
    let (layout, folder) = (Layout::new(), TempDir::new().unwrap());
    let own = folder.path().join("own.conf");
    fs::write(&own, configuration(folder.path(), "own")).unwrap();
    let host = Path::new("/etc/criu/runc.conf");
    fs::create_dir_all(host.parent().unwrap()).unwrap();
    fs::write(host, configuration(folder.path(), "host")).unwrap();
    let annotation = format!("org.criu.config={}", own.display());
    ledger.run_shell("own", &["--annotation", &annotation], GHOST);
    ledger.run_shell("host", &[], GHOST);
    let tasks = || ["own", "host"].map(Task::of);
    let count_on = |past: [Option<u64>; 2]| {
        wait_until("both count on", || tasks().iter().zip(past).all(|(task, past)| task.counter() > past));
        tasks().map(|task| task.counter())
    };
    let mut at = count_on([Some(3); 2]);
    // What was restored is checkpointed again, and that restored again.
    for (epoch, lazy) in [(1, Some("--lazy")), (2, None)] {
        run(&mut layout.checkpoint("configured", &["own", "host"]));
        at = count_on(at);
        ledger.wipe();
        for notes in ["own", "host"] {
            fs::remove_file(folder.path().join(notes)).unwrap();
        }
        run(layout.syncpoint(["restore", &layout.tag(epoch), "--insecure-no-verify"]).args(lazy));
        at = count_on(at);
        for notes in ["own", "host"] {
            let ran = fs::read_to_string(folder.path().join(notes)).unwrap_or_default();
            assert!(
                ran.contains("post-restore\n") && ran.ends_with("post-resume\n"),
                "{notes} at the restore: {ran:?}"
            );
        }
    }
    // After a lazy restore podman has another file's name, and syncpoint knows better.
    for (container, config) in [("own", own.to_str().unwrap()), ("host", "/etc/criu/runc.conf")] {
        let ask = ["inspect", "--format", r#"{{index .Config.Annotations "org.criu.config"}}"#, container];
        assert_eq!(run(&mut command("podman", ask)).trim(), config, "{container}");
    }
    for container in ["own", "host"] {
        run(&mut command("podman", ["container", "checkpoint", "--leave-running", container]));
    }
    count_on(at);
    fs::remove_file(host).unwrap();
    ledger.wipe();
}
