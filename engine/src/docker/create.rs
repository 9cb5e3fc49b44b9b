//! The command that makes a container again, from what its dump says of it.

use std::path::PathBuf;

use coordinator::SessionId;
use image_format::{Container, ContainerMount, ContainerNetwork, PublishedPort};
use runtime::ticket::ANNOTATION;

use crate::container::{CRIU_CONFIG, OWN_CONFIG};
use crate::program::Program;
use crate::target::{MARK, Target};
use crate::volumes::Volume;

/// The name of the runtime that restores, in Docker's configuration.
const RUNTIME: &str = "syncpoint";

/// Networks that Docker has by itself, in which nobody chooses an address.
const BUILT_IN: [&str; 4] = ["bridge", "default", "host", "none"];

/// The file with what the runtime tells CRIU of a target. It goes with the session; later dumps
/// find by the annotation [`OWN_CONFIG`] what is to be in force then.
pub(super) fn own_settings(target: &Target) -> PathBuf {
    target.criu_config.with_file_name("target.conf")
}

/// `docker create` of a target; `image` is what Docker knows its base image by, `seat` the value of the annotation
/// that the runtime looks for.
pub(super) fn create(target: &Target, container: &Container, image: &str, seat: &str) -> Program {
    let create = super::docker(["create", "--runtime", RUNTIME, "--name"]).arg(&target.container);
    let session = target.session.to_string();
    let (config, own_config) = (own_settings(target), target.own_config.display());
    let marks = [
        format!("--annotation={ANNOTATION}={seat}"),
        format!("--annotation={MARK}={session}"),
        format!("--annotation={CRIU_CONFIG}={}", config.display()),
        format!("--annotation={OWN_CONFIG}={own_config}"),
    ];
    let labels = container.labels.iter().filter(|(key, _)| *key != MARK);
    let own = |key: &str| [MARK, CRIU_CONFIG, OWN_CONFIG, ANNOTATION].contains(&key);
    let annotations = container.annotations.iter().filter(|(key, _)| !own(key));
    let create = create
        .args(marks)
        .arg(format!("--label={MARK}={session}"))
        .args(labels.map(|(key, value)| format!("--label={key}={value}")))
        .args(annotations.map(|(key, value)| format!("--annotation={key}={value}")))
        .args(container.mounts.iter().map(mount))
        .args(network_of(target, container))
        .args(container.ports.iter().map(port))
        .args(all("add-host", &container.extra_hosts))
        .args(all("dns", &container.dns));
    let (entry, first) = match container.entrypoint.split_first() {
        Some((program, arguments)) => (Some(program), arguments),
        None => (None, &[][..]),
    };
    let create = create
        .args(one("entrypoint", entry))
        .args(all("env", &container.environment))
        .args(one("user", container.user.as_ref()))
        .args(all("group-add", &container.groups))
        .args(one("workdir", container.working_folder.as_ref()))
        .args(one("stop-signal", container.stop_signal.as_ref()))
        .args(one("stop-timeout", container.stop_timeout.as_ref()))
        .args(one("log-driver", container.log_driver.as_ref()))
        .args(flag("tty", container.tty))
        .args(flag("interactive", container.open_stdin))
        .args(flag("init", container.init));
    let nano = |nano: &u64| format!("{}.{:09}", nano / 1_000_000_000, nano % 1_000_000_000);
    let restart = container.restart_policy.as_ref().filter(|_| !container.auto_remove).map(|policy| {
        policy.retries.map_or_else(|| policy.name.clone(), |retries| format!("{}:{retries}", policy.name))
    });
    create
        .args(one("restart", restart.as_ref()))
        .args(flag("rm", container.auto_remove))
        .args(flag("privileged", container.privileged))
        .args(flag("read-only", container.read_only))
        .args(all("cap-add", &container.capabilities_added))
        .args(all("cap-drop", &container.capabilities_dropped))
        .args(all("security-opt", &container.security_options))
        .args(all("device", &container.devices))
        .args(container.sysctls.iter().map(|(key, value)| format!("--sysctl={key}={value}")))
        .args(all("ulimit", &container.ulimits))
        .args(one("shm-size", container.shm_size.as_ref()))
        .args(one("memory", container.memory.as_ref()))
        .args(one("cpus", container.nano_cpus.as_ref().map(nano).as_ref()))
        .args(one("pids-limit", container.pids_limit.as_ref()))
        .args(one("ipc", container.ipc_mode.as_ref()))
        .args(one("pid", container.pid_mode.as_ref()))
        .args(one("uts", container.uts_mode.as_ref()))
        .args(one("userns", container.user_mode.as_ref()))
        .args(["--", image])
        .args(first)
        .args(&container.command)
}

/// `docker network connect` of the container to each network beyond the one that it is made in.
pub(super) fn connect<'a>(target: &'a Target, container: &'a Container) -> impl Iterator<Item = Program> + 'a {
    let main = main_network(container).map(|network| network.name.as_str());
    let others = container.networks.iter().filter(move |network| Some(network.name.as_str()) != main);
    others.map(|network| {
        super::docker(["network", "connect"]).args(endpoint(target, network, "alias")).args([
            "--",
            &network.name,
            &target.container,
        ])
    })
}

/// `docker volume create` of a volume with the mark of a restore.
pub(super) fn volume(volume: &Volume, session: SessionId) -> Program {
    let labels = volume.labels.iter().filter(|(key, _)| *key != MARK);
    super::docker(["volume", "create"])
        .args(labels.map(|(key, value)| format!("--label={key}={value}")))
        .arg(format!("--label={MARK}={session}"))
        .args(volume.options.iter().map(|(key, value)| format!("--opt={key}={value}")))
        .args(["--", &volume.name])
}

fn main_network(container: &Container) -> Option<&ContainerNetwork> {
    let mode = container.network_mode.as_deref();
    let named = container.networks.iter().find(|network| Some(network.name.as_str()) == mode);
    named.or_else(|| container.networks.first())
}

/// The network in which it is made. A container of another name gives up its addresses.
fn network_of(target: &Target, container: &Container) -> Vec<String> {
    let Some(network) = main_network(container) else {
        return one("network", container.network_mode.as_ref());
    };
    // Those of a restore have one name, whether it was called by its name or as the default.
    let hostname = container.hostname.as_ref().filter(|_| network.name != "host");
    let mac = network.mac.as_ref().filter(|_| !target.renamed && network.name != "host");
    let domain = container.domain_name.as_ref().filter(|_| network.name != "host");
    let named = [one("network", Some(&network.name)), one("hostname", hostname), one("domainname", domain)];
    let own = [one("mac-address", mac), endpoint(target, network, "network-alias")];
    named.into_iter().chain(own).flatten().collect()
}

fn endpoint(target: &Target, network: &ContainerNetwork, alias: &str) -> Vec<String> {
    if BUILT_IN.contains(&network.name.as_str()) {
        return Vec::new();
    }
    let addresses = network.addresses.iter().filter(|_| !target.renamed).map(|address| {
        let option = if address.is_ipv6() { "ip6" } else { "ip" };
        format!("--{option}={address}")
    });
    addresses.chain(all(alias, &network.aliases)).collect()
}

fn mount(mount: &ContainerMount) -> String {
    let ContainerMount { kind, destination, name, source, read_only, options, .. } = mount;
    if kind == "tmpfs" {
        let options = options.iter().map(String::as_str).chain(read_only.then_some("ro")).collect::<Vec<_>>();
        let after = if options.is_empty() { String::new() } else { format!(":{}", options.join(",")) };
        return format!("--tmpfs={destination}{after}");
    }
    let source = if kind == "volume" { name } else { source };
    let propagation = options.iter().find(|option| option.ends_with("private") || option.ends_with("shared"));
    let propagation = propagation.or_else(|| options.iter().find(|option| option.ends_with("slave")));
    let fields = [
        Some(format!("type={kind}")),
        source.as_ref().map(|source| format!("source={source}")),
        Some(format!("destination={destination}")),
        read_only.then(|| "readonly".to_owned()),
        propagation.filter(|_| kind == "bind").map(|how| format!("bind-propagation={how}")),
    ];
    let fields: Vec<String> = fields.into_iter().flatten().map(quoted).collect();
    format!("--mount={}", fields.join(","))
}

/// A field of the list that `--mount` takes.
fn quoted(field: String) -> String {
    if field.contains([',', '"', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
}

fn port(port: &PublishedPort) -> String {
    let PublishedPort { protocol, port, host_address, host_port } = port;
    let address = match host_address {
        Some(address) if address.is_ipv6() => format!("[{address}]:"),
        Some(address) => format!("{address}:"),
        None => String::new(),
    };
    let on_host = host_port.map(|port| port.to_string());
    match (address.as_str(), on_host) {
        ("", None) => format!("--publish={port}/{protocol}"),
        (address, on_host) => format!("--publish={address}{}:{port}/{protocol}", on_host.unwrap_or_default()),
    }
}

fn one(option: &str, value: Option<&impl ToString>) -> Vec<String> {
    value.map(|value| format!("--{option}={}", value.to_string())).into_iter().collect()
}

fn all<'a>(option: &'a str, values: &'a [String]) -> impl Iterator<Item = String> + 'a {
    values.iter().map(move |value| format!("--{option}={value}"))
}

fn flag(option: &str, set: bool) -> Option<String> {
    set.then(|| format!("--{option}"))
}

#[cfg(test)]
mod tests {
    use image_format::RestartPolicy;

    use super::*;

    fn target(renamed: bool) -> Target {
        Target {
            member: "consumer".parse().unwrap(),
            engine: crate::EngineKind::Docker,
            container: "consumer".to_owned(),
            id: None,
            renamed,
            volumes: Vec::new(),
            dump: "/w/images/checkpoint".into(),
            pod: None,
            lone: None,
            session: coordinator::SessionId::from_bytes([7; 16]),
            criu_config: "/run/syncpoint/s/consumer/criu.conf".into(),
            own_config: "/etc/criu/runc.conf".into(),
            follows: None,
        }
    }

    fn network(name: &str, address: &str) -> ContainerNetwork {
        let mac = Some("02:42:0a:5a:00:0a".to_owned());
        ContainerNetwork { name: name.to_owned(), addresses: vec![address.parse().unwrap()], mac, ..Default::default() }
    }

    #[test]
    fn a_container_is_made_again_as_it_was() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let mount = |kind: &str, from: &str, destination: &str| ContainerMount {
            kind: kind.to_owned(),
            destination: destination.to_owned(),
            name: Some(from.to_owned()),
            source: Some(from.to_owned()),
            ..ContainerMount::default()
        };
        let bind = ContainerMount { read_only: true, options: texts(&["z", "rslave"]), ..mount("bind", "/a,b", "/b") };
        let tmpfs = ContainerMount { options: texts(&["size=1m"]), ..mount("tmpfs", "", "/t") };
        let published = PublishedPort { protocol: "tcp".to_owned(), port: 7000, ..PublishedPort::default() };
        let host =
            PublishedPort { host_address: Some("::1".parse().unwrap()), host_port: Some(8000), ..published.clone() };
        let container = Container {
            labels: [("a".to_owned(), "b".to_owned()), (MARK.to_owned(), "an earlier restore".to_owned())].into(),
            annotations: [(ANNOTATION.to_owned(), "forged".to_owned())].into(),
            mounts: vec![mount("volume", "data", "/data"), bind, tmpfs],
            network_mode: Some("demo".to_owned()),
            networks: vec![network("bridge", "172.17.0.2"), network("demo", "10.90.0.10")],
            ports: vec![published, host],
            entrypoint: texts(&["/bin/sh", "-c"]),
            command: texts(&["echo a b", "--privileged"]),
            restart_policy: Some(RestartPolicy { name: "on-failure".to_owned(), retries: Some(3) }),
            nano_cpus: Some(1_500_000_000),
            hostname: Some("9a74".to_owned()),
            tty: true,
            ..Container::default()
        };
        let session = "07".repeat(16);
        let line = create(&target(false), &container, "demo:1", &format!("{session}/consumer")).line();
        assert_eq!(
            line,
            format!(
                "docker create --runtime syncpoint --name consumer --annotation={ANNOTATION}={session}/consumer \
                 --annotation={MARK}={session} --annotation=org.criu.config=/run/syncpoint/s/consumer/target.conf \
                 --annotation=io.syncpoint.criu-config=/etc/criu/runc.conf --label={MARK}={session} --label=a=b \
                 --mount=type=volume,source=data,destination=/data \
                 --mount=type=bind,\"source=/a,b\",destination=/b,readonly,bind-propagation=rslave --tmpfs=/t:size=1m \
                 --network=demo --hostname=9a74 --mac-address=02:42:0a:5a:00:0a --ip=10.90.0.10 --publish=7000/tcp \
                 --publish=[::1]:8000:7000/tcp --entrypoint=/bin/sh --tty --restart=on-failure:3 --cpus=1.500000000 \
                 -- demo:1 -c echo a b --privileged"
            )
        );
        let renamed = create(&target(true), &container, "demo:1", "s/m").line();
        assert!(!renamed.contains("--ip=") && !renamed.contains("--mac-address"), "{renamed}");
        let connected: Vec<_> = connect(&target(false), &container).map(|program| program.line()).collect();
        assert_eq!(connected, ["docker network connect -- bridge consumer"]);
    }
}
