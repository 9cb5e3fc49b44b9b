//! podman's JSON, as far as it is needed. Seen with podman 5.4.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _};

use crate::engine::{Container, Labelled, Network};

/// `podman info`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) version: String,
    pub(super) runtime: String,
    pub(super) storage: PathBuf,
}

/// `podman container inspect`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    pub(super) id: String,
    #[serde(rename = "OCIRuntime")]
    pub(super) runtime: String,
    #[serde(rename = "OCIConfigPath")]
    pub(super) oci_config_path: PathBuf,
    pub(super) name: String,
    pub(super) state: State,
    pub(super) graph_driver: GraphDriver,
    pub(super) mounts: Vec<Mount>,
    config: Config,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct GraphDriver {
    pub(super) name: String,
    /// `null` for drivers that have nothing to say.
    pub(super) data: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Mount {
    #[serde(rename = "Type")]
    pub(super) kind: String,
    /// A volume's; other mounts have none.
    #[serde(default)]
    pub(super) name: String,
    pub(super) source: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct State {
    pub(super) status: String,
    pub(super) pid: i32,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    /// `null` when there are none.
    annotations: Option<BTreeMap<String, String>>,
    /// `null` when there are none.
    labels: Option<BTreeMap<String, String>>,
}

impl Inspected {
    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        self.config.labels.clone().unwrap_or_default()
    }

    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
        self.config.annotations.as_ref()?.get(name).map(String::as_str)
    }
}

pub(super) fn info(answer: &[u8]) -> Result<Info, serde_json::Error> {
    #[derive(Deserialize)]
    struct Answer {
        host: Host,
        store: Store,
        version: Version,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Host {
        oci_runtime: Runtime,
    }
    #[derive(Deserialize)]
    struct Runtime {
        name: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Store {
        graph_root: PathBuf,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Version {
        version: String,
    }
    let Answer { host, store, version: Version { version } } = serde_json::from_slice(answer)?;
    Ok(Info { version, runtime: host.oci_runtime.name, storage: store.graph_root })
}

/// `podman ps`; `Names` is `null` for a container that only the storage knows.
pub(super) fn containers(answer: &[u8]) -> Result<Vec<Container>, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        id: String,
        names: Option<Vec<String>>,
        state: String,
    }
    let entries: Option<Vec<Entry>> = serde_json::from_slice(answer)?;
    let container = |Entry { id, names, state }| Container { id, names: names.unwrap_or_default(), state };
    Ok(entries.unwrap_or_default().into_iter().map(container).collect())
}

/// `podman ps`, with the labels of each.
pub(super) fn labels(answer: &[u8]) -> Result<Vec<Labelled>, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        names: Option<Vec<String>>,
        labels: Option<BTreeMap<String, String>>,
    }
    let entries: Option<Vec<Entry>> = serde_json::from_slice(answer)?;
    let named = |Entry { names, labels }| Some((names?.into_iter().next()?, labels.unwrap_or_default()));
    Ok(entries.unwrap_or_default().into_iter().filter_map(named).collect())
}

pub(super) fn volumes(answer: &[u8]) -> Result<BTreeSet<String>, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        name: String,
    }
    let entries: Option<Vec<Entry>> = serde_json::from_slice(answer)?;
    Ok(entries.unwrap_or_default().into_iter().map(|entry| entry.name).collect())
}

/// `podman network inspect` of one network. Before podman 5 it does not say who has which address.
pub(super) fn network(answer: &[u8]) -> Result<Network, serde_json::Error> {
    #[derive(Deserialize)]
    struct Entry {
        subnets: Option<Vec<Range>>,
        containers: Option<BTreeMap<String, Member>>,
    }
    #[derive(Deserialize)]
    struct Range {
        subnet: String,
    }
    #[derive(Deserialize)]
    struct Member {
        name: String,
        interfaces: Option<BTreeMap<String, Interface>>,
    }
    #[derive(Deserialize)]
    struct Interface {
        subnets: Option<Vec<Address>>,
    }
    #[derive(Deserialize)]
    struct Address {
        ipnet: String,
    }
    let Entry { subnets, containers } = only(answer)?;
    let mut network = Network::default();
    for Range { subnet } in subnets.unwrap_or_default() {
        let parsed = subnet.parse().map_err(|()| serde_json::Error::custom(format!("{subnet:?} is not a subnet")));
        network.subnets.push(parsed?);
    }
    for Member { name, interfaces } in containers.unwrap_or_default().into_values() {
        let addresses =
            interfaces.unwrap_or_default().into_values().filter_map(|interface| interface.subnets).flatten();
        for Address { ipnet } in addresses {
            let address = ipnet.split_once('/').and_then(|(address, _)| address.parse::<IpAddr>().ok());
            let address = address.ok_or_else(|| serde_json::Error::custom(format!("{ipnet:?} is not an address")));
            network.taken.insert(address?, name.clone());
        }
    }
    Ok(network)
}

pub(super) fn container(answer: &[u8]) -> Result<Inspected, serde_json::Error> {
    only(answer)
}

/// `podman container inspect` of several.
pub(super) fn inspected(answer: &[u8]) -> Result<Vec<Inspected>, serde_json::Error> {
    serde_json::from_slice(answer)
}

/// podman answers every `inspect` with a list.
fn only<T: DeserializeOwned>(answer: &[u8]) -> Result<T, serde_json::Error> {
    let mut entries: Vec<T> = serde_json::from_slice(answer)?;
    match (entries.pop(), entries.len()) {
        (Some(entry), 0) => Ok(entry),
        _ => Err(serde_json::Error::custom("one entry was expected")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_podman_5_4_says() {
        let info_answer = br#"{"host":{"arch":"amd64","ociRuntime":{"name":"runc","path":"/usr/bin/runc"}},
            "store":{"graphDriverName":"overlay","graphRoot":"/var/lib/containers/storage","graphRootUsed":244},
            "version":{"APIVersion":"5.4.2","Version":"5.4.2","OsArch":"linux/amd64"}}"#;
        let expected = Info {
            version: "5.4.2".to_owned(),
            runtime: "runc".to_owned(),
            storage: "/var/lib/containers/storage".into(),
        };
        assert_eq!(info(info_answer).unwrap(), expected);
        let volumes_answer = br#"[{"Name":"ledger-data","Driver":"local","MountCount":0},{"Name":"b"}]"#;
        assert_eq!(volumes(volumes_answer).unwrap(), BTreeSet::from(["b".to_owned(), "ledger-data".to_owned()]));
        for empty in [b"[]".as_slice(), b"null"] {
            assert_eq!(volumes(empty).unwrap().len() + containers(empty).unwrap().len(), 0);
        }
    }

    #[test]
    fn containers_with_and_without_names() {
        let answer = br#"[{"AutoRemove":false,"Id":"241c","Names":["consumer"],"Pid":125,"State":"running"},
            {"Id":"99aa","Names":null,"State":"storage"}]"#;
        let expected = [("241c", vec!["consumer".to_owned()], "running"), ("99aa", Vec::new(), "storage")];
        let expected =
            expected.map(|(id, names, state)| Container { id: id.to_owned(), names, state: state.to_owned() });
        assert_eq!(containers(answer).unwrap(), expected);
    }

    #[test]
    fn networks_say_who_has_which_address() {
        let answer = br#"[{"name":"syncpoint-demo","driver":"bridge",
            "subnets":[{"subnet":"10.90.0.0/24","gateway":"10.90.0.1"},{"subnet":"fd00::/64"}],
            "containers":{"241c":{"name":"consumer","interfaces":{"eth0":{"subnets":[{"ipnet":"10.90.0.10/24",
            "gateway":"10.90.0.1"}],"mac_address":"3e:8c:d6:a5:44:68"}}},"e008":{"name":"stopped","interfaces":{}}}}]"#;
        let network = network(answer).unwrap();
        assert!(network.subnets.iter().any(|subnet| subnet.contains("10.90.0.11".parse().unwrap())));
        assert!(network.subnets.iter().any(|subnet| subnet.contains("fd00::5".parse().unwrap())));
        assert_eq!(network.taken, BTreeMap::from([("10.90.0.10".parse().unwrap(), "consumer".to_owned())]));
    }

    #[test]
    fn other_shapes_are_errors() {
        assert!(network(b"[]").is_err());
        assert!(network(br#"[{"subnets":[{"subnet":"x"}]}]"#).is_err());
        assert_eq!(network(br#"[{"name":"none"}]"#).unwrap(), Network::default(), "podman 4, and no subnet");
        assert!(info(b"{}").is_err());
        assert!(containers(b"{").is_err());
    }

    #[test]
    fn a_containers_marks() {
        let answer = |annotations: &str| {
            format!(
                r#"[{{"Id":"241c","State":{{"Status":"created","Running":false,"Pid":0}},"OCIRuntime":"runc",
                "OCIConfigPath":"/var/lib/x/userdata/config.json","Config":{{"Annotations":{annotations},"Labels":null}},
                "Name":"auditor","GraphDriver":{{"Name":"overlay","Data":{{"UpperDir":"/u","LowerDir":"/a:/b"}}}},
                "Mounts":[{{"Type":"volume","Name":"data","Source":"/v"}},{{"Type":"bind","Source":"/h"}}]}}]"#
            )
        };
        let found = container(answer(r#"{"org.criu.config":"/run/c"}"#).as_bytes()).unwrap();
        assert_eq!((found.annotation("org.criu.config"), found.state.status.as_str()), (Some("/run/c"), "created"));
        let found = container(answer("null").as_bytes()).unwrap();
        assert_eq!(found.annotation("org.criu.config"), None);
        assert!(found.labels().is_empty());
        assert_eq!((found.mounts[0].name.as_str(), found.mounts[1].name.as_str()), ("data", ""));
    }
}
