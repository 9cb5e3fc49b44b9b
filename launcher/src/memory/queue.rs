//! Which part of a member's memory is read next: one that a task waits for, and as long as none does, the next one.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What a reader is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    /// What is here already.
    Here,
    Part(usize),
}

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// What nobody has begun with.
    left: VecDeque<Job>,
    /// Those of it that a task waits for.
    urgent: VecDeque<Job>,
    /// All may be read, for the tasks may run.
    open: bool,
    /// Readers at work.
    reading: usize,
    stopped: bool,
}

impl State {
    /// Nothing more is to be begun.
    fn is_empty(&self) -> bool {
        self.open && self.left.is_empty()
    }
}

impl Queue {
    /// What is here already comes first, then these parts.
    pub fn new(parts: impl IntoIterator<Item = usize>) -> Self {
        let left = [Job::Here].into_iter().chain(parts.into_iter().map(Job::Part)).collect();
        let state = State { left, urgent: VecDeque::new(), open: false, reading: 0, stopped: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// A panic elsewhere must not keep anybody from ending.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything may be read from now on.
    pub fn open(&self) {
        self.state().open = true;
        self.changed.notify_all();
    }

    /// Nothing is to be read any more.
    pub fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }

    pub fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// A task waits for this part. One that is being read, or was, comes anyway.
    pub fn ask(&self, part: usize) {
        let mut state = self.state();
        let job = Job::Part(part);
        if state.left.contains(&job) && !state.urgent.contains(&job) {
            state.urgent.push_back(job);
            self.changed.notify_all();
        }
    }

    /// The next thing to read, once there is one; nothing when all is read or nothing is to be read any more. A reader for tasks that wait
    /// takes nothing else, so that there is always one.
    pub fn next(&self, only_urgent: bool) -> Option<Job> {
        let mut state = self.state();
        loop {
            if state.stopped || state.is_empty() {
                return None;
            }
            let urgent = state.urgent.pop_front();
            let job = urgent.or_else(|| state.left.front().copied().filter(|_| state.open && !only_urgent));
            if let Some(job) = job {
                state.left.retain(|other| *other != job);
                state.urgent.retain(|other| *other != job);
                state.reading += 1;
                // Who waits may find that nothing is left.
                self.changed.notify_all();
                return Some(job);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A reader is done with its part. `true`: that was the last one of all.
    pub fn done(&self) -> bool {
        let mut state = self.state();
        state.reading -= 1;
        state.is_empty() && state.reading == 0
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn what_a_task_waits_for_comes_first_and_before_all_may_be_read() {
        let queue = Queue::new(0..4);
        queue.ask(2);
        queue.ask(2);
        queue.ask(9);
        assert_eq!(queue.next(false), Some(Job::Part(2)));
        assert!(!queue.done(), "the others are not read");
        queue.open();
        queue.ask(3);
        let order: Vec<_> = (0..4).map(|_| queue.next(false).unwrap()).collect();
        assert_eq!(order, [Job::Part(3), Job::Here, Job::Part(0), Job::Part(1)]);
        assert_eq!((0..4).map(|_| queue.done()).collect::<Vec<_>>(), [false, false, false, true]);
        assert_eq!((queue.next(false), queue.next(true)), (None, None));
    }

    #[test]
    fn one_reader_waits_for_those_that_tasks_wait_for() {
        let queue = Queue::new(0..2);
        thread::scope(|scope| {
            let urgent = scope.spawn(|| [queue.next(true), queue.next(true)]);
            queue.open();
            assert_eq!((queue.next(false), queue.next(false)), (Some(Job::Here), Some(Job::Part(0))));
            queue.ask(1);
            // Nothing is left then, which ends it.
            assert_eq!(urgent.join().unwrap(), [Some(Job::Part(1)), None]);
        });
    }

    #[test]
    fn nobody_waits_once_it_is_stopped() {
        let queue = Queue::new(0..2);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.next(false));
            queue.stop();
            assert_eq!(waiting.join().unwrap(), None);
        });
        assert!(queue.is_stopped());
    }
}
