//! A bounded room for those who have not shown who they are.
//!
//! Whoever comes when the room is full pushes out the one who came first, and nobody stays longer than a deadline. So those who
//! connect and say nothing cannot keep anybody else out: one who can show who it is needs a place for a moment only.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

/// The room. Clones are the same room.
#[derive(Debug, Clone)]
pub struct Strangers {
    most: usize,
    inside: Arc<Mutex<Inside>>,
}

#[derive(Debug, Default)]
struct Inside {
    next: u64,
    /// In the order in which they came.
    places: VecDeque<(u64, PushOut)>,
}

/// What ends a stranger.
struct PushOut(Box<dyn FnOnce() + Send>);

impl fmt::Debug for PushOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PushOut(..)")
    }
}

/// A stranger's place; dropping it leaves the room.
#[derive(Debug)]
pub struct Place {
    room: Strangers,
    number: u64,
}

impl Strangers {
    /// A room for so many at the same time.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, inside: Arc::default() }
    }

    /// Lets one more in. `push_out` is called when the place is needed for somebody who came later, and not after the place was
    /// left.
    pub fn enter(&self, push_out: impl FnOnce() + Send + 'static) -> Place {
        let number = {
            let mut inside = self.inside();
            let number = inside.next;
            inside.next += 1;
            inside.places.push_back((number, PushOut(Box::new(push_out))));
            number
        };
        if self.inside().places.len() > self.most {
            self.push_out_oldest();
        }
        Place { room: self.clone(), number }
    }

    /// The result of what a stranger does, who is let in at once; `None` if that takes longer than `within`, or if the stranger was
    /// pushed out.
    pub fn host<T, V>(&self, within: Duration, visit: V) -> impl Future<Output = Option<T>> + use<T, V>
    where
        V: Future<Output = T>,
    {
        let (push, pushed_out) = oneshot::channel::<()>();
        let place = self.enter(move || drop(push));
        async move {
            let done = tokio::select! {
                biased;
                _ = pushed_out => None,
                done = timeout(within, visit) => done.ok(),
            };
            done.filter(|_| place.leave())
        }
    }

    /// Makes room, where something else than places is short. False if nobody is there.
    pub fn push_out_oldest(&self) -> bool {
        let oldest = self.inside().places.pop_front();
        // Not under the lock: it may do anything.
        oldest.map(|(_, PushOut(push_out))| push_out()).is_some()
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Leaves the room: this one has shown who it is. False if it was pushed out before.
    #[must_use]
    pub fn leave(self) -> bool {
        self.clear()
    }

    fn clear(&self) -> bool {
        let mut inside = self.room.inside();
        match inside.places.binary_search_by_key(&self.number, |(number, _)| *number) {
            Ok(at) => inside.places.remove(at).is_some(),
            Err(_) => false,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn who_comes_when_it_is_full_pushes_out_who_came_first() {
        let room = Strangers::new(3);
        let (tell, told) = mpsc::channel();
        let enter = |name: u32| {
            let tell = tell.clone();
            room.enter(move || tell.send(name).unwrap())
        };
        let [first, second, third] = [1, 2, 3].map(enter);
        assert!(told.try_recv().is_err());
        // Who has left, in whichever way, makes room.
        assert!(second.leave());
        let fourth = enter(4);
        assert!(told.try_recv().is_err());
        let fifth = enter(5);
        assert_eq!(told.try_recv(), Ok(1));
        assert!(!first.leave(), "it was pushed out");
        drop(third);
        let _sixth = enter(6);
        assert!(told.try_recv().is_err());
        assert!(room.push_out_oldest());
        assert_eq!(told.try_recv(), Ok(4));
        assert!(!fourth.leave() && fifth.leave() && room.push_out_oldest());
        assert_eq!((told.try_recv(), room.push_out_oldest()), (Ok(6), false));
    }

    #[tokio::test]
    async fn a_visit_ends_by_itself_by_a_newcomer_or_by_its_deadline() {
        const MINUTE: Duration = Duration::from_secs(60);
        let room = Strangers::new(1);
        assert_eq!(room.host(MINUTE, ready(1)).await, Some(1));
        assert_eq!(room.host(Duration::from_millis(20), pending::<()>()).await, None, "the time is up");
        let first = room.host(MINUTE, ready(1));
        let second = room.host(MINUTE, ready(2));
        assert_eq!((first.await, second.await), (None, Some(2)), "places are taken before anybody waits");
        assert!(!room.push_out_oldest(), "everybody has left");
    }
}
