//! A descriptor that CRIU must have open from the start, handed on by the engine that starts it.
//!
//! Whoever starts the engine notes which one it is, beside the member's ticket. The hook at the first barrier of a dump looks whether CRIU
//! has it: before anything is frozen, and before CRIU takes another one for it. Where it is not there the hook leaves a note of that.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use super::notes::write;

/// Its number in CRIU, a blank, and what the kernel calls it.
const EXPECTED: &str = "handed";

/// Made when it is not there.
const MISSING: &str = "not-handed";

/// Notes that the CRIU of a member, whose configuration this is, must have this descriptor by that number.
///
/// # Errors
/// The note cannot be written.
pub fn expect_handed(criu_config: &Path, number: i32, descriptor: impl AsFd) -> io::Result<()> {
    let name = name_of("self", descriptor.as_fd().as_raw_fd())?;
    write(&criu_config.with_file_name(EXPECTED), &format!("{number} {}", name.display()))
}

/// Whether the hook of the member whose configuration this is found a CRIU that had not what was expected.
#[must_use]
pub fn was_not_handed(criu_config: &Path) -> bool {
    criu_config.with_file_name(MISSING).exists()
}

/// The number of the descriptor that is expected and that this CRIU has not. Leaves a note of it.
pub(super) fn missing(folder: &Path, criu: i32) -> Option<i32> {
    let note = fs::read_to_string(folder.join(EXPECTED)).ok()?;
    let (number, name) = note.split_once(' ')?;
    let number = number.parse().ok()?;
    if name_of(&criu.to_string(), number).is_ok_and(|found| found == Path::new(name)) {
        return None;
    }
    // Without the note the dump fails all the same, in words.
    let _ = write(&folder.join(MISSING), "");
    Some(number)
}

/// As `socket:[1234]`, which no other open file is called.
fn name_of(process: &str, number: i32) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/{process}/fd/{number}"))
}
