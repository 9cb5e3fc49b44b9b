//! Checks the whole set against this machine before anything is touched, and collects everything that is in the way.
//!
//! What another program does between these checks and the restore can still make the restore fail; then everything is
//! taken away again. The checks are there so that this is rare, and so that a person learns all there is to mend at once.

mod check;
mod machine;
mod problem;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use engine::{EngineError, EngineKind, Engines, Survey, chain, stored};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use image_format::{Descriptor, Digest, MemberId};
use registry::{Store, StoreError};

pub(crate) use self::check::{BaseImage, Want, restorable};
pub(crate) use self::machine::Room;
use self::machine::{Machine, check_program, check_writable};
pub use self::problem::Problem;
use crate::leaving::{Leaving, Volumes};
use crate::restore::options::RestoreOptions;
use crate::restore::plan::Planned;
use crate::restore::set::Set;

/// What was seen: the problems, and for the later steps which images the engines have.
#[derive(Debug)]
pub(crate) struct Examined {
    pub(crate) problems: Vec<Problem>,
    pub(crate) engines: BTreeMap<EngineKind, Survey>,
    /// Volumes that are there and must go first, with what is leaving.
    pub(crate) volumes: Volumes,
}

/// Looks at everything, as if what is leaving were gone.
pub(crate) async fn examine(
    set: &Set,
    planned: &[Planned],
    store: &Arc<dyn Store>,
    options: &RestoreOptions,
    leaving: &Leaving,
) -> Result<Examined, StoreError> {
    let wants: Vec<Want> = planned.iter().map(|planned| planned.want.clone()).collect();
    let mut problems = missing_blobs(set, store, options.jobs).await?;
    let (mut engines, unusable) = survey(&options.host.engines, &wants).await;
    problems.extend(unusable);
    let mut volumes = Volumes::new();
    for (engine, survey) in &mut engines {
        let its = wants.iter().filter(|want| want.engine == *engine);
        let brought = its.flat_map(|want| stored(&want.volumes).map(|volume| (&volume.name, &want.member)));
        let brought: BTreeMap<_, _> = brought.filter(|(volume, _)| survey.volumes.contains_key(*volume)).collect();
        let driver = options.host.engines.get(*engine).as_ref();
        let asked = async {
            let users = leaving.users(driver, brought.keys().copied()).await?;
            let (gone, held) = leaving.subtract(*engine, survey, &brought, &users);
            volumes.extend(gone.into_iter().map(|volume| (*engine, volume)));
            problems.extend(held);
            problems.extend(leaving.needed(*engine, driver, &survey.containers).await?);
            Ok::<_, EngineError>(())
        };
        if let Err(error) = asked.await {
            problems.push(Problem::Engine { engine: *engine, reason: chain(&error) });
        }
    }
    let missing = machine::missing(wants.iter().flat_map(|want| want.mounts.keys()));
    problems.extend(check::check(&wants, &Machine::look(&options.host).await, &engines, &missing));
    problems.extend(own_files(options));
    problems.extend(rooms(&wants, &engines, &options.work_dir));
    Ok(Examined { problems, engines, volumes })
}

async fn missing_blobs(set: &Set, store: &Arc<dyn Store>, jobs: usize) -> Result<Vec<Problem>, StoreError> {
    let mut wanted: BTreeMap<Digest, (&MemberId, &Descriptor)> = BTreeMap::new();
    for member in &set.members {
        let layers = member.image.layers().iter().map(|layer| &layer.descriptor);
        for blob in layers.chain([member.image.config()]) {
            wanted.entry(blob.digest).or_insert((&member.id, blob));
        }
    }
    let asked = stream::iter(wanted.into_values()).map(|(member, blob)| async move {
        let problem = match store.blob_size(&blob.digest).await? {
            Some(size) if size == blob.size => None,
            Some(found) => Some(Problem::BlobSize {
                member: member.clone(),
                digest: blob.digest,
                store: store.name().to_owned(),
                found,
                expected: blob.size,
            }),
            None => {
                let (member, digest, store) = (member.clone(), blob.digest, store.name().to_owned());
                Some(Problem::BlobMissing { member, digest, store })
            }
        };
        Ok::<_, StoreError>(problem)
    });
    let found: Vec<Option<Problem>> = asked.buffered(jobs.max(1)).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Asks every engine that is wanted what it has.
async fn survey(installed: &Engines, wants: &[Want]) -> (BTreeMap<EngineKind, Survey>, Vec<Problem>) {
    let mut engines = BTreeMap::new();
    let mut problems = Vec::new();
    for engine in wants.iter().map(|want| want.engine).collect::<BTreeSet<_>>() {
        let its = || wants.iter().filter(|want| want.engine == engine);
        let networks = its().flat_map(|want| want.networks.keys().cloned()).collect();
        let images = its().filter_map(|want| Some(want.base.as_ref()?.id.clone())).collect();
        let survey = async {
            let driver = installed.get(engine);
            let mut survey = driver.survey(&networks, &images).await?;
            if its().any(|want| want.ties.pod.is_some()) {
                survey.pods = driver.pods().await?;
            }
            if its().any(|want| !want.ties.secrets.is_empty()) {
                survey.secrets = driver.secrets().await?;
            }
            Ok::<_, EngineError>(survey)
        };
        match survey.await {
            Ok(survey) => {
                engines.insert(engine, survey);
            }
            Err(error) => problems.push(Problem::Engine { engine, reason: chain(&error) }),
        }
    }
    (engines, problems)
}

fn own_files(options: &RestoreOptions) -> Vec<Problem> {
    let hook = check_program(&options.hook_program)
        .map_err(|reason| Problem::HookProgram { path: options.hook_program.clone(), reason });
    let folder = |path: &Path| check_writable(path).map_err(|reason| Problem::Folder { path: path.to_owned(), reason });
    [hook, folder(&options.run_root), folder(&options.work_dir)].into_iter().filter_map(Result::err).collect()
}

/// Whether the disks have room for every dump once unpacked by us and, for podman's members, once more by podman.
fn rooms(wants: &[Want], engines: &BTreeMap<EngineKind, Survey>, work_dir: &Path) -> Vec<Problem> {
    let total = |filter: fn(&Want) -> bool| {
        wants.iter().filter(|want| filter(want)).fold(0, |sum: u64, want| sum.saturating_add(want.bytes))
    };
    let mut needs = vec![(work_dir, total(|_| true), "the unpacked dumps")];
    let storage = engines.get(&EngineKind::Podman).and_then(|survey| survey.storage.as_deref());
    if let Some(storage) = storage {
        needs.push((storage, total(|want| want.engine == EngineKind::Podman), "podman's copies of the dumps"));
    }
    let mut problems = Vec::new();
    let mut devices: BTreeMap<u64, u64> = BTreeMap::new();
    for (path, needed, purpose) in needs {
        match Room::at(path) {
            Ok(room) => {
                let sum = devices.entry(room.device).or_default();
                *sum = sum.saturating_add(needed);
                if *sum > room.available {
                    let (path, available, needed) = (path.to_owned(), room.available, *sum);
                    problems.push(Problem::Space { path, available, needed, purpose });
                }
            }
            Err(error) => problems.push(Problem::Folder { path: path.to_owned(), reason: error.to_string() }),
        }
    }
    problems
}
