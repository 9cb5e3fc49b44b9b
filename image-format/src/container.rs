//! `container.json`: what a container was made with, in the words of no engine, so that any engine
//! can make it again.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The version of [`Container`] that is written. A reader takes no other.
pub const CONTAINER_VERSION: u32 = 1;

/// A container, as whoever made it asked for it, and as it was when it was dumped. What its engine
/// did not say is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Container {
    /// [`CONTAINER_VERSION`].
    pub version: u32,
    /// The engine that ran it: `docker`.
    pub engine: String,
    /// The engine's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// Its id in the engine.
    pub id: String,
    /// Its name in the engine.
    pub name: String,
    /// What its root filesystem was made of.
    pub image: BaseImage,
    /// The program and its arguments, or what the entry point gets as arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// The entry point, where it has one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// `NAME=VALUE`, as its first process got them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<String>,
    /// User and group of its first process, where they are not the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Further groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// The folder in which its first process began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_folder: Option<String>,
    /// Its host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Its domain name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_name: Option<String>,
    /// Its labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its annotations, which the runtime sees.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What was mounted into it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<ContainerMount>,
    /// Size of its `/dev/shm` in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<u64>,
    /// Whose network it has: a network's name, `none`, `host`, or `container:ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_mode: Option<String>,
    /// The networks that it was attached to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<ContainerNetwork>,
    /// Ports of the host that lead into it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PublishedPort>,
    /// Further names that it knows: `NAME:ADDRESS`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<String>,
    /// Servers that it asks for names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// When it is started again by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// Whether its engine removes it when it has ended.
    #[serde(skip_serializing_if = "is_false")]
    pub auto_remove: bool,
    /// Whether it has all that there is.
    #[serde(skip_serializing_if = "is_false")]
    pub privileged: bool,
    /// Capabilities beyond its engine's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capabilities_added: Vec<String>,
    /// Capabilities of its engine's own that it has not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capabilities_dropped: Vec<String>,
    /// As `docker create --security-opt` takes them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security_options: Vec<String>,
    /// Whether its root filesystem cannot be written to.
    #[serde(skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// `HOST:CONTAINER:PERMISSIONS`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
    /// Kernel settings of its namespaces.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// `NAME=SOFT:HARD`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<String>,
    /// Bytes of memory that it may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Billionths of a processor that it may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nano_cpus: Option<u64>,
    /// How many processes it may have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u64>,
    /// Whose IPC namespace it has, where that is not its own: `shareable`, `host`, or
    /// `container:ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipc_mode: Option<String>,
    /// Whose process ids it has, where they are not its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_mode: Option<String>,
    /// Whose host name it has, where it is not its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uts_mode: Option<String>,
    /// Whose user ids it has, where that was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_mode: Option<String>,
    /// Whether a small init of the engine's was its first process.
    #[serde(skip_serializing_if = "is_false")]
    pub init: bool,
    /// What ends it in order, where that is not the image's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// How many seconds it then has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<u64>,
    /// The name of its OCI runtime in the engine's configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Whether it had a terminal.
    #[serde(skip_serializing_if = "is_false")]
    pub tty: bool,
    /// Whether its standard input was kept open.
    #[serde(skip_serializing_if = "is_false")]
    pub open_stdin: bool,
    /// How its engine keeps what it prints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_driver: Option<String>,
}

/// What a container's root filesystem was made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BaseImage {
    /// As it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `sha256:` and the digest of its configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// One mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ContainerMount {
    /// `volume`, `bind` or `tmpfs`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where it is in the container.
    pub destination: String,
    /// Of a volume: its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of a volume: whether its engine chose the name, since nobody gave one.
    #[serde(skip_serializing_if = "is_false")]
    pub anonymous: bool,
    /// Of a volume: what keeps it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The path on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Whether the container cannot write to it.
    #[serde(skip_serializing_if = "is_false")]
    pub read_only: bool,
    /// What else was asked for, such as `z`, `rslave` or `size=1m`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// One network that a container was attached to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ContainerNetwork {
    /// The network's name in the engine.
    pub name: String,
    /// Addresses that it had there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Those of them that were asked for; the others were the engine's choice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub static_addresses: Vec<IpAddr>,
    /// Further names that it had there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Hardware address of its interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// One port of the host that leads into a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct PublishedPort {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The port in the container.
    pub port: u16,
    /// The address on the host; all of them where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_address: Option<IpAddr>,
    /// The port on the host; the engine's choice where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
}

/// When a container is started again by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RestartPolicy {
    /// `no`, `always`, `unless-stopped` or `on-failure`.
    pub name: String,
    /// How often, if that is bounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_not_written() {
        let container = Container {
            version: CONTAINER_VERSION,
            engine: "docker".to_owned(),
            id: "1a".to_owned(),
            name: "web".to_owned(),
            ..Container::default()
        };
        let text = serde_json::to_string(&container).unwrap();
        assert_eq!(text, r#"{"version":1,"engine":"docker","id":"1a","name":"web","image":{}}"#);
        assert_eq!(serde_json::from_str::<Container>(&text).unwrap(), container);
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over() {
        let text = r#"{"version":1,"engine":"docker","id":"1a","name":"web","image":{"name":"busybox","new":1},"new":[],
            "mounts":[{"type":"volume","destination":"/data","name":"data","read-only":true}],
            "networks":[{"name":"net","addresses":["10.90.0.10","fd00::5"]}],
            "ports":[{"protocol":"tcp","port":80,"host-address":"127.0.0.1","host-port":8080}]}"#;
        let read: Container = serde_json::from_str(text).unwrap();
        assert!(read.mounts[0].read_only && !read.mounts[0].anonymous);
        assert_eq!(read.networks[0].addresses.len(), 2);
        assert_eq!((read.ports[0].port, read.ports[0].host_port), (80, Some(8080)));
    }
}
