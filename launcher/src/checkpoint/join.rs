//! This host's members in a checkpoint that another host coordinates.
//!
//! ```text
//! examine ─▶ attend, one connection for each member ─▶ invited ─▶ claim ─▶ sweep ─▶ dump session, as ever ─▶ released: tasks run on
//!    ▲            │ nobody there, or refused: told, and tried again                     │ aborted: told
//!    └────────────┘                                                                     ▼
//!           permanent: (stop) ◀── the coordinating host links, signs, tags ◀── stored ◀── pack and send, as ever
//! ```
//!
//! Memory goes to the repository that was named on this host, and to no other. What is packed and not permanent is not kept: half
//! of an application is nothing that could be finished.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::path::PathBuf;
use std::time::Duration;

use coordinator::wire::Invitation;
use coordinator::wire::control::{Attend, Failure, Stored, Summons};
use coordinator::{AttendError, Committed, Delegation, Outcome, Outpost, Remote, SessionId, SessionKind};
use engine::{chain, claims::Claims, open_files::raise_for};
use image_format::{ApplicationId, Digest, Epoch, MemberId, Timeline, rfc3339};
use registry::Reference;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::base::{self, Bases};
use super::error::{CheckpointError, CheckpointErrorKind};
use super::members::{Member, resolve};
use super::options::{CheckpointOptions, Destination, JoinTarget};
use super::record::{Tentative, TentativeMember};
use super::upload::{Sent, Upload};
use super::{
    CheckpointedMember, Watcher, attachments, broken_off, claim_containers, commit, examine, page_servers, remove,
    session, stop,
};
use crate::errors::At;
use crate::observer::Phase;
use crate::session::{SessionDriver, SessionHandle};
use crate::workspace::make_run_root;
use crate::workspace::{Purpose, Workspace};

/// Between two attempts to join, at first and at most.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How long it may take to find out whether anybody is there.
const PROBE: Duration = Duration::from_secs(5);

/// How long after an abort hooks may take that are told of it by the coordinating host.
const OBEDIENCE: Duration = Duration::from_millis(500);

/// The longest tag.
const LONGEST_TAG: usize = 128;

/// A checkpoint that is permanent, as a host knows it that took part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinReport {
    /// The global checkpoint.
    pub digest: Digest,
    /// Its tag.
    pub tag: String,
    /// The application.
    pub application: ApplicationId,
    /// Its number.
    pub epoch: Epoch,
    /// Whether the containers were stopped.
    pub stopped: bool,
    /// The members of this host.
    pub members: Vec<CheckpointedMember>,
}

/// Waits for the next checkpoint of the application that another host takes, and takes part in it with this host's containers.
///
/// Of the options those count that are about this host; of the destination the store and its reference. To be cancelled by
/// [`CheckpointOptions::cancel`].
///
/// # Errors
/// Why this checkpoint came to nothing, or this host cannot take part in any.
pub async fn join(
    joining: &JoinTarget,
    destination: &Destination,
    options: &CheckpointOptions,
    watcher: &dyn Watcher,
) -> Result<JoinReport, CheckpointError> {
    watcher.phase(Phase::Examine);
    let examining = |kind: CheckpointErrorKind| CheckpointError::new(Phase::Examine, kind);
    if !options.host.root {
        return Err(examining(CheckpointErrorKind::NotRoot));
    }
    let run_root = make_run_root(&options.run_root);
    let run_root = run_root.at(&options.run_root).map_err(|error| examining(error.into()))?;
    watcher.phase(Phase::Await);
    let (members, delegation, summons) =
        await_invitation(joining, options, watcher).await.map_err(|kind| CheckpointError::new(Phase::Await, kind))?;
    let destination = &destination.until(&options.cancel);
    let mut part = Part { joining, destination, options, delegation, watcher, run_root };
    let ended = part.take(members, &summons).await.map_err(|error| error.or_cancelled(&options.cancel));
    if let Err(error) = &ended {
        // Whoever has heard of it, or said it, does not mind to hear it again.
        part.give_up(error);
    }
    part.delegation.close().await;
    ended
}

/// Goes to the coordinating host again and again until a session begins.
async fn await_invitation(
    joining: &JoinTarget,
    options: &CheckpointOptions,
    watcher: &dyn Watcher,
) -> Result<(Vec<Member>, Delegation, BTreeMap<MemberId, Summons>), CheckpointErrorKind> {
    let (mut told, mut wait, mut first) = (String::new(), FIRST_WAIT, true);
    loop {
        let attending = async {
            // Engines are not to be asked all the time while nobody is there; but what is wrong with containers is said at once.
            if !std::mem::take(&mut first) {
                probe(&joining.address).await?;
            }
            attend(joining, options).await
        };
        let error = tokio::select! {
            () = options.cancel.cancelled() => CheckpointErrorKind::Cancelled,
            invited = attending => match invited {
                Ok(invited) => return Ok(invited),
                Err(error) => error,
            },
        };
        let for_good = match &error {
            CheckpointErrorKind::Cancelled | CheckpointErrorKind::Join(AttendError::Tls { .. }) => true,
            CheckpointErrorKind::Join(AttendError::Lost { .. }) => false,
            _ => joining.once,
        };
        if for_good {
            return Err(error);
        }
        let words = chain(&error);
        if words != told {
            watcher.warning(&format!("{words}; it is tried again until it works"));
            told = words;
        }
        tokio::select! {
            () = options.cancel.cancelled() => return Err(CheckpointErrorKind::Cancelled),
            () = sleep(wait) => wait = (wait * 2).min(LONGEST_WAIT),
        }
    }
}

/// Whether anybody listens there at all.
async fn probe(address: &str) -> Result<(), AttendError> {
    let connected = timeout(PROBE, TcpStream::connect(address)).await;
    match connected.unwrap_or_else(|late| Err(late.into())) {
        Ok(_) => Ok(()),
        Err(source) => Err(AttendError::Lost { address: address.to_owned(), source: source.into() }),
    }
}

async fn attend(
    joining: &JoinTarget,
    options: &CheckpointOptions,
) -> Result<(Vec<Member>, Delegation, BTreeMap<MemberId, Summons>), CheckpointErrorKind> {
    let members = resolve(options).await?;
    examine::refuse(&members)?;
    let attending = members.iter().map(|member| {
        let attend = Attend {
            member: member.id.clone(),
            application: options.application.clone(),
            engine: member.engine.to_string(),
            container: member.source.container.clone(),
            depends_on: member.depends_on.clone(),
            strict_dependencies: member.strict_dependencies,
        };
        (attend, remote(joining, &member.id))
    });
    let delegation = Delegation::attend(attending.collect()).await?;
    let invited = delegation.invited().await;
    match invited {
        Ok(summons) => Ok((members, delegation, summons)),
        Err(reason) => Err(CheckpointErrorKind::NotBegun { reason }),
    }
}

/// A member's way to the coordinating host.
fn remote(joining: &JoinTarget, member: &MemberId) -> Remote {
    Remote { address: joining.address.clone(), tls: joining.tls.of(member) }
}

/// This host's part of one checkpoint.
struct Part<'a> {
    joining: &'a JoinTarget,
    destination: &'a Destination,
    options: &'a CheckpointOptions,
    delegation: Delegation,
    watcher: &'a dyn Watcher,
    run_root: PathBuf,
}

impl Part<'_> {
    /// `before` are the members as they were when they joined.
    async fn take(
        &mut self,
        before: Vec<Member>,
        summons: &BTreeMap<MemberId, Summons>,
    ) -> Result<JoinReport, CheckpointError> {
        let begun = Instant::now();
        let dumping = |kind: CheckpointErrorKind| CheckpointError::new(Phase::Dump, kind);
        let first = self.agree(summons).map_err(dumping)?;
        let members = self.again(before, summons).await.map_err(dumping)?;
        // Held until the end.
        let mut claims = Claims::default();
        claim_containers(&mut claims, &members, self.options).map_err(dumping)?;
        let swept = super::sweep::sweep(&self.options.work_dir, self.watcher).await;
        swept.at(&self.options.work_dir).map_err(|error| dumping(error.into()))?;

        // The coordinating host may be this machine, and so may that of other members: folders have names of their own.
        let own = SessionId::random().map_err(|_| dumping(CheckpointErrorKind::Random))?;
        let workspace = Workspace::create(&self.options.work_dir, Purpose::Checkpoint, own);
        let mut workspace = workspace.at(&self.options.work_dir).map_err(|error| dumping(error.into()))?;
        let tentative = Tentative {
            session: first.session.session,
            run_root: self.run_root.join(format!("joined-{own}")),
            application: self.options.application.clone(),
            epoch: first.session.epoch,
            to: self.destination.reference.clone(),
            members: members.iter().map(super::tentative).collect(),
            timeline: Timeline { started: rfc3339(commit::now()), ..Timeline::default() },
            unsigned_base: None,
            packed: false,
        };
        let ended = self.dump_and_send(&members, &mut workspace, tentative, summons, &first.session, begun).await;
        remove(workspace, self.watcher);
        let (lasting, tentative, sent) = ended?;
        examine::ended(&members, self.watcher);
        if first.stop {
            stop(&self.options.host.engines, &members, lasting.digest, self.watcher).await?;
        }
        Ok(report(lasting, tentative, &sent, first.stop))
    }

    /// What the coordinating host wants is what was said on this host. All members are in one session.
    fn agree<'s>(&self, summons: &'s BTreeMap<MemberId, Summons>) -> Result<&'s Summons, CheckpointErrorKind> {
        let mut all = summons.values();
        let one = |reason: &str| CheckpointErrorKind::NotBegun { reason: reason.to_owned() };
        let first = all.next().ok_or_else(|| one("no member was invited"))?;
        if first.session.kind != SessionKind::Dump || all.any(|other| other.session != first.session) {
            return Err(one("the members were not invited to one checkpoint"));
        }
        let place = |reference: &str| reference.parse::<Reference>().map(|reference| reference.location().clone());
        match (place(&first.to), place(&self.destination.reference)) {
            (Ok(theirs), Ok(ours)) if theirs == ours => Ok(first),
            _ => Err(CheckpointErrorKind::OtherStore {
                theirs: first.to.chars().take(256).collect(),
                ours: self.destination.reference.clone(),
            }),
        }
    }

    /// The members as they are now, which is what they were when they joined.
    async fn again(
        &self,
        before: Vec<Member>,
        summons: &BTreeMap<MemberId, Summons>,
    ) -> Result<Vec<Member>, CheckpointErrorKind> {
        let mut members = resolve(self.options).await?;
        examine::refuse(&members)?;
        examine::warn(&self.options.host.engines, &members, self.watcher).await;
        raise_for(members.len())?;
        let ids = |members: &[Member]| -> BTreeSet<_> {
            members.iter().map(|member| (member.id.clone(), member.source.id.clone())).collect()
        };
        if let Some((member, _)) = ids(&members).symmetric_difference(&ids(&before)).next() {
            return Err(CheckpointErrorKind::Changed { member: member.clone() });
        }
        for member in &mut members {
            let depends_on = summons.get(&member.id).map(|summons| summons.depends_on.clone());
            member.depends_on = depends_on.unwrap_or_default();
        }
        Ok(members)
    }

    /// As on the coordinating host, but for where the session is.
    async fn dump_and_send(
        &self,
        members: &[Member],
        workspace: &mut Workspace,
        mut tentative: Tentative,
        summons: &BTreeMap<MemberId, Summons>,
        session: &Invitation,
        begun: Instant,
    ) -> Result<(Committed, Tentative, Sent), CheckpointError> {
        self.watcher.phase(Phase::Dump);
        let dumping = |kind: CheckpointErrorKind| CheckpointError::new(Phase::Dump, kind);
        workspace.write(&tentative).at(workspace.path()).map_err(|error| dumping(error.into()))?;
        let remotes = members.iter().map(|member| (member.id.clone(), remote(self.joining, &member.id))).collect();
        let (run_root, hook_program) = (&tentative.run_root, &self.options.hook_program);
        let session = &self.bounded(session);
        let outpost = Outpost::make(run_root, session.clone(), remotes, hook_program).await;
        let outpost = outpost.map_err(|error| dumping(error.into()))?;
        let ended = async {
            let bases = self.bases(summons, session, workspace).await;
            let mut pages = page_servers(self.options, members, workspace, &bases).map_err(dumping)?;
            let config = |member: &_| outpost.criu_config(member);
            let attachments = attachments(members, workspace, config, &mut pages).map_err(dumping)?;
            let handle = SessionHandle::Elsewhere(&self.delegation);
            let driver = SessionDriver::new(handle, &self.options.cancel, self.watcher);
            let engines = &self.options.host.engines;
            let dumping = session::run(driver, engines, members, attachments, workspace, self.watcher);
            let aborted = async {
                if let Outcome::Released { .. } = self.delegation.outcome().await {
                    pending::<()>().await;
                }
                // By then hooks know from the coordinating host, if that means well.
                sleep(OBEDIENCE).await;
                outpost.give_up();
                pending().await
            };
            let dumped = tokio::select! {
                dumped = dumping => dumped,
                never = aborted => never,
            };
            let dumped = dumped.map_err(|broken| broken_off(broken, self.options, members, config))?;
            let mut dumped = session::Dumping { pages, ..dumped };
            self.watcher.phase(Phase::Pack);
            let mut upload = Upload {
                bases: &bases,
                destination: self.destination,
                options: self.options,
                workspace,
                tentative: &mut tentative,
                watcher: self.watcher,
                begun,
                resumable: false,
            };
            let sent = tokio::select! {
                sent = upload.run(members, &mut dumped) => sent,
                ended = self.delegation.ending() => Err(not_permanent(Phase::Pack, ended.err().unwrap_or_default())),
            };
            // Whatever happened, nobody reads from them any more.
            drop(dumped.archives);
            dumped.engines.end().await;
            let sent = sent?;
            let lasting = self.await_permanent(&tentative, &sent).await?;
            Ok((lasting, sent))
        };
        let ended = ended.await;
        // No engine runs any more.
        if let Err(error) = outpost.close() {
            self.watcher.warning(&chain(&error));
        }
        // With the session's folder nothing is in it.
        let _ = std::fs::remove_dir(&tentative.run_root);
        let (lasting, sent) = ended?;
        Ok((lasting, tentative, sent))
    }

    /// The session with no longer a time to stand frozen than this host allows.
    fn bounded(&self, session: &Invitation) -> Invitation {
        let own = u64::try_from(self.options.deadlines.hold.as_millis()).unwrap_or(u64::MAX);
        if session.hold_ms > own {
            self.watcher.note(&format!(
                "the coordinating host lets containers stand frozen for {} ms, and this host for {own} ms",
                session.hold_ms
            ));
        }
        Invitation { hold_ms: session.hold_ms.min(own), ..session.clone() }
    }

    /// What the coordinating host finds in the line for the members of this one. It waits meanwhile, as long as it waits for anybody.
    async fn bases(&self, summons: &BTreeMap<MemberId, Summons>, session: &Invitation, workspace: &Workspace) -> Bases {
        let images = summons.iter().filter_map(|(member, summons)| Some((member.clone(), summons.base?)));
        // Half of the time for both: to read the line, and to fetch the bases.
        let within = Duration::from_millis(session.gather_ms / 4);
        let images = base::of_line(images.collect(), within, self.destination, self.options, self.watcher).await;
        base::find(images, within, self.destination, self.options, workspace.path(), self.watcher).await
    }

    async fn await_permanent(&self, tentative: &Tentative, sent: &Sent) -> Result<Committed, CheckpointError> {
        self.watcher.phase(Phase::Commit);
        for member in &tentative.members {
            let Some(manifest) = member.manifest.clone() else { continue };
            let stored = Stored {
                manifest,
                bytes: member.bytes,
                sent: sent.get(&member.id).copied().unwrap_or(0),
                packed: member.timeline.packed,
                sending: member.timeline.sent,
            };
            self.delegation.stored(&member.id, stored);
        }
        tokio::select! {
            ended = self.delegation.ending() => ended.map_err(|reason| not_permanent(Phase::Commit, reason)),
            () = self.options.cancel.cancelled() => {
                Err(CheckpointError::new(Phase::Commit, CheckpointErrorKind::Cancelled))
            }
        }
    }

    /// Tells the coordinating host, member by member.
    fn give_up(&self, error: &CheckpointError) {
        match &error.member {
            Some(member) => self.delegation.failed(member, Failure::new(&chain(error), &error.log_lines)),
            None => self.delegation.cancel(&chain(error)),
        }
    }
}

fn report(mut lasting: Committed, tentative: Tentative, sent: &Sent, stopped: bool) -> JoinReport {
    let member = |member: TentativeMember| {
        Some(CheckpointedMember {
            digest: member.manifest?.digest,
            timeline: lasting.timelines.remove(&member.id).unwrap_or(member.timeline),
            sent: sent.get(&member.id).copied().unwrap_or(0),
            id: member.id,
            container: member.container,
            engine: member.engine,
            bytes: member.bytes,
        })
    };
    let members = tentative.members.into_iter().filter_map(member).collect();
    let Committed { digest, tag, epoch, .. } = lasting;
    // It is another host's word.
    let tag = tag.chars().filter(char::is_ascii_graphic).take(LONGEST_TAG).collect();
    JoinReport { digest, tag, application: tentative.application, epoch, stopped, members }
}

fn not_permanent(phase: Phase, reason: String) -> CheckpointError {
    CheckpointError::new(phase, CheckpointErrorKind::NotPermanent { reason })
}
