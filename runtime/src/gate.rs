//! The gate: CRIU's action script at post-restore, where everything of the container is there, its network is locked and a
//! no is still obeyed.
//!
//! CRIU runs all action scripts at every hook, the last one that it was told of first; so the gate stands before the session's
//! own hook. It goes through with `start`, and says no when its supervisor says so, when supervisor or CRIU are gone, or when
//! nobody said anything for too long.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::leftovers::handle;
use crate::state::{Folder, GATE};
use crate::wire::{Answer, Ask, hear, say};

/// How much longer than its supervisor a gate waits.
const GRACE: Duration = Duration::from_secs(5);

/// Whether this program was called as the gate of a container, and of which.
pub(crate) fn recognise(program: &OsStr, is_hook: bool) -> Option<Folder> {
    let path = Path::new(program);
    let is_gate = is_hook && path.is_absolute() && path.file_name() == Some(OsStr::new(GATE));
    is_gate.then(|| Folder::at(path.parent().unwrap_or(path).to_owned()))
}

/// What CRIU says to its scripts.
pub(crate) struct Criu {
    /// The hook.
    pub action: String,
    /// The first process of the container.
    pub init: Option<i32>,
    /// CRIU's own number.
    pub pid: Option<u32>,
}

impl Criu {
    /// Reads it from the environment, where `CRTOOLS_IMAGE_DIR` is `/proc/<CRIU>/fd/<n>`.
    pub fn read(env: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let images = env("CRTOOLS_IMAGE_DIR").map(PathBuf::from);
        let pid = images.and_then(|path| path.strip_prefix("/proc").ok()?.iter().next()?.to_str()?.parse().ok());
        let init = env("CRTOOLS_INIT_PID").and_then(|pid| pid.parse().ok());
        Some(Self { action: env("CRTOOLS_SCRIPT_ACTION")?, init, pid })
    }
}

/// Stands at the gate. An error is a no, which stops CRIU.
pub(crate) fn pass(folder: &Folder, criu: &Criu) -> io::Result<()> {
    if criu.action != "post-restore" {
        return Ok(());
    }
    let init = criu.init.ok_or_else(|| io::Error::other("CRIU does not say which task is the first"))?;
    let record = folder.record()?.ok_or_else(|| io::Error::other("nobody restores this container"))?;
    // In a pod's own namespace of processes CRIU's number may be another's, or nobody's; the supervisor watches it as well.
    let criu = criu.pid.and_then(|pid| handle(pid).ok());
    let supervisor = folder.connect()?;
    say(&supervisor, &Ask::Held { init })?;
    let end = Instant::now() + Duration::from_millis(record.hold_ms) + GRACE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::other("it was not started in time"));
        }
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut watched = vec![PollFd::new(&supervisor, PollFlags::IN)];
        watched.extend(criu.iter().map(|criu| PollFd::new(criu, PollFlags::IN)));
        match poll(&mut watched, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !watched[0].revents().is_empty() {
            return match hear(&supervisor)? {
                Some(Answer::Go) => Ok(()),
                Some(Answer::No { why }) => Err(io::Error::other(why)),
                Some(_) | None => Err(io::Error::other("its supervisor is gone")),
            };
        }
        if watched.get(1).is_some_and(|criu| !criu.revents().is_empty()) {
            return Err(io::Error::other("CRIU is gone"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::state::Record;

    fn folder() -> (tempfile::TempDir, Folder) {
        let top = tempfile::tempdir().unwrap();
        let folder = Folder::at(top.path().join("c"));
        drop(folder.make().unwrap());
        let record = Record {
            creator: 7,
            id: "c".to_owned(),
            member: "m".to_owned(),
            real: "runc".to_owned(),
            globals: vec![],
            restore: vec![],
            bundle: "/b".into(),
            work: "/w".into(),
            hold_ms: 60_000,
        };
        folder.write_record(&record).unwrap();
        (top, folder)
    }

    fn criu(pid: Option<u32>) -> Criu {
        Criu { action: "post-restore".to_owned(), init: Some(7), pid }
    }

    #[test]
    fn criu_is_understood_and_the_gate_known_by_its_name() {
        let said = BTreeMap::from([
            ("CRTOOLS_SCRIPT_ACTION", "post-restore"),
            ("CRTOOLS_INIT_PID", "12"),
            ("CRTOOLS_IMAGE_DIR", "/proc/34/fd/5"),
        ]);
        let criu = Criu::read(|name| said.get(name).map(|value| (*value).to_owned())).unwrap();
        assert_eq!((criu.action.as_str(), criu.init, criu.pid), ("post-restore", Some(12), Some(34)));
        assert!(Criu::read(|_| None).is_none());
        assert_eq!(recognise("/r/c/gate".as_ref(), true), Some(Folder::at("/r/c".into())));
        assert_eq!(recognise("/r/c/gate".as_ref(), false), None, "somebody may call his runtime so");
        assert_eq!(recognise("gate".as_ref(), true), None);
        assert_eq!(recognise("/usr/bin/syncpoint-runtime".as_ref(), true), None);
    }

    #[test]
    fn it_goes_through_when_told_and_at_other_hooks() {
        let (_top, folder) = folder();
        pass(&folder, &Criu { action: "pre-restore".to_owned(), init: None, pid: None }).unwrap();
        let listener = folder.listen().unwrap();
        let answers = [
            (Some(Answer::Go), Ok(())),
            (Some(Answer::No { why: "not now".to_owned() }), Err("not now")),
            (Some(Answer::Gone), Err("gone")),
            (None, Err("its supervisor is gone")),
        ];
        for (answer, expected) in answers {
            let passed = std::thread::scope(|scope| {
                let gate = scope.spawn(|| pass(&folder, &criu(None)));
                let (stream, _) = listener.accept().unwrap();
                assert_eq!(hear(&stream).unwrap(), Some(Ask::Held { init: 7 }));
                if let Some(answer) = &answer {
                    say(&stream, answer).unwrap();
                }
                drop(stream);
                gate.join().unwrap()
            });
            match (passed, expected) {
                (Ok(()), Ok(())) => {}
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                (passed, _) => panic!("{answer:?}: {passed:?}"),
            }
        }
    }

    #[test]
    fn it_is_a_no_when_nobody_listens_and_when_criu_dies() {
        let (_top, folder) = folder();
        assert!(pass(&folder, &criu(None)).is_err());
        let listener = folder.listen().unwrap();
        let mut dying = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = dying.id();
        let error = std::thread::scope(|scope| {
            let gate = scope.spawn(|| pass(&folder, &criu(Some(pid))));
            let _stream = listener.accept().unwrap();
            dying.kill().unwrap();
            gate.join().unwrap().unwrap_err()
        });
        dying.wait().unwrap();
        assert_eq!(error.to_string(), "CRIU is gone");
    }
}
