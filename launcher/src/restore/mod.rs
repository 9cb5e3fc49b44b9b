//! The restore of a set, from a digest in a store to containers that run: all of them, or none.

pub(crate) mod error;
pub(crate) mod fetch;
pub(crate) mod options;
mod plan;
pub(crate) mod preflight;
pub(crate) mod session;
pub(crate) mod set;
pub(crate) mod sweep;

use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use coordinator::proto::BarrierCrossing;
use coordinator::{Rendezvous, SessionId, SessionKind, SessionPlan};
use engine::{
    Engine, EngineKind, Engines, Marks, Target, Volume, attach, chain,
    claims::Claims,
    open_files::{raise_for, raise_open_files},
    stored,
};
use futures_util::stream::StreamExt;
use image_format::{Descriptor, Epoch, LazyPages, MemberId};
use registry::{Store, cancellable, put_touched};
use tokio::sync::mpsc;

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
    check_rights(&options.host)?;
    let set = trusted_set(&store, &root, options, observer).await?;
    let (planned, problems) = plan(&set, options);

    let in_phase = |phase| move |kind: RestoreErrorKind| RestoreError::new(phase, kind);
    raise_for(set.members.len()).map_err(|error| RestoreError::new(Phase::Preflight, error))?;
    let (claims, busy) = claim(&planned, options).map_err(in_phase(Phase::Preflight))?;
    if !busy.is_empty() {
        // An engine answers no questions about a container that is being restored.
        let problems = problems.into_iter().chain(busy).collect();
        return Err(RestoreError::new(Phase::Preflight, RestoreErrorKind::Preflight { problems }));
    }
    observer.phase(Phase::Sweep);
    let swept = sweep(&options.host.engines, &options.work_dir, observer).await;
    swept
        .map_err(|source| RestoreErrorKind::File { path: options.work_dir.clone(), source })
        .map_err(in_phase(Phase::Sweep))?;

    observer.phase(Phase::Preflight);
    let examined = examine(&set, &planned, &store, options, leaving).await;
    let Examined { problems: found, engines, volumes } =
        examined.map_err(|error| RestoreError::new(Phase::Preflight, error))?;
    let (warnings, problems): (Vec<_>, Vec<_>) = problems.into_iter().chain(found).partition(Problem::is_warning);
    warnings.iter().for_each(|warning| observer.warning(&format!("{warning}; {}", warning.hint())));
    if !problems.is_empty() {
        return Err(RestoreError::new(Phase::Preflight, RestoreErrorKind::Preflight { problems }));
    }

    observer.phase(Phase::Fetch);
    let session = SessionId::random().map_err(|_| RestoreError::new(Phase::Fetch, RestoreErrorKind::Random))?;
    let run_root = make_run_root(&options.run_root);
    let run_root = run_root.map_err(|source| RestoreErrorKind::File { path: options.run_root.clone(), source });
    let run_root = run_root.map_err(in_phase(Phase::Fetch))?;
    let workspace = Workspace::create(&options.work_dir, Purpose::Restore, session);
    let workspace = workspace.map_err(|source| RestoreErrorKind::File { path: options.work_dir.clone(), source });
    let workspace = workspace.map_err(in_phase(Phase::Fetch))?;
    let pods = engines.get(&EngineKind::Podman).map_or(&[][..], |survey| &survey.pods);
    let target = |planned: &Planned| planned.target(&workspace, session, &run_root, pods);
    let mut targets: Vec<Target> = planned.iter().map(target).collect();
    let fetched = fetch::fetch(&set, &planned, &targets, &store, options, observer).await;
    let follows = fetched.map_err(in_phase(Phase::Fetch))?;
    for (target, _) in targets.iter_mut().zip(&follows).filter(|(_, follows)| follows.is_some()) {
        let work = workspace.make_work(&target.member);
        let work = work.map_err(|source| RestoreErrorKind::File { path: workspace.path().to_owned(), source });
        target.follows = Some(work.map_err(in_phase(Phase::Fetch))?);
    }
    pull_images(&options.host.engines, &planned, &engines, observer).await.map_err(in_phase(Phase::Fetch))?;

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
    let problems = vec![Problem::NotRoot];
    Err(RestoreError::new(Phase::Preflight, RestoreErrorKind::Preflight { problems }))
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
    observer.phase(Phase::Preflight);
    let examined = examine(&set, &planned, &store, options, leaving).await;
    let examined = examined.map_err(|error| RestoreError::new(Phase::Preflight, error))?;
    problems.extend(examined.problems);
    Ok((problems, examined.volumes))
}

async fn trusted_set(
    store: &Arc<dyn Store>,
    root: &Descriptor,
    options: &RestoreOptions,
    observer: &dyn Observer,
) -> Result<Set, RestoreError> {
    observer.phase(Phase::Verify);
    let failed = |kind: RestoreErrorKind| RestoreError::new(Phase::Verify, kind);
    match &options.trust {
        Trust::InsecureNoVerify => observer.warning(&format!(
            "NOT VERIFIED: nobody vouches for {} in {}; whoever wrote it there runs what they like on this machine, as root",
            root.digest,
            store.name()
        )),
        Trust::Keys(keys) if keys.is_empty() => return Err(failed(RestoreErrorKind::NoKeys)),
        trust @ Trust::Keys(_) => {
            // What the root's digests lead to is checked when it is read, and completely before
            // anything is started.
            let checked = trust.check(store.as_ref(), root).await.map_err(|error| failed(error.into()))?;
            checked.map_err(|findings| failed(RestoreErrorKind::Untrusted { findings }))?;
        }
    }
    observer.phase(Phase::Load);
    load(store, root, options.jobs).await.map_err(|error| RestoreError::new(Phase::Load, error))
}

fn claim(planned: &[Planned], options: &RestoreOptions) -> Result<(Claims, Vec<Problem>), RestoreErrorKind> {
    let mut claims = Claims::default();
    let mut names = std::collections::BTreeSet::new();
    let mut busy = Vec::new();
    for want in planned.iter().map(|planned| &planned.want) {
        // The same name twice is a problem of its own.
        if !names.insert((want.engine, &want.container)) {
            continue;
        }
        let claimed = claims.claim_container(&options.run_root, want.engine, &want.container);
        if !claimed.map_err(|source| RestoreErrorKind::File { path: options.run_root.clone(), source })? {
            busy.push(Problem::Busy { container: want.container.clone() });
        }
    }
    Ok((claims, busy))
}

/// Pulls the base images that are not here. podman would do so by itself, in the middle of the session.
async fn pull_images(
    installed: &Engines,
    planned: &[Planned],
    engines: &std::collections::BTreeMap<EngineKind, engine::Survey>,
    observer: &dyn Observer,
) -> Result<(), RestoreErrorKind> {
    let mut pulled = std::collections::BTreeSet::new();
    for want in planned.iter().map(|planned| &planned.want) {
        let Some(base) = &want.base else { continue };
        let here = engines.get(&want.engine).is_some_and(|survey| survey.images.contains(&base.id));
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
        let written = self.workspace.write(&self.record);
        let path = self.workspace.path().to_owned();
        written.map_err(|source| failed(RestoreErrorKind::File { path, source }))?;
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
        let keeper = Keeper::start(program).map_err(|source| RestoreErrorKind::File { path: program.clone(), source });
        let keeper = Arc::new(keeper?);
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
            let path = &target.own_config;
            let own = own.map_err(|source| RestoreErrorKind::File { path: path.clone(), source })?;
            let config = &target.criu_config;
            let written = OpenOptions::new().append(true).open(config);
            let lines = [own.as_slice(), memory::criu_lines(work).as_bytes()].concat();
            let written = written.and_then(|mut file| file.write_all(&lines));
            written.map_err(|source| RestoreErrorKind::File { path: config.clone(), source })?;
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
            let told = id.map_or(Ok(()), |id| keeper.guard(&id, since));
            told.map_err(|source| RestoreErrorKind::File { path: self.options.keeper_program.clone(), source })?;
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
