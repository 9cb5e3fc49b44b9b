//! Whether a host still wants its members to wait for another host.
//!
//! A hook whose rendezvous is elsewhere waits for that host's word. It waits for its own host's launcher too: this holds the
//! writing end of a pipe in each member's folder, and a hook the reading end. When the launcher gives up, or dies, the pipe ends,
//! and the hook fails closed: at a dump CRIU undoes what it did and the tasks run on, whatever the other host says or does not.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rustix::fs::OFlags;

/// The pipe's name in a member's folder.
const LIFE: &str = "life";

/// The writing end.
#[derive(Debug)]
pub(crate) struct Life {
    path: PathBuf,
    pipe: File,
}

impl Life {
    /// Makes the pipe in a member's folder.
    pub(crate) fn begin(folder: &Path) -> io::Result<Self> {
        let path = folder.join(LIFE);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        // To open the writing end alone would wait for a reader.
        let pipe = OpenOptions::new().read(true).write(true).custom_flags(no_wait()).open(&path)?;
        Ok(Self { path, pipe })
    }

    /// Ends it. Hooks that wait are told by that, and those that come later find no pipe.
    pub(crate) fn end(self) {
        // First: a hook that opened a pipe which had ended already would not be told.
        let _ = std::fs::remove_file(&self.path);
        drop(self.pipe);
    }
}

/// A hook's end, in its member's folder; it becomes readable when its launcher is gone.
pub(crate) fn watch(folder: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(no_wait()).open(folder.join(LIFE))
}

fn no_wait() -> i32 {
    OFlags::NONBLOCK.bits().cast_signed()
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_over(watched: &File) -> bool {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(watched, PollFlags::IN)], Some(&at_once)).expect("a poll") > 0
    }

    #[test]
    fn whoever_waits_sees_the_end_and_whoever_comes_later_finds_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let life = Life::begin(folder.path()).expect("a pipe");
        let (first, second) = (watch(folder.path()).expect("a pipe"), watch(folder.path()).expect("a pipe"));
        assert!(!is_over(&first) && !is_over(&second));
        life.end();
        assert!(is_over(&first) && is_over(&second));
        assert_eq!(watch(folder.path()).expect_err("it is over").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_launcher_that_died_is_seen_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let life = Life::begin(folder.path()).expect("a pipe");
        let watched = watch(folder.path()).expect("a pipe");
        // Nobody tidies up.
        drop(life.pipe);
        assert!(is_over(&watched));
    }
}
