//! What a hook and the rendezvous say to each other, as bytes.
//!
//! A frame is the length of its body as a big-endian `u32`, then the body: one JSON object with a `version`. A hook sends
//! one [`Request`] and gets one [`Answer`], when it is decided; then both close. A body is at most 64 KiB.
//!
//! A hook that has a certificate but no ticket sends a [`JoinRequest`] first, on the same connection, and is told by one or
//! more [`JoinAnswer`]s which session it is in; then it goes on like any other. What launchers of several hosts say to each
//! other is in [`control`].

pub mod control;

use std::io::{self, Read};
use std::time::Duration;

use image_format::{Epoch, MemberId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use self::control::Attend;
use crate::plan::{SessionId, SessionPlan};
use crate::proto::{Message, Reply, SessionKind};
pub use crate::secret::{ParseSecretError, Secret};

/// The version of this protocol. 1: the first.
pub const VERSION: u16 = 1;

/// The longest body of a frame, in bytes.
pub const MAX_BODY: usize = 64 * 1024;

/// The length of what stands before a body, in bytes.
pub const HEADER: usize = 4;

/// What a hook sends.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u16,
    /// Proves, on the same machine, that the sender may speak for the message's member. Over mutual TLS the certificate
    /// does, and there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// What it says.
    pub message: Message,
}

/// What a hook gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u16,
    /// What was decided.
    pub reply: Reply,
}

/// What a hook without a ticket sends first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// [`VERSION`].
    pub version: u16,
    /// Who it is and with whom.
    pub join: Join,
}

/// A member that is about to be dumped or restored, and wants to be so together with others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// A dump or a restore.
    pub kind: SessionKind,
    /// Who it is; the same as in its certificate.
    pub member: MemberId,
    /// Who must take part with it.
    pub dependencies: Vec<MemberId>,
}

/// What a hook gets that asked to join.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// [`VERSION`].
    pub version: u16,
    /// The word itself.
    #[serde(flatten)]
    pub word: JoinWord,
}

/// A word to a hook that asked to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JoinWord {
    /// Others are awaited: another word follows.
    Noted {
        /// Within this time, in milliseconds.
        gather_ms: u64,
    },
    /// The session is there: go on with a [`Request`].
    Invited(Invitation),
    /// It comes to nothing; always an abort.
    Reply(Reply),
}

/// A session, as one of its members must know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// A dump or a restore.
    pub kind: SessionKind,
    /// Its name.
    pub session: SessionId,
    /// The attempt.
    pub epoch: Epoch,
    /// Its deadlines, in milliseconds.
    pub gather_ms: u64,
    /// The time from the first barrier to the decision.
    pub hold_ms: u64,
}

impl Invitation {
    pub(crate) fn to(plan: &SessionPlan) -> Self {
        Self {
            kind: plan.kind,
            session: plan.id,
            epoch: plan.epoch,
            gather_ms: millis(plan.deadlines.gather),
            hold_ms: millis(plan.deadlines.hold),
        }
    }
}

/// A time as whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Any of what may be said first on a connection.
#[derive(Debug)]
pub(crate) enum Asked {
    Message(Request),
    Join(Join),
    Attend(Attend),
}

impl Asked {
    /// # Errors
    /// As [`decode`].
    pub(crate) fn decode(body: &[u8]) -> Result<Self, WireError> {
        #[derive(Deserialize)]
        struct Either {
            secret: Option<Secret>,
            message: Option<Message>,
            join: Option<Join>,
            attend: Option<Attend>,
        }
        match decode(body)? {
            Either { message: Some(message), join: None, attend: None, secret } => {
                Ok(Self::Message(Request { version: VERSION, secret, message }))
            }
            Either { message: None, join: Some(join), attend: None, secret: None } => Ok(Self::Join(join)),
            Either { message: None, join: None, attend: Some(attend), secret: None } if attend.is_plain() => {
                Ok(Self::Attend(attend))
            }
            Either { .. } => Err(WireError::Body(serde::de::Error::custom("no message, join or attend"))),
        }
    }
}

/// Why bytes are not a message, or a message cannot be bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Over [`MAX_BODY`].
    #[error("a frame of {length} bytes; at most {MAX_BODY} are allowed")]
    TooLong {
        /// The length that it has or claims.
        length: usize,
    },
    /// Another version of the protocol.
    #[error("protocol version {found}; this is version {VERSION}")]
    Version {
        /// The other version.
        found: u16,
    },
    /// Not the JSON that it should be.
    #[error("the body of the frame is not a message")]
    Body(#[source] serde_json::Error),
    /// The stream ended or failed.
    #[error("the frame cannot be read")]
    Read(#[source] io::Error),
}

/// A message as a whole frame.
///
/// # Errors
/// It is too long.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let mut frame = vec![0; HEADER];
    serde_json::to_writer(&mut frame, message).map_err(WireError::Body)?;
    let length = frame.len() - HEADER;
    match u32::try_from(length) {
        Ok(header) if length <= MAX_BODY => frame[..HEADER].copy_from_slice(&header.to_be_bytes()),
        Ok(_) | Err(_) => return Err(WireError::TooLong { length }),
    }
    Ok(frame)
}

/// The length of the body that follows this header.
///
/// # Errors
/// It is too long.
pub fn body_length(header: [u8; HEADER]) -> Result<usize, WireError> {
    match usize::try_from(u32::from_be_bytes(header)) {
        Ok(length) if length <= MAX_BODY => Ok(length),
        Ok(length) => Err(WireError::TooLong { length }),
        Err(_) => Err(WireError::TooLong { length: usize::MAX }),
    }
}

/// The message in a frame's body.
///
/// # Errors
/// Another version, or not a message.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, WireError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u16,
    }
    let Versioned { version } = serde_json::from_slice(body).map_err(WireError::Body)?;
    if version != VERSION {
        return Err(WireError::Version { found: version });
    }
    serde_json::from_slice(body).map_err(WireError::Body)
}

/// Reads one frame and its message.
///
/// # Errors
/// As [`body_length`] and [`decode`], and what the stream says.
pub fn read<T: DeserializeOwned>(mut stream: impl Read) -> Result<T, WireError> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).map_err(WireError::Read)?;
    let mut body = vec![0; body_length(header)?];
    stream.read_exact(&mut body).map_err(WireError::Read)?;
    decode(&body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_comes_back_as_it_was() {
        let answer = Answer { version: VERSION, reply: Reply::Abort { reason: "é".repeat(100) } };
        let frame = encode(&answer).expect("short enough");
        assert_eq!(read::<Answer>(frame.as_slice()).expect("a frame").reply, answer.reply);
        assert!(matches!(read::<Answer>(&frame[..frame.len() - 1]), Err(WireError::Read(_))));
    }

    #[test]
    fn a_request_is_a_message_or_a_join() {
        let invitation = Invitation {
            kind: SessionKind::Dump,
            session: SessionId::from_bytes([1; 16]),
            epoch: Epoch(2),
            gather_ms: 3,
            hold_ms: 4,
        };
        for word in [
            JoinWord::Noted { gather_ms: 1 },
            JoinWord::Invited(invitation),
            JoinWord::Reply(Reply::Abort { reason: "no".to_owned() }),
        ] {
            let frame = encode(&JoinAnswer { version: VERSION, word: word.clone() }).expect("short enough");
            assert_eq!(read::<JoinAnswer>(frame.as_slice()).expect("a frame").word, word);
        }
        let refused = encode(&Answer { version: VERSION, reply: Reply::Proceed }).expect("short enough");
        assert!(read::<JoinAnswer>(refused.as_slice()).is_ok_and(|said| said.word == JoinWord::Reply(Reply::Proceed)));
        let join = br#"{"version":1,"join":{"kind":"dump","member":"a","dependencies":["b"]}}"#;
        assert!(matches!(Asked::decode(join), Ok(Asked::Join(join)) if join.dependencies.len() == 1));
        let attend =
            r#""attend":{"member":"a","application":"x","engine":"runc","container":"a","depends_on":[],"firm":true}"#;
        let attends = format!("{{\"version\":1,{attend}}}");
        assert!(matches!(Asked::decode(attends.as_bytes()), Ok(Asked::Attend(attend)) if attend.strict_dependencies));
        let both =
            format!("{{\"version\":1,{attend},\"join\":{{\"kind\":\"dump\",\"member\":\"a\",\"dependencies\":[]}}}}");
        for neither in [r#"{"version":1}"#, &both, &attends.replace("runc", " ")] {
            assert!(matches!(Asked::decode(neither.as_bytes()), Err(WireError::Body(_))), "{neither}");
        }
    }

    #[test]
    fn bounds_and_versions_are_kept() {
        let long = Answer { version: VERSION, reply: Reply::Abort { reason: "x".repeat(MAX_BODY) } };
        assert!(matches!(encode(&long), Err(WireError::TooLong { .. })));
        assert!(
            matches!(read::<Answer>([0xff; 8].as_slice()), Err(WireError::TooLong { length }) if length > MAX_BODY)
        );
        let newer = br#"{"version":2,"something":"else"}"#;
        assert!(matches!(decode::<Answer>(newer), Err(WireError::Version { found: 2 })));
        let deep = format!("{{\"version\":1,\"reply\":{}", "[".repeat(50_000));
        assert!(matches!(decode::<Answer>(deep.as_bytes()), Err(WireError::Body(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read::<Request>(bytes.as_slice());
            let _ = Asked::decode(&bytes);
            let _ = decode::<JoinAnswer>(&bytes);
            let _ = decode::<Answer>(&bytes);
        }
    }
}
