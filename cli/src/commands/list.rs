//! `syncpoint list`.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;

use clap::Args;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use image_format::{ApplicationId, CheckpointImage, Digest, Epoch, MemberId};
use registry::{Listed, Reference, Store, catalogue};
use serde::Serialize;

use crate::context::Context;
use crate::error::{CommandError, While};
use crate::output::{Format, Report, size, table};
use crate::store;
use crate::transport::Transport;

/// List the global checkpoints of a repository, the newest first
///
/// The size is that of all blobs of all members together, each counted once, as they are stored. Tags that name other things
/// are left out.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: {repository, checkpoints: [{tag, digest, application, epoch, created, \
predecessor, members: [id], size}]}; size is in bytes, and null where a member is missing.")]
pub struct ListArgs {
    /// The repository: oci:DIR or HOST/REPO
    #[arg(value_name = "REPO")]
    repository: Reference,

    /// Only those of this application
    #[arg(long, value_name = "ID")]
    application: Option<ApplicationId>,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    transport: Transport,
}

/// What there is.
#[derive(Debug, Serialize)]
struct Listing {
    repository: String,
    checkpoints: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Entry {
    tag: String,
    digest: Digest,
    application: ApplicationId,
    epoch: Epoch,
    created: String,
    predecessor: Option<Digest>,
    members: Vec<MemberId>,
    size: Option<u64>,
}

impl Report for Listing {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let row = |entry: &Entry| {
            let size = entry.size.map_or_else(|| "incomplete".to_owned(), size);
            let members: Vec<_> = entry.members.iter().map(MemberId::as_str).collect();
            vec![
                entry.tag.clone(),
                entry.application.to_string(),
                entry.epoch.to_string(),
                entry.created.clone(),
                size,
                entry.digest.short(),
                members.join(","),
            ]
        };
        let rows: Vec<_> = self.checkpoints.iter().map(row).collect();
        table(out, &["TAG", "APPLICATION", "EPOCH", "CREATED", "SIZE", "DIGEST", "MEMBERS"], &rows)
    }

    fn brief(&self) -> Option<String> {
        let tags: Vec<_> = self.checkpoints.iter().map(|entry| entry.tag.as_str()).collect();
        (!tags.is_empty()).then(|| tags.join("\n"))
    }
}

/// Lists.
pub async fn run(args: ListArgs, context: &Context) -> Result<(), CommandError> {
    if args.repository.selector().is_some() {
        return Err(CommandError::usage(format!("{} is one image of a repository", args.repository)).hint(format!(
            "list the repository, {}, or look at the image with `syncpoint inspect`",
            args.repository.location()
        )));
    }
    let store = store::open(&args.repository, &args.transport, context).await?;
    let (mut listed, damaged) = catalogue(&*store, args.transport.jobs()).await?;
    for (tag, error) in damaged {
        context.reporter.warn(&format!("{tag} is left out: {}", CommandError::from(error).messages().join(": ")));
    }
    if let Some(application) = &args.application {
        listed.retain(|listed| listed.global.application() == application);
    }
    listed.sort_by_cached_key(|listed| {
        (Reverse(listed.global.created().to_owned()), Reverse(listed.global.epoch()), listed.tag.clone())
    });
    let checkpoints = stream::iter(&listed).map(|listed| entry(&*store, listed)).buffered(args.transport.jobs());
    let checkpoints = checkpoints.try_collect().await.doing(|| "a member's manifest cannot be read".to_owned())?;
    context.output.print(args.format, &Listing { repository: args.repository.to_string(), checkpoints })
}

async fn entry(store: &dyn Store, listed: &Listed) -> Result<Entry, CommandError> {
    let global = &listed.global;
    Ok(Entry {
        tag: listed.tag.to_string(),
        digest: listed.root.digest,
        application: global.application().clone(),
        epoch: global.epoch(),
        created: global.created().to_owned(),
        predecessor: global.predecessor(),
        members: global.members().iter().map(|member| member.id.clone()).collect(),
        size: blob_bytes(store, listed).await?,
    })
}

/// The bytes of all blobs; nothing if a member's manifest is not there.
async fn blob_bytes(store: &dyn Store, listed: &Listed) -> Result<Option<u64>, CommandError> {
    let mut sizes: HashMap<Digest, u64> = HashMap::new();
    for member in listed.global.members() {
        if !store.has_manifest(&member.manifest.digest).await? {
            return Ok(None);
        }
        let image = CheckpointImage::parse(&store.manifest(&member.manifest.digest).await?)?;
        sizes.insert(image.config().digest, image.config().size);
        sizes.extend(image.layers().iter().map(|layer| (layer.descriptor.digest, layer.descriptor.size)));
    }
    Ok(Some(sizes.values().fold(0, |sum, size| sum.saturating_add(*size))))
}
