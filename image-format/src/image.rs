//! The checkpoint image of one member: an OCI image manifest and its config, read and checked.

mod build;

use std::collections::{BTreeMap, HashMap};

use oci_spec::image as oci;

pub use build::{BuildError, ImageMetadata, build_config, build_manifest};
pub(crate) use build::{check_reserved, checked_created, document, oci_descriptor, write_error};

use crate::annotation::{
    BASE, CRIO_NAME, CRIU_PREFIX, DEPENDS_ON, DUMP_KIND, GENERATIONS, LAYER_CONTENT, LAYER_FIRST_PAGE, LAYER_LINK,
    LAYER_PLAIN_SIZE, MEDIA_CONFIG, MEDIA_MANIFEST, MEMBER, PODMAN_PREFIX,
};
use crate::generation::{Chain, FirstPage, Link};
use crate::json::{self, JsonError};
use crate::version::{FormatVersion, FormatVersionError};
use crate::{Compression, Descriptor, Digest, Document, DumpKind, LayerContent, Limits, MemberId};

/// Layers of one image. Real images have a handful and one more for every 256 MiB of memory.
pub(crate) const MAX_LAYERS: usize = 4096;

/// How the media types of Docker's manifests and manifest lists begin.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.";

/// Why a document is not a checkpoint image that can be used. The messages go after the image's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Docker's own format, whose manifests have no annotations.
    #[error(
        "is in Docker's image format ({media_type}), which cannot hold a checkpoint: push the OCI format \
         (podman push --format oci, skopeo copy --format oci)"
    )]
    Docker {
        /// Its media type.
        media_type: String,
    },
    /// Some other document.
    #[error("is not an image manifest but {media_type:?}")]
    MediaType {
        /// Its media type.
        media_type: String,
    },
    /// The manifest's own media type is not the one under which it was stored.
    #[error("says that it is {inside:?} but is stored as {outside:?}")]
    MediaTypesDiffer {
        /// In the document.
        inside: String,
        /// Of the document.
        outside: String,
    },
    /// The manifest or the config is no JSON, or not of the OCI form.
    #[error("has {what} that cannot be read")]
    Json {
        /// "a manifest" or "a config".
        what: &'static str,
        /// What is wrong with it.
        source: JsonError,
    },
    /// Another version of the OCI schema than 2.
    #[error("has the schema version {version}; only 2 is known")]
    SchemaVersion {
        /// The version.
        version: u32,
    },
    /// The format's version.
    #[error(transparent)]
    Version(FormatVersionError),
    /// A proper image, but no engine's and not this project's mark of a checkpoint.
    #[error("is an image, but not of a checkpoint: no annotation says so")]
    NotACheckpoint,
    /// The config is no image config, as in other artifacts.
    #[error("has a config of type {media_type:?} and is therefore no image")]
    ConfigType {
        /// The config's media type.
        media_type: String,
    },
    /// A digest that is not SHA-256.
    #[error("names {what} by a digest that is not SHA-256: {digest:?}")]
    Digest {
        /// What it names.
        what: &'static str,
        /// The digest, at most 160 characters.
        digest: String,
    },
    /// No layer at all.
    #[error("has no layers")]
    NoLayers,
    /// More layers than are read.
    #[error("has {count} layers; at most {MAX_LAYERS} are allowed")]
    TooManyLayers {
        /// How many.
        count: usize,
    },
    /// A layer of an unknown type.
    #[error("has a layer of type {media_type:?} at position {position}; only tar, tar+gzip and tar+zstd are known")]
    LayerType {
        /// Counted from 0.
        position: usize,
        /// Its media type.
        media_type: String,
    },
    /// The sizes of the layers do not even fit a number of 64 bits.
    #[error("has layers whose sizes are beyond all measure")]
    Sizes,
    /// One digest with two sizes.
    #[error("names the layer {digest} with two sizes, {first} and {second}")]
    TwoSizes {
        /// The layer.
        digest: Digest,
        /// One size.
        first: u64,
        /// The other one.
        second: u64,
    },
    /// An annotation that this project defines and that does not read.
    #[error("has the annotation {key}, but {reason}")]
    Annotation {
        /// Its key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The config lists another number of layers than the manifest.
    #[error("has {layers} layers in its manifest and {diff_ids} in its config")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the config.
        diff_ids: usize,
    },
}

/// One layer, as the manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRef {
    /// Media type, digest and size of the blob.
    pub descriptor: Descriptor,
    /// What it holds; `None` where that is not said, as in images that others made, or said in a word of a newer version.
    pub content: Option<LayerContent>,
    /// How it is compressed.
    pub compression: Compression,
    /// Bytes of the plain tar, as far as the image says; not checked, and so not to be relied on.
    pub plain_size: Option<u64>,
    /// Which link of a chain of generations it is.
    pub link: Option<Link>,
    /// The first page of the link, where the image says so.
    pub first_page: Option<FirstPage>,
}

impl LayerRef {
    /// Whether what the dump says about itself may be in it: it holds the state, or does not say what it holds.
    #[must_use]
    pub fn may_hold_state(&self) -> bool {
        !matches!(self.content, Some(LayerContent::Files | LayerContent::Digests | LayerContent::Pages))
    }
}

/// The checkpoint image of one member: this project's, podman's own, or one that follows CRI-O or checkpointctl.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointImage {
    manifest: Descriptor,
    config: Descriptor,
    layers: Vec<LayerRef>,
    annotations: BTreeMap<String, String>,
    version: Option<FormatVersion>,
    kind: Option<DumpKind>,
    member: Option<MemberId>,
    depends_on: Vec<MemberId>,
    chain: Option<Chain>,
}

impl CheckpointImage {
    /// Reads a manifest and checks everything that it says by itself.
    ///
    /// # Errors
    /// A document that is no checkpoint image, or one of a newer major version.
    pub fn parse(document: &Document) -> Result<Self, ImageError> {
        check_media_type(document.media_type())?;
        let limit = Limits::default().document_bytes;
        let unreadable = |source| ImageError::Json { what: "a manifest", source };
        let value = json::parse_strict(document.bytes(), limit).map_err(unreadable)?;
        let version = FormatVersion::read(&value).map_err(ImageError::Version)?;
        let manifest: oci::ImageManifest = json::typed(value).map_err(unreadable)?;
        if manifest.schema_version() != 2 {
            return Err(ImageError::SchemaVersion { version: manifest.schema_version() });
        }
        check_inner_media_type(manifest.media_type().as_ref(), document.media_type())?;
        let annotations = sorted(manifest.annotations().as_ref());
        if version.is_none() && !is_foreign_checkpoint(&annotations) {
            return Err(ImageError::NotACheckpoint);
        }
        let config = descriptor("its config", manifest.config())?;
        if config.media_type != MEDIA_CONFIG {
            return Err(ImageError::ConfigType { media_type: config.media_type });
        }
        let member = parsed(&annotations, MEMBER)?;
        let depends_on = read_depends_on(&annotations).map_err(|reason| annotation_error(DEPENDS_ON, reason))?;
        if member.as_ref().is_some_and(|member| depends_on.contains(member)) {
            return Err(annotation_error(DEPENDS_ON, "it names the member itself"));
        }
        let layers = layers(manifest.layers())?;
        Ok(Self {
            manifest: document.descriptor(),
            config,
            chain: chain(&annotations, &layers)?,
            layers,
            version,
            kind: kind(&annotations)?,
            member,
            depends_on,
            annotations,
        })
    }

    /// The manifest's own descriptor; its digest is the image's name.
    #[must_use]
    pub fn manifest(&self) -> Descriptor {
        self.manifest.clone()
    }

    /// The config's descriptor.
    #[must_use]
    pub fn config(&self) -> &Descriptor {
        &self.config
    }

    /// The layers, in the order in which they are laid over one another.
    #[must_use]
    pub fn layers(&self) -> &[LayerRef] {
        &self.layers
    }

    /// All annotations of the manifest.
    #[must_use]
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// The format's version; `None` for images that others made.
    #[must_use]
    pub fn version(&self) -> Option<FormatVersion> {
        self.version
    }

    /// Whose layout of files the dump has, where an annotation tells.
    #[must_use]
    pub fn kind(&self) -> Option<DumpKind> {
        self.kind
    }

    /// The member's id, where the image has one.
    #[must_use]
    pub fn member(&self) -> Option<MemberId> {
        self.member.clone()
    }

    /// The chain of generations in which its pages are; `None` if they lie as the engine laid them out.
    #[must_use]
    pub fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    /// The members that must exist before this one is created.
    #[must_use]
    pub fn depends_on(&self) -> &[MemberId] {
        &self.depends_on
    }

    /// Reads the image's config and checks it against the manifest.
    ///
    /// # Errors
    /// A config that is no OCI image config, or lists other layers.
    pub fn parse_config(&self, document: &Document) -> Result<ImageConfig, ImageError> {
        let limit = Limits::default().document_bytes;
        let config: oci::ImageConfiguration = json::parse_strict(document.bytes(), limit)
            .and_then(json::typed)
            .map_err(|source| ImageError::Json { what: "a config", source })?;
        let diff_ids = config.rootfs().diff_ids().iter().map(|text| digest("a layer", text));
        let diff_ids = diff_ids.collect::<Result<Vec<_>, _>>()?;
        if diff_ids.len() != self.layers.len() {
            return Err(ImageError::LayerCount { layers: self.layers.len(), diff_ids: diff_ids.len() });
        }
        Ok(ImageConfig {
            architecture: config.architecture().to_string(),
            os: config.os().to_string(),
            created: config.created().clone(),
            diff_ids,
        })
    }
}

/// What is read of an image's config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// Architecture, such as `amd64`.
    pub architecture: String,
    /// Operating system, `linux`.
    pub os: String,
    /// When the image was made, as it stands there.
    pub created: Option<String>,
    /// Digest of each layer's plain tar, in the manifest's order.
    pub diff_ids: Vec<Digest>,
}

fn check_media_type(media_type: &str) -> Result<(), ImageError> {
    if media_type == MEDIA_MANIFEST {
        return Ok(());
    }
    let media_type = media_type.chars().take(160).collect::<String>();
    if media_type.starts_with(DOCKER_MANIFEST) {
        Err(ImageError::Docker { media_type })
    } else {
        Err(ImageError::MediaType { media_type })
    }
}

/// A document may state its media type; one that states another one is read in two ways by two readers.
fn check_inner_media_type(inside: Option<&oci::MediaType>, outside: &str) -> Result<(), ImageError> {
    match inside.map(ToString::to_string) {
        Some(inside) if inside != outside => Err(ImageError::MediaTypesDiffer {
            inside: inside.chars().take(160).collect(),
            outside: outside.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// podman, CRI-O and containerd each look for one annotation of their own.
fn is_foreign_checkpoint(annotations: &BTreeMap<String, String>) -> bool {
    annotations.contains_key(&format!("{PODMAN_PREFIX}runtime.name"))
        || annotations.contains_key(CRIO_NAME)
        || annotations.contains_key(&format!("{CRIU_PREFIX}container.name"))
}

/// What kind of dump it is: as said, or as only one engine's mark tells.
fn kind(annotations: &BTreeMap<String, String>) -> Result<Option<DumpKind>, ImageError> {
    let said = parsed(annotations, DUMP_KIND)?;
    Ok(said.or_else(|| {
        if annotations.contains_key(&format!("{PODMAN_PREFIX}runtime.name")) {
            Some(DumpKind::Podman)
        } else {
            annotations.contains_key(CRIO_NAME).then_some(DumpKind::CriO)
        }
    }))
}

fn layers(descriptors: &[oci::Descriptor]) -> Result<Vec<LayerRef>, ImageError> {
    match descriptors.len() {
        0 => return Err(ImageError::NoLayers),
        count if count > MAX_LAYERS => return Err(ImageError::TooManyLayers { count }),
        _ => {}
    }
    let mut total = 0_u64;
    let mut sizes = HashMap::new();
    let layer = |(position, layer): (usize, &oci::Descriptor)| {
        let descriptor = descriptor("a layer", layer)?;
        let Some(compression) = Compression::of_layer(&descriptor.media_type) else {
            return Err(ImageError::LayerType { position, media_type: descriptor.media_type });
        };
        total = total.checked_add(descriptor.size).ok_or(ImageError::Sizes)?;
        let (digest, second) = (descriptor.digest, descriptor.size);
        let first = *sizes.entry(digest).or_insert(second);
        if first != second {
            return Err(ImageError::TwoSizes { digest, first, second });
        }
        let said = |key: &str| layer.annotations().as_ref().and_then(|annotations| annotations.get(key));
        let content = said(LAYER_CONTENT).and_then(|text| text.parse().ok());
        let plain_size = said(LAYER_PLAIN_SIZE).and_then(|text| text.parse().ok());
        let link = said(LAYER_LINK).and_then(|text| text.parse().ok());
        let first_page = said(LAYER_FIRST_PAGE).and_then(|text| text.parse().ok());
        Ok(LayerRef { descriptor, content, compression, plain_size, link, first_page })
    };
    descriptors.iter().enumerate().map(layer).collect()
}

/// The chain that the annotations name, if the layers are one.
fn chain(annotations: &BTreeMap<String, String>, layers: &[LayerRef]) -> Result<Option<Chain>, ImageError> {
    let Some(generations) = parsed::<u32>(annotations, GENERATIONS)? else {
        return Ok(None);
    };
    let chain = Chain { generations, base: parsed(annotations, BASE)? };
    chain.check(layers).map_err(|reason| annotation_error(GENERATIONS, reason))?;
    Ok(Some(chain))
}

/// An annotation as a value of a type, if it is there and not empty.
fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    annotations: &BTreeMap<String, String>,
    key: &'static str,
) -> Result<Option<T>, ImageError> {
    let text = annotations.get(key).filter(|text| !text.is_empty());
    text.map(|text| text.parse().map_err(|error: T::Err| annotation_error(key, error))).transpose()
}

fn annotation_error(key: &'static str, reason: impl ToString) -> ImageError {
    ImageError::Annotation { key, reason: reason.to_string() }
}

/// The ids in `io.syncpoint.depends-on`: comma-separated, none of them twice.
pub(crate) fn read_depends_on(annotations: &BTreeMap<String, String>) -> Result<Vec<MemberId>, String> {
    let text = annotations.get(DEPENDS_ON).map_or("", String::as_str);
    let mut ids: Vec<MemberId> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let id: MemberId = part.parse().map_err(|error: crate::ParseIdError| error.to_string())?;
        if !seen.insert(id.clone()) {
            return Err(format!("it names {id} twice"));
        }
        ids.push(id);
    }
    Ok(ids)
}

/// The other way round.
pub(crate) fn write_depends_on(ids: &[MemberId]) -> String {
    ids.iter().map(MemberId::as_str).collect::<Vec<_>>().join(",")
}

/// Annotations in order: `oci-spec` keeps them in a hash map.
pub(crate) fn sorted(annotations: Option<&HashMap<String, String>>) -> BTreeMap<String, String> {
    annotations.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// A descriptor with a digest that can be checked.
pub(crate) fn descriptor(what: &'static str, descriptor: &oci::Descriptor) -> Result<Descriptor, ImageError> {
    Ok(Descriptor {
        media_type: descriptor.media_type().to_string(),
        digest: digest(what, descriptor.digest().as_ref())?,
        size: descriptor.size(),
    })
}

fn digest(what: &'static str, text: &str) -> Result<Digest, ImageError> {
    text.parse().map_err(|_| ImageError::Digest { what, digest: text.chars().take(160).collect() })
}

#[cfg(test)]
mod tests;
