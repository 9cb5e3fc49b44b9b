//! What stands in the way of a restore, in words, with what to do about it.

use std::net::IpAddr;
use std::path::PathBuf;

use engine::EngineKind;
use image_format::{Digest, DumpKind, MemberId};

/// One thing that would make a restore fail, or that is worth knowing before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Restoring containers needs root.
    #[error("only root can restore containers: CRIU gives tasks their ids, namespaces and sockets back as they were")]
    NotRoot,
    /// A layer or a config is not in the store.
    #[error("member {member}: blob {digest} is not in {store}")]
    BlobMissing {
        /// The member.
        member: MemberId,
        /// The blob.
        digest: Digest,
        /// The store's name.
        store: String,
    },
    /// A blob has another size than its manifest says.
    #[error("member {member}: blob {digest} has {found} bytes in {store}, its manifest says {expected}")]
    BlobSize {
        /// The member.
        member: MemberId,
        /// The blob.
        digest: Digest,
        /// The store's name.
        store: String,
        /// Its size in bytes.
        found: u64,
        /// The size that it should have.
        expected: u64,
    },
    /// No engine here restores such a dump.
    #[error("member {member}: a dump of {kind} cannot be restored with {engine}")]
    UnsupportedDump {
        /// The member.
        member: MemberId,
        /// Whose dump it is.
        kind: DumpKind,
        /// What was asked for, or "any engine here".
        engine: String,
    },
    /// Made on another architecture.
    #[error("member {member}: the dump is for {dump}, this machine is {host}")]
    Architecture {
        /// The member.
        member: MemberId,
        /// The dump's, in the words of the OCI image specification.
        dump: String,
        /// This machine's.
        host: String,
    },
    /// The processor lacks what the dump holds state of.
    #[error("member {member}: this processor has no {}", missing.join(", "))]
    Cpu {
        /// The member.
        member: MemberId,
        /// The flags of /proc/cpuinfo that are missing.
        missing: Vec<String>,
    },
    /// Made on a newer kernel. Only a warning: mostly it works.
    #[error("member {member}: the dump was made on kernel {dump}, this is {host}")]
    OlderKernel {
        /// The member.
        member: MemberId,
        /// The dump's kernel.
        dump: String,
        /// This machine's.
        host: String,
    },
    /// There is no CRIU.
    #[error("CRIU cannot be run: {reason}")]
    NoCriu {
        /// Why.
        reason: String,
    },
    /// CRIU is older than the one that made the dump.
    #[error("member {member}: the dump was made by CRIU {dump}, this is CRIU {host}")]
    OlderCriu {
        /// The member.
        member: MemberId,
        /// The dump's CRIU.
        dump: String,
        /// This machine's.
        host: String,
    },
    /// The engine is not there, or does not answer.
    #[error("{engine} cannot be used: {reason}")]
    Engine {
        /// The engine.
        engine: EngineKind,
        /// Why.
        reason: String,
    },
    /// The engine is older than the one that made the dump.
    #[error("member {member}: the dump was made by {engine} {dump}, this is {engine} {host}")]
    OlderEngine {
        /// The member.
        member: MemberId,
        /// The engine.
        engine: EngineKind,
        /// The dump's version.
        dump: String,
        /// The version here.
        host: String,
    },
    /// The engine uses another runtime.
    #[error("member {member}: the dump needs the runtime {dump}, {engine} uses {host} here")]
    Runtime {
        /// The member.
        member: MemberId,
        /// The engine.
        engine: EngineKind,
        /// The dump's runtime.
        dump: String,
        /// The runtime here.
        host: String,
    },
    /// Another container has the name or the id.
    #[error("member {member}: there is a container {container} already ({state})")]
    ContainerExists {
        /// The member.
        member: MemberId,
        /// Its name.
        container: String,
        /// Its state, in the engine's words.
        state: String,
    },
    /// Two members would be one container.
    #[error("members {first} and {second} are both to be the container {container}")]
    SameContainer {
        /// One.
        first: MemberId,
        /// The other.
        second: MemberId,
        /// The container's name.
        container: String,
    },
    /// Another restore is at work on a container of that name.
    #[error("another restore is at work on the container {container}")]
    Busy {
        /// The container's name.
        container: String,
    },
    /// podman cannot give a container another name and keep its connections.
    #[error("member {member}: a container with established TCP connections cannot get another name")]
    RenamedWithConnections {
        /// The member.
        member: MemberId,
    },
    /// A name in the dump that no engine would have given.
    #[error("member {member}: {text:?} is not a {what}")]
    BadName {
        /// The member.
        member: MemberId,
        /// "container name", "volume name" and the like.
        what: &'static str,
        /// The text, at most 160 characters.
        text: String,
    },
    /// A name was given for a member that the set does not have.
    #[error("there is no member {member} to give a name or a bundle to")]
    UnknownMember {
        /// The name.
        member: MemberId,
    },
    /// The network is not there.
    #[error("member {member}: there is no network {network}")]
    NetworkMissing {
        /// The member.
        member: MemberId,
        /// The network's name.
        network: String,
    },
    /// The network has other subnets than it had.
    #[error("member {member}: address {address} is not of network {network} as it is here")]
    AddressOutside {
        /// The member.
        member: MemberId,
        /// The address.
        address: IpAddr,
        /// The network's name.
        network: String,
    },
    /// The engine lets nobody ask for an address there.
    #[error(
        "member {member}: Docker gives addresses of its network {network} as it likes, and the member's connections need its own"
    )]
    AddressNotGiven {
        /// The member.
        member: MemberId,
        /// The network's name.
        network: String,
    },
    /// An engine does not know the runtime that restores.
    #[error("{engine} knows no runtime that restores")]
    NoRuntime {
        /// The engine.
        engine: EngineKind,
    },
    /// Another container has the address.
    #[error("member {member}: address {address} of network {network} belongs to {owner}")]
    AddressTaken {
        /// The member.
        member: MemberId,
        /// The address.
        address: IpAddr,
        /// The network's name.
        network: String,
        /// Who has it.
        owner: String,
    },
    /// Two members have one address.
    #[error("members {first} and {second} both have the address {address} of network {network}")]
    SameAddress {
        /// One.
        first: MemberId,
        /// The other.
        second: MemberId,
        /// The address.
        address: IpAddr,
        /// The network's name.
        network: String,
    },
    /// A volume of that name is there, and its content would not be the dump's.
    #[error("member {member}: there is a volume {volume} already")]
    VolumeExists {
        /// The member.
        member: MemberId,
        /// The volume's name.
        volume: String,
    },
    /// A volume that is to be restored belongs to a member as it is, and to somebody else too: it cannot be taken away.
    #[error("member {member}: volume {volume} is held by container {holder} too, which is no member")]
    VolumeHeld {
        /// The member.
        member: MemberId,
        /// The volume's name.
        volume: String,
        /// Who holds it, running or not.
        holder: String,
    },
    /// A container that is to be taken away cannot be, since another one, which is no member, needs it.
    #[error("container {container} cannot make room: container {by}, which is no member, needs it")]
    ContainerNeeded {
        /// The container's name.
        container: String,
        /// Who needs it: its network, its volumes or something else of it.
        by: String,
    },
    /// Two members have a volume of one name, and each its own content for it: they ran on two
    /// hosts, or were packed one by one.
    #[error("members {first} and {second} both bring a volume {volume} with content of its own")]
    SharedVolume {
        /// One.
        first: MemberId,
        /// The other.
        second: MemberId,
        /// The volume's name.
        volume: String,
    },
    /// The content of a shared volume is in the image of another member.
    #[error(
        "member {member}: the content of its volume {volume} is in the image of {holder}, which is not restored with it"
    )]
    VolumeElsewhere {
        /// The member.
        member: MemberId,
        /// The volume's name.
        volume: String,
        /// The member whose image has it.
        holder: MemberId,
    },
    /// podman restores only volumes that it keeps itself.
    #[error("member {member}: its volume {volume} is of the driver {driver}, which podman cannot restore")]
    VolumeDriver {
        /// The member.
        member: MemberId,
        /// The volume's name.
        volume: String,
        /// The driver.
        driver: String,
    },
    /// A volume that stays when the members are removed, since another container has it. Only a warning.
    #[error("member {member}: the container {container}, which is no member, has the volume {volume} too")]
    VolumeUsed {
        /// The member.
        member: MemberId,
        /// The volume's name.
        volume: String,
        /// The other container.
        container: String,
    },
    /// Its root filesystem is a folder of the host.
    #[error("member {member}: its root filesystem is the folder {folder} (--rootfs), which podman cannot restore")]
    NoImage {
        /// The member.
        member: MemberId,
        /// The folder.
        folder: String,
    },
    /// podman gives CRIU no user namespace to restore into.
    #[error("member {member}: it has a user namespace of its own, which podman cannot restore")]
    UserNamespace {
        /// The member.
        member: MemberId,
    },
    /// A mount that podman makes when it starts a container, and not when it restores one.
    #[error("member {member}: {mount} is mounted at {destination}, which podman cannot restore")]
    StartMount {
        /// The member.
        member: MemberId,
        /// Where it is mounted.
        destination: String,
        /// What is mounted, in words.
        mount: &'static str,
    },
    /// A secret in a folder that podman makes anew when it restores a container.
    #[error("member {member}: the secret {secret} is mounted at {destination}, which podman cannot restore")]
    SecretPlace {
        /// The member.
        member: MemberId,
        /// The secret's name.
        secret: String,
        /// Where it is mounted.
        destination: String,
    },
    /// A secret is not there. What it says is in no checkpoint.
    #[error("member {member}: there is no secret {secret}")]
    SecretMissing {
        /// The member.
        member: MemberId,
        /// The secret's name.
        secret: String,
    },
    /// A container that cannot be without another one.
    #[error(
        "member {member}: it depends on the container {container} or shares its namespaces, which podman cannot dump"
    )]
    OtherContainer {
        /// The member.
        member: MemberId,
        /// The beginning of the other one's id.
        container: String,
    },
    /// The member's pod is not there.
    #[error("member {member}: there is no pod {pod}")]
    PodMissing {
        /// The member.
        member: MemberId,
        /// The pod's name, or the beginning of its id.
        pod: String,
    },
    /// The member's pod has no namespaces to restore it into.
    #[error("member {member}: its pod {pod} has no infra container, and podman restores nothing into it")]
    PodWithoutInfra {
        /// The member.
        member: MemberId,
        /// The pod's name, or the beginning of its id.
        pod: String,
    },
    /// A process that runs in a container and does not descend from its first one. Only a warning.
    #[error(
        "member {member}: process {pid} ({command}) will not be in the checkpoint: it was started from outside, as by `podman exec`"
    )]
    NotDumped {
        /// The member.
        member: MemberId,
        /// Its pid on the host.
        pid: i32,
        /// Its name, at most 15 bytes.
        command: String,
    },
    /// The base image is not here and nobody can be asked for it.
    #[error("member {member}: the base image {image} is not here")]
    BaseImage {
        /// The member.
        member: MemberId,
        /// Its name and id.
        image: String,
    },
    /// A path of the host that is mounted into the container is not there.
    #[error("member {member}: {source_path:?}, which is mounted at {destination}, is not there")]
    MountSource {
        /// The member.
        member: MemberId,
        /// The path on the host.
        source_path: PathBuf,
        /// The path in the container.
        destination: String,
    },
    /// runc needs to be told where the bundle is.
    #[error("member {member}: its bundle was not given")]
    NoBundle {
        /// The member.
        member: MemberId,
    },
    /// The bundle is none.
    #[error("member {member}: the bundle {path:?} cannot be used: {reason}")]
    Bundle {
        /// The member.
        member: MemberId,
        /// Where it should be.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The disk is too small.
    #[error("{path:?} has {available} bytes left; about {needed} are needed for {purpose}")]
    Space {
        /// A path on the file system.
        path: PathBuf,
        /// Bytes that are free.
        available: u64,
        /// Bytes that are needed, estimated.
        needed: u64,
        /// What for.
        purpose: &'static str,
    },
    /// The program that CRIU is to run at its hooks.
    #[error("the hook program {path:?} cannot be run: {reason}")]
    HookProgram {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A folder of this program's own.
    #[error("the folder {path:?} cannot be used: {reason}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Problem {
    /// Whether the restore may be tried all the same.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        matches!(
            self,
            Self::OlderKernel { .. } | Self::VolumeUsed { .. } | Self::NotDumped { .. } | Self::AddressNotGiven { .. }
        )
    }

    /// Whether it lies in the checkpoint, so that no other machine restores it either, and this one never will.
    pub fn is_of_checkpoint(&self) -> bool {
        matches!(
            self,
            Self::BlobMissing { .. }
                | Self::BlobSize { .. }
                | Self::BadName { .. }
                | Self::VolumeElsewhere { .. }
                | Self::VolumeDriver { .. }
        )
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NotRoot => "run it as root".to_owned(),
            Self::BlobMissing { .. } | Self::BlobSize { .. } => {
                "push the checkpoint again, or restore another one; `syncpoint verify` lists all that is damaged"
                    .to_owned()
            }
            Self::UnsupportedDump { kind, .. } => {
                format!("restore it where {kind} runs; `syncpoint unpack` gives back its dump")
            }
            Self::Architecture { dump, .. } => format!("restore it on a machine of architecture {dump}"),
            Self::Cpu { .. } => "restore it on a processor with these features".to_owned(),
            Self::OlderKernel { dump, .. } => format!("should it fail, try kernel {dump} or newer"),
            Self::NoCriu { .. } => "install CRIU".to_owned(),
            Self::OlderCriu { dump, .. } => format!("install CRIU {dump} or newer"),
            Self::Engine { engine, .. } => format!("install {engine}, or see why it does not answer"),
            Self::OlderEngine { engine, dump, .. } => format!("install {engine} {dump} or newer"),
            Self::Runtime { dump, .. } => format!("set `runtime=\"{dump}\"` in containers.conf"),
            Self::ContainerExists { container, .. } => {
                format!("remove {container}, or it is this very set that runs")
            }
            Self::SameContainer { second, .. } => format!("give one of them another name: --name {second}=NAME"),
            Self::Busy { .. } => "wait for it to end".to_owned(),
            Self::RenamedWithConnections { .. } => "restore it under its own name".to_owned(),
            Self::BadName { .. } => "the dump was tampered with, or the name that was given is none".to_owned(),
            Self::UnknownMember { .. } => "`syncpoint inspect` lists the members".to_owned(),
            Self::NetworkMissing { network, .. } => {
                format!("make it with its old subnet: `podman network create --subnet ... {network}`")
            }
            Self::AddressNotGiven { .. } => {
                "should it fail, run the application on a network that `docker network create --subnet ...` makes".to_owned()
            }
            Self::NoRuntime { engine } => {
                format!("tell it of the runtime: `syncpoint runtime install --engine {engine}`, and do what it says next")
            }
            Self::AddressOutside { network, .. } => format!("make the network {network} again with its old subnet"),
            Self::AddressTaken { owner, .. } => format!("stop {owner}"),
            Self::SameAddress { .. } => "they cannot run on one machine".to_owned(),
            Self::VolumeExists { volume, .. } => {
                format!(
                    "its content would not be the checkpoint's: keep what you need of it, then remove the volume {volume}"
                )
            }
            Self::VolumeHeld { volume, holder, .. } => {
                format!("remove {holder}, or let it use another volume than {volume}")
            }
            Self::ContainerNeeded { by, .. } => format!("remove {by}"),
            Self::SharedVolume { .. } => {
                "restore them on different hosts; or with podman one by one, the second with --ignore-volumes".to_owned()
            }
            Self::VolumeElsewhere { holder, .. } => {
                format!("restore a global checkpoint that has the member {holder} with this volume")
            }
            Self::VolumeDriver { .. } => "move its content into a volume of podman's own driver, local, and mount that".to_owned(),
            Self::VolumeUsed { volume, container, .. } => {
                format!("before a restore on this host, remove {container} and then the volume: `podman volume rm {volume}`")
            }
            Self::NoImage { folder, .. } => {
                format!("make an image of it (`tar -C {folder} -c . | podman import - NAME`) and run that")
            }
            Self::UserNamespace { .. } => "run it with --userns=host".to_owned(),
            Self::StartMount { .. } => {
                "copy what is in it into a volume, and mount that (--volume NAME:PATH); or mount the folder itself".to_owned()
            }
            Self::SecretPlace { secret, .. } => {
                format!("give it a place of its own: --secret {secret},target=/etc/{secret}; or type=env")
            }
            Self::SecretMissing { secret, .. } => format!("make it: `podman secret create {secret} FILE`"),
            Self::OtherContainer { .. } => {
                "run it without --network, --ipc, --pid or --uts container:NAME and without --requires; members of a pod can be \
                 restored"
                    .to_owned()
            }
            Self::PodMissing { pod, .. } => {
                format!("make it with the same shared namespaces: `podman pod create --name {pod}`")
            }
            Self::PodWithoutInfra { .. } => {
                "make the pod with an infra container and at least one shared namespace (--share)".to_owned()
            }
            Self::NotDumped { .. } => {
                "have the container's own first process start it, or start it again after a restore".to_owned()
            }
            Self::BaseImage { .. } => {
                "load the very image that the container was made from (`podman load`, `podman pull`)".to_owned()
            }
            Self::MountSource { source_path, .. } => format!("put {} back", source_path.display()),
            Self::NoBundle { member } => format!("say where it is: --bundle {member}=FOLDER"),
            Self::Bundle { .. } => {
                "a bundle is a folder with config.json and the root filesystem that it names".to_owned()
            }
            Self::Space { .. } => "make room, or choose another folder: --work-dir".to_owned(),
            Self::HookProgram { .. } => "install syncpoint-hook beside syncpoint".to_owned(),
            Self::Folder { .. } => "choose a folder that this user may write to".to_owned(),
        }
    }
}
