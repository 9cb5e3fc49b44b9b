//! Files with holes: the archives that podman extracts hold what is between them.

use syncpoint_tests::{Ledger, Task, command, run, wait_until};

use super::Layout;

/// Sparse files in all that a checkpoint takes of a container: what it wrote over its image, a volume, `/dev/shm`.
const FILES: [&str; 3] = ["/var-data", "/volume/data", "/dev/shm/data"];

#[test]
fn holes_take_no_room_in_a_checkpoint_and_files_come_back() {
    let ledger = Ledger;
    ledger.wipe();
    let layout = Layout::new();
    let make: String = FILES
        .iter()
        .map(|file| format!("/bin/busybox dd if=/bin/busybox of={file} bs=4096 count=1 seek=9999 2>/dev/null; "))
        .collect();
    let count = "i=0; while :; do i=$((i+1)); echo $i >/data/state; /bin/busybox sleep 0.05; done";
    ledger.run_shell("sparse", &["--volume", "sparse:/volume"], &format!("{make}{count}"));
    let counts = |past| {
        wait_until("it counts", || Task::of("sparse").counter() > past);
        Task::of("sparse").counter()
    };
    let sums = || {
        let sum = ["exec", "sparse", "/bin/busybox", "sha256sum"];
        run(command("podman", sum).args(FILES))
    };
    counts(Some(3));
    let before = sums();
    // Layers are not compressed here: the three files have 40 MB each.
    run(&mut layout.checkpoint("sparse", &["sparse"]));
    let size = run(&mut command("du", ["--summarize", "--bytes", layout.path("store").to_str().unwrap()]));
    let size: u64 = size.split_whitespace().next().unwrap().parse().unwrap();
    assert!(size < 8 << 20, "{size} bytes");
    let at = counts(None);
    ledger.wipe();
    run(&mut layout.syncpoint(["restore", &layout.tag(1), "--insecure-no-verify"]));
    counts(at);
    assert_eq!(sums(), before);
    ledger.wipe();
}
