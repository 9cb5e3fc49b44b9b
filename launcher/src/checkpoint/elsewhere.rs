//! Members on other hosts, as the coordinating host deals with them: it waits for their launchers, checks what these say is
//! in the store, and tells them what became of the checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use coordinator::wire::control::{Attend, Permanent, Stored};
use coordinator::{Delegate, RollCall};
use engine::chain;
use futures_util::future::try_join_all;
use image_format::{Chain, CheckpointImage, Descriptor, MemberId, MemberTimeline};
use registry::{Store, StoreError, first_missing};
use tokio::time::timeout;

use super::error::{CheckpointError, CheckpointErrorKind};
use super::members::{Member, MembersError, settle};
use super::options::{CheckpointOptions, Destination, RemoteMembers};
use super::record::{Tentative, TentativeMember};
use super::upload::Sent;
use super::{CheckpointReport, Watcher};
use crate::observer::{MemberStep, Phase};

/// How long another host may take to tell why it failed, once all is over.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long another host may take to stop its containers.
const STOPPING: Duration = Duration::from_secs(60);

/// Waits for the launchers of other hosts, if members run there, and settles on whom each member depends. Nothing was touched when it
/// fails, and whoever came is told why.
pub(super) async fn gather(
    members: &mut [Member],
    options: &CheckpointOptions,
    watcher: &dyn Watcher,
) -> Result<(Option<RollCall>, Vec<TentativeMember>), CheckpointError> {
    let examining = |error: MembersError| CheckpointError::new(Phase::Examine, error);
    let Some(elsewhere) = &options.elsewhere else {
        settle_all(members, &mut []).map_err(examining)?;
        return Ok((None, Vec::new()));
    };
    if let Some(member) = members.iter().find(|member| elsewhere.members.contains(&member.id)) {
        let (first, second) = (member.source.container.clone(), "one of another host".to_owned());
        return Err(examining(MembersError::Twice { member: member.id.clone(), first, second }));
    }
    watcher.phase(Phase::Await);
    let awaiting = |kind: CheckpointErrorKind| CheckpointError::new(Phase::Await, kind);
    let RemoteMembers { listen, members: awaited } = elsewhere;
    let opened = RollCall::open(listen, options.application.clone(), awaited.iter().cloned()).await;
    let mut roll_call = opened.map_err(|error| awaiting(error.into()))?;
    match attend(&mut roll_call, members, options, watcher).await {
        Ok(others) => Ok((Some(roll_call), others)),
        Err(error) => {
            roll_call.dismiss(&chain(&error)).await;
            Err(awaiting(error))
        }
    }
}

async fn attend(
    roll_call: &mut RollCall,
    members: &mut [Member],
    options: &CheckpointOptions,
    watcher: &dyn Watcher,
) -> Result<Vec<TentativeMember>, CheckpointErrorKind> {
    let came = |attend: &Attend| {
        let container = attend.container.clone();
        watcher.member(&attend.member, MemberStep::Joined { container });
    };
    tokio::select! {
        complete = roll_call.complete(options.deadlines.gather, came) => {
            complete.map_err(|source| CheckpointErrorKind::Absent { source })?;
        }
        () = options.cancel.cancelled() => return Err(CheckpointErrorKind::Cancelled),
    }
    let mut attended: Vec<Attend> = roll_call.attended().cloned().collect();
    settle_all(members, &mut attended)?;
    attended.into_iter().map(tentative).collect()
}

fn settle_all(here: &mut [Member], elsewhere: &mut [Attend]) -> Result<(), MembersError> {
    let ids: BTreeSet<MemberId> =
        here.iter().map(|member| &member.id).chain(elsewhere.iter().map(|member| &member.member)).cloned().collect();
    for member in here {
        settle(&ids, &member.id, &mut member.depends_on, member.strict_dependencies)?;
    }
    for member in elsewhere {
        settle(&ids, &member.member, &mut member.depends_on, member.strict_dependencies)?;
    }
    Ok(())
}

fn tentative(attend: Attend) -> Result<TentativeMember, CheckpointErrorKind> {
    let Attend { member, engine, container, depends_on, .. } = attend;
    let engine = engine.parse().map_err(|error: engine::ParseEngineError| CheckpointErrorKind::Elsewhere {
        member: member.clone(),
        reason: error.to_string(),
    })?;
    Ok(TentativeMember::new(member, depends_on, engine, container))
}

/// After an abort: what the host of the member that it failed at has to say of it.
pub(super) async fn add_log(delegates: &mut [Delegate], error: &mut CheckpointError) {
    let failed = delegates.iter_mut().find(|delegate| error.member.as_ref() == Some(&delegate.attend().member));
    let Some(delegate) = failed else { return };
    // An abort is told also if nobody says why.
    if let Ok(Some(failure)) = timeout(LAST_WORDS, delegate.last_words()).await {
        error.log_lines = failure.log_lines;
    }
}

/// What a member of another host has become.
pub(super) struct Arrived {
    member: MemberId,
    /// What its host says of it, which is true as far as the store tells.
    stored: Stored,
    /// What the checkpoint says of its image.
    annotations: BTreeMap<String, String>,
}

/// Waits until every member of another host is in the store, and looks there whether it is.
pub(super) async fn collect(
    delegates: &mut [Delegate],
    tentative: &[TentativeMember],
    destination: &Destination,
    options: &CheckpointOptions,
    watcher: &dyn Watcher,
) -> Result<Vec<Arrived>, CheckpointError> {
    let collecting = delegates.iter_mut().map(|delegate| async move {
        let member = delegate.attend().member.clone();
        let failed = |kind: CheckpointErrorKind| CheckpointError {
            member: Some(member.clone()),
            ..CheckpointError::new(Phase::Pack, kind)
        };
        let stored = delegate.stored().await.map_err(|failure| {
            let reason = failure.reason;
            let error = failed(CheckpointErrorKind::Elsewhere { member: member.clone(), reason });
            CheckpointError { log_lines: failure.log_lines, ..error }
        })?;
        let noted = tentative.iter().find(|noted| noted.id == member);
        let depends_on = noted.map(|noted| noted.depends_on.as_slice()).unwrap_or_default();
        let image = check(&*destination.store, &member, depends_on, &stored).await.map_err(failed)?;
        let annotations = image.chain().map(Chain::annotations).unwrap_or_default();
        watcher.member(&member, MemberStep::Packed { bytes: stored.bytes });
        watcher.member(&member, MemberStep::Sent { bytes: stored.sent });
        Ok(Arrived { member, stored, annotations })
    });
    tokio::select! {
        collected = try_join_all(collecting) => collected,
        () = options.cancel.cancelled() => Err(CheckpointError::new(Phase::Pack, CheckpointErrorKind::Cancelled)),
    }
}

/// Looks into the store: the manifest is there, it is this member's, and all that it refers to is there too.
async fn check(
    store: &dyn Store,
    member: &MemberId,
    depends_on: &[MemberId],
    stored: &Stored,
) -> Result<CheckpointImage, CheckpointErrorKind> {
    let wrong = |reason: String| CheckpointErrorKind::NotStored { member: member.clone(), reason };
    let document = match store.manifest(&stored.manifest.digest).await {
        Err(error @ StoreError::NotFound { .. }) => return Err(wrong(error.to_string())),
        document => document?,
    };
    if document.descriptor() != stored.manifest {
        return Err(wrong(format!("the manifest {} is not as it was described", stored.manifest.digest)));
    }
    let image = CheckpointImage::parse(&document).map_err(|error| wrong(format!("its {}", chain(&error))))?;
    if image.member().as_ref() != Some(member) {
        return Err(wrong("it is the image of another member".to_owned()));
    }
    if BTreeSet::from_iter(image.depends_on()) != BTreeSet::from_iter(depends_on) {
        return Err(wrong("its image tells of other dependencies".to_owned()));
    }
    if image.layers().iter().map(|layer| layer.descriptor.size).sum::<u64>() != stored.bytes {
        return Err(wrong("its layers have another size".to_owned()));
    }
    let blobs = image.layers().iter().map(|layer| &layer.descriptor).chain([image.config()]);
    match first_missing(store, blobs).await? {
        None => Ok(image),
        Some(Descriptor { digest, size, .. }) => {
            Err(wrong(format!("the blob {digest} of {size} bytes is not in {}", store.name())))
        }
    }
}

/// Notes what the members of other hosts have become.
pub(super) fn note(tentative: &mut Tentative, sent: &mut Sent, arrived: Vec<Arrived>) {
    for Arrived { member: id, stored, annotations } in arrived {
        let Some(member) = tentative.member_mut(&id) else { continue };
        let sensible = |span: Option<image_format::Span>| span.filter(|span| span.begin <= span.end);
        member.manifest = Some(stored.manifest);
        member.annotations = annotations;
        member.bytes = stored.bytes;
        member.timeline.packed = sensible(stored.packed);
        member.timeline.sent = sensible(stored.sending);
        sent.insert(id, stored.sent);
    }
}

/// Tells the other hosts how it ended, and waits until they have stopped their containers, if these were to end.
pub(super) async fn tell(
    mut delegates: Vec<Delegate>,
    committed: &Result<CheckpointReport, CheckpointError>,
    stop: bool,
    watcher: &dyn Watcher,
) {
    let report = match committed {
        Ok(report) => report,
        Err(error) => {
            let reason = chain(error);
            return delegates.iter().for_each(|delegate| delegate.not_permanent(&reason));
        }
    };
    for delegate in &delegates {
        let member = &delegate.attend().member;
        let timeline = report.timeline.members.iter().find(|timeline| timeline.id == *member);
        delegate.permanent(Permanent {
            digest: report.digest,
            tag: report.tag.to_string(),
            epoch: report.epoch,
            timeline: timeline.cloned().unwrap_or_else(|| MemberTimeline::new(member.clone())),
        });
    }
    if stop {
        watcher.phase(Phase::Stop);
        let waiting = delegates.iter_mut().map(|delegate| async move {
            let ended = timeout(STOPPING, delegate.last_words()).await;
            (delegate.attend().member.clone(), ended)
        });
        for (member, ended) in futures_util::future::join_all(waiting).await {
            match ended {
                Ok(None) => {}
                Ok(Some(failure)) => watcher.warning(&format!("the host of member {member}: {}", failure.reason)),
                Err(_) => watcher.warning(&format!("the host of member {member} does not say whether it is stopped")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use coordinator::Absent;

    use image_format::{Digest, DumpSource, PackOptions, pack};
    use registry::{Bridge, Create, Location, Settings};
    use tokio::runtime::Handle;

    use super::*;
    use engine::EngineKind;
    use engine::{Files, RunningContainer};

    fn ids(ids: &[&str]) -> Vec<MemberId> {
        ids.iter().map(|id| id.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn a_missing_dependency_on_one_host_is_no_wait_for_others() {
        let source = RunningContainer {
            container: "a".to_owned(),
            id: "0".repeat(64),
            labels: BTreeMap::new(),
            criu_config: PathBuf::new(),
            own_config: PathBuf::new(),
            pid: 1,
            log: None,
            files: Files::default(),
            ties: engine::Ties::default(),
        };
        let [a, job] = [0, 1].map(|at| ids(&["a", "job"])[at].clone());
        let mut member = Member {
            id: a,
            depends_on: vec![job],
            strict_dependencies: true,
            engine: EngineKind::Podman,
            source,
            bundle: None,
            volumes: Vec::new(),
        };
        let options = CheckpointOptions::new("app".parse().unwrap(), PathBuf::new());
        let error = gather(std::slice::from_mut(&mut member), &options, &()).await.unwrap_err();
        assert_eq!(error.phase, Phase::Examine);
        assert_eq!(error.to_string(), "member a depends on job, which is no member");
    }

    #[test]
    fn hosts_that_are_sent_away_are_told_why_once() {
        let source = Absent { members: ids(&["b"]) };
        let told = chain(&CheckpointErrorKind::Absent { source });
        assert_eq!(told, "nothing was touched: nobody joined in time for b");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_believed_that_is_not_in_the_store() {
        let folder = tempfile::tempdir().unwrap();
        let layout = folder.path().join("store");
        let opened = registry::open(&Location::Layout(layout.clone()), &Settings::default(), Create::Layout).await;
        let store: Arc<dyn Store> = opened.unwrap();
        let bridge = Bridge::new(Handle::current(), Arc::clone(&store));
        let packing = tokio::task::spawn_blocking(move || {
            let dump = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/dumps/podman-plain.tar.zst");
            let options = PackOptions {
                member: Some(ids(&["b"])[0].clone()),
                depends_on: ids(&["a", "c"]),
                ..PackOptions::default()
            };
            pack(DumpSource::open(&dump, None).unwrap(), &options, &bridge).unwrap()
        });
        let packed = packing.await.unwrap();
        let bytes = packed.layers.iter().map(|layer| layer.descriptor.size).sum();
        let stored = Stored { manifest: packed.manifest.descriptor(), bytes, sent: 0, packed: None, sending: None };
        let check = async |member: &str, depends_on: &[&str], stored: &Stored| {
            let checked = check(&*store, &ids(&[member])[0], &ids(depends_on), stored).await;
            checked.map(|image| image.manifest().clone()).map_err(|error| error.to_string())
        };
        let missing = check("b", &["a", "c"], &stored).await.unwrap_err();
        assert!(missing.contains("is not in"), "{missing}");
        store.put_manifest(&packed.manifest, None).await.unwrap();
        assert_eq!(check("b", &["c", "a"], &stored).await, Ok(packed.manifest.descriptor()));
        for (member, depends_on, stored, why) in [
            ("a", &["a", "c"][..], stored.clone(), "another member"),
            ("b", &["a"], stored.clone(), "other dependencies"),
            ("b", &["a", "c"], Stored { bytes: bytes + 1, ..stored.clone() }, "another size"),
            (
                "b",
                &["a", "c"],
                Stored { manifest: Descriptor { size: 1, ..stored.manifest.clone() }, ..stored.clone() },
                "as it was described",
            ),
            (
                "b",
                &["a", "c"],
                Stored {
                    manifest: Descriptor { digest: Digest::of(b"x"), ..stored.manifest.clone() },
                    ..stored.clone()
                },
                "is not in",
            ),
        ] {
            let refused = check(member, depends_on, &stored).await.unwrap_err();
            assert!(refused.contains(why) && refused.contains(member), "{refused}");
        }
        let blob = layout.join("blobs/sha256").join(packed.layers[0].descriptor.digest.hex());
        std::fs::remove_file(blob).unwrap();
        let gone = check("b", &["a", "c"], &stored).await.unwrap_err();
        assert!(gone.contains("bytes is not in"), "{gone}");
    }
}
