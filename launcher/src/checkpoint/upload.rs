//! The second phase, while the tasks run again: every member is packed into the tentative store and sent from there, side by
//! side.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engine::{EngineKind, files::Copies};
use futures_util::stream::{FuturesUnordered, StreamExt};
use image_format::{Captured, Chain, DumpSource, MemberId, PackOptions, PackedImage, Span, pack};
use registry::{Bridge, CopyOptions, Create, Location, Settings, Store, copy};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::base::Bases;
use super::error::{CheckpointError, CheckpointErrorKind};
use super::members::Member;
use super::pages::MemberPages;
use super::record::{Tentative, TentativeMember};
use super::session::Dumping;
use super::thaw::{self, Frozen};
use super::{CheckpointOptions, Destination, Watcher, micros};
use crate::errors::At;
use crate::observer::{MemberStep, Phase};
use crate::session::EngineEnd;
use crate::workspace::Workspace;

/// Between a pipe's end and its engine's.
const ENGINE_NEWS: Duration = Duration::from_secs(5);

/// Bytes that were sent of each member.
pub(super) type Sent = BTreeMap<MemberId, u64>;

/// The second phase of one checkpoint.
pub(super) struct Upload<'a> {
    pub(super) destination: &'a Destination,
    pub(super) options: &'a CheckpointOptions,
    pub(super) workspace: &'a mut Workspace,
    pub(super) tentative: &'a mut Tentative,
    pub(super) watcher: &'a dyn Watcher,
    /// What the members' pages are compared with.
    pub(super) bases: &'a Bases,
    /// When the session began.
    pub(super) begun: Instant,
    /// Whether a checkpoint that is packed can be finished later: one of this host alone.
    pub(super) resumable: bool,
}

/// What becomes of one member.
enum Fate {
    /// In the tentative store, and in the store.
    Sent {
        packed: Box<TentativeMember>,
        bytes: u64,
    },
    /// In the tentative store.
    Packed {
        packed: Box<TentativeMember>,
        error: CheckpointErrorKind,
    },
    Lost {
        error: CheckpointErrorKind,
    },
}

/// What a member is packed from.
struct Parts<'a> {
    member: &'a Member,
    noted: TentativeMember,
    archive: Option<std::io::PipeReader>,
    copies: Option<Copies>,
    pages: Option<MemberPages>,
    /// How its engine ended.
    engine: oneshot::Receiver<Result<(), String>>,
}

impl Upload<'_> {
    /// Packs and sends every member of this host. When it fails and the tentative checkpoint is whole nevertheless, that is noted.
    pub(super) async fn run(&mut self, members: &[Member], dumping: &mut Dumping) -> Result<Sent, CheckpointError> {
        let failed = |kind: CheckpointErrorKind| CheckpointError::new(Phase::Pack, kind);
        let store = tentative_store(self.workspace, Create::Layout).await.map_err(failed)?;
        let permits = Semaphore::new(self.options.jobs.max(1));

        let mut ends: BTreeMap<MemberId, oneshot::Sender<Result<(), String>>> = BTreeMap::new();
        let mut fates = FuturesUnordered::new();
        for member in members {
            let Some(noted) = self.tentative.member(&member.id) else { continue };
            let (end, engine) = oneshot::channel();
            ends.insert(member.id.clone(), end);
            let (archive, copies) = (dumping.archives.remove(&member.id), dumping.copies.remove(&member.id));
            let pages = dumping.pages.remove(&member.id);
            let parts = Parts { member, noted: noted.clone(), archive, copies, pages, engine };
            fates.push(self.member(parts, &store, &permits));
        }
        let mut sent = Sent::new();
        let mut packed = Vec::new();
        let (mut lost, mut unsent) = (None, None);
        let mut frozen = Frozen::default();
        let mut looks = interval(thaw::PAUSE);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = looks.tick() => frozen.look(members, self.watcher),
                fate = fates.next() => match fate {
                    None => break,
                    Some(Fate::Sent { packed: member, bytes }) => {
                        sent.insert(member.id.clone(), bytes);
                        packed.push(*member);
                    }
                    Some(Fate::Packed { packed: member, error }) => {
                        unsent = unsent.or(Some((member.id.clone(), error)));
                        packed.push(*member);
                    }
                    Some(Fate::Lost { error }) => {
                        lost = Some(error);
                        break;
                    }
                },
                // Whoever waits for the member of one that is lost sees the end of what it wrote.
                Some(end) = dumping.engines.next() => {
                    if let EngineEnd::Ended(member, ended) = end
                        && let Some(end) = ends.remove(&member)
                    {
                        // Whoever no longer waits has failed by other means.
                        let _ = end.send(ended);
                    }
                }
                () = self.options.cancel.cancelled() => {
                    lost = Some(CheckpointErrorKind::Cancelled);
                    break;
                }
            }
        }
        drop(fates);
        if let Some(error) = lost {
            return Err(failed(error));
        }
        for packed in packed {
            if let Some(noted) = self.tentative.member_mut(&packed.id) {
                *noted = packed;
            }
        }
        self.tentative.packed = self.resumable;
        if let Err(error) = self.workspace.write(self.tentative).at(self.workspace.path()) {
            // What is not noted cannot be found again.
            self.tentative.packed = false;
            return Err(failed(error.into()));
        }
        match unsent {
            None => Ok(sent),
            Some((member, error)) => Err(CheckpointError { member: Some(member), ..failed(error) }),
        }
    }

    async fn member(&self, parts: Parts<'_>, store: &Arc<dyn Store>, permits: &Semaphore) -> Fate {
        // It is never closed.
        let _permit = permits.acquire().await;
        let mut noted = parts.noted.clone();
        let now = || micros(self.begun.elapsed());
        let begin = now();
        let image = match self.pack(parts, store).await {
            Ok(image) => image,
            Err(error) => return Fate::Lost { error },
        };
        let end = now();
        noted.timeline.packed = Some(Span { begin, end });
        noted.bytes = image.layers.iter().map(|layer| layer.descriptor.size).sum();
        noted.manifest = Some(image.manifest.descriptor());
        noted.annotations = image.chain.as_ref().map(Chain::annotations).unwrap_or_default();
        image.notes.iter().for_each(|note| self.watcher.note(&format!("{}: {note}", noted.id)));
        self.watcher.member(&noted.id, MemberStep::Packed { bytes: noted.bytes });
        match send(&noted, store, self.destination, self.options.jobs, self.watcher).await {
            Ok(bytes) => {
                noted.timeline.sent = Some(Span { begin: end, end: now() });
                self.watcher.member(&noted.id, MemberStep::Sent { bytes });
                Fate::Sent { packed: Box::new(noted), bytes }
            }
            Err(error) => Fate::Packed { packed: Box::new(noted), error },
        }
    }

    async fn pack(&self, parts: Parts<'_>, store: &Arc<dyn Store>) -> Result<PackedImage, CheckpointErrorKind> {
        let Parts { member, archive, copies, pages, mut engine, .. } = parts;
        let id = &member.id;
        let lost = |reason: String| CheckpointErrorKind::Engine { member: id.clone(), reason };
        if member.engine != EngineKind::Podman {
            // Its images are whole only when it has ended.
            (&mut engine).await.unwrap_or_else(|_| Err("its engine is gone".to_owned())).map_err(lost)?;
        }
        let captured =
            tokio::task::spawn_blocking(move || copies.map_or(Ok(Captured::default()), Copies::archive)).await?;
        let captured = captured.map_err(|source| CheckpointErrorKind::Files { member: id.clone(), source })?;
        let note = |note: &str| self.watcher.note(&format!("{id}: {note}"));
        let received = match pages {
            Some(pages) => {
                let received = tokio::task::spawn_blocking(move || pages.received()).await?;
                let received = received.map_err(|source| CheckpointErrorKind::Stream { member: id.clone(), source })?;
                match &received {
                    Some(received) => received.notes().iter().for_each(|text| note(text)),
                    None => note(
                        "its CRIU was told to send its memory over a socket, and wrote it to the disk all the same",
                    ),
                }
                received
            }
            None => None,
        };
        let options = PackOptions {
            member: Some(id.clone()),
            depends_on: member.depends_on.clone(),
            annotations: member.annotations(),
            compression: self.options.compression,
            base: self.bases.get(id).cloned(),
            chain: self.options.chain,
            scratch: self.workspace.path().to_owned(),
            ..PackOptions::default()
        };
        let bridge = Bridge::new(Handle::current(), Arc::clone(store));
        let name = format!("the dump of {}", member.source.container);
        let folder = self.workspace.folder(id).join("images");
        let config = member.bundle.as_ref().map(|bundle| bundle.join("config.json"));
        let packing = tokio::task::spawn_blocking(move || {
            let source = match archive {
                Some(pipe) => DumpSource::stream(&name, pipe, captured)?,
                None => DumpSource::open(&folder, config.as_deref())?.with_captured(&captured)?,
            };
            let source = match received {
                Some(received) => source.with_pages(received),
                None => source,
            };
            pack(source, &options, &bridge)
        });
        let packed = match packing.await? {
            Ok(packed) => packed,
            Err(source) => {
                // An archive that ends too early has its reason in the engine.
                if let Ok(Ok(Err(reason))) = timeout(ENGINE_NEWS, &mut engine).await {
                    return Err(lost(reason));
                }
                return Err(CheckpointErrorKind::Pack { member: id.clone(), source: Box::new(source) });
            }
        };
        if member.engine == EngineKind::Podman {
            let ended = timeout(ENGINE_NEWS, &mut engine).await;
            let ended = ended.unwrap_or(Ok(Err("its engine wrote the dump and does not end".to_owned())));
            ended.unwrap_or_else(|_| Err("its engine is gone".to_owned())).map_err(lost)?;
        }
        store.put_manifest(&packed.manifest, None).await?;
        Ok(packed)
    }
}

/// The layout in which members are until they are permanent.
async fn tentative_store(workspace: &Workspace, create: Create) -> Result<Arc<dyn Store>, CheckpointErrorKind> {
    Ok(registry::open(&Location::Layout(workspace.store()), &Settings::default(), create).await?)
}

/// Sends every member of a tentative checkpoint that is whole.
pub(super) async fn send_all(
    workspace: &Workspace,
    tentative: &Tentative,
    destination: &Destination,
    options: &CheckpointOptions,
    watcher: &dyn Watcher,
) -> Result<Sent, CheckpointError> {
    watcher.phase(Phase::Pack);
    let failed = |kind: CheckpointErrorKind| CheckpointError::new(Phase::Pack, kind);
    let store = tentative_store(workspace, Create::No).await.map_err(failed)?;
    let mut sent = Sent::new();
    for member in &tentative.members {
        let bytes = tokio::select! {
            bytes = send(member, &store, destination, options.jobs, watcher) => bytes,
            () = options.cancel.cancelled() => Err(CheckpointErrorKind::Cancelled),
        };
        let bytes = bytes.map_err(|error| CheckpointError { member: Some(member.id.clone()), ..failed(error) })?;
        watcher.member(&member.id, MemberStep::Sent { bytes });
        sent.insert(member.id.clone(), bytes);
    }
    Ok(sent)
}

/// Sends one member's image; gives the bytes that were not there.
async fn send(
    member: &TentativeMember,
    store: &Arc<dyn Store>,
    destination: &Destination,
    jobs: usize,
    watcher: &dyn Watcher,
) -> Result<u64, CheckpointErrorKind> {
    let Some(manifest) = &member.manifest else { return Ok(0) };
    let options = CopyOptions { jobs, progress: watcher, ..CopyOptions::default() };
    let copied = copy(&**store, manifest, &*destination.store, &options).await;
    let copied = copied.map_err(|source| CheckpointErrorKind::Send { member: member.id.clone(), source })?;
    Ok(copied.bytes_sent)
}
