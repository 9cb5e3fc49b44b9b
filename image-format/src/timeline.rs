//! The timeline of a global checkpoint: when its members waited, stood still, were dumped, packed and sent.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::json::{self, JsonError};
use crate::{MemberId, canonical_json, timestamp};

/// Bytes of a timeline's text: enough for the most members that a checkpoint can have.
const MAX_BYTES: u64 = 2 << 20;
const MAX_MEMBERS: usize = 4096;
const MAX_BARRIERS: usize = 16;
/// Largest number that every reader of JSON takes as it is.
const MAX_NUMBER: u64 = (1 << 53) - 1;

/// How a checkpoint was made. Moments are microseconds since it was begun.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// When it was begun, RFC 3339.
    pub started: String,
    /// The barriers, in the order in which they opened.
    pub barriers: Vec<BarrierTime>,
    /// When the members' files were taken, all of them frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<Span>,
    /// The members; written in the order of their ids.
    pub members: Vec<MemberTimeline>,
}

/// One barrier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BarrierTime {
    /// CRIU's name of the hook at which the members met, such as `network-lock`.
    pub hook: String,
    /// When the last one had come and all went on.
    pub opened: u64,
}

/// One member's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberTimeline {
    /// The member.
    pub id: MemberId,
    /// It waited for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waited: Option<Span>,
    /// Its tasks stood still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Span>,
    /// CRIU wrote its images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dumped: Option<Span>,
    /// Its dump became layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<Span>,
    /// Its layers went to the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<Span>,
    /// Bytes that the store did not have yet.
    pub bytes_sent: u64,
}

impl MemberTimeline {
    /// A member of which nothing is known yet.
    #[must_use]
    pub fn new(id: MemberId) -> Self {
        Self { id, waited: None, frozen: None, dumped: None, packed: None, sent: None, bytes_sent: 0 }
    }

    /// Its spans and what they are called, in the order in which they begin.
    #[must_use]
    pub fn spans(&self) -> [(&'static str, Option<Span>); 5] {
        [
            ("waited", self.waited),
            ("frozen", self.frozen),
            ("dumped", self.dumped),
            ("packed", self.packed),
            ("sent", self.sent),
        ]
    }
}

/// A stretch of time. In JSON, `[begin, end]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct Span {
    /// When it began.
    pub begin: u64,
    /// When it was over.
    pub end: u64,
}

impl Span {
    /// How long it was.
    #[must_use]
    pub fn micros(&self) -> u64 {
        self.end.saturating_sub(self.begin)
    }
}

impl From<(u64, u64)> for Span {
    fn from((begin, end): (u64, u64)) -> Self {
        Self { begin, end }
    }
}

impl From<Span> for (u64, u64) {
    fn from(span: Span) -> Self {
        (span.begin, span.end)
    }
}

/// Why something is no timeline. The messages go after `the timeline`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TimelineError {
    /// No JSON, too large, or not of the form.
    #[error("cannot be read")]
    Json(#[source] JsonError),
    /// A start that is no time.
    #[error("has a start that is no RFC 3339 time")]
    Started,
    /// A list beyond its bound.
    #[error("has {count} {what}; at most {limit} are allowed")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many may be.
        limit: usize,
    },
    /// A name of a hook that is none.
    #[error("has a barrier whose hook is not named in lower-case letters, digits and dashes")]
    Hook,
    /// A member that is there twice.
    #[error("has the member {0} twice")]
    Twice(MemberId),
    /// A span that ends before it begins, or a number of more than 53 bits.
    #[error("has {what} with times that cannot be")]
    Times {
        /// Whose.
        what: String,
    },
}

impl Timeline {
    /// Reads the text of the annotation.
    ///
    /// # Errors
    /// Text that is no timeline.
    pub fn parse(text: &str) -> Result<Self, TimelineError> {
        let value = json::parse_strict(text.as_bytes(), MAX_BYTES).map_err(TimelineError::Json)?;
        let mut timeline: Self = json::typed(value).map_err(TimelineError::Json)?;
        timeline.members.sort_by(|a, b| a.id.cmp(&b.id));
        timeline.check()?;
        Ok(timeline)
    }

    /// The text of the annotation: equal timelines are equal text.
    ///
    /// # Errors
    /// A timeline that [`Timeline::parse`] would not take.
    pub fn to_text(&self) -> Result<String, TimelineError> {
        self.check()?;
        let mut timeline = self.clone();
        timeline.members.sort_by(|a, b| a.id.cmp(&b.id));
        let unwritable = |error| TimelineError::Json(JsonError::Syntax(error));
        let bytes = canonical_json(&timeline).map_err(unwritable)?;
        let text = String::from_utf8(bytes).map_err(|error| unwritable(serde::ser::Error::custom(error)))?;
        let (size, limit) = (text.len() as u64, MAX_BYTES);
        if size > limit {
            return Err(TimelineError::Json(JsonError::TooLarge { size, limit }));
        }
        Ok(text)
    }

    /// The last moment that it knows, in microseconds since its start.
    #[must_use]
    pub fn end(&self) -> u64 {
        let spans = self.members.iter().flat_map(MemberTimeline::spans).filter_map(|(_, span)| span);
        let ends = spans.chain(self.capture).map(|span| span.end);
        ends.chain(self.barriers.iter().map(|barrier| barrier.opened)).max().unwrap_or(0)
    }

    fn check(&self) -> Result<(), TimelineError> {
        if !timestamp::is_rfc3339(&self.started) {
            return Err(TimelineError::Started);
        }
        let counts = [("members", self.members.len(), MAX_MEMBERS), ("barriers", self.barriers.len(), MAX_BARRIERS)];
        for (what, count, limit) in counts {
            if count > limit {
                return Err(TimelineError::TooMany { what, count, limit });
            }
        }
        for barrier in &self.barriers {
            let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if !(1..=64).contains(&barrier.hook.len()) || !barrier.hook.bytes().all(is_good) {
                return Err(TimelineError::Hook);
            }
            check_times("a barrier", &[barrier.opened])?;
        }
        if let Some(capture) = self.capture {
            check_times("the capture", &[capture.begin, capture.end])?;
        }
        let mut ids = BTreeSet::new();
        for member in &self.members {
            if !ids.insert(&member.id) {
                return Err(TimelineError::Twice(member.id.clone()));
            }
            let what = format!("the member {}", member.id);
            check_times(&what, &[member.bytes_sent])?;
            for (_, span) in member.spans() {
                span.map_or(Ok(()), |span| check_times(&what, &[span.begin, span.end]))?;
            }
        }
        Ok(())
    }
}

fn check_times(what: &str, times: &[u64]) -> Result<(), TimelineError> {
    if times.is_sorted() && times.iter().all(|time| *time <= MAX_NUMBER) {
        return Ok(());
    }
    Err(TimelineError::Times { what: what.to_owned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn span(begin: u64, end: u64) -> Option<Span> {
        Some(Span { begin, end })
    }

    fn sample() -> Timeline {
        let producer = MemberTimeline {
            waited: span(1_000, 9_000),
            frozen: span(2_000, 84_000),
            dumped: span(10_000, 80_000),
            packed: span(90_000, 400_000),
            sent: span(100_000, 900_000),
            bytes_sent: 1_234_567,
            ..MemberTimeline::new("producer".parse().unwrap())
        };
        Timeline {
            started: "2026-02-03T04:05:06.789Z".to_owned(),
            barriers: vec![
                BarrierTime { hook: "pre-dump".to_owned(), opened: 1_500 },
                BarrierTime { hook: "post-dump".to_owned(), opened: 80_000 },
            ],
            capture: span(80_000, 82_000),
            members: vec![producer, MemberTimeline::new("consumer".parse().unwrap())],
        }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let text = sample().to_text().unwrap();
        insta::assert_snapshot!(text, @r#"{"barriers":[{"hook":"pre-dump","opened":1500},{"hook":"post-dump","opened":80000}],"capture":[80000,82000],"members":[{"bytes_sent":0,"id":"consumer"},{"bytes_sent":1234567,"dumped":[10000,80000],"frozen":[2000,84000],"id":"producer","packed":[90000,400000],"sent":[100000,900000],"waited":[1000,9000]}],"started":"2026-02-03T04:05:06.789Z"}"#);
        let again = Timeline::parse(&text).unwrap();
        assert_eq!(again.to_text().unwrap(), text);
        assert_eq!(again.end(), 900_000);
        assert_eq!(again.members[1], sample().members[0]);
    }

    #[test]
    fn what_is_none_is_refused() {
        type Change = fn(&mut Value);
        let table: &[(Change, &str)] = &[
            (|t| t["started"] = json!("yesterday"), "has a start that is no RFC 3339 time"),
            (|t| t["barriers"][0]["hook"] = json!("<b>"), "has a barrier whose hook is not named"),
            (|t| t["barriers"] = json!(vec![json!({"hook": "a", "opened": 1}); 17]), "has 17 barriers; at most 16"),
            (|t| t["capture"] = json!([2, 1]), "has the capture with times that cannot be"),
            (|t| t["members"][1]["sent"] = json!([0, 1_u64 << 60]), "has the member producer with times"),
            (|t| t["members"][1]["id"] = json!("consumer"), "has the member consumer twice"),
            (|t| t["members"][1]["id"] = json!("<script>"), "cannot be read"),
            (|t| t["members"][1]["sent"] = json!([-1, 1]), "cannot be read"),
            (|t| t["members"][1]["sent"] = json!([1]), "cannot be read"),
        ];
        for (change, expected) in table {
            let mut value: Value = serde_json::from_str(&sample().to_text().unwrap()).unwrap();
            change(&mut value);
            let error = Timeline::parse(&value.to_string()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let large = format!("{}{}", " ".repeat(3 << 20), sample().to_text().unwrap());
        assert!(matches!(Timeline::parse(&large), Err(TimelineError::Json(JsonError::TooLarge { .. }))));
        let ends_early = Timeline { capture: span(2, 1), ..sample() };
        assert!(ends_early.to_text().is_err());
    }

    #[test]
    fn the_most_members_fit() {
        let member = |n: usize| {
            let id = format!("{n:05}{}", "m".repeat(60)).parse().unwrap();
            let all = span(3_000_000_000, 3_600_000_000);
            let spans =
                MemberTimeline { waited: all, frozen: all, dumped: all, packed: all, ..MemberTimeline::new(id) };
            MemberTimeline { sent: all, bytes_sent: 1 << 40, ..spans }
        };
        let most = Timeline { members: (0..MAX_MEMBERS).map(member).collect(), ..sample() };
        assert_eq!(Timeline::parse(&most.to_text().unwrap()).unwrap(), most);
    }

    #[test]
    fn the_schema_says_the_same() {
        let path = [env!("CARGO_MANIFEST_DIR"), "../docs/timeline.schema.json"].join("/");
        let mut compiler = boon::Compiler::new();
        let schema = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        compiler.add_resource("schema.json", schema).unwrap();
        let mut schemas = boon::Schemas::new();
        let schema = compiler.compile("schema.json", &mut schemas).unwrap();
        let value: Value = serde_json::from_str(&sample().to_text().unwrap()).unwrap();
        schemas.validate(&value, schema).unwrap();
        type Change = fn(&mut Value);
        let table: &[Change] = &[
            |t| t["started"] = json!("yesterday"),
            |t| t["barriers"][0]["hook"] = json!("<b>"),
            |t| t["capture"] = json!([1]),
            |t| t["members"][1]["id"] = json!("<script>"),
            |t| t["members"][1]["sent"] = json!([-1, 1]),
            |t| t["members"][1]["sent"] = json!([0, 1_u64 << 60]),
        ];
        for (position, change) in table.iter().enumerate() {
            let mut value = value.clone();
            change(&mut value);
            assert!(
                schemas.validate(&value, schema).is_err() && Timeline::parse(&value.to_string()).is_err(),
                "{position}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_ends_in_a_timeline_or_an_error(
            damage in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&b"\"{}[],:019a-."[..])), 0..6),
        ) {
            let mut bytes = sample().to_text().unwrap().into_bytes();
            for (place, byte) in damage {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            if let Ok(timeline) = Timeline::parse(&String::from_utf8(bytes).unwrap()) {
                prop_assert_eq!(Timeline::parse(&timeline.to_text().unwrap()).unwrap(), timeline);
            }
        }
    }
}
