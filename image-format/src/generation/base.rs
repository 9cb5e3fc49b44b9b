//! The checkpoint image before: what the pages of a new dump are compared with, and whose layers are used again.

use std::io;
use std::ops::Deref;
use std::path::Path;

use super::table::Known;
use super::{Link, PAGE, Scratch, Tables};
use crate::annotation::CRIU_PREFIX;
use crate::image::CheckpointImage;
use crate::layer::LayerInfo;
use crate::unpack::Layers;
use crate::{BlobSource, Descriptor, Digest, LayerContent, Limits, MemberId, UnpackError};

/// When a chain of generations ends and a new one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainLimits {
    /// Generations of a chain; with 1, every image has all of its pages in layers of its own. At most 16.
    pub generations: u32,
    /// How large all generations of the base may be, in percent of the pages that the new dump has.
    pub stored_percent: u32,
    /// Bytes of pages in a layer. Where a generation would have more than 64 layers, they become larger.
    pub part_bytes: u64,
}

impl Default for ChainLimits {
    fn default() -> Self {
        Self { generations: 8, stored_percent: 200, part_bytes: 64 << 20 }
    }
}

/// A checkpoint image in generations whose table of pages was fetched.
#[derive(Debug)]
pub struct Base {
    image: Digest,
    member: Option<MemberId>,
    architecture: String,
    criu: Option<String>,
    pub(super) generations: u32,
    pub(super) links: Vec<LayerInfo>,
    pub(super) tables: Tables,
}

/// Why an image cannot be the base of another one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BaseError {
    /// It has its pages in another form.
    #[error("image {} does not have its pages in generations", image.short())]
    NoGenerations {
        /// Digest of the manifest.
        image: Digest,
    },
    /// A layer without the annotation that says how large it is.
    #[error("image {}: the layer of the link {link} does not say how large it is", image.short())]
    NoSize {
        /// Digest of the manifest.
        image: Digest,
        /// The link.
        link: Link,
    },
    /// It cannot be read.
    #[error(transparent)]
    Image(#[from] UnpackError),
}

impl Base {
    /// Fetches the table of pages. What does not fit in little memory goes into a file without a name in the folder `scratch`.
    ///
    /// # Errors
    /// An image without generations, or one that is damaged.
    pub fn load(
        image: &CheckpointImage,
        blobs: &dyn BlobSource,
        limits: &Limits,
        scratch: &Path,
    ) -> Result<Self, BaseError> {
        let digest = image.manifest().digest;
        let chain = image.chain().ok_or(BaseError::NoGenerations { image: digest })?;
        let mut layers = Layers::open(image, blobs, limits)?;
        let mut links = Vec::new();
        for (layer, diff_id) in layers.take_links() {
            if let Some(link) = layer.link {
                let diff_size = layer.plain_size.ok_or(BaseError::NoSize { image: digest, link })?;
                let (descriptor, first_page) = (layer.descriptor, layer.first_page);
                let content = LayerContent::Pages;
                links.push(LayerInfo { descriptor, diff_id, diff_size, content, link: Some(link), first_page });
            }
        }
        let tables = layers.read_tables(chain.generations, scratch)?;
        let annotations = image.annotations();
        Ok(Self {
            image: digest,
            member: image.member(),
            architecture: layers.architecture().to_owned(),
            criu: annotations.get(&format!("{CRIU_PREFIX}criu.version")).cloned(),
            generations: chain.generations,
            links,
            tables,
        })
    }

    /// The image's manifest.
    #[must_use]
    pub fn image(&self) -> Digest {
        self.image
    }

    /// The layers that an image over this base names again. They must be in the store before its manifest is.
    pub fn layers(&self) -> impl Iterator<Item = &Descriptor> {
        self.links.iter().map(|link| &link.descriptor)
    }

    /// Why the pages of a dump of this member cannot be compared with this image as they come, in words that go after "a new
    /// chain begins: ". It is known before the dump is, so that the pages of this image stand for those of the dump.
    #[must_use]
    pub fn refuses_stream(&self, member: Option<&MemberId>, limits: &ChainLimits) -> Option<String> {
        let bytes = self.tables.pages().saturating_mul(PAGE);
        self.refuses(&Dump { member, architecture: Some(&self.architecture), criu: None, bytes }, limits)
    }

    /// Its newest generation.
    pub(crate) fn generations(&self) -> u32 {
        self.generations
    }

    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The pages of a pagemap, if there is one of that name. `data` gives the data of this image's tables.
    pub(crate) fn known<D: Deref<Target = Scratch> + Clone>(
        &self,
        pagemap: &str,
        data: D,
    ) -> io::Result<Option<Known<D>>> {
        self.tables.get(pagemap).map(|table| Known::over(data, &self.tables, table)).transpose()
    }

    /// Bytes of all generations.
    fn stored(&self) -> u64 {
        self.links.iter().fold(0, |sum, link| sum.saturating_add(link.diff_size))
    }

    /// Why a dump is no further one of what this image was made of, if it is not: in words that go after "a new chain begins: ".
    pub(super) fn is_of_another(&self, dump: &Dump<'_>) -> Option<String> {
        let (image, architecture) = (self.image.short(), &self.architecture);
        if self.member.as_ref() != dump.member {
            let name = |member: Option<&MemberId>| member.map_or("no member".to_owned(), MemberId::to_string);
            let (ours, other) = (name(self.member.as_ref()), name(dump.member));
            return Some(format!("the base {image} is of {ours}, not of {other}"));
        }
        if Some(architecture.as_str()) != dump.architecture {
            return Some(format!("the base {image} is of another machine ({architecture})"));
        }
        None
    }

    /// Why a dump does not go over this base, if it does not, in the same words.
    pub(super) fn refuses(&self, dump: &Dump<'_>, limits: &ChainLimits) -> Option<String> {
        if let Some(reason) = self.is_of_another(dump) {
            return Some(reason);
        }
        let generations = self.generations;
        let limit = limits.generations.min(super::MAX_GENERATIONS);
        let (stored, percent) = (self.stored(), limits.stored_percent);
        let image = self.image.short();
        if let (Some(criu), Some(other)) = (&self.criu, dump.criu)
            && criu != other
        {
            return Some(format!("the base {image} was written by CRIU {criu}, and this dump by {other}"));
        }
        if generations >= limit {
            return Some(format!("the base {image} has {generations} generations, and {limit} are the limit"));
        }
        if u128::from(stored) * 100 > u128::from(dump.bytes) * u128::from(percent) {
            let bytes = dump.bytes;
            return Some(format!(
                "the base {image} stores {stored} bytes for {bytes} bytes of pages, over the limit of {percent} %"
            ));
        }
        None
    }
}

/// What is known of a dump when its first pages come.
#[derive(Debug)]
pub(crate) struct Dump<'a> {
    pub member: Option<&'a MemberId>,
    pub architecture: Option<&'a str>,
    pub criu: Option<&'a str>,
    /// Bytes of the pages that go into generations.
    pub bytes: u64,
}
