//! Claims on names: two restores or checkpoints on one machine never work on the same container or application.
//!
//! A preflight sees what is there, not what another launcher is about to make. So each container's name is claimed first,
//! by a lock that goes with its process.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::kind::EngineKind;

/// Claims that hold until they are dropped.
#[derive(Debug, Default)]
pub struct Claims(Vec<File>);

impl Claims {
    /// Claims the name of a container; says whether nobody else has it.
    pub fn claim_container(&mut self, run_root: &Path, engine: EngineKind, name: &str) -> io::Result<bool> {
        self.claim(run_root, &format!("{engine}-{name}"))
    }

    /// Claims any name; says whether nobody else has it.
    pub fn claim(&mut self, run_root: &Path, name: &str) -> io::Result<bool> {
        let folder = run_root.join("claims");
        DirBuilder::new().mode(0o700).recursive(true).create(&folder)?;
        let path = folder.join(name);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {
                self.0.push(file);
                Ok(true)
            }
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_claimed_once_for_each_engine() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("run");
        let (mut first, mut second) = (Claims::default(), Claims::default());
        assert!(first.claim_container(&root, EngineKind::Podman, "auditor").unwrap());
        assert!(!second.claim_container(&root, EngineKind::Podman, "auditor").unwrap());
        assert!(second.claim_container(&root, EngineKind::Runc, "auditor").unwrap());
        drop(first);
        assert!(second.claim_container(&root, EngineKind::Podman, "auditor").unwrap());
    }
}
