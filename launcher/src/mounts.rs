//! Mounts: what a container can write to, and those that a killed CRIU or runtime leaves in folders that are to be removed.
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

/// Whether a process finds its root filesystem read-only, as the kernel has it at this moment.
///
/// # Errors
/// The process is gone, or its mounts cannot be read.
pub(crate) fn has_read_only_root(pid: i32) -> io::Result<bool> {
    let mounts = std::fs::read(format!("/proc/{pid}/mountinfo"))?;
    read_only_root(&mounts).ok_or_else(|| io::Error::other("there is no root among them"))
}

/// Of the mounts on `/` the last one is on top. Either it is read-only or the whole filesystem.
fn read_only_root(mounts: &[u8]) -> Option<bool> {
    let mut lines = str::from_utf8(mounts).ok()?.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let root = lines.rfind(|fields| fields.get(4) == Some(&"/"))?;
    let own = root.get(5)?;
    let filesystem = root.iter().position(|field| *field == "-").and_then(|dash| root.get(dash + 3))?;
    let read_only = |options: &str| options.split(',').any(|option| option == "ro");
    Some(read_only(own) || read_only(filesystem))
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
    fn roots_are_read_only_by_the_mount_or_by_the_filesystem() {
        let proc = "30 20 0:5 / /proc ro,nosuid - proc proc ro\n";
        for (root, expected) in [
            ("20 1 8:1 /b/rootfs / rw,relatime - ext4 /dev/sda1 rw,errors=remount-ro\n", Some(false)),
            ("20 1 8:1 /b/rootfs / ro,relatime shared:1 - ext4 /dev/sda1 rw\n", Some(true)),
            ("20 1 0:50 / / rw,relatime - overlay overlay ro,lowerdir=/a\n", Some(true)),
            ("20 1 8:1 / / ro - ext4 /dev/sda1 ro\n21 20 0:50 / / rw - overlay overlay rw,upperdir=/u\n", Some(false)),
            ("20 1 8:1 / / rw\n", None),
            ("", None),
        ] {
            assert_eq!(read_only_root(format!("{root}{proc}").as_bytes()), expected, "{root}");
        }
        assert!(has_read_only_root(i32::MAX).is_err());
    }

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
