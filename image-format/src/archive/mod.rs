//! Trees of files as a stream of entries: what a dump is before it becomes layers, and what layers hold.
//!
//! ```text
//! file -> Decoder -> ArchiveReader --+
//!                                    +-> Entry + its bytes -> Guard (is it allowed?) -> layers, or a folder
//! folder ----------> FolderReader ---+
//! ```
//!
//! Nothing here trusts its input. Readers bound what they hold in memory; the [`Guard`] decides about names, links and
//! totals, once, for every source.

mod ahead;
mod decode;
mod encode;
mod frames;
mod guard;
mod header;
mod read;
mod sparse;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};

pub(crate) use ahead::Ahead;
pub(crate) use decode::Decoder;
pub(crate) use encode::Encoder;
pub(crate) use frames::{SAMPLE, SAMPLES, Trial};
pub(crate) use guard::{Guard, parent, stays_inside};
pub(crate) use header::{DETOUR, END, TarEntry, TarKind, padding, write_header, write_removal};
pub(crate) use read::ArchiveReader;
pub(crate) use sparse::sparse_map;

/// Bytes of one copy: large enough that system calls, hashing and compression run at full speed.
pub(crate) const CHUNK: usize = 256 << 10;

/// One file, directory or link. Its bytes, if it is a file, come from the [`Entries`] that gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Path with `/` between its components; relative and without `.` or `..` once a [`Guard`] admitted it.
    pub name: Vec<u8>,
    pub kind: EntryKind,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since 1970. Layers do not keep it.
    pub mtime: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    /// One that no dump has as an entry, with the permissions, owner and time that such entries have.
    pub fn plain(name: impl Into<Vec<u8>>, kind: EntryKind) -> Self {
        let mode = match kind {
            EntryKind::Directory => 0o700,
            EntryKind::Symlink { .. } => 0o777,
            EntryKind::File { .. } | EntryKind::HardLink { .. } => 0o600,
        };
        Self { name: name.into(), kind, mode, uid: 0, gid: 0, mtime: 0, xattrs: BTreeMap::new() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File {
        size: u64,
    },
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    /// Another name of an earlier file, by that file's name.
    HardLink {
        target: Vec<u8>,
    },
}

impl Entry {
    /// Bytes of content.
    pub fn size(&self) -> u64 {
        match self.kind {
            EntryKind::File { size } => size,
            _ => 0,
        }
    }
}

/// One entry of the archive of a container's files, which hold more than dumps do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreeEntry {
    /// As the archive has it.
    pub name: Vec<u8>,
    pub kind: TreeKind,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// What goes on top of them.
    pub mtime_nanos: u32,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TreeKind {
    File {
        size: u64,
    },
    Directory,
    Symlink {
        target: Vec<u8>,
    },
    HardLink {
        target: Vec<u8>,
    },
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
    /// What was extracted under this name was only needed meanwhile, see [`write_removal`].
    Removal,
}

/// A source of entries. Reading from it gives the bytes of the entry that came last, and ends with them.
pub(crate) trait Entries: Read {
    /// The next entry; what was not read of the one before is skipped. `None` after the last one.
    fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError>;
}

/// Why an archive, a layer or a folder was not read to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// A name that starts with `/`.
    #[error("entry {entry}: the name is absolute")]
    AbsoluteName {
        /// The name as it may be shown.
        entry: EntryName,
    },
    /// A name with `..` in it.
    #[error("entry {entry}: the name leaves its folder through \"..\"")]
    NameLeaves {
        /// The name as it may be shown.
        entry: EntryName,
    },
    /// An empty name, a NUL in it, or a file whose name ends like that of a directory.
    #[error("entry {entry}: the name {problem}")]
    BadName {
        /// The name as it may be shown.
        entry: EntryName,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A name or a link's target that is too long.
    #[error("entry {entry}: a name of {len} bytes is over the limit of {limit}")]
    NameTooLong {
        /// The name as it may be shown.
        entry: EntryName,
        /// Its bytes, or those of its target.
        len: usize,
        /// [`crate::Limits::name_bytes`].
        limit: usize,
    },
    /// A name with too many components.
    #[error("entry {entry}: nested deeper than the limit of {limit} folders")]
    TooDeep {
        /// The name as it may be shown.
        entry: EntryName,
        /// [`crate::Limits::name_depth`].
        limit: usize,
    },
    /// A name that engines take for the removal of a file (OCI image specification, whiteouts).
    #[error("entry {entry}: names that start with \".wh.\" remove files when an engine mounts an image")]
    Whiteout {
        /// The name as it may be shown.
        entry: EntryName,
    },
    /// A symbolic link to somewhere outside, or through `..` in the middle of its target.
    #[error("entry {entry}: the link to {target} may leave its folder")]
    LinkLeaves {
        /// The name as it may be shown.
        entry: EntryName,
        /// Where it points.
        target: EntryName,
    },
    /// A hard link to something that is not an earlier file of the same archive.
    #[error("entry {entry}: a hard link to {target}, which is no earlier file")]
    HardLinkTarget {
        /// The name as it may be shown.
        entry: EntryName,
        /// What it names.
        target: EntryName,
    },
    /// A device, a pipe, or another type that no dump holds.
    #[error("entry {entry}: a {kind} has no place in a dump")]
    UnsupportedType {
        /// The name as it may be shown.
        entry: EntryName,
        /// The type in words.
        kind: &'static str,
    },
    /// A name that was there before.
    #[error("entry {entry}: there twice")]
    Duplicate {
        /// The name as it may be shown.
        entry: EntryName,
    },
    /// A name below a file or a link.
    #[error("entry {entry}: its parent is no folder")]
    ParentNotFolder {
        /// The name as it may be shown.
        entry: EntryName,
    },
    /// A link or directory that claims to have content.
    #[error("entry {entry}: content where none can be")]
    UnexpectedContent {
        /// The name as it may be shown.
        entry: EntryName,
    },
    /// More entries than allowed.
    #[error("entry {entry}: more entries than the limit of {limit}")]
    TooManyEntries {
        /// The first entry that is too much.
        entry: EntryName,
        /// [`crate::Limits::entries`].
        limit: u64,
    },
    /// More content than allowed.
    #[error("entry {entry}: with its {size} bytes the content is over the limit of {limit} bytes")]
    TooLarge {
        /// The first entry that is too much.
        entry: EntryName,
        /// Its bytes.
        size: u64,
        /// [`crate::Limits::total_bytes`], or the bound on that one file.
        limit: u64,
    },
    /// Headers, long names or attributes of one entry that are too large.
    #[error("the headers of one entry are over the limit of {limit} bytes")]
    HeaderTooLarge {
        /// [`crate::Limits::header_bytes`].
        limit: u64,
    },
    /// Headers that contradict themselves or the format.
    #[error("malformed archive: {problem}")]
    Malformed {
        /// What is wrong.
        problem: &'static str,
    },
    /// The input ends before the archive does.
    #[error("the archive is truncated")]
    Truncated,
    /// Something follows the archive's end.
    #[error("there is data after the end of the archive")]
    TrailingData,
    /// A zstd frame that needs more memory than allowed.
    #[error("a zstd frame asks for a window of more than 2^{limit} bytes")]
    WindowTooLarge {
        /// [`crate::Limits::zstd_window_log`].
        limit: u32,
    },
    /// A file that grew, shrank or changed its type while it was read.
    #[error("entry {entry}: changed while it was read")]
    Changed {
        /// The name as it may be shown.
        entry: EntryName,
    },
    /// The input could not be read or decompressed.
    #[error("cannot read the content")]
    Read(#[source] io::Error),
}

impl ArchiveError {
    /// Tells an input that ended too early from one that failed.
    pub(crate) fn read(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(known) => known,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Self::Truncated,
            Err(error) => Self::Read(error),
        }
    }
}

/// A name from untrusted input in a form that is safe to show: escaped, and cut at 200 characters.
#[derive(Clone, PartialEq, Eq)]
pub struct EntryName(Box<str>);

impl EntryName {
    pub(crate) fn new(name: &[u8]) -> Self {
        const SHOWN: usize = 200;
        let text = String::from_utf8_lossy(&name[..name.len().min(4 * SHOWN)]);
        let mut shown: String = text.chars().take(SHOWN).collect();
        if shown.len() < name.len() && text.chars().nth(SHOWN).is_some() {
            shown.push('…');
        }
        Self(shown.into_boxed_str())
    }
}

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Debug for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads until `buf` is full or the input ends; how much it was.
pub(crate) fn read_full(from: &mut (impl Read + ?Sized), buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match from.read(&mut buf[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
