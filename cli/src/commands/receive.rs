//! `syncpoint receive`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args};
use coordinator::TlsFiles;
use launcher::{DumpTransport, ReceiveOptions, ReceivedDump, ReceivedSize, Receiver};

use super::pack::{Packed, Packer, Packing};
use crate::context::Context;
use crate::error::{CommandError, While};
use crate::keys;
use crate::output::{Format, size};
use crate::terminal::blocking;
use crate::transport::Transport;

/// Take the dump of a plain `criu dump` over a socket, and make a checkpoint image of it
///
/// For CRIU without an engine, which then writes no page into a file. With --listen, CRIU's memory comes as it goes to CRIU's own page server
/// (`criu dump --images-dir DIR --page-server --address HOST --port PORT`, and `--tls` with its certificates); the other images are in DIR, also
/// if they are brought there from another machine afterwards. With --stream all images come through CRIU's pipes, as
/// criu-image-streamer takes them (`criu dump --images-dir DIR --stream`). One dump is taken; start this before CRIU.
///
/// The image is made when CRIU has written stats-dump, as it does when a dump has succeeded. If it does not, or the store fails, what came
/// is written into DIR instead, as CRIU itself would have written it: nothing is lost. So it is if this is told to stop when CRIU has begun. `syncpoint unpack` gives the images back, and
/// `syncpoint serve` hands them to `criu restore --stream`.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("way").required(true)),
    after_long_help = "With --json: as `syncpoint pack --json`."
)]
pub struct ReceiveArgs {
    /// CRIU's folder of images, its --images-dir
    #[arg(long, value_name = "DIR")]
    images: PathBuf,

    /// Be CRIU's page server at this address; without TLS only at 127.0.0.1, and only for CRIU of this user
    #[arg(long, value_name = "ADDRESS:PORT", group = "way")]
    listen: Option<SocketAddr>,

    /// Take all images through CRIU's pipes
    #[arg(long, group = "way")]
    stream: bool,

    /// The authority of CRIU's certificate, which names the member if --member is given: see `syncpoint key issue`
    #[arg(long, value_name = "FILE", requires_all = ["listen", "tls_certificate", "tls_key"])]
    tls_ca: Option<PathBuf>,

    /// The certificate to show CRIU, made with `syncpoint key issue --coordinator`
    #[arg(long, value_name = "FILE", requires = "tls_ca")]
    tls_certificate: Option<PathBuf>,

    /// Its private key
    #[arg(long, value_name = "FILE", requires = "tls_ca")]
    tls_key: Option<PathBuf>,

    /// CRIU's --work-dir, where that is another one than --images-dir
    #[arg(long, value_name = "DIR")]
    criu_work_dir: Option<PathBuf>,

    /// How long after the memory CRIU's other images may come
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u64,

    /// MiB of the dump that are held in memory; the rest waits in files without names, for this user alone, in --spool
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    memory: u32,

    /// Where that is
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    spool: PathBuf,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    packing: Packing,

    #[command(flatten)]
    transport: Transport,
}

/// Receives.
pub async fn run(args: ReceiveArgs, context: &Context) -> Result<(), CommandError> {
    let tls = match (args.tls_ca, args.tls_certificate, args.tls_key) {
        (Some(ca), Some(certificate), Some(key)) => Some(TlsFiles { ca, certificate, key }),
        _ => None,
    };
    if let Some(tls) = &tls {
        keys::warn_if_open(&tls.key, context);
    }
    let way = match args.listen {
        Some(address) => DumpTransport::Pages { address, tls, member: args.packing.member().cloned() },
        None => DumpTransport::Streamer,
    };
    let options = ReceiveOptions {
        way,
        images: args.images.clone(),
        criu_work_dir: args.criu_work_dir,
        spool: args.spool,
        memory_bytes: usize::try_from(args.memory).unwrap_or(usize::MAX).saturating_mul(1 << 20),
        patience: Duration::from_secs(args.patience),
    };
    // A store that cannot be used is told before CRIU has begun.
    let packer = args.packing.open(&args.transport, context).await?;
    let receiver = Receiver::listen(options).doing(|| "CRIU cannot be listened to".to_owned())?;
    let images = args.images.display();
    context.reporter.note(&match receiver.address() {
        Some(address) => format!("waiting for CRIU at {address}, and its other images in {images}"),
        None => format!("waiting for CRIU in {images}"),
    });
    let stop = context.cancel.token();
    let dump = blocking(move || Ok(receiver.receive(&stop)?)).await;
    let dump = interrupted(dump, context).doing(|| "nothing came of CRIU's dump".to_owned())?;
    context.reporter.note(&match dump.came() {
        ReceivedSize::Pages(bytes) => format!("{} of memory came", size(bytes)),
        ReceivedSize::Images(bytes) => format!("{} of images came", size(bytes)),
    });
    let packed = tokio::select! {
        packed = pack(&dump, &packer, context) => packed,
        () = cancelled(context) => Err(CommandError::usage("stopped")),
    };
    match interrupted(packed, context) {
        Ok(packed) => context.output.print(args.format, &packed),
        Err(error) => Err(keep(dump, &args.images, error).await),
    }
}

async fn cancelled(context: &Context) {
    context.cancel.token().cancelled().await;
}

/// The result, or that the command was told to stop: whatever came of that.
fn interrupted<T>(result: Result<T, CommandError>, context: &Context) -> Result<T, CommandError> {
    match context.cancel.check() {
        Err(stopped) if result.is_err() => Err(stopped.into()),
        _ => result,
    }
}

async fn pack(dump: &ReceivedDump, packer: &Packer, context: &Context) -> Result<Packed, CommandError> {
    let (waiting, stop) = (dump.clone(), context.cancel.token());
    blocking(move || Ok(waiting.wait_whole(&stop)?)).await.doing(|| "the dump is not whole".to_owned())?;
    let dump = dump.clone();
    packer.pack(move || Ok(dump.source()?), context).await.doing(|| "the dump cannot be packed".to_owned())
}

/// Puts what came where CRIU would have put it, since the tasks may be gone.
async fn keep(dump: ReceivedDump, images: &Path, error: CommandError) -> CommandError {
    let kept = blocking(move || Ok(dump.keep().map(|_| ())?)).await;
    let images = images.display();
    match kept {
        Ok(()) => error
            .details([format!("what came is in {images} now, where CRIU would have written it")])
            .first_hint(format!("`syncpoint pack {images}` makes an image of it, if CRIU's dump succeeded")),
        Err(lost) => {
            let details =
                lost.messages().into_iter().map(|message| format!("it cannot be kept in {images}: {message}"));
            error.details(details)
        }
    }
}
