//! The real binary in a world of its own: an empty home, an environment with nothing in it but what a test says.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::unistd::Uid;
use tempfile::TempDir;

/// The user and the group that own nothing, by their numbers.
const NOBODY: u32 = 65534;

/// The program.
pub const SYNCPOINT: &str = env!("CARGO_BIN_EXE_syncpoint");

/// A folder in which commands run, which is also their home.
pub struct World {
    dir: TempDir,
}

/// What a command did.
pub struct Ran {
    /// Exit code; -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl World {
    pub fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command that was not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.program(SYNCPOINT, arguments)
    }

    /// Another program in the same world, not started yet.
    pub fn program(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env_clear().env("HOME", self.dir.path()).env("COSIGN_PASSWORD", "test");
        command
    }

    /// A file of `fixtures/dumps` in a place where everybody may read it.
    pub fn open_fixture(&self, name: &str) -> String {
        let path = self.path(Path::new(name).file_name().unwrap().to_str().unwrap());
        fs::write(&path, fs::read(fixture(name)).unwrap()).unwrap();
        open_up(&path, 0o644);
        path.to_str().unwrap().to_owned()
    }

    /// A command of somebody who is not root, in a folder and home of their own: of `nobody` where the test is root, else
    /// of whoever runs the test.
    pub fn somebodys(&self, arguments: &[&str]) -> Command {
        let (home, program) = (self.path("somebody"), self.path("program"));
        open_up(self.dir.path(), 0o755);
        if !home.exists() {
            fs::create_dir(&home).unwrap();
            // The program itself may lie where nobody else comes. Copied by a process of its own: one that another thread forks
            // while this one writes has the file open for writing until it runs its own program, and nobody can run it so long.
            let copied = Command::new("cp").arg(SYNCPOINT).arg(&program).status().unwrap();
            assert!(copied.success());
        }
        let mut command = self.program(program.to_str().unwrap(), arguments);
        if Uid::effective().is_root() {
            chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
            command.uid(NOBODY).gid(NOBODY);
        }
        command.current_dir(&home).env("HOME", &home);
        command
    }

    /// Runs to the end, whatever that is.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        ran(self.command(arguments).output().unwrap())
    }

    /// Runs, and must succeed. Gives standard output.
    pub fn good(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, 0, "{arguments:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    /// Runs, and must fail with `code`. Gives standard error.
    pub fn bad(&self, code: i32, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, code, "{arguments:?}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains("error: "), "{arguments:?}: {}", ran.err);
        ran.err
    }

    /// The text without what changes from run to run: this folder's name, and digests.
    pub fn redact(&self, text: &str) -> String {
        redact_hex(&text.replace(self.dir.path().to_str().unwrap(), "$DIR"))
    }
}

/// Runs to the end, and gives the largest memory that it ever had resident, in bytes.
///
/// The kernel's own count goes with the process and then includes what the test had before it became the program, so it is
/// read while it runs: some thousand times a second, which is faster than memory of any account can be filled. A process that is still
/// becoming the program has the name and the memory of the test.
pub fn run_watched(mut command: Command) -> (Ran, u64) {
    let program = Path::new(command.get_program()).file_name().unwrap().to_str().unwrap().to_owned();
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let output = thread::spawn(move || child.wait_with_output().unwrap());
    let mut peak = 0;
    while !output.is_finished() {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let value = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let kib = value("VmHWM:").filter(|_| value("Name:") == Some(&program));
        let kib = kib.and_then(|kib| kib.strip_suffix(" kB")?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or_default() << 10);
        thread::sleep(Duration::from_micros(500));
    }
    (ran(output.join().unwrap()), peak)
}

fn open_up(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

pub fn ran(output: Output) -> Ran {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let ran = Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) };
    assert!(ran.code != 101 && !ran.err.contains("panicked"), "{}", ran.err);
    ran
}

/// Runs of 12 or 64 hexadecimal digits become names, the same digits always the same name.
fn redact_hex(text: &str) -> String {
    let mut names: Vec<String> = Vec::new();
    let mut redacted = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        let (before, from) = rest.split_at(start);
        let length = from.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(from.len());
        let (word, after) = from.split_at(length);
        redacted += before;
        let hex = word.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c));
        if hex && matches!(word.len(), 12 | 64) {
            let known = names.iter().position(|name| *name == word[..12]).unwrap_or_else(|| {
                names.push(word[..12].to_owned());
                names.len() - 1
            });
            redacted += &format!("<{}{}>", if word.len() == 64 { "digest " } else { "short " }, known + 1);
        } else {
            redacted += word;
        }
        rest = after;
    }
    redacted + rest
}

/// A file of `fixtures/dumps`.
pub fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/dumps").join(name).canonicalize().unwrap();
    path.to_str().unwrap().to_owned()
}

/// The three members of the fixture, in the order in which they start, each with what it depends on.
pub const MEMBERS: [(&str, &str); 3] = [("consumer", ""), ("producer", "consumer"), ("auditor", "consumer,producer")];

/// Packs the three members into `layout`, tagged with their ids.
pub fn pack_members(world: &World, layout: &str) {
    for (id, depends_on) in MEMBERS {
        let (dump, to) = (fixture(&format!("set/{id}.tar.zst")), format!("{layout}:{id}"));
        world.good(&["pack", &dump, "--to", &to, "--member", id, "--depends-on", depends_on]);
    }
}

/// Links what [`pack_members`] packed, with further arguments.
pub fn link(world: &World, layout: &str, tag: &str, more: &[&str]) -> String {
    let to = format!("{layout}:{tag}");
    let members = MEMBERS.map(|(id, _)| format!("{id}={layout}:{id}"));
    let mut arguments = vec!["link", "--to", &to, "--application", "ledger"];
    arguments.extend(more);
    arguments.extend(members.iter().map(String::as_str));
    world.good(&arguments)
}
