//! Facts from `container.json`, which says more, and of every engine the same.

use super::{Facts, MountFact, NetworkFact};
use crate::container::{Container, ContainerMount, ContainerNetwork};

impl Facts {
    /// What the container's own description says goes before what is in other files.
    pub(super) fn with_container(self, container: Container) -> Self {
        let filled = |text: String| Some(text).filter(|text| !text.is_empty());
        let volumes = container.mounts.iter().filter(|mount| mount.kind == "volume");
        Self {
            engine_version: container.engine_version.or(self.engine_version),
            container_name: filled(container.name).or(self.container_name),
            container_id: filled(container.id).or(self.container_id),
            rootfs_image_name: container.image.name.clone().or(self.rootfs_image_name),
            raw_image_name: container.image.name.or(self.raw_image_name),
            rootfs_image_id: container.image.id.or(self.rootfs_image_id),
            runtime_name: container.runtime.or(self.runtime_name),
            labels: container.labels,
            named_volumes: volumes.filter_map(|volume| volume.name.clone()).collect(),
            networks: container.networks.into_iter().map(network).collect(),
            mounts: container.mounts.into_iter().map(mount).collect(),
            ..self
        }
    }
}

fn network(network: ContainerNetwork) -> NetworkFact {
    let ContainerNetwork { name, addresses, static_addresses: static_ips, mac, .. } = network;
    NetworkFact { name, addresses, static_ips, mac }
}

fn mount(mount: ContainerMount) -> MountFact {
    let ContainerMount { destination, kind, source, .. } = mount;
    MountFact { destination, kind: Some(kind), source }
}
