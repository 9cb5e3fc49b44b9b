//! The program: which calls are for us, and what becomes of those that a container gets while it is held.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::args::Invocation;
use crate::config::Bundle;
use crate::create::{CreateError, abort, create, take_over};
use crate::gate::{self, Criu};
use crate::report::report;
use crate::state::Folder;
use crate::supervise::{SUPERVISE, supervise};
use crate::ticket::TicketError;
use crate::wire::{Answer, Ask, hear, say};
use crate::words::chain;

/// How the program ends: 0, or 1 when it failed.
pub type ExitStatus = u8;

/// Why a call did not do what it should, in words for the engine.
struct Failed(String);

impl<E: std::error::Error> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(chain(&error))
    }
}

/// Does what one call of the program asks for. `args` begin with the program's name; `env` is its environment.
///
/// A call that is the real runtime's becomes the real runtime, and does not return.
pub fn run(args: impl IntoIterator<Item = OsString>, env: impl Fn(&str) -> Option<OsString>) -> ExitStatus {
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_default();
    let criu = Criu::read(|name| env(name)?.into_string().ok());
    if let (Some(folder), Some(criu)) = (gate::recognise(&program, criu.is_some()), criu) {
        return match gate::pass(&folder, &criu) {
            Ok(()) => 0,
            Err(error) => {
                // CRIU's log, in the form of its own error lines.
                let _ = writeln!(io::stderr(), "Error (syncpoint-runtime): {}: {error}", criu.action);
                1
            }
        };
    }
    let args: Vec<OsString> = args.collect();
    if let [mode, folder, creator] = &args[..]
        && mode == SUPERVISE
    {
        let creator = creator.to_str().and_then(|creator| creator.parse().ok()).unwrap_or_default();
        return u8::from(supervise(Folder::at(PathBuf::from(folder)), creator).is_err());
    }
    let call = match Invocation::parse(args) {
        Ok(call) => call,
        Err(error) => {
            let _ = writeln!(io::stderr(), "syncpoint-runtime: {error}");
            return 1;
        }
    };
    match act(&call) {
        Ok(()) => 0,
        Err(Failed(words)) => {
            report(&call, &words);
            1
        }
    }
}

fn act(call: &Invocation) -> Result<(), Failed> {
    let Some(command) = call.command.as_deref() else { return become_real(call) };
    let Some(id) = call.id() else { return become_real(call) };
    if matches!(command, "create" | "run") {
        let dir = call.value(&["bundle", "b"]).map_or(Path::new("."), Path::new);
        let folder = Folder::of(call, id);
        return match Bundle::of_member(dir) {
            None => {
                if folder.is_there() {
                    take_over(&folder).and_then(|held| folder.remove(&held))?;
                }
                become_real(call)
            }
            Some(_) if command == "run" => {
                Err(Failed(format!("{id} is to be restored: create and start it, since run does both at once")))
            }
            Some(member) => {
                let (bundle, seat) = member?;
                match create(call, &bundle, &seat, id) {
                    // It was restored and ran. Whoever starts it again wants what any container does then.
                    Err(CreateError::Ticket(TicketError::Missing { .. })) if folder.ran() => become_real(call),
                    created => Ok(created?),
                }
            }
        };
    }
    let folder = Folder::of(call, id);
    if !folder.is_there() {
        return become_real(call);
    }
    match command {
        "start" => start(call, &folder, id),
        "state" => state(call, &folder),
        "kill" => match abort(&folder) {
            Some(Answer::Gone) => Ok(()),
            Some(Answer::Failed { words }) => Err(Failed(words)),
            _ => become_real(call),
        },
        "delete" => delete(call, &folder, id),
        _ if folder.connect().is_ok() => {
            Err(Failed(format!("{command} is not possible: {id} is restored and held, until it is started")))
        }
        _ => become_real(call),
    }
}

/// Nothing of this call is our business.
fn become_real(call: &Invocation) -> Result<(), Failed> {
    let error = Command::new(&call.real).args(&call.arguments).exec();
    Err(Failed(format!("{} cannot be run: {error}", call.real.to_string_lossy())))
}

fn start(call: &Invocation, folder: &Folder, id: &str) -> Result<(), Failed> {
    let gone = || Failed(format!("{id} was restored, and was lost before it was started: delete it"));
    let stream = match folder.connect() {
        Err(_) if !folder.is_there() => return become_real(call),
        stream => stream.map_err(|_| gone())?,
    };
    say(&stream, &Ask::Start)?;
    match hear(&stream)? {
        Some(Answer::Started) => Ok(()),
        Some(Answer::Failed { words }) => Err(Failed(format!("{id} was not restored: {words}"))),
        _ => Err(gone()),
    }
}

/// The real runtime sees tasks, and says that they run.
fn state(call: &Invocation, folder: &Folder) -> Result<(), Failed> {
    let ask = || {
        let stream = folder.connect()?;
        say(&stream, &Ask::State)?;
        hear::<Answer>(&stream)
    };
    // Without an answer there is no supervisor any more, or the tasks run by now.
    let Ok(Some(Answer::Held { .. })) = ask() else { return become_real(call) };
    let answer = Command::new(&call.real).args(&call.arguments).stderr(Stdio::inherit()).output()?;
    let mut state: Value = match serde_json::from_slice(&answer.stdout) {
        Ok(state) if answer.status.success() => state,
        _ => return Err(Failed("the state of a container that is held cannot be read".to_owned())),
    };
    if let Some(status) = state.get_mut("status") {
        *status = "created".into();
    }
    writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&state)?)?;
    Ok(())
}

fn delete(call: &Invocation, folder: &Folder, id: &str) -> Result<(), Failed> {
    if let Some(Answer::Failed { words }) = abort(folder) {
        return Err(Failed(words));
    }
    let held = take_over(folder)?;
    folder.remove(&held)?;
    // It is gone as its engine wants it; the real runtime would complain that there is nothing to delete.
    if call.root.join(id).exists() { become_real(call) } else { Ok(()) }
}
