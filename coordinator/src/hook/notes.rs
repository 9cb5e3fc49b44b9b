//! What one hook of a member leaves for the next one, in the member's folder.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The notes of one member in one session.
pub(super) struct Notes {
    released: PathBuf,
    hold: PathBuf,
}

impl Notes {
    pub(super) fn in_folder(folder: &Path) -> Self {
        Self { released: folder.join("released"), hold: folder.join("hold-until") }
    }

    /// Whether the member was let through the last barrier. A note that cannot be looked for is not there.
    pub(super) fn released(&self) -> bool {
        self.released.exists()
    }

    pub(super) fn note_release(&self) -> io::Result<()> {
        write(&self.released, "")
    }

    /// Makes the note of when the time to hold ends, with nothing in it yet.
    pub(super) fn prepare_hold(&self) -> io::Result<Noting> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.hold)?;
        file.write_all_at(&[b' '; Noting::LENGTH], 0)?;
        // What reads the clock is there then.
        let _ = monotonic();
        Ok(Noting(file))
    }

    /// How much of the time to hold is left, with some grace after it; `None` if nobody noted when it began.
    pub(super) fn left_to_hold(&self, grace: Duration) -> Option<Duration> {
        let until = std::fs::read_to_string(&self.hold).ok()?.trim().parse().ok()?;
        Some(Duration::from_millis(until).saturating_add(grace).saturating_sub(monotonic()))
    }
}

/// A note of when the time to hold ends.
pub(super) struct Noting(File);

impl Noting {
    /// Of a number of milliseconds at most.
    const LENGTH: usize = 20;

    /// Notes that the time to hold begins now.
    pub(super) fn begins_now(self, hold: Duration) -> io::Result<()> {
        let until = u64::try_from(monotonic().saturating_add(hold).as_millis()).unwrap_or(u64::MAX);
        self.0.write_all_at(until.to_string().as_bytes(), 0)
    }
}

/// The clock that all processes of the machine share and that nobody sets.
fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds).saturating_add(Duration::from_nanos(u64::try_from(now.tv_nsec).unwrap_or(0)))
}

pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
