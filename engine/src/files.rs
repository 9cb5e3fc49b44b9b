//! The files of a member: taken while every member stands frozen, archived when the tasks run again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use image_format::Captured;
use image_format::files::{FilesError, Writers, archive_folder, archive_upper, clone_tree};

use crate::container::Files;
use runtime::mounts::remove_folder;

/// The container's log, by its name in podman's archive.
const PRINTED: &str = "ctr.log";

/// A tar in which there is nothing.
const EMPTY_TAR: [u8; 1024] = [0; 1024];

/// Copies of what a container had written at one instant.
#[derive(Debug)]
pub struct Copies {
    folder: PathBuf,
    /// The folders below the writable layer, which say what an opaque folder of it hides.
    lower: Option<Vec<PathBuf>>,
    /// Where each volume's copy is.
    volumes: BTreeMap<String, PathBuf>,
    /// Volumes that are stored with another member.
    elsewhere: BTreeSet<String>,
    shm: bool,
    printed: bool,
}

impl Copies {
    /// Copies a container's files into a new folder. Reflinks where the filesystem gives them.
    pub fn take(files: &Files, folder: &Path) -> Result<Self, FilesError> {
        make_folder(folder)?;
        if let Some(layers) = &files.root {
            clone_tree(&layers.upper, &folder.join("upper"), Writers::Frozen)?;
        }
        let mut volumes = BTreeMap::new();
        for (number, (name, source)) in files.volumes.iter().enumerate() {
            let copy = folder.join(format!("volume-{number}"));
            // A volume may be written to by containers that are no members.
            clone_tree(source, &copy, Writers::Others)?;
            volumes.insert(name.clone(), copy);
        }
        if let Some(shm) = &files.shm {
            clone_tree(shm, &folder.join("shm"), Writers::Frozen)?;
        }
        if let Some(log) = &files.printed {
            // Its engine goes on writing to it; what was printed before the freeze is there long since.
            let mut from = File::open(log).map_err(failed("open", log))?;
            let mut to = make_file(&folder.join(PRINTED))?;
            io::copy(&mut from, &mut to).map_err(failed("copy", log))?;
        }
        let lower = files.root.as_ref().map(|layers| layers.lower.clone());
        Ok(Self {
            folder: folder.to_owned(),
            lower,
            volumes,
            elsewhere: files.elsewhere.clone(),
            shm: files.shm.is_some(),
            printed: files.printed.is_some(),
        })
    }

    /// Archives the copies, under the names that podman's restore knows. Each copy goes once it is archived.
    pub fn archive(self) -> Result<Captured, FilesError> {
        let mut captured = Captured::default();
        let at = |name: &str| self.folder.join(name);
        if let Some(lower) = &self.lower {
            let lower: Vec<&Path> = lower.iter().map(PathBuf::as_path).collect();
            let (tar, deleted) = (at("rootfs-diff.tar"), at("deleted.files"));
            let gone = write(&tar, |out| archive_upper(&at("upper"), &lower, out))?;
            write(&deleted, |out| serde_json::to_writer(out, &gone).map_err(|error| FilesError::Write(error.into())))?;
            remove(&at("upper"))?;
            captured.add("rootfs-diff.tar", tar);
            captured.add("deleted.files", deleted);
        }
        for (name, copy) in &self.volumes {
            let tar = copy.with_extension("tar");
            write(&tar, |out| archive_folder(copy, out))?;
            remove(copy)?;
            captured.add(format!("volumes/{name}.tar"), tar);
        }
        for (number, name) in self.elsewhere.iter().enumerate() {
            // podman restores no container without an archive of each of its volumes.
            let tar = at(&format!("elsewhere-{number}.tar"));
            write(&tar, |out| out.write_all(&EMPTY_TAR).map_err(FilesError::Write))?;
            captured.add(format!("volumes/{name}.tar"), tar);
        }
        if self.shm {
            let tar = at("devshm-checkpoint.tar");
            write(&tar, |out| archive_folder(&at("shm"), out))?;
            remove(&at("shm"))?;
            captured.add("devshm-checkpoint.tar", tar);
        }
        if self.printed {
            captured.add(PRINTED, at(PRINTED));
        }
        Ok(captured)
    }
}

/// A file of what `fill` writes.
fn write<T>(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<T, FilesError>) -> Result<T, FilesError> {
    let mut out = BufWriter::with_capacity(1 << 20, make_file(path)?);
    let filled = fill(&mut out)?;
    out.into_inner().map_err(|error| FilesError::Write(error.into_error()))?;
    Ok(filled)
}

/// A file that only its owner may read, whatever the caller's umask is.
fn make_file(path: &Path) -> Result<File, FilesError> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    made.map_err(failed("make", path))
}

fn make_folder(path: &Path) -> Result<(), FilesError> {
    DirBuilder::new().mode(0o700).create(path).map_err(failed("make", path))
}

fn remove(path: &Path) -> Result<(), FilesError> {
    remove_folder(path).map_err(failed("remove", path))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FilesError {
    let path = path.to_owned();
    move |source| FilesError::Failed { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// An open file's permissions would let others read what a container keeps to itself.
    #[test]
    fn what_is_captured_is_its_owners_alone() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        for folder in ["upper", "lower", "volume", "shm"] {
            fs::create_dir(at(folder)).unwrap();
            fs::write(at(folder).join("file"), "secret").unwrap();
        }
        fs::write(at("log"), "printed").unwrap();
        fs::set_permissions(at("log"), fs::Permissions::from_mode(0o644)).unwrap();
        let files = Files {
            root: Some(crate::Layers { upper: at("upper"), lower: vec![at("lower")] }),
            volumes: [("data".to_owned(), at("volume"))].into(),
            elsewhere: ["shared".to_owned()].into(),
            shm: Some(at("shm")),
            printed: Some(at("log")),
        };
        let copies = Copies::take(&files, &at("copies")).unwrap();
        copies.archive().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&at("copies")), 0o700);
        let kept: Vec<_> = fs::read_dir(at("copies")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(kept.len(), 6);
        assert_eq!(fs::read(at("copies/elsewhere-0.tar")).unwrap(), EMPTY_TAR);
        for path in kept {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
}
