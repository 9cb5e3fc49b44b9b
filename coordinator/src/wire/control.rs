//! What the launchers of the hosts of one checkpoint say to each other: the control words.
//!
//! The launcher of another host says [`Attend`], once for each of its members and with that member's certificate. From
//! then on both launchers send messages on that connection, framed like all others. The coordinating
//! launcher sends [`CoordinatorMessage`]s, and the other one sends [`ParticipantMessage`]s. A launcher
//! that has nothing else to say says that it is alive.

use image_format::{ApplicationId, Descriptor, Digest, Epoch, MemberId, MemberTimeline, Span, one_line};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Invitation, VERSION};
use crate::proto::{LONGEST_REASON, Reply, said};

/// The longest name of a container or an engine, in bytes.
const LONGEST_NAME: usize = 256;

/// The most lines of a log that a report carries, and the bytes of each.
const MOST_LINES: usize = 16;
const LONGEST_LINE: usize = 512;

/// A word with the version of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope<T> {
    /// [`VERSION`].
    pub version: u16,
    /// The word itself.
    #[serde(flatten)]
    pub word: T,
}

impl<T> Envelope<T> {
    /// In the version of this program.
    pub fn now(word: T) -> Self {
        Self { version: VERSION, word }
    }
}

/// The first word of a launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum First {
    /// A member of this host is ready for the next checkpoint.
    Attend(Attend),
}

/// A member that is to be checkpointed on another host than the coordinating one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attend {
    /// Who it is; the same as in its certificate.
    pub member: MemberId,
    /// What it is a part of.
    pub application: ApplicationId,
    /// What runs it.
    pub engine: String,
    /// Its container's name.
    pub container: String,
    /// The members that must exist before it.
    pub depends_on: Vec<MemberId>,
    /// Whether all of these must be members; otherwise those that are none do not count.
    #[serde(rename = "firm")]
    pub strict_dependencies: bool,
}

impl Attend {
    /// Whether its names have lengths that names have.
    pub(crate) fn is_plain(&self) -> bool {
        let plain =
            |text: &str| !text.is_empty() && text.len() <= LONGEST_NAME && text.chars().all(|c| c.is_ascii_graphic());
        plain(&self.engine) && plain(&self.container)
    }
}

/// What the coordinating launcher says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CoordinatorMessage {
    /// The other members are awaited.
    Noted {
        /// Within this time, in milliseconds.
        gather_ms: u64,
    },
    /// Everybody is there: the session has begun, and the member is to be dumped.
    Invited(Summons),
    /// Every member stands frozen: its files are to be taken.
    Capture,
    /// What was decided. The tasks run on in either case, and with `proceed` there are dumps. An abort
    /// before [`CoordinatorMessage::Invited`] is a refusal.
    Reply(Reply),
    /// The checkpoint is permanent.
    Permanent(Permanent),
    /// It came to nothing after the tasks ran on.
    NotPermanent {
        /// Why, as a fragment.
        #[serde(deserialize_with = "said")]
        reason: String,
    },
    /// Nothing to say.
    Alive,
}

/// What a member is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summons {
    /// The session.
    pub session: Invitation,
    /// Where the checkpoint goes, in the words of the person who asked for it.
    #[serde(deserialize_with = "said")]
    pub to: String,
    /// Whether its container ends once the checkpoint is permanent.
    pub stop: bool,
    /// The members that must exist before it, all of them members of this checkpoint.
    pub depends_on: Vec<MemberId>,
    /// Its image in the checkpoint before, if there is one over which it may be stored: pages that are in it need not be stored again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Digest>,
}

/// A checkpoint that is permanent, as one of its members is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permanent {
    /// The global checkpoint.
    pub digest: Digest,
    /// Its tag.
    #[serde(deserialize_with = "said")]
    pub tag: String,
    /// Its number.
    pub epoch: Epoch,
    /// What the member's time went to.
    pub timeline: MemberTimeline,
}

/// What the launcher of another host says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ParticipantMessage {
    /// The member's files are taken.
    Captured,
    /// It does not come any further.
    Failed(Failure),
    /// The member's image is in the store.
    Stored(Stored),
    /// Nothing to say.
    Alive,
}

/// Why a member of another host does not come any further.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Why, as a fragment.
    #[serde(deserialize_with = "said")]
    pub reason: String,
    /// The error lines of its CRIU log; few and short.
    #[serde(default, deserialize_with = "said_lines", skip_serializing_if = "Vec::is_empty")]
    pub log_lines: Vec<String>,
}

impl Failure {
    /// With as much of each as is let through.
    #[must_use]
    pub fn new(reason: &str, log_lines: &[String]) -> Self {
        Self { reason: one_line(reason, LONGEST_REASON), log_lines: few(log_lines) }
    }
}

fn few(lines: &[String]) -> Vec<String> {
    lines.iter().take(MOST_LINES).map(|line| one_line(line, LONGEST_LINE)).collect()
}

/// Lines that a peer says, as many and as long as are let through.
fn said_lines<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Vec::deserialize(from).map(|lines: Vec<String>| few(&lines))
}

/// A member's image that is in the store, by the word of its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its manifest.
    pub manifest: Descriptor,
    /// Bytes of its layers, as they are stored.
    pub bytes: u64,
    /// Bytes of them that had to be sent.
    pub sent: u64,
    /// When it was packed, in microseconds since the member was invited.
    pub packed: Option<Span>,
    /// When it was sent.
    pub sending: Option<Span>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::SessionId;
    use crate::proto::SessionKind;
    use crate::wire::{MAX_BODY, decode, encode, read};

    fn comes_back<T>(word: T, json: &str)
    where
        T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug + Clone,
    {
        let frame = encode(&Envelope::now(word.clone())).expect("short enough");
        assert_eq!(read::<Envelope<T>>(frame.as_slice()).expect("a frame").word, word);
        assert_eq!(std::str::from_utf8(&frame[4..]).expect("text"), json);
    }

    #[test]
    fn words_come_back_as_they_were() {
        let id: MemberId = "b".parse().expect("an id");
        let attend = Attend {
            member: id.clone(),
            application: "app".parse().expect("an id"),
            engine: "podman".to_owned(),
            container: "b-1".to_owned(),
            depends_on: vec!["a".parse().expect("an id")],
            strict_dependencies: true,
        };
        assert!(attend.is_plain());
        for name in ["", "two words", "\u{1b}[2J", &"x".repeat(257)] {
            assert!(!Attend { container: name.to_owned(), ..attend.clone() }.is_plain(), "{name:?}");
        }
        comes_back(
            First::Attend(attend),
            r#"{"version":1,"attend":{"member":"b","application":"app","engine":"podman","container":"b-1","depends_on":["a"],"firm":true}}"#,
        );
        comes_back(CoordinatorMessage::Noted { gather_ms: 5 }, r#"{"version":1,"noted":{"gather_ms":5}}"#);
        let session = Invitation {
            kind: SessionKind::Dump,
            session: SessionId::from_bytes([1; 16]),
            epoch: Epoch(2),
            gather_ms: 3,
            hold_ms: 4,
        };
        let summons = Summons { session, to: "oci:/x".to_owned(), stop: false, depends_on: Vec::new(), base: None };
        comes_back(
            CoordinatorMessage::Invited(summons.clone()),
            r#"{"version":1,"invited":{"session":{"kind":"dump","session":"01010101010101010101010101010101","epoch":2,"gather_ms":3,"hold_ms":4},"to":"oci:/x","stop":false,"depends_on":[]}}"#,
        );
        let over = CoordinatorMessage::Invited(Summons { base: Some(Digest::of(b"x")), ..summons });
        let frame = encode(&Envelope::now(over.clone())).expect("short enough");
        assert_eq!(read::<Envelope<CoordinatorMessage>>(frame.as_slice()).expect("a frame").word, over);
        comes_back(CoordinatorMessage::Capture, r#"{"version":1,"capture":null}"#);
        comes_back(CoordinatorMessage::Alive, r#"{"version":1,"alive":null}"#);
        comes_back(CoordinatorMessage::Reply(Reply::Proceed), r#"{"version":1,"reply":"proceed"}"#);
        comes_back(ParticipantMessage::Captured, r#"{"version":1,"captured":null}"#);
        comes_back(
            ParticipantMessage::Failed(Failure::new("no", &["Error".to_owned()])),
            r#"{"version":1,"failed":{"reason":"no","log_lines":["Error"]}}"#,
        );
        let permanent = Permanent {
            digest: Digest::of(b"x"),
            tag: "epoch-2".to_owned(),
            epoch: Epoch(2),
            timeline: MemberTimeline::new(id),
        };
        let frame = encode(&Envelope::now(CoordinatorMessage::Permanent(permanent.clone()))).expect("short enough");
        assert_eq!(
            read::<Envelope<CoordinatorMessage>>(frame.as_slice()).expect("a frame").word,
            CoordinatorMessage::Permanent(permanent)
        );
    }

    #[test]
    fn nothing_that_is_said_begins_a_line() {
        let forged = r#"no\n2026-01-01T00:00:00Z  checkpoint 7\u001b[2J\u202e"#;
        let reason = "no 2026-01-01T00:00:00Z  checkpoint 7 [2J".to_owned();
        let hear = |json: &str| {
            decode::<Envelope<ParticipantMessage>>(json.replace("FORGED", forged).as_bytes()).expect("a report").word
        };
        let failure = Failure { reason: reason.clone(), log_lines: vec![reason.clone()] };
        let failed = hear(r#"{"version":1,"failed":{"reason":"FORGED","log_lines":["FORGED"]}}"#);
        assert_eq!(failed, ParticipantMessage::Failed(failure));
        let many = format!(
            r#"{{"version":1,"failed":{{"reason":"{}","log_lines":[{}"x"]}}}}"#,
            "x".repeat(9000),
            "\"x\",".repeat(99)
        );
        let ParticipantMessage::Failed(many) = hear(&many) else { panic!("another word") };
        assert_eq!((many.reason.len(), many.log_lines.len()), (LONGEST_REASON, MOST_LINES));
        let hear = |json: &str| {
            decode::<Envelope<CoordinatorMessage>>(json.replace("FORGED", forged).as_bytes()).expect("a word").word
        };
        let abort = hear(r#"{"version":1,"reply":{"abort":{"reason":"FORGED"}}}"#);
        assert_eq!(abort, CoordinatorMessage::Reply(Reply::Abort { reason: reason.clone() }));
        let ended = hear(r#"{"version":1,"not-permanent":{"reason":"FORGED"}}"#);
        assert_eq!(ended, CoordinatorMessage::NotPermanent { reason: reason.clone() });
        let vote: crate::proto::Vote =
            serde_json::from_str(&format!(r#"{{"no":{{"reason":"{forged}"}}}}"#)).expect("a vote");
        assert_eq!(vote, crate::proto::Vote::No { reason });
    }

    #[test]
    fn what_fails_is_told_in_few_words() {
        let long = Failure::new(&"é".repeat(5000), &vec!["ü".repeat(5000); 5000]);
        assert_eq!((long.reason.len(), long.log_lines.len()), (LONGEST_REASON, MOST_LINES));
        assert!(long.log_lines.iter().all(|line| line.len() == LONGEST_LINE));
        assert!(encode(&Envelope::now(ParticipantMessage::Failed(long))).is_ok_and(|frame| frame.len() < MAX_BODY));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Envelope<CoordinatorMessage>>(&bytes);
            let _ = decode::<Envelope<ParticipantMessage>>(&bytes);
            let _ = decode::<Envelope<First>>(&bytes);
        }
    }
}
