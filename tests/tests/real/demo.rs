//! What the README promises first.

use syncpoint_tests::{Ledger, command, run};

#[test]
fn the_readmes_demo_runs_to_its_end() {
    let said = run(command("tests/demo/inside", [""; 0])
        .env("LEDGER", syncpoint_tests::bin("demo/ledger"))
        .stderr(std::process::Stdio::inherit()));
    assert!(said.contains("runs on from its global checkpoint"), "{said}");
    Ledger.wipe();
}

#[test]
fn the_part_of_the_demo_without_root_runs_as_another_user() {
    // `nobody` cannot write to the checkout, nor become root.
    let said = run(command("setpriv", ["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"])
        .arg(syncpoint_tests::checkout().join("tests/demo/rootless"))
        .env("TMPDIR", "/tmp")
        .stderr(std::process::Stdio::inherit()));
    assert!(said.contains("done, without root"), "{said}");
}
