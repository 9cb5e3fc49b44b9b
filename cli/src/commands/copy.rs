//! `syncpoint copy`, and the words `push` and `pull` for the same thing.

use std::fmt;

use clap::Args;
use registry::{CopyOptions, Reference, Selector, Tag};
use serde::Serialize;

use crate::context::Context;
use crate::error::CommandError;
use crate::output::{Format, Report, count, size};
use crate::store;
use crate::transport::Transport;

const JSON: &str = "With --json: {reference, digest, tag, blobs_sent, bytes_sent, blobs_existing, bytes_existing, \
blobs_mounted, manifests}; tag is null where none was set.";

/// Copy a checkpoint image or a global checkpoint from anywhere to anywhere
///
/// SRC and DST are `oci:DIR[:TAG|@DIGEST]` or `[docker://]HOST[:PORT]/REPO[:TAG|@DIGEST]`. A global checkpoint brings all
/// members along, and everything brings its signatures along. Blobs go first, then manifests, signatures and, at the very
/// end, the tag: whatever interrupts it, no tag ever names something half there, and copying again sends only what is
/// missing.
///
/// A SRC without a tag means `latest`. A DST without a tag gets the tag that SRC names; a DST with the digest of SRC gets none.
#[derive(Debug, Args)]
#[command(after_long_help = JSON)]
pub struct CopyArgs {
    /// What to copy
    #[arg(value_name = "SRC")]
    from: Reference,

    /// Where to
    #[arg(value_name = "DST")]
    to: Reference,

    /// Leave signatures and other referrers behind; `restore` will refuse the copy until it is signed
    #[arg(long)]
    no_signatures: bool,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    transport: Transport,
}

/// What a copy did.
#[derive(Debug, Serialize)]
struct Copied {
    reference: String,
    digest: String,
    tag: Option<String>,
    blobs_sent: usize,
    bytes_sent: u64,
    blobs_existing: usize,
    bytes_existing: u64,
    blobs_mounted: usize,
    manifests: usize,
}

impl Report for Copied {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let blobs = |number: usize| count(number as u64, "blob");
        writeln!(out, "sent      {} ({})", blobs(self.blobs_sent), size(self.bytes_sent))?;
        writeln!(out, "existing  {} ({})", blobs(self.blobs_existing), size(self.bytes_existing))?;
        if self.blobs_mounted > 0 {
            writeln!(out, "mounted   {}", blobs(self.blobs_mounted))?;
        }
        writeln!(out, "{}", self.reference)
    }

    fn brief(&self) -> Option<String> {
        Some(self.reference.clone())
    }
}

/// Copies.
pub async fn run(args: CopyArgs, context: &Context) -> Result<(), CommandError> {
    let destination = destination(&args.from, &args.to)?;
    let (from, root) = store::find(&args.from, &args.transport, context).await?;
    let tag = match destination {
        Selector::Tag(tag) => Some(tag),
        Selector::Digest(digest) if digest == root.digest => None,
        Selector::Digest(digest) => {
            return Err(CommandError::usage(format!("{} is {}, not {digest}", args.from, root.digest)));
        }
    };
    let to = store::create(&args.to, &args.transport, context).await?;
    let options = CopyOptions {
        jobs: args.transport.jobs(),
        signatures: !args.no_signatures,
        tag: tag.clone(),
        progress: &*context.reporter,
    };
    let report = registry::copy(&*from, &root, &*to, &options).await?;
    let copied = Copied {
        reference: store::pinned(&args.to, root.digest).to_string(),
        digest: root.digest.to_string(),
        tag: tag.as_ref().map(Tag::to_string),
        blobs_sent: report.blobs_sent,
        bytes_sent: report.bytes_sent,
        blobs_existing: report.blobs_existing,
        bytes_existing: report.bytes_existing,
        blobs_mounted: report.blobs_mounted,
        manifests: report.manifests,
    };
    context.output.print(args.format, &copied)
}

/// What the copy is to be called: as the destination says, else as the source is called.
fn destination(from: &Reference, to: &Reference) -> Result<Selector, CommandError> {
    match (to.selector(), from.selector()) {
        (Some(named), _) => Ok(named.clone()),
        (None, Some(Selector::Tag(tag))) => Ok(Selector::Tag(tag.clone())),
        (None, _) => Err(CommandError::usage(format!("neither {from} nor {to} names a tag"))
            .hint(format!("what is written is written under a tag that was chosen: {to}:TAG"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_called_as_its_source_unless_told_otherwise() {
        let called = |from: &str, to: &str| {
            destination(&from.parse().unwrap(), &to.parse().unwrap()).map(|selector| selector.to_string()).ok()
        };
        assert_eq!(called("localhost/a:1", "oci:/b").as_deref(), Some("tag 1"));
        assert_eq!(called("localhost/a:1", "oci:/b:2").as_deref(), Some("tag 2"));
        assert_eq!(called("localhost/a", "oci:/b:2").as_deref(), Some("tag 2"));
        assert_eq!(called("localhost/a", "oci:/b"), None);
    }
}
