//! Other people's tools on our images, and ours on theirs.

use std::fs;

use syncpoint_tests::{Ledger, MEMBERS, Registry, command, run, run_failing, syncpoint, wait_until};
use tempfile::TempDir;

use crate::setup::{Keys, Wiped, digest_of, members_of};

/// Unmodified `podman run` gets no `--tcp-established`, so these members have no connection; they only count.
#[test]
fn podman_run_restores_each_member_from_the_registry_and_refuses_the_global_checkpoint() {
    let registry = Registry::start(5001);
    let repository = registry.repository("sdp/loners");
    let ledger = Ledger::start(&[]);
    ledger.wipe();
    let dumps = TempDir::new().unwrap();
    let keys = Keys::generate();
    let mut link = vec!["link".to_owned(), "--to".into(), format!("{repository}:epoch-1")];
    link.extend(["--application", "loners", "--sign-by", &keys.private()].map(str::to_owned));
    for name in ["one", "two"] {
        run(command("podman", ["run", "--detach", "--name", name, "localhost/syncpoint-demo:1", "/bin/sh", "-c"])
            .arg("i=0; while :; do i=$((i+1)); echo count $i; /bin/busybox sleep 0.05; done"));
        wait_until("it counts", || last_count(name) > 3);
        let archive = dumps.path().join(name);
        run(&mut command("podman", ["container", "checkpoint", "--export", archive.to_str().unwrap(), name]));
        run(&mut registry.syncpoint([
            "pack",
            archive.to_str().unwrap(),
            "--to",
            &format!("{repository}:{name}"),
            "--member",
            name,
        ]));
        link.push(format!("{name}={repository}:{name}"));
    }
    run(&mut registry.syncpoint(&link));
    let before: Vec<u64> = ["one", "two"].map(last_count).into();
    ledger.wipe();

    for ((member, digest), before) in members_of(&registry, &format!("{repository}:epoch-1")).iter().zip(before) {
        run(&mut registry.tool("podman", ["run", "--detach", &format!("{repository}@{digest}")]));
        wait_until("it counts on", || last_count(member) > before + 3);
        let log = run(&mut command("podman", ["logs", member]));
        let counts: Vec<u64> = log.lines().filter_map(|line| line.split(' ').nth(1)?.parse().ok()).collect();
        assert!(
            counts.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{member} counts on from where it was: {counts:?}"
        );
    }

    let (_, said) = run_failing(&mut registry.tool("podman", ["run", "--detach", &format!("{repository}:epoch-1")]));
    assert!(said.contains("no image found"), "podman refuses the index in its own words: {said}");
}

fn last_count(container: &str) -> u64 {
    let line = run(&mut command("podman", ["logs", "--tail", "1", container]));
    line.trim().split(' ').nth(1).and_then(|count| count.parse().ok()).unwrap_or_default()
}

#[test]
fn skopeo_oras_and_cosign_work_on_the_index_and_its_members() {
    let registry = Registry::start(5002);
    let keys = Keys::generate();
    let wiped = Wiped::prepare(&registry, "sdp/ledger", &keys, &[]);
    let repository = registry.repository("sdp/ledger");
    let index = digest_of(&registry, &wiped.reference);
    let members = members_of(&registry, &wiped.reference);
    assert_eq!(members.iter().map(|(id, _)| id.as_str()).collect::<std::collections::BTreeSet<_>>(), MEMBERS.into());

    let by_oras = run(&mut registry.tool("oras", ["manifest", "fetch", &wiped.reference]));
    assert_eq!(image_format::Digest::of(by_oras.as_bytes()).to_string(), index);

    let copy = TempDir::new().unwrap();
    let to = format!("oci:{}:epoch-1", copy.path().display());
    run(&mut registry.tool("skopeo", ["copy", "--all", "--quiet", &format!("docker://{}", wiped.reference), &to]));
    run(&mut syncpoint(["inspect", &to]));

    for digest in members.iter().map(|(_, digest)| digest).chain([&index]) {
        let reference = format!("{repository}@{digest}");
        for cosign in ["cosign", "cosign3"] {
            let verify = ["verify", "--key", &keys.public(), "--insecure-ignore-tlog=true", &reference];
            run(&mut registry.tool(cosign, verify));
        }
    }
    let other = Keys::generate();
    let verify = ["verify", "--key", &other.public(), "--insecure-ignore-tlog=true", &wiped.reference];
    run_failing(&mut registry.tool("cosign", verify));
}

#[test]
fn keys_and_signatures_of_cosign_are_ours_too() {
    let registry = Registry::start(5003);
    let keys = Keys::generate();
    let wiped = Wiped::prepare(&registry, "sdp/ledger", &keys, &[]);
    let index = digest_of(&registry, &wiped.reference);
    let reference = format!("{}@{index}", registry.repository("sdp/ledger"));
    for (cosign, arguments) in [
        ("cosign", &["--tlog-upload=false"][..]),
        // Without a transparency log, since there is no network.
        ("cosign3", &["--use-signing-config=false", "--tlog-upload=false", "--new-bundle-format=true"][..]),
    ] {
        let theirs = TempDir::new().unwrap();
        run(registry.tool(cosign, ["generate-key-pair"]).current_dir(theirs.path()));
        let public = theirs.path().join("cosign.pub");
        let public = public.to_str().unwrap();
        run_failing(&mut registry.syncpoint(["verify", "--key", public, &reference]));

        // Their key, our signature, their check.
        let private = theirs.path().join("cosign.key");
        let copy = format!("{}:by-{cosign}", registry.repository("sdp/signed"));
        run(&mut registry.syncpoint(["copy", &wiped.reference, &copy]));
        run(&mut registry.syncpoint(["sign", "--key", private.to_str().unwrap(), &copy]));
        run(&mut registry.tool(cosign, ["verify", "--key", public, "--insecure-ignore-tlog=true", &copy]));

        // Their key, their signature on everything, our check.
        let private = private.to_str().unwrap();
        let sign = ["sign", "--yes", "--recursive", "--key", private].into_iter().chain(arguments.iter().copied());
        run(&mut registry.tool(cosign, sign.chain([reference.as_str()])));
        run(&mut registry.syncpoint(["verify", "--key", public, &reference]));
    }
    // Ours is still there beside theirs.
    run(&mut registry.syncpoint(["verify", "--key", &keys.public(), &reference]));
}

#[test]
fn podmans_own_policy_accepts_signed_members_and_no_others() {
    let registry = Registry::start(5004);
    let keys = Keys::generate();
    let wiped = Wiped::prepare(&registry, "sdp/ledger", &keys, &[]);
    let repository = registry.repository("sdp/ledger");
    let folder = TempDir::new().unwrap();
    let registries = folder.path().join("registries.d");
    fs::create_dir(&registries).unwrap();
    let attachments = format!("docker:\n  {}:\n    use-sigstore-attachments: true\n", registry.address());
    fs::write(registries.join("test.yaml"), attachments).unwrap();
    let other = Keys::generate();
    for (key, accepted) in [(keys.public(), true), (other.public(), false)] {
        let policy = serde_json::json!({
            "default": [{"type": "reject"}],
            "transports": {"docker": {registry.address(): [{
                "type": "sigstoreSigned", "keyPath": key, "signedIdentity": {"type": "matchRepository"}
            }]}}
        });
        let file = folder.path().join("policy.json");
        fs::write(&file, policy.to_string()).unwrap();
        for (member, digest) in members_of(&registry, &wiped.reference) {
            let to = folder.path().join(format!("{member}-{accepted}"));
            let mut copy = registry.tool("skopeo", ["copy", "--quiet"]);
            copy.args(["--policy", file.to_str().unwrap(), "--registries.d", registries.to_str().unwrap()]);
            copy.args([format!("docker://{repository}@{digest}"), format!("dir:{}", to.display())]);
            if accepted {
                run(&mut copy);
            } else {
                run_failing(&mut copy);
            }
        }
    }
}
