//! Makes dumps of checkpoint images again: the engine's own archive, or a folder. Also reads what an image says about its
//! dump, without its memory pages.

mod files;
mod folder;
mod layers;
mod lazily;
mod memory;
mod merge;
mod spec;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub use self::files::{FileState, read_files};
use self::folder::Folder;
pub(crate) use self::layers::Layers;
use self::lazily::Lazily;
pub use self::lazily::{LazyPages, LazyProcess, LazyRun, ToProcess, touched_pages};
use self::memory::{Memory, Rebuild, Replaced};
use self::merge::Merge;
pub use self::spec::SpecError;
use self::spec::Specs;
use crate::archive::{ArchiveError, CHUNK, END, Encoder, Entry, EntryKind, EntryName, padding, write_header};
use crate::dump::{RecognizeError, Recognizer};
use crate::facts::{Facts, FactsBuilder, FactsError};
use crate::files::HoleWriter;
use crate::generation::TableError;
use crate::image::{CheckpointImage, ImageError};
use crate::pack::SCRATCH;
use crate::{BlobSource, Compression, Digest, Limits};

/// How to unpack.
#[derive(Debug, Clone)]
pub struct UnpackOptions {
    /// Annotations to set in the container's runtime specification (`spec.dump`, or `config.json` of runc) on the way.
    pub spec_annotations: BTreeMap<String, String>,
    /// Files of the dump that go elsewhere than the others, such as `volumes/data.tar`: into files
    /// of mode 0600, in place of what is there.
    pub aside: BTreeMap<String, PathBuf>,
    /// A folder for files without a name, for tables of pages that are too much for memory.
    pub scratch: PathBuf,
    /// How much to take from the image.
    pub limits: Limits,
}

impl Default for UnpackOptions {
    fn default() -> Self {
        Self {
            spec_annotations: BTreeMap::new(),
            aside: BTreeMap::new(),
            scratch: SCRATCH.into(),
            limits: Limits::default(),
        }
    }
}

/// Why an image was not unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The image's config cannot be fetched.
    #[error("image {}: cannot fetch the config", image.short())]
    FetchConfig {
        /// Digest of the manifest.
        image: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image's config is too large, is none, or belongs to other layers.
    #[error("image {}: the config is not usable", image.short())]
    Config {
        /// Digest of the manifest.
        image: Digest,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// A layer cannot be fetched.
    #[error("image {}: cannot fetch layer {layer}", image.short())]
    FetchLayer {
        /// Digest of the manifest.
        image: Digest,
        /// Digest of the layer.
        layer: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A layer is damaged or not safe to take.
    #[error("image {}: layer {layer} is not usable", image.short())]
    Layer {
        /// Digest of the manifest.
        image: Digest,
        /// Digest of the layer.
        layer: Digest,
        /// Which entry, and why.
        #[source]
        source: ArchiveError,
    },
    /// A layer's plain bytes are not those that the config names.
    #[error("image {}: layer {layer} unpacks to {found}, which is not what the config says", image.short())]
    DiffId {
        /// Digest of the manifest.
        image: Digest,
        /// Digest of the layer.
        layer: Digest,
        /// What came out.
        found: Digest,
    },
    /// A table of pages cannot be used.
    #[error("image {}: layer {layer} has no usable table of pages", image.short())]
    Table {
        /// Digest of the manifest.
        image: Digest,
        /// Digest of the layer.
        layer: Digest,
        /// Which entry, and why.
        #[source]
        source: TableError,
    },
    /// The chain of generations is not what the table of pages says.
    #[error("image {}: entry {entry} {reason}", image.short())]
    Chain {
        /// Digest of the manifest.
        image: Digest,
        /// A file of the dump.
        entry: EntryName,
        /// What is wrong with it.
        reason: String,
    },
    /// Its tasks cannot run before all of their memory is there.
    #[error("image {}: all memory has to be there first: {reason}", image.short())]
    NotLazy {
        /// Digest of the manifest.
        image: Digest,
        /// Why.
        reason: String,
    },
    /// A table of pages cannot be read back.
    #[error("image {}: cannot read the tables of pages in a temporary file", image.short())]
    Scratch {
        /// Digest of the manifest.
        image: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The layers hold no dump that is known.
    #[error("image {}: its layers hold no dump", image.short())]
    NotADump {
        /// Digest of the manifest.
        image: Digest,
        /// What is missing.
        #[source]
        source: RecognizeError,
    },
    /// What the dump says about itself cannot be read.
    #[error("image {}: cannot read the facts", image.short())]
    Facts {
        /// Digest of the manifest.
        image: Digest,
        /// Why.
        #[source]
        source: FactsError,
    },
    /// Annotations shall be set, but the runtime specification is not there.
    #[error("image {}: no spec.dump or config.json to set annotations in", image.short())]
    NoSpec {
        /// Digest of the manifest.
        image: Digest,
    },
    /// Annotations shall be set, but the runtime specification is too large or no JSON object.
    #[error("image {}: {entry} is no runtime specification", image.short())]
    Spec {
        /// Digest of the manifest.
        image: Digest,
        /// The file.
        entry: String,
        /// Why.
        #[source]
        source: SpecError,
    },
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// The folder cannot be made or written to.
    #[error("cannot write to the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Writes the archive that the engine itself would have exported, with every file identical, and gives the writer back.
///
/// Whatever was written must be thrown away if this fails: that a layer is not what its digest says shows at its end only.
///
/// # Errors
/// An image that is damaged or unsafe, blobs that cannot be fetched, a writer that fails.
pub fn unpack_archive<W: Write>(
    image: &CheckpointImage,
    blobs: &dyn BlobSource,
    compression: Compression,
    options: &UnpackOptions,
    out: W,
) -> Result<W, UnpackError> {
    let layers = Layers::open(image, blobs, &options.limits)?;
    let mut archive = Archive { out: Encoder::new(out, compression) };
    unpack(layers, image, blobs, options, &mut archive)?;
    archive.finish()
}

/// Writes the archive with the memory that has to be there before its tasks run, and gives all that may follow. CRIU takes such a
/// dump only with `lazy-pages`.
///
/// # Errors
/// As [`unpack_archive`], and [`UnpackError::NotLazy`].
pub fn unpack_archive_lazily<W: Write>(
    image: &CheckpointImage,
    blobs: &dyn BlobSource,
    options: &UnpackOptions,
    out: W,
) -> Result<(W, LazyPages), UnpackError> {
    let layers = Layers::open(image, blobs, &options.limits)?;
    let mut archive = Archive { out: Encoder::new(out, Compression::None) };
    let pages = unpack_lazily(layers, image, blobs, options, &mut archive)?;
    Ok((archive.finish()?, pages))
}

/// Writes the files of the dump into a folder that does not exist or is empty: folders with mode 0700, files with 0600,
/// all of them the caller's. It appears under its name only once every digest was checked.
///
/// # Errors
/// As [`unpack_archive`]; nothing is left behind.
pub fn unpack_folder(
    image: &CheckpointImage,
    blobs: &dyn BlobSource,
    options: &UnpackOptions,
    dir: &Path,
) -> Result<(), UnpackError> {
    into_folder(image, blobs, options, dir, |layers, files| unpack(layers, image, blobs, options, files))
}

/// Writes the files into a folder as [`unpack_folder`], with the memory that [`unpack_archive_lazily`] writes.
///
/// # Errors
/// As these two.
pub fn unpack_folder_lazily(
    image: &CheckpointImage,
    blobs: &dyn BlobSource,
    options: &UnpackOptions,
    dir: &Path,
) -> Result<LazyPages, UnpackError> {
    into_folder(image, blobs, options, dir, |layers, files| unpack_lazily(layers, image, blobs, options, files))
}

/// Gives the folder its name once `unpack` has filled it.
fn into_folder<'a, T>(
    image: &CheckpointImage,
    blobs: &'a dyn BlobSource,
    options: &UnpackOptions,
    dir: &Path,
    unpack: impl FnOnce(Layers<'a>, &mut dyn Target) -> Result<T, UnpackError>,
) -> Result<T, UnpackError> {
    let failed = |source| UnpackError::Folder { path: dir.to_owned(), source };
    let layers = Layers::open(image, blobs, &options.limits)?;
    let folder = Folder::create(dir, layers.created()).map_err(failed)?;
    let mut files = Files { folder, dir, file: None };
    let unpacked = unpack(layers, &mut files)?;
    files.folder.finish().map_err(failed)?;
    Ok(unpacked)
}

/// What a dump is unpacked to.
trait Target {
    /// Makes an entry, whose time is in seconds since 1970.
    fn begin(&mut self, entry: &Entry, created: u64) -> Result<(), UnpackError>;
    /// Takes bytes of it.
    fn write(&mut self, bytes: &[u8]) -> Result<(), UnpackError>;
    /// Has all of them.
    fn end(&mut self, entry: &Entry) -> Result<(), UnpackError>;
}

/// The entries of an image as they were in the dump.
fn unpack(
    mut layers: Layers<'_>,
    image: &CheckpointImage,
    blobs: &dyn BlobSource,
    options: &UnpackOptions,
    target: &mut dyn Target,
) -> Result<(), UnpackError> {
    let memory = Memory::open(image, &mut layers, options)?;
    let mut merge = memory.map(|memory| Merge::new(memory, blobs, &options.limits));
    let created = layers.created();
    copy(layers, image, options, merge.as_mut().map(|merge| merge as &mut dyn Rebuild), target)?;
    merge.map_or(Ok(()), |merge| merge.write(created, target))
}

/// The same without the memory that may follow, which is given back.
fn unpack_lazily(
    mut layers: Layers<'_>,
    image: &CheckpointImage,
    blobs: &dyn BlobSource,
    options: &UnpackOptions,
    target: &mut dyn Target,
) -> Result<LazyPages, UnpackError> {
    let memory = Memory::open(image, &mut layers, options)?;
    let mut lazily = Lazily::new(image.manifest().digest, memory, blobs, options)?;
    let created = layers.created();
    copy(layers, image, options, Some(&mut lazily), target)?;
    lazily.write(created, target)
}

/// Copies everything but memory.
fn copy(
    mut layers: Layers<'_>,
    image: &CheckpointImage,
    options: &UnpackOptions,
    mut memory: Option<&mut dyn Rebuild>,
    target: &mut dyn Target,
) -> Result<(), UnpackError> {
    let mut specs = Specs::new(image, options);
    let created = layers.created();
    let mut buf = vec![0; CHUNK];
    while let Some(mut layer) = layers.next_layer()? {
        while let Some(mut entry) = layer.next_entry()? {
            let replaced = memory.as_mut().map_or(Ok(Replaced::No), |memory| memory.replace(&entry, &mut layer))?;
            let is_file = matches!(entry.kind, EntryKind::File { .. });
            let aside = str::from_utf8(&entry.name).ok().and_then(|name| options.aside.get(name)).filter(|_| is_file);
            match (replaced, aside) {
                (Replaced::No, Some(path)) => {
                    put_aside(path, &entry, &mut layer, &mut buf)?;
                    continue;
                }
                (Replaced::No, None) => {
                    let spec = specs.replace(&mut entry, &mut layer)?;
                    target.begin(&entry, created)?;
                    target.write(&spec)?;
                    layer.copy(entry.size() - spec.len() as u64, &mut buf, |bytes| target.write(bytes))?;
                }
                (Replaced::Nothing, _) => continue,
                (Replaced::Bytes(bytes), _) => {
                    entry.kind = EntryKind::File { size: bytes.len() as u64 };
                    target.begin(&entry, created)?;
                    target.write(&bytes)?;
                }
            }
            target.end(&entry)?;
        }
    }
    layers.finish()?;
    specs.finish()
}

/// Writes a file of the dump into one of its own.
fn put_aside(path: &Path, entry: &Entry, layer: &mut layers::Layer<'_, '_>, buf: &mut [u8]) -> Result<(), UnpackError> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    let mut out = HoleWriter::new(file.map_err(UnpackError::Write)?);
    layer.copy(entry.size(), buf, |bytes| out.write_all(bytes).map_err(UnpackError::Write))?;
    out.finish().map(drop).map_err(UnpackError::Write)
}

/// An archive that is being written.
struct Archive<W: Write> {
    out: Encoder<W>,
}

impl<W: Write> Archive<W> {
    fn finish(mut self) -> Result<W, UnpackError> {
        self.out.write_all(&END).and_then(|()| self.out.finish()).map_err(UnpackError::Write)
    }
}

impl<W: Write> Target for Archive<W> {
    fn begin(&mut self, entry: &Entry, created: u64) -> Result<(), UnpackError> {
        write_header(entry, created, &mut self.out).map_err(UnpackError::Write)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        self.out.write_all(bytes).map_err(UnpackError::Write)
    }

    fn end(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        self.out.write_all(padding(entry.size())).map_err(UnpackError::Write)
    }
}

/// A folder that is being filled.
struct Files<'a> {
    folder: Folder,
    dir: &'a Path,
    file: Option<HoleWriter>,
}

impl Files<'_> {
    fn failed(&self, source: io::Error) -> UnpackError {
        UnpackError::Folder { path: self.dir.to_owned(), source }
    }
}

impl Target for Files<'_> {
    fn begin(&mut self, entry: &Entry, _: u64) -> Result<(), UnpackError> {
        self.file = self.folder.add(entry).map_err(|source| self.failed(source))?.map(HoleWriter::new);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), UnpackError> {
        let written = self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes));
        written.map_err(|source| self.failed(source))
    }

    fn end(&mut self, _: &Entry) -> Result<(), UnpackError> {
        let closed = self.file.take().map_or(Ok(()), |file| self.folder.close(&file.finish()?));
        closed.map_err(|source| self.failed(source))
    }
}

/// What the layers with the state may unpack to, besides [`STATE_RATIO`] times their size.
const STATE_BYTES: u64 = 4 << 30;
/// Real dumps compress less well than this, unless all of their memory is zeros.
const STATE_RATIO: u64 = 1000;

/// Reads what the dump in an image says about itself. Of an image whose layers say what they hold, only the state is
/// fetched. It may not unpack to much more than its size.
///
/// # Errors
/// As [`unpack_archive`], and files of the dump that are not what their names say.
pub fn read_state(image: &CheckpointImage, blobs: &dyn BlobSource, limits: &Limits) -> Result<Facts, UnpackError> {
    let digest = image.manifest().digest;
    let not_a_dump = |source| UnpackError::NotADump { image: digest, source };
    // This is read of images that nobody has verified, so a small layer must not unpack for hours.
    let state = image.layers().iter().filter(|layer| layer.may_hold_state()).map(|layer| layer.descriptor.size);
    let size = state.fold(0, u64::saturating_add).saturating_mul(STATE_RATIO).saturating_add(STATE_BYTES);
    let limits = &Limits { total_bytes: limits.total_bytes.min(size), ..limits.clone() };
    let mut layers = Layers::open(image, blobs, limits)?;
    layers.keep_state();
    let mut facts = FactsBuilder::default();
    facts.add_image_annotations(image.annotations());
    let mut recognizer = Recognizer::default();
    while let Some(mut layer) = layers.next_layer()? {
        while let Some(entry) = layer.next_entry()? {
            recognizer.saw(&entry);
            let name = str::from_utf8(&entry.name).ok().filter(|_| matches!(entry.kind, EntryKind::File { .. }));
            if let Some((name, wanted)) = name.and_then(|name| Some((name, FactsBuilder::wants(name)?))) {
                let head = layer.read_head(wanted.min(entry.size()))?;
                let added = facts.add(name, entry.size(), &head);
                added.map_err(|source| UnpackError::Facts { image: digest, source })?;
                recognizer.add(name, &head).map_err(not_a_dump)?;
            }
        }
    }
    let kind = recognizer.finish().map_err(not_a_dump)?;
    Ok(facts.finish(kind))
}
