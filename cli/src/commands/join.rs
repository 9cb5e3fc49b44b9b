//! `syncpoint join`.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use coordinator::{Deadlines, TlsFiles};
use image_format::{ApplicationId, Compression, Digest, Epoch};
use launcher::{CheckpointErrorKind, CheckpointOptions, Destination, JoinReport, JoinTarget, PageTransport, Phase};
use registry::Reference;
use serde::Serialize;

use super::checkpoint::{Containers, Member, failed, member, rows};
use crate::chain::Chains;
use crate::context::Context;
use crate::error::{CommandError, While};
use crate::keys;
use crate::output::{Format, Report};
use crate::store;
use crate::transport::Transport;
use crate::values::{Time, words};

/// Take part, with containers of this host, in checkpoints that another host takes
///
/// There, `syncpoint checkpoint --listen ADDRESS:PORT --with MEMBER` names the members that run here. All members of all hosts are frozen
/// at one instant, or none is checkpointed. This host packs and sends its own, to the repository that is named here and to no other;
/// the other one links, signs and sets the tag. Waits for the next checkpoint then, until it is told to stop. Needs root.
///
/// Each member has a certificate of its own, which names it: `syncpoint key issue --member ID` makes them. {id} in --tls-certificate
/// and --tls-key stands for the member.
#[derive(Debug, Args)]
#[command(
    after_long_help = "With --json, for each checkpoint: {reference, digest, tag, application, epoch, stopped, members: [{id, container, engine, \
digest, bytes, sent, waited, frozen, dumped, packed, sending}]}, of the members of this host; bytes are as stored, sent those that \
were not there, times in seconds."
)]
pub struct JoinArgs {
    /// Where the other host listens; the host is one that its certificate names
    #[arg(value_name = "HOST:PORT")]
    coordinator: String,

    #[command(flatten)]
    containers: Containers,

    /// The repository to which memory of this host may be sent: oci:DIR or HOST/REPO
    #[arg(long, value_name = "REPO")]
    to: Reference,

    /// The application
    #[arg(long, value_name = "ID")]
    application: ApplicationId,

    /// A public key by which an earlier checkpoint must be signed for its memory to be built upon; may be repeated
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,

    /// The authority of the other host's certificate
    #[arg(long, value_name = "FILE")]
    tls_ca: PathBuf,

    /// The certificate of each member, such as /etc/syncpoint/{id}.crt
    #[arg(long, value_name = "FILE")]
    tls_certificate: PathBuf,

    /// Its private key, such as /etc/syncpoint/{id}.key
    #[arg(long, value_name = "FILE")]
    tls_key: PathBuf,

    /// Take part in one checkpoint and end, also if nothing comes of it
    #[arg(long)]
    once: bool,

    /// Let no container of this host stand frozen for longer, also where the other host would: then all members run on, and there is no checkpoint
    #[arg(long, value_name = "TIME", default_value = "60s")]
    freeze_timeout: Time,

    /// How layers are compressed
    #[arg(long, value_name = "HOW", default_value = "zstd", value_parser = words(Compression::ALL, Compression::as_str))]
    compression: Compression,

    /// Which way memory takes: stream, over a socket, so that tasks stand frozen for less time and only pages that changed are kept; tls, the same encrypted; disk, as CRIU writes it
    #[arg(long, value_name = "WAY", default_value = "stream", value_parser = words(PageTransport::ALL, PageTransport::as_str))]
    pages: PageTransport,

    /// Where members are kept until they are sent, with room for all of this host, packed
    #[arg(long, value_name = "DIR", default_value = launcher::WORK_DIR)]
    work_dir: PathBuf,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    chains: Chains,

    #[command(flatten)]
    transport: Transport,
}

/// What was checkpointed of this host.
#[derive(Debug, Serialize)]
struct Joined {
    reference: String,
    digest: Digest,
    tag: String,
    application: ApplicationId,
    epoch: Epoch,
    stopped: bool,
    members: Vec<Member>,
}

impl Report for Joined {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        rows(out, &self.members)?;
        let after = if self.stopped { "the containers of this host are stopped" } else { "the application runs on" };
        writeln!(out, "permanent  {} epoch {}, tag {}; {after}", self.application, self.epoch, self.tag)?;
        writeln!(out, "{}", self.reference)
    }

    fn brief(&self) -> Option<String> {
        Some(self.reference.clone())
    }
}

/// Takes part.
pub async fn run(args: JoinArgs, context: &Context) -> Result<(), CommandError> {
    if args.to.selector().is_some() {
        return Err(CommandError::usage(format!("{} names more than a repository", args.to))
            .hint("which tag it gets is for the coordinating host to say"));
    }
    let members = args.containers.wanted()?;
    let absolute =
        |path: &PathBuf| std::path::absolute(path).doing(|| format!("the file {} has no place", path.display()));
    let tls = TlsFiles {
        ca: absolute(&args.tls_ca)?,
        certificate: absolute(&args.tls_certificate)?,
        key: absolute(&args.tls_key)?,
    };
    let ids = members.iter().filter_map(|member| member.id.as_ref());
    let mut own: Vec<PathBuf> = ids.map(|id| tls.of(id).key).collect();
    own.dedup();
    own.iter().for_each(|key| keys::warn_if_open(key, context));
    let joining = JoinTarget { address: args.coordinator.clone(), tls, once: args.once };
    let store = store::create(&args.to, &args.transport, context).await?;
    let trust = keys::of_line(None, args.key.iter().map(PathBuf::as_path), context)?;
    let destination = Destination { store, reference: args.to.to_string(), tag: None, signer: None, trust };
    let usual = CheckpointOptions::new(args.application.clone(), context.environment.hook_program());
    let mut options = CheckpointOptions {
        members,
        deadlines: Deadlines { hold: args.freeze_timeout.0, ..usual.deadlines },
        compression: args.compression,
        chain: (&args.chains).into(),
        pages: args.pages,
        work_dir: args.work_dir.clone(),
        jobs: args.transport.jobs(),
        cancel: context.cancel.token(),
        ..usual
    };
    loop {
        match launcher::join(&joining, &destination, &options, &*context.reporter).await {
            Ok(report) => context.output.print(args.format, &joined(&args.to, report))?,
            Err(error) if !args.once && matches!(*error.kind, CheckpointErrorKind::Cancelled) => return Ok(()),
            // This one came to nothing, and the next one may not.
            Err(error) if !args.once && !matches!(error.phase, Phase::Examine | Phase::Await) => {
                let not_handed = matches!(*error.kind, CheckpointErrorKind::NotHanded { .. });
                for line in failed(&args.application, error).lines() {
                    context.reporter.note(&line);
                }
                if not_handed {
                    context.reporter.note("from here on memory of this host goes over TLS, as with --pages tls");
                    options.pages = PageTransport::Tls;
                }
            }
            Err(error) => return Err(failed(&args.application, error)),
        }
        if args.once {
            return Ok(());
        }
    }
}

fn joined(to: &Reference, report: JoinReport) -> Joined {
    let JoinReport { digest, tag, application, epoch, stopped, members } = report;
    let reference = store::pinned(to, digest).to_string();
    Joined { reference, digest, tag, application, epoch, stopped, members: members.into_iter().map(member).collect() }
}
