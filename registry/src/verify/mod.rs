//! Checks an image or a global checkpoint: its signatures, and every manifest and blob against digest and size.
//!
//! Everything that is wrong is collected, so that one run says all there is to say; only a store that cannot be asked
//! ends it early. That the layers hold what a config's `diff_ids` say is for whoever unpacks them to check.

mod finding;

use std::collections::HashSet;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use image_format::{Descriptor, Digest};
use tokio::io::AsyncReadExt;

use crate::links::{Links, MAX_DOCUMENT};
use crate::sign::PublicKey;
use crate::sign::attachment::{Attachment, MEDIA_PAYLOAD, SIGNATURE_POINTER, signature_tag};
use crate::sign::payload::{Accepted, MEDIA_BUNDLE_PREFIX, Rejection, check_bundle, check_simple};
use crate::{Progress, Selector, Store, StoreError};
pub use finding::{Finding, Form, Severity, errors, reasons};

/// Requests at the same time.
const JOBS: usize = 4;
/// A signed payload or a bundle is some hundred bytes to some ten thousand.
const MAX_SIGNED: u64 = 1 << 20;
/// Signatures of one manifest that are looked at: far more than anybody makes, few enough to get through.
const MAX_SIGNATURES: usize = 1_000;
const MAX_MANIFESTS: usize = 10_000;

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// The signatures of the root, which through the digests in it vouch for everything below.
    Signature,
    /// Also that every manifest and blob is there with its size, and the signatures of the members.
    Manifests,
    /// Also every byte of every blob.
    Blobs,
}

/// A signature that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoodSignature {
    /// The manifest it signs.
    pub manifest: Digest,
    /// The form it was found in.
    pub form: Form,
    /// The fingerprint of the key.
    pub key: Digest,
    /// What it calls the image (`docker-reference`), in the form that has that. To compare it is the caller's business.
    pub identity: Option<String>,
}

/// What [`verify`] saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Everything that was found, roughly from the root downwards.
    pub findings: Vec<Finding>,
    /// The signatures that hold.
    pub signatures: Vec<GoodSignature>,
    /// How many manifests were there and whole.
    pub manifests: usize,
    /// How many blobs were there with the right size and, at [`Depth::Blobs`], the right bytes.
    pub blobs: usize,
    /// How many bytes of blobs were read and were right.
    pub bytes: u64,
}

impl VerifyReport {
    /// Whether the image may be used: the root's signature holds, and nothing that was looked at is missing or damaged.
    #[must_use]
    pub fn is_good(&self) -> bool {
        errors(&self.findings).next().is_none()
    }
}

/// Checks `root` and, as deep as is asked for, everything below it. A signature by any of `keys` is good.
///
/// # Errors
/// A store that cannot be asked, or a root that is not there, or no longer. Anything else that is
/// missing, and anything that is damaged, is a finding and no error.
pub async fn verify(
    store: &dyn Store,
    root: &Descriptor,
    keys: &[PublicKey],
    depth: Depth,
    progress: &dyn Progress,
) -> Result<VerifyReport, StoreError> {
    let mut verifier = Verifier { store, keys, root: root.digest, report: VerifyReport::default() };
    verifier.signatures(&root.digest, false).await?;
    let (blobs, members) = verifier.manifests(root, depth).await?;
    for member in members {
        verifier.signatures(&member, true).await?;
    }
    verifier.blobs(blobs, depth, progress).await?;
    // Retention removes a root before what is below it. If the root is gone by now, what is missing
    // below it speaks against nobody.
    if !verifier.report.is_good()
        && let Err(gone @ StoreError::NotFound { .. }) = store.manifest(&root.digest).await
    {
        return Err(gone);
    }
    Ok(verifier.report)
}

struct Verifier<'a> {
    store: &'a dyn Store,
    keys: &'a [PublicKey],
    root: Digest,
    report: VerifyReport,
}

/// A descriptor, and the manifest that has it.
type Named = (Descriptor, Digest);

impl Verifier<'_> {
    fn found(&mut self, finding: Finding) {
        self.report.findings.push(finding);
    }

    /// All signatures of one manifest, in both forms. One that is bad never hides one that is good.
    async fn signatures(&mut self, manifest: &Digest, member: bool) -> Result<(), StoreError> {
        let before = self.report.signatures.len();
        let simple = self.simple_signatures(manifest).await;
        let simple = self.refused(manifest, Form::Simple, simple)?;
        let bundles = self.bundles(manifest).await;
        let bundles = self.refused(manifest, Form::Bundle, bundles)?;
        if self.report.signatures.len() > before {
            return Ok(());
        }
        let manifest = *manifest;
        self.found(match (member, simple + bundles) {
            (true, _) => Finding::MemberUnsigned { manifest },
            (false, 0) => Finding::Unsigned { manifest },
            (false, _) => Finding::NotAccepted { manifest },
        });
        Ok(())
    }

    /// What a store refuses to give out of one form hides nothing of the other.
    fn refused(
        &mut self,
        manifest: &Digest,
        form: Form,
        counted: Result<usize, StoreError>,
    ) -> Result<usize, StoreError> {
        match counted {
            Err(error @ (StoreError::Denied { .. } | StoreError::Refused { .. })) => {
                let reason = error.to_string();
                self.found(Finding::MalformedSignature { manifest: *manifest, form, reason });
                Ok(1)
            }
            counted => counted,
        }
    }

    /// Those under the `.sig` tag. Says how many there are.
    async fn simple_signatures(&mut self, manifest: &Digest) -> Result<usize, StoreError> {
        let form = Form::Simple;
        let attached = match self.store.resolve(&Selector::Tag(signature_tag(manifest))).await {
            Ok(descriptor) => self.store.manifest(&descriptor.digest).await,
            Err(StoreError::NotFound { .. }) => return Ok(0),
            Err(error) => Err(error),
        };
        let attachment = match content(attached)?.map(|document| Attachment::parse(&document)) {
            Ok(Ok(attachment)) => attachment,
            Ok(Err(reason)) | Err(reason) => {
                self.found(Finding::MalformedSignature { manifest: *manifest, form, reason });
                return Ok(1);
            }
        };
        let layers = attachment.layers();
        if layers.len() > MAX_SIGNATURES {
            self.found(Finding::TooManySignatures { manifest: *manifest, count: layers.len() });
        }
        for layer in layers.iter().take(MAX_SIGNATURES) {
            let descriptor: Option<Descriptor> = serde_json::from_value(layer.clone()).ok();
            let signature = layer.pointer(SIGNATURE_POINTER).and_then(|signature| signature.as_str());
            let (Some(descriptor), Some(signature)) = (descriptor, signature) else {
                let reason = "its layer has no digest or no signature".to_owned();
                self.found(Finding::MalformedSignature { manifest: *manifest, form, reason });
                continue;
            };
            if descriptor.media_type != MEDIA_PAYLOAD {
                self.found(Finding::OtherKind {
                    manifest: *manifest,
                    form,
                    kind: descriptor.media_type.chars().take(160).collect(),
                });
                continue;
            }
            match self.read_signed(&descriptor).await? {
                Ok(payload) => self.judge(manifest, form, check_simple(&payload, signature, manifest, self.keys)),
                Err(reason) => self.found(Finding::MalformedSignature { manifest: *manifest, form, reason }),
            }
        }
        Ok(layers.len())
    }

    /// Bundles that refer to the manifest. Says how many there are.
    async fn bundles(&mut self, manifest: &Digest) -> Result<usize, StoreError> {
        let form = Form::Bundle;
        let referrers = match content(self.store.referrers(manifest).await)? {
            Ok(referrers) => referrers,
            Err(reason) => {
                self.found(Finding::MalformedSignature { manifest: *manifest, form, reason });
                return Ok(1);
            }
        };
        if referrers.len() > MAX_SIGNATURES {
            self.found(Finding::TooManySignatures { manifest: *manifest, count: referrers.len() });
        }
        let mut count = 0;
        for referrer in referrers.iter().take(MAX_SIGNATURES) {
            let document = match content(self.store.manifest(&referrer.digest).await)? {
                Ok(document) => document,
                Err(reason) => {
                    self.found(Finding::MalformedSignature { manifest: *manifest, form, reason });
                    continue;
                }
            };
            // Anything may refer to an image; only bundles are of interest.
            let Ok(links) = Links::parse(document.bytes()) else { continue };
            for layer in links.blobs().filter(|layer| layer.media_type.starts_with(MEDIA_BUNDLE_PREFIX)) {
                count += 1;
                match self.read_signed(layer).await? {
                    Ok(bundle) => self.judge(manifest, form, check_bundle(&bundle, manifest, self.keys)),
                    Err(reason) => self.found(Finding::MalformedSignature { manifest: *manifest, form, reason }),
                }
            }
        }
        Ok(count)
    }

    fn judge(&mut self, manifest: &Digest, form: Form, outcome: Result<Accepted<'_>, Rejection>) {
        let manifest = *manifest;
        match outcome {
            Ok(Accepted { key, identity }) => {
                let good = GoodSignature { manifest, form, key: key.fingerprint(), identity };
                self.report.signatures.push(good);
            }
            Err(Rejection::OtherKey) => self.found(Finding::OtherKey { manifest, form }),
            Err(Rejection::OtherDigest(signed)) => self.found(Finding::OtherDigest { manifest, form, signed }),
            Err(Rejection::OtherKind(kind)) => self.found(Finding::OtherKind { manifest, form, kind }),
            Err(Rejection::Malformed(reason)) => self.found(Finding::MalformedSignature { manifest, form, reason }),
        }
    }

    /// A small blob, or why there is none.
    async fn read_signed(&self, descriptor: &Descriptor) -> Result<Result<Vec<u8>, String>, StoreError> {
        if descriptor.size > MAX_SIGNED {
            return Ok(Err(format!("its payload has {} bytes; at most {MAX_SIGNED} are read", descriptor.size)));
        }
        let mut bytes = Vec::new();
        content(pass(self.store, descriptor, |piece| bytes.extend_from_slice(piece)).await.map(|()| bytes))
    }

    /// Walks down from the root. Returns the blobs, each once, and the manifests below the root.
    async fn manifests(&mut self, root: &Descriptor, depth: Depth) -> Result<(Vec<Named>, Vec<Digest>), StoreError> {
        let (mut blobs, mut members) = (Vec::new(), Vec::new());
        let mut seen = HashSet::from([root.digest]);
        let mut level = vec![(root.clone(), root.digest)];
        while !level.is_empty() {
            let store = self.store;
            let mut fetches = stream::iter(std::mem::take(&mut level))
                .map(|(descriptor, parent)| async move {
                    let fetched = fetch(store, &descriptor, parent).await?;
                    Ok::<_, StoreError>((descriptor.digest, fetched))
                })
                .buffered(JOBS);
            let mut next = Vec::new();
            while let Some((digest, fetched)) = fetches.try_next().await? {
                match fetched {
                    Ok(links) => {
                        self.report.manifests += 1;
                        if depth == Depth::Signature {
                            continue;
                        }
                        let children = links.manifests.iter().filter(|child| seen.insert(child.digest));
                        next.extend(children.map(|child| (child.clone(), digest)));
                        let new = links.blobs().filter(|blob| seen.insert(blob.digest));
                        blobs.extend(new.map(|blob| (blob.clone(), digest)));
                    }
                    Err(finding) => self.report.findings.push(finding),
                }
            }
            members.extend(next.iter().map(|(child, _)| child.digest));
            if members.len() > MAX_MANIFESTS {
                self.found(Finding::TooMuch { manifest: self.root });
                members.truncate(MAX_MANIFESTS);
                break;
            }
            level = next;
        }
        Ok((blobs, members))
    }

    async fn blobs(&mut self, blobs: Vec<Named>, depth: Depth, progress: &dyn Progress) -> Result<(), StoreError> {
        let store = self.store;
        let mut checks = stream::iter(blobs)
            .map(|(descriptor, manifest)| async move {
                let outcome = check_blob(store, &descriptor, manifest, depth, progress).await?;
                Ok::<_, StoreError>((descriptor.size, outcome))
            })
            .buffered(JOBS);
        while let Some((size, outcome)) = checks.try_next().await? {
            match outcome {
                Ok(()) => {
                    self.report.blobs += 1;
                    self.report.bytes += if depth == Depth::Blobs { size } else { 0 };
                }
                Err(finding) => self.report.findings.push(finding),
            }
        }
        Ok(())
    }
}

/// One manifest's links, or what is wrong with it.
async fn fetch(
    store: &dyn Store,
    descriptor: &Descriptor,
    parent: Digest,
) -> Result<Result<Links, Finding>, StoreError> {
    let manifest = descriptor.digest;
    let damaged = |reason| Ok(Err(Finding::DamagedManifest { manifest, reason }));
    if descriptor.size > MAX_DOCUMENT {
        return damaged(format!("{} bytes are said to be in it; at most {MAX_DOCUMENT} are read", descriptor.size));
    }
    let document = match store.manifest(&manifest).await {
        Err(StoreError::NotFound { .. }) => return Ok(Err(Finding::MissingManifest { manifest })),
        other => match content(other)? {
            Ok(document) => document,
            Err(reason) => return damaged(reason),
        },
    };
    let actual = document.bytes().len() as u64;
    if actual != descriptor.size {
        let expected = descriptor.size;
        return Ok(Err(Finding::WrongSize { content: manifest, manifest: parent, expected, actual }));
    }
    match Links::parse(document.bytes()) {
        Ok(links) => Ok(Ok(links)),
        Err(error) => damaged(error.to_string()),
    }
}

async fn check_blob(
    store: &dyn Store,
    descriptor: &Descriptor,
    manifest: Digest,
    depth: Depth,
    progress: &dyn Progress,
) -> Result<Result<(), Finding>, StoreError> {
    let Descriptor { digest: blob, size: expected, .. } = *descriptor;
    match content(store.blob_size(&blob).await)? {
        Ok(Some(actual)) if actual == expected => {}
        Ok(Some(actual)) => return Ok(Err(Finding::WrongSize { content: blob, manifest, expected, actual })),
        Ok(None) => return Ok(Err(Finding::MissingBlob { blob, manifest })),
        Err(reason) => return Ok(Err(Finding::DamagedBlob { blob, manifest, reason })),
    }
    if depth < Depth::Blobs {
        return Ok(Ok(()));
    }
    let name = blob.to_string();
    progress.begin(&name, Some(expected));
    let checked = pass(store, descriptor, |piece| progress.advance(&name, piece.len() as u64)).await;
    let outcome = match checked {
        Err(StoreError::NotFound { .. }) => Err(Finding::MissingBlob { blob, manifest }),
        other => content(other)?.map_err(|reason| Finding::DamagedBlob { blob, manifest, reason }),
    };
    if outcome.is_ok() {
        progress.end(&name, None);
    }
    Ok(outcome)
}

/// Tells bad content, with its reason, from a store that cannot be asked.
fn content<T>(outcome: Result<T, StoreError>) -> Result<Result<T, String>, StoreError> {
    match outcome {
        Ok(value) => Ok(Ok(value)),
        Err(StoreError::Corrupt { reason, .. }) => Ok(Err(reason)),
        Err(error @ (StoreError::NotFound { .. } | StoreError::TooLarge { .. })) => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

/// Reads a blob to its end, where the store has checked it.
async fn pass(store: &dyn Store, descriptor: &Descriptor, mut each: impl FnMut(&[u8])) -> Result<(), StoreError> {
    let failed = |error| StoreError::from_stream(store.name(), &format!("reading blob {}", descriptor.digest), error);
    let mut reader = store.read_blob(descriptor).await?;
    let mut buffer = Vec::with_capacity(256 << 10);
    while reader.read_buf(&mut buffer).await.map_err(failed)? > 0 {
        each(&buffer);
        buffer.clear();
    }
    Ok(())
}
