//! The overlay that is a container's root filesystem, as `/proc/PID/mountinfo` shows it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use runtime::mounts::unescape;

use crate::container::Layers;

/// The layers of the overlay that is the root of what a mountinfo file shows, as the mount names them; `None` if the root is no
/// overlay that can be written to.
pub(crate) fn overlay_at_root(mounts: &[u8]) -> Option<Layers> {
    let lines = mounts.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b' ').collect::<Vec<_>>());
    // What is mounted last is on top.
    let mut roots = lines.filter(|fields| fields.get(4) == Some(&b"/".as_slice()));
    let root = roots.next_back()?;
    let kind = root.iter().position(|field| *field == b"-")? + 1;
    if root.get(kind) != Some(&b"overlay".as_slice()) {
        return None;
    }
    let (mut upper, mut lower) = (None, Vec::new());
    for option in root.get(kind + 2)?.split(|byte| *byte == b',') {
        let Some(at) = option.iter().position(|byte| *byte == b'=') else { continue };
        let value = unescape(&option[at + 1..]);
        match &option[..at] {
            b"upperdir" => upper = Some(path_of(&value)),
            b"lowerdir" => lower.extend(split_layers(&value)),
            b"lowerdir+" => lower.push(path_of(&value)),
            _ => {}
        }
    }
    Some(Layers { upper: upper?, lower })
}

/// The paths of overlay's option `lowerdir`, in which a colon ends a path unless there is a backslash before it.
fn split_layers(value: &[u8]) -> Vec<PathBuf> {
    let (mut paths, mut path) = (Vec::new(), Vec::new());
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => path.extend(bytes.next()),
            b':' => paths.push(path_of(&std::mem::take(&mut path))),
            byte => path.push(*byte),
        }
    }
    paths.push(path_of(&path));
    paths.retain(|path| !path.as_os_str().is_empty());
    paths
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_writable_layer_is_the_overlays_that_is_the_root() {
        let docker = b"231 170 0:120 / / rw,relatime - overlay overlay rw,lowerdir=/d/l/A:/d/l/B\\134:C,\
            upperdir=/d/1f\\040x/diff,workdir=/d/1f/work\n232 231 0:123 / /proc rw - proc proc rw\n";
        let layers = overlay_at_root(docker).unwrap();
        assert_eq!(layers.upper, Path::new("/d/1f x/diff"));
        assert_eq!(layers.lower, ["/d/l/A", "/d/l/B:C"].map(PathBuf::from));
        // Linux 6.8 shows each layer by itself if it was given so.
        let each = b"1 0 0:1 / / rw master:3 - overlay x rw,lowerdir+=/a:b,lowerdir+=/c,upperdir=/u,workdir=/w\n";
        assert_eq!(overlay_at_root(each).unwrap().lower, ["/a:b", "/c"].map(PathBuf::from));
        for none in [
            b"".as_slice(),
            b"1 0 0:1 / / rw - ext4 /dev/vda rw\n",
            b"1 0 0:1 / / ro - overlay x ro,lowerdir=/a:/b\n",
            b"1 0 0:1 / /proc rw - overlay x rw,lowerdir=/a,upperdir=/u\n",
            b"1 0 0:1 / / rw - overlay x rw,lowerdir=/a,upperdir=/u\n2 1 0:2 / / rw - tmpfs t rw\n",
        ] {
            assert_eq!(overlay_at_root(none), None, "{}", String::from_utf8_lossy(none));
        }
    }
}
