//! A session's folder: private, and laid out so that CRIU's configuration leads to the hook and the hook to its ticket.
//!
//! ```text
//! <root>/                     0700 where it is made here
//!   <session>/                0700; 32 hex digits, by which a hook knows that it belongs to a session
//!     .socket                 where the hooks of this host meet; no member id starts with a dot
//!     <member>/               0700
//!       criu.conf             one line: action-script=<root>/<session>/<member>/hook
//!       hook                  a link to the hook program
//!       session.json          0600, the member's ticket; beside it what the launcher and the hooks note for each other
//! ```

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use image_format::MemberId;
use image_format::files::remove_tree;

use crate::plan::SessionId;
use crate::secret::Secret;
use crate::ticket::{HOOK, Place, TICKET, Ticket};
use crate::wire::Invitation;

const SOCKET: &str = ".socket";
const CRIU_CONFIG: &str = "criu.conf";

/// A folder that was made and not yet removed.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
}

/// Why a session's folder cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// CRIU's configuration splits lines at blanks and knows quotes and comments; the path would not arrive whole.
    #[error("the path {path:?} holds a character that CRIU's configuration does not take")]
    Unquotable {
        /// The path.
        path: PathBuf,
    },
    /// Others could put their own hooks in place of ours.
    #[error("the folder {path:?} can be written by others")]
    NotPrivate {
        /// The folder.
        path: PathBuf,
    },
    /// The hook program is not there.
    #[error("the hook program {path:?} cannot be found")]
    NoHookProgram {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something could not be written.
    #[error("cannot write {path:?}")]
    Write {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The runtime shut down in the middle.
    #[error("interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
}

impl Folder {
    /// Makes the folder with everything in it but the socket. On an error nothing of it is left.
    pub(super) fn make(
        root: &Path,
        session: SessionId,
        hook_program: &Path,
        tickets: impl FnOnce(&Path) -> Vec<Ticket>,
    ) -> Result<Self, FolderError> {
        let hook_program = hook_program
            .canonicalize()
            .map_err(|source| FolderError::NoHookProgram { path: hook_program.to_owned(), source })?;
        make_folder(root, true)?;
        let root = root.canonicalize().map_err(|source| FolderError::Write { path: root.to_owned(), source })?;
        check_root(&root)?;
        let folder = Self { path: root.join(session.to_string()) };
        make_folder(&folder.path, false)?;
        match folder.fill(&hook_program, tickets(&folder.path)) {
            Ok(()) => Ok(folder),
            Err(error) => {
                // What went wrong first is what matters.
                let _ = folder.remove();
                Err(error)
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn socket(&self) -> PathBuf {
        socket(&self.path)
    }

    pub(super) fn criu_config(&self, member: &MemberId) -> PathBuf {
        criu_config(&self.path, member)
    }

    /// A member's part of it.
    pub(super) fn member(&self, member: &MemberId) -> PathBuf {
        self.path.join(member.as_str())
    }

    /// Removes it; the links first, so that no hook starts that would find half of its member's folder.
    pub(super) fn remove(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            match std::fs::remove_file(entry?.path().join(HOOK)) {
                Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    return Err(error);
                }
                Ok(()) | Err(_) => {}
            }
        }
        remove_tree(&self.path)
    }

    fn fill(&self, hook_program: &Path, tickets: Vec<Ticket>) -> Result<(), FolderError> {
        for ticket in tickets {
            let dir = self.path.join(ticket.member.as_str());
            make_folder(&dir, false)?;
            let hook = dir.join(HOOK);
            std::os::unix::fs::symlink(hook_program, &hook)
                .map_err(|source| FolderError::Write { path: hook.clone(), source })?;
            let path = dir.join(TICKET);
            let json = ticket.to_json().map_err(|source| FolderError::Write { path: path.clone(), source })?;
            write_private(&path, &json)?;
            let config = format!("action-script={}\n", hook.display());
            write_private(&dir.join(CRIU_CONFIG), config.as_bytes())?;
        }
        Ok(())
    }
}

/// The CRIU configuration of a member, in the folder of its session.
pub(super) fn criu_config(session: &Path, member: &MemberId) -> PathBuf {
    session.join(member.as_str()).join(CRIU_CONFIG)
}

/// The session's socket, in its folder.
pub(super) fn socket(session: &Path) -> PathBuf {
    session.join(SOCKET)
}

/// The tickets of these members, and their secrets where they need one.
pub(super) fn tickets(
    invitation: &Invitation,
    place: &Place,
    members: impl IntoIterator<Item = (MemberId, Option<Secret>)>,
) -> Vec<Ticket> {
    let ticket = |(member, secret)| Ticket::new(invitation, place.clone(), member, secret);
    members.into_iter().map(ticket).collect()
}

fn make_folder(path: &Path, with_parents: bool) -> Result<(), FolderError> {
    let made = DirBuilder::new().mode(0o700).recursive(with_parents).create(path);
    made.map_err(|source| FolderError::Write { path: path.to_owned(), source })
}

fn check_root(root: &Path) -> Result<(), FolderError> {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '\'' | '#' | '\\');
    if !root.to_str().is_some_and(|text| text.chars().all(plain)) {
        return Err(FolderError::Unquotable { path: root.to_owned() });
    }
    let facts = root.metadata().map_err(|source| FolderError::Write { path: root.to_owned(), source })?;
    let me = rustix::process::geteuid().as_raw();
    if facts.mode() & 0o022 != 0 || (facts.uid() != me && facts.uid() != 0) {
        return Err(FolderError::NotPrivate { path: root.to_owned() });
    }
    Ok(())
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FolderError> {
    let write = || {
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)
    };
    write().map_err(|source| FolderError::Write { path: path.to_owned(), source })
}
