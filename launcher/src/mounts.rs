//! Mounts that a killed CRIU or runtime leaves in folders that are to be removed.
//!
//! CRIU mounts every control group hierarchy of the machine into its work folder while it restores. Whoever removes that
//! folder must not walk into them.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

const MOUNTS: &str = "/proc/self/mountinfo";

/// Takes away every mount whose mount point `is_left` picks, those on top first.
///
/// # Errors
/// The mounts cannot be listed, or one cannot be taken away.
pub(crate) fn unmount_all(is_left: impl Fn(&Path) -> bool) -> io::Result<()> {
    let mounts = std::fs::read(MOUNTS)?;
    for point in points(&mounts).into_iter().rev().filter(|point| is_left(point)) {
        unmount(&point, UnmountFlags::DETACH)
            .map_err(|error| io::Error::other(format!("{} cannot be unmounted: {error}", point.display())))?;
    }
    Ok(())
}

/// Removes a folder with everything in it, after every mount in it was taken away.
///
/// # Errors
/// As [`unmount_all`], and what cannot be removed.
pub(crate) fn remove_folder(dir: &Path) -> io::Result<()> {
    unmount_all(|point| point.starts_with(dir))?;
    std::fs::remove_dir_all(dir)
}

/// The mount points of a mountinfo file, in its order: a mount stands after the one that it is on.
fn points(mounts: &[u8]) -> Vec<PathBuf> {
    let fields = mounts.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    fields.map(|field| PathBuf::from(OsString::from_vec(unescape(field)))).collect()
}

/// The kernel writes blanks, tabs, line ends and backslashes as three octal digits after a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, others)) = rest.split_first() {
        let digits = others.get(..3).filter(|_| *first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &others[3..];
            }
            None => {
                bytes.push(*first);
                rest = others;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_they_are() {
        let mounts = b"22 1 0:21 / /proc rw - proc proc rw\n\
                       56 81 0:56 / /w/my\\040restore\\134/.criu.cgyard.x rw,relatime - tmpfs none rw\n\
                       57 56 0:36 / /w/my\\040restore\\134/.criu.cgyard.x/pids rw - cgroup none rw,pids\n\
                       58 56 0:36 / /w/odd\\9 rw - cgroup none rw,pids\n";
        let expected = ["/proc", "/w/my restore\\/.criu.cgyard.x", "/w/my restore\\/.criu.cgyard.x/pids", "/w/odd\\9"];
        assert_eq!(points(mounts), expected.map(PathBuf::from));
        assert_eq!(points(b""), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_folder_without_mounts_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        remove_folder(&dir.path().join("a")).unwrap();
        assert!(!inner.exists());
        assert!(remove_folder(&inner).is_err());
    }
}
