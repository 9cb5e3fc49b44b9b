//! `syncpoint unpack`.

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use image_format::{
    Artifact, CheckpointImage, Compression, Descriptor, Digest, DumpKind, GlobalCheckpoint, MemberId, UnpackOptions,
};
use registry::{Bridge, Reference, Store};
use serde::Serialize;
use tokio::runtime::Handle;

use crate::cancel::Cancel;
use crate::context::Context;
use crate::error::{CommandError, While};
use crate::output::{Format, Report};
use crate::progress::Watched;
use crate::state;
use crate::store;
use crate::terminal::blocking;
use crate::transport::Transport;
use crate::values::words;

/// Bytes that are written to the archive at a time.
const PIECE: usize = 1 << 20;

/// Get a dump back out of a checkpoint image, every file as it was
///
/// What comes out is what the engine itself would take: an archive for podman (`podman container restore --import`), CRI-O and
/// containerd, a folder for runc (`runc restore --image-path`) and CRIU (`criu restore --images-dir PATH/checkpoint`). Nothing is verified but the digests: see `syncpoint verify`.
/// Files get mode 0600 and folders 0700, for they hold the memory of the processes; a file or folder that is there is not
/// replaced, and nothing is left half-written.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: {path, form, kind, member, digest}; form is archive or folder.")]
pub struct UnpackArgs {
    /// The checkpoint image, or a global checkpoint together with --member
    #[arg(value_name = "REF")]
    reference: Reference,

    /// Where to: a file, or a folder if the dump is runc's or CRIU's own, the name ends with '/', or an empty folder of that name is there
    #[arg(long, value_name = "PATH")]
    to: PathBuf,

    /// Which member of a global checkpoint
    #[arg(long, value_name = "ID")]
    member: Option<MemberId>,

    /// How the archive is compressed; by the name if not given: .tar not at all, .gz and .tgz with gzip, else zstd
    #[arg(long, value_name = "HOW", value_parser = words(Compression::ALL, Compression::as_str))]
    compression: Option<Compression>,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    transport: Transport,
}

/// What was unpacked.
#[derive(Debug, Serialize)]
struct Unpacked {
    path: PathBuf,
    form: &'static str,
    kind: DumpKind,
    member: Option<MemberId>,
    digest: Digest,
}

impl Report for Unpacked {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "{} dump, {}  {}", self.kind, self.form, self.path.display())
    }

    fn brief(&self) -> Option<String> {
        Some(self.path.display().to_string())
    }
}

/// Unpacks.
pub async fn run(args: UnpackArgs, context: &Context) -> Result<(), CommandError> {
    let (store, digest, image, kind) = find(&args.reference, args.member.as_ref(), &args.transport, context).await?;
    let slash = args.to.as_os_str().as_encoded_bytes().ends_with(b"/");
    let form =
        if matches!(kind, DumpKind::Runc | DumpKind::Criu) || slash || args.to.is_dir() { "folder" } else { "archive" };
    let unpacked = Unpacked { path: args.to.clone(), form, kind, member: image.member(), digest };
    let blobs = Watched::new(Bridge::new(Handle::current(), Arc::clone(&store)), context);
    let (to, compression) = (args.to.clone(), args.compression.unwrap_or_else(|| by_name(&args.to)));
    let cancel = context.cancel.clone();
    let done = blocking(move || match form {
        "folder" => Ok(image_format::unpack_folder(&image, &blobs, &UnpackOptions::default(), &to)?),
        _ => archive(&image, &blobs, compression, &to, &cancel),
    });
    done.await.doing(|| format!("{} cannot be unpacked to {}", args.reference, args.to.display()))?;
    context.output.print(args.format, &unpacked)
}

/// The image of one member, and whose dump it holds.
pub async fn find(
    reference: &Reference,
    member: Option<&MemberId>,
    transport: &Transport,
    context: &Context,
) -> Result<(Arc<dyn Store>, Digest, CheckpointImage, DumpKind), CommandError> {
    let (store, root) = store::find(reference, transport, context).await?;
    let manifest = match store::artifact(&*store, &root).await? {
        Artifact::Member(_) => root,
        Artifact::Global(global) => pick(&global, member)?,
    };
    let image = store::member(&*store, &manifest).await?;
    if let (Some(asked), Some(other)) = (member, image.member().filter(|id| Some(id) != member)) {
        return Err(CommandError::usage(format!("{} is the member {other}, not {asked}", reference)));
    }
    let kind = match image.kind() {
        Some(kind) => kind,
        None => state::facts(&store, image.clone(), context).await?.kind,
    };
    Ok((store, manifest.digest, image, kind))
}

/// The manifest of the member that was asked for.
fn pick(global: &GlobalCheckpoint, member: Option<&MemberId>) -> Result<Descriptor, CommandError> {
    let entry = member.and_then(|id| global.member(id));
    entry.map(|entry| entry.manifest.clone()).ok_or_else(|| {
        let members: Vec<_> = global.members().iter().map(|entry| entry.id.as_str()).collect();
        let problem =
            member.map_or("one member at a time is unpacked".to_owned(), |id| format!("there is no member {id}"));
        CommandError::usage(problem).hint(format!("name one with --member: {}", members.join(", ")))
    })
}

/// How an archive of that name is compressed.
fn by_name(file: &Path) -> Compression {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("tar") => Compression::None,
        Some("gz" | "tgz") => Compression::Gzip,
        _ => Compression::Zstd,
    }
}

/// Writes the archive beside its place, and puts it there when it is whole.
fn archive(
    image: &CheckpointImage,
    blobs: &Watched,
    compression: Compression,
    to: &Path,
    cancel: &Cancel,
) -> Result<(), CommandError> {
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Readable by nobody else from the first byte on.
    let file = tempfile::Builder::new().prefix(".syncpoint-").tempfile_in(folder)?;
    let out = BufWriter::with_capacity(PIECE, cancel.guard(file));
    let mut out = image_format::unpack_archive(image, blobs, compression, &UnpackOptions::default(), out)?;
    out.flush()?;
    let file = out.into_inner().map_err(|error| error.into_error())?.into_inner();
    file.as_file().sync_all()?;
    file.persist_noclobber(to).map(drop).map_err(|error| match error.error.kind() {
        io::ErrorKind::AlreadyExists => CommandError::usage("there is something of that name already"),
        _ => error.error.into(),
    })
}
