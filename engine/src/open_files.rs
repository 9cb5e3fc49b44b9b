//! How many files this process may have open: every member of a session takes a few, so a large one takes more than the soft limit that
//! a shell gives.
//!
//! What it starts gets the limit that it was given itself: podman hands its own on to what it starts, and there are programs that
//! close or look at every file that they might have.

use std::ffi::OsStr;
use std::sync::OnceLock;

use image_format::SECRET_VARIABLES;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::process::Command;

/// The soft limit before it was first raised; empty if it was not.
static GIVEN: OnceLock<u64> = OnceLock::new();

/// Sets the limit, and becomes the program. `$0` is the limit.
const SCRIPT: &str = "ulimit -S -n \"$0\" && exec \"$@\"";

/// Open files that a session needs whatever its size: the runtime, the store, packing.
const FOR_ITSELF: u64 = 128;

/// Open files for each member at most: its hooks, its engine with pipes and output, its claim, its files while they are copied.
const FOR_A_MEMBER: u64 = 16;

/// There are more members than this process may have files for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{members} members take up to {needed} open files, and this process may have no more than {limit}")]
pub struct OpenFilesError {
    members: usize,
    needed: u64,
    limit: u64,
}

impl OpenFilesError {
    /// What to do about it.
    pub const HINT: &str = "raise the hard limit of open files: `ulimit -Hn`, or LimitNOFILE= of a systemd unit";
}

/// Raises the soft limit of open files to what a session of so many members needs, or refuses what would fail in the middle.
pub fn raise_for(members: usize) -> Result<(), OpenFilesError> {
    let limit = getrlimit(Resource::Nofile);
    match missing(members, limit.current, limit.maximum)? {
        Some(needed) => {
            raise(limit, Some(needed));
            Ok(())
        }
        None => Ok(()),
    }
}

/// Raises the soft limit of open files to the hard one, for a service to which any number of members may come. Where the system does
/// not let it, it stays as it is.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    raise(limit, limit.maximum);
}

/// The soft limit that these members need, if it is a higher one.
fn missing(members: usize, soft: Option<u64>, hard: Option<u64>) -> Result<Option<u64>, OpenFilesError> {
    let needed = (members as u64).saturating_mul(FOR_A_MEMBER).saturating_add(FOR_ITSELF);
    match (soft, hard) {
        (Some(soft), _) if soft >= needed => Ok(None),
        (None, _) => Ok(None),
        (Some(_), Some(limit)) if limit < needed => Err(OpenFilesError { members, needed, limit }),
        (Some(_), _) => Ok(Some(needed)),
    }
}

fn raise(limit: Rlimit, to: Option<u64>) {
    if let Some(given) = limit.current
        && limit.current != to
        && setrlimit(Resource::Nofile, Rlimit { current: to, maximum: limit.maximum }).is_ok()
    {
        // Only the first one is what this process was given.
        let _ = GIVEN.set(given);
    }
}

/// A program that gets the limit that this process was given, and none of its secrets.
pub fn command(program: &str) -> Command {
    let mut command = limited(program, GIVEN.get().copied());
    for name in SECRET_VARIABLES {
        command.env_remove(name);
    }
    command
}

/// By a shell, which sets its own limit before it becomes the program: a limit that is set from outside comes too late.
fn limited(program: &str, given: Option<u64>) -> Command {
    match given.filter(|_| is_installed(program)) {
        // What is not there fails by its own name.
        None => Command::new(program),
        Some(given) => {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", SCRIPT]).arg(given.to_string()).arg(program);
            command
        }
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH");
    std::env::split_paths(path.as_deref().unwrap_or(OsStr::new(""))).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_fit_or_the_limit_is_raised_or_they_are_refused() {
        assert_eq!(missing(1, None, None), Ok(None));
        assert_eq!(missing(56, Some(1024), Some(4096)), Ok(None));
        assert_eq!(missing(1024, Some(1024), Some(524_288)), Ok(Some(16_512)));
        assert_eq!(missing(3, Some(175), None), Ok(Some(176)));
        let error = missing(3, Some(40), Some(175)).unwrap_err().to_string();
        assert_eq!(error, "3 members take up to 176 open files, and this process may have no more than 175");
        assert!(missing(usize::MAX, Some(1024), Some(u64::MAX - 1)).is_err());
    }

    #[test]
    fn programs_get_no_secrets() {
        let command = command("podman");
        let removed: Vec<_> =
            command.as_std().get_envs().filter(|(_, value)| value.is_none()).map(|(name, _)| name).collect();
        assert_eq!(removed, ["COSIGN_PASSWORD", "SDP_CONFIG_PASSWORD"]);
    }

    #[tokio::test]
    async fn programs_get_the_limit_from_before() {
        let hard = getrlimit(Resource::Nofile).maximum.map_or("unlimited".to_owned(), |hard| hard.to_string());
        let output =
            limited("sh", Some(77)).args(["-c", "ulimit -Sn; ulimit -Hn; echo $1", "sh", "a b"]).output().await;
        assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), format!("77\n{hard}\na b\n"));
        let missing = limited("no-such-program", Some(77)).spawn().unwrap_err();
        assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    }
}
