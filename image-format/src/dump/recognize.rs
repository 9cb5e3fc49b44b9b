//! Tells from content whose dump it is. Names of files given by people mean nothing here.

use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;

use crate::DumpKind;
use crate::archive::{Entry, EntryKind};

/// Collects what tells the kinds apart while a dump passes by.
#[derive(Debug, Default)]
pub(crate) struct Recognizer {
    inventory: bool,
    descriptors: bool,
    status: bool,
    /// Files that are none of CRIU's folder.
    others: bool,
    config: Option<Config>,
    spec: Option<Spec>,
    container: Option<Container>,
}

/// Which engine a `container.json` is of.
#[derive(Debug, Deserialize)]
struct Container {
    #[serde(default)]
    engine: String,
}

/// What podman's `config.dump` always has and the small one of checkpointctl, CRI-O and containerd never has.
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(rename = "lockID")]
    lock_id: Option<IgnoredAny>,
    #[serde(rename = "staticDir")]
    static_dir: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct Spec {
    #[serde(default)]
    annotations: BTreeMap<String, IgnoredAny>,
}

/// Why something is not a dump that this crate knows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecognizeError {
    /// CRIU writes `inventory.img` last of all; without it there is no checkpoint.
    #[error("neither checkpoint/inventory.img nor pre-checkpoint/inventory.img is in it")]
    NoInventory,
    /// The files of no known engine.
    #[error(
        "its config.dump, spec.dump, status.dump and descriptors.json are not those of podman, CRI-O, containerd, runc or Docker, and it is more than CRIU's folder"
    )]
    UnknownKind,
    /// A file that should be JSON.
    #[error("{entry} is not what an engine writes")]
    Json {
        /// Which one.
        entry: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Recognizer {
    /// Notes that something is there. Folders say nothing: every archive has others.
    pub fn saw(&mut self, entry: &Entry) {
        if entry.kind == EntryKind::Directory {
            return;
        }
        let name = &entry.name[..];
        match name {
            b"checkpoint/inventory.img" | b"pre-checkpoint/inventory.img" => self.inventory = true,
            b"checkpoint/descriptors.json" => self.descriptors = true,
            b"status.dump" => self.status = true,
            _ => {}
        }
        // In an image, what the chain of generations needs lies beside it.
        let folder = name.iter().position(|byte| *byte == b'/').map(|at| &name[..at]);
        self.others |= !matches!(folder, Some(b"checkpoint" | b"syncpoint"));
    }

    /// Notes what a file holds.
    pub fn add(&mut self, name: &str, content: &[u8]) -> Result<(), RecognizeError> {
        let json = |source| RecognizeError::Json { entry: name.to_owned(), source };
        match name {
            "config.dump" => self.config = Some(serde_json::from_slice(content).map_err(json)?),
            "container.json" => self.container = Some(serde_json::from_slice(content).map_err(json)?),
            "spec.dump" => self.spec = Some(serde_json::from_slice(content).map_err(json)?),
            _ => {}
        }
        Ok(())
    }

    /// Whether CRIU's inventory was there.
    pub fn has_inventory(&self) -> bool {
        self.inventory
    }

    /// Whose it is.
    pub fn finish(self) -> Result<DumpKind, RecognizeError> {
        if !self.inventory {
            return Err(RecognizeError::NoInventory);
        }
        let annotated = |key: &str| {
            let annotations = self.spec.iter().flat_map(|spec| spec.annotations.keys());
            annotations.into_iter().any(|name| name.starts_with(key))
        };
        match &self.config {
            _ if self.container.as_ref().is_some_and(|container| container.engine == "docker") => Ok(DumpKind::Docker),
            Some(config) if config.lock_id.is_some() && config.static_dir.is_some() => Ok(DumpKind::Podman),
            Some(_) if annotated("io.kubernetes.cri-o.Annotations") => Ok(DumpKind::CriO),
            Some(_) if self.status || annotated("io.kubernetes.cri.") => Ok(DumpKind::Containerd),
            None if self.spec.is_none() && self.descriptors => Ok(DumpKind::Runc),
            None if !self.others => Ok(DumpKind::Criu),
            _ => Err(RecognizeError::UnknownKind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recognize(names: &[&str], files: &[(&str, &str)]) -> Result<DumpKind, RecognizeError> {
        let mut recognizer = Recognizer::default();
        let entry = |name: &str| match name.strip_suffix('/') {
            Some(folder) => Entry::plain(folder, EntryKind::Directory),
            None => Entry::plain(name, EntryKind::File { size: 0 }),
        };
        names.iter().for_each(|name| recognizer.saw(&entry(name)));
        for (name, content) in files {
            recognizer.saw(&entry(name));
            recognizer.add(name, content.as_bytes())?;
        }
        recognizer.finish()
    }

    #[test]
    fn each_kind_by_what_is_in_it() {
        const INVENTORY: &str = "checkpoint/inventory.img";
        const DESCRIPTORS: &str = "checkpoint/descriptors.json";
        let podman = ("config.dump", r#"{"id":"a","lockID":0,"staticDir":""}"#);
        let small = ("config.dump", r#"{"id":"a","runtime":"runc"}"#);
        let docker = ("container.json", r#"{"engine":"docker","new":1}"#);
        let other = ("container.json", r#"{"engine":"lxc"}"#);
        let crio = ("spec.dump", r#"{"annotations":{"io.kubernetes.cri-o.Annotations":"{}"}}"#);
        let plain = ("spec.dump", "{}");

        let kinds = [
            recognize(&[INVENTORY, DESCRIPTORS], &[podman, plain]),
            recognize(&["pre-checkpoint/inventory.img"], &[podman, crio]),
            recognize(&[INVENTORY, DESCRIPTORS], &[small, crio]),
            recognize(&[INVENTORY, DESCRIPTORS, "status.dump"], &[small, plain]),
            recognize(&[INVENTORY, DESCRIPTORS, "config.json"], &[]),
            recognize(&["checkpoint/", INVENTORY, "syncpoint/", "syncpoint/pagemap-1.img"], &[]),
            recognize(&[INVENTORY, DESCRIPTORS], &[docker, small, plain]),
        ];
        let expected = [
            DumpKind::Podman,
            DumpKind::Podman,
            DumpKind::CriO,
            DumpKind::Containerd,
            DumpKind::Runc,
            DumpKind::Criu,
            DumpKind::Docker,
        ];
        assert_eq!(kinds.map(Result::unwrap), expected);
        assert!(matches!(recognize(&[INVENTORY], &[other, small]), Err(RecognizeError::UnknownKind)));

        assert!(matches!(recognize(&[DESCRIPTORS], &[podman]), Err(RecognizeError::NoInventory)));
        for beside in ["rootfs-diff.tar", "pre-checkpoint/inventory.img", "config.json", "checkpoint"] {
            assert!(matches!(recognize(&[INVENTORY, beside], &[]), Err(RecognizeError::UnknownKind)), "{beside}");
        }
        assert!(matches!(recognize(&[INVENTORY], &[small, plain]), Err(RecognizeError::UnknownKind)));
        assert!(matches!(recognize(&[INVENTORY], &[("spec.dump", "[")]), Err(RecognizeError::Json { .. })));
    }

    #[test]
    fn deep_nesting_is_no_problem() {
        let deep = format!("{}{}", r#"{"a":"#.repeat(10_000), "1".to_owned() + &"}".repeat(10_000));
        let result = recognize(&["checkpoint/inventory.img"], &[("config.dump", &deep)]);
        assert!(matches!(result, Err(RecognizeError::UnknownKind | RecognizeError::Json { .. })), "{result:?}");
    }
}
