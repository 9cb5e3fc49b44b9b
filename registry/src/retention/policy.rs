//! Which checkpoints stay: rules as backup tools have them, over values alone.
//!
//! Each application is looked at by itself, from its newest checkpoint (by epoch, then by time) to its oldest:
//!
//! ```text
//! newest ──────────────────────────────────────────────────────────> oldest
//!   last      the first N
//!   within    all that are not older than the newest one less the time given
//!   hourly,   the newest one of each of the N newest hours, days, weeks (UTC, weeks begin on Monday) that have any; while
//!   daily,    fewer than N are found, the oldest checkpoint counts too, so that frequent checkpoints do not push out all
//!   weekly    that is old before the first day or week is over
//!   tag       those with a tag that matches a pattern
//!   pinned    always
//! ```
//!
//! A checkpoint stays if one rule keeps it. As time is counted from the newest checkpoint, what is kept does not melt away when no
//! new ones come.

use std::collections::BTreeMap;
use std::time::Duration;

use image_format::{ApplicationId, Epoch};

use super::glob::Glob;
use crate::Tag;

/// The rules. Without any, only what is pinned stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// The newest so many.
    pub last: u32,
    /// All that are at most so much older than the newest one.
    pub within: Option<Duration>,
    /// The newest of so many hours.
    pub hourly: u32,
    /// The newest of so many days.
    pub daily: u32,
    /// The newest of so many weeks.
    pub weekly: u32,
    /// Those with a matching tag.
    pub tags: Vec<Glob>,
}

/// What a decision is made about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The application.
    pub application: ApplicationId,
    /// Its place in the line.
    pub epoch: Epoch,
    /// Seconds since 1970; none where its text tells no time after that, which counts as very old.
    pub created: Option<u64>,
    /// All of its tags.
    pub tags: Vec<Tag>,
}

/// What becomes of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It stays, for at least one reason.
    Keep(Vec<Reason>),
    /// No rule keeps it.
    Remove,
}

/// Why a checkpoint stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It is one of the newest.
    Last,
    /// It is not much older than the newest.
    Within,
    /// It is the newest of an hour.
    Hourly,
    /// It is the newest of a day.
    Daily,
    /// It is the newest of a week.
    Weekly,
    /// It has this tag.
    Tag(Tag),
    /// It is pinned.
    Pinned,
    /// It is the newest of its application that is whole, and all others that stay are not.
    Whole,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Last => f.write_str("last"),
            Self::Within => f.write_str("within"),
            Self::Hourly => f.write_str("hourly"),
            Self::Daily => f.write_str("daily"),
            Self::Weekly => f.write_str("weekly"),
            Self::Tag(tag) => write!(f, "tag {tag}"),
            Self::Pinned => f.write_str("pinned"),
            Self::Whole => f.write_str("the newest that is whole"),
        }
    }
}

impl Policy {
    /// Whether there is no rule at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What becomes of each candidate, in their order. `now`, in seconds since 1970, is only asked so that a checkpoint with a
    /// time in the future does not make all others old.
    #[must_use]
    pub fn decide(&self, candidates: &[Candidate], now: u64) -> Vec<Decision> {
        let mut lines: BTreeMap<&ApplicationId, Vec<usize>> = BTreeMap::new();
        for (position, candidate) in candidates.iter().enumerate() {
            lines.entry(&candidate.application).or_default().push(position);
        }
        let mut decisions = vec![Decision::Remove; candidates.len()];
        for line in lines.values_mut() {
            let age = |position: &usize| (candidates[*position].epoch, candidates[*position].created);
            line.sort_by_key(|position| std::cmp::Reverse(age(position)));
            let members: Vec<&Candidate> = line.iter().map(|position| &candidates[*position]).collect();
            for (position, reasons) in line.iter().zip(self.reasons(&members, now)) {
                if !reasons.is_empty() {
                    decisions[*position] = Decision::Keep(reasons);
                }
            }
        }
        decisions
    }

    /// Why each checkpoint of one application stays, the newest first.
    fn reasons(&self, line: &[&Candidate], now: u64) -> Vec<Vec<Reason>> {
        let newest = line.first().and_then(|newest| newest.created).unwrap_or(0).min(now);
        let since = self.within.map(|within| newest.saturating_sub(within.as_secs()));
        let mut buckets = [
            Bucket::new(self.hourly, 3600, 0, Reason::Hourly),
            Bucket::new(self.daily, DAY, 0, Reason::Daily),
            // 1970 began on a Thursday, three days after a Monday.
            Bucket::new(self.weekly, 7 * DAY, 3 * DAY, Reason::Weekly),
        ];
        let mut kept = Vec::new();
        for (position, candidate) in line.iter().enumerate() {
            let created = candidate.created.unwrap_or(0);
            let oldest = position + 1 == line.len();
            let mut reasons = Vec::new();
            if candidate.tags.iter().any(super::is_pin) {
                reasons.push(Reason::Pinned);
            }
            let named = candidate.tags.iter().find(|tag| self.tags.iter().any(|glob| glob.matches(tag)));
            reasons.extend(named.cloned().map(Reason::Tag));
            if u32::try_from(position).is_ok_and(|position| position < self.last) {
                reasons.push(Reason::Last);
            }
            if since.is_some_and(|since| created >= since) {
                reasons.push(Reason::Within);
            }
            reasons.extend(buckets.iter_mut().filter_map(|bucket| bucket.take(created, oldest)));
            kept.push(reasons);
        }
        kept
    }
}

const DAY: u64 = 86_400;

/// One of the rules that keep the newest of each length of time.
struct Bucket {
    left: u32,
    seconds: u64,
    shift: u64,
    last: Option<u64>,
    reason: Reason,
}

impl Bucket {
    fn new(left: u32, seconds: u64, shift: u64, reason: Reason) -> Self {
        Self { left, seconds, shift, last: None, reason }
    }

    fn take(&mut self, created: u64, oldest: bool) -> Option<Reason> {
        let number = created.saturating_add(self.shift) / self.seconds;
        if self.left == 0 || (self.last == Some(number) && !oldest) {
            return None;
        }
        self.left -= 1;
        self.last = Some(number);
        Some(self.reason.clone())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Some Wednesday at noon.
    const NOON: u64 = 1_767_787_200;
    const HOUR: u64 = 3600;

    fn candidate(epoch: u64, created: u64, tags: &[&str]) -> Candidate {
        let tags = tags.iter().map(|tag| tag.parse().unwrap()).collect();
        Candidate { application: "ledger".parse().unwrap(), epoch: Epoch(epoch), created: Some(created), tags }
    }

    /// Epochs that stay, of checkpoints so many seconds before noon, the newest first.
    fn kept(policy: &Policy, ages: &[u64]) -> Vec<u64> {
        let line: Vec<_> =
            ages.iter().rev().enumerate().map(|(n, age)| candidate(n as u64 + 1, NOON - age, &[])).collect();
        let decisions = policy.decide(&line, NOON);
        let keeps = |(candidate, decision): (&Candidate, &Decision)| {
            matches!(decision, Decision::Keep(_)).then_some(candidate.epoch.0)
        };
        line.iter().zip(&decisions).filter_map(keeps).rev().collect()
    }

    #[test]
    fn the_newest_by_number_and_by_age() {
        let ages = [0, 10, HOUR, 2 * HOUR, 30 * HOUR];
        assert_eq!(kept(&Policy { last: 2, ..Policy::default() }, &ages), [5, 4]);
        assert_eq!(kept(&Policy { last: 9, ..Policy::default() }, &ages), [5, 4, 3, 2, 1]);
        let within = |seconds| Policy { within: Some(Duration::from_secs(seconds)), ..Policy::default() };
        assert_eq!(kept(&within(HOUR), &ages), [5, 4, 3]);
        assert_eq!(kept(&within(HOUR - 1), &ages), [5, 4]);
        // Counted from the newest, not from now.
        let late = [candidate(1, NOON - 20 * DAY, &[]), candidate(2, NOON - 10 * DAY, &[])];
        assert_eq!(within(HOUR).decide(&late, NOON), [Decision::Remove, Decision::Keep(vec![Reason::Within])]);
    }

    #[test]
    fn the_newest_of_each_time() {
        // Every half hour for three days.
        let ages: Vec<u64> = (0..144).map(|n| n * HOUR / 2).collect();
        // Noon is the newest of its hour; 11:30, 10:30 and 9:30 of theirs.
        assert_eq!(kept(&Policy { hourly: 4, ..Policy::default() }, &ages), [144, 143, 141, 139]);
        // Noon of this day and 23:30 of the days before.
        assert_eq!(kept(&Policy { daily: 3, ..Policy::default() }, &ages), [144, 119, 71]);
        // Wednesday, and as there is no other week the oldest, which is on Sunday.
        assert_eq!(kept(&Policy { weekly: 1, ..Policy::default() }, &ages), [144]);
        let weeks: Vec<u64> = (0..30).map(|n| n * DAY).collect();
        // Wednesday, then Sundays 3, 10, 17 days ago.
        assert_eq!(kept(&Policy { weekly: 4, ..Policy::default() }, &weeks), [30, 27, 20, 13]);
        // The oldest counts while there are too few.
        assert_eq!(kept(&Policy { daily: 5, ..Policy::default() }, &[0, 10, 20, 30]), [4, 1]);
    }

    #[test]
    fn tags_and_pins_stay() {
        let line = [
            candidate(1, NOON - 400 * DAY, &["epoch-1", "pin-x"]),
            candidate(2, NOON - 300 * DAY, &["epoch-2", "release-2"]),
            candidate(3, NOON, &["epoch-3"]),
        ];
        let policy = Policy { tags: vec!["release-*".parse().unwrap()], ..Policy::default() };
        let tagged = Decision::Keep(vec![Reason::Tag("release-2".parse().unwrap())]);
        let pinned = Decision::Keep(vec![Reason::Pinned]);
        assert_eq!(policy.decide(&line, NOON), [pinned.clone(), tagged, Decision::Remove]);
        assert_eq!(Policy::default().decide(&line, NOON), [pinned, Decision::Remove, Decision::Remove]);
        assert!(Policy::default().is_empty() && !policy.is_empty());
    }

    #[test]
    fn each_application_has_rules_of_its_own() {
        let mut line = vec![candidate(7, NOON, &[]), candidate(8, NOON, &[]), candidate(1, NOON - DAY, &[])];
        line[2].application = "other".parse().unwrap();
        let decisions = Policy { last: 1, ..Policy::default() }.decide(&line, NOON);
        let last = Decision::Keep(vec![Reason::Last]);
        assert_eq!(decisions, [Decision::Remove, last.clone(), last]);
    }

    #[test]
    fn clocks_that_are_wrong_do_no_harm() {
        let policy = Policy { within: Some(Duration::from_secs(HOUR)), ..Policy::default() };
        let future = [candidate(2, NOON + 900 * DAY, &[]), candidate(1, NOON, &[])];
        assert!(policy.decide(&future, NOON).iter().all(|decision| *decision != Decision::Remove));
        let mut unknown = candidate(3, 0, &[]);
        unknown.created = None;
        let policy = Policy { last: 1, ..Policy::default() };
        assert_eq!(policy.decide(&[unknown, candidate(2, NOON, &[])], NOON)[1], Decision::Remove);
    }

    proptest! {
        /// The newest of each line stays under every rule about time, a further rule never removes, and order means nothing.
        #[test]
        fn rules_only_add(
            line in proptest::collection::vec((0u64..3, 1u64..40, 0u64..(60 * DAY)), 1..40),
            rules in (0u32..4, proptest::option::of(0u64..(9 * DAY)), 0u32..4, 0u32..4, 0u32..4),
            more in 0u32..6,
        ) {
            let mut line: Vec<_> = line
                .into_iter()
                .map(|(application, epoch, age)| Candidate {
                    application: format!("a{application}").parse().unwrap(),
                    ..candidate(epoch, NOON - age, &[])
                })
                .collect();
            let (last, within, hourly, daily, weekly) = rules;
            let within = within.map(Duration::from_secs);
            let policy = Policy { last, within, hourly, daily, weekly, tags: Vec::new() };
            let decisions = policy.decide(&line, NOON);
            let stays = |decision: &Decision| *decision != Decision::Remove;
            if !policy.is_empty() {
                for (position, candidate) in line.iter().enumerate() {
                    let rivals = line.iter().filter(|other| other.application == candidate.application);
                    let newest = rivals.map(|other| other.epoch).max();
                    if newest == Some(candidate.epoch)
                        && line.iter().filter(|other| other.application == candidate.application
                            && other.epoch == candidate.epoch).count() == 1 {
                        prop_assert!(stays(&decisions[position]));
                    }
                }
            }
            let wider = Policy { last: last + more, ..policy.clone() }.decide(&line, NOON);
            for (narrow, wide) in decisions.iter().zip(&wider) {
                prop_assert!(!stays(narrow) || stays(wide));
            }
            let count = decisions.iter().filter(|decision| stays(decision)).count();
            line.reverse();
            let reversed = policy.decide(&line, NOON);
            prop_assert_eq!(reversed.iter().filter(|decision| stays(decision)).count(), count);
        }
    }
}
