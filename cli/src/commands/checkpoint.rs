//! `syncpoint checkpoint`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use coordinator::{Deadlines, Listen, SessionId, TlsFiles};
use engine::EngineKind;
use image_format::{ApplicationId, Compression, Digest, Epoch, MemberId, ParseIdError, Span};
use launcher::{
    CheckpointError, CheckpointOptions, CheckpointReport, CheckpointedMember, ContainerSpec, Destination,
    PageTransport, RemoteMembers, Signer,
};
use registry::Reference;
use serde::Serialize;

use crate::chain::Chains;
use crate::commands::sign::Identity;
use crate::context::Context;
use crate::error::{CommandError, While, place};
use crate::keys;
use crate::output::{Format, Report, size, table};
use crate::plan::{self, CheckpointPlan, PlanMember};
use crate::store;
use crate::timeline;
use crate::transport::Transport;
use crate::values::{KeyValue, MemberList, Time, words};

/// Checkpoint the running containers of an application at one instant, or none of them
///
/// CRIU freezes every container; when all stand still, their memory and files are taken, and they run on. Then each is packed
/// and sent, the members are linked, signed, and the tag is set as the very last: only then is there a checkpoint. If anything
/// fails before, the application runs on as it did, and the tag names what it named. Containers need no preparation. Needs root.
///
/// Who a container is follows from its labels: io.syncpoint.application, io.syncpoint.member and io.syncpoint.depends-on (a,b), or
/// those of compose. If the store fails when all is packed, the checkpoint is kept, and --resume finishes it; one of several
/// hosts is not.
#[derive(Debug, Args)]
#[command(
    after_long_help = "With --json: {reference, digest, tag, application, epoch, predecessor, signed, stopped, members: [{id, \
container, engine, digest, bytes, sent, waited, frozen, dumped, packed, sending}]}; bytes are as stored, sent those that were not there, times in \
seconds."
)]
pub struct CheckpointArgs {
    /// Where the checkpoint goes: oci:DIR[:TAG] or HOST/REPO[:TAG]; the tag is epoch-<N> if not given
    #[arg(long, value_name = "REF", required_unless_present_any = ["plan", "resume"])]
    to: Option<Reference>,

    /// The application
    #[arg(long, value_name = "ID", required_unless_present_any = ["plan", "resume"])]
    application: Option<ApplicationId>,

    /// Sign the checkpoint and its members with this private key
    #[arg(long, value_name = "FILE", required_unless_present_any = ["plan", "unsigned"])]
    sign_by: Option<PathBuf>,

    /// Leave it unsigned: `restore` refuses it until `syncpoint sign` was run
    #[arg(long, conflicts_with = "sign_by")]
    unsigned: bool,

    /// A public key whose signatures count too, such as one that signed earlier checkpoints; may be repeated
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,

    #[command(flatten)]
    identity: Identity,

    #[command(flatten)]
    containers: Containers,

    /// Take from a file who the members are and what else stands in it; what is said here goes before it. The guide has its format
    #[arg(long, value_name = "FILE", conflicts_with_all = ["members", "depends_on", "engine", "bundle", "without_rootfs", "resume"])]
    plan: Option<PathBuf>,

    /// End the containers, once the checkpoint is permanent
    #[arg(long)]
    stop: bool,

    /// Wait so long for all containers to be ready to freeze, such as 500ms or 2m; 30s if not given
    #[arg(long, value_name = "TIME")]
    gather_timeout: Option<Time>,

    /// Let no container stand frozen for longer: then all run on, and there is no checkpoint; 10s if not given
    #[arg(long, value_name = "TIME")]
    freeze_timeout: Option<Time>,

    /// How layers are compressed
    #[arg(long, value_name = "HOW", default_value = "zstd", value_parser = words(Compression::ALL, Compression::as_str))]
    compression: Compression,

    /// Which way memory takes: stream, over a socket, so that tasks stand frozen for less time and only pages that changed are kept; tls, the same encrypted; disk, as CRIU writes it. As the plan says, or else stream
    #[arg(long, value_name = "WAY", value_parser = words(PageTransport::ALL, PageTransport::as_str))]
    pages: Option<PageTransport>,

    /// Store all pages of every member again, whatever is in the line before
    #[arg(long)]
    rebase: bool,

    /// Where the checkpoint is kept until it is permanent, with room for all members, packed
    #[arg(long, value_name = "DIR", default_value = launcher::WORK_DIR)]
    work_dir: PathBuf,

    /// Finish a checkpoint that was taken and could not be sent, to where it was to go or to --to
    #[arg(long, value_name = "SESSION", conflicts_with_all = ["members", "depends_on", "engine", "bundle"])]
    resume: Option<SessionId>,

    /// Draw how it went: members as rows, what their time went to as bars, barriers as lines
    #[arg(long, value_name = "FILE.svg")]
    timeline: Option<PathBuf>,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    elsewhere: ElsewhereArgs,

    #[command(flatten)]
    chains: Chains,

    #[command(flatten)]
    transport: Transport,
}

/// The containers of this host.
#[derive(Debug, Args)]
pub struct Containers {
    /// The containers, by name or id, each with the member that it is if its labels do not say; all running ones with the
    /// application's label if none is given
    #[arg(value_name = "[MEMBER=]CONTAINER")]
    members: Vec<Container>,

    /// What a member depends on, instead of what its labels say; may be repeated
    #[arg(long, value_name = "MEMBER=ID,ID")]
    depends_on: Vec<KeyValue<MemberId, MemberList>>,

    /// What runs the containers: podman, docker or runc; the first of them that knows a container if not given
    #[arg(long, value_name = "ENGINE")]
    engine: Option<EngineKind>,

    /// The bundle of a member of runc, whose config.json is packed along; may be repeated
    #[arg(long, value_name = "MEMBER=DIR")]
    bundle: Vec<KeyValue<MemberId, PathBuf>>,

    /// Take a member of runc without its root filesystem: it writes nothing there, or its files are cared for elsewhere; may be
    /// repeated
    #[arg(long, value_name = "MEMBER")]
    without_rootfs: Vec<MemberId>,
}

/// The members of other hosts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Several hosts")]
struct ElsewhereArgs {
    /// A member that runs on another host, where `syncpoint join` takes part for it; may be repeated
    #[arg(long, value_name = "MEMBER", requires = "listen", conflicts_with = "resume")]
    with: Vec<MemberId>,

    /// Where this host is heard by the others, over mutual TLS
    #[arg(long, value_name = "ADDRESS:PORT", requires_all = ["with", "tls_ca", "tls_certificate", "tls_key"])]
    listen: Option<SocketAddr>,

    /// The authority of the members' certificates, as `syncpoint key ca` makes it
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_ca: Option<PathBuf>,

    /// The certificate of this host, as `syncpoint key issue --coordinator` makes it
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_certificate: Option<PathBuf>,

    /// Its private key
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_key: Option<PathBuf>,
}

impl ElsewhereArgs {
    fn take(&self) -> Result<Option<RemoteMembers>, CommandError> {
        if let Some(twice) =
            self.with.iter().enumerate().find_map(|(at, id)| self.with[..at].contains(id).then_some(id))
        {
            return Err(CommandError::usage(format!("--with names {twice} twice")));
        }
        // The parser sees to it that all are given, or none.
        let given = (self.listen, self.tls_ca.clone(), self.tls_certificate.clone(), self.tls_key.clone());
        let (Some(address), Some(ca), Some(certificate), Some(key)) = given else { return Ok(None) };
        let listen = Listen { address, tls: TlsFiles { ca, certificate, key } };
        Ok(Some(RemoteMembers { listen, members: self.with.clone() }))
    }
}

/// A container, and the member that it is.
#[derive(Debug, Clone)]
struct Container {
    member: Option<MemberId>,
    name: String,
}

impl FromStr for Container {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((member, name)) => Ok(Self { member: Some(member.parse()?), name: name.to_owned() }),
            None => Ok(Self { member: None, name: text.to_owned() }),
        }
    }
}

/// What was checkpointed.
#[derive(Debug, Serialize)]
pub struct Checkpointed {
    reference: String,
    digest: Digest,
    tag: String,
    application: ApplicationId,
    epoch: Epoch,
    predecessor: Option<Digest>,
    signed: bool,
    stopped: bool,
    members: Vec<Member>,
}

/// One member of it.
#[derive(Debug, Serialize)]
pub struct Member {
    id: MemberId,
    container: String,
    engine: &'static str,
    digest: Digest,
    bytes: u64,
    sent: u64,
    waited: f64,
    frozen: f64,
    dumped: f64,
    packed: f64,
    sending: f64,
}

/// What the time of each member went to.
pub fn rows(out: &mut dyn fmt::Write, members: &[Member]) -> fmt::Result {
    let time = |seconds: f64| {
        if seconds < 1.0 { format!("{:.0} ms", seconds * 1000.0) } else { format!("{seconds:.2} s") }
    };
    let row = |member: &Member| {
        let times = [member.waited, member.frozen, member.dumped, member.packed, member.sending];
        let mut row = vec![member.id.to_string()];
        row.extend(times.map(time));
        row.extend([size(member.bytes), size(member.sent)]);
        row
    };
    let head = ["MEMBER", "WAITED", "FROZEN", "DUMPED", "PACKED", "SENT", "SIZE", "NEW"];
    table(out, &head, &members.iter().map(row).collect::<Vec<_>>())
}

impl Report for Checkpointed {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        rows(out, &self.members)?;
        let after = if self.stopped { "its containers are stopped" } else { "the application runs on" };
        let signed = if self.signed { "signed" } else { "not signed" };
        writeln!(out, "permanent  {} epoch {}, tag {}, {signed}; {after}", self.application, self.epoch, self.tag)?;
        writeln!(out, "{}", self.reference)
    }

    fn brief(&self) -> Option<String> {
        Some(self.reference.clone())
    }
}

/// Checkpoints.
pub async fn run(mut args: CheckpointArgs, context: &Context) -> Result<(), CommandError> {
    if args.resume.is_some() && args.stop {
        return Err(CommandError::usage(
            "--resume does not go with --stop: the application ran on since it was taken, and all that it did would be lost",
        )
        .hint("finish it without --stop; to end the application, take a new checkpoint with --stop"));
    }
    let mut wanted = args.containers.wanted()?;
    let elsewhere = args.elsewhere.take()?;
    if let Some(elsewhere) = &elsewhere {
        keys::warn_if_open(&elsewhere.listen.tls.key, context);
    }
    if let Some(plan) = args.plan.take() {
        wanted = follow(&mut args, plan::read(&plan)?);
    }
    let pending = match args.resume {
        Some(session) => Some(pending(session, &args)?),
        None => None,
    };
    let to = match (&args.to, &pending) {
        (Some(to), _) => to.clone(),
        (None, Some(pending)) => pending.to.parse()?,
        (None, None) => return Err(CommandError::usage("it is not said where to: neither by --to nor by the plan")),
    };
    let tag = match to.selector() {
        Some(_) => Some(store::tag_to_write(&to)?.clone()),
        None => None,
    };
    let signer = match &args.sign_by {
        Some(file) => {
            let key = Arc::new(keys::private(file, context).await?);
            Some(Signer { key, identity: args.identity.name.clone() })
        }
        None => None,
    };
    if signer.is_none() && !args.unsigned {
        return Err(CommandError::usage("it is not said who signs: neither by --sign-by nor by the plan")
            .hint("--unsigned makes a checkpoint that nobody vouches for"));
    }
    let signed = signer.is_some();
    let store = store::create(&to, &args.transport, context).await?;
    let signing = signer.as_ref().map(|signer| &*signer.key);
    let trust = keys::of_line(signing, args.key.iter().map(PathBuf::as_path), context)?;
    let destination = Destination { store, reference: to.to_string(), tag, signer, trust };
    let application = args.application.clone().or_else(|| pending.as_ref().map(|pending| pending.application.clone()));
    let application = application
        .ok_or_else(|| CommandError::usage("the application has no name: neither by --application nor by the plan"))?;
    let usual = CheckpointOptions::new(application, context.environment.hook_program());
    let options = CheckpointOptions {
        members: wanted,
        engine: args.containers.engine,
        elsewhere,
        stop: args.stop,
        deadlines: Deadlines {
            gather: args.gather_timeout.map_or(usual.deadlines.gather, |time| time.0),
            hold: args.freeze_timeout.map_or(usual.deadlines.hold, |time| time.0),
        },
        compression: args.compression,
        chain: (&args.chains).into(),
        rebase: args.rebase,
        pages: args.pages.unwrap_or_default(),
        work_dir: args.work_dir.clone(),
        jobs: args.transport.jobs(),
        cancel: context.cancel.token(),
        ..usual
    };
    let report = match args.resume {
        None => launcher::checkpoint(&destination, &options, &*context.reporter).await,
        Some(session) => launcher::finish(session, &destination, &options, &*context.reporter).await,
    };
    let report = report.map_err(|error| failed(&options.application, error))?;
    if !signed {
        context.reporter.note("it is not signed: `restore` refuses it until `syncpoint sign` was run");
    }
    if let Some(path) = &args.timeline {
        let title = format!("{} epoch {}", report.application, report.epoch);
        timeline::save(path, &report.timeline, &title).doing(|| "the checkpoint is permanent".to_owned())?;
    }
    let ended = report.ended.iter().map(MemberId::as_str).collect::<Vec<_>>().join(", ");
    context.output.print(args.format, &checkpointed(&to, report, signed, args.stop))?;
    if ended.is_empty() {
        return Ok(());
    }
    let error = format!("the checkpoint is permanent, but the application does not run on: {ended} ended");
    Err(CommandError::new(crate::exit::Exit::Failure, error).hint("end what is left of it, and restore the checkpoint"))
}

/// Takes from a plan what the command line does not say; gives its members.
fn follow(args: &mut CheckpointArgs, plan: CheckpointPlan) -> Vec<ContainerSpec> {
    let CheckpointPlan { application, to, key, stop, gather, freeze, pages, guard: _, members } = plan;
    args.application = args.application.take().or(application);
    args.to = args.to.take().or(to);
    if !args.unsigned {
        args.sign_by = args.sign_by.take().or(key);
    }
    args.stop |= stop.unwrap_or(false);
    args.gather_timeout = args.gather_timeout.or(gather.map(Time));
    args.freeze_timeout = args.freeze_timeout.or(freeze.map(Time));
    args.pages = args.pages.or(pages);
    members.into_iter().map(ContainerSpec::from).collect()
}

impl From<PlanMember> for ContainerSpec {
    fn from(member: PlanMember) -> Self {
        let PlanMember { id, container, engine, depends_on, bundle, without_rootfs } = member;
        Self { id: Some(id), container, engine, depends_on: Some(depends_on), bundle, without_rootfs }
    }
}

fn pending(session: SessionId, args: &CheckpointArgs) -> Result<launcher::ResumableCheckpoint, CommandError> {
    let pending = launcher::resumable(&args.work_dir)?;
    let others: Vec<String> = pending.iter().map(|one| format!("{} of {}", one.session, one.application)).collect();
    pending.into_iter().find(|one| one.session == session).ok_or_else(|| {
        let error = format!("there is no unfinished checkpoint {session} in {}", args.work_dir.display());
        CommandError::new(crate::exit::Exit::NotFound, error).details(others)
    })
}

impl Containers {
    /// What was asked for, member by member.
    pub fn wanted(&self) -> Result<Vec<ContainerSpec>, CommandError> {
        let mut depends_on: BTreeMap<&MemberId, &MemberList> = BTreeMap::new();
        for KeyValue(member, list) in &self.depends_on {
            if depends_on.insert(member, list).is_some() {
                return Err(CommandError::usage(format!("--depends-on names {member} twice")));
            }
        }
        let mut bundles: BTreeMap<&MemberId, &PathBuf> = BTreeMap::new();
        for KeyValue(member, bundle) in &self.bundle {
            if bundles.insert(member, bundle).is_some() {
                return Err(CommandError::usage(format!("--bundle names {member} twice")));
            }
        }
        let mut without_rootfs: BTreeSet<&MemberId> = self.without_rootfs.iter().collect();
        let mut wanted = Vec::new();
        for Container { member, name } in &self.members {
            // Without a name of its own, a container is the member of the same name where options speak of it.
            let id = member.clone().or_else(|| name.parse().ok());
            let given = id.as_ref().and_then(|id| depends_on.remove(id));
            let bundle = id.as_ref().and_then(|id| bundles.remove(id));
            wanted.push(ContainerSpec {
                id: member.clone(),
                engine: self.engine,
                depends_on: given.map(|list| list.0.clone()),
                bundle: bundle.cloned(),
                without_rootfs: id.as_ref().is_some_and(|id| without_rootfs.remove(id)),
                ..ContainerSpec::named(name)
            });
        }
        match depends_on.into_keys().chain(bundles.into_keys()).chain(without_rootfs).next() {
            Some(stranger) => Err(CommandError::usage(format!("{stranger} is none of the containers that are named"))),
            None => Ok(wanted),
        }
    }
}

/// The launcher's error with everything that it knows, a line each.
pub fn failed(application: &ApplicationId, error: CheckpointError) -> CommandError {
    let (hint, resumable, phase) = (error.hint(), error.resumable, error.phase);
    let (place, logged) = (place(error.member.as_ref(), error.hook), error.log_lines.clone());
    let mut error = CommandError::from(error).context(format!("{application} is not checkpointed ({phase})"));
    error = error.details(place).details(logged.iter().map(|line| format!("CRIU: {line}")));
    if let Some(session) = resumable {
        error = error.first_hint(format!(
            "the application runs on, and what was taken of it is kept; `syncpoint checkpoint --resume {session}` with the same \
             key sends it when the store is back"
        ));
    }
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// What was made, as it is answered.
pub fn checkpointed(to: &Reference, report: CheckpointReport, signed: bool, stopped: bool) -> Checkpointed {
    Checkpointed {
        reference: store::pinned(to, report.digest).to_string(),
        digest: report.digest,
        tag: report.tag.to_string(),
        application: report.application,
        epoch: report.epoch,
        predecessor: report.predecessor,
        signed,
        stopped,
        members: report.members.into_iter().map(member).collect(),
    }
}

/// A member as it is told.
pub fn member(member: CheckpointedMember) -> Member {
    let seconds = |span: Option<Span>| span.map_or(0.0, |span| span.micros() as f64 / 1e6);
    let times = &member.timeline;
    Member {
        id: member.id,
        container: member.container,
        engine: member.engine.as_str(),
        digest: member.digest,
        bytes: member.bytes,
        sent: member.sent,
        waited: seconds(times.waited),
        frozen: seconds(times.frozen),
        dumped: seconds(times.dumped),
        packed: seconds(times.packed),
        sending: seconds(times.sent),
    }
}
