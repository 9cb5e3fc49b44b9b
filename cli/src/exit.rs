//! The one table of exit codes. Help, man pages and the reference in `docs/cli.md` are made from it.

use std::fmt::Write as _;
use std::process::ExitCode;

macro_rules! exits {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $meaning:literal;)+) => {
        /// How the program ended.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Exit {
            $($(#[$doc])* $name),+
        }

        impl Exit {
            /// All of them, by code.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The number that the shell sees.
            pub fn code(self) -> u8 {
                match self {
                    $(Self::$name => $code),+
                }
            }

            /// One line for people.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $meaning),+
                }
            }
        }
    };
}

exits! {
    Success = 0, "all is well";
    /// What fits nowhere else.
    Failure = 1, "another failure; the message says which";
    Usage = 2, "the command line makes no sense, or asks for what cannot be done";
    NotFound = 3, "an image, a tag or a file is not there";
    Denied = 4, "the registry or the file system refused access";
    Unverified = 5, "a signature or a digest is missing or wrong";
    Damaged = 6, "the input is damaged, hostile, or of a version that is not understood";
    Refused = 7, "what was asked for cannot be done here; nothing was touched";
    Aborted = 8, "aborted: of a set to restore nothing runs; an application to checkpoint runs on";
    Unreachable = 9, "the store cannot be reached";
    Interrupted = 130, "stopped by SIGINT or SIGTERM";
    BrokenPipe = 141, "whoever read the output went away";
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// The table as it stands at the end of `--help`.
pub fn table() -> String {
    let mut text = String::from("Exit codes:\n");
    for exit in Exit::ALL {
        let _ = writeln!(text, "  {:>3}  {}", exit.code(), exit.meaning());
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_in_order() {
        assert!(Exit::ALL.is_sorted_by(|a, b| a.code() < b.code()));
    }
}
