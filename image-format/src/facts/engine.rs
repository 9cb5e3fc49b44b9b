//! The JSON files that engines put into their dumps, as far as they are read.
//!
//! Sources: podman `libpod/container_config.go` (config.dump is the whole of it) and `libnetwork/types` (network.status);
//! checkpointctl `lib/metadata.go` (config.dump of CRI-O and containerd); Kubernetes CRI API (status.dump of containerd);
//! the OCI runtime specification (spec.dump, config.json). Go writes `null` for what is empty, so everything is optional.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

/// config.dump of podman, CRI-O and containerd; where two of them use a key, it means the same.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConfigDump {
    pub(super) id: Option<String>,
    pub(super) name: Option<String>,
    pub(super) pod: Option<String>,
    #[serde(rename = "RawImageName")]
    pub(super) raw_image_name: Option<String>,
    #[serde(rename = "rootfsImageID")]
    pub(super) rootfs_image_id: Option<String>,
    pub(super) rootfs_image_name: Option<String>,
    /// CRI-O and containerd: the name as the user gave it.
    pub(super) rootfs_image: Option<String>,
    /// CRI-O and containerd: the name with its digest.
    pub(super) rootfs_image_ref: Option<String>,
    pub(super) runtime: Option<String>,
    pub(super) checkpointed_time: Option<String>,
    pub(super) labels: Option<BTreeMap<String, String>>,
    pub(super) named_volumes: Option<Vec<NamedVolume>>,
    /// podman: a folder in place of an image.
    pub(super) rootfs: Option<String>,
    pub(super) overlay_volumes: Option<Vec<OtherVolume>>,
    pub(super) ctr_image_volumes: Option<Vec<OtherVolume>>,
    pub(super) secrets: Option<Vec<Secret>>,
    /// podman 4 and 5.
    pub(super) new_networks: Option<BTreeMap<String, NetworkOptions>>,
    /// podman 6.
    pub(super) ordered_networks: Option<Vec<NamedNetworkOptions>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NamedVolume {
    pub(super) volume_name: String,
    #[serde(default)]
    pub(super) dest: String,
    pub(super) options: Option<Vec<String>>,
    #[serde(rename = "SubPath")]
    pub(super) sub_path: Option<String>,
}

/// An overlay or an image that podman mounts.
#[derive(Debug, Deserialize)]
pub(super) struct OtherVolume {
    pub(super) dest: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Secret {
    pub(super) name: String,
    #[serde(rename = "Target")]
    pub(super) target: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct NetworkOptions {
    pub(super) static_ips: Option<Vec<IpAddr>>,
    pub(super) static_mac: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct NamedNetworkOptions {
    pub(super) name: String,
    pub(super) static_ips: Option<Vec<IpAddr>>,
    pub(super) static_mac: Option<String>,
}

/// spec.dump, and a bundle's config.json.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Spec {
    pub(super) annotations: Option<BTreeMap<String, String>>,
    pub(super) mounts: Option<Vec<Mount>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Mount {
    pub(super) destination: String,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) source: Option<String>,
}

/// One network of network.status.
#[derive(Debug, Deserialize)]
pub(super) struct NetworkStatus {
    pub(super) interfaces: Option<BTreeMap<String, Interface>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Interface {
    pub(super) subnets: Option<Vec<Subnet>>,
    pub(super) mac_address: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Subnet {
    /// Address and prefix length, such as `10.91.0.5/24`.
    pub(super) ipnet: String,
}

impl Subnet {
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.ipnet.split('/').next()?.parse().ok()
    }
}

/// status.dump of containerd.
#[derive(Debug, Deserialize)]
pub(super) struct ContainerStatus {
    pub(super) labels: Option<BTreeMap<String, String>>,
}
