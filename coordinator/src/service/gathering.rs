//! Who asked to join, and who is still awaited: sessions before they begin. No IO, no clock.
//!
//! Members that depend on each other, in whichever direction and over however many others, belong together. They are complete
//! when each of them has asked to join; until then one that leaves, or time that is up, is the end for all of them.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use image_format::MemberId;

use crate::proto::{ConnectionId, Moment, SessionKind};
use crate::wire::Join;

/// All sets that are not complete yet.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    sets: HashMap<u64, Set>,
    /// Which set a member is in, or is awaited in.
    of: HashMap<(SessionKind, MemberId), u64>,
    callers: HashMap<ConnectionId, (u64, MemberId)>,
    next: u64,
}

/// Members that belong together; those that have come, with the connections on which they wait.
#[derive(Debug)]
struct Set {
    kind: SessionKind,
    members: BTreeMap<MemberId, Vec<ConnectionId>>,
    awaited: usize,
    deadline: Moment,
}

/// A set of which everybody is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Complete {
    pub(super) kind: SessionKind,
    pub(super) members: Vec<MemberId>,
    pub(super) callers: Vec<(ConnectionId, MemberId)>,
}

/// A set that came to nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) kind: SessionKind,
    pub(super) callers: Vec<ConnectionId>,
    pub(super) reason: String,
}

impl Gathering {
    /// A member asks. It, and with it everybody whom it completes, waits no longer than `within` from now on.
    pub(super) fn join(&mut self, now: Moment, within: Duration, from: ConnectionId, join: Join) -> Option<Complete> {
        let Join { kind, member, dependencies } = join;
        let deadline = Moment::after_start(now.since_start().saturating_add(within));
        let mut set = self.set_of(kind, &member, deadline);
        for dependency in dependencies {
            let other = self.set_of(kind, &dependency, deadline);
            set = self.unite(set, other);
        }
        self.callers.insert(from, (set, member.clone()));
        let found = self.sets.get_mut(&set)?;
        let connections = found.members.entry(member).or_default();
        found.awaited -= usize::from(connections.is_empty());
        connections.push(from);
        if found.awaited > 0 {
            return None;
        }
        let done = self.take(set)?;
        let callers = done.members.iter().flat_map(|(member, callers)| callers.iter().map(|id| (*id, member.clone())));
        Some(Complete { kind: done.kind, callers: callers.collect(), members: done.members.into_keys().collect() })
    }

    /// A connection has ended: whoever waits with it need not wait any longer.
    pub(super) fn leave(&mut self, connection: ConnectionId) -> Option<Broken> {
        let (set, member) = self.callers.remove(&connection)?;
        let reason = format!("member {member} vanished before all were there");
        self.break_up(set, |_| reason)
    }

    /// When time is up for the first of the sets.
    pub(super) fn poll_timeout(&self) -> Option<Moment> {
        self.sets.values().map(|set| set.deadline).min()
    }

    /// The next set whose time is up.
    pub(super) fn handle_timeout(&mut self, now: Moment) -> Option<Broken> {
        let (late, _) = self.sets.iter().find(|(_, set)| set.deadline <= now)?;
        self.break_up(*late, |set| {
            let missing: Vec<&str> = set
                .members
                .iter()
                .filter(|(_, connections)| connections.is_empty())
                .map(|(member, _)| member.as_str())
                .collect();
            let named = missing.len().min(8);
            let more = match missing.len() - named {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("the time was up before all were there; missing: {}{more}", missing[..named].join(", "))
        })
    }

    fn break_up(&mut self, set: u64, reason: impl FnOnce(&Set) -> String) -> Option<Broken> {
        let set = self.take(set)?;
        let reason = reason(&set);
        Some(Broken { kind: set.kind, callers: set.members.into_values().flatten().collect(), reason })
    }

    fn take(&mut self, set: u64) -> Option<Set> {
        let set = self.sets.remove(&set)?;
        for (member, callers) in &set.members {
            self.of.remove(&(set.kind, member.clone()));
            for caller in callers {
                self.callers.remove(caller);
            }
        }
        Some(set)
    }

    /// The set that the member is in; one of its own if nobody knows it yet.
    fn set_of(&mut self, kind: SessionKind, member: &MemberId, deadline: Moment) -> u64 {
        let key = (kind, member.clone());
        if let Some(set) = self.of.get(&key) {
            return *set;
        }
        self.next += 1;
        let members = BTreeMap::from([(member.clone(), Vec::new())]);
        self.sets.insert(self.next, Set { kind, members, awaited: 1, deadline });
        self.of.insert(key, self.next);
        self.next
    }

    /// Makes two sets one, the larger of them; the earlier deadline holds.
    fn unite(&mut self, one: u64, other: u64) -> u64 {
        if one == other {
            return one;
        }
        let size = |set: &u64| self.sets.get(set).map_or(0, |set| set.members.len());
        let (into, from) = if size(&one) < size(&other) { (other, one) } else { (one, other) };
        let Some(gone) = self.sets.remove(&from) else { return into };
        let Some(kept) = self.sets.get_mut(&into) else { return into };
        kept.awaited += gone.awaited;
        kept.deadline = kept.deadline.min(gone.deadline);
        for (member, callers) in gone.members {
            for caller in &callers {
                self.callers.insert(*caller, (into, member.clone()));
            }
            self.of.insert((gone.kind, member.clone()), into);
            kept.members.insert(member, callers);
        }
        into
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn id(member: &str) -> MemberId {
        member.parse().expect("an id")
    }

    fn join(member: &str, dependencies: &[&str]) -> Join {
        Join {
            kind: SessionKind::Dump,
            member: id(member),
            dependencies: dependencies.iter().map(|id| self::id(id)).collect(),
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment::after_start(Duration::from_secs(seconds))
    }

    fn members(complete: Option<Complete>) -> Vec<String> {
        complete.map(|complete| complete.members.iter().map(ToString::to_string).collect()).unwrap_or_default()
    }

    #[test]
    fn a_set_is_complete_when_everybody_who_is_depended_on_has_come() {
        // In whichever order they come.
        let told = [("a", vec!["b"]), ("b", vec!["c"]), ("c", vec![]), ("d", vec!["a"]), ("e", vec!["c", "e"])];
        for first in 0..told.len() {
            let mut gathering = Gathering::default();
            // Those on whom others depend know nothing of them: they wait only if they are known to be awaited.
            assert_eq!(gathering.join(at(0), MINUTE, ConnectionId(50), join("z", &["a", "c", "d", "e"])), None);
            let mut complete = None;
            for step in 0..told.len() {
                assert_eq!(complete, None);
                let (member, dependencies) = &told[(first + step) % told.len()];
                complete = gathering.join(at(1), MINUTE, ConnectionId(step as u64), join(member, dependencies));
            }
            assert_eq!(members(complete), ["a", "b", "c", "d", "e", "z"]);
            assert!(gathering.sets.is_empty() && gathering.of.is_empty() && gathering.callers.is_empty());
        }
    }

    #[test]
    fn strangers_and_the_other_kind_are_sets_of_their_own() {
        let mut gathering = Gathering::default();
        assert_eq!(members(gathering.join(at(0), MINUTE, ConnectionId(1), join("alone", &[]))), ["alone"]);
        assert_eq!(gathering.join(at(0), MINUTE, ConnectionId(2), join("a", &["b"])), None);
        let restored = Join { kind: SessionKind::Restore, ..join("b", &["a"]) };
        assert_eq!(gathering.join(at(0), MINUTE, ConnectionId(3), restored), None);
        // The same one again, on another connection.
        assert_eq!(gathering.join(at(0), MINUTE, ConnectionId(4), join("a", &["b"])), None);
        let complete = gathering.join(at(0), MINUTE, ConnectionId(5), join("b", &[])).expect("complete");
        let callers = [(2, "a"), (4, "a"), (5, "b")].map(|(caller, member)| (ConnectionId(caller), id(member)));
        assert_eq!(complete.callers, callers);
    }

    #[test]
    fn one_that_leaves_and_time_that_is_up_end_it_for_all() {
        let mut gathering = Gathering::default();
        gathering.join(at(0), MINUTE, ConnectionId(1), join("a", &["b", "c"]));
        gathering.join(at(5), MINUTE, ConnectionId(2), join("b", &[]));
        gathering.join(at(7), MINUTE, ConnectionId(3), join("x", &["y"]));
        assert_eq!(gathering.poll_timeout(), Some(at(60)));
        assert_eq!(gathering.handle_timeout(at(59)), None);
        let mut broken = gathering.handle_timeout(at(60)).expect("late");
        broken.callers.sort();
        assert_eq!(broken.callers, [ConnectionId(1), ConnectionId(2)]);
        assert_eq!(broken.reason, "the time was up before all were there; missing: c");
        assert_eq!((gathering.handle_timeout(at(60)), gathering.leave(ConnectionId(1))), (None, None));
        let broken = gathering.leave(ConnectionId(3)).expect("broken");
        assert_eq!(broken.reason, "member x vanished before all were there");
        assert_eq!(gathering.poll_timeout(), None);
        // It may come back.
        gathering.join(at(70), MINUTE, ConnectionId(4), join("x", &["y"]));
        assert_eq!(members(gathering.join(at(71), MINUTE, ConnectionId(5), join("y", &["x"]))), ["x", "y"]);
    }
}
