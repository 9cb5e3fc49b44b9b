//! The restore of a set, from a digest in a store to containers that run: all of them, or none.

pub(crate) mod error;
pub(crate) mod fetch;
pub(crate) mod options;
mod plan;
pub(crate) mod preflight;
pub(crate) mod session;
pub(crate) mod set;
pub(crate) mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use coordinator::proto::BarrierCrossing;
use coordinator::{Rendezvous, SessionId, SessionKind, SessionPlan};
use engine::{
    Engine, EngineKind, Engines, Marks, Survey, Target, Volume, attach, chain,
    claims::Claims,
    open_files::{raise_for, raise_open_files},
    stored,
};
use futures_util::stream::StreamExt;
use image_format::{Descriptor, Epoch, LazyPages, MemberId};
use registry::{Store, cancellable, put_touched};
use tokio::sync::mpsc;

use crate::errors::{At, in_phase, of_phase};
use crate::host::Host;
use crate::leaving::{Leaving, Volumes};
use crate::memory::{self, Following, Keeper};
use crate::observer::{MemberStep, Observer, Phase};
use crate::restore::error::{RestoreError, RestoreErrorKind};
use crate::restore::fetch::Counted;
use crate::restore::options::RestoreOptions;
use crate::restore::plan::{Planned, plan};
use crate::restore::preflight::Problem;
use crate::restore::preflight::{Examined, examine};
use crate::restore::session::Passages;
use crate::restore::set::{Set, load};
use crate::restore::sweep::{remove_all, sweep};
use crate::session::{Broken, SessionDriver, SessionHandle};
use crate::workspace::{Purpose, Record, Workspace, make_run_root};
use registry::Trust;

/// The wait before the second attempt; doubled for each further one.
const BACK_OFF: Duration = Duration::from_millis(500);
/// The longest wait between two attempts.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(10);

/// A set that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreReport {
    /// Every member, in the order of the start.
    pub members: Vec<RestoredMember>,
    /// How many attempts it took.
    pub attempts: u32,
}

/// A member that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredMember {
    /// The member.
    pub id: MemberId,
    /// Its container's name.
    pub container: String,
    /// What runs it.
    pub engine: EngineKind,
    /// When it came to each barrier and went on from it, since its session's start.
    pub passages: Vec<BarrierCrossing>,
}

/// Restores a global checkpoint, or one member's image alone: verifies it, checks this machine, fetches everything, and
/// starts all members together.
///
/// To be cancelled by [`RestoreOptions::cancel`]. When the future is dropped instead, or its process killed, the hooks of
/// its session find nobody and fail closed, and the next restore with the same `work_dir` takes away what is left.
///
/// # Errors
/// Whatever keeps the set from running as a whole. Nothing of it runs then.
pub async fn restore(
    store: Arc<dyn Store>,
    root: Descriptor,
    options: &RestoreOptions,
    observer: &dyn Observer,
) -> Result<RestoreReport, RestoreError> {
    prepare(store, root, options, &Leaving::nothing(&options.host.engines), observer).await?.run().await
}

/// Does everything of a restore that can be done before its containers are made: verifies it, checks this machine as if what is leaving
/// were gone, fetches every byte and pulls base images. Of what is leaving nothing is touched.
///
/// # Errors
/// Whatever would keep the set from being restored.
pub async fn prepare<'a>(
    store: Arc<dyn Store>,
    root: Descriptor,
    options: &'a RestoreOptions,
    leaving: &Leaving,
    observer: &'a dyn Observer,
) -> Result<Prepared<'a>, RestoreError> {
    let store = cancellable(store, options.cancel.clone());
    let prepared = prepare_from(store, root, options, leaving, observer).await;
    prepared.map_err(|error| error.or_cancelled(&options.cancel))
}

async fn prepare_from<'a>(
    store: Arc<dyn Store>,
    root: Descriptor,
    options: &'a RestoreOptions,
    leaving: &Leaving,
    observer: &'a dyn Observer,
) -> Result<Prepared<'a>, RestoreError> {
    let checked = check(&store, &root, options, leaving, observer).await?;
    in_phase(observer, Phase::Fetch, fetch_all(checked, store, options, observer)).await
}

/// A set of which nothing is in the way, as far as can be known before its bytes are here.
struct Checked {
    set: Set,
    planned: Vec<Planned>,
    claims: Claims,
    surveys: BTreeMap<EngineKind, Survey>,
    volumes: Volumes,
}

/// Verifies a checkpoint, and checks this machine as if what is leaving were gone.
async fn check(
    store: &Arc<dyn Store>,
    root: &Descriptor,
    options: &RestoreOptions,
    leaving: &Leaving,
    observer: &dyn Observer,
) -> Result<Checked, RestoreError> {
    check_rights(&options.host)?;
    let set = trusted_set(store, root, options, observer).await?;
    let (planned, problems) = plan(&set, options);
    let claiming = async {
        raise_for(set.members.len())?;
        let (claims, busy) = claim(&planned, options)?;
        // An engine answers no questions about a container that is being restored.
        if busy.is_empty() { Ok((claims, problems)) } else { Err(refused(problems.into_iter().chain(busy))) }
    };
    let (claims, problems) = of_phase(Phase::Preflight, claiming).await?;
    let engines = &options.host.engines;
    in_phase(observer, Phase::Sweep, async {
        Ok(sweep(engines, &options.work_dir, observer).await.at(&options.work_dir)?)
    })
    .await?;
    let examining = async {
        let Examined { problems: found, engines, volumes } = examine(&set, &planned, store, options, leaving).await?;
        let (warnings, problems): (Vec<_>, Vec<_>) = problems.into_iter().chain(found).partition(Problem::is_warning);
        warnings.iter().for_each(|warning| observer.warning(&format!("{warning}; {}", warning.hint())));
        if problems.is_empty() { Ok((engines, volumes)) } else { Err(refused(problems)) }
    };
    let (surveys, volumes) = in_phase(observer, Phase::Preflight, examining).await?;
    Ok(Checked { set, planned, claims, surveys, volumes })
}

fn refused(problems: impl IntoIterator<Item = Problem>) -> RestoreErrorKind {
    RestoreErrorKind::Preflight { problems: problems.into_iter().collect() }
}

/// Fetches every byte of a set, and pulls base images.
async fn fetch_all<'a>(
    checked: Checked,
    store: Arc<dyn Store>,
    options: &'a RestoreOptions,
    observer: &'a dyn Observer,
) -> Result<Prepared<'a>, RestoreErrorKind> {
    let Checked { set, planned, claims, surveys, volumes } = checked;
    let session = SessionId::random().map_err(|_| RestoreErrorKind::Random)?;
    let run_root = make_run_root(&options.run_root).at(&options.run_root)?;
    let workspace = Workspace::create(&options.work_dir, Purpose::Restore, session).at(&options.work_dir)?;
    let pods = surveys.get(&EngineKind::Podman).map_or(&[][..], |survey| &survey.pods);
    let target = |planned: &Planned| planned.target(&workspace, session, &run_root, pods);
    let mut targets: Vec<Target> = planned.iter().map(target).collect();
    let follows = fetch::fetch(&set, &planned, &targets, &store, options, observer).await?;
    for (target, _) in targets.iter_mut().zip(&follows).filter(|(_, follows)| follows.is_some()) {
        target.follows = Some(workspace.make_work(&target.member).at(workspace.path())?);
    }
    pull_images(&options.host.engines, &planned, &surveys, observer).await?;
    let record = Record::new(session, &run_root, targets);
    Ok(Prepared {
        set,
        store,
        workspace,
        record,
        volumes,
        follows,
        following: Vec::new(),
        keeper: None,
        told: None,
        options,
        observer,
        _claims: claims,
    })
}

/// Checks whether this process may restore at all: the one check that needs nothing of the set, so that nobody waits for a
/// registry only to learn that.
///
/// # Errors
/// A refusal by the preflight, with [`Problem::NotRoot`] alone.
pub fn check_rights(host: &Host) -> Result<(), RestoreError> {
    if host.root {
        return Ok(());
    }
    Err(RestoreError::new(Phase::Preflight, refused([Problem::NotRoot])))
}

/// Checks everything that [`restore`] checks before it touches anything, and gives all problems of the whole set.
///
/// # Errors
/// A checkpoint that is not to be trusted, or a store that cannot be asked.
pub async fn preflight(
    store: Arc<dyn Store>,
    root: Descriptor,
    options: &RestoreOptions,
    observer: &dyn Observer,
) -> Result<Vec<Problem>, RestoreError> {
    Ok(preflight_beside(store, root, options, &Leaving::nothing(&options.host.engines), observer).await?.0)
}

/// The same as if what is leaving were gone; gives its volumes that have to go before the restore, too.
pub async fn preflight_beside(
    store: Arc<dyn Store>,
    root: Descriptor,
    options: &RestoreOptions,
    leaving: &Leaving,
    observer: &dyn Observer,
) -> Result<(Vec<Problem>, Volumes), RestoreError> {
    let store = cancellable(store, options.cancel.clone());
    let set = trusted_set(&store, &root, options, observer).await;
    let set = set.map_err(|error| error.or_cancelled(&options.cancel))?;
    let (planned, mut problems) = plan(&set, options);
    let examining = async { Ok(examine(&set, &planned, &store, options, leaving).await?) };
    let examined = in_phase(observer, Phase::Preflight, examining).await?;
    problems.extend(examined.problems);
    Ok((problems, examined.volumes))
}

async fn trusted_set(
    store: &Arc<dyn Store>,
    root: &Descriptor,
    options: &RestoreOptions,
    observer: &dyn Observer,
) -> Result<Set, RestoreError> {
    in_phase(observer, Phase::Verify, async {
        match &options.trust {
            Trust::InsecureNoVerify => observer.warning(&format!(
                "NOT VERIFIED: nobody vouches for {} in {}; whoever wrote it there runs what they like on this machine, \
                 as root",
                root.digest,
                store.name()
            )),
            Trust::Keys(keys) if keys.is_empty() => return Err(RestoreErrorKind::NoKeys),
            trust @ Trust::Keys(_) => {
                // What the root's digests lead to is checked when it is read, and completely before
                // anything is started.
                let checked = trust.check(store.as_ref(), root).await?;
                checked.map_err(|findings| RestoreErrorKind::Untrusted { findings })?;
            }
        }
        Ok(())
    })
    .await?;
    in_phase(observer, Phase::Load, async { Ok(load(store, root, options.jobs).await?) }).await
}

fn claim(planned: &[Planned], options: &RestoreOptions) -> Result<(Claims, Vec<Problem>), RestoreErrorKind> {
    let mut claims = Claims::default();
    let mut names = BTreeSet::new();
    let mut busy = Vec::new();
    for want in planned.iter().map(|planned| &planned.want) {
        // The same name twice is a problem of its own.
        if !names.insert((want.engine, &want.container)) {
            continue;
        }
        if !claims.claim_container(&options.run_root, want.engine, &want.container).at(&options.run_root)? {
            busy.push(Problem::Busy { container: want.container.clone() });
        }
    }
    Ok((claims, busy))
}

/// Pulls the base images that are not here. podman would do so by itself, in the middle of the session.
async fn pull_images(
    installed: &Engines,
    planned: &[Planned],
    surveys: &BTreeMap<EngineKind, Survey>,
    observer: &dyn Observer,
) -> Result<(), RestoreErrorKind> {
    let mut pulled = BTreeSet::new();
    for want in planned.iter().map(|planned| &planned.want) {
        let Some(base) = &want.base else { continue };
        let here = surveys.get(&want.engine).is_some_and(|survey| survey.images.contains(&base.id));
        let Some(image) = base.source().filter(|_| !here) else { continue };
        if !pulled.insert(&base.id) {
            continue;
        }
        let (member, image) = (want.member.clone(), image.to_owned());
        observer.member(&member, MemberStep::Pulling { image: image.clone() });
        let found = match installed.get(want.engine).pull(&image).await {
            Ok(found) => found,
            Err(source) => return Err(RestoreErrorKind::Pull { member, image, source }),
        };
        if found != base.id {
            return Err(RestoreErrorKind::OtherImage { member, image, found, expected: base.id.clone() });
        }
    }
    Ok(())
}

/// A set that can be restored, as far as can be known before: its dumps are all here, or their memory follows. Dropped, it leaves nothing.
pub struct Prepared<'a> {
    set: Set,
    store: Arc<dyn Store>,
    workspace: Workspace,
    record: Record,
    /// Volumes of what is leaving, which have to go first.
    pub volumes: Volumes,
    /// What of each target's memory is to follow.
    follows: Vec<Option<Arc<LazyPages>>>,
    /// It follows. Let go of only when it is there, or the tasks are dead.
    following: Vec<(MemberId, Following)>,
    /// Who kills the tasks if this process dies meanwhile.
    keeper: Option<Arc<Keeper>>,
    /// What came of it.
    told: Option<mpsc::UnboundedReceiver<(MemberId, u64)>>,
    options: &'a RestoreOptions,
    observer: &'a dyn Observer,
    /// Of the containers' names.
    _claims: Claims,
}

impl std::fmt::Debug for Prepared<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared")
            .field("workspace", &self.workspace)
            .field("volumes", &self.volumes)
            .finish_non_exhaustive()
    }
}

impl Prepared<'_> {
    /// Starts the members; tries until all of them run, or often enough.
    ///
    /// # Errors
    /// As [`restore`].
    pub async fn run(mut self) -> Result<RestoreReport, RestoreError> {
        let attempts = self.options.attempts.max(1);
        let mut attempt = 1;
        let mut wait = BACK_OFF;
        loop {
            let phase = Phase::Session { attempt };
            self.observer.phase(phase);
            let ran = match self.attempt(attempt).await {
                Ok(passages) => self.follow().await.map(|()| passages),
                Err(error) => Err(error),
            };
            let error = match ran {
                Ok(passages) => {
                    self.release_volumes().await;
                    return Ok(self.succeed(attempt, passages));
                }
                Err(error) => error,
            };
            if let Err(leftovers) = self.clean_up().await {
                return Err(RestoreError { leftovers, ..error });
            }
            let give_up = attempt == attempts || !matches!(*error.kind, RestoreErrorKind::Aborted { .. });
            if give_up || self.options.cancel.is_cancelled() {
                self.end();
                return Err(error);
            }
            self.observer.warning(&format!("attempt {attempt} failed: {error}; trying again"));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.options.cancel.cancelled() => {}
            }
            wait = (wait * 2).min(LONGEST_BACK_OFF);
            attempt += 1;
        }
    }

    /// One attempt; whatever it made is still there when it fails.
    async fn attempt(&mut self, attempt: u32) -> Result<Passages, RestoreError> {
        let phase = Phase::Session { attempt };
        let failed = |kind: RestoreErrorKind| RestoreError::new(phase, kind);
        if self.options.cancel.is_cancelled() {
            return Err(failed(RestoreErrorKind::Cancelled));
        }
        self.workspace.write(&self.record).at(self.workspace.path()).map_err(|error| failed(error.into()))?;
        // Before the session, in which members wait for each other with a deadline.
        self.make_volumes().await.map_err(failed)?;
        let plan = SessionPlan {
            kind: SessionKind::Restore,
            // The same session for every attempt, since its name is in the dumps as they are here; the epoch tells them
            // apart.
            id: self.record.session,
            epoch: Epoch(u64::from(attempt)),
            application: self.set.application.clone(),
            members: self.set.members.iter().map(|member| member.id.clone()).collect(),
            deadlines: self.options.deadlines,
            fence: self.options.fence.clone(),
        };
        let rendezvous = Rendezvous::start(&self.record.run_root, plan, &self.options.hook_program).await;
        let mut rendezvous = rendezvous.map_err(|error| failed(error.into()))?;
        let marks = self.record.since().map(|since| Marks { id: None, folder: None, since });
        let marks = marks.unwrap_or_else(Marks::nothing);
        let ran = match self.start_following().await.map_err(failed) {
            Ok(()) => {
                let (targets, waves) = (&self.record.targets, &self.set.waves);
                let (following, engines) = (&mut self.following, &self.options.host.engines);
                let handle = SessionHandle::Here(&mut rendezvous);
                let driver = SessionDriver::new(handle, &self.options.cancel, self.observer);
                Ok(session::run(driver, engines, targets, waves, &marks, following, self.observer).await)
            }
            Err(error) => Err(error),
        };
        let ran = ran.and_then(|ran| match ran {
            Ok(passages) => Ok(passages),
            Err(broken) => Err(self.broken(attempt, broken)),
        });
        if let Err(error) = rendezvous.close().await {
            self.observer.warning(&chain(&error));
        }
        ran
    }

    fn engine(&self, target: &Target) -> &dyn Engine {
        self.options.host.engines.get(target.engine).as_ref()
    }

    /// Makes the members' volumes, each once, with the content that they had.
    async fn make_volumes(&self) -> Result<(), RestoreErrorKind> {
        let session = self.record.session;
        let make = |(target, volume): (Target, Volume)| async move {
            let made = self.engine(&target).make_volume(&volume, session, &target.content(&volume)).await;
            made.map_err(|source| RestoreErrorKind::Volume { member: target.member, volume: volume.name, source })
        };
        // All are awaited, also when one fails: what was made is removed then.
        let making = futures_util::stream::iter(self.volumes_to_make()).map(make);
        let made = making.buffer_unordered(self.options.jobs.max(1)).collect::<Vec<_>>();
        tokio::select! {
            made = made => made.into_iter().collect(),
            () = self.options.cancel.cancelled() => Err(RestoreErrorKind::Cancelled),
        }
    }

    fn volumes_to_make(&self) -> Vec<(Target, Volume)> {
        let all = self.record.targets.iter().flat_map(|target| stored(&target.volumes).map(move |it| (target, it)));
        all.map(|(target, volume)| (target.clone(), volume.clone())).collect()
    }

    /// The containers have their volumes, and keep mounted what is mounted as them.
    async fn release_volumes(&self) {
        for (target, volume) in self.volumes_to_make() {
            if let Err(error) = self.engine(&target).release_volume(&volume).await {
                let (member, volume) = (&target.member, &volume.name);
                self.observer.warning(&format!(
                    "the volume {volume} of member {member} stays mounted when no container has it any more: {}; \
                     `podman volume unmount {volume}` unmounts it then",
                    chain(&error)
                ));
            }
        }
    }

    /// Makes ready for CRIU to hand over the processes whose memory follows.
    async fn start_following(&mut self) -> Result<(), RestoreErrorKind> {
        if self.follows.iter().all(Option::is_none) {
            return Ok(());
        }
        // Each child that a task forks meanwhile takes one.
        raise_open_files();
        let program = &self.options.keeper_program;
        let keeper = Arc::new(Keeper::start(program).at(program)?);
        self.keeper = Some(Arc::clone(&keeper));
        self.guard(&keeper, false).await?;
        let (tell, told) = mpsc::unbounded_channel();
        self.told = Some(told);
        for (number, (target, pages)) in self.record.targets.iter().zip(&self.follows).enumerate() {
            let (Some(work), Some(pages)) = (&target.follows, pages) else { continue };
            let member = &target.member;
            let blobs = Counted::new(member, &self.store, &tell, &self.options.cancel);
            let following = Following::start(work, (Arc::clone(&keeper), number), Arc::clone(pages), Box::new(blobs));
            let following = following.map_err(|source| RestoreErrorKind::Lazy { member: member.clone(), source })?;
            self.following.push((member.clone(), following));
            // runc reads both files; podman's runc only the one that the annotation names.
            let own = match target.engine {
                EngineKind::Podman => attach::own_lines(&target.own_config),
                EngineKind::Docker | EngineKind::Runc => Ok(Vec::new()),
            };
            let lines = [own.at(&target.own_config)?.as_slice(), memory::criu_lines(work).as_bytes()].concat();
            let config = OpenOptions::new().append(true).open(&target.criu_config);
            config.and_then(|mut file| file.write_all(&lines)).at(&target.criu_config)?;
        }
        Ok(())
    }

    /// Tells the keeper whom to kill if this process dies: the whole set, since none of it is to run then. What gets its id from podman
    /// has one only once it runs.
    async fn guard(&self, keeper: &Keeper, running: bool) -> Result<(), RestoreErrorKind> {
        let since = self.record.since().unwrap_or_default();
        for target in &self.record.targets {
            let id = match (&target.id, target.engine) {
                (Some(id), _) => Some(id.clone()),
                (None, EngineKind::Runc) => Some(target.container.clone()),
                (None, EngineKind::Podman | EngineKind::Docker) if running => {
                    self.engine(target).find(target).await.ok().flatten().map(|found| found.id)
                }
                (None, EngineKind::Podman | EngineKind::Docker) => None,
            };
            id.map_or(Ok(()), |id| keeper.guard(&id, since)).at(&self.options.keeper_program)?;
        }
        Ok(())
    }

    /// The members run: waits until their memory is all theirs.
    async fn follow(&mut self) -> Result<(), RestoreError> {
        let Some(keeper) = self.keeper.clone() else { return Ok(()) };
        self.guard(&keeper, true).await.map_err(|kind| RestoreError::new(Phase::Memory, kind))?;
        let Some(mut told) = self.told.take() else { return Ok(()) };
        self.observer.phase(Phase::Memory);
        for (member, following) in &self.following {
            self.observer.member(member, MemberStep::Fetching { bytes: following.bytes() });
        }
        let observer = self.observer;
        let mut ends = memory::ends(&mut self.following);
        let failed = |kind| Err(RestoreError::new(Phase::Memory, kind));
        loop {
            tokio::select! {
                biased;
                () = self.options.cancel.cancelled() => return failed(RestoreErrorKind::Cancelled),
                Some((member, bytes)) = told.recv() => observer.member(&member, MemberStep::Received { bytes }),
                done = ends.next() => match done {
                    None => break,
                    Some((member, Ok(()))) => observer.member(member, MemberStep::Fetched),
                    Some((member, Err(source))) => {
                        return failed(RestoreErrorKind::Memory { member: member.clone(), source });
                    }
                },
            }
        }
        drop(ends);
        keeper.done();
        self.keeper = None;
        self.remember().await;
        self.following.clear();
        Ok(())
    }

    /// Keeps what was asked for first beside the images, for the next time. Whoever may only read restores all the same.
    async fn remember(&self) {
        for (member, following) in &self.following {
            let Some((image, pages)) = following.touched() else { continue };
            let put = match pages {
                Ok(pages) => put_touched(self.store.as_ref(), &image, pages).await.map_err(|error| chain(&error)),
                Err(error) => Err(error.to_string()),
            };
            if let Err(reason) = put {
                self.observer.note(&format!("what {member} asked for first is not remembered: {reason}"));
            }
        }
    }

    fn broken(&self, attempt: u32, broken: Broken) -> RestoreError {
        let Broken { member, hook, reason, log_lines, .. } = broken;
        let kind = if self.options.cancel.is_cancelled() {
            RestoreErrorKind::Cancelled
        } else {
            RestoreErrorKind::Aborted { attempts: attempt, reason }
        };
        RestoreError { member, hook, log_lines, ..RestoreError::new(Phase::Session { attempt }, kind) }
    }

    async fn clean_up(&mut self) -> Result<(), Vec<String>> {
        self.observer.phase(Phase::CleanUp);
        let leftovers = remove_all(&self.options.host.engines, &self.record).await;
        // No task is left that could find zeros.
        self.following.clear();
        if !leftovers.is_empty() {
            // What could not be killed, the keeper goes on killing.
            return Err(leftovers);
        }
        if let Some(keeper) = self.keeper.take() {
            keeper.done();
        }
        Ok(())
    }

    fn succeed(mut self, attempts: u32, mut passages: Passages) -> RestoreReport {
        self.record.released = true;
        if let Err(error) = self.workspace.write(&self.record) {
            // The folder goes in a moment, and the record with it.
            self.observer.warning(&format!("that the set runs cannot be noted: {error}"));
        }
        let member = |target: &Target| RestoredMember {
            id: target.member.clone(),
            container: target.container.clone(),
            engine: target.engine,
            passages: passages.remove(&target.member).unwrap_or_default(),
        };
        let members = self.record.targets.iter().map(member).collect();
        self.end();
        RestoreReport { members, attempts }
    }

    /// The dumps and the record go; nothing but what runs is left.
    fn end(self) {
        let path = self.workspace.path().to_owned();
        if let Err(error) = self.workspace.remove() {
            self.observer.warning(&format!("{} cannot be removed: {error}", path.display()));
        }
    }
}
