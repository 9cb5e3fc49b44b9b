//! The real binary in a world of its own: an empty home, an environment with nothing in it but what a test says.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

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
