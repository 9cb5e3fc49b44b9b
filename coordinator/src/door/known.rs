//! Places for the connections of those who have shown a certificate.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image_format::MemberId;

use super::CONNECTIONS_OF_ONE;

/// How many connections there are, in all and of each member. Clones count together.
#[derive(Debug, Clone)]
pub(super) struct Known {
    most: usize,
    counts: Arc<Mutex<Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    of: HashMap<Option<MemberId>, usize>,
}

/// The place of one connection; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Seated {
    known: Known,
    member: Option<MemberId>,
}

impl Known {
    /// Room for so many in all.
    pub(super) fn new(most: usize) -> Self {
        Self { most, counts: Arc::default() }
    }

    /// A place for one more connection of this member, or of nobody whom a certificate names. None if there are too many: a member
    /// that opens many takes no place of another one.
    pub(super) fn enter(&self, member: Option<&MemberId>) -> Option<Seated> {
        let mut counts = self.counts();
        let its = counts.of.get(&member.cloned()).copied().unwrap_or(0);
        if counts.all >= self.most || its >= CONNECTIONS_OF_ONE {
            return None;
        }
        counts.all += 1;
        counts.of.insert(member.cloned(), its + 1);
        Some(Seated { known: self.clone(), member: member.cloned() })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        let mut counts = self.known.counts();
        counts.all -= 1;
        if let Some(its) = counts.of.get_mut(&self.member) {
            *its -= 1;
            if *its == 0 {
                counts.of.remove(&self.member);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_places_of_others() {
        let id = |member: &str| -> MemberId { member.parse().unwrap() };
        let (a, b) = (id("a"), id("b"));
        let known = Known::new(CONNECTIONS_OF_ONE + 2);
        let mut of_a: Vec<_> = (0..CONNECTIONS_OF_ONE).map(|_| known.enter(Some(&a)).unwrap()).collect();
        assert!(known.enter(Some(&a)).is_none());
        let (_b, nobody) = (known.enter(Some(&b)).unwrap(), known.enter(None).unwrap());
        assert!(known.enter(Some(&b)).is_none(), "there are too many in all");
        drop(nobody);
        assert!(known.enter(Some(&a)).is_none() && known.enter(Some(&b)).is_some());
        of_a.pop();
        assert!(known.enter(Some(&a)).is_some());
        drop(of_a);
        assert_eq!(known.counts().of.get(&Some(a)), None, "nothing is left of who has gone");
    }
}
