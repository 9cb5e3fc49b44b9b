//! The program that CRIU runs at each of its hooks, while tasks are frozen or not yet there: no runtime, no threads.
//!
//! CRIU runs it by the path in its configuration, a link in the member's folder of a session; the ticket lies beside that
//! link. Without a ticket it is silent: a plain dump or restore goes on as if it were not installed. With one it **fails
//! closed**: whatever is not a plain "proceed" from the rendezvous stops the member.
//!
//! | hook of a restore | does | on abort, a lost rendezvous or the deadline |
//! |---|---|---|
//! | pre-restore | arrives, waits for all | returns 1: CRIU restores nothing |
//! | post-restore | votes, waits for all | returns 1: CRIU kills what it restored |
//! | pre-resume | waits for the release | kills the tasks, then returns 1, for CRIU only logs that |
//! | post-resume | tells that the tasks run | tasks that were never released are killed |
//!
//! At a dump pre-dump, network-lock and post-dump wait and return 1 on abort: CRIU undoes the dump and the tasks run on.
//!
//! Three deaths are watched for while it waits: that of the rendezvous (the connection ends), of CRIU (its parent), and
//! of the tasks. Its own, by `kill -9`, is watched for by a guard: at pre-resume, where CRIU would take it for a
//! script that failed and let the tasks go, a second process kills them when the first ends without a word.

mod client;
mod guard;
mod notes;
mod tasks;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::client::{Client, Lost};
use self::guard::Guard;
use self::notes::Notes;
use self::tasks::Tasks;
use crate::plan::SessionId;
use crate::proto::{Duty, Hook, Message, Reply, SessionKind, Verdict, Vote};
use crate::ticket::{HOOK, TICKET, Ticket};
use crate::wire;

/// The action that CRIU is at.
const ACTION: &str = "CRTOOLS_SCRIPT_ACTION";

/// The root task's pid, as CRIU and so this program sees it; not set before there is one.
const INIT_PID: &str = "CRTOOLS_INIT_PID";

/// How long after a deadline of the session a hook still waits to be told so.
const GRACE: Duration = Duration::from_millis(500);

/// How long the report at post-resume may take; the tasks run already.
const REPORT: Duration = Duration::from_secs(1);

/// How the program ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The exit status: 0, or 1 to stop CRIU, or 2 when it was not run by CRIU.
    pub code: u8,
    /// What to say on the standard error stream, which is CRIU's log, in the form of CRIU's own error lines.
    pub message: Option<String>,
}

impl Exit {
    const SILENT: Self = Self { code: 0, message: None };
}

/// Why a hook stops its member.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error("CRIU has not said which hook it is at")]
    NoAction,
    #[error("the ticket {path:?} cannot be read")]
    Ticket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the ticket {path:?} is none")]
    BadTicket {
        path: PathBuf,
        #[source]
        source: wire::WireError,
    },
    #[error("CRIU has not said which task is the first")]
    NoInit,
    #[error("the tasks cannot be watched")]
    Watch(#[source] io::Error),
    #[error("the guard cannot be started")]
    Guard(#[source] io::Error),
    #[error("cannot note that the member was let through")]
    Note(#[source] io::Error),
    #[error("the session was aborted: {reason}")]
    Aborted { reason: String },
    #[error("the session is lost")]
    Lost(#[source] Lost),
    #[error("the tasks run without having been released")]
    NotReleased,
}

/// Does what this hook has to do. `args` are the program's, its own name first; `env` is its environment.
pub fn main(args: impl IntoIterator<Item = OsString>, env: impl Fn(&str) -> Option<OsString>) -> Exit {
    let mut args = args.into_iter();
    let name = PathBuf::from(args.next().unwrap_or_default());
    if let Some(pid) = guard::recognise(args) {
        return guard::main(pid);
    }
    let action = env(ACTION);
    let path = name.with_file_name(TICKET);
    let ticket = match load(&path) {
        Ok(ticket) => ticket,
        Err(HookError::Ticket { source, .. }) if source.kind() == io::ErrorKind::NotFound && !in_session(&name) => {
            return match action {
                Some(_) => Exit::SILENT,
                None => Exit {
                    code: 2,
                    message: Some(
                        "syncpoint-hook is run by CRIU, as its action script; see docs/protocol.md".to_owned(),
                    ),
                },
            };
        }
        Err(error) => return refuse(action.as_deref().and_then(|action| action.to_str()), &env, &error),
    };
    let Some(action) = action else { return failure("?", &HookError::NoAction) };
    // Actions of CRIU that no session has a step at, also ones that it may get some day.
    let Some(hook) = action.to_str().and_then(|action| action.parse::<Hook>().ok()) else { return Exit::SILENT };
    let member = Member { folder: name.parent().unwrap_or(Path::new("")), ticket, hook, init: init_pid(&env) };
    let done = match member.ticket.kind.duty(hook) {
        Duty::Pass => Ok(()),
        Duty::Wait(place) => member.wait(place),
        Duty::Report => member.report(),
    };
    match done {
        Ok(()) => Exit::SILENT,
        Err(error) => failure(hook.as_str(), &error),
    }
}

/// Whether the link stands in a member's folder of a session: such a hook must never take a missing ticket for a plain
/// run of CRIU.
fn in_session(name: &Path) -> bool {
    let session = name.parent().and_then(Path::parent).and_then(Path::file_name).and_then(|name| name.to_str());
    name.file_name().is_some_and(|name| name == HOOK) && session.is_some_and(|name| name.parse::<SessionId>().is_ok())
}

fn load(path: &Path) -> Result<Ticket, HookError> {
    let bytes = std::fs::read(path).map_err(|source| HookError::Ticket { path: path.to_owned(), source })?;
    wire::decode(&bytes).map_err(|source| HookError::BadTicket { path: path.to_owned(), source })
}

fn init_pid(env: &impl Fn(&str) -> Option<OsString>) -> Option<i32> {
    env(INIT_PID)?.to_str()?.parse().ok().filter(|pid| *pid > 1)
}

/// Stops a member whose ticket cannot be had. It cannot be known whether the session dumps or restores, but only a
/// restore comes to pre-resume and post-resume, and there only killing stops anything.
fn refuse(action: Option<&str>, env: &impl Fn(&str) -> Option<OsString>, error: &HookError) -> Exit {
    if let Some(Hook::PreResume | Hook::PostResume) = action.and_then(|action| action.parse::<Hook>().ok())
        && let Some(Ok(tasks)) = init_pid(env).map(Tasks::of)
    {
        tasks.kill();
    }
    failure(action.unwrap_or("?"), error)
}

fn failure(hook: &str, error: &HookError) -> Exit {
    let mut message = format!("Error (syncpoint-hook): {hook}: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    Exit { code: 1, message: Some(message) }
}

/// One member at one hook.
struct Member<'a> {
    folder: &'a Path,
    ticket: Ticket,
    hook: Hook,
    init: Option<i32>,
}

impl Member<'_> {
    /// Waits at the barrier `place` and does what was decided.
    fn wait(&self, place: usize) -> Result<(), HookError> {
        let notes = Notes::in_folder(self.folder);
        let kills = self.ticket.kind.verdict(self.hook, None) == Verdict::KillAndRefuse;
        if kills && notes.released() {
            // CRIU runs a script twice that stands in its configuration twice. It was decided the first time.
            return Ok(());
        }
        let deadline = self.deadline(place, &notes);
        let tasks = match (self.ticket.kind, self.init) {
            // At a dump the tasks are not ours to watch: they run on, whatever happens.
            (SessionKind::Dump, _) | (SessionKind::Restore, None) => None,
            (SessionKind::Restore, Some(pid)) => Some(Tasks::of(pid).map_err(HookError::Watch)?),
        };
        if !kills {
            let asked = self.ask(tasks.as_ref(), Vote::Yes, deadline);
            if let (Err(HookError::Lost(Lost::Criu)), Some(tasks)) = (&asked, &tasks) {
                // Nobody is left to kill what was restored.
                tasks.kill();
            }
            asked?;
            return if place == 0 { notes.note_hold(self.hold()).map_err(HookError::Note) } else { Ok(()) };
        }
        let tasks = tasks.ok_or(HookError::NoInit)?;
        let released = self.pass_the_door(&tasks, &notes, deadline);
        if released.is_err() {
            tasks.kill();
        }
        released
    }

    /// At pre-resume: under a guard, waits for the release and notes it.
    fn pass_the_door(&self, tasks: &Tasks, notes: &Notes, deadline: Instant) -> Result<(), HookError> {
        let guard = Guard::start(tasks).map_err(HookError::Guard)?;
        self.ask(Some(tasks), Vote::Yes, deadline)?;
        notes.note_release().map_err(HookError::Note)?;
        guard.dismiss();
        Ok(())
    }

    /// Sends this member's vote and waits for what was decided.
    fn ask(&self, tasks: Option<&Tasks>, vote: Vote, deadline: Instant) -> Result<(), HookError> {
        let mut client = Client::connect(&self.ticket.socket, deadline).map_err(HookError::Lost)?;
        let vote = match (tasks, vote) {
            (Some(tasks), Vote::Yes) if tasks.are_gone() => Vote::No { reason: "its tasks are gone".to_owned() },
            (_, vote) => vote,
        };
        let message = Message {
            session: self.ticket.session,
            epoch: self.ticket.epoch,
            member: self.ticket.member.clone(),
            hook: self.hook,
            vote,
        };
        let secret = self.ticket.secret.clone();
        client.send(&wire::Request { version: wire::VERSION, secret, message }).map_err(HookError::Lost)?;
        match client.wait(tasks).map_err(HookError::Lost)? {
            Reply::Proceed => Ok(()),
            Reply::Abort { reason } => Err(HookError::Aborted { reason }),
        }
    }

    /// At post-resume. Tasks that were released run, whatever becomes of the rendezvous.
    fn report(&self) -> Result<(), HookError> {
        if Notes::in_folder(self.folder).released() {
            return self.ask(None, Vote::Yes, Instant::now() + REPORT);
        }
        if let Some(Ok(tasks)) = self.init.map(Tasks::of) {
            tasks.kill();
        }
        let reason = "it was resumed without having been released".to_owned();
        match self.ask(None, Vote::No { reason }, Instant::now() + REPORT) {
            Ok(()) | Err(_) => Err(HookError::NotReleased),
        }
    }

    /// When to stop waiting at the barrier `place`, also if the rendezvous neither answers nor ends.
    fn deadline(&self, place: usize, notes: &Notes) -> Instant {
        let wait = if place == 0 {
            Duration::from_millis(self.ticket.gather_ms)
        } else {
            // The time to hold runs from the first barrier on, and the hooks after it are programs of their own.
            notes.left_to_hold().map_or(self.hold(), |left| left.min(self.hold()))
        };
        let now = Instant::now();
        // A century is a deadline that never comes; it stands for what the clock cannot add.
        now.checked_add(wait.saturating_add(GRACE)).unwrap_or(now + Duration::from_secs(100 * 365 * 86_400))
    }

    fn hold(&self) -> Duration {
        Duration::from_millis(self.ticket.hold_ms)
    }
}
