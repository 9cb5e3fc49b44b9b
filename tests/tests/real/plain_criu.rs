//! CRIU without an engine: `syncpoint receive` takes its dumps, `syncpoint unpack` and `serve` give them back.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use nix::sys::signal::Signal;
use syncpoint_tests::{Process, Registry, bin, command, run, run_failing, syncpoint, wait_until};
use tempfile::TempDir;

/// Memory of the process, MiB: more than `receive` is told to hold.
const BALLAST: usize = 24;
const HELD: &str = "4";

/// A process of no container, which checks its memory and counts on.
struct Lone {
    folder: TempDir,
}

impl Lone {
    fn start() -> Self {
        let lone = Self { folder: TempDir::new().unwrap() };
        let mut family = Command::new("setsid");
        family.arg("--fork").arg(bin("demo/ledger")).args(["family", "--interval-ms", "5", "--ballast-mib"]);
        family.arg(BALLAST.to_string()).args(["--state", &lone.path("state"), "--marker", &lone.path("marker")]);
        let said = fs::File::create(lone.path("said")).unwrap();
        run(family.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said));
        lone.assert_counts_from(0);
        lone
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// CRIU's folder of images, a new one.
    fn images(&self, name: &str) -> PathBuf {
        let images = self.folder.path().join(name);
        fs::create_dir(&images).unwrap();
        images
    }

    fn counter(&self) -> u64 {
        fs::read_to_string(self.path("state")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn assert_counts_from(&self, from: u64) {
        wait_until("it counts on", || self.counter() > from + 20);
        let said = fs::read_to_string(self.path("said")).unwrap();
        assert!(!said.contains("fatal"), "{said}");
    }

    /// Its first process.
    fn process(&self) -> Option<Process> {
        let mut all = Process::all();
        all.retain(|process| process.command.contains(&self.path("state")));
        let pids: Vec<i32> = all.iter().map(|process| process.pid).collect();
        all.into_iter().find(|process| !pids.contains(&process.parent))
    }

    /// `criu dump`, which ends the process.
    fn dump(&self, images: &Path, how: &[&str]) -> Command {
        let pid = self.process().unwrap().pid.to_string();
        let mut dump = command("criu", ["dump", "--shell-job", "--tree", &pid, "-o", "dump.log", "--images-dir"]);
        dump.arg(images).args(how);
        dump
    }

    fn restore(&self, images: &Path, how: &[&str]) {
        assert!(self.process().is_none(), "the dump has ended it");
        // Their numbers are free only when nobody has still to be told of their end.
        wait_until("all of them are gone", || names().all(|name| name.trim() != "ledger"));
        let at = self.counter();
        let mut restore =
            command("criu", ["restore", "--shell-job", "--restore-detached", "-o", "restore.log", "--images-dir"]);
        let restored = restore.arg(images).args(how).status().unwrap();
        assert!(restored.success(), "{}", fs::read_to_string(images.join("restore.log")).unwrap());
        self.assert_counts_from(at);
    }
}

/// The names of all processes, those that have ended and were not waited for among them.
fn names() -> impl Iterator<Item = String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok())
}

impl Drop for Lone {
    fn drop(&mut self) {
        if let Some(process) = self.process() {
            process.signal(Signal::SIGKILL);
        }
    }
}

/// A `syncpoint` that waits for CRIU.
struct Waiting {
    child: Child,
    said: BufReader<ChildStderr>,
    words: String,
}

impl Waiting {
    fn start(mut syncpoint: Command) -> Self {
        let mut child = syncpoint.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut words = String::new();
        while !words.contains("waiting for CRIU") {
            assert!(said.read_line(&mut words).unwrap() > 0, "it ended before: {words}");
        }
        Self { child, said, words }
    }

    /// The address at which it listens.
    fn port(&self) -> String {
        let address = self.words.split("at 127.0.0.1:").nth(1).unwrap();
        address.split(|found: char| !found.is_ascii_digit()).next().unwrap().to_owned()
    }

    /// Whether it succeeded, and what it said and printed.
    fn end(mut self) -> (bool, String) {
        self.said.read_to_string(&mut self.words).unwrap();
        self.child.stdout.take().unwrap().read_to_string(&mut self.words).unwrap();
        (self.child.wait().unwrap().success(), self.words)
    }
}

fn receive(registry: &Registry, images: &Path, to: &str, how: &[&str]) -> Waiting {
    let mut receive = registry.syncpoint(["receive", "--memory", HELD, "--to", to, "--images"]);
    receive.arg(images).args(how);
    Waiting::start(receive)
}

fn has_pages(images: &Path) -> bool {
    let names = fs::read_dir(images).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.into_iter().any(|name| name.starts_with("pages-"))
}

#[test]
fn a_plain_dump_over_tls_and_through_pipes_goes_on_from_the_registry() {
    let (registry, lone) = (Registry::start(5050), Lone::start());
    let first = registry.repository("plain/criu:first");
    let second = registry.repository("plain/criu:second");

    // Over TLS, with certificates of `key issue`, and only with the member's.
    let key = |name: &str| lone.path(name);
    run(&mut syncpoint(["key", "ca", "--output-prefix", &key("ca")]));
    for (whom, name) in [("--coordinator", "127.0.0.1"), ("--member", "lone"), ("--member", "other")] {
        let arguments = ["key", "issue", "--ca", &key("ca"), whom, name, "--output-prefix", &key(name)];
        run(&mut syncpoint(arguments));
    }
    let images = lone.images("first");
    let [ca, crt, own] = ["ca.crt", "127.0.0.1.crt", "127.0.0.1.key"].map(key);
    let tls = ["--tls-ca", &ca, "--tls-certificate", &crt, "--tls-key", &own];
    let listen = [&["--listen", "127.0.0.1:0", "--member", "lone"][..], &tls].concat();
    let receiving = receive(&registry, &images, &first, &listen);
    let port = receiving.port();
    let dump = |member: &str| {
        let [crt, own] = [format!("{member}.crt"), format!("{member}.key")].map(|name| key(&name));
        let server = ["--page-server", "--address", "127.0.0.1", "--port", &port, "--tls", "--tls-cacert", &ca];
        lone.dump(&images, &[&server[..], &["--tls-cert", &crt, "--tls-key", &own]].concat())
    };
    run_failing(&mut dump("other"));
    lone.assert_counts_from(lone.counter());
    let _ = fs::remove_file(images.join("stats-dump"));
    run(&mut dump("lone"));
    let (succeeded, said) = receiving.end();
    assert!(succeeded && said.contains("criu dump"), "{said}");
    assert!(!has_pages(&images), "no page was written beside the other images");

    let unpacked = lone.path("unpacked");
    run(&mut registry.syncpoint(["unpack", &first, "--to", &unpacked]));
    lone.restore(&Path::new(&unpacked).join("checkpoint"), &[]);

    // Through pipes, and only what changed is stored.
    let images = lone.images("second");
    let receiving = receive(&registry, &images, &second, &["--stream", "--member", "lone", "--base", &first]);
    run(&mut lone.dump(&images, &["--stream"]));
    let (succeeded, said) = receiving.end();
    assert!(succeeded && said.contains("pages 1.1") && said.contains("there already"), "{said}");
    assert!(!images.join("inventory.img").exists() && !has_pages(&images));

    let images = lone.images("served");
    let mut serve = registry.syncpoint(["serve", &second, "--images"]);
    serve.arg(&images);
    let serving = Waiting::start(serve);
    lone.restore(&images, &["--stream"]);
    let (succeeded, said) = serving.end();
    assert!(succeeded && said.contains("CRIU took"), "{said}");

    // No engine restores it, and it says so.
    let link = registry.repository("plain/criu:global");
    let one = format!("lone={second}");
    run(&mut registry.syncpoint(["link", "--application", "plain", "--to", &link, &one]));
    let (_, said) = run_failing(&mut registry.syncpoint(["restore", &link, "--insecure-no-verify"]));
    assert!(said.contains("a dump of criu cannot be restored with any engine here"), "{said}");
}

#[test]
fn a_plain_dump_whose_store_went_away_is_in_crius_folder() {
    let (registry, lone) = (Registry::start(5051), Lone::start());
    let to = registry.repository("plain/lost:tag");
    for (name, way, how) in [("pages", &["--listen", "127.0.0.1:0"][..], ""), ("images", &["--stream"], "--stream")] {
        let images = lone.images(name);
        let receiving = receive(&registry, &images, &to, &[way, &["--retries", "0"]].concat());
        let port = if how.is_empty() { receiving.port() } else { String::new() };
        registry.kill();
        let server = ["--page-server", "--address", "127.0.0.1", "--port", &port];
        run(&mut lone.dump(&images, if how.is_empty() { &server } else { &["--stream"] }));
        let (succeeded, said) = receiving.end();
        assert!(!succeeded && said.contains("where CRIU would have written it"), "{said}");
        assert!(has_pages(&images), "{said}");
        registry.restart();
        // As it says, and as CRIU itself would.
        run(&mut registry.syncpoint(["pack", images.to_str().unwrap(), "--to", &to]));
        lone.restore(&images, &[]);
    }
}

#[test]
fn a_plain_dump_that_fails_makes_no_image() {
    let (registry, lone) = (Registry::start(5052), Lone::start());
    let images = lone.images("failed");
    let to = registry.repository("plain/failed:tag");
    // A script of CRIU's own hooks refuses when everything has been sent.
    let refuses = lone.path("refuses");
    fs::write(&refuses, "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" != post-dump ]\n").unwrap();
    run(&mut command("chmod", ["+x", &refuses]));
    let receiving = receive(&registry, &images, &to, &["--stream", "--patience", "1"]);
    run_failing(&mut lone.dump(&images, &["--stream", "--action-script", &refuses]));
    let (succeeded, said) = receiving.end();
    assert!(!succeeded && said.contains("its dump failed"), "{said}");
    run_failing(&mut registry.syncpoint(["inspect", &to]));
    lone.assert_counts_from(lone.counter());

    // Told to stop while CRIU is at it: it takes what comes to its end, for nobody else has it.
    let images = lone.images("stopped");
    let (waits, at_it) = (lone.path("waits"), lone.path("at-it"));
    let script = format!("#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" != post-dump ] || {{ touch {at_it}; sleep 1; }}\n");
    fs::write(&waits, script).unwrap();
    run(&mut command("chmod", ["+x", &waits]));
    let mut receiving = receive(&registry, &images, &to, &["--stream"]);
    let mut dumping = lone.dump(&images, &["--stream", "--action-script", &waits]).spawn().unwrap();
    wait_until("CRIU is at it", || Path::new(&at_it).exists());
    syncpoint_tests::send(receiving.child.id().cast_signed(), Signal::SIGTERM);
    assert!(dumping.wait().unwrap().success());
    assert_eq!(receiving.child.wait().unwrap().code(), Some(130));
    lone.restore(&images, &[]);

    // Nobody comes, and it is told to stop: nothing is left.
    let images = lone.images("nobody");
    let mut waiting = receive(&registry, &images, &to, &["--stream"]);
    syncpoint_tests::send(waiting.child.id().cast_signed(), Signal::SIGTERM);
    assert_eq!(waiting.child.wait().unwrap().code(), Some(130));
    assert_eq!(fs::read_dir(&images).unwrap().count(), 0);
}
