//! `syncpoint pin` and `unpin`.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use image_format::Digest;
use registry::{PinError, Reference, Tag, Trust};
use serde::Serialize;

use crate::context::Context;
use crate::error::CommandError;
use crate::keys;
use crate::output::{Format, Report};
use crate::store;
use crate::transport::Transport;

/// Pin a global checkpoint, so that `syncpoint prune` never removes it
///
/// A pin is one more tag, `pin-` and the digest, so that any registry keeps it. `syncpoint list` shows it as a `*`.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: {reference, digest, tag}.")]
pub struct PinArgs {
    /// The global checkpoint
    #[arg(value_name = "REF")]
    reference: Reference,

    /// A public key by which it must be signed; may be repeated
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    transport: Transport,
}

/// Take the pin of a global checkpoint away
///
/// It is not removed by that: the next `syncpoint prune` decides. A checkpoint that has no other tag stays pinned.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: {reference, digest, tags}; tags are the pins that were taken away.")]
pub struct UnpinArgs {
    /// The global checkpoint
    #[arg(value_name = "REF")]
    reference: Reference,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    transport: Transport,
}

#[derive(Debug, Serialize)]
struct PinAnswer {
    reference: String,
    digest: Digest,
    tag: String,
}

impl Report for PinAnswer {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "pinned {}", self.reference)
    }

    fn brief(&self) -> Option<String> {
        Some(self.reference.clone())
    }
}

#[derive(Debug, Serialize)]
struct UnpinAnswer {
    reference: String,
    digest: Digest,
    tags: Vec<String>,
}

impl Report for UnpinAnswer {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        match self.tags.is_empty() {
            true => writeln!(out, "{} was not pinned", self.reference),
            false => writeln!(out, "no longer pinned {}", self.reference),
        }
    }

    fn brief(&self) -> Option<String> {
        Some(self.reference.clone())
    }
}

/// Pins.
pub async fn run(args: PinArgs, context: &Context) -> Result<(), CommandError> {
    let (store, root) = store::find(&args.reference, &args.transport, context).await?;
    let keys = keys::public(args.key.iter().map(PathBuf::as_path))?;
    if !keys.is_empty() {
        keys::check(&Trust::Keys(keys), &*store, &root, &args.reference.to_string()).await?;
    }
    let tag = registry::pin(&*store, &root).await?;
    let reference = store::pinned(&args.reference, root.digest).to_string();
    context.output.print(args.format, &PinAnswer { reference, digest: root.digest, tag: tag.to_string() })
}

/// Unpins.
pub async fn run_unpin(args: UnpinArgs, context: &Context) -> Result<(), CommandError> {
    let (store, root) = store::find(&args.reference, &args.transport, context).await?;
    let tags = registry::unpin(&*store, &root).await.map_err(|error| match error {
        PinError::OnlyTag { .. } => {
            let to = args.reference.with_selector(None);
            CommandError::from(error)
                .hint(format!("give it a tag with `syncpoint copy {}@{} {to}:TAG` first", to, root.digest))
        }
        error => error.into(),
    })?;
    let reference = store::pinned(&args.reference, root.digest).to_string();
    let tags = tags.iter().map(Tag::to_string).collect();
    context.output.print(args.format, &UnpinAnswer { reference, digest: root.digest, tags })
}
