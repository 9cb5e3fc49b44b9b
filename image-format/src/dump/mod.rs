//! Dumps: where they lie and how to read them.

mod folder;
mod recognize;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use self::folder::FolderReader;
pub use self::recognize::RecognizeError;
pub(crate) use self::recognize::Recognizer;
use crate::archive::{ArchiveError, ArchiveReader, Decoder, Entries, Entry, EntryKind, read_full};
use crate::{Compression, Limits};

/// One dump, found but not read: an archive file of any compression, or a folder.
///
/// Two folders are understood: an unpacked archive (`checkpoint/inventory.img` is in it), and what
/// `runc checkpoint --image-path` fills (`inventory.img` is in it), whose files become `checkpoint/...`.
#[derive(Debug)]
pub struct DumpSource {
    path: PathBuf,
    input: Input,
    bundle_config: Option<File>,
}

#[derive(Debug)]
enum Input {
    Archive(File, Compression),
    Folder { prefix: &'static [u8] },
}

/// Why a dump cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// Not there, or not readable.
    #[error("cannot open {}", path.display())]
    Open {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither a file nor a folder with a dump in it.
    #[error("{} is {problem}", path.display())]
    NotADump {
        /// The file or folder.
        path: PathBuf,
        /// What it is instead.
        problem: &'static str,
    },
    /// Its archive or folder cannot be read or is not safe to take.
    #[error("dump {}", path.display())]
    Content {
        /// The file or folder.
        path: PathBuf,
        /// Which entry, and why.
        #[source]
        source: ArchiveError,
    },
    /// Readable, but no known engine's dump.
    #[error("{} is not a dump", path.display())]
    Unknown {
        /// The file or folder.
        path: PathBuf,
        /// What is missing.
        #[source]
        source: RecognizeError,
    },
}

impl DumpSource {
    /// Finds a dump. `bundle_config` is the `config.json` of a runc bundle, packed along as `config.json`.
    ///
    /// # Errors
    /// Nothing readable there, or neither an archive nor a folder that holds a dump.
    pub fn open(path: &Path, bundle_config: Option<&Path>) -> Result<Self, DumpError> {
        let bundle_config = bundle_config.map(open_file).transpose()?;
        let metadata = path.metadata().map_err(|source| DumpError::Open { path: path.to_owned(), source })?;
        let not_a_dump = |problem| Err(DumpError::NotADump { path: path.to_owned(), problem });
        let input = if metadata.is_dir() {
            if path.join("checkpoint/inventory.img").is_file() || path.join("pre-checkpoint/inventory.img").is_file() {
                Input::Folder { prefix: b"" }
            } else if path.join("inventory.img").is_file() {
                Input::Folder { prefix: b"checkpoint" }
            } else {
                return not_a_dump("a folder without checkpoint/inventory.img or inventory.img");
            }
        } else if metadata.is_file() {
            let mut file = open_file(path)?;
            let mut magic = [0; 4];
            let found = read_full(&mut file, &mut magic).and_then(|read| file.rewind().map(|()| read));
            let found = found.map_err(|source| DumpError::Open { path: path.to_owned(), source })?;
            if found == 0 {
                return not_a_dump("an empty file");
            }
            Input::Archive(file, Compression::of_content(&magic))
        } else {
            return not_a_dump("neither a file nor a folder");
        };
        Ok(Self { path: path.to_owned(), input, bundle_config })
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts to read.
    pub(crate) fn into_entries(self, limits: &Limits) -> Result<DumpEntries, DumpError> {
        let inner: Box<dyn Entries> = match self.input {
            Input::Archive(file, compression) => {
                let decoder = Decoder::new(file, compression, limits);
                let decoder = decoder.map_err(|source| DumpError::Open { path: self.path.clone(), source })?;
                Box::new(ArchiveReader::new(decoder, limits))
            }
            Input::Folder { prefix } => Box::new(FolderReader::new(&self.path, prefix, limits)),
        };
        Ok(DumpEntries { inner, bundle_config: self.bundle_config, current: None })
    }
}

fn open_file(path: &Path) -> Result<File, DumpError> {
    File::open(path).map_err(|source| DumpError::Open { path: path.to_owned(), source })
}

/// The entries of a dump, the bundle's configuration last.
pub(crate) struct DumpEntries {
    inner: Box<dyn Entries>,
    bundle_config: Option<File>,
    /// The bundle's configuration while it is the current entry.
    current: Option<io::Take<File>>,
}

impl Entries for DumpEntries {
    fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        if self.current.is_some() {
            return Ok(None);
        }
        if let Some(entry) = self.inner.next_entry()? {
            return Ok(Some(entry));
        }
        let Some(file) = self.bundle_config.take() else {
            return Ok(None);
        };
        let metadata = file.metadata().map_err(ArchiveError::Read)?;
        self.current = Some(file.take(metadata.len()));
        Ok(Some(Entry {
            name: b"config.json".to_vec(),
            kind: EntryKind::File { size: metadata.len() },
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: u64::try_from(metadata.mtime()).unwrap_or(0),
            xattrs: BTreeMap::new(),
        }))
    }
}

impl Read for DumpEntries {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.current {
            Some(file) => file.read(buf),
            None => self.inner.read(buf),
        }
    }
}
