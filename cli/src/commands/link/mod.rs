//! `syncpoint link`.

mod line;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use image_format::{ApplicationId, Chain, Digest, Epoch, GlobalCheckpoint, GlobalError, MemberEntry, MemberId};
use registry::{CopyOptions, Reference, Store, Tag};
use serde::Serialize;

use crate::commands::sign::{Identity, sign};
use crate::context::Context;
use crate::error::{About, CommandError, While};
use crate::exit::Exit;
use crate::keys;
use crate::output::{Format, Report, count};
use crate::state;
use crate::store;
use crate::transport::Transport;
use crate::values::{KeyValue, MemberList};
use line::{Line, Predecessor};

/// Join checkpoint images to one global checkpoint
///
/// Members that are elsewhere are copied to where the global checkpoint goes. What each member depends on is read from its image,
/// unless --depends-on says otherwise. The order is blobs, members' manifests, the index, signatures, and the tag as the very
/// last: with --sign-by, the tag never names anything unsigned. Without it, the tag names an unsigned global checkpoint, which
/// `restore` refuses until `syncpoint sign` was run.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: {reference, digest, tag, application, epoch, predecessor, created, signed, \
members: [{id, digest, depends_on}]}; predecessor is null for the first of a line.")]
pub struct LinkArgs {
    /// Where the global checkpoint goes, with its tag: oci:DIR:TAG or HOST/REPO:TAG
    #[arg(long, value_name = "REF")]
    to: Reference,

    /// The application
    #[arg(long, value_name = "ID")]
    application: ApplicationId,

    /// The number of this checkpoint; one more than its predecessor's if not given, and 1 for the first
    #[arg(long, value_name = "N")]
    epoch: Option<Epoch>,

    /// The global checkpoint before this one: `auto` (the one of the application with the highest epoch in the same
    /// repository), `none`, or a reference
    #[arg(long, value_name = "REF", default_value = "auto")]
    predecessor: Predecessor,

    /// What a member depends on, instead of what its image says; may be repeated
    #[arg(long, value_name = "ID=ID,ID")]
    depends_on: Vec<KeyValue<MemberId, MemberList>>,

    /// A further annotation of the global checkpoint; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<KeyValue<String, String>>,

    /// The time of the global checkpoint, RFC 3339; that of its newest member if not given
    #[arg(long, value_name = "TIME")]
    created: Option<String>,

    /// Sign the global checkpoint and its members with this private key before the tag is set
    #[arg(long, value_name = "FILE")]
    sign_by: Option<PathBuf>,

    /// A public key whose signatures count too, such as one that signed earlier checkpoints; may be repeated
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,

    #[command(flatten)]
    identity: Identity,

    /// The members: an id, and the checkpoint image
    #[arg(value_name = "MEMBER=REF", required = true)]
    members: Vec<KeyValue<MemberId, Reference>>,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    transport: Transport,
}

/// What was linked.
#[derive(Debug, Serialize)]
struct Linked {
    reference: String,
    digest: Digest,
    tag: String,
    application: ApplicationId,
    epoch: Epoch,
    predecessor: Option<Digest>,
    created: String,
    signed: bool,
    members: Vec<LinkedMember>,
}

#[derive(Debug, Serialize)]
struct LinkedMember {
    id: MemberId,
    digest: Digest,
    depends_on: Vec<MemberId>,
}

impl Report for Linked {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let signed = if self.signed { "signed" } else { "not signed" };
        let members = count(self.members.len() as u64, "member");
        writeln!(out, "{} epoch {}: {members}, {signed}", self.application, self.epoch)?;
        writeln!(out, "{}", self.reference)
    }

    fn brief(&self) -> Option<String> {
        Some(self.reference.clone())
    }
}

/// A member on its way into the global checkpoint.
struct Part {
    store: Arc<dyn Store>,
    entry: MemberEntry,
    created: Option<String>,
}

/// Links.
pub async fn run(args: LinkArgs, context: &Context) -> Result<(), CommandError> {
    let tag = store::tag_to_write(&args.to)?;
    let depends_on = dependencies(&args)?;
    // Asked for before anything is sent.
    let key = match &args.sign_by {
        Some(file) => Some(keys::private(file, context).await?),
        None => None,
    };
    let target = store::create(&args.to, &args.transport, context).await?;
    let mut parts = Vec::new();
    for KeyValue(id, reference) in &args.members {
        let part = part(id, reference, depends_on.get(id), &args.transport, context).await;
        parts.push(part.doing(|| format!("{reference} cannot be the member {id}"))?);
    }
    let trust = keys::of_line(key.as_ref(), args.key.iter().map(PathBuf::as_path), context)?;
    let line = line::find(&args, tag, &trust, &*target, context).await?;
    let global = global(&args, &line, &parts)?;
    let document = global.to_document().map_err(refused)?;
    let root = document.descriptor();
    line.check(&root, &args)?;
    for part in &parts {
        let options =
            CopyOptions { jobs: args.transport.jobs(), progress: &*context.reporter, ..CopyOptions::default() };
        // Also where the member is there: what is missing of it is found now, and not by whoever restores it.
        let copied = registry::copy(&*part.store, &part.entry.manifest, &*target, &options).await;
        copied.doing(|| format!("the member {} cannot be copied", part.entry.id))?;
    }
    target.put_manifest(&document, None).await?;
    if let Some(key) = &key {
        sign(&*target, &root, key, &args.identity, Some(tag)).await?;
    }
    target.put_manifest(&document, Some(tag)).await?;
    if key.is_none() {
        context.reporter.note("it is not signed: `restore` refuses it until `syncpoint sign` was run");
    }
    context.output.print(args.format, &report(&args, tag, root.digest, &global))
}

/// The dependencies given on the command line, after checking that members are named once, and only members.
fn dependencies(args: &LinkArgs) -> Result<BTreeMap<&MemberId, &MemberList>, CommandError> {
    let mut members = BTreeSet::new();
    if let Some(KeyValue(twice, _)) = args.members.iter().find(|KeyValue(id, _)| !members.insert(id)) {
        return Err(CommandError::usage(format!("the member {twice} is given twice")));
    }
    let mut given = BTreeMap::new();
    for KeyValue(id, list) in &args.depends_on {
        if !members.contains(id) {
            return Err(CommandError::usage(format!("--depends-on names {id}, which is no member")));
        }
        if given.insert(id, list).is_some() {
            return Err(CommandError::usage(format!("--depends-on names {id} twice")));
        }
    }
    Ok(given)
}

/// Reads what a member's image says.
async fn part(
    id: &MemberId,
    reference: &Reference,
    depends_on: Option<&&MemberList>,
    transport: &Transport,
    context: &Context,
) -> Result<Part, CommandError> {
    let (store, root) = store::find(reference, transport, context).await?;
    let image = store::member(&*store, &root).await?;
    if let Some(other) = image.member().filter(|other| other != id) {
        return Err(CommandError::usage(format!("the image says that it is the member {other}")));
    }
    let depends_on = depends_on.map_or_else(|| image.depends_on().to_vec(), |list| list.0.clone());
    let annotations = image.chain().map(Chain::annotations).unwrap_or_default();
    let entry = MemberEntry { id: id.clone(), depends_on, manifest: root, annotations };
    let created = state::created(&*store, &image).await?;
    Ok(Part { store, entry, created })
}

/// Puts the members together.
fn global(args: &LinkArgs, line: &Line, parts: &[Part]) -> Result<GlobalCheckpoint, CommandError> {
    let newest = parts.iter().filter_map(|part| part.created.clone()).max();
    let created =
        args.created.clone().or(newest).ok_or_else(|| {
            CommandError::usage("no member says when it was made").hint("give the time with --created")
        })?;
    let annotations = args.annotation.iter().map(|KeyValue(key, value)| (key.clone(), value.clone())).collect();
    let entries = parts.iter().map(|part| part.entry.clone()).collect();
    let (application, predecessor) = (args.application.clone(), line.predecessor);
    GlobalCheckpoint::new(application, line.epoch, predecessor, created, entries, annotations).map_err(refused)
}

/// What is wrong with a global checkpoint that was to be made is wrong with the command line.
fn refused(error: GlobalError) -> CommandError {
    CommandError::new(Exit::Usage, About::new("the global checkpoint".to_owned(), error))
}

fn report(args: &LinkArgs, tag: &Tag, digest: Digest, global: &GlobalCheckpoint) -> Linked {
    let member = |entry: &MemberEntry| LinkedMember {
        id: entry.id.clone(),
        digest: entry.manifest.digest,
        depends_on: entry.depends_on.clone(),
    };
    Linked {
        reference: store::pinned(&args.to, digest).to_string(),
        digest,
        tag: tag.to_string(),
        application: global.application().clone(),
        epoch: global.epoch(),
        predecessor: global.predecessor(),
        created: global.created().to_owned(),
        signed: args.sign_by.is_some(),
        members: global.members().iter().map(member).collect(),
    }
}
