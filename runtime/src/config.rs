//! The bundle that an engine made for a container.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::ticket::{ANNOTATION, ParseSeatError, Seat};

/// Far more than any `config.json` has.
const LARGEST: u64 = 16 << 20;

/// A bundle: a folder with a `config.json`.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// The folder, as an absolute path.
    pub dir: PathBuf,
    /// What is in its `config.json`.
    pub config: Value,
}

impl Bundle {
    /// Reads a bundle whose container is a member to be restored. `None`: it is none, or is no bundle at all, which the real
    /// runtime says better.
    pub fn of_member(dir: &Path) -> Option<Result<(Self, Seat), ParseSeatError>> {
        let dir = dir.canonicalize().ok()?;
        let mut bytes = Vec::new();
        std::fs::File::open(dir.join("config.json")).ok()?.take(LARGEST).read_to_end(&mut bytes).ok()?;
        // Nearly all containers are told apart here, before anything is parsed.
        bytes.windows(ANNOTATION.len()).find(|part| *part == ANNOTATION.as_bytes())?;
        let config: Value = serde_json::from_slice(&bytes).ok()?;
        let seat = config.get("annotations")?.get(ANNOTATION)?;
        let seat = seat.as_str().unwrap_or_default().parse();
        Some(seat.map(|seat| (Self { dir, config }, seat)))
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
