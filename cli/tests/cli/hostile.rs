//! Input that means harm, or is broken, at the level of the command. Each case must end with the right exit code and an
//! error that names what is wrong, write nothing outside its target, and need no more memory than good input.
//!
//! The crates' own tests have more cases of every kind; here it is shown that what they refuse, the program refuses.

mod documents;
mod layout;
mod registries;
mod tars;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Ran, World, run_watched};

/// What no command may need, in bytes: the same bound as for large dumps.
const MEMORY: u64 = 64 << 20;

/// A world with a folder `in`, which holds what is hostile, and a folder `out`, in which commands run.
struct Arena {
    world: World,
}

impl Arena {
    fn new() -> Self {
        let world = World::new();
        fs::create_dir(world.path("in")).unwrap();
        fs::create_dir(world.path("out")).unwrap();
        // What a link or name that leaves its folder could read or write.
        fs::write(world.path("outside"), "as it was").unwrap();
        Self { world }
    }

    fn input(&self, name: &str) -> PathBuf {
        self.world.path("in").join(name)
    }

    fn output(&self, name: &str) -> PathBuf {
        self.world.path("out").join(name)
    }

    /// Runs a command, within memory, in an empty `out`. Nothing may change anywhere else.
    fn run(&self, case: &str, arguments: &[&str]) -> Ran {
        let out = self.world.path("out");
        fs::remove_dir_all(&out).unwrap();
        fs::create_dir(&out).unwrap();
        let before = files_below(&self.world.path(""));
        let mut command = self.world.command(arguments);
        command.current_dir(&out);
        let (ran, peak) = run_watched(command);
        assert!(peak <= MEMORY, "{case}: {arguments:?} took {peak} bytes");
        let after: BTreeSet<_> = files_below(&self.world.path(""))
            .into_iter()
            .filter(|path| !path.starts_with(&out) || *path == out)
            .collect();
        assert_eq!(after, before, "{case}: {arguments:?} wrote outside");
        assert_eq!(fs::read_to_string(self.world.path("outside")).unwrap(), "as it was", "{case}: {arguments:?}");
        ran
    }

    /// Runs a command, which must end with `code` and words that hold all of `says`, and not with a page of them.
    fn ends(&self, case: &str, code: i32, says: &[&str], arguments: &[&str]) {
        let ran = self.run(case, arguments);
        assert_eq!(ran.code, code, "{case}: {arguments:?}: {}{}", ran.out, ran.err);
        assert!(code == 0 || ran.err.contains("error: "), "{case}: {arguments:?}: {}", ran.err);
        let said = ran.out + &ran.err;
        for part in says {
            assert!(said.contains(part), "{case}: {arguments:?} does not say {part:?}: {said}");
        }
        assert!(said.len() < 4096, "{case}: {arguments:?} says too much: {said:.4096}");
        assert!(!said.contains("content of a file"), "{case}: {arguments:?} tells what is in memory: {said}");
    }

    /// What a command left in `out`, by name.
    fn left(&self) -> Vec<PathBuf> {
        let out = self.world.path("out");
        files_below(&out).into_iter().filter(|path| *path != out).collect()
    }

    /// That a layout in `out`, if there is one, names nothing.
    fn assert_untagged(&self, case: &str) {
        let index = fs::read_to_string(self.output("layout/index.json")).unwrap_or_default();
        assert!(!index.contains("digest"), "{case}: {index}");
    }
}

/// Everything below a folder, and the folder; links are not followed.
fn files_below(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::from([dir.to_owned()]);
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files_below(&entry.path())),
            false => drop(found.insert(entry.path())),
        }
    }
    found
}
