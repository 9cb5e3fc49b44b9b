//! Makes dumps of checkpoint images again: the engine's own archive, or a folder. Also reads what an image says about its
//! dump, without its memory pages.

mod folder;
mod layers;
mod spec;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use self::folder::Folder;
use self::layers::Layers;
pub use self::spec::SpecError;
use self::spec::Specs;
use crate::archive::{ArchiveError, CHUNK, END, Encoder, EntryKind, padding, write_header};
use crate::dump::{RecognizeError, Recognizer};
use crate::facts::{Facts, FactsBuilder, FactsError};
use crate::image::{CheckpointImage, ImageError};
use crate::{BlobSource, Compression, Digest, LayerContent, Limits};

/// How to unpack.
#[derive(Debug, Clone, Default)]
pub struct UnpackOptions {
    /// Annotations to set in the container's runtime specification (`spec.dump`, or `config.json` of runc) on the way.
    pub spec_annotations: BTreeMap<String, String>,
    /// How much to take from the image.
    pub limits: Limits,
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
    let mut layers = Layers::open(image, blobs, &options.limits)?;
    let mut specs = Specs::new(image, options);
    let mut out = Encoder::new(out, compression);
    let mut buf = vec![0; CHUNK];
    while let Some(mut layer) = layers.next_layer()? {
        while let Some(mut entry) = layer.next_entry()? {
            let spec = specs.replace(&mut entry, &mut layer)?;
            write_header(&entry, layer.created(), &mut out).map_err(UnpackError::Write)?;
            out.write_all(&spec).map_err(UnpackError::Write)?;
            layer.copy(entry.size() - spec.len() as u64, &mut buf, |bytes| {
                out.write_all(bytes).map_err(UnpackError::Write)
            })?;
            out.write_all(padding(entry.size())).map_err(UnpackError::Write)?;
        }
    }
    layers.finish()?;
    specs.finish()?;
    out.write_all(&END).and_then(|()| out.finish()).map_err(UnpackError::Write)
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
    let failed = |source| UnpackError::Folder { path: dir.to_owned(), source };
    let mut layers = Layers::open(image, blobs, &options.limits)?;
    let mut specs = Specs::new(image, options);
    let folder = Folder::create(dir, layers.created()).map_err(failed)?;
    let mut buf = vec![0; CHUNK];
    while let Some(mut layer) = layers.next_layer()? {
        while let Some(mut entry) = layer.next_entry()? {
            let spec = specs.replace(&mut entry, &mut layer)?;
            let Some(mut file) = folder.add(&entry).map_err(failed)? else {
                continue;
            };
            file.write_all(&spec).map_err(failed)?;
            layer.copy(entry.size() - spec.len() as u64, &mut buf, |bytes| file.write_all(bytes).map_err(failed))?;
            folder.close(&file).map_err(failed)?;
        }
    }
    layers.finish()?;
    specs.finish()?;
    folder.finish().map_err(failed)
}

/// Reads what the dump in an image says about itself. Of an image whose layers say what they hold, only the state is
/// fetched.
///
/// # Errors
/// As [`unpack_archive`], and files of the dump that are not what their names say.
pub fn read_state(image: &CheckpointImage, blobs: &dyn BlobSource, limits: &Limits) -> Result<Facts, UnpackError> {
    let digest = image.manifest().digest;
    let not_a_dump = |source| UnpackError::NotADump { image: digest, source };
    let mut layers = Layers::open(image, blobs, limits)?;
    layers.retain(|content| !matches!(content, Some(LayerContent::Files | LayerContent::Pages)));
    let mut facts = FactsBuilder::default();
    facts.add_image_annotations(image.annotations());
    let mut recognizer = Recognizer::default();
    while let Some(mut layer) = layers.next_layer()? {
        while let Some(entry) = layer.next_entry()? {
            recognizer.saw(&entry.name);
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
