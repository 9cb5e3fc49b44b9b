//! The supervisor of one restore: it starts the real runtime, and it alone decides whether the container is let go.
//!
//! ```text
//!                    gate: held                     start
//!   Restoring ─────────────────────▶ Held ─────────────────────▶ Going ──── runtime ended well ───▶ tasks run
//!       │                             │                            │
//!       └── abort, creator gone ──────┴── deadline, gate gone ─────┴── abort ──▶ no ──▶ all killed and taken away
//! ```
//!
//! The first decision stands. The gate hears it over its connection, whose end is a no as well: a supervisor that is killed
//! takes the container with it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, getppid, setsid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Resource, getrlimit};

use crate::criu_log::{RESTORE_LOG, log_lines};
use crate::leftovers::{handle, kill_all, take_away};
use crate::report::errors_of;
use crate::state::{CRIU_CONFIG, Folder, Held, Process, Record};
use crate::wire::{Answer, Ask, hear, say};
use crate::words::chain;

/// The argument that makes this program a supervisor.
pub(crate) const SUPERVISE: &str = "@supervise";

/// The number of the descriptor by which an attempt's processes are found: runtimes take the lowest free ones for what they
/// hand on, and CRIU the highest ones.
const NUMBER: u64 = 900;
/// How long whoever connects may take to say what he wants.
const SPEAKING: Duration = Duration::from_secs(1);
/// How long CRIU may take to undo a restore by itself, once its gate said no.
const UNDOING: Duration = Duration::from_secs(1);
/// After what time whoever was killed and is there still is killed again.
const AGAIN: Duration = Duration::from_millis(200);

/// The log of the real runtime in the ticket's work folder.
const RUNTIME_LOG: &str = "runtime.log";

/// Where a restore is.
enum Phase {
    Restoring,
    Held { gate: UnixStream, until: Instant },
    Going,
}

struct Supervisor {
    folder: Folder,
    record: Record,
    listener: UnixListener,
    runtime: Child,
    runtime_handle: OwnedFd,
    phase: Phase,
    init: Option<i32>,
    /// The process that called, until its engine has the answer, and its connection.
    creator: Option<(OwnedFd, Option<UnixStream>)>,
    starters: Vec<UnixStream>,
    aborters: Vec<UnixStream>,
    /// Why it is not to run.
    no: Option<String>,
    /// When everything of it is killed.
    kill_at: Option<Instant>,
}

/// Restores a container whose folder `creator`, the calling process, has made and lets go of.
pub(crate) fn supervise(folder: Folder, creator: i32) -> io::Result<()> {
    // It fails for the leader of a session, which needs no new one.
    let _ = setsid();
    let held = folder.wait()?;
    let gone = || io::Error::other("the process that created the container is gone");
    let record = folder.record()?.filter(|record| record.creator == creator).ok_or_else(gone)?;
    let creator_handle = handle(creator.cast_unsigned()).map_err(|_| gone())?;
    if getppid().as_raw() != creator {
        return Err(gone());
    }
    let listener = folder.listen()?;
    let started = start(&folder, &record);
    let_go_of_streams()?;
    let runtime = match started {
        Ok(runtime) => runtime,
        Err(error) => {
            let words = format!("{} cannot be started: {error}", record.real);
            return refuse(&folder, &held, &listener, (&creator_handle, creator), words);
        }
    };
    let runtime_handle = handle(runtime.id())?;
    let supervisor = Supervisor {
        folder,
        record,
        listener,
        runtime,
        runtime_handle,
        phase: Phase::Restoring,
        init: None,
        creator: Some((creator_handle, None)),
        starters: Vec::new(),
        aborters: Vec::new(),
        no: None,
        kill_at: None,
    };
    supervisor.run(&held)
}

/// Starts the real runtime with the container's own standard streams.
fn start(folder: &Folder, record: &Record) -> io::Result<Child> {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    // Not over 900.
    let number = NUMBER.min(most.saturating_sub(1)) as i32;
    let tree = fcntl_dupfd_cloexec(folder.tree()?, number)?;
    fcntl_setfd(&tree, FdFlags::empty())?;
    Command::new(&record.real)
        .args(&record.globals)
        .arg("--log")
        .arg(record.work.join(RUNTIME_LOG))
        .args(["--log-format", "json", "restore"])
        .args(&record.restore)
        .env("CRIU_CONFIG_FILE", folder.path().join(CRIU_CONFIG))
        .spawn()
}

/// The streams are the container's: as long as anybody holds them, nobody reads their end.
fn let_go_of_streams() -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    std::env::set_current_dir("/")
}

/// Takes away what was made, and tells whoever asks.
fn refuse(
    folder: &Folder,
    held: &Held,
    listener: &UnixListener,
    creator: (&OwnedFd, i32),
    words: String,
) -> io::Result<()> {
    let mut aborters = Vec::new();
    let creator = wait_for_creator(listener, creator, &mut aborters);
    let taken_away = take_away(folder, held);
    // Whoever goes away before he hears the answer does not need it.
    for aborter in &aborters {
        let _ = say(aborter, &Answer::Gone);
    }
    if let Some(creator) = creator {
        let _ = say(&creator, &Answer::Failed { words });
    }
    taken_away
}

/// Whether the other end is this process. The `create` of another attempt finds this socket when its own supervisor is
/// gone, and is not to take the place of the one that waits for an answer.
fn is_of(stream: &UnixStream, process: i32) -> bool {
    socket_peercred(stream).is_ok_and(|peer| peer.pid.as_raw_nonzero().get() == process)
}

/// The connection of the creator, who is about to ask: he cannot once the folder is removed. `None`: he is gone.
fn wait_for_creator(
    listener: &UnixListener,
    (creator, pid): (&OwnedFd, i32),
    aborters: &mut Vec<UnixStream>,
) -> Option<UnixStream> {
    loop {
        let mut watched = [PollFd::new(listener, PollFlags::IN), PollFd::new(creator, PollFlags::IN)];
        match poll(&mut watched, None) {
            Ok(_) if watched[0].revents().is_empty() => return None,
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return None,
        }
        let (stream, _) = listener.accept().ok()?;
        match stream.set_read_timeout(Some(SPEAKING)).and_then(|()| hear(&stream)) {
            Ok(Some(Ask::Create)) if is_of(&stream, pid) => return Some(stream),
            Ok(Some(Ask::Abort)) => aborters.push(stream),
            _ => {}
        }
    }
}

impl Supervisor {
    fn run(mut self, held: &Held) -> io::Result<()> {
        loop {
            let ready = self.wait()?;
            if ready.runtime {
                let status = self.runtime.wait()?;
                return self.finish(status, held);
            }
            if ready.creator_speaks {
                self.hear_creator();
            } else if ready.creator_ended {
                self.creator = None;
                self.refuse("whoever created the container is gone".to_owned());
            }
            if ready.gate {
                self.refuse("CRIU or its gate ended while the container was held".to_owned());
            }
            if ready.listener {
                self.accept();
            }
            self.look_at_clock();
        }
    }

    /// Waits until there is something to do.
    fn wait(&self) -> io::Result<Ready> {
        let until = match &self.phase {
            Phase::Held { until, .. } if self.no.is_none() => Some(*until),
            _ => None,
        };
        let left = [until, self.kill_at].into_iter().flatten().min();
        let left = left.map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs().cast_signed(),
            // Never a little too early, or this would spin.
            tv_nsec: i64::from(left.subsec_nanos().min(998_999_999)) + 1_000_000,
        });
        let (ended, speaks) = match &self.creator {
            Some((ended, speaks)) => (Some(ended), speaks.as_ref()),
            None => (None, None),
        };
        let gate = match &self.phase {
            Phase::Held { gate, .. } if self.no.is_none() => Some(gate),
            _ => None,
        };
        let watched = [
            Some(self.runtime_handle.as_fd()),
            Some(self.listener.as_fd()),
            ended.map(AsFd::as_fd),
            speaks.map(AsFd::as_fd),
            gate.map(AsFd::as_fd),
        ];
        let mut polled: Vec<_> =
            watched.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        match poll(&mut polled, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<i32> =
            polled.iter().filter(|fd| !fd.revents().is_empty()).map(|fd| fd.as_fd().as_raw_fd()).collect();
        let is_ready = |index: usize| watched[index].is_some_and(|fd| ready.contains(&fd.as_raw_fd()));
        Ok(Ready {
            runtime: is_ready(0),
            listener: is_ready(1),
            creator_ended: is_ready(2),
            creator_speaks: is_ready(3),
            gate: is_ready(4),
        })
    }

    fn look_at_clock(&mut self) {
        let now = Instant::now();
        if matches!(&self.phase, Phase::Held { until, .. } if now >= *until) && self.no.is_none() {
            let seconds = self.record.hold_ms / 1000;
            self.refuse(format!("it was held for {seconds} s, and nobody started it"));
        }
        if self.kill_at.is_some_and(|at| now >= at) {
            // What could not be killed is tried again, and looked for once more when all is taken away.
            let _ = kill_all(&self.folder);
            self.kill_at = Some(now + AGAIN);
        }
    }

    /// It is not to run. The first reason is the one that is told.
    fn refuse(&mut self, why: String) {
        if self.no.is_some() {
            return;
        }
        let wait = match &self.phase {
            // CRIU undoes everything by itself, unless another hook keeps it.
            Phase::Held { gate, .. } if say(gate, &Answer::No { why: why.clone() }).is_ok() => UNDOING,
            _ => Duration::ZERO,
        };
        self.kill_at = Some(Instant::now() + wait);
        self.no = Some(why);
    }

    fn hear_creator(&mut self) {
        let Some((_, Some(stream))) = &self.creator else { return };
        let taken = matches!(hear(stream), Ok(Some(Ask::Taken)));
        self.creator = None;
        if !taken {
            self.refuse("whoever created the container gave up".to_owned());
        }
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        let asked = stream.set_read_timeout(Some(SPEAKING)).and_then(|()| hear(&stream));
        let Ok(Some(asked)) = asked else { return };
        // Whoever goes away before he hears the answer does not need it.
        let _ = match asked {
            Ask::Create => self.meet(stream),
            Ask::Held { init } => self.hold(stream, init),
            Ask::Start => self.go(stream),
            Ask::Abort => {
                self.refuse("it was killed or deleted before it was started".to_owned());
                self.aborters.push(stream);
                Ok(())
            }
            Ask::State => say(&stream, &self.init.map_or(Answer::Restoring, |init| Answer::Held { init })),
            Ask::Taken => Ok(()),
        };
    }

    fn meet(&mut self, stream: UnixStream) -> io::Result<()> {
        let Some((_, connection)) = &mut self.creator else { return Ok(()) };
        if !is_of(&stream, self.record.creator) {
            return Ok(());
        }
        if let Some(init) = self.init.filter(|_| self.no.is_none()) {
            say(&stream, &Answer::Held { init })?;
        }
        *connection = Some(stream);
        Ok(())
    }

    fn hold(&mut self, gate: UnixStream, init: i32) -> io::Result<()> {
        let noted =
            Process::of(init).ok_or(io::ErrorKind::NotFound.into()).and_then(|init| self.folder.write_init(init));
        if let Err(error) = noted {
            self.refuse(format!("the container's first process cannot be noted: {error}"));
        }
        if let Some(why) = &self.no {
            return say(&gate, &Answer::No { why: why.clone() });
        }
        self.init = Some(init);
        self.phase = Phase::Held { gate, until: Instant::now() + Duration::from_millis(self.record.hold_ms) };
        match &self.creator {
            Some((_, Some(creator))) => say(creator, &Answer::Held { init }),
            _ => Ok(()),
        }
    }

    fn go(&mut self, starter: UnixStream) -> io::Result<()> {
        if let Some(why) = &self.no {
            return say(&starter, &Answer::Failed { words: why.clone() });
        }
        match &self.phase {
            Phase::Restoring => {
                return say(&starter, &Answer::Failed { words: "it is still being restored".to_owned() });
            }
            Phase::Held { gate, .. } => {
                let told = self.folder.note_released().and_then(|()| say(gate, &Answer::Go));
                self.starters.push(starter);
                match told {
                    Ok(()) => self.phase = Phase::Going,
                    Err(error) => self.refuse(format!("the gate cannot be opened: {error}")),
                }
            }
            Phase::Going => self.starters.push(starter),
        }
        Ok(())
    }

    /// The real runtime has ended: the tasks run, or nothing of the container is to be left.
    fn finish(mut self, status: ExitStatus, held: &Held) -> io::Result<()> {
        let is_released = matches!(self.phase, Phase::Going) && self.no.is_none();
        if status.success() && is_released {
            let noted = self.folder.note_run().and_then(|()| self.folder.put_config_back(&self.record.bundle));
            let removed = noted.and_then(|()| self.folder.remove(held));
            for starter in &self.starters {
                let _ = say(starter, &Answer::Started);
            }
            return removed;
        }
        let mut words = self.words(status, is_released);
        if let Some((creator, connection @ None)) = &mut self.creator {
            let creator = (&*creator, self.record.creator);
            *connection = wait_for_creator(&self.listener, creator, &mut self.aborters);
        }
        let taken_away = take_away(&self.folder, held);
        if let Err(error) = &taken_away {
            words = format!("{words}; what is left of it cannot be taken away: {}", chain(error));
        }
        let creator = self.creator.as_ref().and_then(|(_, creator)| creator.as_ref());
        for asker in self.starters.iter().chain(creator) {
            let _ = say(asker, &Answer::Failed { words: words.clone() });
        }
        for aborter in &self.aborters {
            let answer = if taken_away.is_ok() { Answer::Gone } else { Answer::Failed { words: words.clone() } };
            let _ = say(aborter, &answer);
        }
        taken_away
    }

    /// Why it was not restored.
    fn words(&self, status: ExitStatus, is_released: bool) -> String {
        if let Some(why) = &self.no {
            return why.clone();
        }
        if status.success() && !is_released {
            return "CRIU did not stop at post-restore, so the container could not be held".to_owned();
        }
        let said = errors_of(&self.record.work.join(RUNTIME_LOG));
        let said = if said.is_empty() { status.to_string() } else { said };
        let log = self.record.work.join(RESTORE_LOG);
        let lines = if log.exists() { log_lines(&log) } else { Vec::new() };
        let criu = if lines.is_empty() { String::new() } else { format!("; CRIU: {}", lines.join("; ")) };
        format!("{}: {said}{criu}", self.record.real)
    }
}

/// What a wait found.
struct Ready {
    runtime: bool,
    listener: bool,
    creator_ended: bool,
    creator_speaks: bool,
    gate: bool,
}
