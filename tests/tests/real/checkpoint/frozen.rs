//! Hooks of somebody else's that leave a member frozen.

use std::fs;
use std::path::Path;

use syncpoint_tests::{Ledger, Task, wait_until, write_script};
use tempfile::TempDir;

use super::Layout;

/// CRIU finds the control group frozen when it begins, and freezes it again when it is through.
#[test]
fn a_member_that_a_hook_of_the_hosts_froze_is_let_go_and_named() {
    let ledger = Ledger;
    ledger.wipe();
    let (layout, folder) = (Layout::new(), TempDir::new().unwrap());
    let hook = folder.path().join("freeze");
    let script = "#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION = pre-dump ] || exit 0\n\
                  echo 1 >/sys/fs/cgroup$(sed -n s/^0:://p /proc/$CRTOOLS_INIT_PID/cgroup)/cgroup.freeze\n";
    write_script(&hook, script);
    let host = Path::new("/etc/criu/runc.conf");
    fs::create_dir_all(host.parent().unwrap()).unwrap();
    fs::write(host, format!("action-script {}\n", hook.display())).unwrap();
    ledger.run("writer", &[], &["writer", "--interval-ms", "10", "--print-every", "100000"]);
    let task = Task::of("writer");
    wait_until("it counts", || task.counter() > Some(3));
    let output = layout.checkpoint("hooked", &["writer"]).output().unwrap();
    fs::remove_file(host).unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    assert!(words.contains("member writer stood frozen after its release"), "{words}");
    let at = task.counter();
    wait_until("it runs on", || task.counter() > at);
    ledger.wipe();
}
