//! Facts as annotations of a checkpoint image, each in the words of those who look for it.

use std::collections::BTreeMap;

use super::{Facts, Pod};
use crate::DumpKind;
use crate::annotation::{CRIO_NAME, CRIU_PREFIX, DUMP_KIND, PODMAN_PREFIX};

impl Facts {
    /// podman's annotations where podman made the dump, CRI-O's where CRI-O did, and the common vocabulary of
    /// checkpointctl. What the dump does not say is left out.
    #[must_use]
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::from([(DUMP_KIND.to_owned(), self.kind.to_string())]);
        let mut put = |prefix: &str, name: &str, value: Option<&str>| {
            if let Some(value) = value {
                annotations.insert(format!("{prefix}{name}"), value.to_owned());
            }
        };
        for (name, value) in self.common() {
            put(CRIU_PREFIX, name, value);
        }
        match self.kind {
            DumpKind::Podman => {
                let criu_version = self.criu_version.as_deref().and_then(version_number);
                for (name, value) in self.podman(criu_version.as_deref()) {
                    put(PODMAN_PREFIX, name, value);
                }
            }
            DumpKind::CriO => put(CRIO_NAME, "", self.container_name.as_deref()),
            DumpKind::Containerd | DumpKind::Runc | DumpKind::Docker | DumpKind::Criu => {}
        }
        annotations
    }

    /// checkpointctl, `lib/annotations.go`; its `build` gives `rootfsImageID` the reference by digest where there is no id.
    fn common(&self) -> [(&'static str, Option<&str>); 19] {
        const NO_POD: &Pod = &Pod { name: None, id: None, namespace: None, uid: None };
        let pod = self.pod.as_ref().unwrap_or(NO_POD);
        // The vocabulary has podman's word for the name as the user gave it, and one for Kubernetes.
        let raw_image_name = if self.kind == DumpKind::Podman { "rawImageName" } else { "rootfsImageUserRequested" };
        [
            ("engine.name", self.engine_name()),
            ("engine.version", self.engine_version.as_deref()),
            ("container.name", self.container_name.as_deref()),
            ("pod.name", pod.name.as_deref()),
            ("pod.id", pod.id.as_deref()),
            ("pod.namespace", pod.namespace.as_deref()),
            ("pod.uid", pod.uid.as_deref()),
            ("rootfsImageName", self.rootfs_image_name.as_deref()),
            ("rootfsImageID", self.rootfs_image_id.as_deref()),
            (raw_image_name, self.raw_image_name.as_deref()),
            ("runtime.name", self.runtime_name.as_deref()),
            ("runtime.version", self.runtime_version.as_deref()),
            ("criu.version", self.criu_version.as_deref()),
            ("conmon.version", self.conmon_version.as_deref()),
            ("host.arch", self.architecture.as_deref()),
            ("host.kernel", self.kernel.as_deref()),
            ("cgroup.version", self.cgroup_version.as_deref()),
            ("distribution.name", self.distribution_name.as_deref()),
            ("distribution.version", self.distribution_version.as_deref()),
        ]
    }

    /// podman, `addCheckpointImageMetadata` in `libpod/container_internal_common.go`.
    fn podman<'a>(&'a self, criu_version: Option<&'a str>) -> [(&'static str, Option<&'a str>); 14] {
        [
            ("name", self.container_name.as_deref()),
            ("rawImageName", self.raw_image_name.as_deref()),
            ("rootfsImageID", self.rootfs_image_id.as_deref()),
            ("rootfsImageName", self.rootfs_image_name.as_deref()),
            ("podman.version", self.engine_version.as_deref()),
            ("criu.version", criu_version),
            ("runtime.name", self.runtime_name.as_deref()),
            ("runtime.version", self.runtime_version.as_deref()),
            ("conmon.version", self.conmon_version.as_deref()),
            ("host.arch", self.architecture.as_deref()),
            ("host.kernel", self.kernel.as_deref()),
            ("cgroups.version", self.cgroup_version.as_deref()),
            ("distribution.version", self.distribution_version.as_deref()),
            ("distribution.name", self.distribution_name.as_deref()),
        ]
    }

    /// The engine in checkpointctl's spelling. runc and CRIU alone are no engines.
    fn engine_name(&self) -> Option<&'static str> {
        match self.kind {
            DumpKind::Podman => Some("Podman"),
            DumpKind::CriO => Some("CRI-O"),
            DumpKind::Containerd => Some("containerd"),
            DumpKind::Docker => Some("Docker"),
            DumpKind::Runc | DumpKind::Criu => None,
        }
    }
}

/// `4.2.1` as podman writes it: 40201.
fn version_number(version: &str) -> Option<String> {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok().filter(|part| *part < 100));
    let (major, minor, sublevel) = (parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?);
    parts.next().is_none().then(|| (major * 10_000 + minor * 100 + sublevel).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_numbers() {
        assert_eq!(version_number("4.2.1").as_deref(), Some("40201"));
        assert_eq!(version_number("3.19").as_deref(), Some("31900"));
        for none in ["", "4", "4.", "4.2.1.9", "4.200", "v4.2", "4294967295.1"] {
            assert_eq!(version_number(none), None, "{none}");
        }
    }
}
