//! A set comes back whole, or nothing of it runs.

use std::sync::Arc;

use coordinator::Hook;
use launcher::{MemberStep, Problem, RestoreErrorKind, restore};

use super::fake::{Fault, eventually};
use super::set::{MEMBERS, Set};

#[tokio::test(flavor = "multi_thread")]
async fn a_set_comes_back_and_not_twice() {
    let set = Set::running().await;
    let root = set.taken_and_gone().await;
    let report = set.bring_back(&root).await.unwrap();
    assert_eq!((report.members.len(), report.attempts), (3, 1));
    assert_eq!(set.engine.running(), MEMBERS);
    assert_eq!(set.leftovers(), [""; 0]);

    // Invariant 8.
    let error = set.bring_back(&root).await.expect_err("it runs already");
    let RestoreErrorKind::Preflight { problems } = &*error.kind else { panic!("{error}") };
    let there = |problem: &&Problem| matches!(problem, Problem::ContainerExists { .. });
    assert_eq!(problems.iter().filter(there).count(), 3, "{problems:?}");
    assert_eq!(set.engine.running(), MEMBERS);
}

/// Invariants 2 and 5: wherever one member fails, no other has run an instruction, and nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn one_member_that_fails_keeps_all_from_running() {
    let set = Set::running().await;
    let root = set.taken_and_gone().await;
    for (fault, words) in [
        (Fault::At("pre-restore"), "CRIU failed"),
        (Fault::At("post-restore"), "CRIU failed"),
        (Fault::At("pre-resume"), "CRIU failed"),
        (Fault::WithoutHooks, "without CRIU having run its hooks"),
    ] {
        set.engine.fail("producer", Some(fault));
        let error = set.bring_back(&root).await.expect_err("one failed");
        assert!(matches!(*error.kind, RestoreErrorKind::Aborted { .. }), "{fault:?}: {error}");
        assert_eq!(error.member.as_ref().map(|member| member.as_str()), Some("producer"), "{fault:?}");
        assert!(engine::chain(&error).contains(words), "{fault:?}: {}", engine::chain(&error));
        assert_eq!(set.engine.names(), [""; 0], "{fault:?}");
        assert_eq!(MEMBERS.map(|member| set.engine.ever_ran(member)), [false; 3], "{fault:?}");
        assert_eq!(set.leftovers(), [""; 0], "{fault:?}");
    }
    set.engine.fail("producer", None);
    set.bring_back(&root).await.unwrap();
    eventually("all run", || MEMBERS.iter().all(|member| set.engine.ever_ran(member))).await;
}

/// Invariant 5: an engine that says of a released member that it does not run is believed.
#[tokio::test(flavor = "multi_thread")]
async fn absence_after_the_release_ends_the_set() {
    let set = Set::running().await;
    let root = set.taken_and_gone().await;
    set.engine.fail("auditor", Some(Fault::SaysThatItDoesNotRun));
    let error = set.bring_back(&root).await.expect_err("one does not run");
    assert_eq!(error.member.as_ref().map(|member| member.as_str()), Some("auditor"));
    assert!(engine::chain(&error).contains("its engine says that it does not run"), "{error}");
    assert_eq!(set.engine.names(), [""; 0], "all or none");
    assert_eq!(set.leftovers(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_fails_is_tried_again() {
    let mut set = Set::running().await;
    set.restore.attempts = 2;
    let root = set.taken_and_gone().await;
    set.engine.fail("consumer", Some(Fault::At("post-restore")));
    let mending = async {
        eventually("a first attempt that failed", || !set.told.warnings().is_empty()).await;
        set.engine.fail("consumer", None);
    };
    let (report, ()) = tokio::join!(set.bring_back(&root), mending);
    assert_eq!(report.unwrap().attempts, 2);
    assert_eq!(set.engine.running(), MEMBERS);
}

/// Invariant 7: what a launcher that died leaves runs nothing, and goes with the next restore.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_launcher_left_is_taken_away_by_the_next() {
    let set = Set::running().await;
    let root = set.taken_and_gone().await;
    set.engine.fail("producer", Some(Fault::Hangs));
    let arrived = MemberStep::Arrived { hook: Hook::PreRestore };
    {
        let restoring = restore(Arc::clone(&set.store), root.clone(), &set.restore, &set.told);
        tokio::select! {
            ended = restoring => panic!("{ended:?}"),
            () = eventually("two at the first barrier", || set.told.who(&arrived).len() == 2) => {}
        }
    }
    assert_ne!(set.leftovers(), [""; 0], "its record says what it was about to make");
    assert_eq!(MEMBERS.map(|member| set.engine.ever_ran(member)), [false; 3]);
    set.engine.fail("producer", None);
    set.bring_back(&root).await.unwrap();
    assert!(set.told.warnings().iter().any(|warning| warning.contains("was killed before its set ran")));
    assert_eq!(set.engine.running(), MEMBERS);
    assert_eq!(set.leftovers(), [""; 0]);
}
