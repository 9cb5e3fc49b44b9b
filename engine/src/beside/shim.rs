//! Where containerd keeps the containers that it runs for itself or for Docker: found by looking.
//!
//! The parent of a container's first process is its shim, which works in the container's bundle;
//! there it notes its runtime and the runtime's root. A runtime is believed to have a container
//! when its state names the same first process.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::OciRuntime;
use crate::answers::texts;

/// The file with a bundle's configuration.
const CONFIG: &str = "config.json";

/// Far more than any state or configuration has.
const LARGEST: u64 = 8 << 20;

/// Where containers may be. Tests have places of their own.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    proc: PathBuf,
    /// Folders with a folder of bundles for each namespace.
    bundles: Vec<PathBuf>,
    /// Folders in which each folder that begins with the given text is a root of a runtime, with a
    /// folder for each namespace.
    roots: Vec<(PathBuf, &'static str)>,
}

/// A container below its engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bundle {
    pub(crate) runtime: OciRuntime,
    /// Whether the runtime is crun, or one that keeps its states as crun does.
    pub(crate) is_crun: bool,
    /// The bundle's folder.
    pub(crate) folder: PathBuf,
    /// Its `config.json`, as it is.
    pub(crate) config: Vec<u8>,
    /// The annotations in it.
    pub(crate) annotations: BTreeMap<String, String>,
    /// What is mounted where, by its kind and source.
    pub(crate) mounts: BTreeMap<PathBuf, (String, String)>,
}

impl Places {
    /// Those of containerd and of Docker.
    pub(crate) fn usual() -> Self {
        const BUNDLES: &str = "io.containerd.runtime.v2.task";
        let bundles = ["/run/containerd", "/run/docker/containerd/daemon"];
        Self {
            proc: "/proc".into(),
            bundles: bundles.map(|state| Path::new(state).join(BUNDLES)).into(),
            roots: vec![("/run/docker".into(), "runtime-"), ("/run/containerd".into(), "runc")],
        }
    }

    /// The container of this id and first process in a namespace of containerd's.
    pub(crate) fn find(&self, namespace: &str, id: &str, pid: i32) -> Option<Bundle> {
        let folder = self.bundle(namespace, id, pid)?;
        let config = read(&folder.join(CONFIG))?;
        let spec: Value = serde_json::from_slice(&config).ok()?;
        let options = read(&folder.join("options.json")).and_then(|text| serde_json::from_slice(&text).ok());
        let options: Value = options.unwrap_or_default();
        let text = |name: &str| options.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let noted = text("root").map(PathBuf::from).into_iter();
        // The folder above the bundle says in which namespace it really is.
        let namespace = folder.parent().and_then(Path::file_name).unwrap_or(namespace.as_ref());
        let (root, is_crun) = noted.chain(self.roots()).find_map(|root| {
            // `/var/run` is a link.
            let root = root.join(namespace).canonicalize().ok()?;
            let is_crun = is_crun(&root.join(id), pid)?;
            Some((root, is_crun))
        })?;
        let program = text("binary_name").unwrap_or(if is_crun { "crun" } else { "runc" }).to_owned();
        Some(Bundle {
            runtime: OciRuntime::at(program, root),
            is_crun,
            folder,
            annotations: texts(&spec, "/annotations"),
            mounts: mounts(&spec),
            config,
        })
    }

    fn bundle(&self, namespace: &str, id: &str, pid: i32) -> Option<PathBuf> {
        let shim = || fs::read_link(self.proc.join(parent(&self.proc, pid)?.to_string()).join("cwd")).ok();
        let known = self.bundles.iter().map(|bundles| bundles.join(namespace).join(id));
        let is_bundle = |folder: &PathBuf| folder.ends_with(id) && folder.join(CONFIG).is_file();
        shim().into_iter().chain(known).find(is_bundle)
    }

    fn roots(&self) -> impl Iterator<Item = PathBuf> {
        self.roots.iter().flat_map(|(folder, prefix)| {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let is_root = move |name: &str| name.starts_with(prefix);
            entries.filter(move |entry| entry.file_name().to_str().is_some_and(is_root)).map(|entry| entry.path())
        })
    }
}

/// Whether a runtime's folder of a container with this first process is one of crun's; `None` if it
/// is of no such container.
fn is_crun(folder: &Path, pid: i32) -> Option<bool> {
    let says = |file: &str, field: &str| {
        let state: Value = serde_json::from_slice(&read(&folder.join(file))?).ok()?;
        (state.get(field)?.as_i64()? == i64::from(pid)).then_some(())
    };
    says("state.json", "init_process_pid").map(|()| false).or_else(|| says("status", "pid").map(|()| true))
}

fn parent(proc: &Path, pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?;
    // The name before may have blanks and parentheses.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let facts = fs::metadata(path).ok()?;
    (facts.is_file() && facts.len() <= LARGEST).then(|| fs::read(path).ok())?
}

fn mounts(spec: &Value) -> BTreeMap<PathBuf, (String, String)> {
    let all = spec.get("mounts").and_then(Value::as_array).into_iter().flatten();
    let mount = |mount: &Value| {
        let text = |name: &str| mount.get(name).and_then(Value::as_str).map(str::to_owned);
        Some((text("destination")?.into(), (text("type").unwrap_or_default(), text("source").unwrap_or_default())))
    };
    all.filter_map(mount).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const ID: &str = "92e3";

    /// As Docker 26 with containerd 1.7 lays it out.
    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            let host = Self(tempfile::tempdir().unwrap());
            host.write("proc/382/stat", "382 (a b) c) S 358 382 382 0 -1");
            let config = r#"{"annotations":{"org.criu.config":"/c","n":1},"mounts":[{"destination":"/dev/shm",
                "type":"bind","source":"/s"},{"destination":"/proc"},7]}"#;
            host.write("bundles/moby/92e3/config.json", config);
            host.write("docker/runtime-runc/moby/92e3/state.json", r#"{"init_process_pid":382}"#);
            fs::create_dir_all(host.path("proc/358")).unwrap();
            host
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().canonicalize().unwrap().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
            fs::write(self.path(name), text).unwrap();
        }

        fn find(&self) -> Option<Bundle> {
            let places = Places {
                proc: self.path("proc"),
                bundles: vec![self.path("bundles")],
                roots: vec![(self.path("docker"), "runtime-"), (self.path("containerd"), "runc")],
            };
            places.find("moby", ID, 382)
        }
    }

    #[test]
    fn a_container_is_found_where_engines_keep_them() {
        let host = Host::new();
        let found = host.find().unwrap();
        assert_eq!(found.folder, host.path("bundles/moby/92e3"));
        assert_eq!(found.annotations, [("org.criu.config".to_owned(), "/c".to_owned())].into());
        assert_eq!(found.mounts[Path::new("/dev/shm")], ("bind".to_owned(), "/s".to_owned()));
        let runtime = OciRuntime::at("runc".to_owned(), host.path("docker/runtime-runc/moby"));
        assert_eq!((&found.runtime, found.is_crun), (&runtime, false));
        // A state of another process, of an earlier container, is passed over.
        host.write("docker/runtime-runc/moby/92e3/state.json", r#"{"init_process_pid":7}"#);
        assert_eq!(host.find(), None);
        host.write("containerd/runc/moby/92e3/status", r#"{"pid":382}"#);
        let found = host.find().unwrap();
        assert_eq!(found.runtime, OciRuntime::at("crun".to_owned(), host.path("containerd/runc/moby")));
        assert!(found.is_crun);
    }

    #[test]
    fn what_the_shim_says_goes_before_what_is_usual() {
        let host = Host::new();
        fs::rename(host.path("bundles"), host.path("elsewhere")).unwrap();
        assert_eq!(host.find(), None, "no bundle");
        symlink(host.path("elsewhere/moby/92e3"), host.path("proc/358/cwd")).unwrap();
        assert_eq!(host.find().unwrap().folder, host.path("elsewhere/moby/92e3"));
        fs::create_dir(host.path("odd")).unwrap();
        fs::rename(host.path("docker/runtime-runc"), host.path("odd/root")).unwrap();
        assert_eq!(host.find(), None, "no root");
        symlink(host.path("odd"), host.path("link")).unwrap();
        let options = format!(r#"{{"binary_name":"/opt/w","root":"{}"}}"#, host.path("link/root").display());
        host.write("elsewhere/moby/92e3/options.json", &options);
        let runtime = OciRuntime::at("/opt/w".to_owned(), host.path("odd/root/moby"));
        assert_eq!(host.find().unwrap().runtime, runtime);
    }
}
