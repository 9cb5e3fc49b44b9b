//! Stopping early: a signal drops what is asynchronous and fails what is not at its next write.

use std::fmt;
use std::io::{self, Write};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::exit::Exit;

/// Whether the command was told to stop.
#[derive(Debug, Clone, Default)]
pub struct Cancel(CancellationToken);

impl Cancel {
    /// Trips at the first signal, and gives its name then.
    pub async fn on(&self, signals: Signals) -> &'static str {
        let signal = signals.first().await;
        self.0.cancel();
        signal
    }

    /// An error once the command was told to stop.
    pub fn check(&self) -> io::Result<()> {
        if self.0.is_cancelled() { Err(io::Error::other(Interrupted("a signal"))) } else { Ok(()) }
    }

    /// A writer that fails once the command was told to stop.
    pub fn guard<W>(&self, inner: W) -> Guarded<W> {
        Guarded { inner, cancel: self.clone() }
    }

    /// For libraries that stop by themselves.
    pub fn token(&self) -> CancellationToken {
        self.0.clone()
    }
}

/// The command was told to stop.
#[derive(Debug, thiserror::Error)]
#[error("stopped by {0}")]
pub struct Interrupted(pub &'static str);

/// SIGINT and SIGTERM, heard from the moment this is made.
#[derive(Debug)]
pub struct Signals(Option<(Signal, Signal)>);

impl Signals {
    /// Starts to listen. Where that cannot be, the kernel's own way of stopping the process stays in force.
    pub fn listen() -> Self {
        Self(signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?))).ok())
    }

    /// Waits for the first one and gives its name. Whoever sends a second one does not want to wait for the clean-up.
    pub async fn first(self) -> &'static str {
        let Some((mut int, mut term)) = self.0 else {
            return std::future::pending().await;
        };
        let name = either(&mut int, &mut term).await;
        tokio::spawn(async move {
            either(&mut int, &mut term).await;
            std::process::exit(Exit::Interrupted.code().into());
        });
        name
    }
}

async fn either(int: &mut Signal, term: &mut Signal) -> &'static str {
    tokio::select! {
        _ = int.recv() => "SIGINT",
        _ = term.recv() => "SIGTERM",
    }
}

/// A writer that fails once its command was told to stop.
pub struct Guarded<W> {
    inner: W,
    cancel: Cancel,
}

impl<W> Guarded<W> {
    /// The writer inside.
    pub fn into_inner(self) -> W {
        self.inner
    }
}

impl<W> fmt::Debug for Guarded<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}

impl<W: Write> Write for Guarded<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.cancel.check()?;
        self.inner.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
