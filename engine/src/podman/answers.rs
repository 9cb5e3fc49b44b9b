//! podman's JSON, as far as it is needed. Seen with podman 5.4.
//!
//! What a dump is made from must be said whole ([`Inspected`]): a volume that podman does not mention would be missing in the checkpoint.
//! Every other question is answered by what is there. A field that is missing, `null` or of another type is not known, and an entry that
//! cannot be read does not hide the others.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use serde_json::Value;

use crate::answers::{entries, lines, list, text, texts};
use crate::driver::Labelled;
use crate::survey::{Container, Network, Subnet};
use crate::ties::{Pod, PodTie, StartMount, Ties};

/// `podman info`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) version: Option<String>,
    pub(super) runtime: Option<String>,
    pub(super) storage: Option<PathBuf>,
}

/// A container, as far as `podman container inspect` says something of it: all that it takes to watch it and to take it away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) id: String,
    pub(super) name: Option<String>,
    pub(super) runtime: Option<String>,
    /// Where its runtime's configuration is. A container that podman made and its runtime never saw has none.
    pub(super) config_path: Option<PathBuf>,
    pub(super) status: Option<String>,
    pub(super) pid: i32,
    /// `None` if podman does not say which it has.
    pub(super) annotations: Option<BTreeMap<String, String>>,
    pub(super) volumes: BTreeSet<String>,
}

/// `podman container inspect` of a container that is to be dumped.
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
    #[serde(default)]
    pub(super) rootfs: String,
    #[serde(default)]
    pub(super) pod: String,
    /// Ids of the containers that have to be there before it; `null` when there are none.
    dependencies: Option<Vec<String>>,
    host_config: Option<HostConfig>,
    config: Config,
}

#[derive(Debug, Deserialize)]
struct HostConfig {
    /// Of a user namespace; `null` without one.
    #[serde(rename = "IDMappings")]
    id_mappings: Option<IgnoredAny>,
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
    #[serde(default)]
    destination: String,
    options: Option<Vec<String>>,
    #[serde(default)]
    sub_path: String,
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

    /// What ties it down, but for its secrets, of which podman does not say where they are, and for the name of its pod.
    pub(super) fn ties(&self) -> Ties {
        let mounts =
            self.mounts.iter().filter_map(|mount| Some((mount.destination.clone(), mount.at_start(&self.id)?)));
        Ties {
            rootfs: Some(self.rootfs.clone()).filter(|rootfs| !rootfs.is_empty()),
            mounts: mounts.collect(),
            secrets: BTreeMap::new(),
            pod: Some(self.pod.clone()).filter(|pod| !pod.is_empty()).map(|id| PodTie { id, name: None, alone: false }),
            containers: self.dependencies.iter().flatten().cloned().collect(),
            user_namespace: self.host_config.as_ref().is_some_and(|config| config.id_mappings.is_some()),
        }
    }

    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
        self.config.annotations.as_ref()?.get(name).map(String::as_str)
    }
}

impl Mount {
    /// Whether podman makes it only when it starts the container. Overlays are in a folder of the container's own.
    fn at_start(&self, container: &str) -> Option<StartMount> {
        let has = |wanted: &str| self.options.iter().flatten().any(|option| option.starts_with(wanted));
        let own = || self.source.components().any(|part| part.as_os_str() == container);
        match self.kind.as_str() {
            "image" => Some(StartMount::Image),
            "volume" if self.options.iter().flatten().any(|option| option == "O") => Some(StartMount::Overlay),
            "volume" if !self.sub_path.is_empty() => Some(StartMount::PartOfVolume),
            // An image is listed a second time, as the overlay over it.
            "bind" if own() && has("lowerdir=") && !has("upperdir=") => Some(StartMount::Image),
            "bind" if own() && has("lowerdir=") => Some(StartMount::Overlay),
            _ => None,
        }
    }
}

impl Seen {
    /// A container as `podman ps` lists it.
    fn listed(entry: &Value) -> Option<Self> {
        Some(Self {
            id: text(entry, "/Id")?.to_owned(),
            name: names(entry).into_iter().next(),
            status: text(entry, "/State").map(str::to_owned),
            pid: pid(entry, "/Pid"),
            ..Self::default()
        })
    }

    /// `None` without an id.
    fn read(entry: &Value) -> Option<Self> {
        let volumes = list(entry, "/Mounts").iter().filter(|mount| text(mount, "/Type") == Some("volume"));
        Some(Self {
            id: text(entry, "/Id")?.to_owned(),
            name: text(entry, "/Name").map(str::to_owned),
            runtime: text(entry, "/OCIRuntime").map(str::to_owned),
            config_path: text(entry, "/OCIConfigPath").map(PathBuf::from),
            status: text(entry, "/State/Status").map(str::to_owned),
            pid: pid(entry, "/State/Pid"),
            annotations: entry.get("Config").map(|config| texts(config, "/Annotations")),
            volumes: volumes.filter_map(|volume| text(volume, "/Name")).map(str::to_owned).collect(),
        })
    }

    pub(super) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }
}

pub(super) fn info(answer: &[u8]) -> Result<Info, serde_json::Error> {
    let answer: Value = serde_json::from_slice(answer)?;
    Ok(Info {
        version: text(&answer, "/version/Version").map(str::to_owned),
        runtime: text(&answer, "/host/ociRuntime/name").map(str::to_owned),
        storage: text(&answer, "/store/graphRoot").map(PathBuf::from),
    })
}

/// `podman ps`; `Names` is `null` for a container that only the storage knows.
pub(super) fn containers(answer: &[u8]) -> Result<Vec<Container>, serde_json::Error> {
    let container = |entry: &Value| {
        let state = text(entry, "/State").unwrap_or_default().to_owned();
        Some(Container { id: text(entry, "/Id")?.to_owned(), names: names(entry), state })
    };
    Ok(entries(answer)?.iter().filter_map(container).collect())
}

/// `podman ps`, with the labels of each.
pub(super) fn labels(answer: &[u8]) -> Result<Vec<Labelled>, serde_json::Error> {
    let labelled = |entry: &Value| Some((names(entry).into_iter().next()?, texts(entry, "/Labels")));
    Ok(entries(answer)?.iter().filter_map(labelled).collect())
}

/// `podman secret ls --format {{.Name}}`: a name on each line. It has no JSON.
pub(super) fn secrets(answer: &[u8]) -> Result<BTreeSet<String>, serde_json::Error> {
    Ok(lines(answer).into_iter().collect())
}

/// `podman pod ps`.
pub(super) fn pods(answer: &[u8]) -> Result<Vec<Pod>, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Entry {
        id: String,
        name: String,
        #[serde(default)]
        infra_id: String,
    }
    let entries: Option<Vec<Entry>> = serde_json::from_slice(answer)?;
    let pod = |Entry { id, name, infra_id }| Pod { id, name, infra: Some(infra_id).filter(|infra| !infra.is_empty()) };
    Ok(entries.unwrap_or_default().into_iter().map(pod).collect())
}

/// `podman network inspect` of one network. Before podman 5 it does not say who has which address.
pub(super) fn network(answer: &[u8]) -> Result<Network, serde_json::Error> {
    let entry: Value = only(answer)?;
    let subnets = list(&entry, "/subnets").iter().map(|range| text(range, "/subnet")?.parse().ok());
    // Where one of them is not understood, no address is known to be outside.
    let subnets: Option<Vec<Subnet>> = subnets.collect();
    let mut network = Network { subnets: subnets.unwrap_or_default(), ..Network::default() };
    let members = entry.get("containers").and_then(Value::as_object).into_iter().flatten();
    for (id, member) in members {
        let owner = text(member, "/name").unwrap_or(id);
        let interfaces = member.get("interfaces").and_then(Value::as_object).into_iter().flatten();
        let addresses = interfaces.flat_map(|(_, interface)| list(interface, "/subnets"));
        let addresses = addresses.filter_map(|address| text(address, "/ipnet")?.split_once('/')?.0.parse().ok());
        network.taken.extend(addresses.map(|address: IpAddr| (address, owner.to_owned())));
    }
    Ok(network)
}

pub(super) fn container(answer: &[u8]) -> Result<Inspected, serde_json::Error> {
    only(answer)
}

/// `podman container inspect` of one, for whoever needs no more than what is there.
pub(super) fn seen(answer: &[u8]) -> Result<Seen, serde_json::Error> {
    Seen::read(&only(answer)?).ok_or_else(|| serde_json::Error::missing_field("Id"))
}

/// The container of this name or id among those of `podman ps`.
pub(super) fn listed(answer: &[u8], container: &str) -> Result<Option<Seen>, serde_json::Error> {
    let entries = entries(answer)?;
    let same =
        |entry: &&Value| text(entry, "/Id") == Some(container) || names(entry).iter().any(|name| name == container);
    Ok(entries.iter().find(same).and_then(Seen::listed))
}

/// `podman container inspect` of several, `None` for those that cannot be told apart.
pub(super) fn all_seen(answer: &[u8]) -> Result<Vec<Option<Seen>>, serde_json::Error> {
    Ok(entries(answer)?.iter().map(Seen::read).collect())
}

/// What each of several containers cannot be without, by their ids.
pub(super) fn dependencies(answer: &[u8]) -> Result<BTreeMap<String, Vec<String>>, serde_json::Error> {
    let of = |entry: &Value| {
        let needed = list(entry, "/Dependencies").iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Some((text(entry, "/Id")?.to_owned(), needed))
    };
    Ok(entries(answer)?.iter().filter_map(of).collect())
}

fn pid(entry: &Value, pointer: &str) -> i32 {
    entry.pointer(pointer).and_then(Value::as_i64).and_then(|pid| pid.try_into().ok()).unwrap_or_default()
}

fn names(entry: &Value) -> Vec<String> {
    list(entry, "/Names").iter().filter_map(Value::as_str).map(str::to_owned).collect()
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
    use crate::answers::{mountpoint, volumes};
    use crate::volumes::Volume;

    #[test]
    fn what_podman_5_4_says() {
        let info_answer = br#"{"host":{"arch":"amd64","ociRuntime":{"name":"runc","path":"/usr/bin/runc"}},
            "store":{"graphDriverName":"overlay","graphRoot":"/var/lib/containers/storage","graphRootUsed":244},
            "version":{"APIVersion":"5.4.2","Version":"5.4.2","OsArch":"linux/amd64"}}"#;
        let expected = Info {
            version: Some("5.4.2".to_owned()),
            runtime: Some("runc".to_owned()),
            storage: Some("/var/lib/containers/storage".into()),
        };
        assert_eq!(info(info_answer).unwrap(), expected);
        let volumes_answer = br#"[{"Name":"t","Driver":"local","Labels":{"a":"b"},"MountCount":0,
            "Options":{"SIZE":"2M","device":"tmpfs","o":"size=2M","type":"tmpfs"}},{"Name":"b"}]"#;
        let found = volumes(volumes_answer).unwrap();
        assert_eq!(found[1], Volume::named("b"));
        assert_eq!((found[0].labels["a"].as_str(), found[0].options["o"].as_str()), ("b", "size=2M"));
        assert!(found[0].is_mount() && !found[1].is_mount());
        assert_eq!(mountpoint(br#"[{"Name":"t","Mountpoint":"/v/t/_data"}]"#).unwrap(), PathBuf::from("/v/t/_data"));
        for nowhere in [br#"[{"Mountpoint":""}]"#.as_slice(), br#"[{"Mountpoint":"v"}]"#, b"[]"] {
            mountpoint(nowhere).unwrap_err();
        }
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
    fn what_containers_cannot_be_without() {
        let answer = br#"[{"Id":"1","Dependencies":["2",7]},{"Id":"2","Dependencies":null},{"Id":"3"},{"Name":"x"}]"#;
        let expected = [("1", vec!["2".to_owned()]), ("2", Vec::new()), ("3", Vec::new())];
        assert_eq!(dependencies(answer).unwrap(), expected.map(|(id, needed)| (id.to_owned(), needed)).into());
    }

    #[test]
    fn what_is_not_an_answer_is_an_error() {
        assert!(network(b"[]").is_err());
        assert_eq!(network(br#"[{"name":"none"}]"#).unwrap(), Network::default(), "podman 4, and no subnet");
        assert!(containers(b"{").is_err() && containers(b"{}").is_err() && info(b"").is_err());
        assert!(seen(br#"[{"Name":"auditor"}]"#).unwrap_err().to_string().contains("missing field `Id`"));
    }

    #[test]
    fn an_entry_that_cannot_be_read_does_not_hide_the_others() {
        let answer = br#"[null, 7, {"Names":["x"]}, {"Id":"241c","Names":["consumer",7],"State":null,"Labels":{"a":"b","c":1}}]"#;
        let consumer = Container { id: "241c".to_owned(), names: vec!["consumer".to_owned()], state: String::new() };
        assert_eq!(containers(answer).unwrap(), [consumer]);
        let label = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        assert_eq!(labels(answer).unwrap(), [("x".to_owned(), BTreeMap::new()), ("consumer".to_owned(), label)]);
        assert_eq!(volumes(br#"[{"Driver":"local"},{"Name":"b"},null]"#).unwrap(), [Volume::named("b")]);
        let found = all_seen(br#"[{"Id":"241c"},{"Name":"y"}]"#).unwrap();
        assert_eq!(found, [Some(Seen { id: "241c".to_owned(), ..Seen::default() }), None]);
        let network = network(
            br#"[{"subnets":[{"subnet":"x"},{"subnet":"10.90.0.0/24"}],"containers":{"241c":{"interfaces":
            {"eth0":{"subnets":[{"ipnet":"x"},{"ipnet":"10.90.0.10/24"}]}}},"e008":null}}]"#,
        )
        .unwrap();
        assert!(network.subnets.is_empty(), "no address is outside of what is not known");
        assert_eq!(network.taken, BTreeMap::from([("10.90.0.10".parse().unwrap(), "241c".to_owned())]));
        assert_eq!(info(b"{}").unwrap(), Info::default());
        assert_eq!(info(br#"{"host":null,"version":{"Version":5}}"#).unwrap(), Info::default());
    }

    /// What podman 5.4.2 says of a container; the field that each name leads to is taken away in turn, or is another type.
    #[test]
    fn a_container_is_known_by_its_id_whatever_else_is_missing() {
        let whole: Value = serde_json::from_str(
            r#"{"Id":"241c","Created":"2026-11-30T10:00:00Z","Path":"/bin/ledger","State":{"OciVersion":"1.2.0",
            "Status":"running","Running":true,"Pid":125,"ExitCode":0},"Image":"d3b4","Name":"auditor","RestartCount":0,
            "OCIConfigPath":"/var/lib/x/userdata/config.json","OCIRuntime":"runc","GraphDriver":{"Name":"overlay",
            "Data":{"UpperDir":"/u","LowerDir":"/a:/b"}},"Mounts":[{"Type":"volume","Name":"data","Source":"/v"},
            {"Type":"bind","Source":"/h"}],"NetworkSettings":{"Networks":{}},"Config":{"Hostname":"auditor",
            "Annotations":{"org.criu.config":"/run/c"},"Labels":null},"HostConfig":{}}"#,
        )
        .unwrap();
        fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
            for (key, inner) in value.as_object().into_iter().flatten() {
                let pointer = format!("{at}/{key}");
                pointers(inner, &pointer, found);
                found.push(pointer);
            }
        }
        let mut all = Vec::new();
        pointers(&whole, "", &mut all);
        assert!(all.len() > 25, "{all:?}");
        let read = |entry: &Value| seen(serde_json::to_vec(&[entry]).unwrap().as_slice());
        let known = read(&whole).unwrap();
        assert_eq!((known.pid, known.volumes.len(), known.annotation("org.criu.config")), (125, 1, Some("/run/c")));
        for pointer in all.iter().filter(|pointer| *pointer != "/Id") {
            for other in
                [None, Some(Value::Null), Some(Value::from(7)), Some(Value::from("x")), Some(Value::from([true]))]
            {
                let mut entry = whole.clone();
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                let parent = entry.pointer_mut(parent).and_then(Value::as_object_mut).unwrap();
                match other {
                    None => drop(parent.remove(key)),
                    Some(other) => drop(parent.insert(key.to_owned(), other)),
                }
                assert_eq!(read(&entry).unwrap_or_else(|error| panic!("{pointer}: {error}")).id, "241c");
            }
        }
    }

    #[test]
    fn what_ties_a_container_down() {
        let answer = |more: &str, mounts: &str| {
            format!(
                r#"[{{"Id":"fc28","State":{{"Status":"running","Pid":7}},"OCIRuntime":"runc","OCIConfigPath":"/x/config.json",
                "Config":{{"Annotations":null,"Labels":null}},"Name":"a","GraphDriver":{{"Name":"overlay","Data":null}},{more}
                "Mounts":[{mounts}]}}]"#
            )
        };
        let ties = |more: &str, mounts: &str| container(answer(more, mounts).as_bytes()).unwrap().ties();
        assert_eq!(ties("", ""), Ties::default());
        let plain = r#""Rootfs":"","Pod":"","Dependencies":[],"HostConfig":{"IDMappings":null},"#;
        let common = r#"{"Type":"bind","Source":"/h","Destination":"/h","Options":["rbind"]},
            {"Type":"volume","Name":"data","Source":"/v","Destination":"/d","Driver":"local","Options":["nosuid","rbind"]}"#;
        assert_eq!(ties(plain, common), Ties::default());
        let tied =
            r#""Rootfs":"/r","Pod":"9c50","Dependencies":["251e"],"HostConfig":{"IDMappings":{"UidMap":["0:1:2"]}},"#;
        // As podman 5.4 answers to --volume /tmp/od:/o:O, --volume v:/v:O, --mount type=image and subpath=.
        let mounts = r#"{"Type":"bind","Source":"/c/fc28/userdata/overlay/1/merge","Destination":"/o",
            "Options":["lowerdir=/tmp/od","upperdir=/c/fc28/userdata/overlay/1/upper","workdir=/w"]},
            {"Type":"volume","Name":"v","Source":"/v/_data","Destination":"/v","Options":["O","nosuid"]},
            {"Type":"image","Source":"bb","Destination":"/i","Options":null},
            {"Type":"bind","Source":"/c/fc28/userdata/overlay/3/merge","Destination":"/i","Options":["lowerdir=/m:/l"]},
            {"Type":"volume","Name":"s","Source":"/s/_data","Destination":"/s","Options":["nosuid"],"SubPath":"/sub"}"#;
        let found = ties(tied, mounts);
        let mounts = [
            ("/i", StartMount::Image),
            ("/o", StartMount::Overlay),
            ("/s", StartMount::PartOfVolume),
            ("/v", StartMount::Overlay),
        ];
        assert_eq!(found.mounts, mounts.map(|(place, mount)| (place.to_owned(), mount)).into());
        assert_eq!((found.rootfs.as_deref(), found.user_namespace), (Some("/r"), true));
        assert_eq!(found.pod.map(|pod| pod.id).as_deref(), Some("9c50"));
        assert_eq!(found.containers, ["251e".to_owned()].into());
    }

    #[test]
    fn pods_and_secrets() {
        let answer =
            br#"[{"Id":"56c4","InfraId":"3c6d","Name":"p1","Status":"Running"},{"Id":"77","InfraId":"","Name":"p2"}]"#;
        let pods = pods(answer).unwrap();
        assert_eq!((pods[0].name.as_str(), pods[0].infra.as_deref(), &pods[1].infra), ("p1", Some("3c6d"), &None));
        assert_eq!(secrets(b"key\nother\n").unwrap(), BTreeSet::from(["key".to_owned(), "other".to_owned()]));
        assert_eq!(secrets(b"\n").unwrap(), BTreeSet::new());
        assert_eq!(super::pods(b"null").unwrap(), []);
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
        let found = seen(answer(r#"{"org.criu.config":"/run/c"}"#).as_bytes()).unwrap();
        assert_eq!((found.annotation("org.criu.config"), found.status.as_deref()), (Some("/run/c"), Some("created")));
        assert_eq!(seen(answer("null").as_bytes()).unwrap().annotations, Some(BTreeMap::new()), "it has none");
        let found = container(answer("null").as_bytes()).unwrap();
        assert_eq!(found.annotation("org.criu.config"), None);
        assert!(found.labels().is_empty());
        assert_eq!((found.mounts[0].name.as_str(), found.mounts[1].name.as_str()), ("data", ""));
    }
}
