//! CRIU's hooks, and what each of them is to a session: the barriers of both kinds as a table.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::message::Reply;

/// What a session does to its members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionKind {
    /// Running tasks become dumps.
    Dump,
    /// Dumps become running tasks.
    Restore,
}

/// A hook at which every member of a session waits for every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Barrier {
    /// Where CRIU stops.
    pub hook: Hook,
    /// Whether every member comes here.
    pub attendance: Attendance,
}

/// Whether a barrier's hook fires for every member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attendance {
    /// It does.
    Always,
    /// CRIU leaves it out for some (network-lock, of tasks without a network namespace of their own): a member that is
    /// at a later barrier has passed this one.
    MaySkip,
}

const DUMP: [Barrier; 3] = [
    Barrier { hook: Hook::PreDump, attendance: Attendance::Always },
    Barrier { hook: Hook::NetworkLock, attendance: Attendance::MaySkip },
    Barrier { hook: Hook::PostDump, attendance: Attendance::Always },
];

const RESTORE: [Barrier; 3] = [
    Barrier { hook: Hook::PreRestore, attendance: Attendance::Always },
    Barrier { hook: Hook::PostRestore, attendance: Attendance::Always },
    Barrier { hook: Hook::PreResume, attendance: Attendance::Always },
];

/// What a hook has to do in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Wait at the barrier of this place in [`SessionKind::barriers`].
    Wait(usize),
    /// Tell that the tasks run; wait for nobody.
    Report,
    /// Nothing: the session has no step here.
    Pass,
}

/// What a hook does once it knows, or can no longer come to know, what was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Return 0: CRIU goes on.
    Continue,
    /// Return non-zero: CRIU undoes a dump, or kills what it restored.
    Refuse,
    /// Kill the tasks, then return non-zero: CRIU only logs what this hook returns.
    KillAndRefuse,
}

impl SessionKind {
    /// The barriers, in the order in which CRIU comes to them. At the first one nothing is frozen or restored yet.
    #[must_use]
    pub const fn barriers(self) -> &'static [Barrier] {
        match self {
            Self::Dump => &DUMP,
            Self::Restore => &RESTORE,
        }
    }

    /// Whether the launcher takes files once every member stands at the last barrier, before they are let through it. Memory
    /// and files are of the same instant only while all tasks stand frozen.
    #[must_use]
    pub const fn captures(self) -> bool {
        match self {
            Self::Dump => true,
            Self::Restore => false,
        }
    }

    /// Whether members tell that they run once they were released. After a dump CRIU has no hook left to tell it at.
    #[must_use]
    pub const fn reports(self) -> bool {
        match self {
            Self::Dump => false,
            Self::Restore => true,
        }
    }

    /// What `hook` has to do.
    #[must_use]
    pub fn duty(self, hook: Hook) -> Duty {
        if let Some(place) = self.barriers().iter().position(|barrier| barrier.hook == hook) {
            return Duty::Wait(place);
        }
        match (self, hook) {
            (Self::Restore, Hook::PostResume) => Duty::Report,
            (
                Self::Dump | Self::Restore,
                Hook::PreDump
                | Hook::NetworkLock
                | Hook::PostDump
                | Hook::PreRestore
                | Hook::SetupNamespaces
                | Hook::PostSetupNamespaces
                | Hook::PostRestore
                | Hook::NetworkUnlock
                | Hook::PreResume
                | Hook::PostResume,
            ) => Duty::Pass,
        }
    }

    /// What to do at `hook` on `reply`; `None` is a coordinator that cannot be reached, has gone, or is silent past the
    /// deadline. Whatever is not a plain "proceed" stops the member.
    #[must_use]
    pub fn verdict(self, hook: Hook, reply: Option<&Reply>) -> Verdict {
        match (reply, self, hook) {
            (Some(Reply::Proceed), ..) => Verdict::Continue,
            (Some(Reply::Abort { .. }) | None, Self::Restore, Hook::PreResume) => Verdict::KillAndRefuse,
            (Some(Reply::Abort { .. }) | None, ..) => Verdict::Refuse,
        }
    }
}

impl fmt::Display for SessionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dump => "dump",
            Self::Restore => "restore",
        })
    }
}

/// The moments at which CRIU runs its action scripts, by the names in CRIU's `action-scripts.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// Before anything is frozen.
    PreDump,
    /// The tree is frozen, its network locked; only tasks with a network namespace of their own.
    NetworkLock,
    /// The images are written, the tasks still frozen.
    PostDump,
    /// Before any task exists.
    PreRestore,
    /// The root task exists.
    SetupNamespaces,
    /// The namespaces are set up.
    PostSetupNamespaces,
    /// Every task is restored, the network still locked.
    PostRestore,
    /// The network opens, at a restore and after a dump that lets its tasks run on.
    NetworkUnlock,
    /// The tasks stand before their first instruction.
    PreResume,
    /// The tasks run.
    PostResume,
}

impl Hook {
    const ALL: [Self; 10] = [
        Self::PreDump,
        Self::NetworkLock,
        Self::PostDump,
        Self::PreRestore,
        Self::SetupNamespaces,
        Self::PostSetupNamespaces,
        Self::PostRestore,
        Self::NetworkUnlock,
        Self::PreResume,
        Self::PostResume,
    ];

    /// CRIU's name for it, as in `CRTOOLS_SCRIPT_ACTION`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PreDump => "pre-dump",
            Self::NetworkLock => "network-lock",
            Self::PostDump => "post-dump",
            Self::PreRestore => "pre-restore",
            Self::SetupNamespaces => "setup-namespaces",
            Self::PostSetupNamespaces => "post-setup-namespaces",
            Self::PostRestore => "post-restore",
            Self::NetworkUnlock => "network-unlock",
            Self::PreResume => "pre-resume",
            Self::PostResume => "post-resume",
        }
    }
}

/// A name that is none of the hooks at which a session could have a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a hook of CRIU that a session has a step at")]
pub struct ParseHookError;

impl FromStr for Hook {
    type Err = ParseHookError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|hook| hook.as_str() == text).ok_or(ParseHookError)
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_criu_in_text_and_json() {
        for hook in Hook::ALL {
            assert_eq!(hook.as_str().parse(), Ok(hook));
            assert_eq!(serde_json::to_string(&hook).ok(), Some(format!("\"{hook}\"")));
        }
        assert_eq!("orphan-pts-master".parse::<Hook>(), Err(ParseHookError));
    }

    #[test]
    fn only_the_hooks_of_the_sessions_kind_wait() {
        let duties = |kind: SessionKind| Hook::ALL.map(|hook| kind.duty(hook));
        use Duty::{Pass, Report, Wait};
        assert_eq!(duties(SessionKind::Dump), [Wait(0), Wait(1), Wait(2), Pass, Pass, Pass, Pass, Pass, Pass, Pass]);
        assert_eq!(
            duties(SessionKind::Restore),
            [Pass, Pass, Pass, Wait(0), Pass, Pass, Wait(1), Pass, Wait(2), Report]
        );
    }

    #[test]
    fn anything_but_proceed_stops_the_member() {
        let abort = Reply::Abort { reason: String::new() };
        for kind in [SessionKind::Dump, SessionKind::Restore] {
            for hook in Hook::ALL {
                assert_eq!(kind.verdict(hook, Some(&Reply::Proceed)), Verdict::Continue);
                let kills = kind == SessionKind::Restore && hook == Hook::PreResume;
                let expected = if kills { Verdict::KillAndRefuse } else { Verdict::Refuse };
                assert_eq!(kind.verdict(hook, Some(&abort)), expected);
                assert_eq!(kind.verdict(hook, None), expected);
            }
        }
    }
}
