//! What a member has in files, put into its new container before CRIU restores the member: tasks have these files open.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use image_format::files::{ExtractError, extract, has_content, remove_paths};
use image_format::{ArchiveError, Limits};
use rustix::fs::{Mode, OFlags, open};

use crate::config::Bundle;
use crate::ticket::Ticket;

/// The most that is read of a list of deleted files.
const LARGEST_LIST: u64 = 64 << 20;

/// Why a container did not get its files. What came before the failure is in it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FillError {
    /// A file or folder cannot be read.
    #[error("cannot use {path:?}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// An archive was not extracted.
    #[error("cannot put {path:?} into the container")]
    Extract {
        path: PathBuf,
        #[source]
        source: ExtractError,
    },
    /// An archive cannot be read.
    #[error("cannot read {path:?}")]
    Archive {
        path: PathBuf,
        #[source]
        source: ArchiveError,
    },
    /// A list of deleted files is none.
    #[error("{path:?} is no list of deleted files")]
    List {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// There is no folder for what was in `/dev/shm`.
    #[error(
        "the member had files in /dev/shm, and its target makes that filesystem anew: \
         a container whose engine mounts a folder at /dev/shm is needed (docker: --ipc shareable)"
    )]
    OwnShm,
}

/// Fills the root filesystem and `/dev/shm` of a bundle.
pub(crate) fn fill(bundle: &Bundle, ticket: &Ticket) -> Result<(), FillError> {
    if let Some(shm) = &ticket.shm {
        match bundle.shm() {
            Some(folder) => put(shm, &folder)?,
            None => {
                let source = has_content(read(shm)?, &Limits::default());
                if source.map_err(|source| FillError::Archive { path: shm.clone(), source })? {
                    return Err(FillError::OwnShm);
                }
            }
        }
    }
    let Some(difference) = &ticket.rootfs else { return Ok(()) };
    put(&difference.tar, &bundle.root())?;
    // In this order, as podman does: what is in the archive and was deleted is gone.
    let Some(path) = &difference.deleted else { return Ok(()) };
    let mut json = Vec::new();
    read(path)?
        .take(LARGEST_LIST)
        .read_to_end(&mut json)
        .map_err(|source| FillError::File { path: path.clone(), source })?;
    let deleted: Option<Vec<String>> =
        serde_json::from_slice(&json).map_err(|source| FillError::List { path: path.clone(), source })?;
    let root = open_folder(&bundle.root())?;
    let removed = remove_paths(root.as_fd(), deleted.iter().flatten().map(String::as_str), &Limits::default());
    removed.map_err(|source| FillError::Extract { path: path.clone(), source })
}

fn put(archive: &Path, folder: &Path) -> Result<(), FillError> {
    let folder = open_folder(folder)?;
    let put = extract(read(archive)?, folder.as_fd(), &Limits::default());
    put.map_err(|source| FillError::Extract { path: archive.to_owned(), source })
}

fn read(path: &Path) -> Result<BufReader<File>, FillError> {
    let file = File::open(path).map_err(|source| FillError::File { path: path.to_owned(), source })?;
    Ok(BufReader::with_capacity(256 << 10, file))
}

fn open_folder(path: &Path) -> Result<OwnedFd, FillError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|error| FillError::File { path: path.to_owned(), source: error.into() })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image_format::files::archive_folder;
    use serde_json::json;

    use super::*;
    use crate::ticket::RootDiff;

    fn archive(of: &Path, to: &Path) {
        archive_folder(of, &mut File::create(to).unwrap()).unwrap();
    }

    fn ticket(rootfs: Option<RootDiff>, shm: Option<PathBuf>) -> Ticket {
        Ticket {
            version: Ticket::VERSION,
            member: "m".parse().unwrap(),
            session: coordinator::SessionId::from_bytes([7; 16]),
            images: "/i".into(),
            work: "/w".into(),
            criu_config: "/c".into(),
            rootfs,
            shm,
            spec: None,
            lazily: false,
        }
    }

    #[test]
    fn the_root_filesystem_and_shared_memory_get_what_the_member_had() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        for folder in ["rootfs/etc", "diff/etc", "shm-before", "shm"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::write(at("rootfs/etc/old"), "old").unwrap();
        fs::write(at("rootfs/etc/same"), "same").unwrap();
        fs::write(at("diff/etc/new"), "new").unwrap();
        fs::write(at("shm-before/s"), "shared").unwrap();
        archive(&at("diff"), &at("rootfs-diff.tar"));
        archive(&at("shm-before"), &at("shm.tar"));
        fs::write(at("deleted.files"), r#"["/etc/old", "/etc/was/never"]"#).unwrap();
        let bundle = |shm: serde_json::Value| Bundle {
            dir: top.path().to_owned(),
            config: json!({"root": {"path": "rootfs"}, "mounts": [shm]}),
        };
        let diff = RootDiff { tar: at("rootfs-diff.tar"), deleted: Some(at("deleted.files")) };
        let bound = bundle(json!({"destination": "/dev/shm", "type": "bind", "source": at("shm")}));
        fill(&bound, &ticket(Some(diff.clone()), Some(at("shm.tar")))).unwrap();
        assert_eq!(fs::read(at("rootfs/etc/new")).unwrap(), b"new");
        assert_eq!(fs::read(at("shm/s")).unwrap(), b"shared");
        assert!(at("rootfs/etc/same").exists() && !at("rootfs/etc/old").exists());

        let fresh = bundle(json!({"destination": "/dev/shm", "type": "tmpfs"}));
        assert!(matches!(fill(&fresh, &ticket(None, Some(at("shm.tar")))), Err(FillError::OwnShm)));
        fs::remove_file(at("shm-before/s")).unwrap();
        archive(&at("shm-before"), &at("shm.tar"));
        fill(&fresh, &ticket(None, Some(at("shm.tar")))).unwrap();

        fs::write(at("deleted.files"), "null").unwrap();
        fill(&bound, &ticket(Some(diff.clone()), None)).unwrap();
        fs::write(at("deleted.files"), r#"["/../x"]"#).unwrap();
        assert!(matches!(fill(&bound, &ticket(Some(diff.clone()), None)), Err(FillError::Extract { .. })));
        fs::write(at("deleted.files"), "{}").unwrap();
        assert!(matches!(fill(&bound, &ticket(Some(diff), None)), Err(FillError::List { .. })));
        let nothing = RootDiff { tar: at("nothing"), deleted: None };
        assert!(matches!(fill(&bound, &ticket(Some(nothing), None)), Err(FillError::File { .. })));
    }
}
