//! The target has the authority: what a member says of itself is compared with the bundle that the engine made.
//!
//! CRIU puts back what was dumped: capabilities, filters, mounts, limits of the kernel. So what the member's own
//! `config.json` claims beyond the bundle's is refused before anything is made, one [`Refusal`] for each claim.
//!
//! | the member claims | and the bundle |
//! |---|---|
//! | a capability, in any set | does not give it |
//! | the host's user ids, or other ones | maps them otherwise |
//! | no seccomp filter | has one |
//! | that its tasks may gain privileges | forbids it |
//! | another AppArmor profile or SELinux label | has one |
//! | a device | lacks it |
//! | a mount | lacks it, has another kind of mount there, or one that is read-only |
//! | a writable root filesystem | has a read-only one |
//! | a path of the kernel, readable or writable | masks it, or makes it read-only |
//! | a namespace of the host | has one of its own |
//! | a kernel parameter | sets it otherwise |
//! | the user root | runs as another user |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

/// What a member claims and its target does not give.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Refusal {
    /// Capabilities beyond the bundle's.
    Capabilities {
        /// "bounding" and so on.
        set: &'static str,
        /// Their names.
        names: Vec<String>,
    },
    /// User or group ids that are mapped otherwise.
    IdMapping {
        /// "uid" or "gid".
        kind: &'static str,
    },
    /// No filter where the bundle has one.
    Seccomp,
    /// Privileges that the bundle forbids.
    NewPrivileges,
    /// Another label of a security module.
    Label {
        /// "AppArmor profile" or "SELinux label".
        kind: &'static str,
        /// The member's.
        member: String,
        /// The bundle's.
        bundle: String,
    },
    /// A device that the bundle lacks.
    Device {
        /// Where it is.
        path: String,
    },
    /// A mount that the bundle lacks.
    Mount {
        /// Where it is.
        destination: String,
    },
    /// A mount of the host's where the bundle has one of its own, or the other way round.
    MountKind {
        /// Where it is.
        destination: String,
        /// Whether the bundle's is one of the host's.
        bundle_binds: bool,
    },
    /// A writable mount where the bundle's is read-only.
    WritableMount {
        /// Where it is.
        destination: String,
    },
    /// A writable root filesystem where the bundle's is read-only.
    WritableRoot,
    /// Paths that the bundle hides.
    Unmasked {
        /// What they are.
        paths: Vec<String>,
    },
    /// Paths that the bundle makes read-only.
    Writable {
        /// What they are.
        paths: Vec<String>,
    },
    /// A namespace of the host where the bundle has one of its own.
    HostNamespace {
        /// Its type.
        kind: String,
    },
    /// A kernel parameter that the bundle does not set so.
    Sysctl {
        /// Its name.
        name: String,
    },
    /// The user root, where the bundle has another one.
    Root {
        /// The bundle's user id.
        bundle: u64,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capabilities { set, names } => write!(f, "its {set} capabilities {} are not given", names.join(", ")),
            Self::IdMapping { kind } => write!(f, "its {kind}s are mapped to other ones"),
            Self::Seccomp => f.write_str("it runs without a seccomp filter, and one is demanded"),
            Self::NewPrivileges => f.write_str("its tasks may gain privileges, which is forbidden (no-new-privileges)"),
            Self::Label { kind, member, bundle } if member.is_empty() => {
                write!(f, "it has no {kind}, and {bundle:?} is demanded")
            }
            Self::Label { kind, member, bundle } => write!(f, "its {kind} is {member:?}, and {bundle:?} is demanded"),
            Self::Device { path } => write!(f, "its device {path:?} is not given"),
            Self::Mount { destination } => write!(f, "nothing is mounted at {destination:?}, as it was"),
            Self::MountKind { destination, bundle_binds: true } => {
                write!(
                    f,
                    "a folder or file of the host is mounted at {destination:?}, where it had a filesystem of its own"
                )
            }
            Self::MountKind { destination, .. } => {
                write!(
                    f,
                    "a filesystem of its own is mounted at {destination:?}, where a folder or file of the host was"
                )
            }
            Self::WritableMount { destination } => {
                write!(f, "it writes to {destination:?}, which is mounted read-only")
            }
            Self::WritableRoot => f.write_str("it writes to its root filesystem, which is read-only"),
            Self::Unmasked { paths } => write!(f, "it sees {}, which are hidden", paths.join(", ")),
            Self::Writable { paths } => write!(f, "it may write to {}, which are read-only", paths.join(", ")),
            Self::HostNamespace { kind } => {
                write!(f, "it shares the {kind} namespace of its host, and is given one of its own")
            }
            Self::Sysctl { name } => write!(f, "the kernel parameter {name:?} is not set as it was"),
            Self::Root { bundle } => write!(f, "it runs as root, and the user {bundle} is demanded"),
        }
    }
}

/// Everything that `member`, the container's own `config.json` at the dump, claims beyond `bundle`, the target's.
#[must_use]
pub fn compare(member: &Value, bundle: &Value) -> Vec<Refusal> {
    let both = Both { member, bundle };
    let mut refused = Vec::new();
    both.capabilities(&mut refused);
    both.user(&mut refused);
    both.confinement(&mut refused);
    both.devices(&mut refused);
    both.mounts(&mut refused);
    both.paths(&mut refused);
    both.namespaces(&mut refused);
    both.sysctls(&mut refused);
    refused
}

struct Both<'v> {
    member: &'v Value,
    bundle: &'v Value,
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn is_true(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer) == Some(&Value::Bool(true))
}

fn list<'v>(value: &'v Value, pointer: &str) -> impl Iterator<Item = &'v Value> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn texts(value: &Value, pointer: &str) -> BTreeSet<String> {
    list(value, pointer).filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Both<'_> {
    fn capabilities(&self, refused: &mut Vec<Refusal>) {
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            let pointer = format!("/process/capabilities/{set}");
            // Written as `CAP_CHOWN`, in either case.
            let names = |value| -> BTreeSet<String> {
                texts(value, &pointer).into_iter().map(|name| name.to_uppercase()).collect()
            };
            let names: Vec<_> = names(self.member).difference(&names(self.bundle)).cloned().collect();
            if !names.is_empty() {
                refused.push(Refusal::Capabilities { set, names });
            }
        }
    }

    fn user(&self, refused: &mut Vec<Refusal>) {
        for (kind, pointer) in [("uid", "/linux/uidMappings"), ("gid", "/linux/gidMappings")] {
            let mapped = |value| -> BTreeSet<[u64; 3]> {
                let part = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_u64).unwrap_or(0);
                let entries = list(value, pointer);
                entries.map(|entry| ["containerID", "hostID", "size"].map(|key| part(entry, key))).collect()
            };
            if mapped(self.member) != mapped(self.bundle) {
                refused.push(Refusal::IdMapping { kind });
            }
        }
        let uid = |value: &Value| value.pointer("/process/user/uid").and_then(Value::as_u64).unwrap_or(0);
        let bundle = uid(self.bundle);
        if bundle != 0 && uid(self.member) == 0 {
            refused.push(Refusal::Root { bundle });
        }
    }

    fn confinement(&self, refused: &mut Vec<Refusal>) {
        let filters = |value: &Value| value.pointer("/linux/seccomp").is_some_and(|seccomp| !seccomp.is_null());
        if filters(self.bundle) && !filters(self.member) {
            refused.push(Refusal::Seccomp);
        }
        let forbidden = "/process/noNewPrivileges";
        if is_true(self.bundle, forbidden) && !is_true(self.member, forbidden) {
            refused.push(Refusal::NewPrivileges);
        }
        let labels = [("AppArmor profile", "/process/apparmorProfile"), ("SELinux label", "/process/selinuxLabel")];
        for (kind, pointer) in labels {
            let (member, bundle) = (text(self.member, pointer), text(self.bundle, pointer));
            if !bundle.is_empty() && member != bundle {
                refused.push(Refusal::Label { kind, member, bundle });
            }
        }
    }

    fn devices(&self, refused: &mut Vec<Refusal>) {
        let devices = |value| -> BTreeSet<(String, String, i64, i64)> {
            let number = |device: &Value, key: &str| device.get(key).and_then(Value::as_i64).unwrap_or(0);
            let devices = list(value, "/linux/devices");
            devices
                .map(|device| {
                    let (major, minor) = (number(device, "major"), number(device, "minor"));
                    (text(device, "/path"), text(device, "/type"), major, minor)
                })
                .collect()
        };
        for (path, ..) in devices(self.member).difference(&devices(self.bundle)) {
            refused.push(Refusal::Device { path: path.clone() });
        }
    }

    fn mounts(&self, refused: &mut Vec<Refusal>) {
        let given = mounts(self.bundle);
        for (destination, claimed) in mounts(self.member) {
            let Some(given) = given.get(&destination) else {
                refused.push(Refusal::Mount { destination });
                continue;
            };
            if claimed.binds != given.binds {
                refused.push(Refusal::MountKind { destination, bundle_binds: given.binds });
            } else if given.read_only && !claimed.read_only {
                refused.push(Refusal::WritableMount { destination });
            }
        }
        let read_only = "/root/readonly";
        if is_true(self.bundle, read_only) && !is_true(self.member, read_only) {
            refused.push(Refusal::WritableRoot);
        }
    }

    fn paths(&self, refused: &mut Vec<Refusal>) {
        let lacking = |pointer: &str| -> Vec<String> {
            texts(self.bundle, pointer).difference(&texts(self.member, pointer)).cloned().collect()
        };
        let masked = lacking("/linux/maskedPaths");
        if !masked.is_empty() {
            refused.push(Refusal::Unmasked { paths: masked });
        }
        // What is hidden from the member cannot be written by it either.
        let hidden = texts(self.member, "/linux/maskedPaths");
        let mut written = lacking("/linux/readonlyPaths");
        written.retain(|path| !hidden.contains(path));
        if !written.is_empty() {
            refused.push(Refusal::Writable { paths: written });
        }
    }

    fn namespaces(&self, refused: &mut Vec<Refusal>) {
        let kinds = |value| -> BTreeSet<String> {
            list(value, "/linux/namespaces").map(|namespace| text(namespace, "/type")).collect()
        };
        for kind in kinds(self.bundle).difference(&kinds(self.member)) {
            refused.push(Refusal::HostNamespace { kind: kind.clone() });
        }
    }

    fn sysctls(&self, refused: &mut Vec<Refusal>) {
        let set = |value: &Value, name: &str| value.pointer("/linux/sysctl").and_then(|all| all.get(name)).cloned();
        let claimed = self.member.pointer("/linux/sysctl").and_then(Value::as_object);
        for (name, value) in claimed.into_iter().flatten() {
            if set(self.bundle, name).as_ref() != Some(value) {
                refused.push(Refusal::Sysctl { name: name.clone() });
            }
        }
    }
}

/// What stands at a mount's destination.
struct Mount {
    /// A folder or file of the host.
    binds: bool,
    read_only: bool,
}

/// Mounts by destination; of several at one, the last one is seen.
fn mounts(config: &Value) -> BTreeMap<String, Mount> {
    let mount = |mount: &Value| {
        let options = texts(mount, "/options");
        let has = |option: &str| options.contains(option);
        let binds = has("bind") || has("rbind") || text(mount, "/type") == "bind";
        let destination = text(mount, "/destination");
        let trimmed = destination.trim_end_matches('/');
        let destination = if trimmed.is_empty() { "/" } else { trimmed };
        (destination.to_owned(), Mount { binds, read_only: has("ro") || has("rro") })
    };
    list(config, "/mounts").map(mount).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A container as engines make them.
    fn config() -> Value {
        json!({
            "process": {
                "user": {"uid": 0, "gid": 0},
                "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]},
                "apparmorProfile": "docker-default",
                "selinuxLabel": "u:r:t:s0",
                "noNewPrivileges": true
            },
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev/shm", "type": "bind", "source": "/s", "options": ["rw", "rbind"]},
                {"destination": "/etc/hosts/", "source": "/h", "options": ["bind", "ro"]}
            ],
            "linux": {
                "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}],
                "sysctl": {"net.ipv4.ip_forward": "0"},
                "namespaces": [{"type": "pid"}, {"type": "network", "path": "/n"}],
                "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
                "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
                "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
                "maskedPaths": ["/proc/kcore", "/proc/keys"],
                "readonlyPaths": ["/proc/sys"]
            }
        })
    }

    /// What is refused of a member that is the bundle with one thing changed.
    fn member(pointer: &str, value: Value) -> Vec<Refusal> {
        let mut member = config();
        *member.pointer_mut(pointer).unwrap() = value;
        compare(&member, &config())
    }

    /// What is refused of a member whose bundle was changed.
    fn bundle(pointer: &str, value: Value) -> Vec<Refusal> {
        let mut bundle = config();
        *bundle.pointer_mut(pointer).unwrap() = value;
        compare(&config(), &bundle)
    }

    #[test]
    fn the_same_and_less_are_taken() {
        assert_eq!(compare(&config(), &config()), []);
        assert_eq!(compare(&json!({}), &json!({})), []);
        assert_eq!(member("/process/capabilities/bounding", json!(["cap_kill"])), []);
        assert_eq!(member("/linux/devices", json!([])), []);
        assert_eq!(member("/linux/sysctl", json!({})), []);
        assert_eq!(member("/mounts", json!([])), []);
        assert_eq!(bundle("/process/noNewPrivileges", json!(false)), []);
        assert_eq!(bundle("/linux/seccomp", json!(null)), []);
        assert_eq!(bundle("/process/apparmorProfile", json!("")), []);
        assert_eq!(bundle("/linux/namespaces", json!([])), []);
        assert_eq!(bundle("/root/readonly", json!(false)), []);
    }

    #[test]
    fn capabilities_beyond_the_bundles() {
        for set in ["bounding", "effective", "permitted"] {
            let more = json!(["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_NET_ADMIN"]);
            let names = ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"].map(str::to_owned).to_vec();
            let refused = member(&format!("/process/capabilities/{set}"), more);
            assert_eq!(refused, [Refusal::Capabilities { set, names }]);
        }
        let added = json!({"ambient": ["CAP_KILL"], "inheritable": ["CAP_KILL"]});
        let names = vec!["CAP_KILL".to_owned()];
        let sets = ["inheritable", "ambient"].map(|set| Refusal::Capabilities { set, names: names.clone() });
        assert_eq!(member("/process/capabilities", added), sets);
        assert_eq!(bundle("/process/capabilities", json!(null)).len(), 3, "a bundle without any gives none");
    }

    #[test]
    fn another_user_mapping() {
        let other = json!([{"containerID": 0, "hostID": 0, "size": 10}]);
        assert_eq!(member("/linux/uidMappings", other.clone()), [Refusal::IdMapping { kind: "uid" }]);
        assert_eq!(member("/linux/gidMappings", other), [Refusal::IdMapping { kind: "gid" }]);
        assert_eq!(member("/linux/uidMappings", json!(null)), [Refusal::IdMapping { kind: "uid" }]);
        assert_eq!(bundle("/linux/uidMappings", json!([])), [Refusal::IdMapping { kind: "uid" }]);
    }

    #[test]
    fn root_where_another_user_is_demanded() {
        assert_eq!(bundle("/process/user/uid", json!(1000)), [Refusal::Root { bundle: 1000 }]);
        assert_eq!(member("/process/user/uid", json!(1000)), []);
    }

    #[test]
    fn no_seccomp_where_it_is_demanded() {
        assert_eq!(member("/linux/seccomp", json!(null)), [Refusal::Seccomp]);
    }

    #[test]
    fn privileges_that_are_forbidden() {
        assert_eq!(member("/process/noNewPrivileges", json!(false)), [Refusal::NewPrivileges]);
    }

    #[test]
    fn another_label() {
        for (kind, pointer) in
            [("AppArmor profile", "/process/apparmorProfile"), ("SELinux label", "/process/selinuxLabel")]
        {
            for label in ["unconfined", ""] {
                let refused = member(pointer, json!(label));
                let bundle = text(&config(), pointer);
                assert_eq!(refused, [Refusal::Label { kind, member: label.to_owned(), bundle }]);
            }
        }
    }

    #[test]
    fn a_device_that_is_not_given() {
        let device = json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]);
        assert_eq!(member("/linux/devices", device), [Refusal::Device { path: "/dev/sda".to_owned() }]);
        // Another device under the name of one that is given.
        assert_eq!(member("/linux/devices/0/minor", json!(1)), [Refusal::Device { path: "/dev/fuse".to_owned() }]);
    }

    #[test]
    fn a_mount_that_is_not_given() {
        let refused = member("/mounts/0/destination", json!("/host"));
        assert_eq!(refused, [Refusal::Mount { destination: "/host".to_owned() }]);
        assert_eq!(bundle("/mounts", json!([])).len(), 3);
    }

    #[test]
    fn another_kind_of_mount() {
        let own = json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm"});
        let kind = |bundle_binds| Refusal::MountKind { destination: "/dev/shm".to_owned(), bundle_binds };
        assert_eq!(member("/mounts/1", own.clone()), [kind(true)]);
        assert_eq!(bundle("/mounts/1", own), [kind(false)]);
    }

    #[test]
    fn a_writable_mount_or_root_where_it_is_read_only() {
        let destination = "/etc/hosts".to_owned();
        assert_eq!(member("/mounts/2/options", json!(["rbind"])), [Refusal::WritableMount { destination }]);
        assert_eq!(member("/root/readonly", json!(false)), [Refusal::WritableRoot]);
        assert_eq!(member("/root", json!({"path": "r"})), [Refusal::WritableRoot]);
    }

    #[test]
    fn paths_that_are_hidden_or_read_only() {
        let paths = vec!["/proc/keys".to_owned()];
        assert_eq!(member("/linux/maskedPaths", json!(["/proc/kcore"])), [Refusal::Unmasked { paths }]);
        let paths = vec!["/proc/sys".to_owned()];
        assert_eq!(member("/linux/readonlyPaths", json!([])), [Refusal::Writable { paths }]);
        assert_eq!(bundle("/linux/readonlyPaths", json!(["/proc/sys", "/proc/keys"])), [], "hidden is enough");
    }

    #[test]
    fn a_namespace_of_the_host() {
        let refused = member("/linux/namespaces", json!([{"type": "pid"}]));
        assert_eq!(refused, [Refusal::HostNamespace { kind: "network".to_owned() }]);
    }

    #[test]
    fn a_kernel_parameter() {
        let name = "net.ipv4.ip_forward".to_owned();
        assert_eq!(
            member("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"})),
            [Refusal::Sysctl { name: name.clone() }]
        );
        assert_eq!(bundle("/linux/sysctl", json!(null)), [Refusal::Sysctl { name }]);
    }

    #[test]
    fn each_refusal_names_what_it_is_about() {
        let all = compare(
            &json!({"process": {"capabilities": {"bounding": ["CAP_X"]}}, "mounts": [{"destination": "/host"}],
                "linux": {"devices": [{"path": "/dev/x"}], "sysctl": {"a.b": "1"}}}),
            &config(),
        );
        let said: Vec<_> = all.iter().map(ToString::to_string).collect();
        for word in ["CAP_X", "/host", "/dev/x", "a.b", "docker-default", "seccomp", "pid namespace", "/proc/kcore"] {
            assert!(said.iter().any(|line| line.contains(word)), "{word}: {said:?}");
        }
    }
}
