//! The checks themselves: what the members want against what is here. No IO.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use engine::{EngineKind, Survey, Ties, Volume, stored};
use image_format::MemberId;

use super::Problem;
use super::machine::{Machine, is_older};

/// The network of Docker's own, on which nobody may ask for an address.
const DOCKERS_BRIDGE: &str = "bridge";

/// What one member wants of this machine. What its dump does not say is not checked.
#[derive(Debug, Clone)]
pub(crate) struct Want {
    pub(crate) member: MemberId,
    pub(crate) engine: EngineKind,
    pub(crate) container: String,
    pub(crate) id: Option<String>,
    pub(crate) renamed: bool,
    pub(crate) connections: bool,
    pub(crate) architecture: Option<String>,
    pub(crate) kernel: Option<String>,
    pub(crate) criu: Option<String>,
    pub(crate) cpu_flags: Vec<String>,
    pub(crate) engine_version: Option<String>,
    pub(crate) runtime: Option<String>,
    /// Networks, and the addresses there that it keeps.
    pub(crate) networks: BTreeMap<String, Vec<IpAddr>>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) base: Option<BaseImage>,
    pub(crate) ties: Ties,
    /// Paths of this host, and where in the container they are mounted.
    pub(crate) mounts: BTreeMap<PathBuf, String>,
    /// The size of the unpacked dump, estimated.
    pub(crate) bytes: u64,
}

/// The image that a container was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseImage {
    pub(crate) id: String,
    pub(crate) name: Option<String>,
}

impl BaseImage {
    /// The name to pull it by, if it names a registry. `localhost/...` is podman's word for what came from nowhere.
    pub(crate) fn source(&self) -> Option<&str> {
        let name = self.name.as_deref()?;
        let (host, _) = name.split_once('/')?;
        (host.contains('.') || host.contains(':')).then_some(name)
    }
}

/// What keeps members from being restored on any machine, whichever engine made them. It is asked before a checkpoint freezes
/// anything, and before a restore touches anything.
pub(crate) fn restorable<'a>(
    members: impl IntoIterator<Item = (&'a MemberId, &'a Ties, &'a [Volume])>,
) -> Vec<Problem> {
    let (mut problems, mut foreign) = (Vec::new(), Vec::new());
    for (member, ties, volumes) in members {
        let id = || member.clone();
        if let Some(folder) = &ties.rootfs {
            problems.push(Problem::NoImage { member: id(), folder: folder.clone() });
        }
        if ties.user_namespace {
            problems.push(Problem::UserNamespace { member: id() });
        }
        for (place, mount) in &ties.mounts {
            let mount = mount.in_words();
            problems.push(Problem::StartMount { member: id(), destination: place.clone(), mount });
        }
        for (place, secret) in ties.secrets_without_place() {
            problems.push(Problem::SecretPlace { member: id(), secret: secret.clone(), destination: place.clone() });
        }
        for container in &ties.containers {
            let container = container.get(..12).unwrap_or(container).to_owned();
            problems.push(Problem::OtherContainer { member: id(), container });
        }
        if let Some(pod) = ties.pod.as_ref().filter(|pod| pod.alone) {
            problems.push(Problem::PodWithoutInfra { member: id(), pod: pod.to_string() });
        }
        // Of these podman cannot make and fill another one.
        for Volume { name, driver, .. } in volumes.iter().filter(|volume| !volume.is_local()) {
            foreign.push(Problem::VolumeDriver { member: id(), volume: name.clone(), driver: driver.clone() });
        }
    }
    problems.append(&mut foreign);
    problems
}

/// Everything in the way of the whole set, member by member.
pub(crate) fn check(
    wants: &[Want],
    host: &Machine,
    engines: &BTreeMap<EngineKind, Survey>,
    missing: &BTreeSet<PathBuf>,
) -> Vec<Problem> {
    let mut problems = restorable(wants.iter().map(|want| (&want.member, &want.ties, want.volumes.as_slice())));
    if !host.root {
        problems.push(Problem::NotRoot);
    }
    if let Err(reason) = &host.criu {
        problems.push(Problem::NoCriu { reason: reason.clone() });
    }
    let lacking = engines.iter().filter(|(_, survey)| survey.lacks_runtime);
    problems.extend(lacking.map(|(engine, _)| Problem::NoRuntime { engine: *engine }));
    for want in wants {
        check_machine(want, host, &mut problems);
        if let Some(survey) = engines.get(&want.engine) {
            check_engine(want, survey, &mut problems);
            check_names(want, survey, &mut problems);
            check_networks(want, survey, &mut problems);
            check_ties(want, survey, &mut problems);
        }
        for (path, destination) in want.mounts.iter().filter(|(path, _)| missing.contains(*path)) {
            let (member, destination) = (want.member.clone(), destination.clone());
            problems.push(Problem::MountSource { member, source_path: path.clone(), destination });
        }
    }
    check_each_other(wants, &mut problems);
    problems
}

fn check_machine(want: &Want, host: &Machine, problems: &mut Vec<Problem>) {
    let member = &want.member;
    if let Some(dump) = want.architecture.as_ref().filter(|dump| **dump != host.architecture) {
        let (dump, host) = (dump.clone(), host.architecture.clone());
        problems.push(Problem::Architecture { member: member.clone(), dump, host });
    }
    if let Some(flags) = &host.cpu_flags {
        let missing: Vec<_> = want.cpu_flags.iter().filter(|flag| !flags.contains(*flag)).cloned().collect();
        if !missing.is_empty() {
            problems.push(Problem::Cpu { member: member.clone(), missing });
        }
    }
    if let Some(dump) = want.kernel.as_ref().filter(|dump| is_older(&host.kernel, dump, 2)) {
        let (dump, host) = (dump.clone(), host.kernel.clone());
        problems.push(Problem::OlderKernel { member: member.clone(), dump, host });
    }
    if let (Some(dump), Ok(here)) = (&want.criu, &host.criu)
        && is_older(here, dump, 1)
    {
        problems.push(Problem::OlderCriu { member: member.clone(), dump: dump.clone(), host: here.clone() });
    }
}

fn check_engine(want: &Want, survey: &Survey, problems: &mut Vec<Problem>) {
    let (member, engine) = (&want.member, want.engine);
    if let Some(dump) = want.engine_version.as_ref().filter(|dump| is_older(&survey.version, dump, 1)) {
        let (dump, host) = (dump.clone(), survey.version.clone());
        problems.push(Problem::OlderEngine { member: member.clone(), engine, dump, host });
    }
    if let (Some(dump), Some(here)) = (&want.runtime, &survey.runtime)
        && dump != here
    {
        let (dump, host) = (dump.clone(), here.clone());
        problems.push(Problem::Runtime { member: member.clone(), engine, dump, host });
    }
    if let Some(base) = &want.base
        && !survey.images.contains(&base.id)
        && base.source().is_none()
    {
        let id = base.id.get(..12).unwrap_or(&base.id);
        let image = format!("{} ({id})", base.name.as_deref().unwrap_or("without a name"));
        problems.push(Problem::BaseImage { member: member.clone(), image });
    }
}

fn check_names(want: &Want, survey: &Survey, problems: &mut Vec<Problem>) {
    let same = |id: &str, names: &[String]| names.contains(&want.container) || want.id.as_deref() == Some(id);
    for other in survey.containers.iter().filter(|other| same(&other.id, &other.names)) {
        let container = other.name().to_owned();
        let (member, state) = (want.member.clone(), other.state.clone());
        problems.push(Problem::ContainerExists { member, container, state });
    }
    if want.renamed && want.connections {
        problems.push(Problem::RenamedWithConnections { member: want.member.clone() });
    }
    for volume in stored(&want.volumes).filter(|volume| survey.volumes.contains_key(&volume.name)) {
        problems.push(Problem::VolumeExists { member: want.member.clone(), volume: volume.name.clone() });
    }
}

fn check_networks(want: &Want, survey: &Survey, problems: &mut Vec<Problem>) {
    for (name, addresses) in &want.networks {
        let (member, network) = (want.member.clone(), name.clone());
        if want.engine == EngineKind::Docker && name == DOCKERS_BRIDGE {
            if want.connections {
                problems.push(Problem::AddressNotGiven { member, network });
            }
            continue;
        }
        let Some(here) = survey.networks.get(name) else {
            problems.push(Problem::NetworkMissing { member, network });
            continue;
        };
        for address in addresses {
            let (member, network, address) = (member.clone(), network.clone(), *address);
            if let Some(owner) = here.taken.get(&address) {
                // That this container is there is a problem of its own, and enough.
                if *owner == want.container {
                    continue;
                }
                problems.push(Problem::AddressTaken { member, address, network, owner: owner.clone() });
            } else if !here.subnets.is_empty() && !here.subnets.iter().any(|subnet| subnet.contains(address)) {
                problems.push(Problem::AddressOutside { member, address, network });
            }
        }
    }
}

fn check_ties(want: &Want, survey: &Survey, problems: &mut Vec<Problem>) {
    let member = || want.member.clone();
    if let Some(tie) = &want.ties.pod {
        match tie.find(&survey.pods) {
            None => problems.push(Problem::PodMissing { member: member(), pod: tie.to_string() }),
            Some(pod) if pod.infra.is_none() => {
                problems.push(Problem::PodWithoutInfra { member: member(), pod: pod.name.clone() });
            }
            Some(_) => {}
        }
    }
    for secret in want.ties.secrets.values().filter(|secret| !survey.secrets.contains(*secret)) {
        problems.push(Problem::SecretMissing { member: member(), secret: secret.clone() });
    }
}

/// Two members that want the same thing.
fn check_each_other(wants: &[Want], problems: &mut Vec<Problem>) {
    let mut containers = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    let mut volumes = BTreeMap::new();
    for want in wants {
        let second = || want.member.clone();
        if let Some(first) = containers.insert((want.engine, &want.container), &want.member) {
            let (first, container) = (first.clone(), want.container.clone());
            problems.push(Problem::SameContainer { first, second: second(), container });
        }
        for (network, address) in want.networks.iter().flat_map(|(name, all)| all.iter().map(move |one| (name, one))) {
            if let Some(first) = addresses.insert((network, address), &want.member) {
                let (first, network, address) = (first.clone(), network.clone(), *address);
                problems.push(Problem::SameAddress { first, second: second(), address, network });
            }
        }
        for volume in stored(&want.volumes) {
            if let Some(first) = volumes.insert(&volume.name, &want.member) {
                let (first, volume) = (first.clone(), volume.name.clone());
                problems.push(Problem::SharedVolume { first, second: second(), volume });
            }
        }
    }
    for want in wants {
        for volume in &want.volumes {
            if let Some(holder) = &volume.stored_in
                && volumes.get(&volume.name) != Some(&holder)
            {
                let (member, volume, holder) = (want.member.clone(), volume.name.clone(), holder.clone());
                problems.push(Problem::VolumeElsewhere { member, volume, holder });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::{Container, Network, Pod, PodTie, StartMount};

    fn want(member: &str) -> Want {
        Want {
            member: member.parse().unwrap(),
            engine: EngineKind::Podman,
            container: member.to_owned(),
            id: Some(format!("{member}-id")),
            renamed: false,
            connections: true,
            architecture: Some("amd64".to_owned()),
            kernel: Some("6.18.44-fc".to_owned()),
            criu: Some("4.2.1".to_owned()),
            cpu_flags: vec!["avx".to_owned()],
            engine_version: Some("5.4.2".to_owned()),
            runtime: Some("runc".to_owned()),
            networks: BTreeMap::from([("demo".to_owned(), Vec::new())]),
            volumes: Vec::new(),
            base: Some(BaseImage { id: "d3b4812173f3fdbd".to_owned(), name: Some("localhost/demo:1".to_owned()) }),
            ties: Ties::default(),
            mounts: BTreeMap::new(),
            bytes: 0,
        }
    }

    fn host() -> Machine {
        Machine {
            root: true,
            architecture: "amd64".to_owned(),
            kernel: "6.18.44-fc".to_owned(),
            cpu_flags: Some(BTreeSet::from(["avx".to_owned()])),
            criu: Ok("4.2.1".to_owned()),
        }
    }

    fn survey() -> Survey {
        let network = Network { subnets: vec!["10.90.0.0/24".parse().unwrap()], taken: BTreeMap::new() };
        Survey {
            version: "5.4.2".to_owned(),
            runtime: Some("runc".to_owned()),
            networks: BTreeMap::from([("demo".to_owned(), network)]),
            images: BTreeSet::from(["d3b4812173f3fdbd".to_owned()]),
            ..Survey::default()
        }
    }

    /// The problems of a set on a machine that differ from a good one by these changes.
    fn problems(change: impl FnOnce(&mut Vec<Want>, &mut Machine, &mut Survey)) -> Vec<String> {
        let (mut wants, mut host, mut survey) = (vec![want("consumer"), want("producer")], host(), survey());
        change(&mut wants, &mut host, &mut survey);
        let missing = BTreeSet::from([PathBuf::from("/gone")]);
        let found = check(&wants, &host, &BTreeMap::from([(EngineKind::Podman, survey)]), &missing);
        assert!(found.iter().all(|problem| !problem.hint().is_empty()));
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_set_on_a_good_machine() {
        assert_eq!(problems(|_, _, _| ()), [""; 0]);
        let unknown = |wants: &mut Vec<Want>, _: &mut Machine, _: &mut Survey| {
            let want = &mut wants[0];
            (want.architecture, want.kernel, want.criu, want.base) = (None, None, None, None);
            (want.engine_version, want.runtime) = (None, None);
        };
        assert_eq!(problems(unknown), [""; 0], "what a dump does not say is not checked");
    }

    #[test]
    fn the_machine() {
        let not_root = problems(|_, host, _| host.root = false);
        assert_eq!(not_root, [Problem::NotRoot.to_string()]);
        assert_eq!(
            problems(|wants, host, _| {
                wants.truncate(1);
                host.architecture = "arm64".to_owned();
                host.kernel = "6.1.0".to_owned();
                host.cpu_flags = Some(BTreeSet::new());
                host.criu = Ok("3.17".to_owned());
            }),
            [
                "member consumer: the dump is for amd64, this machine is arm64",
                "member consumer: this processor has no avx",
                "member consumer: the dump was made on kernel 6.18.44-fc, this is 6.1.0",
                "member consumer: the dump was made by CRIU 4.2.1, this is CRIU 3.17",
            ]
        );
        assert_eq!(
            problems(|_, host, _| host.criu = Err("no such file".to_owned())),
            ["CRIU cannot be run: no such file"]
        );
        assert_eq!(problems(|_, host, _| host.cpu_flags = None), [""; 0]);
        let mounts = |wants: &mut Vec<Want>, _: &mut Machine, _: &mut Survey| {
            wants[0].mounts = BTreeMap::from([("/gone".into(), "/a".to_owned()), ("/here".into(), "/b".to_owned())]);
        };
        assert_eq!(problems(mounts), ["member consumer: \"/gone\", which is mounted at /a, is not there"]);
    }

    #[test]
    fn the_engine() {
        assert_eq!(
            problems(|wants, _, survey| {
                wants.truncate(1);
                survey.version = "4.9.0".to_owned();
                survey.runtime = Some("crun".to_owned());
                survey.images.clear();
            }),
            [
                "member consumer: the dump was made by podman 5.4.2, this is podman 4.9.0",
                "member consumer: the dump needs the runtime runc, podman uses crun here",
                "member consumer: the base image localhost/demo:1 (d3b4812173f3) is not here",
            ]
        );
        let pullable = |wants: &mut Vec<Want>, _: &mut Machine, survey: &mut Survey| {
            survey.images.clear();
            for want in wants {
                let name = Some("registry.example/demo:1".to_owned());
                want.base = want.base.take().map(|base| BaseImage { name, ..base });
            }
        };
        assert_eq!(problems(pullable), [""; 0]);
    }

    #[test]
    fn docker_needs_a_runtime_and_gives_no_addresses_of_its_bridge() {
        assert_eq!(problems(|_, _, survey| survey.lacks_runtime = true), ["podman knows no runtime that restores"]);
        let mut want = Want { engine: EngineKind::Docker, runtime: None, ..want("web") };
        want.networks = [(DOCKERS_BRIDGE.to_owned(), vec!["172.17.0.2".parse().unwrap()])].into();
        let found = |want: &Want| {
            let mut problems = Vec::new();
            check_networks(want, &Survey::default(), &mut problems);
            problems
        };
        let told = found(&want);
        assert!(matches!(&told[..], [Problem::AddressNotGiven { .. }]) && told[0].is_warning(), "{told:?}");
        want.connections = false;
        assert!(found(&want).is_empty());
    }

    #[test]
    fn what_no_engine_restores() {
        let tied = |change: fn(&mut Ties)| {
            let (member, mut ties): (MemberId, Ties) = ("m".parse().unwrap(), Ties::default());
            change(&mut ties);
            let found = restorable([(&member, &ties, &[][..])]);
            assert!(found.iter().all(|problem| !problem.is_warning() && !problem.hint().is_empty()));
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let pod = |alone| Some(PodTie { id: "0123456789abcdef".to_owned(), name: Some("p".to_owned()), alone });
        assert_eq!(tied(|_| ()), [""; 0]);
        assert_eq!(
            tied(|ties| ties.rootfs = Some("/srv/root".to_owned())),
            ["member m: its root filesystem is the folder /srv/root (--rootfs), which podman cannot restore"]
        );
        assert_eq!(
            tied(|ties| ties.user_namespace = true),
            ["member m: it has a user namespace of its own, which podman cannot restore"]
        );
        let mounts = |ties: &mut Ties| {
            let mounts = [("/a", StartMount::Overlay), ("/b", StartMount::Image), ("/c", StartMount::PartOfVolume)];
            ties.mounts = mounts.map(|(place, mount)| (place.to_owned(), mount)).into();
        };
        assert_eq!(
            tied(mounts),
            [
                "member m: an overlay volume (:O) is mounted at /a, which podman cannot restore",
                "member m: an image (type=image) is mounted at /b, which podman cannot restore",
                "member m: a part of a volume (subpath) is mounted at /c, which podman cannot restore",
            ]
        );
        let secrets = |ties: &mut Ties| {
            let secrets = [("/run/secrets/key", "key"), ("/etc/other", "other")];
            ties.secrets = secrets.map(|(place, secret)| (place.to_owned(), secret.to_owned())).into();
        };
        assert_eq!(
            tied(secrets),
            ["member m: the secret key is mounted at /run/secrets/key, which podman cannot restore"]
        );
        assert_eq!(
            tied(|ties| ties.containers = ["0123456789abcdef".to_owned()].into()),
            ["member m: it depends on the container 0123456789ab or shares its namespaces, which podman cannot dump"]
        );
        assert_eq!(tied(|ties| ties.pod = None), [""; 0]);
        let volumes = [Volume::named("own"), Volume { driver: "nfs".to_owned(), ..Volume::named("far") }];
        let found = restorable([(&"m".parse().unwrap(), &Ties::default(), volumes.as_slice())]);
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["member m: its volume far is of the driver nfs, which podman cannot restore"]);
        let (member, mut ties): (MemberId, Ties) = ("m".parse().unwrap(), Ties::default());
        ties.pod = pod(false);
        assert_eq!(restorable([(&member, &ties, &[][..])]), []);
        ties.pod = pod(true);
        let found = restorable([(&member, &ties, &[][..])]).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(found, ["member m: its pod p has no infra container, and podman restores nothing into it"]);
    }

    #[test]
    fn pods_and_secrets_that_are_not_here() {
        let change = |wants: &mut Vec<Want>, _: &mut Machine, survey: &mut Survey| {
            let pod = |name: &str| Some(PodTie { id: format!("{name}-id"), name: Some(name.to_owned()), alone: false });
            wants[0].ties.pod = pod("here");
            wants[0].ties.secrets = [("/etc/key", "key"), ("/etc/other", "other")]
                .map(|(place, secret)| (place.to_owned(), secret.to_owned()))
                .into();
            wants[1].ties.pod = pod("gone");
            survey.secrets = BTreeSet::from(["key".to_owned()]);
            let infra = Some("infra".to_owned());
            survey.pods = vec![Pod { id: "another".to_owned(), name: "here".to_owned(), infra }];
        };
        assert_eq!(
            problems(change),
            ["member consumer: there is no secret other", "member producer: there is no pod gone",]
        );
    }

    #[test]
    fn names_addresses_and_volumes_that_are_taken() {
        let container = |id: &str, name: &str| Container {
            id: id.to_owned(),
            names: vec![name.to_owned()],
            state: "exited".to_owned(),
        };
        assert_eq!(
            problems(|wants, _, survey| {
                survey.containers =
                    vec![container("x", "consumer"), container("producer-id", "y"), container("z", "z")];
                wants[0].volumes = vec![Volume::named("data"), Volume::named("new")];
                survey.volumes = BTreeMap::from([("data".to_owned(), Volume::named("data"))]);
            }),
            [
                "member consumer: there is a container consumer already (exited)",
                "member consumer: there is a volume data already",
                "member producer: there is a container y already (exited)",
            ]
        );
        assert_eq!(
            problems(|wants, _, survey| {
                let addresses = ["10.90.0.10", "10.90.0.11", "10.91.0.1"].map(|text| text.parse().unwrap());
                wants[0].networks = BTreeMap::from([("demo".to_owned(), addresses.to_vec())]);
                wants[1].networks = BTreeMap::from([("other".to_owned(), Vec::new())]);
                let network = survey.networks.get_mut("demo").unwrap();
                network.taken = BTreeMap::from([(addresses[1], "squatter".to_owned())]);
            }),
            [
                "member consumer: address 10.90.0.11 of network demo belongs to squatter",
                "member consumer: address 10.91.0.1 is not of network demo as it is here",
                "member producer: there is no network other",
            ]
        );
    }

    #[test]
    fn members_that_want_the_same() {
        assert_eq!(
            problems(|wants, _, _| {
                let address = vec!["10.90.0.10".parse().unwrap()];
                for want in wants {
                    want.container = "one".to_owned();
                    want.volumes = vec![Volume::named("data")];
                    want.networks = BTreeMap::from([("demo".to_owned(), address.clone())]);
                }
            }),
            [
                "members consumer and producer are both to be the container one",
                "members consumer and producer both have the address 10.90.0.10 of network demo",
                "members consumer and producer both bring a volume data with content of its own",
            ]
        );
        let in_consumer = || Volume { stored_in: Some("consumer".parse().unwrap()), ..Volume::named("data") };
        let shared = |wants: &mut Vec<Want>, _: &mut Machine, _: &mut Survey| {
            wants[0].volumes = vec![Volume::named("data")];
            wants[1].volumes = vec![in_consumer()];
        };
        assert_eq!(problems(shared), [""; 0]);
        assert_eq!(
            problems(|wants, _, _| wants[1].volumes = vec![in_consumer()]),
            [
                "member producer: the content of its volume data is in the image of consumer, which is not restored with it"
            ]
        );
        assert_eq!(
            problems(|wants, _, _| wants[1].renamed = true),
            ["member producer: a container with established TCP connections cannot get another name"]
        );
    }

    #[test]
    fn only_names_of_registries_can_be_pulled() {
        let source =
            |name: &str| BaseImage { id: String::new(), name: Some(name.to_owned()) }.source().map(str::to_owned);
        for (name, pullable) in [
            ("registry.example/a:1", true),
            ("localhost:5000/a", true),
            ("localhost/a:1", false),
            ("a:1", false),
            ("library/a", false),
        ] {
            assert_eq!(source(name).is_some(), pullable, "{name}");
        }
    }
}
