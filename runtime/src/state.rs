//! What this runtime keeps of a container while it is restored and held.
//!
//! ```text
//! RUN_ROOT/runtime/<hash of the real runtime's root>/<container's id>/    0700
//!   lock          held by the supervisor, and before it by `create`: who holds it decides about the container
//!   tree          open in runc, CRIU and the gate, which inherit it: whoever is left of an attempt is found by it
//!   record.json   what the supervisor is to do, and what has to be taken away after it
//!   socket        where the supervisor listens
//!   gate          a link to this program; CRIU's action script
//!   criu.conf     the session's configuration, and the gate
//!   own.conf      what CRIU is told of the target, after everything else
//!   config.json   the bundle's configuration as it was, while the bundle names own.conf
//!   init          the container's first process, once it is known
//!   released      empty; it is there once the gate was opened
//! RUN_ROOT/runtime/<hash>.ran/<container's id>    empty; the container was restored and ran
//! ```

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use image_format::Digest;
use rustix::fs::{Mode, OFlags, open};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::args::Invocation;
use crate::config::write_config;

/// The name of the link that CRIU runs.
pub(crate) const GATE: &str = "gate";
/// CRIU's configuration.
pub(crate) const CRIU_CONFIG: &str = "criu.conf";
/// What CRIU is told of the target.
pub(crate) const OWN_SETTINGS: &str = "own.conf";
const LOCK: &str = "lock";
const TREE: &str = "tree";
const RECORD: &str = "record.json";
const SOCKET: &str = "socket";
const INIT: &str = "init";
const RELEASED: &str = "released";
const BEFORE: &str = "config.json";

/// How long somebody else may hold a container that he is about to let go of.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether he did.
pub(crate) const LOOK: Duration = Duration::from_millis(5);

/// What a supervisor does, and what is left to take away when it cannot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Who wrote this, and wants to know how it goes.
    pub creator: i32,
    /// The container.
    pub id: String,
    /// Its name in messages.
    pub member: String,
    /// The real runtime.
    pub real: String,
    /// The real runtime's options before its command.
    pub globals: Vec<String>,
    /// What follows `restore`.
    pub restore: Vec<String>,
    /// The bundle.
    pub bundle: PathBuf,
    /// Where CRIU and the real runtime write their logs.
    pub work: PathBuf,
    /// How long it is held at most, in milliseconds.
    pub hold_ms: u64,
}

/// A process, told from a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Its number.
    pub pid: i32,
    /// When it was started, in the kernel's clock ticks since boot.
    started: u64,
}

impl Process {
    /// A process that is there.
    pub fn of(pid: i32) -> Option<Self> {
        Self::look(pid).map(|(process, _)| process)
    }

    /// Whether it is there still, be it as a zombie.
    pub fn is_there(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Whether it is there and has not ended.
    pub fn runs(self) -> bool {
        Self::look(self.pid).is_some_and(|(found, has_ended)| found == self && !has_ended)
    }

    /// A process, and whether it has ended and waits to be collected.
    fn look(pid: i32) -> Option<(Self, bool)> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses and may hold anything; the state is the third field, the start the twenty-second.
        let after_name = stat.rsplit_once(") ")?.1;
        let started = after_name.split(' ').nth(19)?.parse().ok()?;
        Some((Self { pid, started }, after_name.starts_with(['Z', 'X'])))
    }
}

/// The folder of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Folder {
    path: PathBuf,
}

/// The lock of a container's folder.
#[derive(Debug)]
pub(crate) struct Held {
    _lock: File,
}

impl Folder {
    /// The folder of a container of this call's.
    pub fn of(call: &Invocation, id: &str) -> Self {
        let hash = Digest::of(call.root.as_os_str().as_encoded_bytes()).hex();
        let path = call.run_root.join("runtime").join(&hash[..hash.len().min(16)]).join(id);
        Self { path }
    }

    /// The folder at a path.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is there: nothing is known of a container without one.
    pub fn is_there(&self) -> bool {
        self.path.exists()
    }

    /// Where it is noted that the container was restored and ran: `<hash>.ran/<id>`. The note outlives the
    /// container's tasks, so that a later start of the same container is known to be one.
    fn note(&self) -> Option<PathBuf> {
        let (root, id) = (self.path.parent()?, self.path.file_name()?);
        let mut name = root.file_name()?.to_owned();
        name.push(".ran");
        Some(root.with_file_name(name).join(id))
    }

    /// Notes that the container was restored and runs.
    pub fn note_run(&self) -> io::Result<()> {
        let Some(note) = self.note() else { return Ok(()) };
        DirBuilder::new().mode(0o700).recursive(true).create(note.parent().unwrap_or(&note))?;
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(note).map(drop)
    }

    /// Whether it is noted that the container was restored and ran.
    pub fn ran(&self) -> bool {
        self.note().is_some_and(|note| note.exists())
    }

    /// Takes the note away: the container of this id is another one, or is restored again.
    pub fn forget_run(&self) -> io::Result<()> {
        match self.note().map(std::fs::remove_file) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes it, if need be, and holds it. `None`: somebody else does.
    pub fn make(&self) -> io::Result<Option<Held>> {
        loop {
            DirBuilder::new().mode(0o700).recursive(true).create(&self.path)?;
            match self.open(LOCK, true) {
                // Whoever held it last removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                lock => match self.held(lock?)? {
                    Lock::Ours(held) => return Ok(Some(held)),
                    Lock::Theirs => return Ok(None),
                    Lock::Gone => {}
                },
            }
        }
    }

    /// Holds it if it is there and nobody else does.
    pub fn hold(&self) -> io::Result<Option<Held>> {
        match self.open(LOCK, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            lock => match self.held(lock?)? {
                Lock::Ours(held) => Ok(Some(held)),
                Lock::Theirs | Lock::Gone => Ok(None),
            },
        }
    }

    /// Waits until it can be held, for a while. An error: it is not there any more, or it is not let go of.
    pub fn wait(&self) -> io::Result<Held> {
        let start = Instant::now();
        loop {
            if let Some(held) = self.hold()? {
                return Ok(held);
            }
            if !self.is_there() {
                return Err(io::ErrorKind::NotFound.into());
            }
            if start.elapsed() > PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn open(&self, name: &str, may_make: bool) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create(may_make).truncate(false).mode(0o600).open(self.path.join(name))
    }

    fn held(&self, lock: File) -> io::Result<Lock> {
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Lock::Theirs),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // It may have been removed since it was opened.
        match std::fs::metadata(self.path.join(LOCK)) {
            Ok(facts) if facts.ino() == lock.metadata()?.ino() => Ok(Lock::Ours(Held { _lock: lock })),
            Ok(_) => Ok(Lock::Gone),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Lock::Gone),
            Err(error) => Err(error),
        }
    }

    /// Writes what the supervisor is to do.
    pub fn write_record(&self, record: &Record) -> io::Result<()> {
        self.write(RECORD, record)
    }

    /// What a supervisor does, or did; `None`: none was ever started.
    pub fn record(&self) -> io::Result<Option<Record>> {
        self.read(RECORD)
    }

    /// Keeps a bundle's configuration, which is about to be changed.
    pub fn keep_config(&self, config: &[u8]) -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(self.path.join(BEFORE))?;
        file.write_all(config)
    }

    /// Puts a bundle's configuration back, if one was kept. A bundle that is gone needs none.
    pub fn put_config_back(&self, bundle: &Path) -> io::Result<()> {
        let put_back = std::fs::read(self.path.join(BEFORE)).and_then(|config| write_config(bundle, &config));
        match put_back {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            put_back => put_back,
        }
    }

    /// Notes the container's first process.
    pub fn write_init(&self, init: Process) -> io::Result<()> {
        self.write(INIT, &init)
    }

    /// The container's first process, if it came to that.
    pub fn init(&self) -> io::Result<Option<Process>> {
        self.read(INIT)
    }

    /// Notes that the gate is about to be opened: from here on the session decides.
    pub fn note_released(&self) -> io::Result<()> {
        File::create(self.path.join(RELEASED)).map(drop)
    }

    /// Whether the gate was opened.
    pub fn was_released(&self) -> bool {
        self.path.join(RELEASED).exists()
    }

    fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(self.path.join(name))?;
        file.write_all(&serde_json::to_vec(value)?)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let mut bytes = Vec::new();
        match File::open(self.path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?.read_to_end(&mut bytes)?,
        };
        Ok(Some(serde_json::from_slice(&bytes)?))
    }

    /// The file that all processes of an attempt have open.
    pub fn tree(&self) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.path.join(TREE))
    }

    /// Where that file is.
    pub fn tree_path(&self) -> PathBuf {
        self.path.join(TREE)
    }

    /// Listens. A path to a socket may have 107 bytes, and ids have up to 255.
    pub fn listen(&self) -> io::Result<UnixListener> {
        let folder = self.opened()?;
        match std::fs::remove_file(self.path.join(SOCKET)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => UnixListener::bind(socket_in(&folder)),
        }
    }

    /// Asks whoever listens.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let folder = self.opened()?;
        UnixStream::connect(socket_in(&folder))
    }

    fn opened(&self) -> io::Result<OwnedFd> {
        Ok(open(&self.path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Removes it, which is its holder's to do. The lock goes last: whoever makes a new one finds nothing else.
    pub fn remove(&self, _held: &Held) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name() != LOCK {
                std::fs::remove_file(entry.path())?;
            }
        }
        std::fs::remove_file(self.path.join(LOCK))?;
        match std::fs::remove_dir(&self.path) {
            // Somebody made it anew at once.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed,
        }
    }
}

enum Lock {
    Ours(Held),
    Theirs,
    Gone,
}

fn socket_in(folder: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_a_container_at_a_time_and_it_can_be_made_again() {
        let top = tempfile::tempdir().unwrap();
        let folder = Folder::at(top.path().join("runtime/root").join("i".repeat(64)));
        assert!(!folder.is_there() && folder.hold().unwrap().is_none());
        let held = folder.make().unwrap().unwrap();
        assert!(folder.make().unwrap().is_none() && folder.hold().unwrap().is_none());
        assert_eq!(folder.record().unwrap(), None);
        let record = Record {
            creator: 7,
            id: "i".to_owned(),
            member: "m".to_owned(),
            real: "runc".to_owned(),
            globals: vec!["--root".to_owned()],
            restore: vec![],
            bundle: "/b".into(),
            work: "/w".into(),
            hold_ms: 5,
        };
        folder.write_record(&record).unwrap();
        assert_eq!(folder.record().unwrap(), Some(record));
        let listener = folder.listen().unwrap();
        folder.connect().unwrap();
        drop(listener);
        assert!(folder.connect().is_err());
        folder.remove(&held).unwrap();
        assert!(!folder.is_there());
        let again = folder.make().unwrap().unwrap();
        assert!(folder.hold().unwrap().is_none(), "the new one is held");
        drop((held, again));
        assert!(folder.wait().is_ok());
    }

    #[test]
    fn a_process_is_more_than_its_number() {
        let me = Process::of(std::process::id().cast_signed()).unwrap();
        assert!(me.is_there());
        assert!(!Process { started: me.started + 1, ..me }.is_there());
        assert_eq!(Process::of(-1), None);
    }
}
