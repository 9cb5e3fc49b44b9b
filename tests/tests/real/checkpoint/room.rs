//! Memory for which the disk has no room.

use std::fs;
use std::path::Path;

use syncpoint_tests::{Ledger, Task, run, run_failing, wait_until};

use super::Layout;
use crate::storage::Disk;

/// Where podman has CRIU write.
const CONTAINERS: &str = "/var/lib/containers/storage/overlay-containers";

#[test]
fn memory_that_does_not_fit_on_the_disk_needs_none() {
    let ledger = Ledger;
    // podman's first container would make it.
    fs::create_dir_all(CONTAINERS).unwrap();
    let disk = Disk::over(Path::new(CONTAINERS), 48);
    ledger.run("heavy", &[], &["writer", "--ballast-mib", "96"]);
    wait_until("it has filled its memory", || Task::of("heavy").counter().is_some());
    let layout = Layout::new();

    let (_, said) = run_failing(&mut layout.checkpoint("heavy", &["--pages", "disk", "heavy"]));
    println!("{said}");
    assert!(Task::of("heavy").is_alive(), "it runs on");

    run(&mut layout.checkpoint("heavy", &["heavy"]));
    ledger.wipe();
    drop(disk);

    run(&mut layout.syncpoint(["restore", &layout.tag(1), "--insecure-no-verify"]));
    let restored = Task::of("heavy");
    let at = restored.counter();
    wait_until("it carries on", || restored.counter() > at);
    ledger.wipe();
}
