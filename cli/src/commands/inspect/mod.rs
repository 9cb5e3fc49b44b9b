//! `syncpoint inspect`.

mod draw;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use image_format::{
    ApplicationId, Artifact, BlobSink, BlobStore, CheckpointImage, Compression, Descriptor, Digest, DumpSource, Epoch,
    Facts, GlobalCheckpoint, LayerContent, Layout, MemberId, PackOptions, Timeline, annotation,
};
use registry::sign::{Depth, Finding, VerifyReport};
use registry::{Location, Reference, Store};
use serde::Serialize;

use crate::context::Context;
use crate::error::{CommandError, While};
use crate::exit::Exit;
use crate::keys;
use crate::output::Format;
use crate::state;
use crate::store;
use crate::terminal::blocking;
use crate::timeline;
use crate::transport::Transport;

/// Show what is in a global checkpoint, a checkpoint image or a dump
///
/// Members with their dependencies and in which order they start, layers and sizes, signatures, and what each dump says about
/// itself: container, networks, connections, processes. Of the members of a global checkpoint only the most important is
/// shown; everything with -v. Images that podman made are understood too. Only the small
/// layers are read; what is missing or damaged in the store is said, and what is damaged makes the exit code 6.
#[derive(Debug, Args)]
#[command(
    after_long_help = "With --json: {what, reference, digest, global, members, signatures, problems}. what is global-checkpoint, \
checkpoint-image or dump; global is {application, epoch, created, predecessor, start_order, annotations, timeline} or null, its timeline being what \
docs/timeline.schema.json says or null; members is \
[{id, depends_on, digest, layers, facts}], layers [{content, link, compression, digest, size, plain_size}], facts what the dump says about \
itself (null if the layer that says it is missing); signatures is [{manifest, form, good}], good being null without --key."
)]
pub struct InspectArgs {
    /// A reference (oci:DIR[:TAG|@DIGEST] or HOST/REPO[:TAG|@DIGEST]), or the path of a dump, which begins with '/' or '.'
    #[arg(value_name = "REF|DUMP")]
    what: OsString,

    /// The config.json of the bundle, for a dump of runc
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,

    /// Say whether signatures are by this public key; may be repeated
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,

    /// Draw how the global checkpoint was made into this file, as SVG; a file of that name is replaced
    #[arg(long, value_name = "FILE.svg")]
    timeline: Option<PathBuf>,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    transport: Transport,
}

/// What was seen.
#[derive(Debug, Serialize)]
struct Inspection {
    what: What,
    reference: String,
    digest: Option<Digest>,
    global: Option<Global>,
    members: Vec<Member>,
    signatures: Vec<Signature>,
    problems: Vec<String>,
    /// Something is not only missing.
    #[serde(skip)]
    damaged: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    GlobalCheckpoint,
    CheckpointImage,
    Dump,
}

#[derive(Debug, Serialize)]
struct Global {
    application: ApplicationId,
    epoch: Epoch,
    created: String,
    predecessor: Option<Digest>,
    start_order: Vec<Vec<MemberId>>,
    annotations: BTreeMap<String, String>,
    timeline: Option<Timeline>,
    /// Why there is none, though there should be.
    #[serde(skip)]
    unreadable: Option<String>,
}

#[derive(Debug, Serialize)]
struct Member {
    id: Option<MemberId>,
    depends_on: Vec<MemberId>,
    digest: Option<Digest>,
    layers: Vec<Layer>,
    facts: Option<Facts>,
}

#[derive(Debug, Serialize)]
struct Layer {
    content: Option<LayerContent>,
    link: Option<String>,
    compression: Option<Compression>,
    digest: Option<Digest>,
    size: Option<u64>,
    plain_size: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Signature {
    manifest: Digest,
    form: String,
    good: Option<bool>,
}

/// Looks.
pub async fn run(args: InspectArgs, context: &Context) -> Result<(), CommandError> {
    let inspection = match path(&args.what) {
        Some(_) if args.timeline.is_some() => {
            return Err(CommandError::usage("a dump has no timeline; a global checkpoint has one"));
        }
        Some(path) => dump(path, args.bundle, context).await?,
        None => {
            let text = args.what.to_string_lossy();
            let here = |error: CommandError| error.hint(format!("a dump in the folder you are in is ./{text}"));
            let reference: Reference = text.parse().map_err(|error| here(CommandError::from(error)))?;
            let inspected = image(&reference, &args.key, &args.transport, context).await;
            match reference.location() {
                Location::ShortName(_) => inspected.map_err(here)?,
                Location::Registry { .. } | Location::Layout(_) => inspected?,
            }
        }
    };
    context.output.print(args.format, &inspection)?;
    if let Some(path) = &args.timeline {
        draw_timeline(path, &inspection)?;
    }
    match inspection.damaged {
        true => Err(CommandError::new(Exit::Damaged, format!("{} is damaged", inspection.reference))),
        false => Ok(()),
    }
}

/// Draws the timeline that a global checkpoint has.
fn draw_timeline(path: &Path, inspection: &Inspection) -> Result<(), CommandError> {
    let reference = &inspection.reference;
    let Some(global) = &inspection.global else {
        return Err(CommandError::usage(format!(
            "{reference} is one member's image; global checkpoints have a timeline"
        )));
    };
    match (&global.timeline, &global.unreadable) {
        (Some(known), _) => timeline::save(path, known, &format!("{}, epoch {}", global.application, global.epoch)),
        (None, Some(reason)) => Err(CommandError::new(Exit::Damaged, format!("{reference}: {reason}"))),
        (None, None) => {
            let error = CommandError::new(Exit::NotFound, format!("{reference} was made without a timeline"));
            Err(error.hint("`syncpoint checkpoint` keeps one with what it makes; `syncpoint link` has none to keep"))
        }
    }
}

/// The path, if it is one and not a reference.
fn path(what: &OsString) -> Option<&Path> {
    let path = Path::new(what);
    (path.is_absolute() || path.starts_with(".") || path.starts_with("..")).then_some(path)
}

/// Looks at a dump by packing it into nowhere.
async fn dump(path: &Path, bundle: Option<PathBuf>, context: &Context) -> Result<Inspection, CommandError> {
    let (dump, nowhere) = (path.to_owned(), Nowhere(context.cancel.clone()));
    let packed = blocking(move || {
        let options = PackOptions { compression: Compression::None, layout: Layout::Split, ..PackOptions::default() };
        Ok(image_format::pack(DumpSource::open(&dump, bundle.as_deref())?, &options, &nowhere)?)
    });
    let packed = packed.await.doing(|| format!("{} cannot be read", path.display()))?;
    let layer = |layer: &image_format::LayerInfo| Layer {
        content: Some(layer.content),
        link: None,
        compression: None,
        digest: None,
        size: None,
        plain_size: Some(layer.diff_size),
    };
    let layers = packed.layers.iter().map(layer).collect();
    Ok(Inspection {
        what: What::Dump,
        reference: path.display().to_string(),
        digest: None,
        global: None,
        members: vec![Member { id: None, depends_on: Vec::new(), digest: None, layers, facts: Some(packed.facts) }],
        signatures: Vec::new(),
        problems: Vec::new(),
        damaged: false,
    })
}

/// Takes everything and keeps nothing.
struct Nowhere(crate::cancel::Cancel);

impl BlobStore for Nowhere {
    fn create(&self) -> io::Result<Box<dyn BlobSink>> {
        Ok(Box::new(self.0.guard(NoSink)))
    }
}

struct NoSink;

impl Write for NoSink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobSink for crate::cancel::Guarded<NoSink> {
    fn commit(self: Box<Self>, _: Digest, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Looks at what a reference names.
async fn image(
    reference: &Reference,
    keys: &[PathBuf],
    transport: &Transport,
    context: &Context,
) -> Result<Inspection, CommandError> {
    let keys = keys::public(keys.iter().map(PathBuf::as_path))?;
    let (store, root) = store::find(reference, transport, context).await?;
    let (global, members) = match store::artifact(&*store, &root).await? {
        Artifact::Member(image) => {
            let entry = (image.member(), image.depends_on().to_vec(), root.clone());
            (None, vec![member(&store, entry, context).await?])
        }
        Artifact::Global(global) => {
            let mut members = Vec::new();
            for wave in global.start_order() {
                for entry in wave {
                    let entry = (Some(entry.id.clone()), entry.depends_on.clone(), entry.manifest.clone());
                    members.push(member(&store, entry, context).await?);
                }
            }
            (Some(whole(&global)), members)
        }
    };
    let unreadable = global.as_ref().and_then(|global| global.unreadable.clone());
    let seen = registry::sign::verify(&*store, &root, &keys, Depth::Manifests, &()).await?;
    Ok(Inspection {
        what: if global.is_some() { What::GlobalCheckpoint } else { What::CheckpointImage },
        reference: reference.to_string(),
        digest: Some(root.digest),
        global,
        members,
        signatures: signatures(&seen, !keys.is_empty()),
        problems: problems(&seen).map(ToString::to_string).chain(unreadable).collect(),
        damaged: problems(&seen).any(|finding| !super::verify::is_missing(finding)),
    })
}

fn whole(global: &GlobalCheckpoint) -> Global {
    let ids = |wave: Vec<&image_format::MemberEntry>| wave.iter().map(|entry| entry.id.clone()).collect();
    let mut annotations = global.annotations().clone();
    annotations.remove(annotation::TIMELINE);
    let (timeline, unreadable) = match global.timeline() {
        Ok(timeline) => (timeline, None),
        Err(error) => (None, Some(format!("the timeline {error}"))),
    };
    Global {
        application: global.application().clone(),
        epoch: global.epoch(),
        created: global.created().to_owned(),
        predecessor: global.predecessor(),
        start_order: global.start_order().into_iter().map(ids).collect(),
        annotations,
        timeline,
        unreadable,
    }
}

/// Looks at one member's image. What is missing of it is among the problems that verifying finds.
async fn member(
    store: &Arc<dyn Store>,
    (id, depends_on, manifest): (Option<MemberId>, Vec<MemberId>, Descriptor),
    context: &Context,
) -> Result<Member, CommandError> {
    let unknown = Member { id, depends_on, digest: Some(manifest.digest), layers: Vec::new(), facts: None };
    if !store.has_manifest(&manifest.digest).await? {
        return Ok(unknown);
    }
    let image = store::member(&**store, &manifest).await?;
    let layer = |layer: &image_format::LayerRef| Layer {
        content: layer.content,
        link: layer.link.map(|link| link.to_string()),
        compression: Some(layer.compression),
        digest: Some(layer.descriptor.digest),
        size: Some(layer.descriptor.size),
        plain_size: layer.plain_size,
    };
    let layers = image.layers().iter().map(layer).collect();
    Ok(Member { layers, facts: known_facts(store, image, context).await?, ..unknown })
}

/// What the dump in an image says about itself; nothing if the layer that says it is missing.
async fn known_facts(
    store: &Arc<dyn Store>,
    image: CheckpointImage,
    context: &Context,
) -> Result<Option<Facts>, CommandError> {
    for layer in image.layers() {
        if layer.may_hold_state() && store.blob_size(&layer.descriptor.digest).await?.is_none() {
            return Ok(None);
        }
    }
    state::facts(store, image, context).await.map(Some)
}

/// Every signature that was found, and whether it is by one of the keys.
fn signatures(seen: &VerifyReport, asked: bool) -> Vec<Signature> {
    let good = seen.signatures.iter().map(|good| (good.manifest, good.form, true));
    let other = seen.findings.iter().filter_map(|finding| match finding {
        Finding::OtherKey { manifest, form } | Finding::OtherDigest { manifest, form, .. } => {
            Some((*manifest, *form, false))
        }
        _ => None,
    });
    let signature = |(manifest, form, good): (Digest, registry::sign::Form, bool)| Signature {
        manifest,
        form: form.to_string(),
        good: asked.then_some(good),
    };
    good.chain(other).map(signature).collect()
}

/// What is missing or damaged. Whether the signatures are good enough is for `verify` to say.
fn problems(seen: &VerifyReport) -> impl Iterator<Item = &Finding> {
    seen.findings.iter().filter(|finding| super::verify::about_content(finding))
}
