//! Makes the config and the manifest of a checkpoint image.

use std::collections::BTreeMap;

use oci_spec::image as oci;

use super::{MAX_LAYERS, write_depends_on};
use crate::annotation::{
    BASE, CREATED, DEPENDS_ON, DUMP_KIND, FORMAT, FORMAT_VERSION, GENERATIONS, LAYER_CONTENT, LAYER_FIRST_PAGE,
    LAYER_LINK, LAYER_PLAIN_SIZE, MEDIA_CONFIG, MEDIA_MANIFEST, MEMBER,
};
use crate::generation::Chain;
use crate::timestamp::is_rfc3339;
use crate::{Descriptor, Document, Facts, LayerInfo, Limits, MemberId, canonical_json};

/// Annotations that carry the format itself and cannot be chosen.
const RESERVED: &[&str] = &[FORMAT, MEMBER, DEPENDS_ON, DUMP_KIND, CREATED, GENERATIONS, BASE];

/// Why a checkpoint image cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The creation time is no RFC 3339 time.
    #[error("the creation time {text:?} is not an RFC 3339 time such as 2026-02-03T04:05:06Z")]
    Created {
        /// The text, at most 64 characters.
        text: String,
    },
    /// An annotation that the format sets itself.
    #[error("the annotation {key} belongs to the format and cannot be given")]
    Reserved {
        /// Its key.
        key: String,
    },
    /// Dependencies that no reader would take.
    #[error("the member depends on {id} {how}")]
    DependsOn {
        /// The dependency.
        id: MemberId,
        /// "twice" or "which is itself".
        how: &'static str,
    },
    /// Another number of layers than a manifest may have.
    #[error("an image of {count} layers cannot be made; it needs one and may have {MAX_LAYERS}")]
    Layers {
        /// How many.
        count: usize,
    },
    /// Annotations or layers beyond what registries take.
    #[error("the {what} would have {size} bytes; registries take {limit}")]
    TooLarge {
        /// "manifest", "config" or "index".
        what: &'static str,
        /// Its size.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// A descriptor or document that cannot be written.
    #[error("the {what} cannot be written")]
    Write {
        /// "manifest", "config" or "index".
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What a checkpoint image says besides the facts of its dump.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageMetadata {
    /// The member's id in its application.
    pub member: Option<MemberId>,
    /// Members that must exist before this one is created.
    pub depends_on: Vec<MemberId>,
    /// When the dump was made, RFC 3339.
    pub created: Option<String>,
    /// The chain of generations in which its pages are.
    pub chain: Option<Chain>,
    /// Further annotations. They go before facts of the same key, so that a person can correct what a dump says.
    pub annotations: BTreeMap<String, String>,
}

/// Makes the image's config: architecture, time and the digests of the layers' plain contents, in order.
///
/// An architecture that the dump does not tell is written as `unknown`.
///
/// # Errors
/// A creation time that is none.
pub fn build_config(facts: &Facts, created: Option<&str>, layers: &[LayerInfo]) -> Result<Document, BuildError> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    let rootfs =
        oci::RootFsBuilder::default().typ("layers").diff_ids(diff_ids).build().map_err(write_error("config"))?;
    let architecture = facts.architecture.as_deref().unwrap_or("unknown");
    let mut config = oci::ImageConfigurationBuilder::default()
        .architecture(architecture)
        .os("linux")
        .rootfs(rootfs)
        .build()
        .map_err(write_error("config"))?;
    config.set_created(checked_created(created)?);
    document("config", MEDIA_CONFIG, &config)
}

/// Makes the image's manifest from its config, its layers in order, and everything that is said about it.
///
/// # Errors
/// Metadata that no reader would take, or that makes the manifest too large.
pub fn build_manifest(
    facts: &Facts,
    metadata: &ImageMetadata,
    config: &Descriptor,
    layers: &[LayerInfo],
) -> Result<Document, BuildError> {
    if layers.is_empty() || layers.len() > MAX_LAYERS {
        return Err(BuildError::Layers { count: layers.len() });
    }
    let descriptors = layers.iter().map(|layer| {
        let mut descriptor = oci_descriptor("manifest", &layer.descriptor)?;
        let content = (LAYER_CONTENT.to_owned(), layer.content.to_string());
        let plain_size = (LAYER_PLAIN_SIZE.to_owned(), layer.diff_size.to_string());
        let link = layer.link.map(|link| (LAYER_LINK.to_owned(), link.to_string()));
        let first_page = layer.first_page.map(|page| (LAYER_FIRST_PAGE.to_owned(), page.to_string()));
        descriptor.set_annotations(Some([content, plain_size].into_iter().chain(link).chain(first_page).collect()));
        Ok(descriptor)
    });
    let manifest = oci::ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MEDIA_MANIFEST)
        .config(oci_descriptor("manifest", config)?)
        .layers(descriptors.collect::<Result<Vec<_>, BuildError>>()?)
        .annotations(annotations(facts, metadata)?.into_iter().collect::<std::collections::HashMap<_, _>>())
        .build()
        .map_err(write_error("manifest"))?;
    document("manifest", MEDIA_MANIFEST, &manifest)
}

fn annotations(facts: &Facts, metadata: &ImageMetadata) -> Result<BTreeMap<String, String>, BuildError> {
    check_reserved(&metadata.annotations, RESERVED)?;
    let mut seen = std::collections::HashSet::new();
    for id in &metadata.depends_on {
        let how = if metadata.member.as_ref() == Some(id) { "which is itself" } else { "twice" };
        if how != "twice" || !seen.insert(id) {
            return Err(BuildError::DependsOn { id: id.clone(), how });
        }
    }
    let mut annotations = facts.annotations();
    annotations.extend(metadata.annotations.clone());
    annotations.insert(FORMAT.to_owned(), FORMAT_VERSION.to_owned());
    if let Some(member) = &metadata.member {
        annotations.insert(MEMBER.to_owned(), member.to_string());
    }
    if let Some(chain) = &metadata.chain {
        annotations.extend(chain.annotations());
    }
    if !metadata.depends_on.is_empty() {
        annotations.insert(DEPENDS_ON.to_owned(), write_depends_on(&metadata.depends_on));
    }
    if let Some(created) = checked_created(metadata.created.as_deref())? {
        annotations.insert(CREATED.to_owned(), created);
    }
    Ok(annotations)
}

/// Refuses annotations that the format sets by itself.
pub(crate) fn check_reserved(given: &BTreeMap<String, String>, reserved: &[&str]) -> Result<(), BuildError> {
    match reserved.iter().find(|key| given.contains_key(**key)) {
        Some(key) => Err(BuildError::Reserved { key: (*key).to_owned() }),
        None => Ok(()),
    }
}

pub(crate) fn checked_created(created: Option<&str>) -> Result<Option<String>, BuildError> {
    match created {
        Some(text) if !is_rfc3339(text) => Err(BuildError::Created { text: text.chars().take(64).collect() }),
        good => Ok(good.map(str::to_owned)),
    }
}

/// A descriptor in the form of the OCI image specification.
pub(crate) fn oci_descriptor(what: &'static str, descriptor: &Descriptor) -> Result<oci::Descriptor, BuildError> {
    let digest: oci::Digest = descriptor.digest.to_string().parse().map_err(write_error(what))?;
    Ok(oci::Descriptor::new(descriptor.media_type.as_str().into(), descriptor.size, digest))
}

/// The one form of a document's bytes, within what registries take.
pub(crate) fn document<T: serde::Serialize>(
    what: &'static str,
    media_type: &str,
    value: &T,
) -> Result<Document, BuildError> {
    let bytes = canonical_json(value).map_err(write_error(what))?;
    let (size, limit) = (bytes.len() as u64, Limits::default().document_bytes);
    if size > limit {
        return Err(BuildError::TooLarge { what, size, limit });
    }
    Ok(Document::new(media_type, bytes))
}

pub(crate) fn write_error<E: std::error::Error + Send + Sync + 'static>(
    what: &'static str,
) -> impl Fn(E) -> BuildError {
    move |source| BuildError::Write { what, source: Box::new(source) }
}
