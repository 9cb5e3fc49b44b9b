//! Who takes part in a session, under which name, and until when.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use image_format::{ApplicationId, Epoch, MemberId};
use serde::{Deserialize, Serialize};

use crate::fence::Fence;
use crate::proto::SessionKind;

/// What a session is about: everything that is settled before its first message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionPlan {
    /// A dump or a restore.
    pub kind: SessionKind,
    /// The session's random name.
    pub id: SessionId,
    /// The attempt; messages of any other are refused.
    pub epoch: Epoch,
    /// The application that the members make up.
    pub application: ApplicationId,
    /// Every member that must take part; at least one, each once.
    pub members: Vec<MemberId>,
    /// When the session gives up.
    pub deadlines: Deadlines,
    /// Hooks on this host go on only as long as nobody has raised the fence further.
    pub fence: Option<Fence>,
}

impl SessionPlan {
    /// Checks that there are members, each once, and that both deadlines leave some time.
    ///
    /// # Errors
    /// What the plan lacks.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.members.is_empty() {
            return Err(PlanError::NoMembers);
        }
        let mut seen = BTreeSet::new();
        for member in &self.members {
            if !seen.insert(member) {
                return Err(PlanError::TwiceTheSame { member: member.clone() });
            }
        }
        if self.deadlines.gather.is_zero() || self.deadlines.hold.is_zero() {
            return Err(PlanError::NoTime);
        }
        Ok(())
    }
}

/// Why a plan cannot be a session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Nobody to wait for.
    #[error("the session has no members")]
    NoMembers,
    /// Two members of one name.
    #[error("member {member} is in the session twice")]
    TwiceTheSame {
        /// The name.
        member: MemberId,
    },
    /// A deadline of zero aborts before anything can happen.
    #[error("a deadline of the session is zero")]
    NoTime,
}

/// How long a session may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Deadlines {
    /// From the session's start until the last member is at the first barrier.
    pub gather: Duration,
    /// From the opening of the first barrier until the decision: at a dump the longest time that tasks stand frozen, at a
    /// restore the time that CRIU has to bring the tasks back.
    pub hold: Duration,
}

impl Default for Deadlines {
    /// Two minutes to gather, two minutes to hold.
    fn default() -> Self {
        Self { gather: Duration::from_secs(120), hold: Duration::from_secs(120) }
    }
}

/// A session's name: 128 random bits, written as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId([u8; 16]);

impl SessionId {
    /// A new name, from the system's random numbers.
    ///
    /// # Errors
    /// The system has none to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// A name of given bits, for tests and simulations.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

/// A text that is not 32 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a session id: 32 lower-case hex digits are")]
pub struct ParseSessionIdError;

impl FromStr for SessionId {
    type Err = ParseSessionIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 16];
        hex_into(text, &mut bytes).ok_or(ParseSessionIdError)?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for SessionId {
    type Error = ParseSessionIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

/// Reads exactly as many bytes as `out` has from lower-case hex digits.
pub(crate) fn hex_into(text: &str, out: &mut [u8]) -> Option<()> {
    let digits = text.as_bytes();
    if digits.len() != out.len() * 2 {
        return None;
    }
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_ids_are_32_hex_digits_and_nothing_else() {
        let text = "00112233445566778899aabbccddeeff";
        assert_eq!(text.parse::<SessionId>().map(|id| id.to_string()), Ok(text.to_owned()));
        for bad in ["", "00", &text[1..], &text.to_uppercase(), &format!("{text}0"), "../../../../../../../../etc/x"] {
            assert_eq!(bad.parse::<SessionId>(), Err(ParseSessionIdError), "{bad:?}");
        }
        assert_ne!(SessionId::random(), SessionId::random());
    }
}
