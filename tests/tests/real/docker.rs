//! `syncpoint checkpoint` of containers of Docker, which notices nothing of it.

use std::fs;

use serde_json::Value;
use syncpoint_tests::{Docker, MEMBERS, bin, run, run_failing, wait_until};

use crate::checkpoint::Layout;
use crate::checkpoint::instant::Counters;
use crate::setup::Keys;

/// How far each member of the demo is.
fn counters(docker: &Docker) -> Vec<u64> {
    MEMBERS.iter().map(|member| docker.task(member).counter().expect("its counter is there")).collect()
}

fn runs_on(docker: &Docker, past: &[u64]) {
    wait_until("the application runs on", || counters(docker).iter().zip(past).all(|(now, past)| now > &(past + 5)));
}

/// One entry of `syncpoint inspect --json`.
fn facts_of<'a>(inspected: &'a Value, member: &str) -> &'a Value {
    let members = inspected["members"].as_array().expect("a list of members");
    let found = members.iter().find(|found| found["id"] == member).expect("the member is listed");
    &found["facts"]
}

#[test]
fn an_application_of_docker_is_checkpointed_and_runs_on() {
    let docker = Docker::start(&[]);
    docker.start_demo();
    let (layout, keys) = (Layout::new(), Keys::generate());
    let connections: Vec<_> = MEMBERS.iter().map(|member| docker.task(member).connections()).collect();
    docker.run(&["exec", "auditor", "/bin/sh", "-c", "echo kept >/kept"]);

    // By name, and by what compose labels its containers with, in any engine and in Docker.
    let sign = ["--sign-by", &keys.private(), "--key", &keys.public()];
    let checkpoint = |more: &[&str]| {
        let store = layout.store();
        let mut checkpoint = layout.syncpoint(["checkpoint", "--application", "ledger", "--to", &store]);
        checkpoint.args(sign).args(["--compression", "none"]).args(more);
        checkpoint
    };
    for by in [&["--engine", "docker", "consumer", "producer", "auditor"][..], &[], &["--engine", "docker"]] {
        let before = counters(&docker);
        run(&mut checkpoint(by));
        runs_on(&docker, &before);
    }
    let now: Vec<_> = MEMBERS.iter().map(|member| docker.task(member).connections()).collect();
    assert_eq!(now, connections, "no connection was lost");
    let listed = docker.run(&["ps", "--format", "{{.Names}} {{.State}}"]);
    assert_eq!(listed.lines().filter(|line| line.ends_with(" running")).count(), 3, "{listed}");
    let line = docker.run(&["logs", "--tail", "1", "producer"]);
    assert!(line.starts_with("producer "), "{line}");
    assert_eq!(docker.run(&["exec", "producer", "/bin/sh", "-c", "echo here"]), "here\n");

    run(&mut syncpoint_tests::syncpoint(["verify", &layout.tag(2), "--key", &keys.public()]));
    let inspected = run(&mut syncpoint_tests::syncpoint(["inspect", "--json", &layout.tag(2)]));
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    let facts = facts_of(&inspected, "consumer");
    assert_eq!((&facts["kind"], &facts["container_name"]), (&"docker".into(), &"consumer".into()), "{facts}");
    assert_eq!(facts["rootfs_image_name"], "syncpoint-demo:1");
    assert_eq!(facts["named_volumes"][0], "ledger-data");
    assert_eq!(facts["networks"][0]["static_ips"][0], "10.90.0.10");
    assert_eq!(facts["labels"]["com.docker.compose.service"], "consumer");
    let version = docker.run(&["version", "--format", "{{.Server.Version}}"]);
    assert_eq!(facts["engine_version"], version.trim());
    assert_eq!(facts["connections"].as_array().map(Vec::len), Some(2));
    let made_up = facts_of(&inspected, "producer")["named_volumes"][0].as_str().unwrap_or_default();
    assert_eq!(made_up.len(), 64, "an anonymous volume has a name, too");

    // What was written is in it, and other people's tools read it.
    let archive = layout.path("auditor.tar");
    let unpack = ["unpack", &layout.tag(2), "--member", "auditor", "--compression", "none", "--to"];
    run(syncpoint_tests::syncpoint(unpack).arg(&archive));
    let content = |name: &str| run(syncpoint_tests::command("tar", ["-xOf", archive.to_str().unwrap()]).arg(name));
    let described: Value = serde_json::from_str(&content("container.json")).unwrap();
    assert_eq!((&described["name"], &described["network-mode"]), (&"auditor".into(), &"syncpoint-demo".into()));
    let spec: Value = serde_json::from_str(&content("spec.dump")).unwrap();
    assert_eq!(spec["process"]["args"][1], "auditor");
    let shown = run(&mut syncpoint_tests::command("checkpointctl", ["show", archive.to_str().unwrap()]));
    assert!(shown.contains("syncpoint-demo:1"), "{shown}");
    let diff = layout.path("rootfs-diff.tar");
    let extract = ["-xOf", archive.to_str().unwrap(), "rootfs-diff.tar"];
    fs::write(&diff, syncpoint_tests::command("tar", extract).output().unwrap().stdout).unwrap();
    let kept = run(&mut syncpoint_tests::command("tar", ["-xOf", diff.to_str().unwrap(), "./kept"]));
    assert_eq!(kept, "kept\n");

    // Podman may not take it for one of its own, and nobody restores what runs.
    let restore = ["restore", &layout.tag(2), "--key", &keys.public()];
    let (code, words) = run_failing(layout.syncpoint(restore).args(["--engine", "podman"]));
    assert!(code == 7 && words.contains("a dump of docker"), "{code}: {words}");
    let (code, words) = run_failing(&mut layout.syncpoint(restore));
    assert!(code == 7 && words.contains("consumer"), "{code}: {words}");
}

/// `/dev/shm` is Docker's where others may share it, and the runtime's otherwise, so that CRIU
/// takes it.
#[test]
fn files_of_docker_and_memory_are_of_one_instant() {
    let docker = Docker::start(&[]);
    let layout = Layout::new();
    let counts = ["writer", "--interval-ms", "0", "--print-every", "100000"];
    let kept = ["--state", "/counter", "--marker", "/dev/shm/ledger", "--copy", "/data/state"];
    let options = ["--ipc", "shareable", "--volume", "writer-data:/data", "--label", "io.syncpoint.application=writer"];
    docker.start_ledger("writer", &options, &[&counts[..], &kept].concat());
    wait_until("it counts", || docker.task("writer").counter() > Some(1000));
    let archive = layout.path("writer.tar");
    for round in 1..=5 {
        run(&mut layout.checkpoint("writer", &[]));
        let unpack = ["unpack", &layout.tag(round), "--member", "writer", "--compression", "none", "--to"];
        run(syncpoint_tests::syncpoint(unpack).arg(&archive));
        let counters = Counters::read(&archive);
        assert!(counters.are_of_one_instant(), "round {round}: {counters:?}");
        fs::remove_file(&archive).unwrap();
    }
    docker.wipe();

    docker.start_ledger("alone", &["--label", "io.syncpoint.application=alone"], &["writer", "--interval-ms", "10"]);
    docker.run(&["exec", "alone", "/bin/sh", "-c", "echo kept >/dev/shm/kept"]);
    run(&mut layout.syncpoint(["checkpoint", "--application", "alone", "--unsigned", "--to", &other_store(&layout)]));
    let tag = format!("{}:epoch-1", other_store(&layout));
    let unpack = ["unpack", &tag, "--member", "alone", "--compression", "none", "--to"];
    run(syncpoint_tests::syncpoint(unpack).arg(&archive));
    let path = archive.to_str().unwrap();
    let script = format!(
        "for image in $(tar -tf {path} | grep tmpfs-dev); do tar -xOf {path} $image | tar -xzOf - ./kept 2>/dev/null; done; true"
    );
    assert_eq!(run(&mut syncpoint_tests::command("sh", ["-c", &script])), "kept\n");
}

fn other_store(layout: &Layout) -> String {
    format!("oci:{}", layout.path("other").display())
}

#[test]
fn a_docker_that_is_not_there_has_no_containers_and_is_named_when_it_is_asked_for() {
    let layout = Layout::new();
    let (code, words) = run_failing(&mut layout.checkpoint("ledger", &["nobody"]));
    assert!(code != 0 && words.contains("there is no container nobody"), "{words}");
    let (_, words) = run_failing(&mut layout.checkpoint("ledger", &["--engine", "docker", "nobody"]));
    assert!(words.contains("Docker does not answer"), "{words}");
    let docker = Docker::start(&[]);
    let (_, words) = run_failing(&mut layout.checkpoint("ledger", &["--engine", "docker", "nobody"]));
    assert!(words.contains("there is no container nobody in docker"), "{words}");
    // Containers outlive their daemon, but whoever asks for one then gets no guess.
    docker.start_ledger("writer", &[], &["writer", "--interval-ms", "10"]);
    let task = docker.task("writer");
    docker.kill("dockerd");
    let (_, words) = run_failing(&mut layout.checkpoint("ledger", &["--engine", "docker", "writer"]));
    assert!(words.contains("Docker does not answer"), "{words}");
    docker.restart();
    assert!(task.is_alive() && task.pid == docker.task("writer").pid);
}

#[test]
fn an_application_of_docker_comes_back_through_docker() {
    let docker = Docker::start(&[("syncpoint", &bin("syncpoint-runtime"))]);
    docker.start_demo();
    let layout = Layout::new();
    let connections = |docker: &Docker| MEMBERS.map(|member| docker.task(member).connections());
    let connected = connections(&docker);
    docker.run(&["exec", "auditor", "/bin/sh", "-c", "echo kept >/kept; echo shared >/dev/shm/shared"]);
    run(&mut layout.checkpoint("ledger", &["--engine", "docker", "consumer", "producer", "auditor"]));
    let before = counters(&docker);
    docker.wipe();

    run(&mut layout.syncpoint(["restore", &layout.tag(1), "--insecure-no-verify"]));
    runs_on(&docker, &before);
    assert_eq!(connections(&docker), connected, "the same connections");
    let listed = docker.run(&["ps", "--format", "{{.Names}} {{.State}} {{.Image}}"]);
    for member in MEMBERS {
        assert!(listed.contains(&format!("{member} running syncpoint-demo:1")), "{listed}");
        wait_until("it prints", || docker.run(&["logs", "--tail", "1", member]).starts_with(member));
    }
    let said = "/bin/busybox cat /kept /dev/shm/shared";
    assert_eq!(docker.run(&["exec", "auditor", "/bin/sh", "-c", said]), "kept\nshared\n");
    // What was restored is checkpointed and stopped like any other.
    run(&mut layout.checkpoint("ledger", &["--engine", "docker", "consumer", "producer", "auditor"]));
    docker.run(&["stop", "-t", "0", "consumer", "producer", "auditor"]);
    // What `docker ps` shows follows what `docker stop` has seen.
    wait_until("all are stopped", || docker.run(&["ps", "--quiet"]).is_empty());
}
