//! What one hook of a member leaves for the next one, in the member's folder.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
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

    /// Notes that the time to hold begins now.
    pub(super) fn note_hold(&self, hold: Duration) -> io::Result<()> {
        write(&self.hold, &monotonic().saturating_add(hold).as_millis().to_string())
    }

    /// How much of the time to hold is left, with some grace after it; `None` if nobody noted when it began.
    pub(super) fn left_to_hold(&self, grace: Duration) -> Option<Duration> {
        let until = std::fs::read_to_string(&self.hold).ok()?.parse().ok()?;
        Some(Duration::from_millis(until).saturating_add(grace).saturating_sub(monotonic()))
    }
}

/// The clock that all processes of the machine share and that nobody sets.
fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds).saturating_add(Duration::from_nanos(u64::try_from(now.tv_nsec).unwrap_or(0)))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
