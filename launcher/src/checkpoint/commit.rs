//! The commit point: the index is put, signed, and then tagged. Before the tag there is no checkpoint.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use coordinator::Fence;
use engine::chain;
use image_format::{ApplicationId, Digest, Epoch, GlobalCheckpoint, MemberEntry, MemberTimeline};
use registry::{CatalogueError, Newest, PassedOver, StoreError, Tag, newest, sign, under_tag};

use super::error::{CheckpointError, CheckpointErrorKind};
use super::record::{Tentative, TentativeMember};
use super::upload::Sent;
use super::{CheckpointOptions, CheckpointReport, CheckpointedMember, Destination, Watcher};
use crate::observer::{Observer, Phase};

/// How often a checkpoint whose tag is taken at the last moment gets another number.
const COMMITS: u32 = 5;

/// Where the next checkpoint of an application stands.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) epoch: Epoch,
    pub(super) predecessor: Option<Digest>,
    /// The end of the line.
    pub(super) last: Option<GlobalCheckpoint>,
    tag: Tag,
}

/// Finds the end of the line, and refuses a tag that must not be moved.
pub(super) async fn line(
    destination: &Destination,
    application: &ApplicationId,
    jobs: usize,
    observer: &dyn Observer,
) -> Result<Line, CheckpointErrorKind> {
    let Newest { listed: last, passed_over } =
        newest(&*destination.store, application, &destination.trust, jobs).await?;
    tell_passed_over(&passed_over, observer);
    let next = last.as_ref().map_or(Some(Epoch(1)), |last| last.global.epoch().next());
    let next = next.ok_or_else(|| CheckpointErrorKind::LastEpoch { application: application.clone() })?;
    let (epoch, tag) = match &destination.tag {
        Some(tag) => (next, tag.clone()),
        None => free(destination, next, observer).await?,
    };
    let predecessor = last.as_ref().map(|last| last.root.digest);
    let line = Line { epoch, predecessor, last: last.map(|last| last.global), tag };
    line.check(destination, application).await?;
    Ok(line)
}

/// The number that is next, and its tag; or, if that tag is taken by what is not of the line, the first number after it whose tag is
/// free. Tags that cannot be read may name checkpoints of the line, so that their numbers are not given again.
async fn free(
    destination: &Destination,
    next: Epoch,
    observer: &dyn Observer,
) -> Result<(Epoch, Tag), CheckpointErrorKind> {
    let store = &*destination.store;
    let tag = epoch_tag(next)?;
    let why = match under_tag(store, &destination.trust, &tag).await {
        Ok(_) => return Ok((next, tag)),
        Err(CatalogueError::Store(error @ StoreError::Unreachable { .. })) => return Err(error.into()),
        Err(why) => why,
    };
    let taken: BTreeSet<Tag> = store.tags().await?.into_iter().collect();
    let mut epoch = next;
    loop {
        let after = epoch.next().map(|epoch| (epoch, epoch_tag(epoch)));
        // Only whoever has every number taken comes to the end of them.
        let Some((after, tag)) = after else { return Err(why.into()) };
        let tag = tag?;
        if !taken.contains(&tag) {
            observer.warning(&format!("epoch {after} is the next, since {next} is taken: {}", chain(&why)));
            return Ok((after, tag));
        }
        epoch = after;
    }
}

fn epoch_tag(epoch: Epoch) -> Result<Tag, CheckpointErrorKind> {
    Ok(format!("epoch-{epoch}").parse()?)
}

impl Line {
    /// A tag only ever moves to a later checkpoint of the same application, and never away from what is not of the line.
    async fn check(&self, destination: &Destination, application: &ApplicationId) -> Result<(), CheckpointErrorKind> {
        let current = under_tag(&*destination.store, &destination.trust, &self.tag).await;
        let current = current.map_err(|error| match error {
            CatalogueError::Store(error @ StoreError::Unreachable { .. }) => error.into(),
            source => CheckpointErrorKind::Taken { tag: self.tag.clone(), source: Box::new(source) },
        })?;
        match current {
            Some(current) if current.global.application() != application || current.global.epoch() >= self.epoch => {
                Err(CheckpointErrorKind::Newer {
                    tag: self.tag.clone(),
                    application: current.global.application().clone(),
                    found: current.global.epoch(),
                    epoch: self.epoch,
                })
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Names what is passed over, each with its reason.
pub fn tell_passed_over(passed_over: &[PassedOver], observer: &dyn Observer) {
    for PassedOver { tag, why } in passed_over {
        observer.warning(&format!("the tag {tag} is passed over: {}", chain(why)));
    }
}

/// Makes members that are in the store a permanent global checkpoint.
pub(super) async fn commit(
    destination: &Destination,
    tentative: &Tentative,
    sent: &Sent,
    options: &CheckpointOptions,
    watcher: &dyn Watcher,
) -> Result<CheckpointReport, CheckpointError> {
    watcher.phase(Phase::Commit);
    let mut left = COMMITS;
    loop {
        left -= 1;
        match try_commit(destination, tentative, sent, options).await {
            // Somebody took the tag since the number was chosen: the next number is free.
            Err(CheckpointErrorKind::Taken { .. }) if destination.tag.is_none() && left > 0 => {}
            committed => return committed.map_err(|kind| CheckpointError::new(Phase::Commit, kind)),
        }
    }
}

async fn try_commit(
    destination: &Destination,
    tentative: &Tentative,
    sent: &Sent,
    options: &CheckpointOptions,
) -> Result<CheckpointReport, CheckpointErrorKind> {
    let store = &*destination.store;
    // Once more: since the session began another host may have gone on with the line. What is passed over was told before.
    let line = line(destination, &tentative.application, options.jobs, &()).await?;
    let members = tentative.members.iter().filter_map(|member| {
        let manifest = member.manifest.clone()?;
        let (id, depends_on) = (member.id.clone(), member.depends_on.clone());
        Some(MemberEntry { id, depends_on, manifest, annotations: member.annotations.clone() })
    });
    let mut timeline = tentative.timeline.clone();
    let with_sent = |member: &TentativeMember| {
        let bytes_sent = sent.get(&member.id).copied().unwrap_or(0);
        MemberTimeline { bytes_sent, ..member.timeline.clone() }
    };
    timeline.members = tentative.members.iter().map(with_sent).collect();
    let global = GlobalCheckpoint::new(
        tentative.application.clone(),
        line.epoch,
        line.predecessor,
        tentative.timeline.started.clone(),
        members.collect(),
        Default::default(),
    )?
    .with_timeline(&timeline)?;
    let document = global.to_document()?;
    let root = document.descriptor();
    store.put_manifest(&document, None).await?;
    if let Some(signer) = &destination.signer {
        let identity = signer.identity.clone().unwrap_or_else(|| sign::identity(store, Some(&line.tag)));
        sign::sign(store, &root, &signer.key, &identity).await?;
    }
    // The last look before the one step that counts. Registries have no compare-and-swap for tags.
    line.check(destination, &tentative.application).await?;
    options.fence.as_ref().map_or(Ok(()), Fence::check)?;
    if options.cancel.is_cancelled() {
        return Err(CheckpointErrorKind::Cancelled);
    }
    store.put_manifest(&document, Some(&line.tag)).await?;
    Ok(CheckpointReport {
        ended: Vec::new(),
        digest: root.digest,
        tag: line.tag,
        application: tentative.application.clone(),
        epoch: line.epoch,
        predecessor: line.predecessor,
        members: tentative.members.iter().filter_map(|member| checkpointed(member, sent)).collect(),
        timeline,
    })
}

fn checkpointed(member: &TentativeMember, sent: &Sent) -> Option<CheckpointedMember> {
    Some(CheckpointedMember {
        id: member.id.clone(),
        container: member.container.clone(),
        engine: member.engine,
        digest: member.manifest.as_ref()?.digest,
        bytes: member.bytes,
        sent: sent.get(&member.id).copied().unwrap_or(0),
        timeline: member.timeline.clone(),
    })
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
