//! Memory is constant: a dump of 4 GiB takes no more than a small one.

use syncpoint_tests::{Registry, bin, command, run, wait_until};
use tempfile::TempDir;

const LIMIT_KIB: u64 = 64 * 1024;

#[test]
fn pack_push_and_pull_of_4_gib_take_at_most_64_mib() {
    let registry = Registry::start(5030);
    // Not in /tmp's neighbourhood by accident: the folder must hold three times 4 GiB.
    let folder = TempDir::new_in("/var/tmp").unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (dump, unpacked) = (path("dump.tar"), path("unpacked.tar"));
    let ledger = syncpoint_tests::Ledger::start(&[]);
    ledger.wipe();
    run(command(
        "podman",
        ["run", "--detach", "--name", "heavy", "localhost/syncpoint-demo:1", "/bin/ledger", "consumer"],
    )
    .args(["--listen", "127.0.0.1:7000", "--ballast-mib", "4096"]));
    wait_until("it has filled its memory", || {
        let status = run(&mut command("podman", ["inspect", "--format", "{{.State.Pid}}", "heavy"]));
        let status = std::fs::read_to_string(format!("/proc/{}/status", status.trim())).unwrap_or_default();
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        resident.is_some_and(|resident| resident >= 4096 * 1024)
    });
    run(&mut command("podman", ["container", "checkpoint", "--compress", "none", "--export", &dump, "heavy"]));
    ledger.wipe();

    let layout = format!("oci:{}:heavy", path("layout"));
    let remote = registry.repository("sdp/heavy:heavy");
    let again = format!("oci:{}:heavy", path("again"));
    let mut peaks = Vec::new();
    for arguments in [
        &["pack", &dump, "--to", &layout][..],
        &["push", &layout, &remote],
        &["pull", &remote, &again],
        &["verify", "--insecure-no-signature", &again],
        &["unpack", &again, "--to", &unpacked, "--compression", "none"],
    ] {
        let peak = peak_kib(&registry, arguments);
        println!("{:<8}{:>8} KiB at its peak", arguments[0], peak);
        peaks.push((arguments[0], peak));
        if arguments[0] == "pack" {
            std::fs::remove_file(&dump).unwrap();
        }
    }
    assert!(peaks.iter().all(|(_, peak)| *peak <= LIMIT_KIB), "{peaks:?}");
}

/// Runs `syncpoint ARGUMENTS` and gives its peak resident memory, as GNU time measures it.
fn peak_kib(registry: &Registry, arguments: &[&str]) -> u64 {
    let peak = tempfile::NamedTempFile::new().unwrap();
    let mut time = registry.tool("time", ["--format", "%M", "--output", peak.path().to_str().unwrap(), "--"]);
    run(time.arg(bin("syncpoint")).args(arguments));
    std::fs::read_to_string(peak.path()).unwrap().trim().parse().unwrap()
}
