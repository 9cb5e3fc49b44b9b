//! What the bytes of checkpoint images and global checkpoints mean.
//!
//! This crate reads dumps, CRIU images and OCI documents, and writes layers, manifests and the index of a global
//! checkpoint. It is pure: no sockets, no clock, no environment; `Read` and `Write` in, values out. The specification
//! of everything it writes is `docs/image-format.md`.

pub mod annotation;
mod archive;
mod artifact;
mod blob;
mod container;
pub mod criu;
mod digest;
mod document;
mod dump;
mod facts;
pub mod files;
mod generation;
mod global;
mod id;
mod image;
pub mod image_streamer;
mod json;
mod kind;
mod layer;
mod limits;
mod pack;
pub mod page_server;
mod pages;
mod secrets;
mod text;
mod timeline;
mod timestamp;
mod unpack;
mod version;

pub use archive::{ArchiveError, EntryName};
pub use artifact::{Artifact, ArtifactError};
pub use blob::{BlobSink, BlobSource, BlobStore, Descriptor};
pub use container::{
    BaseImage, CONTAINER_VERSION, Container, ContainerMount, ContainerNetwork, PublishedPort, RestartPolicy,
};
pub use digest::{Digest, HashReader, HashWriter, ParseDigestError};
pub use document::{Document, canonical_json};
pub use dump::{Captured, DumpError, DumpSource, RecognizeError};
pub use facts::{
    Connection, CpuFact, DumpTimings, Facts, FactsBuilder, FactsError, MountFact, NetworkFact, Pod, Process, SecretFact,
};
pub use generation::{Base, BaseError, Chain, ChainLimits, FirstPage, Link, PageChanges, TableError};
pub use global::{GlobalCheckpoint, GlobalError, MemberEntry, OrderError};
pub use id::{ApplicationId, Epoch, MemberId, ParseIdError};
pub use image::{
    BuildError, CheckpointImage, ImageConfig, ImageError, ImageMetadata, LayerRef, build_config, build_manifest,
};
pub use json::JsonError;
pub use kind::{Compression, DumpKind, LayerContent, ParseKindError};
pub use layer::LayerInfo;
pub use limits::Limits;
pub use pack::{Layout, PackError, PackOptions, PackedImage, pack};
pub use secrets::SECRET_VARIABLES;
pub use text::{is_format, one_line};
pub use timeline::{BarrierTime, MemberTimeline, Span, Timeline, TimelineError};
pub use timestamp::{rfc3339, rfc3339_seconds};
pub use unpack::{
    FileState, LazyPages, LazyProcess, LazyRun, SpecError, ToProcess, UnpackError, UnpackOptions, read_files,
    read_state, touched_pages, unpack_archive, unpack_archive_lazily, unpack_folder, unpack_folder_lazily,
};
pub use version::{FormatVersion, FormatVersionError};
