//! Who waits for an answer, and how many of them are told at once.
//!
//! All members of a barrier are released by one loop that writes to one socket after the other, on the spot: no task is
//! woken between them, and none of the hooks that the first answers wake gets the processor of the last ones (measured with
//! `tests/bench/barrier`).

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use rustix::process::{getpriority_process, setpriority_process};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::unconstrained;
use tokio::time::timeout;

use super::PATIENCE;
use crate::proto::Reply;
use crate::wire::{self, Answer};

/// The priority of the thread that tells, where the system grants it.
const FIRST_OF_ALL: i32 = -20;

/// One hook that waits. Dropped without an answer, its connection ends, and the hook fails closed.
pub(crate) struct Waiting {
    stream: Box<dyn AsyncWrite + Send + Unpin>,
    /// Dropped when the connection may end.
    done: oneshot::Sender<()>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").finish_non_exhaustive()
    }
}

impl Waiting {
    /// Who is told by this half of its connection, and what ends when it needs the connection no longer.
    pub(super) fn at(stream: impl AsyncWrite + Send + Unpin + 'static) -> (Self, oneshot::Receiver<()>) {
        let (done, over) = oneshot::channel();
        (Self { stream: Box::new(stream), done }, over)
    }

    /// Answers one hook.
    pub(crate) fn answer(self, reply: Reply) {
        answer_all([(self, reply)]);
    }

    /// Sends the answer, if the connection takes it as it is; otherwise a task of its own goes on with that.
    fn send(self, reply: Reply) {
        let Self { mut stream, done } = self;
        let mut sending = Box::pin(async move {
            send(&mut stream, &Answer { version: wire::VERSION, reply }).await;
            drop(done);
        });
        if poll_once(sending.as_mut()).is_pending() {
            tokio::spawn(sending);
        }
    }
}

/// Answers many hooks before any of them, woken, takes the processor away.
pub(crate) fn answer_all(answers: impl IntoIterator<Item = (Waiting, Reply)>) {
    let mut answers = answers.into_iter().peekable();
    let Some((first, reply)) = answers.next() else { return };
    let _first_of_all = answers.peek().is_some().then(Precedence::take);
    first.send(reply);
    for (waiting, reply) in answers {
        waiting.send(reply);
    }
}

/// Sends a message; whether it could be, in time.
pub(crate) async fn send(stream: &mut (impl AsyncWrite + Unpin), message: &impl serde::Serialize) -> bool {
    let Ok(frame) = wire::encode(message) else { return false };
    let sent = async {
        stream.write_all(&frame).await?;
        stream.flush().await
    };
    matches!(timeout(PATIENCE, sent).await, Ok(Ok(())))
}

/// Without the runtime's share of steps for one task, of which a thousand answers would need more.
fn poll_once(future: impl Future<Output = ()> + Unpin) -> Poll<()> {
    pin!(unconstrained(future)).poll(&mut Context::from_waker(Waker::noop()))
}

/// This thread before all others, until it is dropped. Whoever may not have that is only later.
struct Precedence {
    before: Option<i32>,
}

impl Precedence {
    fn take() -> Self {
        // Of Linux's threads each has a priority of its own, and none given means the one that asks.
        let before = getpriority_process(None).ok();
        Self { before: before.filter(|_| setpriority_process(None, FIRST_OF_ALL).is_ok()) }
    }
}

impl Drop for Precedence {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // To lower it again is always granted.
            let _ = setpriority_process(None, before);
        }
    }
}
