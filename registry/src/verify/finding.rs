//! What verifying can find, how much it matters, and what to do about it.

use std::fmt;

use image_format::Digest;

use super::{MAX_MANIFESTS, MAX_SIGNATURES};

/// In which form a signature was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// Under the `.sig` tag: cosign 2, podman's policies.
    Simple,
    /// A bundle that refers to the manifest: cosign 3.
    Bundle,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Simple => "simple signature",
            Self::Bundle => "bundle",
        })
    }
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong with the image.
    Note,
    /// The image can be used, but not by everybody.
    Warning,
    /// The image must not be used.
    Error,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Finding {
    /// The root has no signature at all.
    #[error("{manifest} is not signed")]
    Unsigned {
        /// The root.
        manifest: Digest,
    },
    /// The root has signatures, and none of them holds.
    #[error("{manifest} has no signature that holds")]
    NotAccepted {
        /// The root.
        manifest: Digest,
    },
    /// A member has no signature of its own that holds; the root's covers it.
    #[error("the member image {manifest} has no signature of its own")]
    MemberUnsigned {
        /// The member's manifest.
        manifest: Digest,
    },
    /// A signature by a key that is not trusted.
    #[error("a {form} of {manifest} is by another key")]
    OtherKey {
        /// The manifest.
        manifest: Digest,
        /// The signature's form.
        form: Form,
    },
    /// A signature by a trusted key that signs something else, put where it does not belong.
    #[error("a {form} of {manifest} signs another digest, {signed}")]
    OtherDigest {
        /// The manifest.
        manifest: Digest,
        /// The signature's form.
        form: Form,
        /// What it signs.
        signed: String,
    },
    /// A statement by a trusted key that is no signature of an image.
    #[error("a {form} of {manifest} is no image signature: {kind}")]
    OtherKind {
        /// The manifest.
        manifest: Digest,
        /// The statement's form.
        form: Form,
        /// What it calls itself.
        kind: String,
    },
    /// What lies where a signature is expected cannot be understood, or is not whole.
    #[error("a {form} of {manifest} is malformed: {reason}")]
    MalformedSignature {
        /// The manifest.
        manifest: Digest,
        /// The signature's form.
        form: Form,
        /// In which way.
        reason: String,
    },
    /// More signatures than are looked at.
    #[error("{manifest} has {count} signatures; only the first {MAX_SIGNATURES} were looked at")]
    TooManySignatures {
        /// The manifest.
        manifest: Digest,
        /// How many there are.
        count: usize,
    },
    /// A manifest that is not in the store.
    #[error("the manifest {manifest} is missing")]
    MissingManifest {
        /// The manifest.
        manifest: Digest,
    },
    /// A manifest whose bytes are not what its digest says, or that is none.
    #[error("the manifest {manifest} is damaged: {reason}")]
    DamagedManifest {
        /// The manifest.
        manifest: Digest,
        /// In which way.
        reason: String,
    },
    /// A blob that is not in the store.
    #[error("the blob {blob} of {manifest} is missing")]
    MissingBlob {
        /// The blob.
        blob: Digest,
        /// A manifest that names it.
        manifest: Digest,
    },
    /// A blob whose bytes are not what its digest says.
    #[error("the blob {blob} of {manifest} is damaged: {reason}")]
    DamagedBlob {
        /// The blob.
        blob: Digest,
        /// A manifest that names it.
        manifest: Digest,
        /// In which way.
        reason: String,
    },
    /// A manifest or blob that has another size than what refers to it says.
    #[error("{content} has {actual} bytes where {manifest} says {expected}")]
    WrongSize {
        /// The manifest or blob.
        content: Digest,
        /// What refers to it.
        manifest: Digest,
        /// The size it should have.
        expected: u64,
        /// The size it has.
        actual: u64,
    },
    /// An index that leads to more than any checkpoint has; the rest was not looked at.
    #[error("{manifest} leads to over {MAX_MANIFESTS} manifests")]
    TooMuch {
        /// The root.
        manifest: Digest,
    },
}

/// The findings that make an image unfit for use.
pub fn errors(findings: &[Finding]) -> impl Iterator<Item = &Finding> {
    findings.iter().filter(|finding| finding.severity() == Severity::Error)
}

/// The findings that make a root untrusted, in one line.
#[must_use]
pub fn reasons(findings: &[Finding]) -> String {
    errors(findings).map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Finding {
    /// How much it matters. A bad signature next to a good one is only worth a note; without one, [`Finding::Unsigned`]
    /// or [`Finding::NotAccepted`] is found as well.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::Unsigned { .. }
            | Self::NotAccepted { .. }
            | Self::MissingManifest { .. }
            | Self::DamagedManifest { .. }
            | Self::MissingBlob { .. }
            | Self::DamagedBlob { .. }
            | Self::WrongSize { .. }
            | Self::TooMuch { .. } => Severity::Error,
            Self::MemberUnsigned { .. } | Self::OtherDigest { .. } | Self::TooManySignatures { .. } => {
                Severity::Warning
            }
            Self::OtherKey { .. } | Self::OtherKind { .. } | Self::MalformedSignature { .. } => Severity::Note,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unsigned { .. } => "sign it (syncpoint sign), or copy it with its signatures",
            Self::NotAccepted { .. } => "give the public key of whoever signed it, or have it signed by one you trust",
            Self::MemberUnsigned { .. } => {
                "sign the global checkpoint again to let cosign and podman's policies accept the member by itself"
            }
            Self::OtherKey { .. } => "if that signer is to be trusted, give that public key too",
            Self::OtherDigest { .. } => "somebody moved a signature from one image to another; ask who can write here",
            Self::OtherKind { .. } => "attestations are not checked here",
            Self::MalformedSignature { .. } => "another tool's form, or damage; it does not count",
            Self::TooManySignatures { .. } => "ask who can write here, and remove what nobody needs",
            Self::MissingManifest { .. } | Self::MissingBlob { .. } => {
                "copy the checkpoint here again from a store that has it"
            }
            Self::DamagedManifest { .. } | Self::DamagedBlob { .. } | Self::WrongSize { .. } => {
                "remove the damaged content and copy the checkpoint here again from a store that has it whole"
            }
            Self::TooMuch { .. } => "this is not a checkpoint that syncpoint made",
        }
    }
}
