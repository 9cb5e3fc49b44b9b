//! What ties a container to its engine or its host, beyond the files that are its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use image_format::Facts;

/// Where podman puts a secret whose place is not said.
const SECRETS: &str = "/run/secrets";

/// What ties a container down. A dump says less of this than a container that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ties {
    /// The folder that is its root filesystem, where that is not an image.
    pub rootfs: Option<String>,
    /// Mounts that podman makes when it starts a container, and not when it restores one, by their place in the container.
    pub mounts: BTreeMap<String, StartMount>,
    /// Files with secrets, by their place in the container.
    pub secrets: BTreeMap<String, String>,
    /// The pod that it is in.
    pub pod: Option<PodTie>,
    /// Ids of other containers that it depends on, or whose namespaces it is in, but for the one of its pod.
    pub containers: BTreeSet<String>,
    /// Whether its ids are others than the host's.
    pub user_namespace: bool,
}

/// A mount that is made at a start alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartMount {
    /// `--volume ...:O`.
    Overlay,
    /// `--mount type=image`.
    Image,
    /// `--mount type=volume,subpath=...`.
    PartOfVolume,
}

impl StartMount {
    /// What people call such a mount.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Overlay => "an overlay volume (:O)",
            Self::Image => "an image (type=image)",
            Self::PartOfVolume => "a part of a volume (subpath)",
        }
    }
}

/// The pod that a container is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodTie {
    /// Its id.
    pub id: String,
    /// Its name, where that is known.
    pub name: Option<String>,
    /// Whether it is known to have no infra container.
    pub alone: bool,
}

impl fmt::Display for PodTie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.as_deref().unwrap_or_else(|| self.id.get(..12).unwrap_or(&self.id)))
    }
}

/// A pod that podman has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The container that holds its namespaces; without one podman restores nothing into it.
    pub infra: Option<String>,
}

impl PodTie {
    /// The pod here that a member goes into: the very one, or one of the same name.
    pub fn find<'a>(&self, pods: &'a [Pod]) -> Option<&'a Pod> {
        let own = pods.iter().find(|pod| pod.id == self.id);
        own.or_else(|| pods.iter().find(|pod| self.name.as_deref() == Some(&pod.name)))
    }
}

impl Ties {
    /// What a dump says of podman's container.
    pub fn of_dump(facts: &Facts, pod_name: Option<&str>) -> Self {
        let mounts = facts.overlays.iter().map(|place| (place, StartMount::Overlay));
        let mounts = mounts.chain(facts.image_mounts.iter().map(|place| (place, StartMount::Image)));
        let mounts = mounts.chain(facts.volume_parts.iter().map(|place| (place, StartMount::PartOfVolume)));
        let id = facts.pod.as_ref().and_then(|pod| pod.id.clone());
        Self {
            rootfs: facts.rootfs.clone(),
            mounts: mounts.map(|(place, mount)| (place.clone(), mount)).collect(),
            secrets: facts.secrets.iter().map(|secret| (secret_place(secret), secret.name.clone())).collect(),
            pod: id.map(|id| PodTie { id, name: pod_name.map(str::to_owned), alone: false }),
            containers: BTreeSet::new(),
            user_namespace: false,
        }
    }

    /// Secrets in the folder that podman makes anew, empty, when it restores a container: CRIU finds no place to mount them at.
    pub fn secrets_without_place(&self) -> impl Iterator<Item = (&String, &String)> {
        self.secrets.iter().filter(|(place, _)| place.starts_with(SECRETS))
    }
}

fn secret_place(secret: &image_format::SecretFact) -> String {
    match secret.target.as_deref().filter(|target| !target.is_empty()) {
        Some(target) if target.starts_with('/') => target.to_owned(),
        Some(target) => format!("{SECRETS}/{target}"),
        None => format!("{SECRETS}/{}", secret.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_known_by_its_id_and_then_by_its_name() {
        let pod = |id: &str, name: &str| Pod { id: id.to_owned(), name: name.to_owned(), infra: None };
        let pods = [pod("1", "a"), pod("2", "b")];
        let find = |id: &str, name: Option<&str>| {
            let tie = PodTie { id: id.to_owned(), name: name.map(str::to_owned), alone: false };
            tie.find(&pods).map(|pod| pod.id.clone())
        };
        assert_eq!(find("1", Some("b")).as_deref(), Some("1"));
        assert_eq!(find("0", Some("b")).as_deref(), Some("2"));
        assert_eq!((find("0", Some("c")), find("0", None)), (None, None));
    }

    #[test]
    fn places_of_secrets() {
        let secret = |target: Option<&str>| {
            secret_place(&image_format::SecretFact { name: "key".to_owned(), target: target.map(str::to_owned) })
        };
        assert_eq!(secret(None), "/run/secrets/key");
        assert_eq!(secret(Some("")), "/run/secrets/key");
        assert_eq!(secret(Some("other")), "/run/secrets/other");
        assert_eq!(secret(Some("/etc/key")), "/etc/key");
    }
}
