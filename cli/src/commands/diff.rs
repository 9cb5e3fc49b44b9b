//! `syncpoint diff`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use clap::Args;
use image_format::{
    Artifact, Base, BaseError, CheckpointImage, Descriptor, Digest, FileState, Limits, MemberId, PackOptions,
    PageChanges, read_files,
};
use registry::{Bridge, Reference, Store};
use serde::Serialize;
use tokio::runtime::Handle;

use crate::context::Context;
use crate::error::{CommandError, While};
use crate::output::{Format, Report};
use crate::progress::Watched;
use crate::state;
use crate::store;
use crate::terminal::blocking;
use crate::transport::Transport;

/// Say what changed between two checkpoints: members, processes, memory, files
///
/// Memory is compared page by page, by the tables of images in generations: no page is fetched. Files are those that a dump brings along: what
/// the container wrote over its image, `/dev/shm`, volumes. With -v every process and file is named.
#[derive(Debug, Args)]
#[command(
    after_long_help = "With --json: {older, newer, added: [id], removed: [id], members: [{id, same, pages: {same, changed, added, \
removed}, processes: {added: [text], removed: [text]}, files: {added: [path], changed: [path], removed: [path]}}]}. pages is null where an \
image has no table of pages. A checkpoint image is one member without an id."
)]
pub struct DiffArgs {
    /// The older one: a global checkpoint, or a checkpoint image
    #[arg(value_name = "A")]
    older: Reference,

    /// The newer one
    #[arg(value_name = "B")]
    newer: Reference,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    transport: Transport,
}

/// What changed.
#[derive(Debug, Serialize)]
struct Answer {
    older: String,
    newer: String,
    added: Vec<MemberId>,
    removed: Vec<MemberId>,
    members: Vec<Member>,
}

#[derive(Debug, Serialize)]
struct Member {
    id: Option<MemberId>,
    same: bool,
    pages: Option<Pages>,
    processes: Changes,
    files: Changes,
}

#[derive(Debug, Serialize)]
struct Pages {
    same: u64,
    changed: u64,
    added: u64,
    removed: u64,
}

impl From<PageChanges> for Pages {
    fn from(PageChanges { same, changed, added, removed }: PageChanges) -> Self {
        Self { same, changed, added, removed }
    }
}

#[derive(Debug, Default, Serialize)]
struct Changes {
    added: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changed: Vec<String>,
    removed: Vec<String>,
}

impl Changes {
    fn line(&self, out: &mut dyn fmt::Write, what: &str) -> fmt::Result {
        let Self { added, changed, removed } = self;
        let changed = if changed.is_empty() { String::new() } else { format!(", {} changed", changed.len()) };
        writeln!(out, "    {what:<10} {} added{changed}, {} removed", added.len(), removed.len())
    }

    fn names(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let marked = [("+", &self.added), ("~", &self.changed), ("-", &self.removed)];
        let mut names = marked.iter().flat_map(|(mark, names)| names.iter().map(move |name| (mark, name)));
        names.try_for_each(|(mark, name)| writeln!(out, "      {mark} {name}"))
    }
}

impl Answer {
    fn draw(&self, out: &mut dyn fmt::Write, names: bool) -> fmt::Result {
        self.added.iter().try_for_each(|id| writeln!(out, "+ {id}"))?;
        self.removed.iter().try_for_each(|id| writeln!(out, "- {id}"))?;
        for member in &self.members {
            let id = member.id.as_ref().map_or("the image", MemberId::as_str);
            if member.same {
                writeln!(out, "= {id}")?;
                continue;
            }
            writeln!(out, "~ {id}")?;
            match &member.pages {
                Some(Pages { same, changed, added, removed }) => writeln!(
                    out,
                    "    memory     {changed} of {} pages changed, {added} added, {removed} removed",
                    same + changed + removed
                )?,
                None => writeln!(out, "    memory     not compared: no table of pages")?,
            }
            for (what, changes) in [("processes", &member.processes), ("files", &member.files)] {
                changes.line(out, what)?;
                if names {
                    changes.names(out)?;
                }
            }
        }
        Ok(())
    }
}

impl Report for Answer {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.draw(out, false)
    }

    fn detailed(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.draw(out, true)
    }
}

/// The members of one side, by id.
type Members = BTreeMap<Option<MemberId>, Descriptor>;

/// Compares.
pub async fn run(args: DiffArgs, context: &Context) -> Result<(), CommandError> {
    let (older_store, older) = side(&args.older, &args.transport, context).await?;
    let (newer_store, newer) = side(&args.newer, &args.transport, context).await?;
    if older.contains_key(&None) != newer.contains_key(&None) {
        return Err(CommandError::usage("a global checkpoint and a checkpoint image are not compared"));
    }
    let only = |here: &Members, there: &Members| {
        here.keys().filter(|id| !there.contains_key(*id)).flatten().cloned().collect::<Vec<_>>()
    };
    let (added, removed) = (only(&newer, &older), only(&older, &newer));
    let mut members = Vec::new();
    for (id, before) in &older {
        let Some(after) = newer.get(id) else { continue };
        let name = || format!("member {}", id.as_ref().map_or("", MemberId::as_str));
        if before.digest == after.digest {
            let (processes, files) = (Changes::default(), Changes::default());
            members.push(Member { id: id.clone(), same: true, pages: None, processes, files });
            continue;
        }
        let before = look(&older_store, before, context).await.doing(name)?;
        let after = look(&newer_store, after, context).await.doing(name)?;
        members.push(compare(id.clone(), before, after).await?);
    }
    let answer = Answer { older: args.older.to_string(), newer: args.newer.to_string(), added, removed, members };
    context.output.print(args.format, &answer)
}

async fn side(
    reference: &Reference,
    transport: &Transport,
    context: &Context,
) -> Result<(Arc<dyn Store>, Members), CommandError> {
    let (store, root) = store::find(reference, transport, context).await?;
    let members = match store::artifact(&*store, &root).await? {
        Artifact::Member(_) => Members::from([(None, root)]),
        Artifact::Global(global) => {
            global.members().iter().map(|member| (Some(member.id.clone()), member.manifest.clone())).collect()
        }
    };
    Ok((store, members))
}

/// What one image says of itself.
struct Seen {
    processes: BTreeSet<String>,
    files: BTreeMap<String, FileState>,
    tables: Option<Base>,
}

async fn look(store: &Arc<dyn Store>, manifest: &Descriptor, context: &Context) -> Result<Seen, CommandError> {
    let image = store::member(&**store, manifest).await?;
    let facts = state::facts(store, image.clone(), context).await?;
    let process =
        |process: &image_format::Process| format!("{} {}", process.pid, process.command.as_deref().unwrap_or_default());
    let processes = facts.processes.iter().map(process).collect();
    let (files, tables) = read(store, image, context).await?;
    Ok(Seen { processes, files, tables })
}

/// Reads its small layers.
async fn read(
    store: &Arc<dyn Store>,
    image: CheckpointImage,
    context: &Context,
) -> Result<(BTreeMap<String, FileState>, Option<Base>), CommandError> {
    let blobs = Watched::new(Bridge::new(Handle::current(), Arc::clone(store)), context);
    blocking(move || {
        let limits = Limits::default();
        let tables = match Base::load(&image, &blobs, &limits, &PackOptions::default().scratch) {
            Ok(tables) => Some(tables),
            Err(BaseError::NoGenerations { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok((read_files(&image, &blobs, &limits)?, tables))
    })
    .await
}

async fn compare(id: Option<MemberId>, before: Seen, after: Seen) -> Result<Member, CommandError> {
    let processes = Changes {
        added: after.processes.difference(&before.processes).cloned().collect(),
        changed: Vec::new(),
        removed: before.processes.difference(&after.processes).cloned().collect(),
    };
    let files = files(&before.files, &after.files);
    let pages = match (before.tables, after.tables) {
        (Some(before), Some(after)) => Some(blocking(move || Ok(before.compare(&after)?)).await?.into()),
        _ => None,
    };
    Ok(Member { id, same: false, pages, processes, files })
}

/// A file that the newer one deleted, or no longer brings along, is removed.
fn files(before: &BTreeMap<String, FileState>, after: &BTreeMap<String, FileState>) -> Changes {
    let mut changes = Changes::default();
    let there = |state: Option<&FileState>| match state {
        Some(FileState::There(digest)) => Some(*digest),
        Some(FileState::Deleted) | None => None,
    };
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        let (old, new): (Option<Digest>, Option<Digest>) = (there(before.get(name)), there(after.get(name)));
        let deleted = after.get(name) == Some(&FileState::Deleted) && before.get(name) != Some(&FileState::Deleted);
        match (old, new) {
            (Some(old), Some(new)) if old != new => changes.changed.push(name.clone()),
            (None, Some(_)) => changes.added.push(name.clone()),
            (Some(_), None) => changes.removed.push(name.clone()),
            (None, None) if deleted => changes.removed.push(name.clone()),
            _ => {}
        }
    }
    changes
}
