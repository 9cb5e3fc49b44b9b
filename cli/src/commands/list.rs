//! `syncpoint list`.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use clap::Args;
use futures_util::stream::{self, StreamExt};
use image_format::{ApplicationId, Digest, Epoch, MemberId};
use registry::sign::{Depth, Finding};
use registry::{
    Catalogue, CatalogueError, Listed, PassedOver, Reference, Sizes, Store, Trust, catalogue, is_pin, sizes,
};
use serde::Serialize;

use crate::context::Context;
use crate::error::{CommandError, While, in_a_line};
use crate::exit::Exit;
use crate::keys;
use crate::output::{Format, Report, size, table};
use crate::store;
use crate::transport::Transport;

/// List the global checkpoints of a repository, the newest first
///
/// PLAIN is the size of all layers of all members before compression, SIZE that of their blobs as they are stored, each counted once, and
/// ADDED that of those which no older checkpoint of the list refers to. SIZE is "incomplete" where a manifest or blob is missing. SIGNED
/// has the key, of those given, whose signature holds. With --key, what none of these keys signed is left out. Tags that name other
/// things are left out, so is what is damaged, and so are pins of checkpoints that have another tag; `*` stands before what is pinned.
/// What is left out for its signatures or for damage is named, and the command fails if there is nothing else.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: {repository, checkpoints: [{tag, digest, application, epoch, created, \
predecessor, members: [id], plain_size, size, added, signed, keys: [fingerprint], pinned}], damaged: [{tag, reason}]}. Sizes are in bytes, \
and null where something is missing. signed is yes, no or unchecked (no key was given). damaged has also what no key given signed.")]
pub struct ListArgs {
    /// The repository: oci:DIR or HOST/REPO
    #[arg(value_name = "REPO")]
    repository: Reference,

    /// Only those of this application
    #[arg(long, value_name = "ID")]
    application: Option<ApplicationId>,

    /// A public key whose signatures count; may be repeated
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,

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
    damaged: Vec<Damaged>,
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
    plain_size: Option<u64>,
    size: Option<u64>,
    added: Option<u64>,
    signed: Signed,
    keys: Vec<Digest>,
    pinned: bool,
}

/// A tag of something that cannot be read.
#[derive(Debug, Serialize)]
struct Damaged {
    tag: String,
    reason: String,
}

/// What is known of the signatures of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Signed {
    Yes,
    No,
    Unchecked,
}

impl Report for Listing {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let row = |entry: &Entry| {
            let shown = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), size);
            let members: Vec<_> = entry.members.iter().map(MemberId::as_str).collect();
            let signed = match entry.signed {
                Signed::Yes => entry.keys.iter().map(Digest::short).collect::<Vec<_>>().join(","),
                Signed::No => "unsigned".to_owned(),
                Signed::Unchecked => "unchecked".to_owned(),
            };
            vec![
                format!("{}{}", if entry.pinned { "*" } else { "" }, entry.tag),
                entry.application.to_string(),
                entry.epoch.to_string(),
                entry.created.clone(),
                shown(entry.plain_size),
                entry.size.map_or_else(|| "incomplete".to_owned(), size),
                shown(entry.added),
                signed,
                entry.digest.short(),
                members.join(","),
            ]
        };
        let rows: Vec<_> = self.checkpoints.iter().map(row).collect();
        let head = ["TAG", "APPLICATION", "EPOCH", "CREATED", "PLAIN", "SIZE", "ADDED", "SIGNED", "DIGEST", "MEMBERS"];
        table(out, &head, &rows)
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
    let keys = keys::public(args.key.iter().map(PathBuf::as_path))?;
    let store = store::open(&args.repository, &args.transport, context).await?;
    let trust = if keys.is_empty() { Trust::InsecureNoVerify } else { Trust::Keys(keys) };
    let Catalogue { mut listed, passed_over } = catalogue(&*store, &trust, args.transport.jobs()).await?;
    let untrusted = |passed: &PassedOver| matches!(passed.why, CatalogueError::Untrusted { .. });
    let all_untrusted = !passed_over.is_empty() && passed_over.iter().all(untrusted);
    let damaged = passed_over.into_iter().map(|PassedOver { tag, why }| Damaged { tag, reason: in_a_line(&why) });
    let damaged: Vec<_> = damaged.collect();
    for Damaged { tag, reason } in &damaged {
        context.reporter.warn(&format!("{tag} is left out: {reason}"));
    }
    if let Some(application) = &args.application {
        listed.retain(|listed| listed.global.application() == application);
    }
    let pinned: HashSet<Digest> =
        listed.iter().filter(|listed| is_pin(&listed.tag)).map(|listed| listed.root.digest).collect();
    let named: HashSet<Digest> =
        listed.iter().filter(|listed| !is_pin(&listed.tag)).map(|listed| listed.root.digest).collect();
    listed.retain(|listed| !is_pin(&listed.tag) || !named.contains(&listed.root.digest));
    listed.sort_by_cached_key(|listed| {
        (Reverse(listed.global.created().to_owned()), Reverse(listed.global.epoch()), listed.tag.clone())
    });
    let oldest_first: Vec<&Listed> = listed.iter().rev().collect();
    let mut sizes = sizes(&*store, &oldest_first, args.transport.jobs())
        .await
        .doing(|| "what the checkpoints lead to cannot be looked for".to_owned())?;
    sizes.reverse();
    let entries = listed.iter().zip(sizes).map(|(listed, sizes)| entry(&*store, listed, sizes, &pinned));
    let checkpoints: Vec<Entry> = stream::iter(entries).buffered(args.transport.jobs()).collect().await;
    let all_damaged = checkpoints.is_empty() && !damaged.is_empty();
    context.output.print(args.format, &Listing { repository: args.repository.to_string(), checkpoints, damaged })?;
    match all_damaged {
        true if all_untrusted => {
            Err(CommandError::new(Exit::Unverified, format!("no trusted key signed anything in {}", args.repository)))
        }
        true => Err(CommandError::new(Exit::Damaged, format!("nothing that {} lists can be read", args.repository))),
        false => Ok(()),
    }
}

async fn entry(store: &dyn Store, listed: &Listed, sizes: Option<Sizes>, pinned: &HashSet<Digest>) -> Entry {
    let global = &listed.global;
    let mut keys: Vec<Digest> = listed.signatures.iter().map(|signature| signature.key).collect();
    keys.sort();
    keys.dedup();
    Entry {
        tag: listed.tag.to_string(),
        digest: listed.root.digest,
        application: global.application().clone(),
        epoch: global.epoch(),
        created: global.created().to_owned(),
        predecessor: global.predecessor(),
        members: global.members().iter().map(|member| member.id.clone()).collect(),
        plain_size: sizes.and_then(|sizes| sizes.plain),
        size: sizes.map(|sizes| sizes.stored),
        added: sizes.map(|sizes| sizes.added),
        signed: if keys.is_empty() { unchecked(store, listed).await } else { Signed::Yes },
        keys,
        pinned: pinned.contains(&listed.root.digest),
    }
}

/// What can be said of signatures without a key. One that cannot be read is there, and is not checked either.
async fn unchecked(store: &dyn Store, listed: &Listed) -> Signed {
    let seen = registry::sign::verify(store, &listed.root, &[], Depth::Signature, &()).await;
    let unsigned = |finding: &Finding| matches!(finding, Finding::Unsigned { .. });
    match seen.is_ok_and(|seen| seen.findings.iter().any(unsigned)) {
        true => Signed::No,
        false => Signed::Unchecked,
    }
}
