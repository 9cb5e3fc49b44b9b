//! Which guards begin, change and end: what is desired against what there is. No IO, no clock.
//!
//! ```text
//!   desired        no guard        guarded                                            given up
//!   Guard          Begin           Order, if interval or failure changed              Begin, if it is another plan
//!   RollBack       Begin           Order with the failure                             Begin, if it is another failure
//!   Leave, none    -               End                                                forgotten
//!   Unclear        -               goes on                                            -
//! ```
//!
//! Of whom a block is made is settled when its guard begins: while it is rolled back its containers come and go. Only where there are
//! more of them, or they are others, all there, its guard ends and another one begins.

use std::collections::{BTreeMap, BTreeSet};

use super::desired::{BlockPlan, Desired};
use super::ids::BlockId;
use crate::Orders;

/// A guard that there is, or was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Guarded {
    pub(super) plan: BlockPlan,
    pub(super) orders: Orders,
    pub(super) state: GuardedState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuardedState {
    AtWork,
    /// It was told to end.
    Ending,
    /// It ended by itself, and it would again.
    GivenUp,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Begin(BlockId, BlockPlan, Orders),
    Order(BlockId, Orders),
    End(BlockId),
    Forget(BlockId),
    /// Nothing, because of this.
    Tell(BlockId, String),
}

/// What is to be done about all blocks.
pub(super) fn steps(desired: BTreeMap<BlockId, Desired>, guarded: &BTreeMap<BlockId, Guarded>) -> Vec<Step> {
    let mut steps = Vec::new();
    let wanted: BTreeSet<BlockId> = desired.keys().cloned().collect();
    for (block, desired) in desired {
        let (plan, failure) = match desired {
            Desired::Guard(plan) => (plan, None),
            Desired::RollBack { plan, failure } => (plan, Some(failure)),
            Desired::Leave => {
                steps.extend(guarded.get(&block).and_then(|there| leave(block, there)));
                continue;
            }
            Desired::Unclear { reason } => {
                steps.push(Step::Tell(block, reason));
                continue;
            }
        };
        let orders = |before: Option<i64>| Orders { interval: plan.interval, failure: failure.max(before) };
        match guarded.get(&block) {
            None => {
                let orders = orders(None);
                steps.push(Step::Begin(block, plan, orders));
            }
            Some(there) => {
                let orders = orders(there.orders.failure);
                let other = is_other(&plan, &there.plan);
                match there.state {
                    GuardedState::AtWork if other => steps.push(Step::End(block)),
                    GuardedState::AtWork if orders != there.orders => steps.push(Step::Order(block, orders)),
                    GuardedState::GivenUp if other || orders != there.orders => {
                        steps.push(Step::Begin(block, plan, orders));
                    }
                    GuardedState::AtWork | GuardedState::GivenUp | GuardedState::Ending => {}
                }
            }
        }
    }
    let gone = guarded.iter().filter(|(block, _)| !wanted.contains(*block));
    steps.extend(gone.filter_map(|(block, there)| leave(block.clone(), there)));
    steps
}

fn leave(block: BlockId, there: &Guarded) -> Option<Step> {
    match there.state {
        GuardedState::AtWork => Some(Step::End(block)),
        GuardedState::Ending => None,
        GuardedState::GivenUp => Some(Step::Forget(block)),
    }
}

/// Whether a plan is for another guard than this one's: not if containers are merely missing.
fn is_other(new: &BlockPlan, old: &BlockPlan) -> bool {
    let all_there = old.members.keys().all(|member| new.members.contains_key(member));
    new.repository != old.repository || (all_there && new.members != old.members)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BLOCK: &str = "pb-mvp01-20200425-00000";

    fn plan(seconds: u64, members: &[&str]) -> BlockPlan {
        BlockPlan {
            application: BLOCK.parse().unwrap(),
            interval: Duration::from_secs(seconds),
            repository: "host:5000/sdp/x".parse().unwrap(),
            members: members.iter().map(|member| (member.parse().unwrap(), format!("c-{member}"))).collect(),
        }
    }

    fn orders(seconds: u64, failure: Option<i64>) -> Orders {
        Orders { interval: Duration::from_secs(seconds), failure }
    }

    fn guarded(state: GuardedState, failure: Option<i64>) -> BTreeMap<BlockId, Guarded> {
        let there = Guarded { plan: plan(30, &["a", "b"]), orders: orders(30, failure), state };
        BTreeMap::from([(BLOCK.parse().unwrap(), there)])
    }

    fn step(desired: Option<Desired>, guarded: &BTreeMap<BlockId, Guarded>) -> Option<Step> {
        let desired = desired.map(|desired| (BLOCK.parse().unwrap(), desired)).into_iter().collect();
        let mut steps = steps(desired, guarded);
        assert!(steps.len() <= 1, "{steps:?}");
        steps.pop()
    }

    #[test]
    fn a_guard_begins_changes_and_ends_with_its_block() {
        use GuardedState::{AtWork, Ending, GivenUp};
        let block: BlockId = BLOCK.parse().unwrap();
        let run = |seconds| Some(Desired::Guard(plan(seconds, &["a", "b"])));
        let failed = |failure| Some(Desired::RollBack { plan: plan(30, &["a", "b"]), failure });
        let unclear = Some(Desired::Unclear { reason: "x".to_owned() });
        let begin = |failure| Some(Step::Begin(block.clone(), plan(30, &["a", "b"]), orders(30, failure)));
        let none = BTreeMap::new();
        for (desired, there, expected) in [
            (run(30), &none, begin(None)),
            (failed(7), &none, begin(Some(7))),
            (Some(Desired::Leave), &none, None),
            (None, &none, None),
            (run(30), &guarded(AtWork, None), None),
            (run(5), &guarded(AtWork, Some(7)), Some(Step::Order(block.clone(), orders(5, Some(7))))),
            (failed(7), &guarded(AtWork, None), Some(Step::Order(block.clone(), orders(30, Some(7))))),
            (failed(7), &guarded(AtWork, Some(7)), None),
            (failed(9), &guarded(AtWork, Some(7)), Some(Step::Order(block.clone(), orders(30, Some(9))))),
            (unclear, &guarded(AtWork, None), Some(Step::Tell(block.clone(), "x".to_owned()))),
            (Some(Desired::Leave), &guarded(AtWork, None), Some(Step::End(block.clone()))),
            (None, &guarded(AtWork, None), Some(Step::End(block.clone()))),
            (None, &guarded(Ending, None), None),
            (run(30), &guarded(Ending, None), None),
            (run(30), &guarded(GivenUp, None), None),
            (failed(7), &guarded(GivenUp, None), begin(Some(7))),
            (failed(7), &guarded(GivenUp, Some(7)), None),
            (None, &guarded(GivenUp, None), Some(Step::Forget(block.clone()))),
        ] {
            let words = format!("{desired:?} {there:?}");
            assert_eq!(step(desired, there), expected, "{words}");
        }
    }

    #[test]
    fn containers_that_are_missing_are_no_other_plan() {
        let there = guarded(GuardedState::AtWork, None);
        let with = |members: &[&str]| step(Some(Desired::Guard(plan(30, members))), &there);
        assert_eq!(with(&["a"]), None, "it is being rolled back, say");
        assert_eq!(with(&["a", "b", "c"]), Some(Step::End(BLOCK.parse().unwrap())));
        let mut renamed = plan(30, &["a", "b"]);
        renamed.members.insert("b".parse().unwrap(), "c-b-2".to_owned());
        assert_eq!(step(Some(Desired::Guard(renamed)), &there), Some(Step::End(BLOCK.parse().unwrap())));
    }
}
