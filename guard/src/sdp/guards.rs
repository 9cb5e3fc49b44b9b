//! The guards of all processing blocks of this machine, as the Configuration DB wants them.
//!
//! ```text
//!  each second: what stands in the database ─┐
//!               containers and their labels ─┴─▶ desired ─▶ roster ─▶ a lease, then a guard │ orders to it │ its end
//!  etcd does not answer: nothing is concluded; a lease that cannot be renewed ends its guard before another could have it
//!  a checkpoint is permanent ─▶ its digests into the catalogue, by the lease's number
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::{EngineKind, Engines, chain};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::catalogue::CatalogueEntry;
use super::database::Database;
use super::desired::{BlockPlan, Container, DEPLOYMENT_LABEL, Snapshot, desired};
use super::etcd::DatabaseError;
use super::ids::BlockId;
use super::lease::Acquired;
use super::roster::{Guarded, GuardedState, Step, steps};
use crate::{GuardError, GuardEvent, GuardMetrics, GuardOptions, GuardWatcher, Orders, guard, guard_state};

/// From one look to the next.
const LOOK: Duration = Duration::from_secs(1);
/// After which a block is tried again that could not be guarded, and a database that did not answer.
const AGAIN: Duration = Duration::from_secs(5);
/// The time of a lease: so long a block is nobody's when its guard was killed.
const LEASE: Duration = Duration::from_secs(9);

/// One block's guard, before it begins.
#[derive(Debug)]
pub struct BlockGuard {
    /// How it guards; its token and its `cancel` are set by whoever begins it.
    pub options: GuardOptions,
    /// What it counts.
    pub metrics: Arc<GuardMetrics>,
}

/// Whoever knows stores, keys and people.
pub trait BlockGuards {
    /// How a block is guarded, or in words why it cannot be.
    fn prepare(&self, plan: &BlockPlan) -> impl Future<Output = Result<BlockGuard, String>>;
    /// Who is told what its guard does.
    fn watcher(&self, block: &BlockId) -> Arc<dyn GuardWatcher>;
    /// A block is not guarded any more, nor was it given up.
    fn ended(&self, block: &BlockId);
    /// Something about a block itself, or about all of them; said once as long as it stays so.
    fn tell(&self, block: Option<&BlockId>, words: &str);
}

/// Guards what the database says, until it is cancelled. The applications run on then.
pub async fn guard_blocks<G: BlockGuards>(
    database: Arc<Database>,
    guards: &G,
    state_dir: &Path,
    cancel: &CancellationToken,
) {
    let mut all = Guards {
        engines: Engines::here(),
        database,
        guards,
        state_dir: state_dir.to_owned(),
        guarded: BTreeMap::new(),
        reins: BTreeMap::new(),
        again: BTreeMap::new(),
        told: BTreeMap::new(),
        at_work: JoinSet::new(),
    };
    // Guards go on while the database is asked; what they do is not all of it fit to go from thread to thread.
    LocalSet::new().run_until(all.run(cancel)).await;
}

/// How a guard is told something.
struct Reins {
    orders: watch::Sender<Orders>,
    cancel: CancellationToken,
}

struct Guards<'g, G> {
    engines: Engines,
    database: Arc<Database>,
    guards: &'g G,
    state_dir: PathBuf,
    guarded: BTreeMap<BlockId, Guarded>,
    reins: BTreeMap<BlockId, Reins>,
    /// Blocks that are let alone until then.
    again: BTreeMap<BlockId, Instant>,
    /// What was said last of each block, and of all.
    told: BTreeMap<Option<BlockId>, String>,
    at_work: JoinSet<(BlockId, Result<(), GuardError>)>,
}

impl<G: BlockGuards> Guards<'_, G> {
    async fn run(&mut self, cancel: &CancellationToken) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Some(ended) = self.at_work.join_next() => self.ended(ended),
                _ = look.tick() => self.look(cancel).await,
            }
        }
        self.reins.values().for_each(|reins| reins.cancel.cancel());
        while let Some(ended) = self.at_work.join_next().await {
            self.ended(ended);
        }
    }

    async fn look(&mut self, cancel: &CancellationToken) {
        let (snapshot, containers) = match self.find().await {
            Ok(found) => found,
            Err(words) => {
                self.tell(None, words);
                // Whoever is to be stopped by this is stopped by his lease.
                let _ = cancel.run_until_cancelled(tokio::time::sleep(AGAIN)).await;
                return;
            }
        };
        self.told.remove(&None);
        for step in steps(desired(&snapshot, &containers), &self.guarded) {
            match step {
                Step::Begin(block, plan, orders) => self.begin(block, plan, orders).await,
                Step::Order(block, orders) => self.order(&block, orders),
                Step::End(block) => self.end(&block),
                Step::Forget(block) => {
                    self.guarded.remove(&block);
                    self.guards.ended(&block);
                }
                Step::Tell(block, words) => self.tell(Some(&block), words),
            }
        }
    }

    /// What stands in the database, and what is on this machine.
    async fn find(&self) -> Result<(Snapshot, Vec<Container>), String> {
        let snapshot = self.database.now().await.map_err(|error| chain(&error))?;
        let found =
            self.engines.get(EngineKind::Podman).with_label(DEPLOYMENT_LABEL).await.map_err(|error| chain(&error))?;
        let mut containers: Vec<_> = found.into_iter().map(|(name, labels)| Container { name, labels }).collect();
        for block in snapshot.blocks() {
            let Ok(application) = block.as_str().parse() else { continue };
            let state = guard_state(&self.state_dir, &application);
            let state = state.map_err(|error| format!("the state of the guard of {block} cannot be read: {error}"))?;
            // Those of an application that was being rolled back when its guard was killed.
            Container::add_missing(&mut containers, &state.map(|state| state.members).unwrap_or_default());
        }
        Ok((snapshot, containers))
    }

    async fn begin(&mut self, block: BlockId, plan: BlockPlan, orders: Orders) {
        if self.again.get(&block).is_some_and(|until| Instant::now() < *until) {
            return;
        }
        match self.try_begin(&block, plan, orders).await {
            Ok(()) => drop(self.told.remove(&Some(block))),
            Err(words) => {
                self.again.insert(block.clone(), Instant::now() + AGAIN);
                self.tell(Some(&block), words);
            }
        }
    }

    async fn try_begin(&mut self, block: &BlockId, plan: BlockPlan, orders: Orders) -> Result<(), String> {
        let BlockGuard { mut options, metrics } = self.guards.prepare(&plan).await?;
        let held = match self.database.acquire(block, LEASE).await.map_err(|error| chain(&error))? {
            Acquired::Held(held) => held,
            Acquired::Taken { owner } => {
                return Err(format!(
                    "another guard has it: {}",
                    owner.split_whitespace().collect::<Vec<_>>().join(" ")
                ));
            }
        };
        // Its end is the guard's end, as is being told to.
        let cancel = held.over().child_token();
        options.checkpoint.cancel = cancel.clone();
        options.restore.cancel = cancel.clone();
        options.token = Some(held.token());
        let (sender, receiver) = watch::channel(orders);
        let (entries, written) = mpsc::unbounded_channel();
        let watcher = Recorder { plan: plan.clone(), entries, inner: self.guards.watcher(block) };
        let recording =
            record(Arc::clone(&self.database), block.clone(), held.token(), written, Arc::clone(&watcher.inner));
        let name = block.clone();
        self.at_work.spawn_local(async move {
            let guarded = async {
                let ended = guard(&options, receiver, &metrics, &watcher).await;
                // Whoever writes ends with what there is to be written.
                drop(watcher);
                ended
            };
            let (ended, ()) = tokio::join!(guarded, recording);
            let ended = if held.holds() { ended } else { ended.and(Err(GuardError::LeaseOver)) };
            // If it cannot be said, it runs out by itself.
            let _ = held.release().await;
            (name, ended)
        });
        self.reins.insert(block.clone(), Reins { orders: sender, cancel });
        self.guarded.insert(block.clone(), Guarded { plan, orders, state: GuardedState::AtWork });
        Ok(())
    }

    fn order(&mut self, block: &BlockId, orders: Orders) {
        if let (Some(guarded), Some(reins)) = (self.guarded.get_mut(block), self.reins.get(block)) {
            guarded.orders = orders;
            guarded.plan.interval = orders.interval;
            reins.orders.send_replace(orders);
        }
    }

    fn end(&mut self, block: &BlockId) {
        if let (Some(guarded), Some(reins)) = (self.guarded.get_mut(block), self.reins.get(block)) {
            guarded.state = GuardedState::Ending;
            reins.cancel.cancel();
        }
    }

    fn ended(&mut self, ended: Result<(BlockId, Result<(), GuardError>), tokio::task::JoinError>) {
        // Only the end of the runtime comes to an error.
        let Ok((block, ended)) = ended else { return };
        self.reins.remove(&block);
        let gave_up = matches!(ended, Err(GuardError::GaveUp { .. }));
        match self.guarded.get_mut(&block) {
            Some(guarded) if gave_up => guarded.state = GuardedState::GivenUp,
            _ => {
                self.guarded.remove(&block);
                self.guards.ended(&block);
            }
        }
        if let Err(error) = ended {
            self.again.insert(block.clone(), Instant::now() + AGAIN);
            self.tell(Some(&block), chain(&error));
        } else {
            self.tell(Some(&block), "it is not guarded any more; what runs of it runs on".to_owned());
        }
    }

    fn tell(&mut self, block: Option<&BlockId>, words: String) {
        let key = block.cloned();
        if self.told.get(&key) != Some(&words) {
            self.guards.tell(block, &words);
            self.told.insert(key, words);
        }
    }
}

/// Passes on what a guard tells, and has permanent checkpoints written down.
struct Recorder {
    plan: BlockPlan,
    entries: mpsc::UnboundedSender<CatalogueEntry>,
    inner: Arc<dyn GuardWatcher>,
}

impl GuardWatcher for Recorder {
    fn event(&self, event: GuardEvent<'_>) {
        if let GuardEvent::Checkpointed { report, .. } = &event {
            let entry = CatalogueEntry {
                application: report.application.clone(),
                epoch: report.epoch,
                created: report.timeline.started.clone(),
                digest: report.digest,
                repository: self.plan.repository.location().clone(),
                members: report.members.iter().map(|member| (member.id.clone(), member.digest)).collect(),
                predecessor: report.predecessor,
            };
            // The other end lives as long as this one.
            let _ = self.entries.send(entry);
        }
        self.inner.event(event);
    }
}

/// Writes entries into the catalogue, as long as there are any to come; a database that does not answer is asked again.
async fn record(
    database: Arc<Database>,
    block: BlockId,
    token: u64,
    mut entries: mpsc::UnboundedReceiver<CatalogueEntry>,
    watcher: Arc<dyn GuardWatcher>,
) {
    while let Some(entry) = entries.recv().await {
        while let Err(error) = database.record(&block, &entry, Some(token)).await {
            if matches!(error, DatabaseError::Unreachable { .. }) && !entries.is_closed() {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            let epoch = entry.epoch;
            let warning = format!("checkpoint {epoch} is not in the Configuration DB: {}", chain(&error));
            watcher.event(GuardEvent::Warning { warning: &warning });
            break;
        }
    }
}
