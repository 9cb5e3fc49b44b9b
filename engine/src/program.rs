//! Runs the programs of an engine: with a time limit, bounded output, and errors that say what the program said.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use image_format::one_line;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::attach::{Attachment, InheritedFd};
use crate::open_files;
use runtime::words::chain;

/// How long an engine may take to answer a question. `podman ps` waits for whoever restores or removes a container.
const QUESTION: Duration = Duration::from_secs(60);

/// The variable that names a configuration file to CRIU (since CRIU 3.12).
const CRIU_CONFIG_FILE: &str = "CRIU_CONFIG_FILE";

/// The most that is read of an answer: some hundred thousand containers.
const LONGEST_ANSWER: usize = 64 << 20;

/// The most that is kept of what a program says about an error.
const LONGEST_WORDS: usize = 2048;

/// What a program did.
#[derive(Debug)]
pub struct Ran {
    pub status: ExitStatus,
    /// What it printed.
    pub answer: Vec<u8>,
    /// The last of what it said on its standard error stream, without control characters.
    pub words: String,
}

/// Why a program gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// It is not installed, or cannot be started.
    #[error("{program} cannot be started")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its output could not be read.
    #[error("what {program} prints cannot be read")]
    Read {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not end in time, and was killed.
    #[error("`{command}` did not end within {} s", limit.as_secs())]
    Slow {
        /// The command line.
        command: String,
        /// How long it was given.
        limit: Duration,
    },
    /// It printed more than any sensible answer.
    #[error("`{command}` printed more than {LONGEST_ANSWER} bytes")]
    TooLong {
        /// The command line.
        command: String,
    },
    /// It failed.
    #[error("`{command}` failed ({status}): {words}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said last.
        words: String,
    },
}

impl ProgramError {
    /// Whether the program is not there at all.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Start { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A program and its arguments.
#[derive(Debug)]
pub struct Program {
    name: Cow<'static, str>,
    arguments: Vec<OsString>,
    /// The configuration that CRIU reads in addition to those that it would read anyway.
    criu_config: Option<PathBuf>,
    /// What ties it to the session of a dump.
    attachment: Option<Attachment>,
}

impl Program {
    /// A program of this name, and its arguments.
    pub fn new<S: AsRef<OsStr>>(name: impl Into<Cow<'static, str>>, arguments: impl IntoIterator<Item = S>) -> Self {
        Self {
            name: name.into(),
            arguments: arguments.into_iter().map(|argument| argument.as_ref().to_owned()).collect(),
            criu_config: None,
            attachment: None,
        }
    }

    /// One argument more.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// More arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Runs it as a part of a restore's session: CRIU reads the session's configuration first, then the one that the
    /// container's annotation names, or the host's. Of two action scripts it runs both. podman, conmon and runtimes hand
    /// the variable on at a restore (run: podman 5.4, runc 1.1); at a dump podman does not.
    pub fn criu_reads(mut self, config: &Path) -> Self {
        self.criu_config = Some(config.to_owned());
        self
    }

    /// Runs it as a part of a dump's session.
    pub fn attached(mut self, attachment: Attachment) -> Self {
        self.attachment = Some(attachment);
        self
    }

    /// The command line, for messages.
    pub fn line(&self) -> String {
        let mut line = self.name.clone().into_owned();
        for argument in &self.arguments {
            line.push(' ');
            line.push_str(&argument.to_string_lossy());
        }
        line
    }

    /// Asks a question and takes whatever it answers; what takes too long is killed.
    pub async fn ask(self) -> Result<Ran, ProgramError> {
        self.ask_within(QUESTION).await
    }

    /// As [`Program::ask`], with a limit of its own.
    pub async fn ask_within(self, limit: Duration) -> Result<Ran, ProgramError> {
        let mut command = self.command(Stdio::piped(), Stdio::piped());
        command.kill_on_drop(true);
        match timeout(limit, self.run(command)).await {
            Ok(ran) => ran,
            Err(_) => Err(ProgramError::Slow { command: self.line(), limit }),
        }
    }

    /// Asks a question to which there must be an answer.
    pub async fn answer(self) -> Result<Vec<u8>, ProgramError> {
        self.answer_within(QUESTION).await
    }

    /// As [`Program::answer`], with a limit of its own.
    pub async fn answer_within(self, limit: Duration) -> Result<Vec<u8>, ProgramError> {
        let line = self.line();
        let ran = self.ask_within(limit).await?;
        if ran.status.success() {
            Ok(ran.answer)
        } else {
            Err(ProgramError::Failed { command: line, status: ran.status, words: ran.words })
        }
    }

    /// Runs it for as long as it wants, or until `kill`. It is **not** killed when the launcher dies: half of an engine
    /// is harder to clean up after than an engine that finds that its hooks say no.
    ///
    /// `output` takes what it says. A file, for what a restore starts may keep the stream open as long as it runs.
    pub async fn run_until(self, output: &File, kill: &CancellationToken) -> Result<ExitStatus, ProgramError> {
        self.run_with(Stdio::null(), output, kill).await
    }

    /// Runs it to its end; a failure is told with its own words.
    pub async fn finish(self, input: Stdio, kill: &CancellationToken) -> Result<(), String> {
        let (name, output) = (self.name.clone(), tempfile::tempfile());
        let output = output.map_err(|error| format!("no temporary file: {error}"))?;
        let status = self.run_with(input, &output, kill).await.map_err(|error| chain(&error))?;
        if status.success() {
            return Ok(());
        }
        Err(ended(&name, status, &words_of(&output).unwrap_or_default()))
    }

    /// The same as [`Program::run_until`] with a standard input.
    pub async fn run_with(
        mut self,
        input: Stdio,
        output: &File,
        kill: &CancellationToken,
    ) -> Result<ExitStatus, ProgramError> {
        let stream = || output.try_clone().map(Stdio::from);
        let (Ok(first), Ok(second)) = (stream(), stream()) else {
            return Err(self.start_error(io::Error::other("no more file descriptors")));
        };
        let mut command = self.command(first, second);
        command.stdin(input);
        // The command goes with the call: it holds the input and what is handed on, and whoever has the other end waits until nobody does.
        let spawn = |mut command: Command| command.spawn();
        let child = match self.attachment.take() {
            None => spawn(command),
            Some(Attachment { cover, handed }) => {
                if let Some(InheritedFd { descriptor: parent_fd, number: child_fd }) = handed {
                    let mapping = FdMapping { parent_fd, child_fd };
                    command.fd_mappings(vec![mapping]).map_err(|error| self.start_error(io::Error::other(error)))?;
                }
                let runtime = Handle::current();
                cover.within(move || {
                    let _entered = runtime.enter();
                    spawn(command)
                })
            }
        };
        let mut child = child.map_err(|source| self.start_error(source))?;
        let ended = tokio::select! {
            ended = child.wait() => ended,
            () = kill.cancelled() => {
                // It may have ended by itself in the same moment.
                let _ = child.start_kill();
                child.wait().await
            }
        };
        ended.map_err(|source| self.read_error(source))
    }

    fn command(&self, output: Stdio, errors: Stdio) -> Command {
        let mut command = open_files::command(&self.name);
        command.envs(self.criu_config.iter().map(|path| (CRIU_CONFIG_FILE, path)));
        command.args(&self.arguments).stdin(Stdio::null()).stdout(output).stderr(errors);
        // What a terminal sends to the whole group is for the launcher to act on; an engine that dies in the middle of a
        // restore leaves a runtime and a CRIU behind.
        command.process_group(0);
        command
    }

    async fn run(&self, mut command: Command) -> Result<Ran, ProgramError> {
        let mut child = command.spawn().map_err(|source| self.start_error(source))?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let ran = tokio::try_join!(child.wait(), whole(output), tail(errors));
        match ran.map_err(|source| self.read_error(source))? {
            (status, Some(answer), words) => Ok(Ran { status, answer, words }),
            (_, None, _) => Err(ProgramError::TooLong { command: self.line() }),
        }
    }

    fn start_error(&self, source: io::Error) -> ProgramError {
        ProgramError::Start { program: self.name.clone().into_owned(), source }
    }

    fn read_error(&self, source: io::Error) -> ProgramError {
        ProgramError::Read { program: self.name.clone().into_owned(), source }
    }
}

/// How a program failed, as a fragment.
pub fn ended(program: &str, status: ExitStatus, words: &str) -> String {
    match words {
        "" => format!("{program} ended with {status}"),
        words => format!("{program} ended with {status}: {words}"),
    }
}

/// All that comes, or `None` if that is too much; then the rest is read and thrown away, so that the program ends.
async fn whole(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Option<Vec<u8>>> {
    let Some(mut stream) = stream else { return Ok(Some(Vec::new())) };
    let mut bytes = Vec::new();
    (&mut stream).take(LONGEST_ANSWER as u64 + 1).read_to_end(&mut bytes).await?;
    if bytes.len() <= LONGEST_ANSWER {
        return Ok(Some(bytes));
    }
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(None)
}

/// The last of what comes, as text.
async fn tail(stream: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let Some(mut stream) = stream else { return Ok(String::new()) };
    let mut kept = Vec::new();
    let mut piece = vec![0; 8192];
    loop {
        let count = stream.read(&mut piece).await?;
        if count == 0 {
            return Ok(words(&kept));
        }
        kept.extend_from_slice(&piece[..count]);
        let over = kept.len().saturating_sub(2 * LONGEST_WORDS);
        kept.drain(..over);
    }
}

/// The last of what was written to a file, as text.
pub fn words_of(mut file: &File) -> io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(2 * LONGEST_WORDS as u64)))?;
    let mut bytes = Vec::new();
    file.take(2 * LONGEST_WORDS as u64).read_to_end(&mut bytes)?;
    Ok(words(&bytes))
}

/// What a program said last, fit for a message: one line, bounded, nothing that a terminal would act on.
pub fn words(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    let clean = one_line(&lines, usize::MAX);
    let over = clean.len().saturating_sub(LONGEST_WORDS);
    let start = clean.char_indices().map(|(start, _)| start).find(|start| *start >= over);
    start.map_or_else(String::new, |start| clean[start..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Program {
        Program::new("sh", ["-c", script])
    }

    #[tokio::test]
    async fn answers_and_words_are_kept_apart() {
        let ran = sh("echo out; echo 'Error: no' >&2; exit 3").ask().await.unwrap();
        assert_eq!((ran.answer.as_slice(), ran.words.as_str()), (b"out\n".as_slice(), "Error: no"));
        assert_eq!(ran.status.code(), Some(3));
        let error = sh("echo why >&2; false").answer().await.unwrap_err().to_string();
        assert!(error.ends_with("why") && error.contains("sh -c"), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_there_and_what_is_slow() {
        let error = Program::new("syncpoint-no-such-program", [""; 0]).ask().await.unwrap_err();
        assert!(error.is_missing(), "{error}");
        let error = sh("exec sleep 100").ask_within(Duration::from_millis(20)).await.unwrap_err();
        assert!(matches!(error, ProgramError::Slow { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_running_program_can_be_killed_and_its_words_are_kept() {
        let (kill, output) = (CancellationToken::new(), tempfile::tempfile().unwrap());
        let running = sh("echo begun; sleep 3 & exec sleep 100").run_until(&output, &kill);
        let killing = async {
            while words_of(&output).unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            kill.cancel();
        };
        let (status, ()) = tokio::join!(running, killing);
        assert!(!status.unwrap().success());
        assert_eq!(words_of(&output).unwrap(), "begun");
    }

    #[test]
    fn words_are_one_bounded_line() {
        assert_eq!(words(b"a\n\n  b\x1b[31m\n"), "a; b [31m");
        assert!(words("é".repeat(5000).as_bytes()).len() <= LONGEST_WORDS);
    }
}
