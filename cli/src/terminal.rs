//! Asking a person for a secret, on the terminal itself, whatever standard input and output are.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use crate::cancel::Cancel;
use crate::error::{CommandError, While};

/// Longest line that is taken.
const MAX_LINE: u64 = 16 << 10;
/// How often a waiting question looks whether the command was told to stop, in milliseconds.
const LOOK: u8 = 100;

/// What to ask, and what to say where nobody can be asked.
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// Such as `password`.
    pub what: &'static str,
    /// How to give the answer without a terminal.
    pub instead: &'static str,
}

impl Question {
    /// Asks for a line.
    pub async fn ask(self, cancel: &Cancel) -> Result<String, CommandError> {
        let cancel = cancel.clone();
        blocking(move || ask(self, self.what, true, &cancel)).await
    }

    /// Asks for a secret; what is typed is not shown.
    pub async fn ask_secret(self, cancel: &Cancel) -> Result<String, CommandError> {
        let cancel = cancel.clone();
        blocking(move || ask(self, self.what, false, &cancel)).await
    }

    /// Asks for a new secret, twice.
    pub async fn ask_new_secret(self, cancel: &Cancel) -> Result<String, CommandError> {
        let first = self.ask_secret(cancel).await?;
        let (cancel, again) = (cancel.clone(), format!("{} again", self.what));
        let second = blocking(move || ask(self, &again, false, &cancel)).await?;
        if first == second { Ok(first) } else { Err(CommandError::usage("the two entries differ")) }
    }
}

/// The first line of standard input, without its end.
pub fn line_of_stdin() -> Result<String, CommandError> {
    line(io::stdin().lock()).doing(|| "standard input cannot be read".to_owned())
}

/// Runs what blocks on a thread of its own, so that signals are heard meanwhile.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CommandError> + Send + 'static,
) -> Result<T, CommandError> {
    tokio::task::spawn_blocking(work).await.doing(|| "the command's thread ended early".to_owned())?
}

fn ask(question: Question, what: &str, shown: bool, cancel: &Cancel) -> Result<String, CommandError> {
    let terminal = match File::options().read(true).write(true).open("/dev/tty") {
        Ok(terminal) => terminal,
        Err(_) => {
            let reason = format!("a {} is needed, and there is no terminal to ask on", question.what);
            return Err(CommandError::usage(reason).hint(question.instead));
        }
    };
    answer(&terminal, what, shown, cancel).doing(|| "the terminal cannot be read".to_owned())
}

fn answer(mut terminal: &File, what: &str, shown: bool, cancel: &Cancel) -> io::Result<String> {
    write!(terminal, "{what}: ")?;
    let hidden = if shown { None } else { Some(Hidden::new(terminal.as_fd())?) };
    // The terminal hands over whole lines, so that the read after the wait does not block.
    while poll(&mut [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)], PollTimeout::from(LOOK))? == 0 {
        cancel.check()?;
    }
    let answer = line(io::BufReader::new(terminal));
    if let Some(hidden) = hidden {
        drop(hidden);
        writeln!(terminal)?;
    }
    answer
}

fn line(from: impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.take(MAX_LINE).read_line(&mut line)?;
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}

/// The terminal while it does not show what is typed.
struct Hidden<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Hidden<'a> {
    fn new(terminal: BorrowedFd<'a>) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(terminal, SetArg::TCSAFLUSH, &hidden)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        let _ = tcsetattr(self.terminal, SetArg::TCSAFLUSH, &self.before);
    }
}
