//! The program that CRIU runs at each of its hooks, while tasks are frozen or not yet there: no runtime, no threads.
//!
//! CRIU runs it by the path in its configuration, a link in the member's folder of a session; the ticket lies beside that
//! link. Without a ticket it is silent: a plain dump or restore goes on as if it were not installed. With one it **fails
//! closed**: whatever is not a plain "proceed" from the rendezvous stops the member. Settings of criu-coordinator stand for a
//! ticket, where there are any (`standalone`).
//!
//! | hook of a restore | does | on abort, a lost rendezvous or the deadline |
//! |---|---|---|
//! | pre-restore | arrives, waits for all | returns 1: CRIU restores nothing |
//! | post-restore | votes, waits for all | returns 1: CRIU kills what it restored |
//! | pre-resume | waits for the release | kills the tasks and CRIU, which would only log a 1 |
//! | post-resume | tells that the tasks run | tasks that were never released are killed |
//!
//! At a dump pre-dump, network-lock and post-dump wait and return 1 on abort: CRIU undoes the dump and the tasks run on. While
//! it waits at post-dump it holds the tasks by their cgroup too, so that the death of CRIU does not let go of them half undone.
//!
//! Three deaths are watched for while it waits: that of the rendezvous (the connection ends), of CRIU (its parent), and
//! of the tasks; where the rendezvous is on another host also that of the own host's launcher (`life`). Its own, by `kill -9`, is watched for by a guard: at pre-resume, where CRIU would take it for a
//! script that failed and let the tasks go, a second process kills them when the first ends without a word.

mod client;
mod frozen;
mod guard;
mod handed;
mod notes;
mod process;
mod secure;
mod standalone;
mod tasks;
mod words;

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use self::client::Connect;
pub(crate) use self::client::{Client, Lost, Watch};
use self::frozen::Frozen;
pub use self::frozen::{FoundFrozen, mend, thaw};
use self::guard::Guard;
pub use self::handed::{expect_handed, was_not_handed};
use self::notes::Notes;
use self::process::Process;
pub(crate) use self::secure::{SecureError, server_name};
use self::standalone::{JoinError, Stopped};
pub use self::tasks::children;
use self::tasks::{Held, Tasks};
use crate::fence::{Fence, FenceError};
use crate::life;
use crate::plan::SessionId;
use crate::proto::{Duty, Hook, Message, Reply, SessionKind, Verdict, Vote};
use crate::ticket::{HOOK, Place, TICKET, Ticket};
use crate::wire;

/// The program that speaks with other hosts too.
const REMOTE_PROGRAM: &str = "syncpoint-hook-remote";

/// The action that CRIU is at.
const ACTION: &str = "CRTOOLS_SCRIPT_ACTION";

/// The root task's pid, as CRIU and so this program sees it; not set before there is one.
const INIT_PID: &str = "CRTOOLS_INIT_PID";

/// `/proc/<CRIU's pid>/fd/<n>`: where CRIU's images are, and who CRIU is.
const IMAGE_DIR: &str = "CRTOOLS_IMAGE_DIR";

/// How long after a deadline of the session a hook still waits to be told so.
const GRACE: Duration = Duration::from_millis(500);

/// How long the report at post-resume may take; the tasks run already.
const REPORT: Duration = Duration::from_secs(1);

/// How the program ends: 0, or 1 to stop CRIU, or 2 when it was not run by CRIU.
pub type ExitStatus = u8;

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
    #[error(transparent)]
    Join(Box<JoinError>),
    #[error(transparent)]
    Fenced(FenceError),
    #[error("the session is lost")]
    Lost(#[source] Lost),
    #[error("syncpoint-hook-remote, which speaks with other hosts, cannot be run")]
    Remote(#[source] io::Error),
    #[error("the tasks run without having been released")]
    NotReleased,
    #[error("its engine did not hand CRIU the descriptor {number}")]
    NotHanded { number: i32 },
}

/// A member that must not go on.
struct Refusal {
    error: HookError,
    kill: Kill,
}

/// What must be killed once it was said why: killing CRIU ends the engine too, and with it whoever reads its log.
enum Kill {
    Nothing,
    /// The system gives no handle of the first task, which CRIU holds: its number must do. Its death is enough for CRIU to
    /// kill the rest.
    Number(i32),
    Tasks(Tasks),
    Held(Held, Option<Guard>),
}

impl Refusal {
    /// Says why, kills, and ends the program.
    fn carry_out(self, hook: &str, say: impl FnOnce(&str)) -> ExitStatus {
        let mut words = format!("Error (syncpoint-hook): {hook}: {}", self.error);
        let mut source = std::error::Error::source(&self.error);
        while let Some(cause) = source {
            words.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        say(&words);
        match self.kill {
            Kill::Nothing => {}
            Kill::Number(pid) => process::kill_number(pid),
            Kill::Tasks(tasks) => tasks.kill(),
            Kill::Held(held, guard) => {
                held.kill();
                if let Some(guard) = guard {
                    guard.end();
                }
            }
        }
        1
    }
}

impl From<HookError> for Refusal {
    fn from(error: HookError) -> Self {
        Self { error, kill: Kill::Nothing }
    }
}

/// Does what this hook has to do on this host, and becomes `syncpoint-hook-remote` beside `own` where it has to do with another
/// host. TLS is large, and the kernel takes a process apart page by page while tasks stand frozen: this program has none of it.
///
/// `args` are the program's, its own name first; `env` is its environment; `say` writes a line to the standard error stream,
/// which is CRIU's log, in the form of CRIU's own error lines; `own` says where this program lies.
pub fn main(
    args: impl IntoIterator<Item = OsString>,
    env: impl Fn(&str) -> Option<OsString>,
    say: impl FnOnce(&str),
    own: impl FnOnce() -> io::Result<PathBuf>,
) -> ExitStatus {
    let args: Vec<OsString> = args.into_iter().collect();
    let elsewhere = |hook: Hook, ticket: Option<Ticket>| {
        if ticket.is_none() && !standalone::is_meant(hook, &env) {
            return Ok(());
        }
        let source = own().map_or_else(
            |error| error,
            |own| {
                let mut program = Command::new(own.with_file_name(REMOTE_PROGRAM));
                program
                    .arg0(args.first().map_or(OsStr::new(HOOK), OsString::as_os_str))
                    .args(args.iter().skip(1))
                    .exec()
            },
        );
        Err(Refusal { error: HookError::Remote(source), kill: without_ticket(hook.as_str(), &env) }.into())
    };
    run(&args, &env, say, Client::near, elsewhere)
}

/// Does what this hook has to do, on this host or with another one.
pub fn main_remote(
    args: impl IntoIterator<Item = OsString>,
    env: impl Fn(&str) -> Option<OsString>,
    say: impl FnOnce(&str),
) -> ExitStatus {
    let args: Vec<OsString> = args.into_iter().collect();
    let elsewhere = |hook: Hook, ticket: Option<Ticket>| match ticket {
        Some(ticket) => Ok(Member::at(hook, ticket, folder_of(&args), &env, Client::connect).act()?),
        None => standalone::run(hook, &env),
    };
    run(&args, &env, say, Client::near, elsewhere)
}

/// Hooks whose session is on this host are for `connect`; all others, and those without a ticket that belong to no session here,
/// are for `elsewhere`.
fn run(
    args: &[OsString],
    env: &impl Fn(&str) -> Option<OsString>,
    say: impl FnOnce(&str),
    connect: Connect,
    elsewhere: impl FnOnce(Hook, Option<Ticket>) -> Result<(), Box<Stopped>>,
) -> ExitStatus {
    if let Some(order) = guard::recognise(args.iter().skip(1).cloned()) {
        guard::main(order);
        return 0;
    }
    let action = env(ACTION);
    let action = action.as_deref().map(|action| action.to_string_lossy());
    let folder = folder_of(args);
    let ticket = match load(&folder.join(TICKET)) {
        Ok(ticket) => Some(ticket),
        Err(HookError::Ticket { source, .. }) if source.kind() == io::ErrorKind::NotFound && !in_session(args) => None,
        Err(error) => {
            let action = action.unwrap_or_default();
            return Refusal { error, kill: without_ticket(&action, env) }.carry_out(&action, say);
        }
    };
    let Some(action) = action else {
        if ticket.is_some() {
            return Refusal::from(HookError::NoAction).carry_out("?", say);
        }
        say("syncpoint-hook is run by CRIU, as its action script; see docs/protocol.md");
        return 2;
    };
    // Actions of CRIU that no session has a step at, also ones that it may get some day.
    let Ok(hook) = action.parse::<Hook>() else { return 0 };
    let done = match ticket {
        Some(ticket) if matches!(ticket.place, Place::Socket(_)) => {
            Member::at(hook, ticket, folder, env, connect).act().map_err(Into::into)
        }
        ticket => elsewhere(hook, ticket),
    };
    match done.map_err(|stopped| *stopped) {
        Ok(()) => 0,
        Err(Stopped { refusal, log_file }) => refusal.carry_out(hook.as_str(), |words| {
            if let Some(file) = log_file {
                standalone::log(&file, words);
            }
            say(words);
        }),
    }
}

/// CRIU runs a session's hook by its path.
fn folder_of(args: &[OsString]) -> &Path {
    args.first().and_then(|name| Path::new(name).parent()).unwrap_or(Path::new(""))
}

/// Whether the link stands in a member's folder of a session: such a hook must never take a missing ticket for a plain
/// run of CRIU.
fn in_session(args: &[OsString]) -> bool {
    let name = Path::new(args.first().map_or(OsStr::new(""), OsString::as_os_str));
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

fn criu_pid(env: &impl Fn(&str) -> Option<OsString>) -> Option<i32> {
    env(IMAGE_DIR)?.to_str()?.strip_prefix("/proc/")?.split_once('/')?.0.parse().ok()
}

/// What to kill of a member whose ticket cannot be had. It cannot be known whether the session dumps or restores, but
/// only a restore comes to pre-resume, and there only killing stops anything. At post-resume it is too late: whoever came
/// there was released, or the hook at pre-resume was lost as well.
fn without_ticket(action: &str, env: &impl Fn(&str) -> Option<OsString>) -> Kill {
    match (action.parse(), init_pid(env)) {
        (Ok(Hook::PreResume), Some(pid)) => match Tasks::of(pid) {
            Ok(tasks) => Kill::Held(Held { tasks, criu: criu(criu_pid(env)) }, None),
            Err(_) => Kill::Number(pid),
        },
        (Ok(_) | Err(_), _) => Kill::Nothing,
    }
}

/// The moment this long from now.
fn after(wait: Duration) -> Instant {
    let now = Instant::now();
    // A century is a deadline that never comes; it stands for what the clock cannot add.
    now.checked_add(wait).unwrap_or(now + Duration::from_secs(100 * 365 * 86_400))
}

/// CRIU, to be stopped and killed: only a parent that says itself that it is CRIU.
fn criu(pid: Option<i32>) -> Option<Process> {
    Process::parent().ok().filter(|parent| pid == Some(parent.pid()))
}

/// One member at one hook.
struct Member<'a> {
    folder: &'a Path,
    ticket: Ticket,
    hook: Hook,
    init: Option<i32>,
    criu: Option<i32>,
    connect: Connect,
    /// The connection over which it joined, where it did so just now.
    joined: Cell<Option<Client>>,
}

impl<'a> Member<'a> {
    fn at(
        hook: Hook,
        ticket: Ticket,
        folder: &'a Path,
        env: &impl Fn(&str) -> Option<OsString>,
        connect: Connect,
    ) -> Self {
        Self { folder, ticket, hook, init: init_pid(env), criu: criu_pid(env), connect, joined: Cell::new(None) }
    }

    /// Does what the session has for this hook.
    fn act(&self) -> Result<(), Refusal> {
        match self.ticket.kind.duty(self.hook) {
            Duty::Pass => Ok(()),
            Duty::Wait(place) => self.wait(place),
            Duty::Report => self.report(),
        }
    }

    /// Waits at the barrier `place` and does what was decided.
    fn wait(&self, place: usize) -> Result<(), Refusal> {
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
            (SessionKind::Restore, Some(pid)) => Some(Tasks::of(pid).map_err(|error| Refusal {
                error: HookError::Watch(error),
                kill: if kills { Kill::Number(pid) } else { Kill::Nothing },
            })?),
        };
        if kills {
            let tasks = tasks.ok_or(HookError::NoInit)?;
            return self.pass_the_door(Held { tasks, criu: criu(self.criu) }, &notes, deadline);
        }
        if (self.ticket.kind, place) == (SessionKind::Dump, 0) {
            self.look_for_handed(deadline)?;
        }
        let hold = self.hold_dumped(place);
        // Whatever can be done before the answer is: all members are let go at once, and the last one waits for the others' work.
        let noting = if place == 0 { Some(notes.prepare_hold().map_err(HookError::Note)?) } else { None };
        let asked = self.ask(tasks.as_ref(), deadline);
        if let Some(guard) = hold {
            // It lets the tasks go, whatever was decided: CRIU resumes them, now or when it has undone its dump.
            guard.end();
        }
        match (asked, tasks) {
            (Ok(()), _) => match noting {
                Some(noting) => Ok(noting.begins_now(self.hold()).map_err(HookError::Note)?),
                None => Ok(()),
            },
            // What a dead CRIU has restored runs on, and nobody else is left to kill it.
            (Err(error @ HookError::Lost(Lost::Criu)), Some(tasks)) => Err(Refusal { error, kill: Kill::Tasks(tasks) }),
            (Err(error), _) => Err(error.into()),
        }
    }

    /// At the first barrier of a dump: CRIU would send what it is to send through a descriptor that it was not handed.
    fn look_for_handed(&self, deadline: Instant) -> Result<(), HookError> {
        let criu = Process::parent().map_err(HookError::Watch)?;
        let Some(number) = handed::missing(self.folder, criu.pid()) else { return Ok(()) };
        let error = HookError::NotHanded { number };
        // Whatever is answered, this member does not go on.
        let _ = self.vote(Vote::No { reason: error.to_string() }, None, deadline);
        Err(error)
    }

    /// At the last barrier of a dump: freezes the tasks, under a guard that lets them go. Where they cannot be frozen CRIU alone
    /// holds them.
    fn hold_dumped(&self, place: usize) -> Option<Guard> {
        let last = self.ticket.kind == SessionKind::Dump && place + 1 == self.ticket.kind.barriers().len();
        let init = self.init.filter(|_| last)?;
        let held = Held { tasks: Tasks::of(init).ok()?, criu: criu(self.criu) };
        let guard = Guard::start(guard::Duty::Dump, &held, self.folder).ok()?;
        Frozen::freeze(init);
        Some(guard)
    }

    /// At pre-resume: under a guard and with CRIU stopped, waits for the release and notes it.
    fn pass_the_door(&self, held: Held, notes: &Notes, deadline: Instant) -> Result<(), Refusal> {
        let guard = match Guard::start(guard::Duty::Door, &held, self.folder) {
            Ok(guard) => guard,
            Err(error) => return Err(Refusal { error: HookError::Guard(error), kill: Kill::Held(held, None) }),
        };
        held.stop_criu();
        let released = self.ask(Some(&held.tasks), deadline);
        match released.and_then(|()| notes.note_release().map_err(HookError::Note)) {
            Ok(()) => {
                // It lets CRIU go, by the note.
                guard.end();
                held.let_go();
                Ok(())
            }
            Err(error) => Err(Refusal { error, kill: Kill::Held(held, Some(guard)) }),
        }
    }

    /// Votes for going on, unless the tasks are gone or somebody newer acts for the application, and waits for what was decided.
    fn ask(&self, tasks: Option<&Tasks>, deadline: Instant) -> Result<(), HookError> {
        if let Some(Err(error)) = self.ticket.fence.as_ref().map(Fence::check) {
            // Whatever is answered, and whether anybody hears it, this member does not go on.
            let _ = self.vote(Vote::No { reason: error.to_string() }, None, deadline);
            return Err(HookError::Fenced(error));
        }
        match tasks {
            Some(tasks) if tasks.are_gone() => {
                self.vote(Vote::No { reason: "its tasks are gone".to_owned() }, None, deadline)
            }
            Some(_) | None => self.vote(Vote::Yes, tasks, deadline),
        }
    }

    fn vote(&self, vote: Vote, tasks: Option<&Tasks>, deadline: Instant) -> Result<(), HookError> {
        let criu = Process::parent().map_err(HookError::Watch)?;
        let launcher = match self.ticket.life {
            // Whatever is wrong with the pipe, nobody would say that this member need not wait any longer.
            true => Some(life::watch(self.folder).map_err(|_| HookError::Lost(Lost::Launcher))?),
            false => None,
        };
        let mut client = match self.joined.take() {
            Some(mut client) => {
                client.until(deadline);
                client
            }
            None => (self.connect)(&self.ticket.place, deadline).map_err(HookError::Lost)?,
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
        let watch = Watch { criu: Some(&criu), tasks, launcher: launcher.as_ref() };
        match client.receive::<wire::Answer>(watch).map_err(HookError::Lost)?.reply {
            Reply::Proceed => Ok(()),
            Reply::Abort { reason } => Err(HookError::Aborted { reason }),
        }
    }

    /// At post-resume. Tasks that were released run, whatever becomes of the rendezvous; tasks that were not must not.
    fn report(&self) -> Result<(), Refusal> {
        if Notes::in_folder(self.folder).released() {
            return Ok(self.vote(Vote::Yes, None, Instant::now() + REPORT)?);
        }
        let kill = match self.init.map(Tasks::of) {
            Some(Ok(tasks)) => Kill::Tasks(tasks),
            Some(Err(_)) | None => Kill::Nothing,
        };
        if let Kill::Tasks(tasks) = &kill {
            tasks.kill();
        }
        let reason = "it was resumed without having been released".to_owned();
        // Whether anybody hears it or not, it is refused.
        let _ = self.vote(Vote::No { reason }, None, Instant::now() + REPORT);
        Err(Refusal { error: HookError::NotReleased, kill })
    }

    /// When to stop waiting at the barrier `place`, also if the rendezvous neither answers nor ends.
    fn deadline(&self, place: usize, notes: &Notes) -> Instant {
        let wait = if place == 0 {
            Duration::from_millis(self.ticket.gather_ms).saturating_add(GRACE)
        } else {
            // The time to hold runs from the first barrier on, and the hooks after it are programs of their own.
            let most = self.hold().saturating_add(GRACE);
            notes.left_to_hold(GRACE).map_or(most, |left| left.min(most))
        };
        after(wait)
    }

    fn hold(&self) -> Duration {
        Duration::from_millis(self.ticket.hold_ms)
    }
}
