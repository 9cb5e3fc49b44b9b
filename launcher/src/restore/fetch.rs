//! Brings every dump onto this machine before anything is started: in parallel, every byte checked on the way.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use engine::{CRIU_CONFIG, EngineKind, MARK, OWN_CONFIG, Target, Volume, bundle, stored};
use image_format::files::HoleWriter;
use image_format::{
    BlobSource, CheckpointImage, Compression, Descriptor, LazyPages, MemberId, UnpackError, UnpackOptions,
    unpack_archive, unpack_archive_lazily, unpack_folder, unpack_folder_lazily,
};
use registry::{Bridge, Store, cancellable, touched};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::memory;
use crate::observer::{MemberStep, Observer};
use crate::restore::error::RestoreErrorKind;
use crate::restore::options::RestoreOptions;
use crate::restore::plan::Planned;
use crate::restore::set::{Member, Set};

/// Bytes that are counted before anybody is told.
const TELL: u64 = 1 << 20;

/// What one member's transfer needs; it runs on a thread of its own.
struct Job {
    member: MemberId,
    image: CheckpointImage,
    target: Target,
    config: Option<serde_json::Value>,
    lazy: bool,
    /// The container that was dumped had been restored lazily, and has the annotations of that.
    restored_lazily: bool,
    blobs: Counted,
    store: Arc<dyn Store>,
    handle: Handle,
}

/// A dump that is here.
#[derive(Debug, Default)]
struct Fetched {
    /// What of its memory is to follow.
    follows: Option<LazyPages>,
    /// Why all of it is here, though it was to follow.
    whole: Option<String>,
}

/// Fetches all, [`RestoreOptions::jobs`] at a time, and gives what is to follow of each, in their order. After an error, or once
/// cancelled, nothing is written any more on return.
pub(crate) async fn fetch(
    set: &Set,
    planned: &[Planned],
    targets: &[Target],
    store: &Arc<dyn Store>,
    options: &RestoreOptions,
    observer: &dyn Observer,
) -> Result<Vec<Option<Arc<LazyPages>>>, RestoreErrorKind> {
    let RestoreOptions { jobs, cancel, .. } = options;
    let mut lazy = options.lazy;
    if let Some(reason) = memory::unable().filter(|_| lazy) {
        observer.note(&format!("all memory is fetched before anything runs: {reason}"));
        lazy = false;
    }
    // Cancelled by an error as well.
    let stop = cancel.child_token();
    let store = &cancellable(Arc::clone(store), stop.clone());
    let mut follows: Vec<Option<Arc<LazyPages>>> = vec![None; targets.len()];
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut waiting = set.members.iter().zip(planned).zip(targets);
    let mut running = JoinSet::new();
    let mut failed = None;
    loop {
        while failed.is_none()
            && running.len() < (*jobs).max(1)
            && let Some(((member, planned), target)) = waiting.next()
        {
            observer.member(&member.id, MemberStep::Fetching { bytes: stored_size(member) });
            let blobs = Counted::new(&member.id, store, &tell, &stop);
            let config = planned.bundle.as_ref().map(|(_, config)| config.clone());
            let restored_lazily = member.facts.spec_annotations.contains_key(OWN_CONFIG);
            let (member, image, target) = (member.id.clone(), member.image.clone(), target.clone());
            let (store, handle) = (Arc::clone(store), Handle::current());
            let job = Job { member, image, target, config, lazy, restored_lazily, blobs, store, handle };
            running.spawn_blocking(move || (job.member.clone(), job.run()));
        }
        tokio::select! {
            Some((member, bytes)) = told.recv() => observer.member(&member, MemberStep::Received { bytes }),
            ended = running.join_next() => match ended {
                None => break,
                Some(Ok((member, Ok(fetched)))) => {
                    observer.member(&member, MemberStep::Fetched);
                    if let Some(reason) = fetched.whole {
                        observer.note(&format!("all memory of {member} is fetched before anything runs: {reason}"));
                    }
                    let its = targets.iter().zip(&mut follows).find(|(target, _)| target.member == member);
                    if let Some((_, place)) = its {
                        *place = fetched.follows.map(Arc::new);
                    }
                }
                Some(Ok((_, Err(error)))) => {
                    stop.cancel();
                    failed.get_or_insert(error);
                }
                Some(Err(error)) => {
                    stop.cancel();
                    failed.get_or_insert(crate::LoadError::Interrupted(error).into());
                }
            },
        }
    }
    match failed {
        _ if cancel.is_cancelled() => Err(RestoreErrorKind::Cancelled),
        Some(error) => Err(error),
        None => Ok(follows),
    }
}

fn stored_size(member: &Member) -> u64 {
    member.image.layers().iter().fold(0, |sum, layer| sum.saturating_add(layer.descriptor.size))
}

impl Job {
    fn run(self) -> Result<Fetched, RestoreErrorKind> {
        if !self.lazy {
            return self.write(false);
        }
        match self.write(true) {
            Err(RestoreErrorKind::Fetch { member, source }) => match *source {
                UnpackError::NotLazy { reason, .. } => Ok(Fetched { whole: Some(reason), ..self.write(false)? }),
                other => Err(RestoreErrorKind::Fetch { member, source: Box::new(other) }),
            },
            written => written,
        }
    }

    fn write(&self, lazy: bool) -> Result<Fetched, RestoreErrorKind> {
        let failed = |source| RestoreErrorKind::Fetch { member: self.member.clone(), source: Box::new(source) };
        let mut follows = match self.target.engine {
            EngineKind::Podman => self.write_archive(lazy).map_err(failed)?,
            EngineKind::Docker => self.write_dump(lazy).map_err(failed)?,
            EngineKind::Runc => self.write_folders(lazy)?,
        };
        if let Some(volume) = stored(&self.target.volumes).find(|volume| !self.target.content(volume).exists()) {
            let (member, volume) = (self.member.clone(), volume.name.clone());
            return Err(RestoreErrorKind::NoContent { member, volume });
        }
        if let Some(pages) = &mut follows {
            // Pages that were asked for first the last time. It goes without them, too.
            if let Ok(Some(stream)) = self.handle.block_on(touched(self.store.as_ref(), &pages.image())) {
                let _ = pages.remember(&stream);
            }
        }
        Ok(Fetched { follows, whole: None })
    }

    /// Temporary files go beside the dump, where room was looked for.
    fn options(&self) -> UnpackOptions {
        let mut options = UnpackOptions::default();
        if let Some(folder) = self.target.dump.parent().filter(|folder| self.lazy && folder.exists()) {
            options.scratch = folder.to_owned();
        }
        options
    }

    /// podman's own archive, with the restore's mark in the specification of the container.
    fn write_archive(&self, lazy: bool) -> Result<Option<LazyPages>, UnpackError> {
        let path = &self.target.dump;
        // What was begun lazily and could not be is written again.
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
        let file = file.map_err(UnpackError::Write)?;
        let mut options = self.options();
        options.spec_annotations.insert(MARK.to_owned(), self.target.session.to_string());
        let Target { criu_config, own_config, .. } = &self.target;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        if lazy {
            // podman tells runc not to restore lazily, which only the file that the annotation names overrules.
            options.spec_annotations.insert(CRIU_CONFIG.to_owned(), text(criu_config));
            options.spec_annotations.insert(OWN_CONFIG.to_owned(), text(own_config));
        } else if self.restored_lazily {
            options.spec_annotations.insert(CRIU_CONFIG.to_owned(), text(own_config));
        }
        let content = |volume: &Volume| (format!("volumes/{}.tar", volume.name), self.target.content(volume));
        options.aside = stored(&self.target.volumes).map(content).collect();
        // What is zeros in a file of the dump takes no room in the archive.
        let out = BufWriter::with_capacity(1 << 20, HoleWriter::new(file));
        let (out, follows) = if lazy {
            let (out, follows) = unpack_archive_lazily(&self.image, &self.blobs, &options, out)?;
            (out, Some(follows))
        } else {
            (unpack_archive(&self.image, &self.blobs, Compression::None, &options, out)?, None)
        };
        let out = out.into_inner().map_err(|error| UnpackError::Write(error.into_error()))?;
        out.finish().map_err(UnpackError::Write)?;
        Ok(follows)
    }

    /// All of a dump as a folder, with the content of volumes where the driver looks for it.
    fn write_dump(&self, lazy: bool) -> Result<Option<LazyPages>, UnpackError> {
        let Some(folder) = self.target.dump.parent() else { return Ok(None) };
        let above = folder.parent().unwrap_or(folder);
        DirBuilder::new().mode(0o700).recursive(true).create(above).map_err(UnpackError::Write)?;
        let follows = if lazy {
            Some(unpack_folder_lazily(&self.image, &self.blobs, &self.options(), folder)?)
        } else {
            unpack_folder(&self.image, &self.blobs, &self.options(), folder)?;
            None
        };
        for volume in stored(&self.target.volumes) {
            let content = folder.join("volumes").join(format!("{}.tar", volume.name));
            match std::fs::rename(content, self.target.content(volume)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(UnpackError::Write(error)),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(follows)
    }

    /// runc's images, and a bundle that is marked as this restore's.
    fn write_folders(&self, lazy: bool) -> Result<Option<LazyPages>, RestoreErrorKind> {
        let Self { member, target, .. } = self;
        let (Some(lone), Some(images), Some(config)) = (&target.lone, target.dump.parent(), &self.config) else {
            return Ok(None);
        };
        if !lone.bundle.exists() {
            let write = bundle::write(config.clone(), target.session, &lone.bundle);
            write.map_err(|source| RestoreErrorKind::Bundle { member: member.clone(), source })?;
        }
        let written = if lazy {
            unpack_folder_lazily(&self.image, &self.blobs, &self.options(), images).map(Some)
        } else {
            unpack_folder(&self.image, &self.blobs, &self.options(), images).map(|()| None)
        };
        written.map_err(|source| RestoreErrorKind::Fetch { member: member.clone(), source: Box::new(source) })
    }
}

/// A store's blobs, counted on the way, which end with an error once nobody wants them any more.
pub(crate) struct Counted {
    member: MemberId,
    bridge: Bridge,
    tell: Tell,
    stop: CancellationToken,
}

/// Where bytes are told that came for a member.
pub(crate) type Tell = mpsc::UnboundedSender<(MemberId, u64)>;

impl Counted {
    pub(crate) fn new(member: &MemberId, store: &Arc<dyn Store>, tell: &Tell, stop: &CancellationToken) -> Self {
        let bridge = Bridge::new(Handle::current(), Arc::clone(store));
        Self { member: member.clone(), bridge, tell: tell.clone(), stop: stop.clone() }
    }
}

impl BlobSource for Counted {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send>> {
        let blob = self.bridge.open(descriptor)?;
        let (member, tell, stop) = (self.member.clone(), self.tell.clone(), self.stop.clone());
        Ok(Box::new(CountedBlob { member, blob, untold: 0, tell, stop }))
    }
}

struct CountedBlob {
    member: MemberId,
    blob: Box<dyn Read + Send>,
    untold: u64,
    tell: Tell,
    stop: CancellationToken,
}

impl Read for CountedBlob {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_cancelled() {
            return Err(io::Error::other("the restore is being given up"));
        }
        let count = self.blob.read(buf)?;
        self.untold += count as u64;
        if self.untold >= TELL || (count == 0 && self.untold > 0) {
            // Nobody who listens is no reason to stop.
            let _ = self.tell.send((self.member.clone(), self.untold));
            self.untold = 0;
        }
        Ok(count)
    }
}
