//! The checkpoint of a running application: all of its members at one instant, permanent in a store, or nothing at all.
//!
//! ```text
//! examine ─▶ claim ─▶ sweep ─▶ dump session: all frozen, files taken ─▶ released: tasks run on
//!    │         │        │           │                                        │
//!    └─────────┴────────┴───────────┘                                        ▼ for each member, side by side
//!        fails: the application runs on                          pack into the tentative store ─▶ send, by digest
//!                                                                            │ all are packed: whole   │ all are sent
//!                                                                            ▼                         ▼
//!                                         fails: kept, to be resumed ◀── index ─▶ signatures ─▶ tag: permanent ─▶ (stop)
//! ```
//!
//! Two decisions, never one: tasks go on as soon as all votes are in; the checkpoint is permanent only with its tag.

mod base;
mod commit;
mod elsewhere;
mod error;
mod examine;
mod join;
mod members;
mod memory;
mod options;
mod pages;
mod record;
mod session;
mod sweep;
mod thaw;
mod upload;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use coordinator::hook::{expect_handed, was_not_handed};
use coordinator::proto::BarrierCrossing;
use coordinator::wire::control::{Attend, Summons};
use coordinator::{Hook, Rendezvous, RendezvousError, RollCall, SessionId, SessionKind, SessionPlan, Timings};
use engine::{
    CRIU_CONFIG, EngineKind, Engines,
    attach::{Attachment, ConfigOverlay, InheritedFd},
    claims::Claims,
    open_files::raise_for,
};
use image_format::{ApplicationId, BarrierTime, Digest, Epoch, MemberId, MemberTimeline, Span, Timeline, rfc3339};
use registry::{Progress, Tag, Trust};
use tokio::time::Instant;

pub use self::commit::tell_passed_over;
pub use self::error::{CheckpointError, CheckpointErrorKind};
pub use self::join::{JoinReport, join};
pub use self::members::MembersError;
pub use self::options::{
    CheckpointOptions, ContainerSpec, Destination, JoinTarget, PageTransport, ParsePageTransportError, RemoteMembers,
    Signer,
};
use self::pages::{MemberPages, PageServers};
pub use self::sweep::{ResumableCheckpoint, resumable};

use self::base::Bases;
use self::members::{Member, resolve};
use self::record::{Tentative, TentativeMember};
use self::session::Dumping;
use crate::errors::{At, in_phase};
use crate::observer::{Observer, Phase};
use crate::session::{Broken, SessionDriver, SessionHandle};
use crate::workspace::make_run_root;
use crate::workspace::{Purpose, Workspace};

/// What becomes of memory that CRIU cannot be handed a socket for.
const OVER_TLS: &str = "its engine does not hand CRIU the socket for its memory, which goes over TLS instead, as with --pages tls; tasks stand frozen for longer";

/// Whoever is told how a checkpoint goes, and how its transfers do.
pub trait Watcher: Observer + Progress {}

impl<T: Observer + Progress> Watcher for T {}

/// A checkpoint that is permanent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointReport {
    /// The global checkpoint.
    pub digest: Digest,
    /// Its tag.
    pub tag: Tag,
    /// The application.
    pub application: ApplicationId,
    /// Its number.
    pub epoch: Epoch,
    /// The one before.
    pub predecessor: Option<Digest>,
    /// The members, in the order of their ids.
    pub members: Vec<CheckpointedMember>,
    /// Members of this host whose first process ended after it was dumped, and before the checkpoint was permanent.
    pub ended: Vec<MemberId>,
    /// How it was made.
    pub timeline: Timeline,
}

/// A member of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointedMember {
    /// The member.
    pub id: MemberId,
    /// Its container's name.
    pub container: String,
    /// What runs it.
    pub engine: EngineKind,
    /// Its checkpoint image.
    pub digest: Digest,
    /// Bytes of its layers, as they are stored.
    pub bytes: u64,
    /// Bytes of them that had to be sent.
    pub sent: u64,
    /// What its time went to.
    pub timeline: MemberTimeline,
}

/// Checkpoints the running containers of an application. They run on, unless the options say otherwise.
///
/// Where an engine does not hand CRIU the socket for its memory, which shows before anything is frozen, all memory goes over TLS instead
/// ([`PageTransport::Tls`]), and the watcher is told.
///
/// To be cancelled by [`CheckpointOptions::cancel`]. When the future is dropped instead, or its process killed, the hooks
/// find nobody and fail closed, CRIU undoes its dumps, and the next checkpoint with the same `work_dir` takes away what is left.
///
/// # Errors
/// Whatever keeps the application from being checkpointed as a whole. Its containers run on, and the tag names what it named.
pub async fn checkpoint(
    destination: &Destination,
    options: &CheckpointOptions,
    watcher: &dyn Watcher,
) -> Result<CheckpointReport, CheckpointError> {
    let destination = &destination.until(&options.cancel);
    let ended = attempt(destination, options, watcher).await;
    let ended = if let Err(error) = &ended
        && let CheckpointErrorKind::NotHanded { members, .. } = &*error.kind
    {
        members.iter().for_each(|member| watcher.note(&format!("{member}: {OVER_TLS}")));
        let over_tls = CheckpointOptions { pages: PageTransport::Tls, ..options.clone() };
        attempt(destination, &over_tls, watcher).await
    } else {
        ended
    };
    ended.map_err(|error| error.or_cancelled(&options.cancel))
}

/// What is known of an application before anything of it is touched.
struct Examined {
    run_root: PathBuf,
    members: Vec<Member>,
    line: commit::Line,
    /// Held until the end.
    _claims: Claims,
}

async fn examine(
    destination: &Destination,
    options: &CheckpointOptions,
    watcher: &dyn Watcher,
) -> Result<Examined, CheckpointErrorKind> {
    if !options.host.root {
        return Err(CheckpointErrorKind::NotRoot);
    }
    let run_root = make_run_root(&options.run_root).at(&options.run_root)?;
    let mut claims = Claims::default();
    claim_application(&mut claims, options)?;
    let members = resolve(options).await?;
    examine::refuse(&members)?;
    examine::warn(&options.host.engines, &members, watcher).await;
    let elsewhere = options.elsewhere.as_ref().map_or(0, |elsewhere| elsewhere.members.len());
    raise_for(members.len() + elsewhere)?;
    claim_containers(&mut claims, &members, options)?;
    let line = commit::line(destination, &options.application, options.jobs, watcher).await?;
    Ok(Examined { run_root, members, line, _claims: claims })
}

async fn attempt(
    destination: &Destination,
    options: &CheckpointOptions,
    watcher: &dyn Watcher,
) -> Result<CheckpointReport, CheckpointError> {
    let examined = in_phase(watcher, Phase::Examine, examine(destination, options, watcher)).await?;
    let Examined { run_root, mut members, line, _claims } = examined;
    in_phase(watcher, Phase::Sweep, async {
        Ok(sweep::sweep(&options.work_dir, watcher).await.at(&options.work_dir)?)
    })
    .await?;

    let (roll_call, others) = elsewhere::gather(&mut members, options, watcher).await?;

    let dumping = |kind: CheckpointErrorKind| CheckpointError::new(Phase::Dump, kind);
    let session = SessionId::random().map_err(|_| dumping(CheckpointErrorKind::Random))?;
    let workspace = Workspace::create(&options.work_dir, Purpose::Checkpoint, session);
    let workspace = workspace.at(&options.work_dir).map_err(|error| dumping(error.into()))?;
    let before = base::candidates(&line, options);
    let nobody_is_asked = matches!(destination.trust, Trust::InsecureNoVerify);
    let mut all: Vec<TentativeMember> = members.iter().map(tentative).chain(others).collect();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    let tentative = Tentative {
        session,
        run_root: run_root.clone(),
        application: options.application.clone(),
        epoch: line.epoch,
        to: destination.reference.clone(),
        members: all,
        timeline: Timeline { started: rfc3339(commit::now()), ..Timeline::default() },
        unsigned_base: line.predecessor.filter(|_| !before.is_empty() && nobody_is_asked),
        packed: false,
    };
    let own =
        members.iter().filter_map(|member| before.get_key_value(&member.id)).map(|(id, image)| (id.clone(), *image));
    let bases = base::find(own, Duration::MAX, destination, options, workspace.path(), watcher).await;
    let mut run = Run { destination, options, members, roll_call, workspace, tentative, watcher, before, bases };
    match run.run().await {
        Ok(report) => {
            remove(run.workspace, watcher);
            if options.stop {
                // A member whose peer on another host was stopped may have ended by itself: it was
                // to end.
                stop(&options.host.engines, &run.members, report.digest, watcher).await?;
                return Ok(report);
            }
            Ok(CheckpointReport { ended: examine::ended(&run.members, watcher), ..report })
        }
        // It stays where it is, and is found there by its name.
        Err(error) if run.tentative.packed => Err(CheckpointError { resumable: Some(session), ..error }),
        Err(error) => {
            remove(run.workspace, watcher);
            Err(error)
        }
    }
}

/// Makes a tentative checkpoint permanent whose application runs on since long: sends what is missing, signs, tags.
///
/// # Errors
/// Nothing of that name, or a store that still fails: then it can be resumed again.
pub async fn finish(
    session: SessionId,
    destination: &Destination,
    options: &CheckpointOptions,
    watcher: &dyn Watcher,
) -> Result<CheckpointReport, CheckpointError> {
    let destination = &destination.until(&options.cancel);
    watcher.phase(Phase::Examine);
    let examining = |kind: CheckpointErrorKind| CheckpointError::new(Phase::Examine, kind);
    let orphans = Workspace::orphans(&options.work_dir, Purpose::Checkpoint);
    let orphans = orphans.at(&options.work_dir).map_err(|error| examining(error.into()))?;
    let mut found = None;
    for orphan in orphans {
        let read = orphan.read::<Tentative>().ok().flatten();
        if let Some(tentative) = read.filter(|tentative| tentative.packed && tentative.session == session) {
            found = Some((orphan, tentative));
        }
    }
    let path = options.work_dir.clone();
    let nothing = || examining(CheckpointErrorKind::NothingToResume { session, path });
    let (workspace, tentative) = found.ok_or_else(nothing)?;
    if destination.signer.is_some()
        && let Some(base) = tentative.unsigned_base
    {
        base::check_signed(base, destination).await.map_err(examining)?;
    }
    let sent = upload::send_all(&workspace, &tentative, destination, options, watcher).await;
    let report = match sent {
        Ok(sent) => commit::commit(destination, &tentative, &sent, options, watcher).await,
        Err(error) => Err(error),
    };
    match report {
        Ok(report) => {
            remove(workspace, watcher);
            Ok(report)
        }
        Err(error) => Err(CheckpointError { resumable: Some(session), ..error.or_cancelled(&options.cancel) }),
    }
}

/// One checkpoint on its way.
struct Run<'a> {
    destination: &'a Destination,
    options: &'a CheckpointOptions,
    /// Those of this host.
    members: Vec<Member>,
    /// Those of other hosts, until the session begins.
    roll_call: Option<RollCall>,
    workspace: Workspace,
    tentative: Tentative,
    watcher: &'a dyn Watcher,
    /// The members' images in the checkpoint before.
    before: BTreeMap<MemberId, Digest>,
    /// What the members' pages of this host are compared with.
    bases: Bases,
}

impl Run<'_> {
    async fn run(&mut self) -> Result<CheckpointReport, CheckpointError> {
        let begun = Instant::now();
        let (mut dumping, mut rendezvous) = self.dump().await?;
        let mut delegates = rendezvous.delegates();
        note_times(&mut self.tentative, &dumping.timings);
        self.watcher.phase(Phase::Pack);
        let stored =
            elsewhere::collect(&mut delegates, &self.tentative.members, self.destination, self.options, self.watcher);
        // Only what the members of this host are is changed meanwhile.
        let mut tentative = self.tentative.clone();
        let mut upload = upload::Upload {
            destination: self.destination,
            options: self.options,
            workspace: &mut self.workspace,
            tentative: &mut tentative,
            watcher: self.watcher,
            bases: &self.bases,
            begun,
            resumable: self.options.keep_unsent && self.options.elsewhere.is_none(),
        };
        let sent = tokio::try_join!(upload.run(&self.members, &mut dumping), stored);
        self.tentative = tentative;
        // Whatever happened, nobody reads from them any more.
        drop(dumping.archives);
        dumping.engines.end().await;
        let committed = match sent {
            Ok((mut sent, stored)) => {
                elsewhere::note(&mut self.tentative, &mut sent, stored);
                commit::commit(self.destination, &self.tentative, &sent, self.options, self.watcher).await
            }
            Err(error) => Err(error),
        };
        elsewhere::tell(delegates, &committed, self.options.stop, self.watcher).await;
        // Only now: hooks that CRIU runs after the release, or twice, find their session.
        self.close(rendezvous).await;
        committed
    }

    /// The session. When it is over the tasks run, whatever came of it.
    async fn dump(&mut self) -> Result<(Dumping, Rendezvous), CheckpointError> {
        self.watcher.phase(Phase::Dump);
        let failed = |kind: CheckpointErrorKind| CheckpointError::new(Phase::Dump, kind);
        self.workspace.write(&self.tentative).at(self.workspace.path()).map_err(|error| failed(error.into()))?;
        let plan = SessionPlan {
            kind: SessionKind::Dump,
            id: self.tentative.session,
            epoch: self.tentative.epoch,
            application: self.options.application.clone(),
            members: self.tentative.members.iter().map(|member| member.id.clone()).collect(),
            deadlines: self.options.deadlines,
            fence: self.options.fence.clone(),
        };
        let mut rendezvous = self.start(plan).await.map_err(|error| failed(error.into()))?;
        let pages = page_servers(self.options, &self.members, &self.workspace, &self.bases);
        let attached = pages.and_then(|mut pages| {
            let config = |member: &MemberId| rendezvous.criu_config(member);
            Ok((attachments(&self.members, &self.workspace, config, &mut pages)?, pages))
        });
        let ran = match attached.map_err(failed) {
            Ok((attachments, pages)) => {
                let (workspace, engines) = (&self.workspace, &self.options.host.engines);
                let handle = SessionHandle::Here(&mut rendezvous);
                let driver = SessionDriver::new(handle, &self.options.cancel, self.watcher);
                let dumped = session::run(driver, engines, &self.members, attachments, workspace, self.watcher).await;
                let dumped = dumped.map(|dumping| Dumping { pages, ..dumping });
                dumped
                    .map_err(|broken| broken_off(broken, self.options, &self.members, |id| rendezvous.criu_config(id)))
            }
            Err(error) => Err(error),
        };
        match ran {
            Ok(dumping) => Ok((dumping, rendezvous)),
            Err(mut error) => {
                elsewhere::add_log(&mut rendezvous.delegates(), &mut error).await;
                self.close(rendezvous).await;
                Err(error)
            }
        }
    }

    async fn close(&self, rendezvous: Rendezvous) {
        if let Err(error) = rendezvous.close().await {
            self.watcher.warning(&engine::chain(&error));
        }
    }

    async fn start(&mut self, plan: SessionPlan) -> Result<Rendezvous, RendezvousError> {
        let (run_root, hook_program) = (&self.tentative.run_root, &self.options.hook_program);
        let Some(roll_call) = self.roll_call.take() else {
            return Rendezvous::start(run_root, plan, hook_program).await;
        };
        let summons = |attend: &Attend, session| Summons {
            session,
            to: self.destination.reference.clone(),
            stop: self.options.stop,
            depends_on: self
                .tentative
                .member(&attend.member)
                .map(|member| member.depends_on.clone())
                .unwrap_or_default(),
            base: self.before.get(&attend.member).copied(),
        };
        Rendezvous::start_attended(run_root, plan, hook_program, roll_call, summons).await
    }
}

/// Where pages of this host's members are to go to, if that is not the disk.
fn page_servers(
    options: &CheckpointOptions,
    members: &[Member],
    workspace: &Workspace,
    bases: &Bases,
) -> Result<PageServers, CheckpointErrorKind> {
    let members = members.iter().map(|member| (member.id.clone(), memory::memory(member.source.pid)));
    let encrypted = match options.pages {
        PageTransport::Disk => return Ok(PageServers::new()),
        PageTransport::Stream => false,
        PageTransport::Tls => true,
    };
    Ok(pages::open(members.collect(), encrypted, workspace.path(), bases, &options.chain)?)
}

/// Puts the session's configuration for CRIU, which `config` names, into the place where each member's runtime looks for it, and what CRIU
/// is handed beside it.
fn attachments(
    members: &[Member],
    workspace: &Workspace,
    config: impl Fn(&MemberId) -> PathBuf,
    pages: &mut PageServers,
) -> Result<BTreeMap<MemberId, Attachment>, CheckpointErrorKind> {
    let attach = |member: &Member| {
        let pages = pages.get_mut(&member.id);
        let config = config(&member.id);
        let over = &member.source.criu_config;
        // An empty annotation tells the runtime to use no file at all.
        let made = if over.as_os_str().is_empty() {
            Err(std::io::Error::other(format!("the container's annotation {CRIU_CONFIG} is empty")))
        } else {
            let more = pages.as_ref().map_or("", |pages| pages.lines());
            ConfigOverlay::make(over, &member.source.own_config, &config, more, &workspace.criu_config(&member.id))
        };
        let cover = made.map_err(|source| CheckpointErrorKind::Attach {
            member: member.id.clone(),
            path: over.clone(),
            source,
        });
        let handed = pages.and_then(MemberPages::hand_over);
        if let Some(InheritedFd { descriptor, number }) = &handed {
            expect_handed(&config, *number, descriptor).at(&config)?;
        }
        Ok((member.id.clone(), Attachment { cover: cover?, handed }))
    };
    members.iter().map(attach).collect()
}

/// What became of a session, whose configurations for CRIU `config` names; they are there still.
fn broken_off(
    broken: Broken,
    options: &CheckpointOptions,
    members: &[Member],
    config: impl Fn(&MemberId) -> PathBuf,
) -> CheckpointError {
    let Broken { member, hook, reason, log_lines, dead } = broken;
    let not_handed = members.iter().map(|member| &member.id).filter(|id| was_not_handed(&config(id)));
    let not_handed: Vec<MemberId> = not_handed.cloned().collect();
    let kind = match (dead.is_empty(), not_handed.is_empty()) {
        (false, _) => CheckpointErrorKind::NotRunning { members: dead, reason },
        (true, _) if options.cancel.is_cancelled() => CheckpointErrorKind::Cancelled,
        (true, false) => CheckpointErrorKind::NotHanded { members: not_handed, reason },
        (true, true) => CheckpointErrorKind::Aborted { reason },
    };
    CheckpointError { member, hook, log_lines, ..CheckpointError::new(Phase::Dump, kind) }
}

async fn stop(
    engines: &Engines,
    members: &[Member],
    digest: Digest,
    watcher: &dyn Watcher,
) -> Result<(), CheckpointError> {
    watcher.phase(Phase::Stop);
    let stops =
        members.iter().map(|member| async move { (member, engines.get(member.engine).stop(&member.source.id).await) });
    let mut failed = None;
    for (member, stopped) in futures_util::future::join_all(stops).await {
        if let Err(source) = stopped {
            let error = CheckpointError::new(Phase::Stop, CheckpointErrorKind::Stop { digest, source });
            failed = Some(CheckpointError { member: Some(member.id.clone()), ..error });
        }
    }
    failed.map_or(Ok(()), Err)
}

fn tentative(member: &Member) -> TentativeMember {
    let Member { id, depends_on, engine, source, .. } = member;
    TentativeMember::new(id.clone(), depends_on.clone(), *engine, source.container.clone())
}

fn note_times(tentative: &mut Tentative, timings: &Timings) {
    let mut barriers: BTreeMap<Hook, u64> = BTreeMap::new();
    for member in &mut tentative.members {
        let Some(passages) = timings.members.get(&member.id) else { continue };
        note_member(&mut member.timeline, passages);
        for BarrierCrossing { hook, passed, .. } in passages {
            barriers.insert(*hook, micros(*passed));
        }
    }
    let mut barriers: Vec<BarrierTime> =
        barriers.into_iter().map(|(hook, opened)| BarrierTime { hook: hook.to_string(), opened }).collect();
    barriers.sort_by_key(|barrier| barrier.opened);
    tentative.timeline.barriers = barriers;
    tentative.timeline.capture =
        timings.capture.map(|capture| Span { begin: micros(capture.begin), end: micros(capture.end) });
}

/// Frozen is what the protocol knows of: from where CRIU was let go to freeze, to where it was let go to thaw.
fn note_member(timeline: &mut MemberTimeline, passages: &[BarrierCrossing]) {
    let at = |hook| passages.iter().find(|passage| passage.hook == hook);
    let (Some(gathered), Some(dumped)) = (at(Hook::PreDump), at(Hook::PostDump)) else { return };
    let span = |begin, end| Some(Span { begin: micros(begin), end: micros(end) });
    timeline.waited = span(gathered.arrived, gathered.passed);
    timeline.frozen = span(gathered.passed, dumped.passed);
    let locked = at(Hook::NetworkLock).map_or(gathered.passed, |locked| locked.passed.min(dumped.arrived));
    timeline.dumped = span(locked, dumped.arrived);
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn claim_application(claims: &mut Claims, options: &CheckpointOptions) -> Result<(), CheckpointErrorKind> {
    let claimed = claims.claim(&options.run_root, &format!("application-{}", options.application));
    match claimed.at(&options.run_root)? {
        true => Ok(()),
        false => Err(CheckpointErrorKind::Busy { what: format!("the application {}", options.application) }),
    }
}

fn claim_containers(
    claims: &mut Claims,
    members: &[Member],
    options: &CheckpointOptions,
) -> Result<(), CheckpointErrorKind> {
    for Member { engine, source, .. } in members {
        let claimed = claims.claim_container(&options.run_root, *engine, &source.container);
        if !claimed.at(&options.run_root)? {
            return Err(CheckpointErrorKind::Busy { what: format!("the container {}", source.container) });
        }
    }
    Ok(())
}

fn remove(workspace: Workspace, watcher: &dyn Watcher) {
    let path = workspace.path().to_owned();
    if let Err(error) = workspace.remove() {
        watcher.warning(&format!("{} cannot be removed: {error}", path.display()));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::sync::Arc;

    use image_format::{DumpSource, PackOptions, pack};
    use registry::sign::PrivateKey;
    use registry::{Bridge, Create, Location, Selector, Settings, Store, Trust};
    use tokio::runtime::Handle;
    use tokio::time::{sleep, timeout};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::preflight;
    use crate::restore::error::RestoreErrorKind;
    use crate::restore::options::RestoreOptions;
    use crate::stuck::{OPERATIONS, Stuck};

    async fn layout(path: PathBuf) -> Arc<dyn Store> {
        registry::open(&Location::Layout(path), &Settings::default(), Create::Layout).await.unwrap()
    }

    /// A checkpoint of one member that is packed and not sent.
    async fn unsent(work_dir: &Path, unsigned_base: Option<Digest>) -> SessionId {
        let session = SessionId::random().unwrap();
        let mut workspace = Workspace::create(work_dir, Purpose::Checkpoint, session).unwrap();
        let store = layout(workspace.store()).await;
        let bridge = Bridge::new(Handle::current(), Arc::clone(&store));
        let packing = tokio::task::spawn_blocking(move || {
            let dump = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/dumps/podman-plain.tar.zst");
            let options = PackOptions { member: Some("a".parse().unwrap()), ..PackOptions::default() };
            pack(DumpSource::open(&dump, None).unwrap(), &options, &bridge).unwrap()
        });
        let packed = packing.await.unwrap();
        store.put_manifest(&packed.manifest, None).await.unwrap();
        let mut member = TentativeMember::new("a".parse().unwrap(), Vec::new(), EngineKind::Podman, "a".to_owned());
        member.manifest = Some(packed.manifest.descriptor());
        let tentative = Tentative {
            session,
            run_root: work_dir.to_owned(),
            application: "app".parse().unwrap(),
            epoch: Epoch(1),
            to: "oci:/x".to_owned(),
            members: vec![member],
            timeline: Timeline { started: rfc3339(commit::now()), ..Timeline::default() },
            unsigned_base,
            packed: true,
        };
        workspace.write(&tentative).unwrap();
        session
    }

    fn signed_into(store: Arc<dyn Store>, key: &Arc<PrivateKey>) -> Destination {
        let signer = Some(Signer { key: Arc::clone(key), identity: Some("app".to_owned()) });
        let trust = Trust::Keys(vec![key.public_key()]);
        Destination { store, reference: "oci:/x".to_owned(), tag: None, signer, trust }
    }

    /// Cancels it soon.
    fn soon(cancel: &CancellationToken) {
        let cancel = cancel.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(100)).await;
            cancel.cancel();
        });
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_that_never_answers_holds_up_no_part_of_a_checkpoint() {
        let top = tempfile::tempdir().unwrap();
        let key = Arc::new(PrivateKey::generate().unwrap());
        let mut stuck = BTreeSet::new();
        for operation in OPERATIONS {
            let place = top.path().join(operation);
            let (work_dir, store) = (place.join("work"), layout(place.join("store")).await);
            let session = unsent(&work_dir, None).await;
            let options =
                CheckpointOptions { work_dir, ..CheckpointOptions::new("app".parse().unwrap(), PathBuf::new()) };
            let to = signed_into(Stuck::at(operation, Arc::clone(&store)), &key);
            soon(&options.cancel);
            let ended = timeout(Duration::from_secs(20), finish(session, &to, &options, &())).await;
            match ended.unwrap_or_else(|_| panic!("stuck at {operation}")) {
                Ok(_) => {}
                Err(error) => {
                    assert!(matches!(*error.kind, CheckpointErrorKind::Cancelled), "{operation}: {error}");
                    assert_eq!(error.resumable, Some(session), "{operation}");
                    stuck.insert(*operation);
                    // It is still there, and can be finished.
                    let options = CheckpointOptions { cancel: CancellationToken::new(), ..options };
                    finish(session, &signed_into(store, &key), &options, &()).await.unwrap();
                }
            }
        }
        // Sending, the line before, the index, its signature, and the tag.
        for operation in ["put_blob", "tags", "put_manifest", "put_referrer", "put_tag"] {
            assert!(stuck.contains(operation), "{stuck:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_vouches_for_no_pages_of_a_base_that_no_key_signed() {
        let top = tempfile::tempdir().unwrap();
        let key = Arc::new(PrivateKey::generate().unwrap());
        let (work_dir, store) = (top.path().join("work"), layout(top.path().join("store")).await);
        let options = CheckpointOptions {
            work_dir: work_dir.clone(),
            ..CheckpointOptions::new("app".parse().unwrap(), PathBuf::new())
        };
        let signed = signed_into(Arc::clone(&store), &key);
        let unsigned = Destination { signer: None, trust: Trust::InsecureNoVerify, ..signed.clone() };
        let base = finish(unsent(&work_dir, None).await, &unsigned, &options, &()).await.unwrap().digest;

        let session = unsent(&work_dir, Some(base)).await;
        let error = finish(session, &signed, &options, &()).await.unwrap_err();
        assert!(
            matches!(*error.kind, CheckpointErrorKind::UnsignedBase { base: named, .. } if named == base),
            "{error}"
        );
        let gone = unsent(&work_dir, Some(Digest::of(b"gone"))).await;
        let error = finish(gone, &signed, &options, &()).await.unwrap_err();
        assert!(matches!(*error.kind, CheckpointErrorKind::UnsignedBase { .. }), "{error}");

        let root = store.resolve(&Selector::Digest(base)).await.unwrap();
        registry::sign::sign(&*store, &root, &key, "app").await.unwrap();
        assert_eq!(finish(session, &signed, &options, &()).await.unwrap().predecessor, Some(base));
        // Whoever asks for no signature gets none.
        finish(gone, &unsigned, &options, &()).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_host_that_joins_builds_on_what_its_own_keys_signed_only() {
        let top = tempfile::tempdir().unwrap();
        let (key, stranger) = (Arc::new(PrivateKey::generate().unwrap()), Arc::new(PrivateKey::generate().unwrap()));
        let (work_dir, store) = (top.path().join("work"), layout(top.path().join("store")).await);
        let options = CheckpointOptions {
            work_dir: work_dir.clone(),
            ..CheckpointOptions::new("app".parse().unwrap(), PathBuf::new())
        };
        let ours = signed_into(Arc::clone(&store), &key);
        let image = finish(unsent(&work_dir, None).await, &ours, &options, &()).await.unwrap().members[0].digest;
        let member: MemberId = "a".parse().unwrap();
        let accepted = async |image: Digest, by: &Destination, within: Duration| {
            base::of_line(vec![(member.clone(), image)], within, by, &options, &()).await.len()
        };
        let minute = Duration::from_secs(60);
        let theirs = signed_into(Arc::clone(&store), &stranger);
        let of_nobody = Destination { trust: Trust::InsecureNoVerify, ..ours.clone() };
        let planted = Digest::of(b"planted");
        assert_eq!(accepted(image, &ours, minute).await, 1);
        assert_eq!(accepted(planted, &ours, minute).await, 0, "no member of the newest checkpoint");
        assert_eq!(accepted(image, &theirs, minute).await, 0, "signed by a key that this host does not know");
        assert_eq!(accepted(planted, &of_nobody, minute).await, 1, "nobody is asked");
        let stuck = Destination { store: Stuck::at("tags", store), ..ours };
        assert_eq!(accepted(image, &stuck, Duration::from_millis(50)).await, 0, "a line that cannot be read in time");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_that_never_answers_holds_up_no_check_before_a_restore() {
        let top = tempfile::tempdir().unwrap();
        let key = Arc::new(PrivateKey::generate().unwrap());
        let (work_dir, store) = (top.path().join("work"), layout(top.path().join("store")).await);
        let session = unsent(&work_dir, None).await;
        let options = CheckpointOptions { work_dir, ..CheckpointOptions::new("app".parse().unwrap(), PathBuf::new()) };
        let to = signed_into(Arc::clone(&store), &key);
        let report = finish(session, &to, &options, &()).await.unwrap();
        let root = store.resolve(&Selector::Tag(report.tag)).await.unwrap();
        for operation in ["manifest", "referrers"] {
            let options = RestoreOptions::new(PathBuf::new(), to.trust.clone());
            soon(&options.cancel);
            let checking = preflight(Stuck::at(operation, Arc::clone(&store)), root.clone(), &options, &());
            let ended =
                timeout(Duration::from_secs(20), checking).await.unwrap_or_else(|_| panic!("stuck at {operation}"));
            let error = ended.unwrap_err();
            assert!(matches!(*error.kind, RestoreErrorKind::Cancelled), "{operation}: {error}");
        }
    }
}
