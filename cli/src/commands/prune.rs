//! `syncpoint prune`.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use image_format::{ApplicationId, Digest, Epoch};
use registry::{Glob, Kept, PassedOver, Policy, PruneOptions, PruneReport, Pruned, Reason, Reference, Tag};
use serde::Serialize;

use crate::context::Context;
use crate::error::{CommandError, While, in_a_line};
use crate::keys;
use crate::output::{Format, Report, count, size, table};
use crate::store;
use crate::transport::Transport;
use crate::values::Age;

/// Remove global checkpoints of a repository, but not those that a rule keeps
///
/// A checkpoint stays if one rule keeps it, or if it is pinned (`syncpoint pin`). Each application is looked at by itself, from its
/// newest checkpoint back. Nothing goes that a checkpoint which stays refers to: neither layers of earlier generations nor members that
/// are shared, nor signatures. Tags that name other things than global checkpoints stay too, and so does what they lead to.
///
/// Only checkpoints that are whole count: one with a missing blob keeps no whole one from being kept. With --key only what these keys
/// signed counts; other checkpoints are named, and stay.
///
/// In a layout the space is free at once. A registry deletes manifests, if it is allowed to there; blobs are freed by its own garbage
/// collection. Checkpoints, copies and restores may run at the same time.
#[derive(Debug, Args)]
#[command(
    after_long_help = "With --json: {repository, dry_run, kept: [{tags, digest, application, epoch, created, reasons: [text]}], \
removed: [{tags, digest, application, epoch, created}], damaged: [tag], incomplete: [digest], manifests, blobs, bytes, freed, \
unreadable: [digest], unreadable_tags: [tag], stale: [tag]}. freed is false in a registry, where bytes are free after its garbage \
collection. incomplete and unreadable_tags are left out where they are empty."
)]
pub struct PruneArgs {
    /// The repository: oci:DIR or HOST/REPO
    #[arg(value_name = "REPO")]
    repository: Reference,

    /// Keep the N newest
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, help_heading = "What to keep")]
    keep_last: u32,

    /// Keep those that are at most so much older than the newest, such as 12h, 7d or 4w
    #[arg(long, value_name = "TIME", help_heading = "What to keep")]
    keep_within: Option<Age>,

    /// Keep those with a tag like this; * stands for any characters, ? for one. May be repeated
    #[arg(long, value_name = "PATTERN", help_heading = "What to keep")]
    keep_tag: Vec<Glob>,

    /// Keep the newest of each of the N newest hours that have any (UTC); the oldest counts while there are fewer
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, help_heading = "What to keep")]
    keep_hourly: u32,

    /// The same with days
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, help_heading = "What to keep")]
    keep_daily: u32,

    /// The same with weeks, from Monday on
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, help_heading = "What to keep")]
    keep_weekly: u32,

    /// A public key by which checkpoints must be signed to count; others are named, and stay. May be repeated
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,

    /// Look only at checkpoints of this application
    #[arg(long, value_name = "ID")]
    application: Option<ApplicationId>,

    /// Only say what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// In a layout, leave what no tag leads to alone for so long: it may belong to a checkpoint or a copy under way
    #[arg(long, value_name = "TIME", default_value = "1h")]
    grace: Age,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    transport: Transport,
}

/// What happened, or would have.
#[derive(Debug, Serialize)]
struct Answer {
    repository: String,
    dry_run: bool,
    kept: Vec<KeptEntry>,
    removed: Vec<Entry>,
    damaged: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    incomplete: Vec<Digest>,
    manifests: usize,
    blobs: usize,
    bytes: u64,
    freed: bool,
    unreadable: Vec<Digest>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unreadable_tags: Vec<String>,
    stale: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Entry {
    tags: Vec<String>,
    digest: Digest,
    application: ApplicationId,
    epoch: Epoch,
    created: String,
}

#[derive(Debug, Serialize)]
struct KeptEntry {
    #[serde(flatten)]
    entry: Entry,
    reasons: Vec<String>,
}

impl From<Pruned> for Entry {
    fn from(pruned: Pruned) -> Self {
        let Pruned { digest, tags, application, epoch, created } = pruned;
        Self { tags: tags.iter().map(Tag::to_string).collect(), digest, application, epoch, created }
    }
}

impl From<Kept> for KeptEntry {
    fn from(kept: Kept) -> Self {
        let mut reasons: Vec<_> = kept.reasons.iter().map(Reason::to_string).collect();
        if reasons.is_empty() {
            reasons.push("it got another tag".to_owned());
        }
        Self { entry: kept.checkpoint.into(), reasons }
    }
}

impl Report for Answer {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let row = |what: &str, entry: &Entry, why: String| {
            let Entry { tags, application, epoch, created, .. } = entry;
            vec![what.to_owned(), tags.join(","), application.to_string(), epoch.to_string(), created.clone(), why]
        };
        let kept = self.kept.iter().map(|kept| row("keep", &kept.entry, kept.reasons.join(", ")));
        let rows: Vec<_> = kept.chain(self.removed.iter().map(|entry| row("remove", entry, String::new()))).collect();
        table(out, &["", "TAGS", "APPLICATION", "EPOCH", "CREATED", "BECAUSE"], &rows)?;
        let manifests = count(self.manifests as u64, "manifest");
        let blobs = count(self.blobs as u64, "blob");
        let bytes = size(self.bytes);
        match (self.dry_run, self.freed) {
            (true, _) => writeln!(out, "would remove {manifests} and {blobs}, {bytes}; nothing was touched"),
            (false, true) => writeln!(out, "removed {manifests} and {blobs}, {bytes}"),
            (false, false) => writeln!(
                out,
                "removed {manifests}; {blobs}, {bytes}, are free when the registry has collected its garbage"
            ),
        }
    }

    fn brief(&self) -> Option<String> {
        let tags: Vec<_> = self.removed.iter().flat_map(|entry| &entry.tags).map(String::as_str).collect();
        (!tags.is_empty()).then(|| tags.join("\n"))
    }
}

/// Removes.
pub async fn run(args: PruneArgs, context: &Context) -> Result<(), CommandError> {
    if args.repository.selector().is_some() {
        return Err(CommandError::usage(format!("{} is one image of a repository", args.repository))
            .hint(format!("name the repository, {}", args.repository.location())));
    }
    let policy = Policy {
        last: args.keep_last,
        within: args.keep_within.map(|Age(age)| age),
        hourly: args.keep_hourly,
        daily: args.keep_daily,
        weekly: args.keep_weekly,
        tags: args.keep_tag,
    };
    if policy.is_empty() {
        return Err(registry::PruneError::NoRule.into());
    }
    let store = store::open(&args.repository, &args.transport, context).await?;
    let trust = keys::of_line(None, args.key.iter().map(PathBuf::as_path), context)?;
    let options = PruneOptions {
        application: args.application,
        grace: args.grace.0,
        dry_run: args.dry_run,
        jobs: args.transport.jobs(),
        ..PruneOptions::new(trust, SystemTime::now())
    };
    let report = registry::prune(&*store, &policy, &options).await;
    let PruneReport { kept, removed, passed_over, incomplete, store } =
        report.doing(|| format!("{} was not pruned to the end", args.repository))?;
    let answer = Answer {
        repository: args.repository.to_string(),
        dry_run: args.dry_run,
        damaged: passed_over.iter().map(|passed| passed.tag.clone()).collect(),
        incomplete: incomplete.iter().map(|(digest, _)| *digest).collect(),
        kept: kept.into_iter().map(KeptEntry::from).collect(),
        removed: removed.into_iter().map(Entry::from).collect(),
        manifests: store.manifests,
        blobs: store.blobs,
        bytes: store.bytes,
        freed: store.freed,
        unreadable: store.unreadable,
        unreadable_tags: store.unreadable_tags.iter().map(Tag::to_string).collect(),
        stale: store.stale.iter().map(Tag::to_string).collect(),
    };
    for PassedOver { tag, why } in &passed_over {
        context.reporter.warn(&format!("{tag} stays: {}", in_a_line(why)));
    }
    for (digest, missing) in &incomplete {
        context
            .reporter
            .warn(&format!("{digest} is incomplete, and counts for no rule: {missing} is missing or cannot be read"));
    }
    for tag in &answer.unreadable_tags {
        context.reporter.warn(&format!(
            "nothing was removed: the registry does not say what the tag {tag} names, and that may need anything; delete the tag, or \
             prune again when it can be read"
        ));
    }
    for digest in &answer.unreadable {
        context.reporter.warn(&format!(
            "no space was freed: the manifest {digest}, which something that stays needs, cannot be read, and so it is not known what \
             else that needs; copy it here again"
        ));
    }
    for tag in &answer.stale {
        context.reporter.warn(&format!("the registry keeps the tag {tag}, which names nothing any more"));
    }
    context.output.print(args.format, &answer)
}
