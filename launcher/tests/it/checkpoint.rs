//! A set is taken whole, and runs on; or nothing is permanent, and the set runs on all the same.

use std::time::{Duration, Instant};

use coordinator::Hook;
use launcher::{CheckpointErrorKind, MemberStep, Phase};

use super::fake::{Fault, eventually};
use super::set::{MEMBERS, Set};

#[tokio::test(flavor = "multi_thread")]
async fn a_set_is_taken_and_runs_on() {
    let set = Set::running().await;
    let report = set.take().await.unwrap();
    let members: Vec<_> = report.members.iter().map(|member| member.id.as_str()).collect();
    assert_eq!(members, MEMBERS);
    assert_eq!(set.engine.running(), MEMBERS);
    assert_eq!(set.tags().await, ["epoch-1"]);
    assert_eq!(set.leftovers(), [""; 0]);
    let mut order = set.told.phases();
    order.retain(|phase| matches!(phase, Phase::Dump | Phase::Capture | Phase::Pack | Phase::Commit));
    assert_eq!(order, [Phase::Dump, Phase::Capture, Phase::Pack, Phase::Commit]);
    assert_eq!(set.told.who(&MemberStep::Passed { hook: Hook::PostDump }).len(), 3);
    assert_eq!(set.take().await.unwrap().epoch.0, 2);
}

/// Invariants 5 and 7: whichever member fails, and however, nothing of the checkpoint is there.
#[tokio::test(flavor = "multi_thread")]
async fn one_member_that_fails_is_named_and_undoes_the_checkpoint() {
    let set = Set::running().await;
    for (fault, words) in [
        (Fault::At("pre-dump"), "CRIU failed"),
        (Fault::At("network-lock"), "CRIU failed"),
        (Fault::At("post-dump"), "CRIU failed"),
        (Fault::WithoutHooks, "without CRIU having run its hooks"),
    ] {
        set.engine.fail("consumer", Some(fault));
        let error = set.take().await.expect_err("one failed");
        assert!(matches!(*error.kind, CheckpointErrorKind::Aborted { .. }), "{fault:?}: {error}");
        assert_eq!(error.member.as_ref().map(|member| member.as_str()), Some("consumer"), "{fault:?}");
        assert!(engine::chain(&error).contains(words), "{fault:?}: {}", engine::chain(&error));
        assert_eq!(set.engine.running(), MEMBERS, "{fault:?}");
        assert_eq!(set.tags().await, [""; 0], "{fault:?}");
        assert_eq!(set.leftovers(), [""; 0], "{fault:?}");
    }
    set.engine.fail("consumer", None);
    set.take().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_dies_is_not_taken_for_one_that_was_dumped() {
    let set = Set::running().await;
    set.engine.fail("auditor", Some(Fault::Dies));
    let error = set.take().await.expect_err("one died");
    let CheckpointErrorKind::NotRunning { members, .. } = &*error.kind else { panic!("{error}") };
    assert_eq!(members.iter().map(|member| member.as_str()).collect::<Vec<_>>(), ["auditor"]);
    assert_eq!(set.engine.running(), ["consumer", "producer"]);
    assert_eq!(set.tags().await, [""; 0]);
}

/// Invariant 4: an engine that never comes to CRIU is waited for no longer than it was said.
#[tokio::test(flavor = "multi_thread")]
async fn the_wait_for_a_member_ends_by_its_deadline() {
    let mut set = Set::running().await;
    set.checkpoint.deadlines.gather = Duration::from_millis(300);
    set.engine.fail("producer", Some(Fault::Hangs));
    let begun = Instant::now();
    let error = set.take().await.expect_err("one never came");
    assert!(begun.elapsed() < Duration::from_secs(19), "its engine is killed in the end");
    assert_eq!(error.member.as_ref().map(|member| member.as_str()), Some("producer"), "{error}");
    assert_eq!(set.engine.running(), MEMBERS);
    assert_eq!(set.leftovers(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_is_cancelled_leaves_nothing() {
    let set = Set::running().await;
    set.engine.fail("producer", Some(Fault::Hangs));
    let arrived = MemberStep::Arrived { hook: Hook::PreDump };
    let cancelling = async {
        eventually("two at the first barrier", || set.told.who(&arrived).len() == 2).await;
        set.checkpoint.cancel.cancel();
    };
    let (taken, ()) = tokio::join!(set.take(), cancelling);
    assert!(matches!(*taken.expect_err("it was cancelled").kind, CheckpointErrorKind::Cancelled));
    assert_eq!(set.engine.running(), MEMBERS);
    assert_eq!(set.tags().await, [""; 0]);
    assert_eq!(set.leftovers(), [""; 0]);
}
