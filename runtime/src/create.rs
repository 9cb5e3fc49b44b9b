//! `create` of a member: everything that can be refused is refused before anything is made.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

use serde_json::Value;

use crate::args::Invocation;
use crate::claims::{Refusal, compare};
use crate::config::{Bundle, read_config, write_config};
use crate::fill::{FillError, fill};
use crate::leftovers::{runs, take_away};
use crate::state::{CRIU_CONFIG, Folder, GATE, Held, LOOK, OWN_SETTINGS, PATIENCE, Record};
use crate::supervise::SUPERVISE;
use crate::ticket::{Seat, Ticket, TicketError};
use crate::wire::{Answer, Ask, hear, say};

/// The most that is read of a member's specification or of a session's configuration for CRIU.
const LARGEST: u64 = 16 << 20;

/// Why a member was not restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    /// It has no ticket.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// It claims what its target does not give.
    #[error("{member} cannot be restored into this container: {}", told(.refusals))]
    Refused { member: String, refusals: Vec<Refusal> },
    /// A file cannot be used.
    #[error("cannot use {path:?}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Its specification is none.
    #[error("{path:?} is no configuration of a container")]
    Spec {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// Its files are not in their place.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// The id is taken.
    #[error("there is a container {id} already")]
    Exists { id: String },
    /// The path would not arrive whole at CRIU.
    #[error("the path {path:?} holds a character that CRIU's configuration does not take")]
    Unquotable { path: PathBuf },
    /// An argument that this program cannot hand on.
    #[error("{0:?} is no text in UTF-8")]
    NotText(std::ffi::OsString),
    /// An older attempt does not go away.
    #[error("an older restore of {id} cannot be ended")]
    Older {
        id: String,
        #[source]
        source: io::Error,
    },
    /// The supervisor cannot be started.
    #[error("the restore cannot be started")]
    Start(#[source] io::Error),
    /// CRIU, the real runtime or somebody's decision.
    #[error("{member} was not restored: {words}")]
    Failed { member: String, words: String },
}

fn told(refusals: &[Refusal]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CreateError {
    move |source| CreateError::File { path: path.to_owned(), source }
}

/// Restores a member into a container and holds it there; writes the container's pid file.
pub(crate) fn create(call: &Invocation, bundle: &Bundle, seat: &Seat, id: &str) -> Result<(), CreateError> {
    let ticket = Ticket::take(&call.run_root, seat)?;
    let member = ticket.member.to_string();
    if let Some(path) = &ticket.spec {
        let spec: Value =
            serde_json::from_slice(&read(path)?).map_err(|source| CreateError::Spec { path: path.clone(), source })?;
        let refusals = compare(&spec, &bundle.config);
        if !refusals.is_empty() {
            return Err(CreateError::Refused { member, refusals });
        }
    }
    let folder = Folder::of(call, id);
    folder.forget_run().map_err(at(folder.path()))?;
    let held = take_over(&folder).map_err(|source| CreateError::Older { id: id.to_owned(), source })?;
    let started = prepare(call, bundle, &ticket, &folder, id).and_then(|()| start(&folder));
    let mut supervisor = match started {
        Ok(supervisor) => supervisor,
        Err(error) => {
            // What went wrong first is what matters; the next attempt finds what could not be removed.
            let _ = folder.put_config_back(&bundle.dir).and_then(|()| folder.remove(&held));
            return Err(error);
        }
    };
    drop(held);
    let failed = |words: String| CreateError::Failed { member: member.clone(), words };
    let stream = loop {
        match folder.connect() {
            Ok(stream) => break stream,
            Err(_) => match supervisor.try_wait().map_err(CreateError::Start)? {
                None => std::thread::sleep(LOOK),
                Some(status) => return Err(failed(format!("its supervisor ended at once ({status})"))),
            },
        }
    };
    say(&stream, &Ask::Create).map_err(CreateError::Start)?;
    match hear(&stream).map_err(CreateError::Start)? {
        Some(Answer::Held { init }) => {
            if let Some(path) = call.value(&["pid-file"]).map(Path::new) {
                write_pid(path, init).map_err(at(path))?;
            }
            say(&stream, &Ask::Taken).map_err(|_| failed("its supervisor is gone".to_owned()))
        }
        Some(Answer::Failed { words }) => Err(failed(words)),
        _ => Err(failed("its supervisor is gone".to_owned())),
    }
}

/// Holds a container's folder; whatever is left in it of an older attempt is ended first.
pub(crate) fn take_over(folder: &Folder) -> io::Result<Held> {
    let start = Instant::now();
    let held = loop {
        if let Some(held) = folder.make()? {
            break held;
        }
        // An older create may not have a supervisor yet: it is asked again and again.
        abort(folder);
        if start.elapsed() > PATIENCE {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(LOOK);
    };
    if folder.record()?.is_none() {
        return Ok(held);
    }
    if runs(folder)? {
        folder.remove(&held)?;
    } else {
        take_away(folder, &held)?;
    }
    drop(held);
    take_over(folder)
}

/// Tells a supervisor that its container is not to run, and waits until nothing of it is left. `None`: there is none.
pub(crate) fn abort(folder: &Folder) -> Option<Answer> {
    let stream = folder.connect().ok()?;
    say(&stream, &Ask::Abort).ok()?;
    hear(&stream).ok()?
}

/// Everything that the supervisor needs.
fn prepare(call: &Invocation, bundle: &Bundle, ticket: &Ticket, folder: &Folder, id: &str) -> Result<(), CreateError> {
    // A failed restore deletes the container, which must not be somebody else's.
    if call.root.join(id).exists() {
        return Err(CreateError::Exists { id: id.to_owned() });
    }
    let config = criu_config(ticket, folder)?;
    fill(bundle, ticket)?;
    let text = |text: std::ffi::OsString| text.into_string().map_err(CreateError::NotText);
    let record = Record {
        creator: std::process::id().cast_signed(),
        id: id.to_owned(),
        member: ticket.member.to_string(),
        real: text(call.real.clone())?,
        globals: call.globals.iter().cloned().map(text).collect::<Result<_, _>>()?,
        restore: restore_arguments(call, bundle, ticket, id).into_iter().map(text).collect::<Result<_, _>>()?,
        bundle: bundle.dir.clone(),
        work: ticket.work.clone(),
        hold_ms: call.hold.as_millis().try_into().unwrap_or(u64::MAX),
    };
    let path = folder.path().join(CRIU_CONFIG);
    let written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    written.and_then(|mut file| file.write_all(&config)).map_err(at(&path))?;
    let gate = folder.path().join(GATE);
    let program = std::env::current_exe().map_err(CreateError::Start)?;
    std::os::unix::fs::symlink(program, &gate).map_err(at(&gate))?;
    folder.write_record(&record).map_err(at(folder.path()))?;
    settle(call, bundle, folder)
}

/// Tells CRIU that tasks stay in the control group into which the real runtime puts CRIU itself: the target's. Otherwise CRIU
/// puts them into the one of the dump, since with cgroup v2 runc 1.1 tells CRIU of no other one; nor does it hand on that the
/// groups are to be ignored. So the bundle names a configuration, until the restore is over. What a container names itself is
/// left as it is.
fn settle(call: &Invocation, bundle: &Bundle, folder: &Folder) -> Result<(), CreateError> {
    let path = folder.path().join(OWN_SETTINGS);
    let host = host_config(call);
    let Some(config) = bundle.with_criu_config(&path.to_string_lossy(), &host.to_string_lossy()) else { return Ok(()) };
    let mut settings = if host.exists() { read(&host)? } else { Vec::new() };
    if !settings.is_empty() && !settings.ends_with(b"\n") {
        settings.push(b'\n');
    }
    settings.extend_from_slice(b"manage-cgroups=ignore\n");
    std::fs::write(&path, settings).map_err(at(&path))?;
    let before = read_config(&bundle.dir).map_err(at(&bundle.dir))?;
    let written = folder.keep_config(&before).and_then(|()| write_config(&bundle.dir, config.to_string().as_bytes()));
    written.map_err(at(&bundle.dir))
}

/// What the real runtime hands to CRIU of a container that names nothing itself.
fn host_config(call: &Invocation) -> PathBuf {
    let runc = PathBuf::from("/etc/criu/runc.conf");
    let crun = PathBuf::from("/etc/criu/crun.conf");
    let is_crun = Path::new(&call.real).file_name().is_some_and(|name| name == "crun");
    if is_crun && crun.exists() { crun } else { runc }
}

/// The session's configuration, and the gate after it: CRIU runs the script that it was told of last before the others.
fn criu_config(ticket: &Ticket, folder: &Folder) -> Result<Vec<u8>, CreateError> {
    let plain = |c: char| {
        !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '\'' | '#' | '\\' | '$' | '`' | ';' | '&')
    };
    let path = folder.path().join(GATE);
    let Some(gate) = path.to_str().filter(|text| text.chars().all(plain)) else {
        return Err(CreateError::Unquotable { path });
    };
    let mut config = read(&ticket.criu_config)?;
    if !config.is_empty() && !config.ends_with(b"\n") {
        config.push(b'\n');
    }
    config.extend_from_slice(format!("action-script={gate}\n").as_bytes());
    Ok(config)
}

/// What follows `restore`.
fn restore_arguments(call: &Invocation, bundle: &Bundle, ticket: &Ticket, id: &str) -> Vec<std::ffi::OsString> {
    let mut arguments: Vec<std::ffi::OsString> = vec!["--detach".into(), "--bundle".into(), bundle.dir.clone().into()];
    arguments.extend(["--image-path".into(), ticket.images.clone().into()]);
    arguments.extend(["--work-path".into(), ticket.work.clone().into()]);
    arguments.extend(["--tcp-established", "--file-locks"].map(Into::into));
    if let Some(socket) = call.value(&["console-socket"]) {
        arguments.extend(["--console-socket".into(), socket.to_owned()]);
    }
    arguments.extend(call.has("no-pivot").then(|| "--no-pivot".into()));
    arguments.extend(ticket.lazily.then(|| "--lazy-pages".into()));
    arguments.push(id.into());
    arguments
}

/// Starts the supervisor with this process's own standard streams, which are the container's.
fn start(folder: &Folder) -> Result<Child, CreateError> {
    let program = std::env::current_exe().map_err(CreateError::Start)?;
    let mut supervisor = Command::new(program);
    supervisor.arg(SUPERVISE).arg(folder.path()).arg(std::process::id().to_string());
    supervisor.spawn().map_err(CreateError::Start)
}

fn write_pid(path: &Path, pid: i32) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&name)?;
    file.write_all(pid.to_string().as_bytes())?;
    std::fs::rename(name, path)
}

fn read(path: &Path) -> Result<Vec<u8>, CreateError> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(LARGEST).read_to_end(&mut bytes)).map_err(at(path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn ticket(criu_config: PathBuf) -> Ticket {
        Ticket {
            version: Ticket::VERSION,
            member: "m".parse().unwrap(),
            session: coordinator::SessionId::from_bytes([7; 16]),
            images: "/i".into(),
            work: "/w".into(),
            criu_config,
            rootfs: None,
            shm: None,
            spec: None,
            lazily: true,
        }
    }

    #[test]
    fn the_gate_stands_before_the_sessions_hook() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("criu.conf");
        std::fs::write(&path, "lazy-pages\naction-script=/s/hook").unwrap();
        let config = criu_config(&ticket(path.clone()), &Folder::at("/r/c".into())).unwrap();
        assert_eq!(String::from_utf8(config).unwrap(), "lazy-pages\naction-script=/s/hook\naction-script=/r/c/gate\n");
        for odd in ["/r r/c", "/r#/c", "/r\"/c", "/r;x/c"] {
            let refused = criu_config(&ticket(path.clone()), &Folder::at(odd.into()));
            assert!(matches!(refused, Err(CreateError::Unquotable { .. })), "{odd}");
        }
        let missing = criu_config(&ticket(top.path().join("none")), &Folder::at("/r/c".into()));
        assert!(matches!(missing, Err(CreateError::File { .. })));
    }

    #[test]
    fn a_restore_is_told_what_create_was() {
        let call = "create --bundle /b --no-pivot --console-socket /c --pid-file /p x".split(' ').map(OsString::from);
        let bundle = Bundle { dir: "/b".into(), config: Value::Null };
        let arguments = restore_arguments(&Invocation::parse(call).unwrap(), &bundle, &ticket("/c".into()), "x");
        let said = arguments.iter().map(|argument| argument.to_str().unwrap()).collect::<Vec<_>>().join(" ");
        assert_eq!(
            said,
            "--detach --bundle /b --image-path /i --work-path /w --tcp-established --file-locks --console-socket /c --no-pivot \
             --lazy-pages x"
        );
    }

    #[test]
    fn a_pid_file_is_there_whole_or_not_at_all() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("pid");
        write_pid(&path, 1234).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1234");
        assert_eq!(std::fs::read_dir(top.path()).unwrap().count(), 1);
    }
}
