//! A hook without a ticket, for users of criu-coordinator: it asks a coordinator for a session at its first barrier and leaves
//! the ticket for the hooks after it.
//!
//! The ticket lies in `<state-dir>/<member>`, with the name of the CRIU that it was got for: one of an earlier run is never
//! obeyed. From then on such a hook is like any other.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::client::{Client, Lost, Watch};
use super::process::Process;
use super::words::{self, Criu, Settings, WordsError};
use super::{GRACE, HookError, IMAGE_DIR, Member, Refusal, criu_pid, init_pid, load, without_ticket};
use crate::proto::{Duty, Hook, Reply, SessionKind};
use crate::ticket::{Place, TICKET, Ticket};
use crate::wire::{self, Invitation, Join, JoinAnswer, JoinRequest, JoinWord};

/// How long the coordinator may take to say how long it may take.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// The note of which CRIU a ticket is for.
const RUN: &str = "run";

/// Why a hook without a ticket stops its member.
#[derive(Debug, thiserror::Error)]
pub(super) enum JoinError {
    #[error("the coordinator's settings cannot be used")]
    Words(#[from] WordsError),
    #[error("the coordinator is lost")]
    Lost(#[from] Lost),
    #[error("the coordinator refuses: {reason}")]
    Refused { reason: String },
    #[error("the answer of the coordinator is none")]
    NoAnswer,
    #[error("this CRIU has not joined a session at {first}")]
    NotJoined { first: Hook },
    #[error("the folder {path:?} can be written by others")]
    NotPrivate { path: PathBuf },
    #[error("the ticket cannot be kept in {path:?}")]
    Keep {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("CRIU cannot be told from others")]
    Run(#[source] io::Error),
}

/// A member that must not go on, and where that is told as well.
pub(super) struct Stopped {
    pub(super) refusal: Refusal,
    pub(super) log_file: Option<PathBuf>,
}

/// Does what the hook has to do, if anything tells of its member.
pub(super) fn run(hook: Hook, env: &impl Fn(&str) -> Option<OsString>) -> Result<(), Box<Stopped>> {
    let Some(kind) = kind_of(hook) else { return Ok(()) };
    let images = env(IMAGE_DIR).map(PathBuf::from);
    let criu = Criu { kind, images: images.as_deref(), init: init_pid(env) };
    let stop = |error: JoinError| Refusal {
        error: HookError::Join(Box::new(error)),
        kill: without_ticket(hook.as_str(), env),
    };
    let settings = match words::find(env, &criu, words::global()) {
        Ok(Some(settings)) => settings,
        Ok(None) => return Ok(()),
        Err(error) => return Err(Box::new(Stopped { refusal: stop(error.into()), log_file: None })),
    };
    let folder = settings.state.join(settings.member.as_str());
    let done = seat(&settings, kind, hook, &folder).map_err(stop).and_then(|(ticket, client)| {
        let (init, criu) = (init_pid(env), criu_pid(env));
        let member =
            Member { folder: &folder, ticket, hook, init, criu, connect: Client::connect, joined: Cell::new(client) };
        member.act()
    });
    done.map_err(|refusal| Box::new(Stopped { refusal, log_file: settings.log_file }))
}

impl From<Refusal> for Box<Stopped> {
    fn from(refusal: Refusal) -> Self {
        Self::new(Stopped { refusal, log_file: None })
    }
}

/// Whether anything tells of this member, or of it in words that are none.
pub(super) fn is_meant(hook: Hook, env: &impl Fn(&str) -> Option<OsString>) -> bool {
    kind_of(hook).is_some_and(|kind| {
        let images = env(IMAGE_DIR).map(PathBuf::from);
        let criu = Criu { kind, images: images.as_deref(), init: init_pid(env) };
        !matches!(words::find(env, &criu, words::global()), Ok(None))
    })
}

/// The session that this hook has a step in.
fn kind_of(hook: Hook) -> Option<SessionKind> {
    [SessionKind::Dump, SessionKind::Restore].into_iter().find(|kind| kind.duty(hook) != Duty::Pass)
}

/// Writes a line to the log file that was named; the standard error stream has it in any case.
pub(super) fn log(file: &Path, words: &str) {
    if let Ok(mut file) = OpenOptions::new().append(true).create(true).mode(0o600).open(file) {
        let _ = writeln!(file, "{words}");
    }
}

/// The ticket of this run of CRIU; at the first barrier a new one, with the connection on which it was got.
fn seat(
    settings: &Settings,
    kind: SessionKind,
    hook: Hook,
    folder: &Path,
) -> Result<(Ticket, Option<Client>), JoinError> {
    let first = kind.barriers()[0].hook;
    let run = run_of(&Process::parent().map_err(JoinError::Run)?).map_err(JoinError::Run)?;
    let kept = std::fs::read_to_string(folder.join(RUN)).is_ok_and(|kept| kept == run);
    match load(&folder.join(TICKET)) {
        // CRIU runs a script twice that stands in its configuration twice.
        Ok(ticket) if kept && ticket.kind == kind => return Ok((ticket, None)),
        Ok(_) | Err(_) if hook == first => {}
        Ok(_) | Err(_) => return Err(JoinError::NotJoined { first }),
    }
    make_private(folder)?;
    let place = Place::Remote(settings.remote.clone());
    let (client, invitation) = join(settings, kind, &place)?;
    let ticket = Ticket::new(&invitation, place, settings.member.clone(), None);
    keep(folder, &run, &ticket).map_err(|source| JoinError::Keep { path: folder.to_owned(), source })?;
    Ok((ticket, Some(client)))
}

fn join(settings: &Settings, kind: SessionKind, place: &Place) -> Result<(Client, Invitation), JoinError> {
    let criu = Process::parent().map_err(JoinError::Run)?;
    let watch = Watch { criu: Some(&criu), tasks: None, launcher: None };
    let mut client = Client::connect(place, Instant::now() + FIRST_WORD)?;
    let join = Join { kind, member: settings.member.clone(), dependencies: settings.dependencies.clone() };
    client.send(&JoinRequest { version: wire::VERSION, join })?;
    loop {
        match client.receive::<JoinAnswer>(watch)?.word {
            JoinWord::Noted { gather_ms } => {
                let wait = Duration::from_millis(gather_ms).saturating_add(GRACE);
                client.until(super::after(wait));
            }
            JoinWord::Invited(invitation) if invitation.kind == kind => return Ok((client, invitation)),
            JoinWord::Reply(Reply::Abort { reason }) => return Err(JoinError::Refused { reason }),
            JoinWord::Invited(_) | JoinWord::Reply(Reply::Proceed) => return Err(JoinError::NoAnswer),
        }
    }
}

/// The member's folder, which nobody else may write to: what lies there is obeyed.
fn make_private(folder: &Path) -> Result<(), JoinError> {
    let failed = |source| JoinError::Keep { path: folder.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    let me = rustix::process::geteuid().as_raw();
    for path in [Some(folder), folder.parent()].into_iter().flatten() {
        let facts = path.symlink_metadata().map_err(failed)?;
        if !facts.is_dir() || facts.uid() != me || facts.mode() & 0o022 != 0 {
            return Err(JoinError::NotPrivate { path: path.to_owned() });
        }
    }
    Ok(())
}

/// Puts the new ticket in the place of whatever an earlier run left.
fn keep(folder: &Path, run: &str, ticket: &Ticket) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        std::fs::remove_file(entry?.path())?;
    }
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)
    };
    write(TICKET, &ticket.to_json()?)?;
    write(RUN, run.as_bytes())
}

/// A name of this CRIU that no other process has or will have until the next start of the machine.
fn run_of(criu: &Process) -> io::Result<String> {
    let stat = std::fs::read(format!("/proc/{}/stat", criu.pid()))?;
    let stat = String::from_utf8_lossy(&stat);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    // After the name, which may hold anything, the 22nd field is when it was started.
    let started = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(19));
    let started = started.ok_or(io::ErrorKind::InvalidData)?;
    Ok(format!("{} {started} {}", criu.pid(), boot.trim()))
}
