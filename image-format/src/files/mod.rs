//! Files of containers, taken at the instant of a checkpoint: writable layers, volumes and `/dev/shm`.
//!
//! Two steps, since the first one costs frozen time and the second one does not:
//!
//! ```text
//! folder --clone_tree--> copy beside it (reflinks where the filesystem has them)      while the container is frozen
//! copy --archive_folder / archive_upper--> tar, as podman's restore extracts it       when it runs again
//! tar --extract--> the folder that a restored container gets                          before CRIU restores it
//! ```
//!
//! A tree may hold anything that a container made. So every step down is an `openat` that follows no symbolic link, names
//! are bytes, and errors show paths escaped. Nothing is skipped silently but sockets, which nobody can make again from a
//! file.

mod archive;
mod clone;
mod extract;
mod holes;
mod node;
mod remove;
mod sparse;
mod upper;

use std::io;
use std::path::PathBuf;

pub use self::archive::{ArchivedFolder, archive_folder, archived_folder};
pub use self::clone::{Writers, clone_tree};
pub use self::extract::{ExtractError, extract, has_content, remove_paths};
pub use self::holes::HoleWriter;
pub use self::remove::remove_tree;
pub use self::upper::archive_upper;

/// The longest path below a tree's own folder, in bytes. The rest of 4,095 is for the folder in which an engine extracts it.
const LONGEST_PATH: usize = 3840;

/// Why a tree of files was not copied or archived.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// A system call failed.
    #[error("cannot {action} {path:?}")]
    Failed {
        /// What was tried, in words that go before the path.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something that nobody should write to was changed while it was read.
    #[error("{path:?} changed while it was read")]
    Changed {
        /// The file or folder.
        path: PathBuf,
    },
    /// The copy would have to hold itself.
    #[error("{path:?} is where the copy goes, and lies in the folder that is copied")]
    CopyInside {
        /// The folder of the copy.
        path: PathBuf,
    },
    /// An overlay upper folder that only the kernel can read together with the lower ones.
    #[error(
        "{path:?} has the overlay attribute {attribute:?}, so what it holds is not known from the upper folder alone"
    )]
    Overlay {
        /// The file or folder.
        path: PathBuf,
        /// The extended attribute.
        attribute: &'static str,
    },
    /// A deleted file whose name the list of deleted files, being JSON, cannot hold.
    #[error("{path:?} was deleted, and its name is no UTF-8, which the list of deleted files cannot hold")]
    NotText {
        /// Where it was.
        path: PathBuf,
    },
    /// An extended attribute with `=` in its name, which archives cannot hold.
    #[error("{path:?} has the extended attribute {name:?}, whose name an archive cannot hold")]
    AttributeName {
        /// The file or folder.
        path: PathBuf,
        /// The attribute's name.
        name: String,
    },
    /// A path that no engine could make again: podman's restore extracts by whole paths, and the kernel takes 4,095 bytes of one.
    #[error(
        "the path that begins with {beginning:?} has {bytes} bytes; podman cannot restore one of more than {LONGEST_PATH}"
    )]
    PathTooLong {
        /// Its first characters.
        beginning: String,
        /// Its length, from the tree's own folder on.
        bytes: usize,
    },
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}
