//! The bundle that an engine made for a container.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::ticket::{ANNOTATION, ParseSeatError, Seat};

/// Far more than any `config.json` has.
const LARGEST: u64 = 16 << 20;

/// The annotation by which runc and crun are told CRIU's configuration file.
pub const CRIU_CONFIG: &str = "org.criu.config";

/// The annotation that names a container's own configuration of CRIU, or the host's, where [`CRIU_CONFIG`] names that of a
/// session which is over.
pub const OWN_CONFIG: &str = "io.syncpoint.criu-config";

/// A bundle's configuration in the OCI runtime specification.
const CONFIG: &str = "config.json";

/// A bundle: a folder with a `config.json`.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// The folder, as an absolute path.
    pub dir: PathBuf,
    /// What is in its `config.json`.
    pub config: Value,
}

/// Replaces a bundle's configuration, whose mode and owner stay.
pub(crate) fn write_config(dir: &Path, config: &[u8]) -> io::Result<()> {
    let path = dir.join(CONFIG);
    let facts = path.metadata()?;
    let new = dir.join("config.json.new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    fchown(&file, Some(facts.uid()), Some(facts.gid()))?;
    file.set_permissions(facts.permissions())?;
    file.write_all(config)?;
    std::fs::rename(new, path)
}

/// A bundle's configuration as it is on the disk.
pub(crate) fn read_config(dir: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(dir.join(CONFIG))?.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Bundle {
    /// Reads a bundle whose container is a member to be restored. `None`: it is none, or is no bundle at all, which the real
    /// runtime says better.
    pub fn of_member(dir: &Path) -> Option<Result<(Self, Seat), ParseSeatError>> {
        let dir = dir.canonicalize().ok()?;
        let bytes = read_config(&dir).ok()?;
        // Nearly all containers are told apart here, before anything is parsed.
        bytes.windows(ANNOTATION.len()).find(|part| *part == ANNOTATION.as_bytes())?;
        let config: Value = serde_json::from_slice(&bytes).ok()?;
        let seat = config.get("annotations")?.get(ANNOTATION)?;
        let seat = seat.as_str().unwrap_or_default().parse();
        Some(seat.map(|seat| (Self { dir, config }, seat)))
    }

    /// The configuration with `criu_config` as what CRIU is told of this container; `None`: the container has one of its own.
    ///
    /// `host` is what CRIU would have been told otherwise, for later dumps.
    pub fn with_criu_config(&self, criu_config: &str, host: &str) -> Option<Value> {
        let mut config = self.config.clone();
        let annotations = config.as_object_mut()?.entry("annotations").or_insert_with(|| Map::new().into());
        let annotations = annotations.as_object_mut()?;
        // An older attempt may have told the bundle of the same file.
        if annotations.get(CRIU_CONFIG).is_some_and(|own| own != criu_config) {
            return None;
        }
        annotations.insert(CRIU_CONFIG.to_owned(), criu_config.into());
        annotations.insert(OWN_CONFIG.to_owned(), host.into());
        Some(config)
    }

    /// The root filesystem.
    pub fn root(&self) -> PathBuf {
        self.dir.join(self.config.pointer("/root/path").and_then(Value::as_str).unwrap_or("rootfs"))
    }

    /// The folder of the host that is mounted at `/dev/shm`. `None`: a filesystem that is made with the container.
    pub fn shm(&self) -> Option<PathBuf> {
        let mounts = self.config.get("mounts").and_then(Value::as_array)?;
        let is_shm = |mount: &&Value| mount.get("destination").and_then(Value::as_str) == Some("/dev/shm");
        let mount = mounts.iter().rfind(is_shm)?;
        let binds = |option: &Value| matches!(option.as_str(), Some("bind" | "rbind"));
        let by_option = mount.get("options").and_then(Value::as_array).is_some_and(|all| all.iter().any(binds));
        let by_type = mount.get("type").and_then(Value::as_str) == Some("bind");
        let source = mount.get("source").and_then(Value::as_str).filter(|_| by_option || by_type)?;
        Some(self.dir.join(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &str) -> Option<Result<(Bundle, Seat), ParseSeatError>> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        Bundle::of_member(dir.path())
    }

    #[test]
    fn only_the_annotation_makes_a_member() {
        let seat = format!("{}/auditor", "07".repeat(16));
        let member = format!(r#"{{"root":{{"path":"r"}},"annotations":{{"io.syncpoint.restore":"{seat}"}}}}"#);
        let (bundle, read_seat) = read(&member).unwrap().unwrap();
        assert_eq!(read_seat.to_string(), seat);
        assert!(bundle.root().is_absolute() && bundle.root().ends_with("r"));
        for none in ["", "{}", r#"{"annotations":{"a":"b"}}"#, r#"{"process":{"args":["io.syncpoint.restore"]}}"#] {
            assert!(read(none).is_none(), "{none}");
        }
        assert!(Bundle::of_member(Path::new("/nonexistent")).is_none());
        for bad in [r#""../x""#, r#""""#, "7", "null"] {
            let config = format!(r#"{{"annotations":{{"io.syncpoint.restore":{bad}}}}}"#);
            assert!(read(&config).unwrap().is_err(), "{bad}: an error, and never a fresh start");
        }
    }

    #[test]
    fn a_bundle_is_told_of_criu_unless_it_knows_better() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CONFIG), "{}").unwrap();
        let bundle =
            |config: &str| Bundle { dir: dir.path().to_owned(), config: serde_json::from_str(config).unwrap() };
        let told =
            bundle(r#"{"annotations":{"a":"b"},"n":18446744073709551615}"#).with_criu_config("/s", "/h").unwrap();
        let expected = r#"{"annotations":{"a":"b","org.criu.config":"/s","io.syncpoint.criu-config":"/h"},"n":18446744073709551615}"#;
        assert_eq!(told, serde_json::from_str::<Value>(expected).unwrap());
        assert!(bundle(r#"{"annotations":{"org.criu.config":"/own"}}"#).with_criu_config("/s", "/h").is_none());
        let older = bundle(&told.to_string()).with_criu_config("/s", "/h").unwrap();
        assert_eq!(older, told, "an older attempt of the same container told the bundle");
        write_config(dir.path(), told.to_string().as_bytes()).unwrap();
        assert_eq!(read_config(dir.path()).unwrap(), told.to_string().as_bytes());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn shared_memory_is_the_hosts_or_made_with_the_container() {
        let shm = |mounts: &str| {
            let config = serde_json::from_str(&format!(r#"{{"mounts":{mounts}}}"#)).unwrap();
            Bundle { dir: "/b".into(), config }.shm()
        };
        assert_eq!(shm(r#"[{"destination":"/dev/shm","type":"tmpfs","source":"shm","options":["rw"]}]"#), None);
        assert_eq!(shm("[]"), None);
        let bound = r#"[{"destination":"/dev/shm","type":"bind","source":"/s","options":["rw"]}]"#;
        assert_eq!(shm(bound), Some("/s".into()));
        let bound = r#"[{"destination":"/dev/shm","type":"tmpfs"},{"destination":"/dev/shm","source":"s","options":["rbind"]}]"#;
        assert_eq!(shm(bound), Some("/b/s".into()));
    }
}
