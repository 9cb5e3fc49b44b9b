//! The order in which members can be created.

use std::collections::HashMap;

use super::MemberEntry;
use crate::MemberId;

/// Why members cannot be put into an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OrderError {
    /// Two entries with one id.
    #[error("has the member {id} twice")]
    Duplicate {
        /// The id.
        id: MemberId,
    },
    /// One dependency listed twice.
    #[error("has the member {id}, which depends on {dependency} twice")]
    DuplicateDependency {
        /// The member.
        id: MemberId,
        /// The dependency.
        dependency: MemberId,
    },
    /// A dependency that is no member.
    #[error("has the member {id}, which depends on {dependency}, and no such member")]
    Unknown {
        /// The member.
        id: MemberId,
        /// The dependency.
        dependency: MemberId,
    },
    /// Members that wait for one another.
    #[error("has members that depend on one another in a circle: {}", circle_text(.members))]
    Circle {
        /// The circle, each member depending on the next and the last one on the first.
        members: Vec<MemberId>,
    },
}

/// `a -> b -> c -> a`; of a long circle, its start and its end.
fn circle_text(members: &[MemberId]) -> String {
    const SHOWN: usize = 16;
    let mut names: Vec<&str> = members.iter().take(SHOWN).map(MemberId::as_str).collect();
    if members.len() > SHOWN {
        names.push("...");
    }
    names.extend(members.first().map(MemberId::as_str));
    names.join(" -> ")
}

/// Checks ids and dependencies of members that are sorted by id.
pub(super) fn check(members: &[MemberEntry]) -> Result<(), OrderError> {
    if let Some(pair) = members.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(OrderError::Duplicate { id: pair[0].id.clone() });
    }
    for member in members {
        let mut seen = std::collections::HashSet::new();
        for dependency in &member.depends_on {
            if position(members, dependency).is_none() {
                return Err(OrderError::Unknown { id: member.id.clone(), dependency: dependency.clone() });
            }
            if !seen.insert(dependency) {
                return Err(OrderError::DuplicateDependency { id: member.id.clone(), dependency: dependency.clone() });
            }
        }
    }
    let levels = levels(members);
    match levels.iter().position(Option::is_none) {
        Some(start) => Err(OrderError::Circle { members: circle(members, &levels, start) }),
        None => Ok(()),
    }
}

/// The members by level.
pub(super) fn waves(members: &[MemberEntry]) -> Vec<Vec<&MemberEntry>> {
    let mut waves: Vec<Vec<&MemberEntry>> = Vec::new();
    for (member, level) in members.iter().zip(levels(members)) {
        let level = level.unwrap_or(0);
        waves.resize_with(waves.len().max(level + 1), Vec::new);
        waves[level].push(member);
    }
    waves
}

fn position(members: &[MemberEntry], id: &MemberId) -> Option<usize> {
    members.binary_search_by(|member| member.id.cmp(id)).ok()
}

/// Each member's level, one above the highest of its dependencies; `None` for members that wait for a circle.
fn levels(members: &[MemberEntry]) -> Vec<Option<usize>> {
    let mut dependants: HashMap<usize, Vec<usize>> = HashMap::new();
    let mut waiting_for: Vec<usize> = vec![0; members.len()];
    for (index, member) in members.iter().enumerate() {
        for dependency in member.depends_on.iter().filter_map(|id| position(members, id)) {
            dependants.entry(dependency).or_default().push(index);
            waiting_for[index] += 1;
        }
    }
    let mut levels = vec![None; members.len()];
    let mut ready: Vec<usize> = (0..members.len()).filter(|index| waiting_for[*index] == 0).collect();
    let mut level = 0;
    while !ready.is_empty() {
        let mut next = Vec::new();
        for index in ready {
            levels[index] = Some(level);
            for &dependant in dependants.get(&index).into_iter().flatten() {
                waiting_for[dependant] -= 1;
                if waiting_for[dependant] == 0 {
                    next.push(dependant);
                }
            }
        }
        ready = next;
        level += 1;
    }
    levels
}

/// The circle that `start` is part of or waits for. Of members without a level each has a dependency without one, so going
/// from one to the next must come back to where it was.
fn circle(members: &[MemberEntry], levels: &[Option<usize>], start: usize) -> Vec<MemberId> {
    let mut path = Vec::new();
    let mut step_of = HashMap::new();
    let mut current = Some(start);
    while let Some(index) = current {
        if let Some(first) = step_of.insert(index, path.len()) {
            return path.split_off(first);
        }
        path.push(members[index].id.clone());
        let dependencies = members[index].depends_on.iter().filter_map(|id| position(members, id));
        current = dependencies.into_iter().find(|dependency| levels[*dependency].is_none());
    }
    path
}
