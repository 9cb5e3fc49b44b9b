//! The programs of engines that work for the members of a session.

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::ENDING;

/// How a program ended.
#[derive(Debug)]
pub(crate) enum EngineEnd<M> {
    /// By itself, or since it was ended: with what the engine says about a failure.
    Ended(M, Result<(), String>),
    /// Only a panic or the end of the runtime comes to this. For whom it worked is not known any more.
    Lost(String),
}

/// Programs of engines that run. Dropped, they go on alone.
#[derive(Debug)]
pub(crate) struct Engines<M> {
    programs: JoinSet<(M, Result<(), String>)>,
    /// Ends programs that do not end by themselves.
    kill: CancellationToken,
}

impl<M> Default for Engines<M> {
    fn default() -> Self {
        Self { programs: JoinSet::new(), kill: CancellationToken::new() }
    }
}

impl<M: Send + 'static> Engines<M> {
    /// Starts one. The token that `program` gets is cancelled when the program is to be ended by force.
    pub(crate) fn start<F>(&mut self, member: M, program: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let running = program(self.kill.clone());
        self.programs.spawn(async move { (member, running.await) });
    }

    /// The next one that ends; `None` if none runs any more.
    pub(crate) async fn next(&mut self) -> Option<EngineEnd<M>> {
        Some(match self.programs.join_next().await? {
            Ok((member, ended)) => EngineEnd::Ended(member, ended),
            Err(error) => EngineEnd::Lost(format!("the task of an engine ended: {error}")),
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// Ends all by force, which takes a moment.
    pub(crate) fn kill(&self) {
        self.kill.cancel();
    }

    /// Waits for none of them any longer.
    pub(crate) fn give_up(&mut self) {
        self.programs.abort_all();
    }

    /// Waits until all have ended, in order or by force.
    pub(crate) async fn end(mut self) -> Vec<(M, Result<(), String>)> {
        let mut all = Vec::new();
        let until = Instant::now() + ENDING;
        loop {
            let next = match timeout_at(until, self.next()).await {
                Ok(next) => next,
                Err(_) => {
                    self.kill.cancel();
                    self.next().await
                }
            };
            match next {
                None => return all,
                Some(EngineEnd::Ended(member, ended)) => all.push((member, ended)),
                // Whoever waits for its member sees the end of what it wrote.
                Some(EngineEnd::Lost(_)) => {}
            }
        }
    }
}
