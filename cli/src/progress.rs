//! Standard error: how far a command is, notes, warnings, and the error it ends with.
//!
//! On a terminal transfers are bars; elsewhere each finished one is a line, so that a log stays readable. With `-q` nothing
//! but warnings and errors is said.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use image_format::{BlobSink, BlobSource, BlobStore, Descriptor, Digest, MemberId};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use launcher::{MemberStep, Observer, Phase};
use registry::{Bridge, Progress, Put};

use crate::cancel::Cancel;
use crate::context::Context;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::output::{Verbosity, size, visible};

/// Transfers of so many bytes are worth a bar, and a line in a log.
const LARGE: u64 = 1 << 20;

/// Tells whoever watches.
#[derive(Debug)]
pub struct Reporter {
    verbosity: Verbosity,
    /// The bars, on a terminal.
    bars: Option<MultiProgress>,
    transfers: Mutex<HashMap<String, Transfer>>,
}

#[derive(Debug)]
struct Transfer {
    bytes: u64,
    bar: Option<ProgressBar>,
}

impl Reporter {
    /// On standard error.
    pub fn new(verbosity: Verbosity) -> Self {
        let bars = (verbosity > Verbosity::Quiet && io::stderr().is_terminal()).then(MultiProgress::new);
        Self { verbosity, bars, transfers: Mutex::default() }
    }

    /// Says what may interest; not with `-q`.
    pub fn note(&self, text: &str) {
        if self.verbosity > Verbosity::Quiet {
            self.line(text);
        }
    }

    /// Says what interests only with `-v`.
    pub fn detail(&self, text: &str) {
        if self.verbosity >= Verbosity::Verbose {
            self.line(text);
        }
    }

    /// Says what nobody may miss.
    pub fn warn(&self, text: &str) {
        self.line(&format!("warning: {text}"));
    }

    /// Says what the program ends with, and gives its exit code.
    pub fn failed(&self, error: &CommandError) -> ExitCode {
        if error.exit() != Exit::BrokenPipe {
            error.lines().iter().for_each(|line| self.line(line));
        }
        error.exit().into()
    }

    /// Standard error may be closed or full; nothing can be said about that anywhere.
    fn line(&self, text: &str) {
        // Each call says one line, and what others wrote into it begins none.
        let text = visible(text).replace('\n', "\\n");
        let write = || {
            let _ = writeln!(io::stderr().lock(), "{text}");
        };
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }

    /// A panic elsewhere must not silence what is said afterwards.
    fn transfers(&self) -> MutexGuard<'_, HashMap<String, Transfer>> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a transfer, which is said with `name` in a line. Small ones are of interest to few.
    fn finish(&self, blob: &str, name: &str, how: Option<Put>) {
        let Some(Transfer { bytes, bar }) = self.transfers().remove(blob) else {
            return;
        };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        let (bytes, said) = match how {
            Some(Put::Existed) => (0, "there already".to_owned()),
            Some(Put::Mounted) => (0, "mounted from another repository".to_owned()),
            Some(Put::Sent(bytes)) => (bytes, format!("{} written", size(bytes))),
            None => (bytes, format!("{} read", size(bytes))),
        };
        let line = format!("{name}  {said}");
        if bytes >= LARGE { self.note(&line) } else { self.detail(&line) }
    }

    /// A transfer that was given up.
    fn forget(&self, blob: &str) {
        if let Some(Transfer { bar: Some(bar), .. }) = self.transfers().remove(blob) {
            bar.finish_and_clear();
        }
    }

    fn bar(&self, name: &str, length: Option<u64>) -> Option<ProgressBar> {
        let bars = self.bars.as_ref().filter(|_| length.is_none_or(|length| length >= LARGE))?;
        let bar = match length {
            Some(length) => ProgressBar::new(length).with_style(style(SIZED)),
            None => ProgressBar::new_spinner().with_style(style(UNSIZED)),
        };
        Some(bars.add(bar.with_message(visible(name))))
    }
}

const SIZED: &str = "{msg:<22} {bar:30} {bytes:>11} of {total_bytes:<11} {bytes_per_sec}";
const UNSIZED: &str = "{msg:<22} {spinner} {bytes:>11} {bytes_per_sec}";

/// A template that does not parse is a slip that the tests show; the plain style is good enough then.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A digest is cut to what an eye compares.
fn short(blob: &str) -> &str {
    blob.strip_prefix("sha256:").and_then(|hex| hex.get(..12)).unwrap_or(blob)
}

impl Progress for Reporter {
    fn begin(&self, blob: &str, size: Option<u64>) {
        if self.verbosity > Verbosity::Quiet {
            self.forget(blob);
            let bar = self.bar(short(blob), size);
            self.transfers().insert(blob.to_owned(), Transfer { bytes: 0, bar });
        }
    }

    fn advance(&self, blob: &str, bytes: u64) {
        if let Some(transfer) = self.transfers().get_mut(blob) {
            transfer.bytes += bytes;
            if let Some(bar) = &transfer.bar {
                bar.set_position(transfer.bytes);
            }
        }
    }

    fn end(&self, blob: &str, how: Option<Put>) {
        self.finish(blob, short(blob), how);
    }
}

impl Observer for Reporter {
    fn phase(&self, phase: Phase) {
        self.note(&phase.to_string());
    }

    fn member(&self, member: &MemberId, step: MemberStep) {
        let name = member.as_str();
        match step {
            MemberStep::Fetching { bytes } => self.begin(name, Some(bytes)),
            MemberStep::Received { bytes } => self.advance(name, bytes),
            MemberStep::Fetched => self.end(name, None),
            MemberStep::Pulling { image } => self.note(&format!("{name}  pulls {image}")),
            MemberStep::Joined { container } => self.note(&format!("{name}  joined, as {container} of another host")),
            MemberStep::Started => self.detail(&format!("{name}  started")),
            MemberStep::Arrived { hook } => self.detail(&format!("{name}  waits at {hook}")),
            MemberStep::Passed { hook } => self.detail(&format!("{name}  goes on from {hook}")),
            MemberStep::Packed { bytes } => self.detail(&format!("{name}  packed, {}", size(bytes))),
            MemberStep::Sent { bytes } => self.note(&format!("{name}  sent, {}", size(bytes))),
            MemberStep::Running => self.note(&format!("{name}  runs")),
            MemberStep::Failed { reason } => self.note(&format!("{name}  failed: {reason}")),
        }
    }

    fn warning(&self, warning: &str) {
        self.warn(warning);
    }

    fn note(&self, note: &str) {
        Reporter::note(self, note);
    }
}

/// A store as the format sees it, whose streams are watched and end when the command is told to stop.
#[derive(Debug)]
pub struct Watched {
    bridge: Bridge,
    reporter: Arc<Reporter>,
    cancel: Cancel,
    begun: AtomicUsize,
}

impl Watched {
    /// Watches the streams of a bridge.
    pub fn new(bridge: Bridge, context: &Context) -> Self {
        let (reporter, cancel) = (Arc::clone(&context.reporter), context.cancel.clone());
        Self { bridge, reporter, cancel, begun: AtomicUsize::new(0) }
    }

    fn stream<S>(&self, inner: S, name: String, size: Option<u64>) -> Stream<S> {
        self.reporter.begin(&name, size);
        Stream { inner: Some(inner), name, reporter: Arc::clone(&self.reporter), cancel: self.cancel.clone() }
    }
}

impl BlobStore for Watched {
    fn create(&self) -> io::Result<Box<dyn BlobSink>> {
        self.cancel.check()?;
        let name = format!("blob {}", self.begun.fetch_add(1, Ordering::Relaxed) + 1);
        Ok(Box::new(self.stream(self.bridge.create()?, name, None)))
    }
}

impl BlobSource for Watched {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send>> {
        self.cancel.check()?;
        Ok(Box::new(self.stream(self.bridge.open(descriptor)?, descriptor.digest.to_string(), Some(descriptor.size))))
    }
}

/// One watched stream; dropped early, it takes its bar along.
struct Stream<S> {
    inner: Option<S>,
    name: String,
    reporter: Arc<Reporter>,
    cancel: Cancel,
}

impl<S> Stream<S> {
    fn inner(&mut self) -> io::Result<&mut S> {
        self.cancel.check()?;
        self.inner.as_mut().ok_or_else(|| io::Error::other("the stream was ended"))
    }
}

impl Write for Stream<Box<dyn BlobSink>> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner()?.write(buf)?;
        self.reporter.advance(&self.name, written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner()?.flush()
    }
}

impl BlobSink for Stream<Box<dyn BlobSink>> {
    fn commit(mut self: Box<Self>, digest: Digest, size: u64) -> io::Result<()> {
        self.cancel.check()?;
        if let Some(sink) = self.inner.take() {
            sink.commit(digest, size)?;
        }
        self.reporter.finish(&self.name, &digest.short(), Some(Put::Sent(size)));
        Ok(())
    }
}

impl Read for Stream<Box<dyn Read + Send>> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner()?.read(buf)?;
        if read == 0 && !buf.is_empty() {
            self.reporter.end(&self.name, None);
        }
        self.reporter.advance(&self.name, read as u64);
        Ok(read)
    }
}

impl<S> Drop for Stream<S> {
    fn drop(&mut self) {
        self.reporter.forget(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_parse() {
        for template in [SIZED, UNSIZED] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
