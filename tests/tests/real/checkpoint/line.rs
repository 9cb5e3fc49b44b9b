//! Somebody may write to the repository and has no key: what he puts there is neither restored nor signed by the owner.

use std::collections::BTreeMap;

use syncpoint_tests::{Ledger, MEMBERS, Registry, run, run_failing};
use tempfile::TempDir;

use crate::forge::forge;
use crate::setup::{Keys, digest_of, members_of};

#[test]
fn memory_that_nobody_signed_comes_into_no_checkpoint() {
    let registry = Registry::start(5048);
    let keys = Keys::generate();
    let repository = registry.repository("sdp/planted");
    let ledger = Ledger::start(&["--ballast-mib", "4"]);
    let (key, public) = (keys.private(), keys.public());
    let checkpoint = || {
        let checkpoint = ["checkpoint", "--application", "ledger", "--to", &repository, "--sign-by", &key];
        let output = registry.syncpoint(checkpoint).args(["--compression", "none"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    checkpoint();

    // The next epoch, with one page of one member changed. Each of its blobs is what its digest says.
    let first = format!("{repository}:epoch-1");
    let members: BTreeMap<_, _> = members_of(&registry, &first).into_iter().collect();
    let folder = TempDir::new().unwrap();
    let layout = folder.path().join("layout");
    let oci = format!("oci:{}", layout.display());
    let genuine = format!("{repository}@{}", members["producer"]);
    run(&mut registry.syncpoint(["copy", &genuine, &format!("{oci}:genuine")]));
    forge(&layout, "genuine", "forged");
    let planted = format!("{repository}:epoch-2");
    let mut link = registry.syncpoint(["link", "--to", &planted, "--application", "ledger", "--epoch", "2"]);
    for member in MEMBERS {
        let image =
            if member == "producer" { format!("{oci}:forged") } else { format!("{repository}@{}", members[member]) };
        link.arg(format!("{member}={image}"));
    }
    run(&mut link);
    let verify = ["verify", "--insecure-no-signature", &planted];
    let (code, said) = run_failing(&mut registry.syncpoint(verify));
    assert!(code == 5 && said.contains("member producer cannot be restored"), "{said}");

    let said = checkpoint();
    assert!(said.contains("the tag epoch-2 is passed over") && said.contains("epoch 3 is the next"), "{said}");
    let third = format!("{repository}:epoch-3");
    run(&mut registry.syncpoint(["verify", "--key", &public, &third]));
    let pinned = format!("{repository}@{}", digest_of(&registry, &third));
    run(&mut registry.tool("cosign", ["verify", "--key", &public, "--insecure-ignore-tlog=true", &pinned]));

    let furthest = ledger.said().into_iter().max().unwrap_or_default();
    ledger.wipe();
    let (code, said) = run_failing(&mut registry.syncpoint(["restore", "--key", &public, &planted]));
    assert_eq!(code, 5, "{said}");
    let resume = || {
        let output =
            registry.syncpoint(["resume", "ledger", "--from", &repository, "--key", &public]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    resume();
    ledger.counters_past(furthest);

    // A checkpoint of the line that lost a member gives way to the one before, over the planted one.
    let lost: BTreeMap<_, _> = members_of(&registry, &third).into_iter().collect();
    let lost = format!("docker://{repository}@{}", lost["auditor"]);
    run(&mut registry.tool("skopeo", ["delete", &lost]));
    ledger.wipe();
    let said = resume();
    assert!(said.contains("epoch 3 is passed over"), "{said}");
    ledger.counters_past(0);
}
