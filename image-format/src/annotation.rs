//! Names of annotations, and whose words they are.
//!
//! Sources: podman `pkg/annotations` and libpod (`io.podman.annotations.checkpoint.*`), CRI-O
//! (`io.kubernetes.cri-o.annotations.checkpoint.name`), checkpointctl's common vocabulary (`org.criu.checkpoint.*`), and
//! the OCI image specification (`org.opencontainers.image.*`). `io.syncpoint.*` are this project's.

/// Version of the format, `MAJOR.MINOR`; readers refuse a newer major version.
pub const FORMAT: &str = "io.syncpoint.format";
/// The format version that this crate writes.
pub const FORMAT_VERSION: &str = "1.3";
/// Member id, on a checkpoint image and on its entry in a global checkpoint.
pub const MEMBER: &str = "io.syncpoint.member";
/// Comma-separated member ids that must exist before this one is created.
pub const DEPENDS_ON: &str = "io.syncpoint.depends-on";
/// Application id, on a global checkpoint.
pub const APPLICATION: &str = "io.syncpoint.application";
/// Epoch of a global checkpoint, decimal.
pub const EPOCH: &str = "io.syncpoint.epoch";
/// Digest of the global checkpoint before this one in the line.
pub const PREDECESSOR: &str = "io.syncpoint.predecessor";
/// When the members of a global checkpoint waited, stood still and went on: a [`Timeline`](crate::Timeline) as JSON.
pub const TIMELINE: &str = "io.syncpoint.timeline";
/// On a checkpoint image: the name of the podman pod that the container was in.
pub const POD: &str = "io.syncpoint.pod";
/// On a checkpoint image: the volumes of the container, as JSON; see docs/image-format.md.
pub const VOLUMES: &str = "io.syncpoint.volumes";
/// Kind of the dump: `podman`, `cri-o`, `containerd`, `runc`, `docker` or `criu`.
pub const DUMP_KIND: &str = "io.syncpoint.dump.kind";
/// On a layer: what it holds, `state`, `files` or `pages`.
pub const LAYER_CONTENT: &str = "io.syncpoint.layer.content";
/// On a layer: bytes of its plain tar, decimal. For people and for planning; nothing is allotted or trusted by it.
pub const LAYER_PLAIN_SIZE: &str = "io.syncpoint.layer.plain-size";
/// On a layer of pages: which link of a chain of generations it is, `GENERATION.PART`.
pub const LAYER_LINK: &str = "io.syncpoint.layer.link";
/// On a layer that is a link: which page of its generation is its first, `FILE:INDEX`. What else it has pages of begins in it.
pub const LAYER_FIRST_PAGE: &str = "io.syncpoint.layer.first-page";
/// On a checkpoint image, and on its entry in a global checkpoint: how many generations its pages are in, decimal.
pub const GENERATIONS: &str = "io.syncpoint.generations";
/// On a checkpoint image, and on its entry in a global checkpoint: digest of the image whose chain of generations it continues.
pub const BASE: &str = "io.syncpoint.base";
/// Artifact type of a global checkpoint's index.
pub const GLOBAL_ARTIFACT_TYPE: &str = "application/vnd.syncpoint.global-checkpoint.v1";
/// Prefix of podman's annotations; `runtime.name` below it is what makes `podman run` restore an image.
pub const PODMAN_PREFIX: &str = "io.podman.annotations.checkpoint.";
/// What makes CRI-O take an image for a checkpoint.
pub const CRIO_NAME: &str = "io.kubernetes.cri-o.annotations.checkpoint.name";
/// Prefix of checkpointctl's common vocabulary.
pub const CRIU_PREFIX: &str = "org.criu.checkpoint.";
/// Creation time, RFC 3339.
pub const CREATED: &str = "org.opencontainers.image.created";

/// OCI image manifest.
pub const MEDIA_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const MEDIA_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image config.
pub const MEDIA_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, an uncompressed tar; `+gzip` and `+zstd` follow for the compressed forms.
pub const MEDIA_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
