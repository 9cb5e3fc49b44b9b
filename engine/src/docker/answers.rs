//! Docker's JSON, as far as it is needed. Seen with Docker 26.1.
//!
//! Every question is answered by what is there. A field that is missing, `null` or of another type
//! is not known, and an entry that cannot be read does not hide the others. Only what a dump would
//! silently leave out has to be said: its mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use image_format::{BaseImage, CONTAINER_VERSION, ContainerMount, ContainerNetwork, PublishedPort, RestartPolicy};
use serde::de::Error as _;
use serde_json::{Value, json};

use crate::answers::{entries, list, text, texts};
use crate::driver::Labelled;
use crate::survey::{self, Network, Subnet};

/// The word before the id of another container whose namespace is shared.
const OF_CONTAINER: &str = "container:";

/// `docker inspect` of one container.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Inspected(Value);

impl Inspected {
    /// `None` without an id.
    fn read(entry: Value) -> Option<Self> {
        text(&entry, "/Id").is_some().then_some(Self(entry))
    }

    pub(super) fn id(&self) -> &str {
        text(&self.0, "/Id").unwrap_or_default()
    }

    /// Without the slash that Docker puts before it; the id where Docker says no name.
    pub(super) fn name(&self) -> &str {
        text(&self.0, "/Name").map(|name| name.trim_start_matches('/')).unwrap_or_else(|| self.id())
    }

    /// Its first process; 0 if it does not run, or stands still.
    pub(super) fn pid(&self) -> i32 {
        let runs = text(&self.0, "/State/Status").is_none_or(|status| status == "running");
        let pid = self.0.pointer("/State/Pid").and_then(Value::as_i64).and_then(|pid| pid.try_into().ok());
        pid.filter(|_| runs).unwrap_or_default()
    }

    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        texts(&self.0, "/Config/Labels")
    }

    /// What `docker create --annotation` was told.
    pub(super) fn annotations(&self) -> BTreeMap<String, String> {
        texts(&self.0, "/HostConfig/Annotations")
    }

    /// Where its volumes are, by their names.
    pub(super) fn volumes(&self) -> BTreeMap<String, PathBuf> {
        let volumes = list(&self.0, "/Mounts").iter().filter(|mount| text(mount, "/Type") == Some("volume"));
        volumes
            .filter_map(|volume| Some((text(volume, "/Name")?.to_owned(), text(volume, "/Source")?.into())))
            .collect()
    }

    /// # Errors
    /// It does not say what is mounted, or not where a volume is, which would be missing in a dump.
    pub(super) fn check_mounts(&self) -> Result<(), serde_json::Error> {
        let mounts = self.0.get("Mounts").and_then(Value::as_array);
        let mounts = mounts.ok_or_else(|| serde_json::Error::missing_field("Mounts"))?;
        let vague = |mount: &&Value| match text(mount, "/Type") {
            None => true,
            Some("volume") => text(mount, "/Name").is_none() || text(mount, "/Source").is_none(),
            Some(_) => false,
        };
        match mounts.iter().find(vague) {
            None => Ok(()),
            Some(mount) => Err(serde_json::Error::custom(format!("a mount without its type or place: {mount}"))),
        }
    }

    /// Ids of the containers whose namespaces it is in.
    pub(super) fn shared_with(&self) -> BTreeSet<String> {
        let modes = ["NetworkMode", "IpcMode", "PidMode"].map(|mode| format!("/HostConfig/{mode}"));
        let of = |mode: &String| text(&self.0, mode)?.strip_prefix(OF_CONTAINER).map(str::to_owned);
        modes.iter().filter_map(of).collect()
    }

    /// All that another container of its kind needs, in the words of no engine.
    pub(super) fn describe(&self, engine_version: Option<String>) -> image_format::Container {
        let (config, host) = (|name: &str| format!("/Config/{name}"), |name: &str| format!("/HostConfig/{name}"));
        let said = |pointer: String| text(&self.0, &pointer).map(str::to_owned);
        let all = |pointer: String| strings(&self.0, &pointer);
        let is = |pointer: String| self.0.pointer(&pointer).and_then(Value::as_bool).unwrap_or_default();
        // Docker writes 0 for what has no bound.
        let number = |pointer: String| self.0.pointer(&pointer).and_then(Value::as_u64).filter(|number| *number > 0);
        // The namespaces of its own are what every container has.
        let shared = |name: &str| said(host(name)).filter(|mode| mode != "private");
        let restart_policy = said(host("RestartPolicy/Name"));
        image_format::Container {
            version: CONTAINER_VERSION,
            engine: "docker".to_owned(),
            engine_version,
            id: self.id().to_owned(),
            name: self.name().to_owned(),
            image: BaseImage { name: said(config("Image")), id: said("/Image".to_owned()) },
            command: all(config("Cmd")),
            entrypoint: all(config("Entrypoint")),
            environment: all(config("Env")),
            user: said(config("User")),
            groups: all(host("GroupAdd")),
            working_folder: said(config("WorkingDir")),
            hostname: said(config("Hostname")),
            domain_name: said(config("Domainname")),
            labels: self.labels(),
            annotations: self.annotations(),
            mounts: self.mounts(),
            shm_size: number(host("ShmSize")),
            network_mode: said(host("NetworkMode")),
            networks: self.networks(),
            ports: self.ports(),
            extra_hosts: all(host("ExtraHosts")),
            dns: all(host("Dns")),
            restart_policy: restart_policy
                .map(|name| RestartPolicy { name, retries: number(host("RestartPolicy/MaximumRetryCount")) }),
            auto_remove: is(host("AutoRemove")),
            privileged: is(host("Privileged")),
            capabilities_added: all(host("CapAdd")),
            capabilities_dropped: all(host("CapDrop")),
            security_options: all(host("SecurityOpt")),
            read_only: is(host("ReadonlyRootfs")),
            devices: list(&self.0, &host("Devices")).iter().filter_map(device).collect(),
            sysctls: texts(&self.0, &host("Sysctls")),
            ulimits: list(&self.0, &host("Ulimits")).iter().filter_map(ulimit).collect(),
            memory: number(host("Memory")),
            nano_cpus: number(host("NanoCpus")),
            pids_limit: number(host("PidsLimit")),
            ipc_mode: shared("IpcMode"),
            pid_mode: shared("PidMode"),
            uts_mode: shared("UTSMode"),
            user_mode: said(host("UsernsMode")),
            init: is(host("Init")),
            stop_signal: said(config("StopSignal")),
            stop_timeout: number(config("StopTimeout")),
            runtime: said(host("Runtime")),
            tty: is(config("Tty")),
            open_stdin: is(config("OpenStdin")),
            log_driver: said(host("LogConfig/Type")),
        }
    }

    /// `config.dump` as checkpointctl knows it.
    pub(super) fn config_dump(&self, checkpointed: &str) -> Value {
        json!({
            "id": self.id(),
            "name": self.name(),
            "rootfsImage": text(&self.0, "/Config/Image"),
            "rootfsImageName": text(&self.0, "/Config/Image"),
            "rootfsImageRef": text(&self.0, "/Image"),
            "runtime": text(&self.0, "/HostConfig/Runtime"),
            "createdTime": text(&self.0, "/Created").unwrap_or("0001-01-01T00:00:00Z"),
            "checkpointedTime": checkpointed,
            "restoredTime": "0001-01-01T00:00:00Z",
            "restored": false,
        })
    }

    fn mounts(&self) -> Vec<ContainerMount> {
        let mounts = list(&self.0, "/Mounts").iter().filter_map(mount);
        let tmpfs = texts(&self.0, "/HostConfig/Tmpfs").into_iter().map(|(destination, options)| ContainerMount {
            kind: "tmpfs".to_owned(),
            destination,
            options: options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect(),
            ..ContainerMount::default()
        });
        mounts.chain(tmpfs).collect()
    }

    fn networks(&self) -> Vec<ContainerNetwork> {
        let all = self.0.pointer("/NetworkSettings/Networks").and_then(Value::as_object).into_iter().flatten();
        let of = |(name, network): (&String, &Value)| {
            let addresses = |pointers: [&str; 2]| {
                let found = pointers.into_iter().filter_map(|pointer| text(network, pointer)?.parse().ok());
                found.collect::<Vec<IpAddr>>()
            };
            ContainerNetwork {
                name: name.clone(),
                addresses: addresses(["/IPAddress", "/GlobalIPv6Address"]),
                static_addresses: addresses(["/IPAMConfig/IPv4Address", "/IPAMConfig/IPv6Address"]),
                // Docker adds the short id by itself.
                aliases: strings(network, "/Aliases").into_iter().filter(|name| !self.id().starts_with(name)).collect(),
                mac: text(network, "/MacAddress").map(str::to_owned),
            }
        };
        all.map(of).collect()
    }

    fn ports(&self) -> Vec<PublishedPort> {
        let all = self.0.pointer("/HostConfig/PortBindings").and_then(Value::as_object).into_iter().flatten();
        let of = |(port, bindings): (&String, &Value)| {
            let (port, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
            let (port, protocol) = (port.parse().ok()?, protocol.to_owned());
            let bindings = bindings.as_array()?.clone();
            Some(bindings.into_iter().map(move |binding| PublishedPort {
                protocol: protocol.clone(),
                port,
                host_address: text(&binding, "/HostIp").and_then(|address| address.parse().ok()),
                host_port: text(&binding, "/HostPort").and_then(|port| port.parse().ok()).filter(|port| *port > 0),
            }))
        };
        all.filter_map(of).flatten().collect()
    }
}

fn mount(mount: &Value) -> Option<ContainerMount> {
    let said = |pointer: &str| text(mount, pointer).map(str::to_owned);
    let name = said("/Name");
    let options = said("/Mode").unwrap_or_default();
    let options = options.split(',').filter(|option| !matches!(*option, "" | "rw" | "ro")).map(str::to_owned);
    Some(ContainerMount {
        kind: said("/Type")?,
        destination: said("/Destination")?,
        anonymous: name.as_deref().is_some_and(is_made_up),
        name,
        driver: said("/Driver"),
        source: said("/Source"),
        read_only: mount.get("RW").and_then(Value::as_bool) == Some(false),
        options: options.chain(said("/Propagation")).collect(),
    })
}

/// Whether Docker chose the name of a volume.
fn is_made_up(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn device(device: &Value) -> Option<String> {
    let part = |pointer: &str| text(device, pointer);
    let permissions = part("/CgroupPermissions").unwrap_or("rwm");
    Some(format!("{}:{}:{permissions}", part("/PathOnHost")?, part("/PathInContainer")?))
}

fn ulimit(ulimit: &Value) -> Option<String> {
    let bound = |pointer: &str| ulimit.get(pointer).and_then(Value::as_i64);
    Some(format!("{}={}:{}", text(ulimit, "/Name")?, bound("Soft")?, bound("Hard")?))
}

/// `docker inspect` of one container.
pub(super) fn container(answer: &[u8]) -> Result<Inspected, serde_json::Error> {
    let found = containers(answer)?.into_iter().next();
    found.ok_or_else(|| serde_json::Error::missing_field("Id"))
}

/// The same of several, without those that cannot be told apart.
pub(super) fn containers(answer: &[u8]) -> Result<Vec<Inspected>, serde_json::Error> {
    Ok(entries(answer)?.into_iter().filter_map(Inspected::read).collect())
}

/// The names and labels of several.
pub(super) fn labels(answer: &[u8]) -> Result<Vec<Labelled>, serde_json::Error> {
    Ok(containers(answer)?.iter().map(|found| (found.name().to_owned(), found.labels())).collect())
}

/// `docker ps --format {{json .}}`: an object on each line.
pub(super) fn listed(answer: &[u8]) -> Result<Vec<survey::Container>, serde_json::Error> {
    let listed = |entry: &Value| {
        let names = text(entry, "/Names").unwrap_or_default();
        Some(survey::Container {
            id: text(entry, "/ID")?.to_owned(),
            names: names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            state: text(entry, "/State").unwrap_or_default().to_owned(),
        })
    };
    let entries: Result<Vec<Value>, _> = serde_json::Deserializer::from_slice(answer).into_iter().collect();
    Ok(entries?.iter().filter_map(listed).collect())
}

/// What Docker calls the runtime that restores, in what `docker info` says of its runtimes.
pub(super) fn restoring_runtime(answer: &[u8]) -> Result<Option<String>, serde_json::Error> {
    let runtimes: Value = serde_json::from_slice(answer)?;
    let restores = |(_, runtime): &(&String, &Value)| {
        let path = text(runtime, "/path").or_else(|| text(runtime, "/Path")).map(Path::new);
        path.and_then(Path::file_name).is_some_and(|name| name == "syncpoint-runtime")
    };
    Ok(runtimes.as_object().into_iter().flatten().find(restores).map(|(name, _)| name.clone()))
}

/// The id of an image.
pub(super) fn image_id(answer: &[u8]) -> Result<Option<String>, serde_json::Error> {
    let images: Value = serde_json::from_slice(answer)?;
    Ok(text(&images, "/0/Id").map(str::to_owned))
}

/// `docker network inspect` of one network.
pub(super) fn network(answer: &[u8]) -> Result<Network, serde_json::Error> {
    let found = entries(answer)?.into_iter().next();
    let entry = found.ok_or_else(|| serde_json::Error::custom("one network was expected"))?;
    let subnets = list(&entry, "/IPAM/Config").iter().map(|range| text(range, "/Subnet")?.parse().ok());
    // Where one of them is not understood, no address is known to be outside.
    let subnets: Option<Vec<Subnet>> = subnets.collect();
    let mut network = Network { subnets: subnets.unwrap_or_default(), ..Network::default() };
    for (id, member) in entry.get("Containers").and_then(Value::as_object).into_iter().flatten() {
        let owner = text(member, "/Name").unwrap_or(id);
        let addresses = ["/IPv4Address", "/IPv6Address"].into_iter();
        let addresses = addresses.filter_map(|pointer| text(member, pointer)?.split('/').next()?.parse().ok());
        network.taken.extend(addresses.map(|address: IpAddr| (address, owner.to_owned())));
    }
    Ok(network)
}

fn strings(entry: &Value, pointer: &str) -> Vec<String> {
    list(entry, pointer).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answers::{lines, volumes};

    /// What Docker 26.1.5 says, less what is never read.
    const CONSUMER: &str = r#"[{"Id":"9a74","Created":"2026-12-01T03:25:35.6Z","Path":"/bin/ledger","Args":["consumer"],
        "State":{"Status":"running","Running":true,"Pid":313},"Image":"sha256:8ddd","Name":"/consumer",
        "HostConfig":{"Binds":["data:/data"],"NetworkMode":"demo","LogConfig":{"Type":"json-file","Config":{}},
        "PortBindings":{"7000/tcp":[{"HostIp":"127.0.0.1","HostPort":"8000"},{"HostIp":"","HostPort":""}],"9/udp":null},
        "RestartPolicy":{"Name":"on-failure","MaximumRetryCount":3},"CapAdd":["CAP_SYS_PTRACE"],"CapDrop":null,
        "Annotations":{"io.syncpoint.x":"y"},"IpcMode":"private","PidMode":"","Privileged":false,"ShmSize":67108864,
        "Runtime":"runc","Memory":0,"Tmpfs":{"/run":"size=1m,mode=755"},"Ulimits":[{"Name":"nofile","Soft":64,"Hard":-1}],
        "Devices":[{"PathOnHost":"/dev/fuse","PathInContainer":"/dev/fuse","CgroupPermissions":"rw"}]},
        "Mounts":[{"Type":"volume","Name":"data","Source":"/v/data/_data","Destination":"/data","Driver":"local","Mode":"z",
        "RW":true,"Propagation":""},{"Type":"bind","Source":"/srv","Destination":"/srv","Mode":"ro","RW":false,
        "Propagation":"rprivate"}],"Config":{"Hostname":"9a74","User":"","Tty":false,"Env":["A=b"],"Cmd":["/bin/ledger",
        "consumer"],"Image":"demo:1","WorkingDir":"","Entrypoint":null,"Labels":{"a":"b"},"StopTimeout":5},
        "NetworkSettings":{"Networks":{"demo":{"IPAMConfig":{"IPv4Address":"10.90.0.10"},"Aliases":["ledger","9a"],
        "MacAddress":"02:42:0a:5a:00:0a","IPAddress":"10.90.0.10","GlobalIPv6Address":""}}}}]"#;

    #[test]
    fn what_docker_26_says_of_a_container() {
        let found = container(CONSUMER.as_bytes()).unwrap();
        assert_eq!((found.id(), found.name(), found.pid()), ("9a74", "consumer", 313));
        assert_eq!(found.volumes(), [("data".to_owned(), "/v/data/_data".into())].into());
        found.check_mounts().unwrap();
        let described = found.describe(Some("26.1.5".to_owned()));
        insta::assert_snapshot!(serde_json::to_string_pretty(&described).unwrap());
        let config = found.config_dump("2026-12-01T03:26:00Z");
        assert_eq!(config["rootfsImageRef"], "sha256:8ddd");
    }

    #[test]
    fn one_that_stands_still_is_not_dumped() {
        for (status, pid) in [("running", 313), ("paused", 0), ("exited", 0), ("restarting", 0)] {
            let answer = CONSUMER.replace(r#""Status":"running""#, &format!(r#""Status":"{status}""#));
            assert_eq!(container(answer.as_bytes()).unwrap().pid(), pid, "{status}");
        }
    }

    #[test]
    fn namespaces_of_other_containers_are_ties() {
        let answer = CONSUMER.replace(r#""NetworkMode":"demo""#, r#""NetworkMode":"container:77""#);
        assert_eq!(container(answer.as_bytes()).unwrap().shared_with(), ["77".to_owned()].into());
        assert_eq!(container(CONSUMER.as_bytes()).unwrap().shared_with(), BTreeSet::new());
    }

    /// Each field that has a name is taken away in turn, or is another type.
    #[test]
    fn a_container_is_known_by_its_id_whatever_else_is_missing() {
        let whole: Value = serde_json::from_str::<Vec<Value>>(CONSUMER).unwrap().remove(0);
        fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
            for (key, inner) in value.as_object().into_iter().flatten() {
                let pointer = format!("{at}/{}", key.replace('/', "~1"));
                pointers(inner, &pointer, found);
                found.push(pointer);
            }
        }
        let mut all = Vec::new();
        pointers(&whole, "", &mut all);
        assert!(all.len() > 40, "{all:?}");
        for pointer in all.iter().filter(|pointer| *pointer != "/Id") {
            for other in
                [None, Some(Value::Null), Some(Value::from(7)), Some(Value::from("x")), Some(Value::from([true]))]
            {
                let mut entry = whole.clone();
                let (parent, key) = pointer.rsplit_once('/').unwrap();
                let parent = entry.pointer_mut(parent).and_then(Value::as_object_mut).unwrap();
                let key = key.replace("~1", "/");
                match other {
                    None => drop(parent.remove(&key)),
                    Some(other) => drop(parent.insert(key, other)),
                }
                let found = container(&serde_json::to_vec(&[entry]).unwrap()).unwrap();
                assert_eq!(found.describe(None).id, "9a74", "{pointer}");
                assert_eq!(found.check_mounts().is_err(), pointer == "/Mounts", "{pointer}");
            }
        }
    }

    #[test]
    fn a_volume_without_its_place_is_an_error() {
        for bad in [r#"{"Type":"volume","Name":"a"}"#, r#"{"Type":"volume","Source":"/a"}"#, r#"{"Source":"/a"}"#, "7"]
        {
            let answer = format!(r#"[{{"Id":"9a74","Mounts":[{bad}]}}]"#);
            container(answer.as_bytes()).unwrap().check_mounts().unwrap_err();
        }
    }

    #[test]
    fn lists_and_networks() {
        let answer = br#"{"ID":"92e3","Names":"producer,web/producer","State":"running"}
            {"Names":"x"}
            {"ID":"9a74","Names":"","State":null}"#;
        let found = listed(answer).unwrap();
        assert_eq!((found[0].name(), found[0].state.as_str()), ("producer", "running"));
        assert_eq!((found[1].name(), found.len()), ("9a74", 2));
        assert_eq!(listed(b"").unwrap(), []);
        listed(b"{").unwrap_err();
        assert_eq!(lines(b"a\n\n b \n"), ["a", "b"]);
        let known =
            volumes(br#"[{"Name":"v","Driver":"local","Labels":null,"Options":{"type":"tmpfs"}},{"Driver":"x"}]"#);
        assert!(known.as_ref().unwrap()[0].is_mount() && known.unwrap().len() == 1);
        let net = network(
            br#"[{"Name":"demo","IPAM":{"Config":[{"Subnet":"10.90.0.0/24"}]},"Containers":{"92e3":{"Name":"producer",
            "IPv4Address":"10.90.0.11/24","IPv6Address":""},"9a74":{"IPv4Address":"10.90.0.10/24"}}}]"#,
        )
        .unwrap();
        let taken = [("10.90.0.11", "producer"), ("10.90.0.10", "9a74")];
        assert_eq!(net.taken, taken.map(|(address, name)| (address.parse().unwrap(), name.to_owned())).into());
        assert!(net.subnets[0].contains("10.90.0.12".parse().unwrap()));
        network(b"[]").unwrap_err();
    }
}
