//! What this machine is: processor, kernel, CRIU, room on its disks.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use engine::{Program, ProgramError};
use rustix::fs::{Access, access};

use crate::host::Host;

/// What this machine is.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) root: bool,
    /// In the words of the OCI image specification.
    pub(crate) architecture: String,
    pub(crate) kernel: String,
    /// The flags of the first processor in /proc/cpuinfo; `None` if the kernel does not list any.
    pub(crate) cpu_flags: Option<BTreeSet<String>>,
    /// CRIU's version, or why it cannot be run.
    pub(crate) criu: Result<String, String>,
}

impl Machine {
    /// Looks at this machine.
    pub(crate) async fn look(host: &Host) -> Self {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        let criu = match &host.criu {
            Some(version) => Ok(version.clone()),
            None => criu_version().await.map_err(|error| error.to_string()),
        };
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            root: host.root,
            architecture: oci_architecture(std::env::consts::ARCH).to_owned(),
            kernel,
            cpu_flags: cpu_flags(&cpuinfo),
            criu,
        }
    }
}

/// Room on one file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) device: u64,
    pub(crate) available: u64,
}

impl Room {
    /// On the file system of `path`, which need not be there yet.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let there = existing(path);
        let facts = rustix::fs::statvfs(there)?;
        Ok(Self { device: fs::metadata(there)?.dev(), available: facts.f_bavail.saturating_mul(facts.f_frsize) })
    }
}

/// The path itself, or the nearest folder above it that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// Whether files can be made in this folder, or the folder itself if it is not there.
pub(crate) fn check_writable(path: &Path) -> Result<(), String> {
    let there = existing(path);
    if !there.is_dir() {
        return Err(format!("{} is no folder", there.display()));
    }
    access(there, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| error.to_string())
}

/// Whether this is a program.
pub(crate) fn check_program(path: &Path) -> Result<(), String> {
    match fs::metadata(path) {
        Err(error) => Err(error.to_string()),
        Ok(facts) if !facts.is_file() => Err("it is no file".to_owned()),
        Ok(_) => access(path, Access::EXEC_OK).map_err(|error| error.to_string()),
    }
}

/// Whether every path is there; gives those that are not.
pub(crate) fn missing<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> BTreeSet<PathBuf> {
    paths.into_iter().filter(|path| !path.exists()).cloned().collect()
}

/// Rust's name for an architecture, as the OCI image specification (Go) calls it.
fn oci_architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

fn cpu_flags(cpuinfo: &str) -> Option<BTreeSet<String>> {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")?.trim_start().strip_prefix(':'))?;
    Some(line.split_ascii_whitespace().map(str::to_owned).collect())
}

/// `Version: 4.2.1`, the first line of `criu --version`.
async fn criu_version() -> Result<String, ProgramError> {
    let answer = Program::new("criu", ["--version"]).answer().await?;
    Ok(criu_version_in(&String::from_utf8_lossy(&answer)))
}

fn criu_version_in(answer: &str) -> String {
    let version = answer.lines().find_map(|line| line.strip_prefix("Version:"));
    version.unwrap_or_default().trim().to_owned()
}

/// The numbers at the start of a version: `6.18.44-fc` is 6, 18, 44.
pub(crate) fn numbers(version: &str) -> Vec<u64> {
    let end = version.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(version.len());
    version[..end].split('.').map_while(|part| part.parse().ok()).collect()
}

/// Whether `here` is older than `there` in its first `parts` numbers. What has no numbers is never older.
pub(crate) fn is_older(here: &str, there: &str, parts: usize) -> bool {
    let first = |version: &str| numbers(version).into_iter().take(parts).collect::<Vec<_>>();
    let (here, there) = (first(here), first(there));
    !here.is_empty() && !there.is_empty() && here < there
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        for (here, there, parts, older) in [
            ("4.2.1", "4.2.1", 1, false),
            ("3.17", "4.0", 1, true),
            ("4.1", "4.2", 1, false),
            ("4.1", "4.2", 2, true),
            ("4.10", "4.9", 2, false),
            ("6.18.44-fc-v782", "6.9.1", 2, false),
            ("6.1.0-30-amd64", "6.18.44", 2, true),
            ("", "4.2", 1, false),
            ("4.2", "unknown", 1, false),
            ("1.1.15+ds1", "1.2.0", 1, false),
        ] {
            assert_eq!(is_older(here, there, parts), older, "{here} {there} {parts}");
        }
    }

    #[test]
    fn flags_are_the_first_processors() {
        let text = "processor\t: 0\nflags\t\t: fpu sse avx2\nbugs\t: x\n\nprocessor\t: 1\nflags\t\t: fpu\n";
        let expected = ["avx2", "fpu", "sse"].map(str::to_owned);
        assert_eq!(cpu_flags(text), Some(BTreeSet::from(expected)));
        assert_eq!(cpu_flags("processor : 0\nFeatures : fp asimd\n"), None);
    }

    #[test]
    fn criu_says_its_version() {
        assert_eq!(criu_version_in("Version: 4.2.1\n"), "4.2.1");
        assert_eq!(criu_version_in("Version: 4.2\nGitID: v4.2-10\n"), "4.2");
    }

    #[test]
    fn folders_and_programs() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(check_writable(&dir.path().join("a/b")), Ok(()));
        assert!(check_writable(Path::new("/proc/version/a")).is_err());
        assert_eq!(check_program(Path::new("/bin/sh")), Ok(()));
        assert!(check_program(dir.path()).is_err());
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(check_program(&file).is_err());
        assert!(Room::at(&dir.path().join("not/yet")).unwrap().available > 0);
        assert_eq!(missing([&file, &dir.path().join("x")]), BTreeSet::from([dir.path().join("x")]));
    }
}
