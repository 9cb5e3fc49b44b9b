//! The writable layer of a container, as the two files that podman keeps of it.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::io::Write;
use std::path::Path;

use rustix::fs::FileType;

use super::archive::{Detour, Tar, xattrs_of};
use super::node::{Folder, Node, Step, Walk, Xattrs, as_path, joined};
use super::{FilesError, Writers};

/// Writes the upper folder of an overlay filesystem as podman's `rootfs-diff.tar`, in the way of
/// [`archive_folder`](super::archive_folder), and gives the absolute paths of what was deleted, sorted, for its
/// `deleted.files`.
///
/// Podman's restore extracts the tar over the image's files and removes the deleted ones then. So whiteouts (character
/// devices 0:0) become deleted paths; of an opaque folder, all that the lower folders (`lower`, in any order) have in it and
/// the upper one has not; overlay's own attributes go nowhere. Attributes `trusted.*` are seen with `CAP_SYS_ADMIN` only: run
/// without it, the call cannot know opaque folders of a mount made with it.
///
/// # Errors
/// As [`archive_folder`](super::archive_folder); folders that were renamed and files whose content is below (`redirect_dir`,
/// `metacopy`), which overlay filesystems only make if they are told to; deleted names that are no UTF-8.
pub fn archive_upper(upper: &Path, lower: &[&Path], out: &mut dyn Write) -> Result<Vec<String>, FilesError> {
    let lower = lower.iter().map(|path| Folder::open(path)).collect::<Result<Vec<_>, _>>()?;
    let root = Folder::open(upper)?;
    let mut tar = Tar::new(out, Detour::around(lower.iter().chain([&root]))?);
    let mut walk = Walk::new(root, Writers::Frozen);
    let mut deleted = BTreeSet::new();
    // Of each folder on the way down: whether what lies below it is hidden.
    let mut opaque = Vec::new();
    while let Some(step) = walk.step()? {
        match (step, walk.folder()) {
            (Step::Enter(node), Some(folder)) => {
                let xattrs = xattrs_of(folder, &node)?;
                check(&node, &xattrs)?;
                let is_opaque = opaque.last().copied().unwrap_or(false) || flag(&xattrs, b"opaque") == Some(b"y");
                if is_opaque {
                    for below in &lower {
                        find_hidden(folder, &node, below, &mut deleted)?;
                    }
                }
                opaque.push(is_opaque);
                tar.add(folder, &node, xattrs)?;
            }
            (Step::Leaf(node), Some(folder)) => {
                if node.is_whiteout() {
                    deleted.insert(absolute(&node.name, &node.path)?);
                    continue;
                }
                let xattrs = xattrs_of(folder, &node)?;
                check(&node, &xattrs)?;
                if flag(&xattrs, b"whiteout").is_some() && node.stat.st_size == 0 {
                    deleted.insert(absolute(&node.name, &node.path)?);
                } else {
                    tar.add(folder, &node, xattrs)?;
                }
            }
            (Step::Leave(..), _) => drop(opaque.pop()),
            _ => {}
        }
    }
    tar.finish()?;
    Ok(deleted.into_iter().collect())
}

/// Notes what a lower folder has in an opaque folder, and the opaque folder has not. What is in both is extracted over it.
fn find_hidden(folder: &Folder, node: &Node, lower: &Folder, deleted: &mut BTreeSet<String>) -> Result<(), FilesError> {
    let mut at: Option<Folder> = None;
    for component in node.name.split(|byte| *byte == b'/').filter(|component| !component.is_empty()) {
        // It came from the system without a NUL.
        let component = CString::new(component).unwrap_or_default();
        match at.as_ref().unwrap_or(lower).find(&component)? {
            Some(below) => at = Some(below),
            None => return Ok(()),
        }
    }
    let below = at.as_ref().unwrap_or(lower);
    for name in below.names()? {
        let hidden = folder.look(&name)?.is_none();
        if hidden && !is_whiteout(below, &name)? {
            let name_below = joined(&node.name, name.to_bytes());
            deleted.insert(absolute(&name_below, &below.path.join(as_path(&name)))?);
        }
    }
    Ok(())
}

fn is_whiteout(folder: &Folder, name: &CStr) -> Result<bool, FilesError> {
    let stat = folder.look(name)?;
    Ok(stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0))
}

/// The value of an attribute of overlay, in the form for mounts of the system or that for mounts of users.
fn flag<'x>(xattrs: &'x Xattrs, name: &[u8]) -> Option<&'x [u8]> {
    let get = |prefix: &[u8]| xattrs.get(&[prefix, name].concat()).map(Vec::as_slice);
    get(b"trusted.overlay.").or_else(|| get(b"user.overlay."))
}

fn check(node: &Node, xattrs: &Xattrs) -> Result<(), FilesError> {
    for attribute in ["redirect", "metacopy"] {
        if flag(xattrs, attribute.as_bytes()).is_some() {
            return Err(FilesError::Overlay { path: node.path.clone(), attribute });
        }
    }
    Ok(())
}

fn absolute(name: &[u8], path: &Path) -> Result<String, FilesError> {
    let name = str::from_utf8(name).map_err(|_| FilesError::NotText { path: path.to_owned() })?;
    Ok(format!("/{name}"))
}
