//! `syncpoint pack`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use image_format::{Artifact, Base, Chain, Compression, DumpSource, Layout, MemberId, PackOptions, PackedImage};
use registry::{Bridge, Reference, Store, Tag, find_base};
use serde::Serialize;
use tokio::runtime::Handle;

use crate::chain::Chains;
use crate::context::Context;
use crate::error::{CommandError, While};
use crate::exit::Exit;
use crate::keys;
use crate::output::{Format, Report, size};
use crate::progress::Watched;
use crate::store;
use crate::terminal::blocking;
use crate::transport::Transport;
use crate::values::{KeyValue, MemberList, words};

/// Make a checkpoint image of one container's dump
///
/// DUMP is what `podman container checkpoint --export`, CRI-O, the kubelet or containerd wrote (compressed or not), or the
/// folder of `runc checkpoint --image-path` or of `criu dump`; it is recognised by its content. The image goes straight into the store,
/// and `podman run` restores it by itself where the dump is podman's. The same dump gives the same digests on any machine.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: {reference, digest, tag, kind, member, depends_on, generations, base, \
layers: [{content, link, digest, size, diff_id, diff_size, reused}]}; member is null where none was given, generations and link are where \
pages are not in generations, and base is where no other image's layers are used.")]
pub struct PackArgs {
    /// The dump: an archive or a folder
    #[arg(value_name = "DUMP")]
    dump: PathBuf,

    /// The config.json of the bundle, for a dump of runc
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    packing: Packing,

    #[command(flatten)]
    transport: Transport,
}

/// Where an image goes, and what it is like.
#[derive(Debug, Args)]
pub struct Packing {
    /// Where the image goes, with its tag: oci:DIR:TAG or HOST/REPO:TAG
    #[arg(long, value_name = "REF")]
    to: Reference,

    /// The member of the application that this container is
    #[arg(long, value_name = "ID")]
    member: Option<MemberId>,

    /// Members that must exist before this one is restored
    #[arg(long, value_name = "ID,ID", default_value = "", hide_default_value = true, requires = "member")]
    depends_on: MemberList,

    /// How layers are compressed
    #[arg(long, value_name = "HOW", default_value = "zstd", value_parser = words(Compression::ALL, Compression::as_str))]
    compression: Compression,

    /// Which layers: by what changes together, or one with everything
    #[arg(long, value_name = "HOW", default_value = "generations")]
    layout: LayoutWord,

    /// Store only pages that are not in this earlier image of the same member, which must be in the same place as --to
    #[arg(long, value_name = "REF")]
    base: Option<Reference>,

    /// A public key by which the base must be signed, itself or in its checkpoint; may be repeated
    #[arg(long, value_name = "FILE", requires = "base")]
    key: Vec<PathBuf>,

    /// The time of the image, RFC 3339; the time of the dump if not given
    #[arg(long, value_name = "TIME")]
    created: Option<String>,

    /// A further annotation of the image; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<KeyValue<String, String>>,

    #[command(flatten)]
    chains: Chains,
}

/// Which layers, on the command line.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum LayoutWord {
    /// By what changes together: state, files, pages, and pages so that a later image has to store only what changed
    Generations,
    /// By what changes together, and files of pages as the engine laid them out
    Split,
    /// One layer with everything, as the engine lays it out
    Plain,
}

impl From<LayoutWord> for Layout {
    fn from(word: LayoutWord) -> Self {
        match word {
            LayoutWord::Generations => Self::Generations,
            LayoutWord::Split => Self::Split,
            LayoutWord::Plain => Self::Plain,
        }
    }
}

/// What was packed.
#[derive(Debug, Serialize)]
pub struct Packed {
    reference: String,
    digest: String,
    tag: String,
    kind: String,
    member: Option<MemberId>,
    depends_on: Vec<MemberId>,
    generations: Option<u32>,
    base: Option<String>,
    layers: Vec<PackedLayer>,
}

#[derive(Debug, Serialize)]
struct PackedLayer {
    content: String,
    link: Option<String>,
    digest: String,
    size: u64,
    diff_id: String,
    diff_size: u64,
    reused: bool,
}

impl Report for Packed {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "{} dump", self.kind)?;
        for layer in &self.layers {
            let PackedLayer { content, link, size: stored, diff_size, reused, .. } = layer;
            let content = link.as_ref().map_or(content.clone(), |link| format!("{content} {link}"));
            let reused = if *reused { "   there already" } else { "" };
            writeln!(out, "{content:<10}{:>11}   plain {:>11}{reused}", size(*stored), size(*diff_size))?;
        }
        writeln!(out, "{}", self.reference)
    }

    fn brief(&self) -> Option<String> {
        Some(self.reference.clone())
    }
}

/// Packs.
pub async fn run(args: PackArgs, context: &Context) -> Result<(), CommandError> {
    let packer = args.packing.open(&args.transport, context).await?;
    let (dump, bundle) = (args.dump.clone(), args.bundle);
    let packed = packer.pack(move || Ok(DumpSource::open(&dump, bundle.as_deref())?), context).await;
    let packed = packed.doing(|| format!("{} cannot be packed", args.dump.display()))?;
    context.output.print(args.format, &packed)
}

impl Packing {
    /// The member that it is, if that was said.
    pub fn member(&self) -> Option<&MemberId> {
        self.member.as_ref()
    }

    /// Opens the store and fetches what is needed of the base.
    pub async fn open(self, transport: &Transport, context: &Context) -> Result<Packer, CommandError> {
        let tag = store::tag_to_write(&self.to)?.clone();
        let store = store::create(&self.to, transport, context).await?;
        let base = match &self.base {
            Some(reference) => base(reference, &self, &store, context).await?,
            None => None,
        };
        let options = PackOptions {
            member: self.member,
            depends_on: self.depends_on.0,
            compression: self.compression,
            layout: self.layout.into(),
            base: base.map(Arc::new),
            chain: (&self.chains).into(),
            created: self.created,
            annotations: BTreeMap::from_iter(self.annotation.into_iter().map(|KeyValue(key, value)| (key, value))),
            ..PackOptions::default()
        };
        Ok(Packer { to: self.to, tag, store, options })
    }
}

/// A store that is open, and what is known of the image before there is a dump.
#[derive(Debug)]
pub struct Packer {
    to: Reference,
    tag: Tag,
    store: Arc<dyn Store>,
    options: PackOptions,
}

impl Packer {
    /// Packs a dump and tags its image.
    pub async fn pack(
        &self,
        dump: impl FnOnce() -> Result<DumpSource, CommandError> + Send + 'static,
        context: &Context,
    ) -> Result<Packed, CommandError> {
        let blobs = Watched::new(Bridge::new(Handle::current(), Arc::clone(&self.store)), context);
        let options = self.options.clone();
        let image = blocking(move || Ok(image_format::pack(dump()?, &options, &blobs)?)).await?;
        image.notes.iter().for_each(|note| context.reporter.note(note));
        self.store.put_manifest(&image.manifest, Some(&self.tag)).await?;
        Ok(report(&self.to, self.tag.to_string(), &self.options, &image))
    }
}

/// Fetches what is needed of the base. One that cannot be used makes the image larger and not worse, and is told.
async fn base(
    reference: &Reference,
    args: &Packing,
    store: &Arc<dyn Store>,
    context: &Context,
) -> Result<Option<Base>, CommandError> {
    if reference.location() != args.to.location() {
        let error = CommandError::usage(format!("the base {reference} is not where {} is", args.to));
        return Err(
            error.hint("layers are used again within one repository or layout: `syncpoint copy` the base there first")
        );
    }
    let trust = keys::of_line(None, args.key.iter().map(PathBuf::as_path), context)?;
    let find = async {
        let root = store::resolve(&**store, reference).await?;
        keys::check(&trust, &**store, &root, &format!("the base {reference}")).await?;
        let manifest = match (store::artifact(&**store, &root).await?, &args.member) {
            (Artifact::Member(_), _) => root.digest,
            (Artifact::Global(global), Some(member)) => match global.member(member) {
                Some(entry) => entry.manifest.digest,
                None => return Err(CommandError::usage(format!("there is no member {member} in {reference}"))),
            },
            (Artifact::Global(_), None) => {
                return Err(CommandError::usage(format!(
                    "{reference} is a whole application, and --member is not given"
                )));
            }
        };
        Ok(find_base(store, &manifest, PackOptions::default().scratch).await?)
    };
    match find.await {
        Ok(base) => Ok(Some(base)),
        Err(error) if error.exit() == Exit::Usage => Err(error),
        Err(error) => {
            context.reporter.note(&format!("a new chain begins: {}", error.lines().join("; ")));
            Ok(None)
        }
    }
}

fn report(to: &Reference, tag: String, options: &PackOptions, image: &PackedImage) -> Packed {
    let generations = image.chain.as_ref().map(|chain| chain.generations);
    let layer = |layer: &image_format::LayerInfo| PackedLayer {
        content: layer.content.to_string(),
        link: layer.link.map(|link| link.to_string()),
        reused: layer.link.is_some_and(|link| Some(link.generation) != generations),
        digest: layer.descriptor.digest.to_string(),
        size: layer.descriptor.size,
        diff_id: layer.diff_id.to_string(),
        diff_size: layer.diff_size,
    };
    Packed {
        reference: store::pinned(to, image.manifest.digest()).to_string(),
        digest: image.manifest.digest().to_string(),
        tag,
        kind: image.facts.kind.to_string(),
        member: options.member.clone(),
        depends_on: options.depends_on.clone(),
        generations,
        base: image.chain.as_ref().and_then(|chain: &Chain| chain.base).map(|base| base.to_string()),
        layers: image.layers.iter().map(layer).collect(),
    }
}
