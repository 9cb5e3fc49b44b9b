//! A bundle for one restore, made from the caller's: the same container, with the mark of its restore.
//!
//! The caller's `config.json` is not touched. What it says relative to its folder is said absolutely in the copy.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use coordinator::SessionId;
use serde_json::{Map, Value};

use crate::target::MARK;

/// Far more than any `config.json` has.
const LARGEST: u64 = 4 << 20;

/// The name of a bundle's configuration in the OCI runtime specification.
const CONFIG: &str = "config.json";

/// Why a folder is not a bundle that can be restored into.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// Its configuration cannot be read, or the copy cannot be written.
    #[error("{path:?} cannot be used")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its configuration is not JSON, or not of the OCI runtime specification.
    #[error("{path:?} is no configuration of a bundle: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is nobody to hand a terminal to.
    #[error("{path:?} asks for a terminal, and there is none")]
    Terminal {
        /// The file.
        path: PathBuf,
    },
    /// The root filesystem is not there.
    #[error("the root filesystem {path:?} is not there")]
    NoRoot {
        /// Where it should be.
        path: PathBuf,
    },
}

/// Reads the configuration of the bundle in `dir` and makes it fit for a copy elsewhere.
pub fn read(dir: &Path) -> Result<Value, BundleError> {
    let path = dir.join(CONFIG);
    let file_error = |source| BundleError::File { path: path.clone(), source };
    let dir = dir.canonicalize().map_err(file_error)?;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(&path).map_err(file_error)?;
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(file_error)?;
    let bad = |reason: String| BundleError::Config { path: path.clone(), reason };
    if bytes.len() as u64 > LARGEST {
        return Err(bad(format!("it is larger than {LARGEST} bytes")));
    }
    let mut config: Value =
        serde_json::from_str(&String::from_utf8_lossy(&bytes)).map_err(|error| bad(error.to_string()))?;
    if config.pointer("/process/terminal") == Some(&Value::Bool(true)) {
        return Err(BundleError::Terminal { path });
    }
    let root = config.pointer_mut("/root/path").ok_or_else(|| bad("it has no root.path".to_owned()))?;
    make_absolute(root, &dir);
    let root = PathBuf::from(root.as_str().unwrap_or_default());
    if !root.is_dir() {
        return Err(BundleError::NoRoot { path: root });
    }
    for mount in config.pointer_mut("/mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        if is_bind(mount)
            && let Some(source) = mount.get_mut("source")
        {
            make_absolute(source, &dir);
        }
    }
    Ok(config)
}

/// Writes a bundle with this configuration, and the mark of the restore `session`, into the new folder `dir`.
pub fn write(mut config: Value, session: SessionId, dir: &Path) -> Result<(), BundleError> {
    let path = dir.join(CONFIG);
    if let Some(config) = config.as_object_mut() {
        let annotations = config.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
        if !annotations.is_object() {
            *annotations = Value::Object(Map::new());
        }
        annotations[MARK] = session.to_string().into();
    }
    let write = || {
        DirBuilder::new().mode(0o700).recursive(true).create(dir)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(config.to_string().as_bytes())
    };
    write().map_err(|source| BundleError::File { path, source })
}

/// As the OCI runtime specification tells bind mounts: by type or by option.
fn is_bind(mount: &Value) -> bool {
    let binds = |option: &Value| matches!(option.as_str(), Some("bind" | "rbind"));
    let by_option = mount.get("options").and_then(Value::as_array).is_some_and(|options| options.iter().any(binds));
    by_option || mount.get("type").and_then(Value::as_str) == Some("bind")
}

fn make_absolute(path: &mut Value, dir: &Path) {
    if let Some(text) = path.as_str() {
        *path = dir.join(text).to_string_lossy().into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(config: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("rootfs")).unwrap();
        std::fs::write(dir.path().join(CONFIG), config).unwrap();
        dir
    }

    #[test]
    fn the_copy_says_absolutely_what_was_relative() {
        let from = bundle(
            r#"{"ociVersion":"1.2.0","process":{"terminal":false,"args":["a"]},"root":{"path":"rootfs","readonly":true},
            "mounts":[{"destination":"/proc","type":"proc","source":"proc"},
            {"destination":"/etc/hosts","type":"bind","source":"hosts","options":["ro"]},
            {"destination":"/data","source":"/srv/data","options":["rbind"]}],"annotations":{"a":"b","org.criu.config":"/c"}}"#,
        );
        let to = tempfile::tempdir().unwrap();
        let to = to.path().join("x/bundle");
        let session = SessionId::from_bytes([7; 16]);
        write(read(from.path()).unwrap(), session, &to).unwrap();
        let config: Value = serde_json::from_slice(&std::fs::read(to.join(CONFIG)).unwrap()).unwrap();
        let at = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let inside = |name: &str| from.path().canonicalize().unwrap().join(name).display().to_string();
        assert_eq!(at("/root/path"), inside("rootfs"));
        assert_eq!(at("/mounts/0/source"), "proc");
        assert_eq!(at("/mounts/1/source"), inside("hosts"));
        assert_eq!(at("/mounts/2/source"), "/srv/data");
        assert_eq!((at("/annotations/a"), at("/annotations/org.criu.config")), ("b".into(), "/c".into()));
        assert_eq!(at("/annotations/io.syncpoint.restored-by"), session.to_string());
        assert_eq!(at("/process/args/0"), "a");
    }

    #[test]
    fn what_is_no_bundle() {
        let read_text = |text: &str| read(bundle(text).path()).unwrap_err();
        assert!(matches!(read(Path::new("/nonexistent")), Err(BundleError::File { .. })));
        for text in ["", "[]", r#"{"root":{}}"#, &"[".repeat(100_000)] {
            assert!(matches!(read_text(text), BundleError::Config { .. }), "{}", &text[..text.len().min(20)]);
        }
        assert!(matches!(read_text(r#"{"root":{"path":"other"}}"#), BundleError::NoRoot { .. }));
        let terminal = r#"{"process":{"terminal":true},"root":{"path":"rootfs"}}"#;
        assert!(matches!(read_text(terminal), BundleError::Terminal { .. }));
    }
}
