//! The global checkpoint: an OCI index that links the checkpoint images of one application's members.

mod order;

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::image as oci;

pub use order::OrderError;

use crate::annotation::{
    APPLICATION, CREATED, DEPENDS_ON, EPOCH, FORMAT, FORMAT_VERSION, GLOBAL_ARTIFACT_TYPE, MEDIA_INDEX, MEDIA_MANIFEST,
    MEMBER, PREDECESSOR, TIMELINE,
};
use crate::image::{self, BuildError, ImageError};
use crate::json::{self, JsonError};
use crate::version::{FormatVersion, FormatVersionError};
use crate::{ApplicationId, Descriptor, Digest, Document, Epoch, Limits, MemberId, Timeline, TimelineError};

/// Members of one global checkpoint.
const MAX_MEMBERS: usize = 4096;
/// Annotations of the index that carry the format itself.
const RESERVED: &[&str] = &[FORMAT, APPLICATION, EPOCH, PREDECESSOR, CREATED];
/// Annotations of an entry that carry the format itself.
const RESERVED_ENTRY: &[&str] = &[MEMBER, DEPENDS_ON];

/// Why something is not a global checkpoint. The messages go after the index's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GlobalError {
    /// Some other document.
    #[error("is not an OCI index but {media_type:?}")]
    MediaType {
        /// Its media type, at most 160 characters.
        media_type: String,
    },
    /// An index of something else, such as one image for several platforms.
    #[error("is an OCI index, but not of a global checkpoint: its artifact type is {found:?}")]
    ArtifactType {
        /// The artifact type, at most 160 characters.
        found: String,
    },
    /// No JSON, or not of the OCI form.
    #[error("is an index that cannot be read")]
    Json {
        /// What is wrong with it.
        source: JsonError,
    },
    /// The format's version.
    #[error(transparent)]
    Version(FormatVersionError),
    /// An annotation that must be there.
    #[error("lacks the annotation {key}")]
    Missing {
        /// Its key.
        key: &'static str,
    },
    /// An annotation that does not read.
    #[error("has the annotation {key}, but {reason}")]
    Annotation {
        /// Its key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No member at all.
    #[error("has no members")]
    NoMembers,
    /// More members than are read.
    #[error("has {count} members; at most {MAX_MEMBERS} are allowed")]
    TooManyMembers {
        /// How many.
        count: usize,
    },
    /// An entry that is no member's, or whose annotations do not read.
    #[error("has an entry at position {position} that {reason}")]
    Entry {
        /// Counted from 0.
        position: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The dependencies.
    #[error(transparent)]
    Order(OrderError),
    /// It cannot be written.
    #[error(transparent)]
    Build(BuildError),
}

/// One member's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberEntry {
    /// The member.
    pub id: MemberId,
    /// Members that must exist before this one is created.
    pub depends_on: Vec<MemberId>,
    /// The manifest of its checkpoint image.
    pub manifest: Descriptor,
    /// Further annotations of the entry.
    pub annotations: BTreeMap<String, String>,
}

/// The checkpoint of a whole application. A value that exists is valid: it has members, each once, and their dependencies
/// are members and lead nowhere in a circle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalCheckpoint {
    application: ApplicationId,
    epoch: Epoch,
    predecessor: Option<Digest>,
    created: String,
    members: Vec<MemberEntry>,
    annotations: BTreeMap<String, String>,
}

impl GlobalCheckpoint {
    /// Links members. They are kept in the order of their ids, so that the same set is the same document; two members may
    /// share one image.
    ///
    /// # Errors
    /// A set that cannot be started, a time that is none, or annotations that belong to the format.
    pub fn new(
        application: ApplicationId,
        epoch: Epoch,
        predecessor: Option<Digest>,
        created: String,
        mut members: Vec<MemberEntry>,
        annotations: BTreeMap<String, String>,
    ) -> Result<Self, GlobalError> {
        check_count(members.len())?;
        image::checked_created(Some(&created)).map_err(GlobalError::Build)?;
        image::check_reserved(&annotations, RESERVED).map_err(GlobalError::Build)?;
        for member in &members {
            image::check_reserved(&member.annotations, RESERVED_ENTRY).map_err(GlobalError::Build)?;
        }
        members.sort_by(|a, b| a.id.cmp(&b.id));
        order::check(&members).map_err(GlobalError::Order)?;
        Ok(Self { application, epoch, predecessor, created, members, annotations })
    }

    /// Reads an index and checks everything that it says by itself.
    ///
    /// # Errors
    /// A document that is no global checkpoint, or one of a newer major version.
    pub fn parse(document: &Document) -> Result<Self, GlobalError> {
        if document.media_type() != MEDIA_INDEX {
            return Err(GlobalError::MediaType { media_type: document.media_type().chars().take(160).collect() });
        }
        let limit = Limits::default().document_bytes;
        let unreadable = |source| GlobalError::Json { source };
        let value = json::parse_strict(document.bytes(), limit).map_err(unreadable)?;
        let version = FormatVersion::read(&value).map_err(GlobalError::Version)?;
        let index: oci::ImageIndex = json::typed(value).map_err(unreadable)?;
        let artifact_type = index.artifact_type().as_ref().map(ToString::to_string).unwrap_or_default();
        if artifact_type != GLOBAL_ARTIFACT_TYPE {
            return Err(GlobalError::ArtifactType { found: artifact_type.chars().take(160).collect() });
        }
        let mut annotations = image::sorted(index.annotations().as_ref());
        version.ok_or(GlobalError::Missing { key: FORMAT })?;
        annotations.remove(FORMAT);
        check_schema(&index)?;
        let application = required(&mut annotations, APPLICATION)?;
        let epoch = required::<DecimalEpoch>(&mut annotations, EPOCH)?.0;
        let created: String = required(&mut annotations, CREATED)?;
        let predecessor = match annotations.contains_key(PREDECESSOR) {
            true => Some(required(&mut annotations, PREDECESSOR)?),
            false => None,
        };
        check_count(index.manifests().len())?;
        let members = index
            .manifests()
            .iter()
            .enumerate()
            .map(|(position, entry)| member(entry).map_err(|reason| GlobalError::Entry { position, reason }));
        let members = members.collect::<Result<Vec<_>, _>>()?;
        Self::new(application, epoch, predecessor, created, members, annotations)
    }

    /// The index, in the one form of its bytes.
    ///
    /// # Errors
    /// An index beyond what registries take.
    pub fn to_document(&self) -> Result<Document, GlobalError> {
        let entries = self.members.iter().map(oci_entry).collect::<Result<Vec<_>, _>>();
        let mut annotations = self.annotations.clone();
        annotations.insert(FORMAT.to_owned(), FORMAT_VERSION.to_owned());
        annotations.insert(APPLICATION.to_owned(), self.application.to_string());
        annotations.insert(EPOCH.to_owned(), self.epoch.to_string());
        annotations.insert(CREATED.to_owned(), self.created.clone());
        if let Some(predecessor) = self.predecessor {
            annotations.insert(PREDECESSOR.to_owned(), predecessor.to_string());
        }
        let index = oci::ImageIndexBuilder::default()
            .schema_version(oci::SCHEMA_VERSION)
            .media_type(MEDIA_INDEX)
            .artifact_type(GLOBAL_ARTIFACT_TYPE)
            .manifests(entries.map_err(GlobalError::Build)?)
            .annotations(annotations.into_iter().collect::<std::collections::HashMap<_, _>>())
            .build()
            .map_err(|error| GlobalError::Build(image::write_error("index")(error)))?;
        image::document("index", MEDIA_INDEX, &index).map_err(GlobalError::Build)
    }

    /// The application.
    #[must_use]
    pub fn application(&self) -> &ApplicationId {
        &self.application
    }

    /// The number of the attempt that made it.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The global checkpoint before this one in the line.
    #[must_use]
    pub fn predecessor(&self) -> Option<Digest> {
        self.predecessor
    }

    /// When it was made, RFC 3339.
    #[must_use]
    pub fn created(&self) -> &str {
        &self.created
    }

    /// The members, in the order of their ids.
    #[must_use]
    pub fn members(&self) -> &[MemberEntry] {
        &self.members
    }

    /// The member of that id.
    #[must_use]
    pub fn member(&self, id: &MemberId) -> Option<&MemberEntry> {
        self.members.binary_search_by(|member| member.id.cmp(id)).ok().map(|index| &self.members[index])
    }

    /// The same checkpoint with its timeline, in place of the one that it has.
    ///
    /// # Errors
    /// A timeline that would not be read.
    pub fn with_timeline(mut self, timeline: &Timeline) -> Result<Self, TimelineError> {
        self.annotations.insert(TIMELINE.to_owned(), timeline.to_text()?);
        Ok(self)
    }

    /// When its members waited, stood still and went on; `None` if that was not kept. It is read here and not before: nothing
    /// rests on it, and a checkpoint restores whatever it says.
    ///
    /// # Errors
    /// A timeline that is none.
    pub fn timeline(&self) -> Result<Option<Timeline>, TimelineError> {
        self.annotations.get(TIMELINE).map(|text| Timeline::parse(text)).transpose()
    }

    /// Further annotations of the index, the timeline's text among them.
    #[must_use]
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// The members in waves: each one's dependencies are all in earlier waves. Within a wave they are in the order of
    /// their ids.
    #[must_use]
    pub fn start_order(&self) -> Vec<Vec<&MemberEntry>> {
        order::waves(&self.members)
    }

    /// Everything that must be in the store for the checkpoint to be whole, each manifest once.
    #[must_use]
    pub fn manifests(&self) -> BTreeSet<Digest> {
        self.members.iter().map(|member| member.manifest.digest).collect()
    }
}

/// An epoch written as `Display` writes it: no sign, no leading zero.
struct DecimalEpoch(Epoch);

impl std::str::FromStr for DecimalEpoch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Epoch>() {
            Ok(epoch) if epoch.to_string() == text => Ok(Self(epoch)),
            _ => Err("it is not a decimal number of 64 bits".to_owned()),
        }
    }
}

fn check_schema(index: &oci::ImageIndex) -> Result<(), GlobalError> {
    let media_type = index.media_type().as_ref().map(ToString::to_string);
    if index.schema_version() != oci::SCHEMA_VERSION {
        let reason = format!("has the schema version {}", index.schema_version());
        return Err(GlobalError::Json { source: JsonError::Syntax(serde::de::Error::custom(reason)) });
    }
    match media_type {
        Some(inside) if inside != MEDIA_INDEX => {
            Err(GlobalError::MediaType { media_type: inside.chars().take(160).collect() })
        }
        _ => Ok(()),
    }
}

fn check_count(count: usize) -> Result<(), GlobalError> {
    match count {
        0 => Err(GlobalError::NoMembers),
        count if count > MAX_MEMBERS => Err(GlobalError::TooManyMembers { count }),
        _ => Ok(()),
    }
}

/// Takes an annotation out and reads it.
fn required<T: std::str::FromStr<Err: ToString>>(
    annotations: &mut BTreeMap<String, String>,
    key: &'static str,
) -> Result<T, GlobalError> {
    let text = annotations.remove(key).ok_or(GlobalError::Missing { key })?;
    text.parse().map_err(|error: T::Err| GlobalError::Annotation { key, reason: error.to_string() })
}

fn member(entry: &oci::Descriptor) -> Result<MemberEntry, String> {
    let manifest = image::descriptor("a manifest", entry).map_err(|error: ImageError| error.to_string())?;
    if manifest.media_type != MEDIA_MANIFEST {
        return Err(format!("is not an image manifest but {:?}", manifest.media_type));
    }
    let mut annotations = image::sorted(entry.annotations().as_ref());
    let id = annotations.remove(MEMBER).ok_or_else(|| format!("lacks the annotation {MEMBER}"))?;
    let id = id.parse().map_err(|error: crate::ParseIdError| format!("has no member id: {error}"))?;
    let depends_on = image::read_depends_on(&annotations)
        .map_err(|reason| format!("has the annotation {DEPENDS_ON}, but {reason}"))?;
    annotations.remove(DEPENDS_ON);
    Ok(MemberEntry { id, depends_on, manifest, annotations })
}

/// An entry's platform is one that no machine has, so that no engine takes one member for the whole.
fn oci_entry(member: &MemberEntry) -> Result<oci::Descriptor, BuildError> {
    let platform = oci::PlatformBuilder::default().os("unknown").architecture("unknown").build();
    let mut annotations = member.annotations.clone();
    annotations.insert(MEMBER.to_owned(), member.id.to_string());
    if !member.depends_on.is_empty() {
        annotations.insert(DEPENDS_ON.to_owned(), image::write_depends_on(&member.depends_on));
    }
    let mut entry = image::oci_descriptor("index", &member.manifest)?;
    entry.set_platform(Some(platform.map_err(image::write_error("index"))?));
    entry.set_annotations(Some(annotations.into_iter().collect()));
    Ok(entry)
}

#[cfg(test)]
mod tests;
