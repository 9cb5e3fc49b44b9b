//! What is looked at before anything is frozen: whether a checkpoint of these members could be restored, and what of them it
//! will not hold. And afterwards: whether they still run.

use std::collections::{BTreeMap, BTreeSet};

use engine::{EngineError, EngineKind, Engines, chain, is_alive, outsiders};
use image_format::MemberId;

use super::error::CheckpointErrorKind;
use super::members::{LABELLING, Member};
use crate::observer::Observer;
use crate::restore::preflight::{Problem, restorable};

/// Refuses members that no engine could restore, all of them at once.
pub(super) fn refuse(members: &[Member]) -> Result<(), CheckpointErrorKind> {
    let problems =
        restorable(members.iter().map(|member| (&member.id, &member.source.ties, member.volumes.as_slice())));
    if problems.is_empty() { Ok(()) } else { Err(CheckpointErrorKind::NotRestorable { problems }) }
}

/// Tells what the checkpoint will not hold, and what will be in the way of a restore on this host.
pub(super) async fn warn(engines: &Engines, members: &[Member], observer: &dyn Observer) {
    let mut problems = Vec::new();
    for member in members {
        let Member { id, source, .. } = member;
        let outside = outsiders(&source.id, source.pid).into_iter();
        problems.extend(outside.map(|(pid, command)| Problem::NotDumped { member: id.clone(), pid, command }));
    }
    for kind in LABELLING {
        match held(engines, kind, members).await {
            Ok(held) => problems.extend(held),
            Err(error) => {
                observer.warning(&format!("whether other containers use its volumes is not known: {}", chain(&error)))
            }
        }
    }
    problems.iter().for_each(|problem| observer.warning(&format!("{problem}; {}", problem.hint())));
}

/// Volumes of an engine's members that containers outside the set have, running or not.
async fn held(engines: &Engines, kind: EngineKind, members: &[Member]) -> Result<Vec<Problem>, EngineError> {
    let its = || members.iter().filter(|member| member.engine == kind);
    let own: BTreeSet<&str> = its().map(|member| member.source.id.as_str()).collect();
    let mut volumes: BTreeMap<&str, &MemberId> = BTreeMap::new();
    for member in its() {
        for volume in member.source.files.volumes.keys() {
            volumes.entry(volume).or_insert(&member.id);
        }
    }
    let driver = engines.get(kind);
    let others = |found: Vec<engine::Container>| {
        found.into_iter().filter(|container| !own.contains(container.id.as_str())).collect::<Vec<_>>()
    };
    // All at once first, since there are mostly none: each question takes podman a tenth of a second.
    let all: Vec<&str> = volumes.keys().copied().collect();
    if all.is_empty() || others(driver.volume_users(&all).await?).is_empty() {
        return Ok(Vec::new());
    }
    let mut problems = Vec::new();
    for (volume, member) in volumes {
        for holder in others(driver.volume_users(&[volume]).await?) {
            let container = holder.name().to_owned();
            problems.push(Problem::VolumeUsed { member: member.clone(), volume: volume.to_owned(), container });
        }
    }
    Ok(problems)
}

/// Finds members whose first process has ended since it was dumped, and tells of them. A system call that the freeze interrupted
/// can end it: `sleep` of busybox takes that for the end of its time.
pub(super) fn ended(members: &[Member], observer: &dyn Observer) -> Vec<MemberId> {
    let ended: Vec<MemberId> =
        members.iter().filter(|member| !is_alive(member.source.pid)).map(|member| member.id.clone()).collect();
    for member in &ended {
        observer.warning(&format!(
            "member {member} does not run any more: its first process ended after it was dumped. Was it in a `sleep`, which some \
             programs take for over when they are frozen? A restore brings it back as it was"
        ));
    }
    ended
}
