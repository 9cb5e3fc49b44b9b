//! `syncpoint serve`.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use image_format::{MemberId, UnpackOptions};
use launcher::Server;
use registry::{Bridge, Reference};
use serde::Serialize;
use tokio::runtime::Handle;

use super::unpack;
use crate::context::Context;
use crate::error::{CommandError, While};
use crate::output::{Format, Report, size};
use crate::progress::Watched;
use crate::terminal::blocking;
use crate::transport::Transport;

/// Hand the images of a checkpoint to `criu restore --stream`
///
/// For CRIU without an engine: fetches the image, waits for `criu restore --images-dir DIR --stream`, and gives it each file that it asks for, as
/// criu-image-streamer does. DIR gets a socket and nothing else. Nothing is verified but the digests: see `syncpoint verify`.
/// One restore is served.
#[derive(Debug, Args)]
#[command(after_long_help = "With --json: {files, bytes}, those that CRIU took.")]
pub struct ServeArgs {
    /// The checkpoint image, or a global checkpoint together with --member
    #[arg(value_name = "REF")]
    reference: Reference,

    /// CRIU's folder of images, its --images-dir
    #[arg(long, value_name = "DIR")]
    images: PathBuf,

    /// Which member of a global checkpoint
    #[arg(long, value_name = "ID")]
    member: Option<MemberId>,

    /// Where the dump waits, in a folder for this user alone, until CRIU has it
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    spool: PathBuf,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    transport: Transport,
}

/// What CRIU took.
#[derive(Debug, Serialize)]
struct Served {
    files: u64,
    bytes: u64,
}

impl Report for Served {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "CRIU took {} images, {}", self.files, size(self.bytes))
    }
}

/// Serves.
pub async fn run(args: ServeArgs, context: &Context) -> Result<(), CommandError> {
    let (store, _, image, _) = unpack::find(&args.reference, args.member.as_ref(), &args.transport, context).await?;
    let server = Server::listen(&args.images).doing(|| "CRIU cannot be served".to_owned())?;
    // Mode 0700, and removed at the end.
    let spool = tempfile::Builder::new().prefix(".syncpoint-").tempdir_in(&args.spool);
    let spool = spool.doing(|| format!("{} cannot be used", args.spool.display()))?;
    let blobs = Watched::new(Bridge::new(Handle::current(), Arc::clone(&store)), context);
    let dump = spool.path().join("dump");
    let unpacked = {
        let dump = dump.clone();
        blocking(move || Ok(image_format::unpack_folder(&image, &blobs, &UnpackOptions::default(), &dump)?)).await
    };
    unpacked.doing(|| format!("{} cannot be fetched", args.reference))?;
    context.reporter.note(&format!("waiting for CRIU in {}", args.images.display()));
    let stop = context.cancel.token();
    let served = blocking(move || Ok(server.serve(&dump.join("checkpoint"), &stop)?)).await;
    let served = served.doing(|| "CRIU did not get all images".to_owned())?;
    context.output.print(args.format, &Served { files: served.files, bytes: served.bytes })
}
