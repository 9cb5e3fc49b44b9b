//! Which part of a member's memory is read next: one that a task waits for, and as long as none does, the next one.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use image_format::LazyPages;

use super::memory::Asked;

/// What a reader is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    /// What is here already.
    Here,
    Part(usize),
}

/// What becomes of an asked page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is here already.
    Here,
    /// Its part is being read, or will be soon.
    Coming,
}

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Parts that nobody has begun with.
    left: VecDeque<usize>,
    /// Those of them that a task waits for.
    urgent: VecDeque<usize>,
    here: bool,
    /// All may be read, for the tasks may run.
    open: bool,
    /// Readers at work.
    reading: usize,
    stopped: bool,
}

impl Queue {
    pub fn new(pages: &LazyPages) -> Self {
        let left = (0..pages.parts()).filter(|part| !pages.is_here(*part)).collect();
        let state = State { left, urgent: VecDeque::new(), here: true, open: false, reading: 0, stopped: false };
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

    /// A task waits for a page.
    pub fn ask(&self, pages: &LazyPages, (process, origin): Asked) -> Answer {
        if pages.has_here(process, origin) {
            return Answer::Here;
        }
        let Some(part) = pages.likely_part(process, origin) else { return Answer::Coming };
        let mut state = self.state();
        if state.left.contains(&part) && !state.urgent.contains(&part) {
            state.urgent.push_back(part);
            self.changed.notify_all();
        }
        Answer::Coming
    }

    /// The next thing to read, once there is one; nothing when all is read or nothing is to be read any more. A reader for tasks that wait
    /// takes nothing else, so that there is always one.
    pub fn next(&self, only_urgent: bool) -> Option<Job> {
        let mut state = self.state();
        loop {
            if state.stopped || state.open && state.left.is_empty() && !state.here {
                return None;
            }
            if let Some(part) = state.urgent.pop_front() {
                state.left.retain(|other| *other != part);
                state.reading += 1;
                return Some(Job::Part(part));
            }
            if state.open && !only_urgent {
                if std::mem::take(&mut state.here) {
                    state.reading += 1;
                    self.changed.notify_all();
                    return Some(Job::Here);
                }
                if let Some(part) = state.left.pop_front() {
                    state.reading += 1;
                    self.changed.notify_all();
                    return Some(Job::Part(part));
                }
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A reader is done with its part. `true`: that was the last one of all.
    pub fn done(&self) -> bool {
        let mut state = self.state();
        state.reading -= 1;
        self.changed.notify_all();
        state.open && state.left.is_empty() && !state.here && state.reading == 0
    }
}
