//! Dumps: where they lie and how to read them.

mod captured;
mod folder;
mod recognize;
mod spooled;

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::captured::Captured;
use self::captured::{AddedFile, Replaced};
use self::folder::FolderReader;
pub use self::recognize::RecognizeError;
pub(crate) use self::recognize::Recognizer;
use self::spooled::SpooledReader;
use crate::archive::{ArchiveError, ArchiveReader, Decoder, Entries, EntryName, read_full};
use crate::image_streamer::ImageFiles;
use crate::page_server::Received;
use crate::{Compression, Limits};

/// One dump, found but not read: an archive file of any compression, a plain archive that is just being written, or a folder.
///
/// Two folders are understood: an unpacked archive (`checkpoint/inventory.img` is in it), and what
/// `runc checkpoint --image-path` fills (`inventory.img` is in it), whose files become `checkpoint/...`.
#[derive(Debug)]
pub struct DumpSource {
    path: PathBuf,
    input: Input,
    /// What goes into the place of entries, or comes after all of them.
    added: Vec<AddedFile>,
    /// Its memory, if that came in a stream.
    received: Option<Arc<Received>>,
}

enum Input {
    Archive(File, Compression),
    Stream(Box<dyn Read + Send>),
    Folder { prefix: &'static [u8] },
    Spooled { files: Arc<ImageFiles>, modified: u64 },
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Archive(file, compression) => f.debug_tuple("Archive").field(file).field(compression).finish(),
            Self::Stream(_) => f.write_str("Stream"),
            Self::Folder { prefix } => f.debug_struct("Folder").field("prefix", prefix).finish(),
            Self::Spooled { files, .. } => f.debug_tuple("Spooled").field(files).finish(),
        }
    }
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
    /// Fewer pages than its pagemaps count.
    #[error(
        "dump {} is not whole: {pages} has {found} bytes, but {pagemap} counts {counted} (CRIU would never be done reading them)",
        path.display()
    )]
    Short {
        /// The file or folder.
        path: PathBuf,
        /// The file of pages.
        pages: EntryName,
        /// Its bytes; 0 if it is not there.
        found: u64,
        /// The pagemap.
        pagemap: EntryName,
        /// Bytes of the pages that it counts.
        counted: u64,
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
        let bundle_config = bundle_config.map(|path| AddedFile::open("config.json", path)).transpose()?;
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
        Ok(Self { path: path.to_owned(), input, added: bundle_config.into_iter().collect(), received: None })
    }

    /// Takes an engine's plain tar archive that is being written: it is read once, in order, as it comes, and never copied.
    ///
    /// What was captured takes the place of the archive's entries of the same names; what the archive has no entry for is
    /// added. Messages call the dump `name`.
    ///
    /// # Errors
    /// A captured file that cannot be opened.
    pub fn stream(name: &str, stream: impl Read + Send + 'static, captured: Captured) -> Result<Self, DumpError> {
        let added = captured.open()?;
        Ok(Self { path: PathBuf::from(name), input: Input::Stream(Box::new(stream)), added, received: None })
    }

    /// Takes CRIU's images as they came through `criu dump --stream`, modified at a time in seconds since 1970, and what was
    /// captured as [`DumpSource::stream`] does. Messages call the dump `name`.
    ///
    /// # Errors
    /// A captured file that cannot be opened.
    pub fn images(name: &str, files: Arc<ImageFiles>, modified: u64, captured: &Captured) -> Result<Self, DumpError> {
        let (path, added) = (PathBuf::from(name), captured.open()?);
        Ok(Self { path, input: Input::Spooled { files, modified }, added, received: None })
    }

    /// Adds files that were captured while the container stood frozen: each takes the place of the dump's own of that name.
    ///
    /// # Errors
    /// A captured file that cannot be opened.
    pub fn with_captured(mut self, captured: &Captured) -> Result<Self, DumpError> {
        self.added.extend(captured.open()?);
        self.added.sort_by(|one, other| one.name().cmp(other.name()));
        Ok(self)
    }

    /// Says that CRIU sent its pages away while it made this dump, and what it sent. The dump is packed as if CRIU had written them
    /// beside its other files.
    #[must_use]
    pub fn with_pages(self, received: impl Into<Arc<Received>>) -> Self {
        Self { received: Some(received.into()), ..self }
    }

    pub(crate) fn take_pages(mut self) -> (Self, Option<Arc<Received>>) {
        let received = self.received.take();
        (self, received)
    }

    /// Where it lies; of a stream, what it is called.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts to read.
    pub(crate) fn into_entries(self, limits: &Limits) -> Result<Replaced, DumpError> {
        let inner: Box<dyn Entries> = match self.input {
            Input::Archive(file, compression) => {
                let decoder = Decoder::new(file, compression, limits);
                let decoder = decoder.map_err(|source| DumpError::Open { path: self.path.clone(), source })?;
                Box::new(ArchiveReader::new(decoder, limits))
            }
            Input::Stream(stream) => Box::new(ArchiveReader::new(stream, limits)),
            Input::Folder { prefix } => Box::new(FolderReader::new(&self.path, prefix, limits)),
            Input::Spooled { files, modified } => Box::new(SpooledReader::new(files, modified)),
        };
        Ok(Replaced::new(inner, self.added))
    }
}

fn open_file(path: &Path) -> Result<File, DumpError> {
    File::open(path).map_err(|source| DumpError::Open { path: path.to_owned(), source })
}
