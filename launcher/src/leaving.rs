//! What makes room for a restore: the containers of the application as it is, and the volumes that the checkpoint brings back.
//!
//! ```text
//! look ─▶ preflight, as if they were gone ─▶ fetch ─▶ is a volume held by somebody else? ─▶ containers, all of them ─▶ volumes, each once
//!             │ anything in the way             │            │
//!             └─────────────────────────────────┴────────────┴──▶ nothing was touched
//! ```
//!
//! A volume goes only if the checkpoint brings one of that name: nothing else has a replacement.

use std::collections::{BTreeMap, BTreeSet};

use engine::{Container, Engine, EngineError, EngineKind, Engines, Present, Survey};
use futures_util::future::{join_all, try_join_all};
use image_format::MemberId;

use crate::checkpoint::ContainerSpec;
use crate::restore::preflight::Problem;

/// Containers that are there and are to make room.
#[derive(Debug)]
pub struct Leaving {
    engines: Engines,
    containers: Vec<(EngineKind, Present)>,
    /// Volumes that are known to be theirs, also where a container that mounted one is gone already.
    volumes: BTreeSet<String>,
}

/// Volumes that the checkpoint brings back, by engine.
pub type Volumes = BTreeSet<(EngineKind, String)>;

/// Who mounts which volume.
pub type Users = BTreeMap<String, Vec<Container>>;

/// Why what is left of an application was not taken away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvictError {
    /// An engine was asked and did not answer, or refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Somebody else has a volume. Nothing was touched.
    #[error("volume {volume} is held by container {holder}, which is no member; nothing was removed")]
    Held {
        /// The volume.
        volume: String,
        /// Who holds it.
        holder: String,
    },
}

impl Leaving {
    /// Nothing makes room.
    #[must_use]
    pub fn nothing(engines: &Engines) -> Self {
        Self { engines: engines.clone(), containers: Vec::new(), volumes: BTreeSet::new() }
    }

    /// Looks for the containers of these names; `volumes` are known to be theirs.
    pub async fn look(
        engines: &Engines,
        wanted: &[ContainerSpec],
        volumes: BTreeSet<String>,
    ) -> Result<Self, EngineError> {
        let containers = wanted.iter().map(|wanted| engines.present(&wanted.container, wanted.engine));
        let containers = try_join_all(containers).await?;
        Ok(Self { engines: engines.clone(), containers: containers.into_iter().flatten().collect(), volumes })
    }

    fn has(&self, engine: EngineKind, id: &str) -> bool {
        self.containers.iter().any(|(its, present)| *its == engine && present.id == id)
    }

    /// Who mounts each of these volumes. Where nothing is leaving, nobody needs to know.
    pub async fn users(
        &self,
        engine: &dyn Engine,
        volumes: impl Iterator<Item = &String>,
    ) -> Result<Users, EngineError> {
        let asked = volumes.filter(|_| !self.containers.is_empty() || !self.volumes.is_empty());
        let users = asked.map(|volume| async move { Ok((volume.clone(), engine.volume_users(&[volume]).await?)) });
        try_join_all(users).await.map(Users::from_iter)
    }

    /// Whom of these, which stay, cannot be without one that is leaving.
    pub async fn needed(
        &self,
        engine: EngineKind,
        driver: &dyn Engine,
        staying: &[Container],
    ) -> Result<Vec<Problem>, EngineError> {
        if self.containers.is_empty() {
            return Ok(Vec::new());
        }
        let dependencies = driver.dependencies(staying).await?;
        Ok(self.needed_by(engine, staying, &dependencies))
    }

    fn needed_by(
        &self,
        engine: EngineKind,
        staying: &[Container],
        dependencies: &BTreeMap<String, Vec<String>>,
    ) -> Vec<Problem> {
        let leaving = self.containers.iter().filter(|(its, _)| *its == engine);
        let needed = leaving.flat_map(|(_, one)| {
            let needs = |other: &&Container| dependencies.get(&other.id).is_some_and(|ids| ids.contains(&one.id));
            staying
                .iter()
                .filter(needs)
                .map(|other| Problem::ContainerNeeded { container: one.container.clone(), by: other.name().to_owned() })
        });
        needed.collect()
    }

    /// Takes out of a survey what will be gone: containers, their addresses, and those of the volumes in `brought` that go with them, which
    /// it gives. A volume that somebody else holds is a problem.
    pub fn subtract(
        &self,
        engine: EngineKind,
        survey: &mut Survey,
        brought: &BTreeMap<&String, &MemberId>,
        users: &Users,
    ) -> (BTreeSet<String>, Vec<Problem>) {
        let gone = |name: &String| self.containers.iter().any(|(its, one)| *its == engine && one.container == *name);
        survey.containers.retain(|container| !self.has(engine, &container.id));
        for network in survey.networks.values_mut() {
            network.taken.retain(|_, owner| !gone(owner));
        }
        let (mut go, mut held, mut problems) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for (volume, users) in users {
            let Some(&member) = brought.get(volume) else { continue };
            let (own, others): (Vec<_>, Vec<_>) = users.iter().partition(|user| self.has(engine, &user.id));
            // Without a sign that it was the application's, that it is there is a problem of its own.
            if own.is_empty() && !self.volumes.contains(volume) {
                continue;
            }
            match others.first() {
                None => drop(go.insert(volume.clone())),
                Some(other) => {
                    held.insert(volume);
                    let (member, volume, holder) = (member.clone(), volume.clone(), other.name().to_owned());
                    problems.push(Problem::VolumeHeld { member, volume, holder });
                }
            }
        }
        survey.volumes.retain(|volume, _| !go.contains(volume) && !held.contains(volume));
        (go, problems)
    }

    /// Ends all containers and takes them away, then these volumes.
    ///
    /// # Errors
    /// A volume that somebody else holds by now, before anything is touched; otherwise what could not be taken away.
    pub async fn evict(&self, volumes: &Volumes) -> Result<(), EvictError> {
        for (engine, volume) in volumes {
            let users = self.engines.get(*engine).volume_users(&[volume]).await?;
            if let Some(other) = users.iter().find(|user| !self.has(*engine, &user.id)) {
                let holder = other.name().to_owned();
                return Err(EvictError::Held { volume: volume.clone(), holder });
            }
        }
        self.end_containers().await?;
        // Only now: a volume goes when none of its containers is left, and members may share one.
        remove_volumes(&self.engines, volumes).await.into_iter().next().map_or(Ok(()), |(_, error)| Err(error.into()))
    }

    /// Ends all containers, which stay where they are.
    ///
    /// # Errors
    /// One that could not be ended.
    pub async fn stop(&self) -> Result<(), EngineError> {
        let stops = self.containers.iter().map(|(engine, present)| self.engines.get(*engine).stop(&present.id));
        join_all(stops).await.into_iter().collect()
    }

    /// Side by side. One that others need, such as its network namespace, goes only after them.
    async fn end_containers(&self) -> Result<(), EngineError> {
        let mut left: Vec<_> = self.containers.iter().collect();
        loop {
            let evicted = left.iter().map(|(engine, present)| self.engines.get(*engine).evict(present));
            let evicted = join_all(evicted).await;
            let failed = left.iter().copied().zip(&evicted).filter(|(_, evicted)| evicted.is_err());
            let failed: Vec<_> = failed.map(|(container, _)| container).collect();
            if failed.len() == left.len() {
                return evicted.into_iter().collect();
            }
            left = failed;
        }
    }
}

/// Removes each of these volumes; gives those that could not be.
pub(crate) async fn remove_volumes(engines: &Engines, volumes: &Volumes) -> Vec<(String, EngineError)> {
    let removed = volumes.iter().map(|(engine, volume)| async move {
        engines.get(*engine).remove_volume(volume).await.err().map(|error| (volume.clone(), error))
    });
    join_all(removed).await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::{Network, Volume};

    fn container(id: &str, name: &str) -> Container {
        Container { id: id.to_owned(), names: vec![name.to_owned()], state: "running".to_owned() }
    }

    #[test]
    fn what_is_leaving_is_counted_as_gone_and_nothing_else_is() {
        let present = |id: &str, container: &str| Present {
            id: id.to_owned(),
            container: container.to_owned(),
            ..Present::default()
        };
        let leaving = Leaving {
            engines: Engines::here(),
            containers: vec![
                (EngineKind::Podman, present("1", "auditor")),
                (EngineKind::Podman, present("2", "consumer")),
                (EngineKind::Runc, present("lone", "lone")),
            ],
            volumes: BTreeSet::from(["left".to_owned(), "lent".to_owned()]),
        };
        let address = |last: u8| std::net::IpAddr::from([10, 90, 0, last]);
        let taken = BTreeMap::from([(address(1), "auditor".to_owned()), (address(2), "squatter".to_owned())]);
        let volume = |name: &str| (name.to_owned(), Volume::named(name));
        let mut survey = Survey {
            containers: vec![container("1", "auditor"), container("3", "squatter"), container("lone", "lone")],
            networks: BTreeMap::from([("demo".to_owned(), Network { taken, ..Network::default() })]),
            volumes: ["own", "shared", "held", "foreign", "left", "lent", "other"].map(volume).into(),
            ..Survey::default()
        };
        let users = Users::from_iter(
            [
                ("own", vec![container("1", "auditor")]),
                ("shared", vec![container("1", "auditor"), container("2", "consumer")]),
                ("held", vec![container("2", "consumer"), container("3", "squatter")]),
                ("foreign", vec![container("3", "squatter")]),
                ("left", Vec::new()),
                ("lent", vec![container("3", "squatter")]),
            ]
            .map(|(volume, users)| (volume.to_owned(), users)),
        );
        let member: MemberId = "m".parse().unwrap();
        let brought = users.keys().map(|volume| (volume, &member)).collect();
        let (go, problems) = leaving.subtract(EngineKind::Podman, &mut survey, &brought, &users);
        assert_eq!(go, BTreeSet::from(["left", "own", "shared"].map(str::to_owned)));
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let held =
            |volume: &str| format!("member m: volume {volume} is held by container squatter too, which is no member");
        assert_eq!(problems, [held("held"), held("lent")]);
        assert_eq!(survey.containers, [container("3", "squatter"), container("lone", "lone")]);
        assert_eq!(survey.networks["demo"].taken, BTreeMap::from([(address(2), "squatter".to_owned())]));
        let dependencies = BTreeMap::from([("3".to_owned(), vec!["9".to_owned(), "2".to_owned()])]);
        let needed = leaving.needed_by(EngineKind::Podman, &survey.containers, &dependencies);
        let needed: Vec<_> = needed.iter().map(ToString::to_string).collect();
        assert_eq!(needed, ["container consumer cannot make room: container squatter, which is no member, needs it"]);
        // That one is held is the problem, not that it is there.
        assert_eq!(survey.volumes, ["foreign", "other"].map(volume).into());
    }
}
