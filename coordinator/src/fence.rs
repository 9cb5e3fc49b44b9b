//! A fence: who may act for an application on this host, as a number in a file.
//!
//! ```text
//! a guard begins, or is given a lease ─▶ raise: the file says its token, which is greater than all before it
//! each hook of its sessions           ─▶ check: the file says more than its ticket? then somebody newer acts, and it votes no
//! ```
//!
//! A lock or a lease says who may act; but one that lost it may not know yet, being stopped, or cut off. Its hooks ask the file, at the
//! last moment and on the machine on which something would happen. Sessions without a fence, those of people, are not asked.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use image_format::ApplicationId;
use serde::{Deserialize, Serialize};

/// The right to act for an application, as long as nobody newer has raised its fence.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fence {
    path: PathBuf,
    token: u64,
}

/// Why nothing may be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FenceError {
    /// Somebody newer acts for the application.
    #[error("somebody newer acts for this application: {path:?} is at {newer}, and this one has {token}")]
    Passed {
        /// The fence.
        path: PathBuf,
        /// What it says.
        newer: u64,
        /// What whoever asks has.
        token: u64,
    },
    /// It is not known who may act, so nobody may.
    #[error("it is not known who may act for this application: {path:?} cannot be used")]
    Unknown {
        /// The fence.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Fence {
    /// Takes an application over: its fence below `run_root` says `token` from now on, or one more than before.
    ///
    /// # Errors
    /// It says more than `token` already, or cannot be written.
    pub fn raise(run_root: &Path, application: &ApplicationId, token: Option<u64>) -> Result<Self, FenceError> {
        let folder = run_root.join("fences");
        let path = folder.join(application.as_str());
        let unknown = |source| FenceError::Unknown { path: path.clone(), source };
        DirBuilder::new().mode(0o700).recursive(true).create(&folder).map_err(unknown)?;
        // Two that raise it at once come one after the other.
        let lock = File::open(&folder).map_err(unknown)?;
        lock.lock().map_err(unknown)?;
        let before = match read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            read => read.map_err(unknown)?,
        };
        let token = match token {
            Some(token) if token < before => return Err(FenceError::Passed { path, newer: before, token }),
            Some(token) => token,
            None => before.checked_add(1).ok_or_else(|| unknown(io::Error::other("there is no greater number")))?,
        };
        let next = folder.join(format!(".{application}.next"));
        let write = || {
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
            file.write_all(format!("{token}\n").as_bytes())?;
            fs::rename(&next, &path)
        };
        write().map_err(unknown)?;
        Ok(Self { path, token })
    }

    /// Whether nobody newer acts.
    ///
    /// # Errors
    /// Somebody does, or it is not known.
    pub fn check(&self) -> Result<(), FenceError> {
        let (path, token) = (self.path.clone(), self.token);
        match read(&path) {
            Ok(newer) if newer > token => Err(FenceError::Passed { path, newer, token }),
            Ok(_) => Ok(()),
            Err(source) => Err(FenceError::Unknown { path, source }),
        }
    }

    /// The number.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }
}

fn read(path: &Path) -> io::Result<u64> {
    fs::read_to_string(path)?.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> ApplicationId {
        "ledger.next".parse().unwrap()
    }

    #[test]
    fn the_newest_may_act_and_nobody_else() {
        let root = tempfile::tempdir().unwrap();
        let raise = |token| Fence::raise(root.path(), &ledger(), token);
        let first = raise(None).unwrap();
        assert_eq!((first.token(), first.check().is_ok()), (1, true));
        let second = raise(None).unwrap();
        assert_eq!((second.token(), second.check().is_ok()), (2, true));
        assert!(matches!(first.check(), Err(FenceError::Passed { newer: 2, token: 1, .. })));
        // The revision of a lease, which may be raised again by who still has it.
        assert_eq!(raise(Some(41)).unwrap(), raise(Some(41)).unwrap());
        assert!(matches!(raise(Some(40)), Err(FenceError::Passed { newer: 41, token: 40, .. })));
        assert_eq!(raise(None).unwrap().token(), 42);
        // Another application is another matter.
        let other = Fence::raise(root.path(), &"other".parse().unwrap(), None).unwrap();
        assert_eq!(other.token(), 1);
    }

    #[test]
    fn what_cannot_be_read_lets_nobody_act() {
        let root = tempfile::tempdir().unwrap();
        let fence = Fence::raise(root.path(), &ledger(), None).unwrap();
        for nonsense in ["", "-1", "one", "18446744073709551616"] {
            fs::write(&fence.path, nonsense).unwrap();
            assert!(matches!(fence.check(), Err(FenceError::Unknown { .. })), "{nonsense:?}");
            assert!(Fence::raise(root.path(), &ledger(), None).is_err(), "{nonsense:?}");
        }
        fs::write(&fence.path, u64::MAX.to_string()).unwrap();
        assert!(Fence::raise(root.path(), &ledger(), None).is_err());
        fs::remove_file(&fence.path).unwrap();
        assert!(matches!(fence.check(), Err(FenceError::Unknown { .. })));
    }
}
