//! Brings every dump onto this machine before anything is started: in parallel, every byte checked on the way.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use image_format::{
    BlobSource, CheckpointImage, Compression, Descriptor, MemberId, UnpackError, UnpackOptions, unpack_archive,
    unpack_folder,
};
use registry::{Bridge, Store};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::engine::{CRIU_CONFIG, Target, bundle};
use crate::error::RestoreErrorKind;
use crate::plan::Planned;
use crate::set::{Member, Set};
use crate::{EngineKind, MemberStep, Observer};

/// Bytes that are counted before anybody is told.
const TELL: u64 = 1 << 20;

/// What one member's transfer needs; it runs on a thread of its own.
struct Job {
    member: MemberId,
    image: CheckpointImage,
    target: Target,
    config: Option<serde_json::Value>,
    blobs: Counted,
}

/// Fetches all, at most `jobs` at a time. After an error, or once cancelled, nothing is written any more on return.
pub(crate) async fn fetch(
    set: &Set,
    planned: &[Planned],
    targets: &[Target],
    store: &Arc<dyn Store>,
    jobs: usize,
    cancel: &CancellationToken,
    observer: &dyn Observer,
) -> Result<(), RestoreErrorKind> {
    // Cancelled by an error as well.
    let stop = cancel.child_token();
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut waiting = set.members.iter().zip(planned).zip(targets);
    let mut running = JoinSet::new();
    let mut failed = None;
    loop {
        while failed.is_none()
            && running.len() < jobs.max(1)
            && let Some(((member, planned), target)) = waiting.next()
        {
            observer.member(&member.id, MemberStep::Fetching { bytes: stored_size(member) });
            let bridge = Bridge::new(Handle::current(), Arc::clone(store));
            let blobs = Counted { member: member.id.clone(), bridge, tell: tell.clone(), stop: stop.clone() };
            let config = planned.bundle.as_ref().map(|(_, config)| config.clone());
            let (member, image, target) = (member.id.clone(), member.image.clone(), target.clone());
            let job = Job { member, image, target, config, blobs };
            running.spawn_blocking(move || (job.member.clone(), job.run()));
        }
        tokio::select! {
            Some((member, bytes)) = told.recv() => observer.member(&member, MemberStep::Received { bytes }),
            ended = running.join_next() => match ended {
                None => break,
                Some(Ok((member, Ok(())))) => observer.member(&member, MemberStep::Fetched),
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
        None => Ok(()),
    }
}

fn stored_size(member: &Member) -> u64 {
    member.image.layers().iter().fold(0, |sum, layer| sum.saturating_add(layer.descriptor.size))
}

impl Job {
    fn run(self) -> Result<(), RestoreErrorKind> {
        match self.target.engine {
            EngineKind::Podman => {
                let member = self.member.clone();
                self.write_archive().map_err(|source| RestoreErrorKind::Fetch { member, source })
            }
            EngineKind::Runc => self.write_folders(),
        }
    }

    /// podman's own archive, with CRIU's configuration named in the specification of the container.
    fn write_archive(&self) -> Result<(), Box<UnpackError>> {
        let path = &self.target.dump;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(UnpackError::Write)?;
        let mut options = UnpackOptions::default();
        let criu_config = self.target.criu_config.to_string_lossy().into_owned();
        options.spec_annotations.insert(CRIU_CONFIG.to_owned(), criu_config);
        let out = BufWriter::with_capacity(1 << 20, file);
        let out = unpack_archive(&self.image, &self.blobs, Compression::None, &options, out)?;
        out.into_inner().map_err(|error| UnpackError::Write(error.into_error()))?;
        Ok(())
    }

    /// runc's images, and a bundle that names CRIU's configuration.
    fn write_folders(&self) -> Result<(), RestoreErrorKind> {
        let Self { member, target, .. } = self;
        let (Some(lone), Some(images), Some(config)) = (&target.lone, target.dump.parent(), &self.config) else {
            return Ok(());
        };
        let write = bundle::write(config.clone(), &target.criu_config, &lone.bundle);
        write.map_err(|source| RestoreErrorKind::Bundle { member: member.clone(), source })?;
        unpack_folder(&self.image, &self.blobs, &UnpackOptions::default(), images)
            .map_err(|source| RestoreErrorKind::Fetch { member: member.clone(), source: Box::new(source) })
    }
}

/// A store's blobs, counted on the way, which end with an error once nobody wants them any more.
struct Counted {
    member: MemberId,
    bridge: Bridge,
    tell: mpsc::UnboundedSender<(MemberId, u64)>,
    stop: CancellationToken,
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
    tell: mpsc::UnboundedSender<(MemberId, u64)>,
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
