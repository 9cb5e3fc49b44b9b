//! What a guard writes: a line an event, for people or for programs.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use guard::{GuardEvent, GuardWatcher};
use image_format::rfc3339;
use registry::Reference;
use serde_json::{Map, Value, json};

use crate::error::in_a_line;
use crate::output::size;
use crate::progress::Reporter;

/// Writes to standard error.
#[derive(Debug)]
pub struct Log {
    json: bool,
    reporter: Arc<Reporter>,
    /// Of whom it tells, if it is of one.
    application: Option<String>,
    /// There are others: each line begins with whom it is about.
    one_of_many: bool,
}

/// How much an event matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Info,
    Warning,
}

impl Log {
    pub fn new(json: bool, reporter: Arc<Reporter>, application: Option<String>) -> Self {
        Self { json, reporter, application, one_of_many: false }
    }

    /// The same, where others write too.
    pub fn one_of_many(self) -> Self {
        Self { one_of_many: true, ..self }
    }

    /// The guard begins.
    pub fn started(&self, to: &Reference, interval: Duration, metrics: Option<SocketAddr>) {
        let shown = metrics.map(|address| format!(", metrics at http://{address}/metrics")).unwrap_or_default();
        let name = self.application.as_deref().unwrap_or_default();
        let text = format!("guarding {name}, a checkpoint every {interval:?} to {to}{shown}");
        let fields = json!({"interval_ms": millis(interval), "to": to.to_string(), "metrics": metrics});
        self.write("started", Level::Info, &text, fields);
    }

    /// A service for whatever the Configuration DB says begins.
    pub fn serving(&self, root: &str, metrics: Option<SocketAddr>) {
        let shown = metrics.map(|address| format!(", metrics at http://{address}/metrics")).unwrap_or_default();
        let text = format!("guarding what {root} of the Configuration DB says{shown}");
        self.write("started", Level::Info, &text, json!({"root": root, "metrics": metrics}));
    }

    /// Something is worth a person's attention.
    pub fn warning(&self, words: &str) {
        self.write("warning", Level::Warning, words, json!({}));
    }

    /// The guard ends, well.
    pub fn ended(&self, how: &str) {
        self.write("ended", Level::Info, how, json!({}));
    }

    fn write(&self, event: &str, level: Level, text: &str, fields: Value) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        if !self.json {
            let whose = self.application.as_deref().filter(|_| self.one_of_many);
            let whose = whose.map(|name| format!("{name}: ")).unwrap_or_default();
            let line = format!("{}  {whose}{text}", rfc3339(now));
            return match level {
                Level::Info => self.reporter.note(&line),
                Level::Warning => self.reporter.warn(&line),
            };
        }
        let mut line = Map::new();
        line.insert("time".to_owned(), rfc3339(now).into());
        let level = if level == Level::Info { "info" } else { "warning" };
        line.insert("level".to_owned(), level.into());
        line.insert("event".to_owned(), event.into());
        line.insert("application".to_owned(), self.application.clone().into());
        line.insert("message".to_owned(), text.into());
        if let Value::Object(fields) = fields {
            line.extend(fields);
        }
        // Standard error may be closed; nothing can be said about that anywhere.
        let _ = writeln!(std::io::stderr().lock(), "{}", Value::Object(line));
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

impl GuardWatcher for Log {
    fn event(&self, event: GuardEvent<'_>) {
        match event {
            GuardEvent::Watching { members } => {
                self.write(
                    "watching",
                    Level::Info,
                    &format!("watching {members} members"),
                    json!({"members": members}),
                );
            }
            GuardEvent::Checkpointed { report, took } => {
                let frozen =
                    report.timeline.members.iter().filter_map(|member| member.frozen).map(|span| span.micros()).max();
                let frozen = Duration::from_micros(frozen.unwrap_or(0));
                let bytes: u64 = report.members.iter().map(|member| member.bytes).sum();
                let sent: u64 = report.members.iter().map(|member| member.sent).sum();
                let text = format!(
                    "checkpoint {}  frozen {}, took {}, {} of {} new",
                    report.epoch,
                    seconds(frozen),
                    seconds(took),
                    size(sent),
                    size(bytes)
                );
                let fields = json!({
                    "epoch": report.epoch.0, "digest": report.digest.to_string(), "frozen_ms": millis(frozen),
                    "took_ms": millis(took), "bytes": bytes, "sent": sent,
                });
                self.write("checkpoint", Level::Info, &text, fields);
            }
            GuardEvent::CheckpointFailed { error } => {
                let at = error.member.as_ref().map(|member| format!(" at {member}")).unwrap_or_default();
                let text = format!(
                    "checkpoint failed in {}{at}, and the application runs on: {}",
                    error.phase,
                    in_a_line(error)
                );
                let fields = json!({
                    "phase": error.phase.to_string(), "member": error.member.as_ref().map(ToString::to_string),
                    "criu": error.log_lines,
                });
                self.write("checkpoint-failed", Level::Warning, &text, fields);
            }
            GuardEvent::Pruned { report } => {
                let epochs: Vec<_> = report.removed.iter().map(|checkpoint| checkpoint.epoch).collect();
                let names: Vec<_> = epochs.iter().map(ToString::to_string).collect();
                let fields = json!({"epochs": epochs, "bytes": report.store.bytes, "freed": report.store.freed});
                self.write("pruned", Level::Info, &format!("no longer kept: {}", names.join(", ")), fields);
            }
            GuardEvent::PruneFailed { error } => {
                let text = format!("old checkpoints were not all removed: {}", in_a_line(error));
                self.write("prune-failed", Level::Warning, &text, json!({}));
            }
            GuardEvent::Skipped { skipped } => {
                let text = format!("a checkpoint takes longer than the interval; {skipped} were skipped so far");
                self.write("skipped", Level::Warning, &text, json!({"skipped": skipped}));
            }
            GuardEvent::Lost { containers } => {
                let text = match containers {
                    [] => "found to have failed".to_owned(),
                    containers => format!("lost: {}", containers.join(", ")),
                };
                self.write("lost", Level::Warning, &text, json!({"containers": containers}));
            }
            GuardEvent::RollingBack { epoch, digest } => {
                let fields = json!({"epoch": epoch.0, "digest": digest.to_string()});
                self.write("rolling-back", Level::Info, &format!("rolling back to checkpoint {epoch}"), fields);
            }
            GuardEvent::RolledBack { epoch, undone } => {
                let undone_text = undone.map(|time| format!(", {} of work undone", seconds(time))).unwrap_or_default();
                let fields = json!({"epoch": epoch.0, "undone_ms": undone.map(millis)});
                let text = format!("runs again from checkpoint {epoch}{undone_text}");
                self.write("rolled-back", Level::Info, &text, fields);
            }
            GuardEvent::RollbackFailed { epoch, error } => {
                let which = epoch.map(|epoch| format!(" to checkpoint {epoch}")).unwrap_or_default();
                let text = format!("rollback{which} failed: {}", in_a_line(error));
                self.write("rollback-failed", Level::Warning, &text, json!({"epoch": epoch.map(|epoch| epoch.0)}));
            }
            GuardEvent::Warning { warning } => self.warning(warning),
            // Whatever a later version of the library tells.
            _ => {}
        }
    }
}
