//! Collects facts while the files of a dump pass by.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::dump_log::{self, LogHead};
use super::engine::{
    ConfigDump, ContainerStatus, NamedNetworkOptions, NamedVolume, NetworkOptions, NetworkStatus, OtherVolume, Secret,
    Spec,
};
use super::{Connection, CpuFact, DumpTimings, Facts, MountFact, NetworkFact, Pod, Process, SecretFact};
use crate::criu::{
    Core, CriuError, File, ImageKind, InetSocket, Inventory, PagemapEntry, PagemapHead, Records, Stats, TaskTree,
};
use crate::json::{self, JsonError};
use crate::timestamp::is_rfc3339;
use crate::{Container, DumpKind, annotation};

/// Bytes of a configuration that an engine wrote; real ones have some 30 KiB.
const MAX_CONFIG: u64 = 8 << 20;
/// Bytes of the other small JSON files.
const MAX_STATUS: u64 = 1 << 20;
/// Bytes of the log's head.
const MAX_LOG_HEAD: u64 = 16 << 10;
/// Bytes of an image file that has one short record, or one a process.
const MAX_RECORDS: u64 = 1 << 20;
/// Bytes of an image file with a record a file or a run of pages.
const MAX_TABLE: u64 = 8 << 20;
/// TCP connections that are kept.
const MAX_CONNECTIONS: usize = 1 << 16;
/// Characters of a process' name that are kept; the kernel gives it 15 bytes, each of which may need an escape.
const MAX_COMMAND: usize = 64;
/// Versions of CRIU's images that are known: without and with the common magic.
const IMAGE_VERSIONS: std::ops::RangeInclusive<u32> = 1..=2;

/// Year of the time that Go programs write when they have none.
const GO_ZERO_YEAR: &str = "0001-";

/// Why a file of a dump gives no facts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FactsError {
    /// A JSON file of the engine.
    #[error("{name} of the dump cannot be read")]
    Json {
        /// The file.
        name: String,
        /// What is wrong with it.
        source: JsonError,
    },
    /// An image file of CRIU.
    #[error("{name} of the dump cannot be read")]
    Criu {
        /// The file.
        name: String,
        /// What is wrong with it.
        source: CriuError,
    },
    /// Images of a CRIU that is newer than any known.
    #[error("{name} says that CRIU's images are of version {version}; versions 1 and 2 are known")]
    ImageVersion {
        /// The file.
        name: String,
        /// Its version.
        version: u32,
    },
}

/// What is known about which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Config,
    Spec,
    NetworkStatus,
    ContainerStatus,
    Container,
    Descriptors,
    Log,
    Image(ImageKind),
}

impl Source {
    /// Names are those of the archives; files of a folder that CRIU wrote are given below `checkpoint/` too.
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "config.dump" => Self::Config,
            "spec.dump" | "config.json" => Self::Spec,
            "network.status" => Self::NetworkStatus,
            "status.dump" => Self::ContainerStatus,
            "container.json" => Self::Container,
            "dump.log" | "checkpoint/dump.log" => Self::Log,
            "stats-dump" | "checkpoint/stats-dump" => Self::Image(ImageKind::Stats),
            "checkpoint/descriptors.json" => Self::Descriptors,
            "checkpoint/inventory.img" => Self::Image(ImageKind::Inventory),
            "checkpoint/pstree.img" => Self::Image(ImageKind::Pstree),
            "checkpoint/files.img" => Self::Image(ImageKind::Files),
            _ => {
                let image = name.strip_prefix("checkpoint/")?.strip_suffix(".img")?;
                if image.strip_prefix("core-").is_some_and(|id| id.parse::<u32>().is_ok()) {
                    Self::Image(ImageKind::Core)
                } else if image.starts_with("pagemap-") {
                    Self::Image(ImageKind::Pagemap)
                } else {
                    return None;
                }
            }
        })
    }

    fn max_bytes(self) -> u64 {
        match self {
            Self::Config | Self::Spec | Self::Container => MAX_CONFIG,
            Self::NetworkStatus | Self::ContainerStatus | Self::Descriptors => MAX_STATUS,
            Self::Log => MAX_LOG_HEAD,
            Self::Image(ImageKind::Inventory | ImageKind::Core | ImageKind::Stats | ImageKind::Pstree) => MAX_RECORDS,
            Self::Image(ImageKind::Files | ImageKind::Pagemap | ImageKind::Memory) => MAX_TABLE,
        }
    }
}

/// Takes the small files of a dump, in any order, and makes [`Facts`] of them. Each file is read when it is given and
/// then forgotten, so that memory is bounded by what is known about the processes, not by the files.
#[derive(Debug, Default)]
pub struct FactsBuilder {
    config: ConfigDump,
    spec: Spec,
    networks: BTreeMap<String, NetworkStatus>,
    status_labels: BTreeMap<String, String>,
    container: Option<Container>,
    descriptors: Vec<String>,
    log: LogHead,
    trees: Vec<TaskTree>,
    /// Names of processes by the number in the image file's name, which is the process id.
    commands: BTreeMap<u32, String>,
    architecture: Option<&'static str>,
    xstate: Option<u64>,
    sockets: Option<Vec<InetSocket>>,
    big_endian: bool,
    stats: Stats,
    pages: Option<u64>,
    /// A pagemap was too large to be read, so that the pages are not known from pagemaps.
    pages_unknown: bool,
    recorded: BTreeMap<String, String>,
}

impl FactsBuilder {
    /// How many bytes of the file are of use, or `None` if it tells nothing. `name` is the entry's name in the archive,
    /// without `./`; what lies in a folder that CRIU wrote counts as lying below `checkpoint/`.
    #[must_use]
    pub fn wants(name: &str) -> Option<u64> {
        Source::of(name).map(Source::max_bytes)
    }

    /// Takes a file: its whole size, and its first bytes, as many as there are up to what [`FactsBuilder::wants`] says.
    ///
    /// A file that is larger than that gives no facts, except the log, of which the head is enough, and the configurations,
    /// which no engine could restore from.
    ///
    /// # Errors
    /// A file that is not what its name says.
    pub fn add(&mut self, name: &str, size: u64, bytes: &[u8]) -> Result<(), FactsError> {
        let Some(source) = Source::of(name) else {
            return Ok(());
        };
        let limit = source.max_bytes();
        let json = |source| FactsError::Json { name: name.to_owned(), source };
        match source {
            Source::Config | Source::Spec | Source::Container if size > limit => {
                return Err(json(JsonError::TooLarge { size, limit }));
            }
            Source::Image(ImageKind::Pagemap) if size > limit => self.pages_unknown = true,
            Source::Log => self.log = dump_log::parse(&bytes[..bytes.len().min(MAX_LOG_HEAD as usize)]),
            _ if size > limit => {}
            Source::Config => self.config = json::parse(bytes, limit).map_err(json)?,
            Source::Spec => self.spec = json::parse(bytes, limit).map_err(json)?,
            Source::NetworkStatus => self.networks = network_status(bytes, limit).map_err(json)?,
            Source::ContainerStatus => {
                let status: ContainerStatus = json::parse(bytes, limit).map_err(json)?;
                self.status_labels = status.labels.unwrap_or_default();
            }
            Source::Container => self.container = json::parse(bytes, limit).map_err(json)?,
            Source::Descriptors => {
                let descriptors: Option<Vec<String>> = json::parse(bytes, limit).map_err(json)?;
                self.descriptors = descriptors.unwrap_or_default();
            }
            Source::Image(kind) => self.add_image(name, kind, bytes)?,
        }
        Ok(())
    }

    /// The machine, as far as it is known by now.
    pub(crate) fn architecture(&self) -> Option<&str> {
        self.architecture
    }

    /// CRIU's version, as far as it is known by now.
    pub(crate) fn criu_version(&self) -> Option<&str> {
        self.log.criu_version.as_deref()
    }

    /// Takes the annotations of a checkpoint image: what podman wrote there about its host stands in no file of the dump.
    pub fn add_image_annotations(&mut self, annotations: &BTreeMap<String, String>) {
        let podman = annotations.iter().filter_map(|(key, value)| {
            let value = (!value.is_empty()).then(|| value.clone())?;
            Some((key.strip_prefix(annotation::PODMAN_PREFIX)?.to_owned(), value))
        });
        self.recorded.extend(podman);
    }

    fn add_image(&mut self, name: &str, kind: ImageKind, bytes: &[u8]) -> Result<(), FactsError> {
        let criu = |source| FactsError::Criu { name: name.to_owned(), source };
        let mut records = Records::open(kind, bytes).map_err(criu)?;
        match kind {
            ImageKind::Inventory => {
                let version = records.one::<Inventory>().map_err(criu)?.version;
                if !IMAGE_VERSIONS.contains(&version) {
                    return Err(FactsError::ImageVersion { name: name.to_owned(), version });
                }
            }
            ImageKind::Stats => self.stats = records.one().map_err(criu)?,
            ImageKind::Core => {
                let core: Core = records.one().map_err(criu)?;
                self.architecture = self.architecture.or(core.architecture());
                if let Some(xstate) = core.xstate() {
                    *self.xstate.get_or_insert(0) |= xstate;
                }
                let id = name.trim_start_matches("checkpoint/core-").trim_end_matches(".img").parse();
                if let (Ok(id), Some(task)) = (id, core.task) {
                    self.commands.insert(id, text_of(&task.command));
                }
            }
            ImageKind::Pstree => {
                self.trees.clear();
                while let Some(tree) = records.next_record().map_err(criu)? {
                    self.trees.push(tree);
                }
            }
            ImageKind::Pagemap => {
                records.next_record::<PagemapHead>().map_err(criu)?;
                let mut pages = self.pages.unwrap_or(0);
                while let Some(entry) = records.next_record::<PagemapEntry>().map_err(criu)? {
                    pages = pages.saturating_add(entry.restored());
                }
                self.pages = Some(pages);
            }
            // Nothing of it is a fact, and it is not asked for.
            ImageKind::Memory => {}
            ImageKind::Files => {
                self.big_endian = records.is_big_endian();
                let mut sockets = Vec::new();
                while let Some(file) = records.next_record::<File>().map_err(criu)? {
                    let full = sockets.len() >= MAX_CONNECTIONS;
                    sockets.extend(file.socket.filter(|socket| !full && is_connection(socket)));
                }
                self.sockets = Some(sockets);
            }
        }
        Ok(())
    }

    /// The facts of everything that was given.
    #[must_use]
    pub fn finish(mut self, kind: DumpKind) -> Facts {
        let container = self.container.take();
        let facts = self.finish_without_container(kind);
        match container {
            Some(container) => facts.with_container(container),
            None => facts,
        }
    }

    fn finish_without_container(mut self, kind: DumpKind) -> Facts {
        let networks = self.networks();
        let connections = self.connections();
        let processes = self.processes();
        let pages_bytes = self.pages_bytes();
        let timings = self.stats.dump.as_ref().map(|dump| DumpTimings {
            freezing_us: dump.freezing_time,
            frozen_us: dump.frozen_time,
            memdump_us: dump.memdump_time,
            memwrite_us: dump.memwrite_time,
        });
        let pod = self.pod();
        let mut recorded = |key: &str| self.recorded.remove(key);
        let (config, spec) = (self.config, self.spec);
        let spec_annotations = spec.annotations.unwrap_or_default();
        let key = match kind {
            DumpKind::CriO => Some("io.kubernetes.container.name"),
            DumpKind::Containerd => Some("io.kubernetes.cri.container-name"),
            DumpKind::Podman | DumpKind::Runc | DumpKind::Docker | DumpKind::Criu => None,
        };
        let name = key.and_then(|key| spec_annotations.get(key).cloned());
        let mounts = spec.mounts.unwrap_or_default().into_iter();
        let volumes = config.named_volumes.unwrap_or_default();
        let secrets = config.secrets.unwrap_or_default().into_iter();
        let mut labels = config.labels.unwrap_or_default();
        labels.append(&mut self.status_labels);
        Facts {
            kind,
            engine_version: recorded("podman.version"),
            container_name: name.or(config.name).or_else(|| recorded("name")).and_then(filled),
            container_id: config.id.and_then(filled),
            pod,
            rootfs_image_name: config.rootfs_image_name.and_then(filled),
            rootfs_image_id: config.rootfs_image_id.or(config.rootfs_image_ref).and_then(filled),
            raw_image_name: config.raw_image_name.or(config.rootfs_image).and_then(filled),
            runtime_name: config.runtime.and_then(filled),
            runtime_version: recorded("runtime.version"),
            criu_version: self.log.criu_version.or_else(|| dotted_version(&recorded("criu.version")?)),
            conmon_version: recorded("conmon.version"),
            architecture: self.architecture.map(str::to_owned),
            kernel: self.log.kernel.or_else(|| recorded("host.kernel")),
            cgroup_version: recorded("cgroups.version"),
            distribution_name: recorded("distribution.name"),
            distribution_version: recorded("distribution.version"),
            checkpointed_at: config
                .checkpointed_time
                .filter(|time| is_rfc3339(time) && !time.starts_with(GO_ZERO_YEAR)),
            labels,
            spec_annotations,
            networks,
            overlays: places(config.overlay_volumes).chain(mounted(&volumes, is_overlay)).collect(),
            image_mounts: places(config.ctr_image_volumes).collect(),
            volume_parts: mounted(&volumes, is_part).collect(),
            rootfs: config.rootfs.and_then(filled),
            secrets: secrets.map(|Secret { name, target }| SecretFact { name, target }).collect(),
            named_volumes: volumes.into_iter().map(|volume| volume.volume_name).collect(),
            mounts: mounts
                .map(|mount| MountFact { destination: mount.destination, kind: mount.kind, source: mount.source })
                .collect(),
            descriptors: self.descriptors,
            tcp_established: self.sockets.map(|sockets| !sockets.is_empty()),
            connections,
            processes,
            pages_bytes,
            timings,
            cpu: self.xstate.map(|xstate| CpuFact { xstate }),
        }
    }

    fn networks(&mut self) -> Vec<NetworkFact> {
        let mut asked: BTreeMap<String, NetworkOptions> = self.config.new_networks.take().unwrap_or_default();
        let ordered = self.config.ordered_networks.take().unwrap_or_default().into_iter();
        asked.extend(ordered.map(|NamedNetworkOptions { name, static_ips, static_mac }| {
            (name, NetworkOptions { static_ips, static_mac })
        }));
        let names: BTreeSet<String> = asked.keys().chain(self.networks.keys()).cloned().collect();
        let fact = |name: String| {
            let asked = asked.remove(&name).unwrap_or_default();
            let mut fact = NetworkFact {
                addresses: Vec::new(),
                static_ips: asked.static_ips.unwrap_or_default(),
                mac: asked.static_mac,
                name,
            };
            let status = self.networks.get(&fact.name).and_then(|status| status.interfaces.as_ref());
            for interface in status.into_iter().flat_map(BTreeMap::values) {
                fact.addresses.extend(interface.subnets.iter().flatten().filter_map(|subnet| subnet.address()));
                fact.mac = fact.mac.take().or_else(|| interface.mac_address.clone()).and_then(filled);
            }
            fact
        };
        names.into_iter().map(fact).collect()
    }

    fn connections(&self) -> Vec<Connection> {
        let end = |family, words: &[u32], port: u32| {
            Some(SocketAddr::new(address(family, words, self.big_endian)?, u16::try_from(port).ok()?))
        };
        let connection = |socket: &InetSocket| {
            Some(Connection {
                local: end(socket.family, &socket.local_address, socket.local_port)?,
                remote: end(socket.family, &socket.remote_address, socket.remote_port)?,
            })
        };
        self.sockets.iter().flatten().filter_map(connection).collect()
    }

    fn processes(&mut self) -> Vec<Process> {
        let process = |tree: TaskTree| Process {
            pid: tree.pid,
            parent: tree.parent,
            threads: tree.threads.len(),
            command: self.commands.remove(&tree.pid),
        };
        std::mem::take(&mut self.trees).into_iter().map(process).collect()
    }

    /// From the pagemaps, which say what a restore will find; from CRIU's statistics where they were too large.
    fn pages_bytes(&self) -> Option<u64> {
        let counted = if self.pages_unknown { None } else { self.pages };
        let written = || {
            let dump = self.stats.dump.as_ref()?;
            Some(dump.pages_written.saturating_add(dump.shared_pages_written.unwrap_or(0)))
        };
        let page_size = page_size(self.architecture?)?;
        counted.or_else(written).map(|pages| pages.saturating_mul(page_size))
    }

    /// Pods of podman stand in config.dump; those of Kubernetes in annotations that CRI-O and containerd name differently.
    fn pod(&self) -> Option<Pod> {
        let annotations = self.spec.annotations.as_ref();
        let find = |keys: &[&str]| keys.iter().find_map(|key| annotations?.get(*key).cloned()).and_then(filled);
        let pod = Pod {
            name: find(&["io.kubernetes.pod.name", "io.kubernetes.cri.sandbox-name"]),
            id: find(&["io.kubernetes.cri-o.SandboxID", "io.kubernetes.cri.sandbox-id"])
                .or_else(|| self.config.pod.clone().and_then(filled)),
            namespace: find(&["io.kubernetes.pod.namespace", "io.kubernetes.cri.sandbox-namespace"]),
            uid: find(&["io.kubernetes.pod.uid", "io.kubernetes.cri.sandbox-uid"]),
        };
        (pod != Pod::default()).then_some(pod)
    }
}

/// Bytes of a page, where the architecture has one size. The others' is the kernel's choice, and no image tells it.
fn page_size(architecture: &str) -> Option<u64> {
    matches!(architecture, "amd64" | "arm" | "riscv64" | "s390x").then_some(4096)
}

/// podman 3 wrote a list of plugin results here, which says nothing by network name; podman 4 and later write a map.
fn network_status(bytes: &[u8], limit: u64) -> Result<BTreeMap<String, NetworkStatus>, JsonError> {
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Ok(BTreeMap::new());
    }
    Ok(json::parse::<Option<_>>(bytes, limit)?.unwrap_or_default())
}

/// Neither closed nor listening: the states for which CRIU asks for `--tcp-established` (`criu/sk-inet.c`).
fn is_connection(socket: &InetSocket) -> bool {
    const TCP: u32 = 6;
    const CLOSE: u32 = 7;
    const LISTEN: u32 = 10;
    socket.protocol == TCP && socket.state != CLOSE && socket.state != LISTEN
}

fn address(family: u32, words: &[u32], big_endian: bool) -> Option<IpAddr> {
    let bytes = |word: &u32| if big_endian { word.to_be_bytes() } else { word.to_le_bytes() };
    match (family, words) {
        (2, [word, ..]) => Some(Ipv4Addr::from(bytes(word)).into()),
        (10, [a, b, c, d]) => {
            let octets: Vec<u8> = [a, b, c, d].into_iter().flat_map(bytes).collect();
            Some(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).into())
        }
        _ => None,
    }
}

/// A process' name as text: as it is if it is UTF-8. Otherwise each byte that belongs to no character becomes `\xNN`, and a
/// backslash `\\`, so that different names stay different.
fn text_of(name: &[u8]) -> String {
    let mut text = String::new();
    match str::from_utf8(name) {
        Ok(name) => text.push_str(name),
        Err(_) => {
            for part in name.utf8_chunks() {
                text.push_str(&part.valid().replace('\\', "\\\\"));
                text.extend(part.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
            }
        }
    }
    text.chars().take(MAX_COMMAND).collect()
}

/// podman and its friends write empty text for what they do not know.
fn filled(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// podman notes CRIU's version as one number: 40201 is 4.2.1.
fn dotted_version(number: &str) -> Option<String> {
    let number: u32 = number.parse().ok()?;
    Some(format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100))
}

/// Where overlays or images are mounted.
fn places(volumes: Option<Vec<OtherVolume>>) -> impl Iterator<Item = String> {
    volumes.unwrap_or_default().into_iter().map(|volume| volume.dest)
}

/// Where those volumes are mounted that are like that.
fn mounted(volumes: &[NamedVolume], is: fn(&NamedVolume) -> bool) -> impl Iterator<Item = String> {
    volumes.iter().filter(move |volume| is(volume)).map(|volume| volume.dest.clone())
}

fn is_overlay(volume: &NamedVolume) -> bool {
    volume.options.iter().flatten().any(|option| option == "O")
}

fn is_part(volume: &NamedVolume) -> bool {
    volume.sub_path.as_ref().is_some_and(|path| !path.is_empty())
}
