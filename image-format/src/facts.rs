//! What a dump says about itself: the container, its processes, networks and needs.
//!
//! Facts come from the dump's own small files (the engine's JSON, CRIU's images, the head of CRIU's log) and from nowhere
//! else. What a dump does not say is absent here. They inform people and preflight checks; restoring does not need them.

mod annotations;
mod builder;
mod container;
mod dump_log;
mod engine;
mod summary;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

pub use builder::{FactsBuilder, FactsError};

use crate::DumpKind;

/// Everything that a dump says about itself and that someone asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Whose layout of files the dump has.
    pub kind: DumpKind,
    /// Version of the engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// Name of the container; where Kubernetes made it, its name within the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_name: Option<String>,
    /// Id of the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// The pod that the container was part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// Normalised name of the base image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs_image_name: Option<String>,
    /// Id of the base image (podman), or its reference by digest (CRI-O, containerd).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs_image_id: Option<String>,
    /// Name of the base image as the user gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_image_name: Option<String>,
    /// Name of the OCI runtime, such as `runc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_name: Option<String>,
    /// Version of the OCI runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_version: Option<String>,
    /// Version of CRIU, such as `4.2.1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub criu_version: Option<String>,
    /// Version of conmon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conmon_version: Option<String>,
    /// Architecture in the words of the OCI image specification, such as `amd64`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Release of the kernel that the container ran on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Version of the control groups there: `v1` or `v2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_version: Option<String>,
    /// Distribution of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distribution_name: Option<String>,
    /// Version of that distribution.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distribution_version: Option<String>,
    /// When the dump was made, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpointed_at: Option<String>,
    /// Labels of the container.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations of the container's runtime specification.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub spec_annotations: BTreeMap<String, String>,
    /// Networks that the container was attached to, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<NetworkFact>,
    /// Names of the engine's volumes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub named_volumes: Vec<String>,
    /// The folder that is the root filesystem of a container that was not made of an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<String>,
    /// Where podman had mounted overlays of folders or of volumes (`:O`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub overlays: Vec<String>,
    /// Where podman had mounted images.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_mounts: Vec<String>,
    /// Where podman had mounted parts of volumes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volume_parts: Vec<String>,
    /// Secrets that podman had put into files. What they say is in no dump.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretFact>,
    /// Mounts, as the runtime specification lists them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<MountFact>,
    /// Where standard input, output and error led; `pipe:[...]` is a pipe that a restore has to bring along.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub descriptors: Vec<String>,
    /// Whether TCP connections are in the dump, so that a restore needs `--tcp-established` or `--tcp-close`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_established: Option<bool>,
    /// The TCP connections.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub connections: Vec<Connection>,
    /// Processes, in CRIU's order: parents before children.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<Process>,
    /// Bytes of memory in the dump's own pages files; absent also where the size of a page is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages_bytes: Option<u64>,
    /// CRIU's own timings of the dump.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<DumpTimings>,
    /// What the dump needs of a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuFact>,
}

/// A Kubernetes or podman pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Pod {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its id in the engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its Kubernetes namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its Kubernetes uid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// One network of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkFact {
    /// The network's name in the engine.
    pub name: String,
    /// Addresses the container had there.
    pub addresses: Vec<IpAddr>,
    /// Addresses that were asked for when the container was made; the others were the engine's choice.
    pub static_ips: Vec<IpAddr>,
    /// Hardware address of the interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// One secret of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SecretFact {
    /// Its name in the engine.
    pub name: String,
    /// Where it was asked to be: absolute, or below `/run/secrets`; else it has its name there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MountFact {
    /// Where it is in the container.
    pub destination: String,
    /// Type, such as `bind` or `tmpfs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// What is mounted: on a bind mount a path of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// One TCP connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Connection {
    /// The end in the container.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

/// One process; numbers are those inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Process id of the parent, 0 where there is none.
    pub parent: u32,
    /// Count of threads.
    pub threads: usize,
    /// Name as the kernel has it, at most 15 bytes; in a name that is not UTF-8, `\xNN` is a byte that is no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// CRIU's own timings, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DumpTimings {
    /// Until all tasks stood.
    pub freezing_us: u32,
    /// How long they stood.
    pub frozen_us: u32,
    /// Taking the memory.
    pub memdump_us: u32,
    /// Writing it.
    pub memwrite_us: u32,
}

/// Processor state that the dump holds, and that a host must be able to take back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CpuFact {
    /// x86 state components in use by any thread, as `XSTATE_BV` numbers them.
    pub xstate: u64,
}

impl CpuFact {
    /// The flags in /proc/cpuinfo that a host needs for the components in use. A program may have chosen code for further
    /// features of its old host at its start; a dump does not say that.
    #[must_use]
    pub fn needed_flags(&self) -> Vec<&'static str> {
        const FLAGS: &[(u64, &str)] = &[
            (1 << 0, "fpu"),
            (1 << 1, "sse"),
            (1 << 2, "avx"),
            (1 << 3 | 1 << 4, "mpx"),
            (1 << 5 | 1 << 6 | 1 << 7, "avx512f"),
            (1 << 9, "pku"),
            (1 << 17 | 1 << 18, "amx_tile"),
        ];
        FLAGS.iter().filter(|(mask, _)| self.xstate & mask != 0).map(|(_, flag)| *flag).collect()
    }
}

#[cfg(test)]
mod tests;
