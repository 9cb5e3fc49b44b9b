//! Attaches a session's hooks to a container that already runs, for one run of its engine's program and nobody else.
//!
//! Which file the runtime hands to CRIU as its configuration was settled when the container was made: the one that the annotation
//! `org.criu.config` names, or one below `/etc/criu`. So the program runs in a mount namespace of its own, in which that file is
//! covered by the session's. Nobody else sees the cover, a plain `podman container checkpoint` at the same time included, and it is
//! gone with the program, however that ends. A file that is not there is made, with nothing but a comment in it, for there must be
//! something to cover; CRIU takes it for no configuration at all.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{Resource, getrlimit};

/// The most that is read of a configuration that is there already.
const LARGEST_CONFIG: u64 = 1 << 20;

/// What stands in a file that was made to be covered.
const PLACEHOLDER: &str = "# Empty: syncpoint covers this file while it dumps a container.\n";

/// The number that a descriptor has which CRIU is handed, where this process may have so many. Engines and runtimes pass on what they did not open
/// themselves (run: podman 5.4, runc 1.1); they take the lowest free numbers for what they open, and CRIU the highest ones.
const NUMBER: u64 = 900;

/// A descriptor that CRIU finds open from the start.
#[derive(Debug)]
pub struct InheritedFd {
    /// The descriptor here.
    pub descriptor: OwnedFd,
    /// Its number there.
    pub number: i32,
}

impl InheritedFd {
    /// Hands on a descriptor, under a number that engines leave alone.
    pub fn new(descriptor: OwnedFd) -> Self {
        let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        // Not over 900.
        Self { descriptor, number: NUMBER.min(most.saturating_sub(1)) as i32 }
    }
}

/// What ties one run of an engine's program to a session.
#[derive(Debug)]
pub struct Attachment {
    /// CRIU's configuration.
    pub cover: ConfigOverlay,
    /// What CRIU is handed.
    pub handed: Option<InheritedFd>,
}

/// A file, and what a program shall find in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigOverlay {
    /// The file that the runtime reads.
    over: PathBuf,
    /// What it is to read.
    with: PathBuf,
}

impl ConfigOverlay {
    /// Writes to `with`, which is to be read in place of `over`, what is in `own`, if anything, and
    /// after it what is in `session`, and `more`; CRIU takes every hook program that it is told of.
    pub fn make(over: &Path, own: &Path, session: &Path, more: &str, with: &Path) -> io::Result<Self> {
        let own = own_lines(own)?;
        if !over.exists() {
            make_placeholder(over)?;
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(with)?;
        file.write_all(&own)?;
        file.write_all(&std::fs::read(session)?)?;
        file.write_all(more.as_bytes())?;
        Ok(Self { over: over.canonicalize()?, with: with.to_owned() })
    }

    /// The file that is read in the other's place.
    #[must_use]
    pub fn reads(&self) -> &Path {
        &self.with
    }

    /// Runs `start` where the cover is in place; what it starts stays there. Needs root.
    pub fn within<T: Send>(&self, start: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        // A thread of its own: its mount namespace ends with it, but for the processes that it started.
        std::thread::scope(|scope| {
            let covered = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS)?;
                // What is mounted here stays here; what others mount and unmount is still seen.
                mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
                mount_bind(&self.with, &self.over)?;
                start()
            });
            covered.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts it ended unexpectedly")))
        })
    }
}

/// What a container's own configuration for CRIU says, or the host's, in whole lines; nothing if
/// there is none.
pub fn own_lines(path: &Path) -> io::Result<Vec<u8>> {
    let mut lines = match std::fs::metadata(path) {
        Ok(facts) if facts.len() > LARGEST_CONFIG => return Err(io::Error::other("it is too large")),
        Ok(_) => std::fs::read(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    if lines.last().is_some_and(|last| *last != b'\n') {
        lines.push(b'\n');
    }
    Ok(lines)
}

fn make_placeholder(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().mode(0o755).recursive(true).create(folder)?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o644).open(path) {
        Ok(mut file) => file.write_all(PLACEHOLDER.as_bytes()),
        // Another checkpoint made it in the meantime.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_keeps_its_own_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("session.conf"), "action-script=/s/hook\n").unwrap();
        std::fs::write(at("own.conf"), "log-file=x").unwrap();
        let cover =
            ConfigOverlay::make(&at("own.conf"), &at("own.conf"), &at("session.conf"), "tls\n", &at("cover")).unwrap();
        assert_eq!(std::fs::read_to_string(at("cover")).unwrap(), "log-file=x\naction-script=/s/hook\ntls\n");
        assert_eq!(cover.over, at("own.conf").canonicalize().unwrap());

        let missing = at("etc/criu/runc.conf");
        ConfigOverlay::make(&missing, &missing, &at("session.conf"), "", &at("second")).unwrap();
        assert_eq!(std::fs::read_to_string(&missing).unwrap(), PLACEHOLDER);
        assert!(std::fs::read_to_string(at("second")).unwrap().ends_with("action-script=/s/hook\n"));
        assert!(
            ConfigOverlay::make(&missing, &missing, &at("session.conf"), "", &at("second")).is_err(),
            "a cover is one program's"
        );

        // After a lazy restore the runtime reads a session's file that is gone.
        ConfigOverlay::make(&at("gone/s.conf"), &at("own.conf"), &at("session.conf"), "", &at("third")).unwrap();
        assert_eq!(std::fs::read_to_string(at("third")).unwrap(), "log-file=x\naction-script=/s/hook\n");
    }
}
