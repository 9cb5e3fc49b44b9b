//! Facts as lines that a person reads.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use super::{Facts, Process};
use crate::is_format;

/// Deepest indentation of the process tree; what lies deeper is shown at this depth.
const MAX_INDENT: usize = 16;

impl Facts {
    /// The processes with their depth in the tree, every one once, children after their parent. Processes that claim to
    /// be their own ancestors come last, at depth 0.
    #[must_use]
    pub fn process_tree(&self) -> Vec<(usize, &Process)> {
        let known: BTreeSet<u32> = self.processes.iter().map(|process| process.pid).collect();
        let mut children: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        let mut stack = Vec::new();
        for (index, process) in self.processes.iter().enumerate().rev() {
            if known.contains(&process.parent) {
                children.entry(process.parent).or_default().push(index);
            } else {
                stack.push((0, index));
            }
        }
        let mut tree = Vec::with_capacity(self.processes.len());
        let mut seen = vec![false; self.processes.len()];
        while let Some((depth, index)) = stack.pop() {
            let process = &self.processes[index];
            seen[index] = true;
            tree.push((depth, process));
            // Taking the children away keeps a process id that is there twice from giving them twice.
            let below = children.remove(&process.pid).unwrap_or_default();
            stack.extend(below.into_iter().map(|index| (depth + 1, index)));
        }
        let circular = self.processes.iter().zip(seen).filter(|(_, seen)| !seen);
        tree.extend(circular.map(|(process, _)| (0, process)));
        tree
    }

    /// What `inspect` shows: processes, memory, networks, connections and the mounts that a person asked for, a line each, without a line's end.
    /// Control characters are escaped, since names in a dump are anyone's choice.
    #[must_use]
    pub fn summary(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut line = |label: &str, text: &str| lines.push(format!("{label:<12}{}", Plain(text)));
        line("engine", &self.engine_text());
        if let Some(name) = &self.container_name {
            let id = self.container_id.iter().map(|id| format!(" ({})", id.chars().take(12).collect::<String>()));
            line("container", &format!("{name}{}", id.collect::<String>()));
        }
        if let Some(pod) = self.pod.as_ref().and_then(|pod| pod.name.as_ref().or(pod.id.as_ref())) {
            line("pod", pod);
        }
        if let Some(image) = self.rootfs_image_name.as_ref().or(self.raw_image_name.as_ref()) {
            line("base image", image);
        }
        if let Some(host) = self.host_text() {
            line("host", &host);
        }
        if let Some(at) = &self.checkpointed_at {
            line("dumped at", at);
        }
        if let Some(timings) = &self.timings {
            line("frozen for", &format!("{:.1} ms", f64::from(timings.frozen_us) / 1000.0));
        }
        if let Some(bytes) = self.pages_bytes {
            line("memory", &Bytes(bytes).to_string());
        }
        for network in &self.networks {
            line("network", &network_text(network));
        }
        for volume in &self.named_volumes {
            line("volume", volume);
        }
        for mount in self.mounts.iter().filter(|mount| mount.kind.as_deref() == Some("bind")) {
            let source = mount.source.as_deref().unwrap_or("?");
            if !self.is_engines_own(source) {
                line("mount", &format!("{} from {source}", mount.destination));
            }
        }
        for connection in &self.connections {
            line("connection", &format!("tcp {} - {}", connection.local, connection.remote));
        }
        for (depth, process) in self.process_tree() {
            line("process", &process_text(depth, process));
        }
        lines
    }

    /// Whether a mount comes from the engine's folder for this container (hosts, resolv.conf and the like), or is one of the
    /// volumes, which have lines of their own.
    fn is_engines_own(&self, source: &str) -> bool {
        let mut parts = source.split('/');
        parts.any(|part| {
            self.container_id.as_deref() == Some(part) || self.named_volumes.iter().any(|name| name == part)
        })
    }

    fn engine_text(&self) -> String {
        let mut text = self.kind.to_string();
        for (label, value) in
            [("", &self.engine_version), ("runtime ", &self.runtime_name), ("CRIU ", &self.criu_version)]
        {
            if let Some(value) = value {
                let comma = if label.is_empty() { "" } else { "," };
                let _ = write!(text, "{comma} {label}{value}");
            }
        }
        text
    }

    fn host_text(&self) -> Option<String> {
        let kernel = self.kernel.as_ref().map(|kernel| format!("kernel {kernel}"));
        let parts: Vec<String> = self.architecture.clone().into_iter().chain(kernel).collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

fn network_text(network: &super::NetworkFact) -> String {
    let mut text = network.name.clone();
    for address in &network.addresses {
        let kept = if network.static_ips.contains(address) { " (static)" } else { "" };
        let _ = write!(text, " {address}{kept}");
    }
    if let Some(mac) = &network.mac {
        let _ = write!(text, " {mac}");
    }
    text
}

fn process_text(depth: usize, process: &Process) -> String {
    let indent = "  ".repeat(depth.min(MAX_INDENT));
    let threads = if process.threads > 1 { format!(", {} threads", process.threads) } else { String::new() };
    format!("{indent}{} {}{threads}", process.pid, process.command.as_deref().unwrap_or("?"))
}

/// Text with its control characters escaped.
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            // Marks that turn the direction of writing could hide what stands before them, and others are not seen.
            if c.is_control() || is_format(c) {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

/// A size in the largest binary unit that leaves at least one before the point.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut unit) = (self.0, "B");
        let mut tenths = 0;
        for larger in ["KiB", "MiB", "GiB", "TiB"] {
            if value < 1024 {
                break;
            }
            tenths = value % 1024 * 10 / 1024;
            value /= 1024;
            unit = larger;
        }
        if unit == "B" { write!(f, "{value} B") } else { write!(f, "{value}.{tenths} {unit}") }
    }
}
