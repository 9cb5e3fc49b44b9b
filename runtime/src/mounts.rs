//! Mounts that a killed CRIU or runtime leaves in folders that are to be removed.
//!
//! CRIU mounts every control group hierarchy of the machine into its work folder while it restores. Whoever removes that
//! folder must not walk into them.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use image_format::files::remove_tree;
use rustix::mount::{UnmountFlags, unmount};

/// How CRIU names the folder into which it mounts control groups.
const CGYARD: &[u8] = b".criu.cgyard.";

/// Of the calling thread, whose mount namespace may be its own.
const MOUNTS: &str = "/proc/thread-self/mountinfo";

/// Takes away every mount whose mount point `is_left` picks, those on top first.
///
/// # Errors
/// The mounts cannot be listed, or one cannot be taken away.
pub fn unmount_all(is_left: impl Fn(&Path) -> bool) -> io::Result<()> {
    let mounts = std::fs::read(MOUNTS)?;
    for point in points(&mounts).into_iter().rev().filter(|point| is_left(point)) {
        unmount(&point, UnmountFlags::DETACH)
            .map_err(|error| io::Error::other(format!("{} cannot be unmounted: {error}", point.display())))?;
    }
    Ok(())
}

/// Removes a folder with everything in it, after every mount in it was taken away. Every folder that engines and CRIU work in
/// is removed by this, and by nothing else.
///
/// # Errors
/// As [`unmount_all`], and what cannot be removed, such as a folder on which something was mounted meanwhile.
pub fn remove_folder(dir: &Path) -> io::Result<()> {
    let real = dir.canonicalize()?;
    unmount_all(|point| point.starts_with(&real))?;
    remove_tree(&real)
}

/// Takes away what a CRIU that was killed mounted into its work folder in the container's, whose name is `container`. podman,
/// which removes that folder, would walk into it.
///
/// # Errors
/// As [`unmount_all`].
pub fn unmount_cgyards(container: &str) -> io::Result<()> {
    unmount_all(|point| {
        let is = |wanted: &dyn Fn(&[u8]) -> bool| point.iter().any(|name| wanted(name.as_bytes()));
        is(&|name| name == container.as_bytes()) && is(&|name| name.starts_with(CGYARD))
    })
}

/// The mount points of a mountinfo file, in its order: a mount stands after the one that it is on.
fn points(mounts: &[u8]) -> Vec<PathBuf> {
    let fields = mounts.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    fields.map(|field| PathBuf::from(OsString::from_vec(unescape(field)))).collect()
}

/// The kernel writes blanks, tabs, line ends and backslashes as three octal digits after a backslash.
pub fn unescape(field: &[u8]) -> Vec<u8> {
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
    use nix::sched::{CloneFlags, unshare};
    use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

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

    /// Only root may mount; for anybody else there is nothing to look at.
    #[test]
    fn what_is_mounted_in_a_folder_is_taken_away_and_never_walked_into() {
        let top = tempfile::tempdir().unwrap();
        let (folder, live) = (top.path().join("folder"), top.path().join("live"));
        let yard = folder.join("libpod/.criu.cgyard.x");
        std::fs::create_dir_all(&yard).unwrap();
        std::fs::create_dir(&live).unwrap();
        std::fs::write(live.join("file"), "x").unwrap();
        // A thread of its own has a mount namespace of its own.
        let work = || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            mount_bind(&live, &yard)?;
            let walked = remove_tree(&folder);
            let left = yard.join("file").exists();
            io::Result::Ok((walked, left, remove_folder(&folder)))
        };
        match std::thread::scope(|scope| scope.spawn(work).join().unwrap()) {
            Ok((walked, left, removed)) => {
                let error = walked.unwrap_err().to_string();
                assert!(error.contains("something is mounted at \".criu.cgyard.x\"") && left, "{error}");
                removed.unwrap();
                assert!(!folder.exists());
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
        assert!(live.join("file").exists());
    }
}
