//! A session as its launcher drives it, whether the members are dumped or restored, and whether this host
//! coordinates the session or takes part in it.
//!
//! ```text
//!   engines started ─▶ next() ─▶ Arrived, Passed ... ─▶ next()      the session tells what members do
//!                         │
//!                         ├────▶ AllFrozen: a dump's time to take the files
//!                         ├────▶ EngineEnded: failed, or ended without a word of the session
//!                         └────▶ Decided: released or aborted       always the last
//! ```
//!
//! An engine that ends well has released its member: the session's decision, which comes from the same
//! moment, is waited for before the engine's end is told.

mod engines;
mod handle;

use std::collections::VecDeque;

use coordinator::{Event, Hook, Outcome};
use image_format::MemberId;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, sleep_until};
use tokio_util::sync::CancellationToken;

pub(crate) use self::engines::{EngineEnd, Engines};
pub(crate) use self::handle::SessionHandle;
use crate::observer::Observer;

/// How long an engine may take to end once its session is decided. Hooks that are told to abort end CRIU at
/// once.
pub(crate) const ENDING: Duration = Duration::from_secs(10);

/// Between an engine's end and the news that its session released it: both come from the same moment.
const NEWS: Duration = Duration::from_secs(2);

/// Why a session came to nothing.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) member: Option<MemberId>,
    pub(crate) hook: Option<Hook>,
    pub(crate) reason: String,
    pub(crate) log_lines: Vec<String>,
    /// Members of a dump whose tasks are gone; the one that is named comes first.
    pub(crate) dead: Vec<MemberId>,
}

/// What happened in a session.
#[derive(Debug)]
pub(crate) enum Turn<M> {
    /// A member came to a hook or went on from one. The observer has been told.
    Event(Event),
    /// An engine's program ended before the session was decided. `Ok`: CRIU ran none of the session's hooks.
    EngineEnded(M, Result<(), String>),
    /// Every member of a dump stands frozen: the time to take the files. Told once.
    AllFrozen,
    /// The session is over.
    Decided(Outcome),
}

/// A session with the engines of its members on this host. `M` is what an engine's program works for.
pub(crate) struct SessionDriver<'a, M> {
    pub(crate) handle: SessionHandle<'a>,
    pub(crate) engines: Engines<M>,
    events: mpsc::UnboundedReceiver<Event>,
    /// Engines that ended well, until when the session's decision is waited for.
    ended: VecDeque<(M, Instant)>,
    cancel: &'a CancellationToken,
    cancelled: bool,
    asked: bool,
    observer: &'a dyn Observer,
}

impl<'a, M: Send + 'static> SessionDriver<'a, M> {
    pub(crate) fn new(
        mut handle: SessionHandle<'a>,
        cancel: &'a CancellationToken,
        observer: &'a dyn Observer,
    ) -> Self {
        let events = handle.events();
        let (engines, ended) = (Engines::default(), VecDeque::new());
        Self { handle, engines, events, ended, cancel, cancelled: false, asked: false, observer }
    }

    /// Waits for what happens next. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Turn<M> {
        loop {
            let waited = self.ended.front().map(|(_, until)| *until);
            tokio::select! {
                biased;
                outcome = self.handle.outcome() => return Turn::Decided(outcome),
                () = self.cancel.cancelled(), if !self.cancelled => {
                    self.cancelled = true;
                    self.handle.cancel("it was cancelled".to_owned()).await;
                }
                all_frozen = self.handle.to_capture(), if !self.asked => {
                    self.asked = true;
                    if all_frozen {
                        return Turn::AllFrozen;
                    }
                }
                Some(event) = self.events.recv() => {
                    self.tell(event.clone());
                    return Turn::Event(event);
                }
                () = sleep_until(waited.unwrap_or_else(Instant::now)), if waited.is_some() => {
                    if let Some((member, _)) = self.ended.pop_front() {
                        return Turn::EngineEnded(member, Ok(()));
                    }
                }
                Some(end) = self.engines.next() => match end {
                    EngineEnd::Ended(member, Ok(())) => self.ended.push_back((member, Instant::now() + NEWS)),
                    EngineEnd::Ended(member, Err(reason)) => return Turn::EngineEnded(member, Err(reason)),
                    EngineEnd::Lost(reason) => self.handle.cancel(reason).await,
                },
            }
        }
    }

    /// Tells the observer what members did in the last moment of a session that is decided.
    pub(crate) fn tell_the_rest(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.tell(event);
        }
    }

    fn tell(&self, event: Event) {
        self.observer.member(&event.member, event.step.into());
    }
}
