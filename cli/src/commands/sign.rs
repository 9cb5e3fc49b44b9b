//! `syncpoint sign`.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use image_format::{Descriptor, Digest};
use registry::sign::{PrivateKey, SignReport};
use registry::{Reference, Selector, Store, Tag};
use serde::Serialize;

use crate::context::Context;
use crate::error::CommandError;
use crate::keys;
use crate::output::{Format, Report, count};
use crate::store;
use crate::transport::Transport;

/// Sign a checkpoint image, or a global checkpoint and all its members
///
/// Signatures are written beside what they sign, in both of cosign's forms: the `.sig` tag, and the bundle that refers to
/// it. Nothing is sent anywhere else, and signatures that are there stay. The tag does not move: it was set by `link` or
/// `copy`, so that a global checkpoint is unsigned, and refused by `restore`, until this is done; `link --sign-by` leaves no
/// such gap.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: {reference, digest, manifests, added}; manifests are signed now, and added \
signatures were not there before.")]
pub struct SignArgs {
    /// The private key; its pass phrase is that of $COSIGN_PASSWORD, or asked for
    #[arg(long, value_name = "FILE")]
    key: PathBuf,

    /// What to sign
    #[arg(value_name = "REF")]
    reference: Reference,

    #[command(flatten)]
    identity: Identity,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    transport: Transport,
}

/// What signatures call the image.
#[derive(Debug, Args)]
pub struct Identity {
    /// What the signatures call the image (docker-reference), which podman's policies compare; HOST/REPO:TAG, where it is
    /// signed, if not given
    #[arg(long = "identity", value_name = "NAME")]
    pub name: Option<String>,
}

impl Identity {
    /// The name that was given, else the repository's with the tag.
    fn or_of(&self, store: &dyn Store, tag: Option<&Tag>) -> String {
        self.name.clone().unwrap_or_else(|| registry::sign::identity(store, tag))
    }
}

/// What was signed.
#[derive(Debug, Serialize)]
struct Signed {
    reference: String,
    digest: Digest,
    manifests: usize,
    added: usize,
}

impl Report for Signed {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let (manifests, added) = (count(self.manifests as u64, "manifest"), count(self.added as u64, "new signature"));
        writeln!(out, "signed  {manifests} ({added})")?;
        writeln!(out, "{}", self.reference)
    }

    fn brief(&self) -> Option<String> {
        Some(self.reference.clone())
    }
}

/// Signs.
pub async fn run(args: SignArgs, context: &Context) -> Result<(), CommandError> {
    let key = keys::private(&args.key, context).await?;
    let (store, root) = store::find(&args.reference, &args.transport, context).await?;
    let tag = match args.reference.selector() {
        Some(Selector::Tag(tag)) => Some(tag),
        Some(Selector::Digest(_)) | None => None,
    };
    let SignReport { manifests, added } = sign(&*store, &root, &key, &args.identity, tag).await?;
    let reference = store::pinned(&args.reference, root.digest).to_string();
    context.output.print(args.format, &Signed { reference, digest: root.digest, manifests, added })
}

/// Signs everything below a root, and the root.
pub async fn sign(
    store: &dyn Store,
    root: &Descriptor,
    key: &PrivateKey,
    identity: &Identity,
    tag: Option<&Tag>,
) -> Result<SignReport, CommandError> {
    Ok(registry::sign::sign(store, root, key, &identity.or_of(store, tag)).await?)
}
