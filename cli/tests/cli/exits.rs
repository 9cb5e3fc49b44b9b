//! Command lines that make no sense, and every exit code that can be had without a registry or containers.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{SYNCPOINT, World, fixture, link, pack_members, ran};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};

#[test]
fn command_lines_that_make_no_sense() {
    let world = World::new();
    let dump = fixture("podman-plain.tar.zst");
    let mut said = String::new();
    for arguments in [
        &[][..],
        &["dump"],
        &["pack"],
        &["pack", "dump", "--to", "ledger"],
        &["pack", &dump, "--to", "oci:layout"],
        &["pack", &dump, "--to", "oci:layout:a", "--member", "a/b"],
        &["pack", &dump, "--to", "oci:layout:a", "--compression", "lz4"],
        &["pack", &dump, "--to", "oci:layout:a", "--depends-on", "b"],
        &["pack", &dump, "--to", "oci:layout:a", "--annotation", "novalue"],
        &["link", "--to", "oci:layout:a", "--application", "x"],
        &["link", "--to", "oci:layout:a", "--application", "x", "oci:layout:b"],
        &["link", "--to", "oci:layout:a", "--application", "x", "a=oci:layout:a", "a=oci:layout:b"],
        &["link", "--to", "oci:layout:a", "--application", "x", "a=oci:layout:a", "--depends-on", "b=a"],
        &["checkpoint", "--resume", "0123456789abcdef0123456789abcdef", "--stop", "--unsigned"],
        &["copy", "oci:layout", "oci:copy"],
        &["verify", "oci:layout:a"],
        &["restore", "oci:layout:a"],
        &["restore", "oci:layout:a", "--key", "k", "--insecure-no-verify"],
        &["restore", "oci:layout:a", "--insecure-no-verify", "--engine", "lxc"],
        &["verify", "--key", "k", "--insecure-no-signature", "oci:layout:a"],
        &["list", "oci:layout:a"],
        &["inspect", "dump.tar"],
        &["receive", "--to", "oci:layout:a", "--images", "."],
        &["receive", "--to", "oci:layout:a", "--images", ".", "--stream", "--listen", "127.0.0.1:0"],
        &["receive", "--to", "oci:layout:a", "--images", ".", "--stream", "--tls-ca", "ca.crt"],
        &["key"],
        &["completion", "tcsh"],
        &["-q", "-v", "list", "oci:layout"],
    ] {
        let ran = world.run(arguments);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{arguments:?}: {}", ran.err);
        let arguments = arguments.join(" ").replace(&dump, "dump.tar.zst");
        let first = ran.err.lines().take_while(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
        said += &format!("$ syncpoint {arguments}\n{first}\n\n");
    }
    assert!(!world.path("layout").exists(), "nothing was begun");
    insta::assert_snapshot!(world.redact(&said));
    // What only the format can say is said when the image is described.
    world.bad(2, &["pack", &dump, "--to", "oci:layout:a", "--created", "yesterday"]);
    // Memory is a secret.
    world.bad(2, &["receive", "--to", "oci:layout:a", "--images", ".", "--listen", "0.0.0.0:0"]);
    world.bad(2, &["pack", &dump, "--to", "oci:layout:a", "--member", "a", "--depends-on", "a"]);
    world.bad(2, &["pack", &dump, "--to", "oci:layout:a", "--annotation", "io.syncpoint.member=b"]);
}

#[test]
fn a_database_alone_does_not_say_where_memory_goes() {
    let world = World::new();
    fs::write(world.path("plan.toml"), "key = \"k\"").unwrap();
    let said = world.bad(2, &["guard", "--sdp", "--plan", "plan.toml"]);
    assert!(
        said.contains("where the Configuration DB may have memory sent") && said.contains("--any-storage"),
        "{said}"
    );
}

#[test]
fn what_is_not_there_is_3() {
    let world = World::new();
    world.bad(3, &["pack", "nowhere.tar", "--to", "oci:layout:a"]);
    world.bad(3, &["inspect", "oci:nowhere:a"]);
    world.bad(3, &["list", "oci:nowhere"]);
    world.bad(3, &["inspect", "./nowhere.tar"]);
    world.bad(3, &["sign", "--key", "nowhere.key", "oci:layout:a"]);
    world.good(&["pack", &fixture("podman-plain.tar.zst"), "--to", "oci:layout:a"]);
    world.bad(3, &["verify", "--insecure-no-signature", "oci:layout:b"]);
    let said = world.bad(3, &["inspect", "oci:layout"]);
    assert!(said.contains("latest"), "{said}");
}

#[test]
fn a_wrong_pass_phrase_is_4() {
    let world = World::new();
    world.good(&["key", "generate"]);
    world.good(&["pack", &fixture("podman-plain.tar.zst"), "--to", "oci:layout:a"]);
    let output =
        world.command(&["sign", "--key", "cosign.key", "oci:layout:a"]).env("COSIGN_PASSWORD", "guess").output();
    assert_eq!(ran(output.unwrap()).code, 4);
}

#[test]
fn what_is_damaged_is_5_to_whoever_verifies_and_6_to_others() {
    let world = World::new();
    pack_members(&world, "oci:layout");
    link(&world, "oci:layout", "epoch-1", &[]);
    let blobs = fs::read_dir(world.path("layout/blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let largest = blobs.max_by_key(|blob| blob.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&largest, bytes).unwrap();
    let said = world.bad(5, &["verify", "--insecure-no-signature", "oci:layout:epoch-1"]);
    let digest = largest.file_name().unwrap().to_str().unwrap();
    assert!(said.contains(digest), "{said}");
    world.bad(6, &["copy", "oci:layout:epoch-1", "oci:copy"]);
    assert_eq!(world.run(&["list", "oci:copy"]).out.lines().count(), 1, "no tag was set");
    let unpacked = ["consumer", "producer", "auditor"]
        .map(|id| world.run(&["unpack", "oci:layout:epoch-1", "--member", id, "--to", id]).code);
    assert!(unpacked.contains(&6), "{unpacked:?}");
    let left = fs::read_dir(world.path(""))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with('.'));
    assert_eq!(left.count(), 0, "nothing is left half-written");
}

#[test]
fn whoever_is_not_root_learns_it_first() {
    let world = World::new();
    // Nobody is asked anything: no key is read, and no registry is waited for.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let remote = format!("{}/sdp/ledger:epoch-1", silent.local_addr().unwrap());
    for (reference, how) in [("oci:nowhere:epoch-1", "--insecure-no-verify"), (&remote, "--key=nowhere.pub")] {
        let refused = ran(world.somebodys(&["restore", reference, how]).output().unwrap());
        assert_eq!(refused.code, 7, "{}", refused.err);
        for part in [reference, "cannot be restored here", "only root", "CRIU", "run it as root"] {
            assert!(refused.err.contains(part), "{part}: {}", refused.err);
        }
    }
    silent.set_nonblocking(true).unwrap();
    assert!(silent.accept().is_err(), "nothing was fetched");
}

/// Those that need root say so to others, which the test above shows.
fn as_root() -> bool {
    Uid::effective().is_root()
}

#[test]
fn what_is_not_signed_is_not_restored_and_what_lacks_an_engine_is_refused() {
    let world = World::new();
    world.good(&["key", "generate"]);
    pack_members(&world, "oci:layout");
    link(&world, "oci:layout", "epoch-1", &[]);
    let said = world.bad(
        if as_root() { 5 } else { 7 },
        &["restore", "oci:layout:epoch-1", "--key", "cosign.pub", "--work-dir", "work"],
    );
    assert!(said.contains(if as_root() { "is not signed" } else { "only root" }), "{said}");
    // Nothing but this program is on the path, and so neither podman nor CRIU.
    let mut restore = world.command(&["restore", "oci:layout:epoch-1", "--insecure-no-verify", "--work-dir", "work"]);
    let refused = ran(restore.env("PATH", world.path("")).output().unwrap());
    assert_eq!(refused.code, 7, "{}", refused.err);
    let expected = if as_root() { ["NOT VERIFIED", "podman"] } else { ["only root"; 2] };
    assert!(expected.iter().all(|part| refused.err.contains(part)), "{}", refused.err);
    assert!(!world.path("work").exists(), "nothing was touched");
}

#[test]
fn a_damaged_state_is_6_to_restore() {
    let world = World::new();
    let packed = world.good(&["pack", "--json", &fixture("podman-zstd.tar.zst"), "--to", "oci:layout:a"]);
    let packed: serde_json::Value = serde_json::from_str(&packed).unwrap();
    let layers = packed["layers"].as_array().unwrap();
    let state = layers.iter().find(|layer| layer["content"] == "state").unwrap()["digest"].as_str().unwrap();
    let blob = world.path("layout/blobs/sha256").join(state.trim_start_matches("sha256:"));
    let whole = fs::read(&blob).unwrap();
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    let restore = ["restore", "oci:layout:a", "--insecure-no-verify", "--work-dir", "work"];
    for (case, bytes) in [("a bit", changed), ("the end", whole[..whole.len() - 1].to_vec())] {
        fs::write(&blob, bytes).unwrap();
        let said = world.bad(if as_root() { 6 } else { 7 }, &restore);
        assert!(!as_root() || (said.contains("the state of") && said.contains(&state[..19])), "{case}: {said}");
    }
    fs::remove_file(&blob).unwrap();
    world.bad(if as_root() { 3 } else { 7 }, &restore);
    assert!(!world.path("work").exists(), "nothing was touched");
}

#[test]
fn what_is_no_dump_is_6() {
    let world = World::new();
    fs::write(world.path("empty"), "").unwrap();
    fs::write(world.path("text"), "some text that is no archive".repeat(100)).unwrap();
    let whole = fs::read(fixture("podman-zstd.tar.zst")).unwrap();
    fs::write(world.path("cut"), &whole[..whole.len() / 2]).unwrap();
    fs::create_dir(world.path("folder")).unwrap();
    for dump in ["empty", "text", "cut", "folder"] {
        world.bad(6, &["pack", dump, "--to", "oci:layout:a"]);
        world.bad(6, &["inspect", &format!("./{dump}")]);
    }
    assert_eq!(world.good(&["list", "oci:layout"]).lines().count(), 1);
}

#[test]
fn a_registry_that_does_not_answer_is_9() {
    let world = World::new();
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let said = world.bad(9, &["list", &format!("{address}/sdp/ledger"), "--retries", "0"]);
    assert!(said.contains(&address.to_string()), "{said}");
}

#[test]
fn a_signal_stops_it_with_130() {
    let world = World::new();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // Somebody who listens and never says anything.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let repository = format!("{}/sdp/ledger", silent.local_addr().unwrap());
        let mut child = world.command(&["list", "--plain-http", &repository]).stderr(Stdio::piped()).spawn().unwrap();
        let mut connection = accept(&silent);
        connection.read_exact(&mut [0]).unwrap();
        let start = Instant::now();
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert!(start.elapsed() < Duration::from_secs(5));
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, format!("error: stopped by {signal}\n"));
    }
}

/// The first connection, which must come soon.
fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if let Ok((connection, _)) = listener.accept() {
            connection.set_nonblocking(false).unwrap();
            return connection;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("nobody connects");
}

#[test]
fn a_reader_that_goes_away_is_141_and_quiet() {
    let world = World::new();
    for arguments in [&["completion", "bash"][..], &["--help"], &["inspect", &fixture("podman-zstd.tar.zst")]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = ran(world.command(arguments).stdout(writer).output().unwrap());
        assert_eq!((output.code, output.err.as_str()), (141, ""), "{arguments:?}");
    }
}

#[test]
fn secrets_need_a_terminal_or_a_way_round_it() {
    let world = World::new();
    // A session of its own has no terminal, wherever the test runs.
    let mut generate = world.program("setsid", &["--wait", SYNCPOINT, "key", "generate"]);
    let output = ran(generate.env_remove("COSIGN_PASSWORD").output().unwrap());
    assert_eq!(output.code, 2, "{}", output.err);
    assert!(output.err.contains("COSIGN_PASSWORD"), "{}", output.err);
    assert!(!world.path("cosign.key").exists());
}
