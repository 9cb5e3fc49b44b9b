//! `docker create` for a member: the container that was, made again by Docker from what the member knows.
//!
//! Whatever the member says ends up as one argument of a command line, never as a part of one: options are
//! written `--name=VALUE`, and the list that `--mount` and `--network` take is quoted field by field.

use std::collections::BTreeMap;

use image_format::{Container, ContainerMount, ContainerNetwork, PublishedPort};
use runtime::ticket::ANNOTATION;
use runtime::{CRIU_CONFIG, OWN_CONFIG};

use crate::target::MARK;

/// The annotations that a restore sets itself.
const OWN: [&str; 4] = [ANNOTATION, MARK, CRIU_CONFIG, OWN_CONFIG];

/// Docker's own networks, which give no container an address that it asks for.
const BUILT_IN: [&str; 4] = ["", "bridge", "default", "none"];

/// What makes a container one of a restore.
#[derive(Debug)]
pub(super) struct Making<'a> {
    /// The container's name.
    pub(super) name: &'a str,
    /// The image, by a name or an id that Docker knows.
    pub(super) image: &'a str,
    /// What Docker calls the runtime that restores.
    pub(super) runtime: &'a str,
    /// What the runtime is told by annotations.
    pub(super) annotations: &'a [(&'a str, String)],
    /// What people can see by labels.
    pub(super) labels: &'a [(&'a str, String)],
    /// The file with the container's environment.
    pub(super) environment: &'a str,
}

/// The arguments of `docker`.
pub(super) fn arguments(container: &Container, making: &Making<'_>) -> Vec<String> {
    let mut all = vec!["create".to_owned()];
    let mut option = |name: &str, value: &str| all.push(format!("--{name}={value}"));
    option("name", making.name);
    option("runtime", making.runtime);
    let kept = |from: &BTreeMap<String, String>| -> Vec<(String, String)> {
        let kept = from.iter().filter(|(key, _)| !OWN.contains(&key.as_str()));
        kept.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    for (key, value) in kept(&container.annotations) {
        option("annotation", &format!("{key}={value}"));
    }
    for (key, value) in making.annotations {
        option("annotation", &format!("{key}={value}"));
    }
    for (key, value) in kept(&container.labels) {
        option("label", &format!("{key}={value}"));
    }
    for (key, value) in making.labels {
        option("label", &format!("{key}={value}"));
    }
    option("env-file", making.environment);
    let texts = [
        ("user", &container.user),
        ("workdir", &container.working_folder),
        ("hostname", &container.hostname),
        ("domainname", &container.domain_name),
        ("ipc", &container.ipc_mode),
        ("pid", &container.pid_mode),
        ("uts", &container.uts_mode),
        ("userns", &container.user_mode),
        ("stop-signal", &container.stop_signal),
        ("log-driver", &container.log_driver),
    ];
    for (name, value) in texts.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))) {
        // Whose host name the container has is its network's to say, where it has another's.
        if name == "hostname" && (container.uts_mode.is_some() || shares_network(container)) {
            continue;
        }
        option(name, value);
    }
    let numbers = [
        ("shm-size", container.shm_size),
        ("memory", container.memory),
        ("pids-limit", container.pids_limit),
        ("stop-timeout", container.stop_timeout),
    ];
    for (name, value) in numbers.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        option(name, &value.to_string());
    }
    if let Some(nano) = container.nano_cpus {
        option("cpus", &format!("{}.{:09}", nano / 1_000_000_000, nano % 1_000_000_000));
    }
    if let Some(policy) = &container.restart_policy {
        let retries = policy.retries.filter(|_| policy.name == "on-failure").map(|retries| format!(":{retries}"));
        option("restart", &format!("{}{}", policy.name, retries.unwrap_or_default()));
    }
    let lists = [
        ("group-add", &container.groups),
        ("add-host", &container.extra_hosts),
        ("dns", &container.dns),
        ("cap-add", &container.capabilities_added),
        ("cap-drop", &container.capabilities_dropped),
        ("security-opt", &container.security_options),
        ("device", &container.devices),
        ("ulimit", &container.ulimits),
    ];
    for (name, values) in lists {
        values.iter().for_each(|value| option(name, value));
    }
    for (key, value) in &container.sysctls {
        option("sysctl", &format!("{key}={value}"));
    }
    let flags = [
        ("rm", container.auto_remove),
        ("privileged", container.privileged),
        ("read-only", container.read_only),
        ("init", container.init),
        ("tty", container.tty),
        ("interactive", container.open_stdin),
    ];
    for (name, _) in flags.into_iter().filter(|(_, is_set)| *is_set) {
        option(name, "true");
    }
    container.mounts.iter().for_each(|one| mount(one, &mut option));
    networks(container).iter().for_each(|network| option("network", network));
    if !shares_network(container) {
        container.ports.iter().for_each(|one| option("publish", &port(one)));
    }
    // One word is the entry point; further ones stand before the command.
    let (first, rest) =
        container.entrypoint.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    option("entrypoint", first);
    all.push("--".to_owned());
    all.push(making.image.to_owned());
    all.extend(rest.iter().chain(&container.command).cloned());
    all
}

/// Whether it has the host's network, or that of another container.
fn shares_network(container: &Container) -> bool {
    let mode = container.network_mode.as_deref().unwrap_or_default();
    mode == "host" || mode.starts_with("container:")
}

fn mount(mount: &ContainerMount, option: &mut impl FnMut(&str, &str)) {
    let ContainerMount { kind, destination, name, source, read_only, options, .. } = mount;
    if kind == "tmpfs" {
        let options = options.join(",");
        let separator = if options.is_empty() { "" } else { ":" };
        return option("tmpfs", &format!("{destination}{separator}{options}"));
    }
    let from = if kind == "volume" { name } else { source };
    let mut fields = vec![format!("type={kind}"), format!("dst={destination}")];
    fields.extend(from.iter().map(|from| format!("src={from}")));
    if *read_only {
        fields.push("readonly".to_owned());
    }
    if kind == "volume" {
        // An empty volume of the member stays empty, whatever its image has in that place.
        fields.push("volume-nocopy".to_owned());
    }
    let propagation = |option: &&String| {
        ["shared", "slave", "private"].iter().any(|word| option.strip_prefix('r').unwrap_or(option) == *word)
    };
    if kind == "bind"
        && let Some(propagation) = options.iter().find(propagation)
    {
        fields.push(format!("bind-propagation={propagation}"));
    }
    option("mount", &list(&fields));
}

/// One argument a network, the first being that of the container's network mode.
fn networks(container: &Container) -> Vec<String> {
    let mode = container.network_mode.as_deref().unwrap_or_default();
    if shares_network(container) || mode == "none" {
        return vec![mode.to_owned()];
    }
    let mut networks: Vec<&ContainerNetwork> = container.networks.iter().collect();
    networks.sort_by_key(|network| network.name != mode);
    let network = |network: &&ContainerNetwork| {
        let mut fields = vec![format!("name={}", network.name)];
        if !BUILT_IN.contains(&network.name.as_str()) {
            let kind = |is_v4: bool| if is_v4 { "ip" } else { "ip6" };
            fields.extend(network.addresses.iter().map(|address| format!("{}={address}", kind(address.is_ipv4()))));
            fields.extend(network.aliases.iter().map(|alias| format!("alias={alias}")));
        }
        fields.extend(network.mac.iter().map(|mac| format!("mac-address={mac}")));
        list(&fields)
    };
    networks.iter().map(network).collect()
}

fn port(published: &PublishedPort) -> String {
    let PublishedPort { protocol, port, host_address, host_port } = published;
    let address = match host_address {
        Some(address) if address.is_ipv6() => format!("[{address}]:"),
        Some(address) => format!("{address}:"),
        None => String::new(),
    };
    let host_port = host_port.map(|port| port.to_string()).unwrap_or_default();
    match (address.is_empty(), host_port.is_empty()) {
        (true, true) => format!("{port}/{protocol}"),
        _ => format!("{address}{host_port}:{port}/{protocol}"),
    }
}

/// A list as Docker's client reads it: comma-separated values, of which those with a comma or a quote are quoted.
fn list(fields: &[String]) -> String {
    let quoted = |field: &String| match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.clone(),
    };
    fields.iter().map(quoted).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use image_format::RestartPolicy;

    use super::*;

    fn made(container: &Container) -> Vec<String> {
        let making = Making {
            name: "web",
            image: "busybox",
            runtime: "syncpoint",
            annotations: &[("io.syncpoint.restore", "s/web".to_owned())],
            labels: &[("io.syncpoint.restored-by", "s".to_owned())],
            environment: "/w/env",
        };
        arguments(container, &making)
    }

    #[test]
    fn a_plain_container() {
        let container = Container { command: vec!["sleep".into(), "1".into()], ..Container::default() };
        assert_eq!(
            made(&container),
            [
                "create",
                "--name=web",
                "--runtime=syncpoint",
                "--annotation=io.syncpoint.restore=s/web",
                "--label=io.syncpoint.restored-by=s",
                "--env-file=/w/env",
                "--entrypoint=",
                "--",
                "busybox",
                "sleep",
                "1"
            ]
        );
    }

    #[test]
    fn everything_that_a_member_knows() {
        let container = Container {
            entrypoint: vec!["/init".into(), "-v".into()],
            command: vec!["--privileged".into()],
            labels: [("a".into(), "b=c".into()), ("io.syncpoint.restored-by".into(), "older".into())].into(),
            annotations: [("io.syncpoint.restore".into(), "older/web".into())].into(),
            network_mode: Some("net".into()),
            networks: vec![
                ContainerNetwork { name: "aaa".into(), ..ContainerNetwork::default() },
                ContainerNetwork {
                    name: "net".into(),
                    addresses: vec!["10.90.0.10".parse().unwrap(), "fd00::5".parse().unwrap()],
                    aliases: vec!["web".into()],
                    mac: Some("02:42:0a:5a:00:0a".into()),
                    ..ContainerNetwork::default()
                },
            ],
            ports: vec![
                PublishedPort {
                    protocol: "tcp".into(),
                    port: 80,
                    host_address: Some("127.0.0.1".parse().unwrap()),
                    host_port: Some(8080),
                },
                PublishedPort { protocol: "udp".into(), port: 53, host_address: None, host_port: None },
            ],
            mounts: vec![
                ContainerMount {
                    kind: "volume".into(),
                    destination: "/da,ta".into(),
                    name: Some("data".into()),
                    read_only: true,
                    ..ContainerMount::default()
                },
                ContainerMount {
                    kind: "bind".into(),
                    destination: "/b".into(),
                    source: Some("/srv".into()),
                    options: vec!["rslave".into()],
                    ..ContainerMount::default()
                },
                ContainerMount {
                    kind: "tmpfs".into(),
                    destination: "/t".into(),
                    options: vec!["size=1m".into()],
                    ..ContainerMount::default()
                },
            ],
            restart_policy: Some(RestartPolicy { name: "on-failure".into(), retries: Some(3) }),
            nano_cpus: Some(1_500_000_000),
            hostname: Some("web-1".into()),
            tty: true,
            ..Container::default()
        };
        let made = made(&container);
        for expected in [
            "--label=a=b=c",
            "--network=name=net,ip=10.90.0.10,ip6=fd00::5,alias=web,mac-address=02:42:0a:5a:00:0a",
            "--publish=127.0.0.1:8080:80/tcp",
            "--publish=53/udp",
            "--mount=type=volume,\"dst=/da,ta\",src=data,readonly,volume-nocopy",
            "--mount=type=bind,dst=/b,src=/srv,bind-propagation=rslave",
            "--tmpfs=/t:size=1m",
            "--restart=on-failure:3",
            "--cpus=1.500000000",
            "--hostname=web-1",
            "--tty=true",
            "--entrypoint=/init",
        ] {
            assert!(made.iter().any(|argument| argument == expected), "{expected}\n{made:#?}");
        }
        assert!(!made.iter().any(|argument| argument.contains("older")), "{made:#?}");
        let networks: Vec<_> = made.iter().filter(|argument| argument.starts_with("--network=")).collect();
        assert_eq!(networks[1], "--network=name=aaa", "the network of its mode comes first");
        assert_eq!(made[made.len() - 4..], ["--", "busybox", "-v", "--privileged"], "no argument becomes an option");
    }

    #[test]
    fn a_network_of_others_has_neither_ports_nor_a_name_of_its_own() {
        let container = Container {
            network_mode: Some("host".into()),
            hostname: Some("the-hosts".into()),
            ports: vec![PublishedPort { protocol: "tcp".into(), port: 80, ..PublishedPort::default() }],
            ..Container::default()
        };
        let made = made(&container);
        assert!(made.contains(&"--network=host".to_owned()));
        assert!(!made.iter().any(|argument| argument.starts_with("--publish") || argument.starts_with("--hostname")));
    }
}
