//! What becomes of each member here: its engine, its container's name, what it wants of this machine.
//!
//! Everything that a dump says about names ends up on a command line or as a path, so none of it is believed: what is not
//! a name by the engines' own rules is a [`Problem`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coordinator::{Rendezvous, SessionId};
use engine::{EngineKind, Pod, RuncPaths, Target, Ties, Volume, bundle, criu_configs};
use image_format::{Compression, DumpKind, Facts, LayerContent, MemberId, annotation};

use crate::restore::options::RestoreOptions;
use crate::restore::preflight::Problem;
use crate::restore::preflight::{BaseImage, Want};
use crate::restore::set::{Member, Set};
use crate::workspace::Workspace;

/// In the paths of the folders that podman has for each container, whichever storage it has.
const CONTAINERS: &str = "-containers/";

/// One member, and what becomes of it.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) want: Want,
    /// runc: the caller's bundle and what its configuration says.
    pub(crate) bundle: Option<(PathBuf, serde_json::Value)>,
    /// The container's own configuration for CRIU, or the host's.
    own_config: PathBuf,
}

/// Plans every member of the set, in its order; those that cannot be planned are problems.
pub(crate) fn plan(set: &Set, options: &RestoreOptions) -> (Vec<Planned>, Vec<Problem>) {
    let mut problems = Vec::new();
    for member in options.names.keys().chain(options.bundles.keys()) {
        if !set.members.iter().any(|known| known.id == *member) {
            problems.push(Problem::UnknownMember { member: member.clone() });
        }
    }
    let mut planned = Vec::new();
    for member in &set.members {
        match plan_member(member, options) {
            Ok(member) => planned.push(member),
            Err(found) => problems.extend(found),
        }
    }
    (planned, problems)
}

impl Planned {
    /// What the engine is to do, once the files of the member are in `workspace`.
    pub(crate) fn target(&self, workspace: &Workspace, session: SessionId, run_root: &Path, pods: &[Pod]) -> Target {
        let Want { member, engine, container, id, renamed, volumes, ties, .. } = &self.want;
        let folder = workspace.folder(member);
        let dump = match engine {
            EngineKind::Podman => workspace.archive(member),
            EngineKind::Docker | EngineKind::Runc => folder.join("images/checkpoint"),
        };
        let lone = self.bundle.as_ref().map(|(dir, _)| RuncPaths {
            bundle: folder.join("bundle"),
            work: folder.join("work"),
            output: dir.join("container.log"),
        });
        Target {
            member: member.clone(),
            engine: *engine,
            container: container.clone(),
            id: id.clone(),
            renamed: *renamed,
            volumes: volumes.clone(),
            dump,
            pod: ties.pod.as_ref().and_then(|tie| tie.find(pods)).map(|pod| pod.id.clone()),
            lone,
            session,
            criu_config: Rendezvous::criu_config_at(run_root, session, member),
            own_config: self.own_config.clone(),
            follows: None,
        }
    }
}

fn plan_member(member: &Member, options: &RestoreOptions) -> Result<Planned, Vec<Problem>> {
    let (id, facts) = (&member.id, &member.facts);
    let engine = engine_for(id, facts.kind, options.engine).map_err(|problem| vec![problem])?;
    let given = options.names.get(id);
    let own = match engine {
        EngineKind::Podman | EngineKind::Docker => facts.container_name.as_deref().unwrap_or(id.as_str()),
        EngineKind::Runc => id.as_str(),
    };
    let container = given.map_or(own, String::as_str);
    let renamed = engine != EngineKind::Runc && container != own;

    let mut bad = Vec::new();
    let mut check = |what: &'static str, text: &str, good: fn(&str) -> bool| {
        if !good(text) {
            bad.push(Problem::BadName { member: id.clone(), what, text: text.chars().take(160).collect() });
        }
    };
    check("container name", container, is_name);
    let podman = engine == EngineKind::Podman;
    let container_id = facts.container_id.as_deref().filter(|_| podman && !renamed);
    if let Some(container_id) = container_id {
        check("container id", container_id, is_id);
    }
    // Of what has an engine above its runtime the dump says all this.
    let described = engine != EngineKind::Runc;
    let named = if described { facts.named_volumes.as_slice() } else { &[] };
    let volumes = volumes(named, member.image.annotations().get(annotation::VOLUMES)).unwrap_or_else(|text| {
        check("list of volumes", text, |_| false);
        Vec::new()
    });
    volumes.iter().for_each(|volume| check("volume name", &volume.name, is_name));
    let networks = if described { facts.networks.as_slice() } else { &[] };
    networks.iter().for_each(|network| check("network name", &network.name, is_name));
    let base = base_image(facts).filter(|_| described);
    if let Some(base) = &base {
        check("image id", &base.id, is_id);
        base.name.iter().for_each(|name| check("image name", name, is_image_name));
    }
    let bundle = match engine {
        EngineKind::Podman | EngineKind::Docker => None,
        EngineKind::Runc => match read_bundle(id, options.bundles.get(id)) {
            Ok(bundle) => Some(bundle),
            Err(problem) => {
                bad.push(problem);
                None
            }
        },
    };
    if !bad.is_empty() {
        return Err(bad);
    }

    let addresses = |network: &image_format::NetworkFact| if renamed { Vec::new() } else { network.addresses.clone() };
    let want = Want {
        member: id.clone(),
        engine,
        container: container.to_owned(),
        id: container_id.map(str::to_owned),
        renamed,
        connections: facts.tcp_established == Some(true),
        architecture: facts.architecture.clone(),
        kernel: facts.kernel.clone(),
        criu: facts.criu_version.clone(),
        cpu_flags: facts.cpu.iter().flat_map(|cpu| cpu.needed_flags()).map(str::to_owned).collect(),
        engine_version: facts.engine_version.clone().filter(|_| described),
        runtime: facts.runtime_name.clone().filter(|_| podman),
        networks: networks.iter().map(|network| (network.name.clone(), addresses(network))).collect(),
        base,
        ties: if podman { Ties::of_dump(facts, pod_name(member)) } else { Ties::default() },
        mounts: if described { host_mounts(facts, &volumes) } else { BTreeMap::new() },
        volumes,
        bytes: unpacked_size(member),
    };
    let runtime = facts.runtime_name.as_deref().unwrap_or_default();
    let (_, own_config) = criu_configs(runtime, |name| facts.spec_annotations.get(name).map(String::as_str));
    Ok(Planned { want, bundle, own_config })
}

/// The volumes that a dump names, each once, as its image tells of them; the image's text if that
/// tells of none.
fn volumes<'a>(named: &[String], told: Option<&'a String>) -> Result<Vec<Volume>, &'a str> {
    let told = match told {
        Some(text) => Volume::parse_all(text).ok_or(text.as_str())?,
        None => Vec::new(),
    };
    // Images of other makers say nothing of volumes: then each image has all of its own.
    let mut all: BTreeMap<_, _> = named.iter().map(|name| (name.clone(), Volume::named(name))).collect();
    for volume in told {
        if let Some(known) = all.get_mut(&volume.name) {
            *known = volume;
        }
    }
    Ok(all.into_values().collect())
}

/// The name of the pod that a member was in.
fn pod_name(member: &Member) -> Option<&str> {
    member.image.annotations().get(annotation::POD).map(String::as_str)
}

fn engine_for(member: &MemberId, kind: DumpKind, asked: Option<EngineKind>) -> Result<EngineKind, Problem> {
    let own = match kind {
        DumpKind::Podman => Some(EngineKind::Podman),
        DumpKind::Docker => Some(EngineKind::Docker),
        DumpKind::Runc => Some(EngineKind::Runc),
        DumpKind::CriO | DumpKind::Containerd | DumpKind::Criu => None,
    };
    match (own, asked) {
        (Some(own), None) => Ok(own),
        (Some(own), Some(asked)) if own == asked => Ok(own),
        (Some(_) | None, asked) => {
            let engine = asked.map_or("any engine here".to_owned(), |asked| asked.to_string());
            Err(Problem::UnsupportedDump { member: member.clone(), kind, engine })
        }
    }
}

fn read_bundle(member: &MemberId, given: Option<&PathBuf>) -> Result<(PathBuf, serde_json::Value), Problem> {
    let Some(path) = given else { return Err(Problem::NoBundle { member: member.clone() }) };
    match bundle::read(path) {
        Ok(config) => Ok((path.clone(), config)),
        Err(error) => {
            let (path, reason) = (path.clone(), engine::chain(&error));
            Err(Problem::Bundle { member: member.clone(), path, reason })
        }
    }
}

fn base_image(facts: &Facts) -> Option<BaseImage> {
    let id = facts.rootfs_image_id.as_deref().filter(|id| !id.is_empty())?;
    let id = id.strip_prefix("sha256:").unwrap_or(id).to_owned();
    Some(BaseImage { id, name: facts.rootfs_image_name.clone().filter(|name| !name.is_empty()) })
}

/// Paths of the host that somebody mounted into the container: not the engine's own (in folders of containers, the one of its pod
/// among them), and not its volumes.
fn host_mounts(facts: &Facts, volumes: &[Volume]) -> BTreeMap<PathBuf, String> {
    let id = facts.container_id.as_deref().unwrap_or("?");
    let engines = |source: &str| source.contains(id) || (source.contains(CONTAINERS) && source.contains("/userdata/"));
    let volume = |source: &str| {
        let parts = || Path::new(source).components().map(|part| part.as_os_str());
        facts.named_volumes.iter().any(|name| parts().any(|part| part == name.as_str()))
    };
    let binds = facts.mounts.iter().filter(|mount| mount.kind.as_deref() == Some("bind"));
    let sources = binds.filter_map(|mount| Some((mount.source.as_deref()?, mount.destination.clone())));
    let own = sources.filter(|(source, _)| source.starts_with('/') && !engines(source) && !volume(source));
    let own = own.map(|(source, destination)| (PathBuf::from(source), destination));
    let folders =
        volumes.iter().filter_map(|volume| Some((volume.folder()?.into(), format!("volume {}", volume.name))));
    own.chain(folders).collect()
}

/// About how large the dump is once it is unpacked. Its pages are counted in it; what else is compressed is taken for four
/// times as large, which is little for text and much for what does not compress.
fn unpacked_size(member: &Member) -> u64 {
    let pages = member.facts.pages_bytes;
    let sizes = member.image.layers().iter().map(|layer| match (layer.content, layer.compression) {
        (Some(LayerContent::Pages), _) if pages.is_some() => 0,
        (_, Compression::None) => layer.descriptor.size,
        (_, Compression::Gzip | Compression::Zstd) => layer.descriptor.size.saturating_mul(4),
    });
    sizes.fold(pages.unwrap_or(0), u64::saturating_add)
}

/// podman's rule for containers, volumes and networks, which is that of member ids.
fn is_name(text: &str) -> bool {
    text.parse::<MemberId>().is_ok()
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_image_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"./:@_-[]+".contains(&byte);
    text.len() <= 1024 && !text.starts_with('-') && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::stored;

    #[test]
    fn dumps_go_to_the_engine_that_made_them() {
        let member: MemberId = "m".parse().unwrap();
        use EngineKind::{Docker, Podman, Runc};
        for (kind, asked, engine) in [
            (DumpKind::Podman, None, Some(Podman)),
            (DumpKind::Podman, Some(Podman), Some(Podman)),
            (DumpKind::Podman, Some(Runc), None),
            (DumpKind::Runc, None, Some(Runc)),
            (DumpKind::CriO, None, None),
            (DumpKind::Criu, None, None),
            (DumpKind::Containerd, Some(Podman), None),
            (DumpKind::Docker, None, Some(Docker)),
            (DumpKind::Docker, Some(Podman), None),
        ] {
            assert_eq!(engine_for(&member, kind, asked).ok(), engine, "{kind} {asked:?}");
        }
    }

    #[test]
    fn a_volume_is_stored_with_one_member_and_brought_by_that_one() {
        let named = ["data", "shared", "data"].map(str::to_owned);
        let own = [Volume::named("data"), Volume::named("shared")];
        assert_eq!(volumes(&named, None), Ok(own.to_vec()), "images of other makers have all of theirs");
        let told = r#"[{"name":"shared","labels":{"a":"b"},"stored-in":"first"},{"name":"of-no-dump"}]"#.to_owned();
        let (labels, stored_in) = ([("a".to_owned(), "b".to_owned())].into(), Some("first".parse().unwrap()));
        let shared = Volume { labels, stored_in, ..Volume::named("shared") };
        let found = volumes(&named, Some(&told)).unwrap();
        assert_eq!(found, [Volume::named("data"), shared]);
        assert_eq!(stored(&found).collect::<Vec<_>>(), [&Volume::named("data")]);
        let bad = "[{}]".to_owned();
        assert_eq!(volumes(&named, Some(&bad)), Err("[{}]"));
    }

    #[test]
    fn only_names_come_near_a_command_line() {
        for bad in ["", "--all", "a/b", "../a", "a b", "a\n"] {
            assert!(!is_name(bad) && !is_id(bad), "{bad:?}");
        }
        assert!(is_name("sdp-receive_0.1") && is_id(&"a0".repeat(32)) && !is_id(&"A0".repeat(32)));
        assert!(is_image_name("[::1]:5000/a/b:tag") && !is_image_name("--privileged") && !is_image_name("a b"));
    }
}
