//! Signatures, offline, with keys: cosign's, both ways.
//!
//! Two forms are written side by side, because no reader knows both: cosign 2 and podman's `policy.json` read the
//! simplesigning attachment under the tag `sha256-<hex>.sig`; cosign 3 reads a sigstore bundle that refers to the
//! manifest. Both sign the digest of the exact manifest. [`verify`] accepts either.

pub(crate) mod attachment;
mod key;
pub(crate) mod payload;

use std::collections::HashSet;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use image_format::{Descriptor, Digest, Document};
use serde_json::json;

use crate::copy::put_small_blob;
use crate::links::Links;
use crate::{Selector, Store, StoreError, Tag, artifact};
use attachment::{Attachment, MEDIA_PAYLOAD, payload_layer, signature_tag};
pub use key::{KeyError, Password, PrivateKey, PublicKey};
use payload::{MEDIA_BUNDLE, PREDICATE};

pub use crate::verify::{Depth, Finding, Form, GoodSignature, Severity, VerifyReport, errors, reasons, verify};

/// How many referrers are put at the same time.
const REFERRERS_AT_A_TIME: usize = 8;

/// What signatures call an image in this store if nobody says: `HOST/REPO:TAG`, or without the tag where there is none.
#[must_use]
pub fn identity(store: &dyn Store, tag: Option<&Tag>) -> String {
    match tag {
        Some(tag) => format!("{}:{tag}", store.repository()),
        None => store.repository().to_owned(),
    }
}

/// What [`sign`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SignReport {
    /// Manifests that are signed now: the members and the index, or the one image.
    pub manifests: usize,
    /// Signatures that were put; the others were there already.
    pub added: usize,
}

/// Why signing was not finished. What was put stays, and is not put again next time.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    /// A store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something is under the `.sig` tag that cannot be added to, and that is not overwritten.
    #[error("the signatures under {tag} in {store} cannot be added to: {reason}")]
    Attachment {
        /// The store's name.
        store: String,
        /// The `.sig` tag.
        tag: Tag,
        /// What is wrong with it.
        reason: String,
    },
    /// The root is neither an image nor an index.
    #[error("{digest} in {store} is not to be signed: {reason}")]
    NotAnImage {
        /// The store's name.
        store: String,
        /// What was to be signed.
        digest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// A document could not be written as JSON.
    #[error("a signature could not be encoded")]
    Encode(#[source] serde_json::Error),
}

/// Signs a manifest and, if it is an index, every manifest that it names first.
///
/// `identity` is what signatures of the first form call the image (`docker-reference`). With `HOST/REPO:TAG`, podman's
/// policies accept the image under just that tag, or by digest from that repository.
///
/// Signing again with the same key and identity changes nothing. Signatures of others are kept.
///
/// # Errors
/// See [`SignError`].
pub async fn sign(
    store: &dyn Store,
    root: &Descriptor,
    key: &PrivateKey,
    identity: &str,
) -> Result<SignReport, SignError> {
    let document = store.manifest(&root.digest).await?;
    let links = Links::parse(document.bytes()).map_err(|error| SignError::NotAnImage {
        store: store.name().to_owned(),
        digest: root.digest,
        reason: error.to_string(),
    })?;
    let mut known = HashSet::new();
    let own = document.descriptor();
    let signed: Vec<_> = links.manifests.iter().chain([&own]).filter(|one| known.insert(one.digest)).collect();
    let mut report = SignReport { manifests: signed.len(), added: 0 };
    for descriptor in &signed {
        report.added += usize::from(attach(store, &descriptor.digest, key, identity).await?);
    }
    // Their common config is put once and before: a registry that receives one blob several times at
    // the same moment may not know it for a moment.
    artifact::put_config(store).await?;
    // Where a registry keeps no lists of referrers, each put waits for others that may write the
    // same list.
    let mut referred =
        stream::iter(signed).map(|descriptor| refer(store, descriptor, key)).buffer_unordered(REFERRERS_AT_A_TIME);
    while let Some(new) = referred.try_next().await? {
        report.added += usize::from(new);
    }
    drop(referred);
    Ok(report)
}

/// Adds a simplesigning signature to those under the `.sig` tag. Says whether it was new.
async fn attach(store: &dyn Store, digest: &Digest, key: &PrivateKey, identity: &str) -> Result<bool, SignError> {
    use base64::Engine as _;

    let tag = signature_tag(digest);
    let mut attachment = match store.resolve(&Selector::Tag(tag.clone())).await {
        Ok(descriptor) => {
            let document = store.manifest(&descriptor.digest).await?;
            let parsed = Attachment::parse(&document);
            parsed.map_err(|reason| SignError::Attachment {
                store: store.name().to_owned(),
                tag: tag.clone(),
                reason,
            })?
        }
        Err(StoreError::NotFound { .. }) => Attachment::empty(),
        Err(error) => return Err(error.into()),
    };
    let payload = payload::simple_payload(digest, identity).map_err(SignError::Encode)?;
    let signature = base64::engine::general_purpose::STANDARD.encode(key.sign(&payload));
    let payload = Document::new(MEDIA_PAYLOAD, payload);
    if !attachment.add(payload_layer(&payload.descriptor(), &signature).map_err(SignError::Encode)?) {
        return Ok(false);
    }
    let (config, manifest) = attachment.to_documents().map_err(SignError::Encode)?;
    put_small_blob(store, &payload, &()).await?;
    put_small_blob(store, &config, &()).await?;
    store.put_manifest(&manifest, Some(&tag)).await?;
    Ok(true)
}

/// Puts a bundle that refers to the manifest. Says whether it was new.
async fn refer(store: &dyn Store, subject: &Descriptor, key: &PrivateKey) -> Result<bool, SignError> {
    let bundle = payload::bundle(&subject.digest, key).map_err(SignError::Encode)?;
    let bundle = Document::new(MEDIA_BUNDLE, bundle);
    let annotations = json!({
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": PREDICATE,
    });
    let more = [("subject", json!(subject)), ("annotations", annotations)];
    let manifest = artifact::manifest(MEDIA_BUNDLE, &bundle.descriptor(), more).map_err(SignError::Encode)?;
    if store.referrers(&subject.digest).await?.iter().any(|listed| listed.digest == manifest.digest()) {
        return Ok(false);
    }
    put_small_blob(store, &bundle, &()).await?;
    store.put_referrer(&subject.digest, &manifest).await?;
    Ok(true)
}
