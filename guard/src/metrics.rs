//! What a guard counts, and how it says so to Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use image_format::ApplicationId;
use launcher::{CheckpointReport, Phase};

/// The counters of one application's guard. Shared between the guard and whoever shows them.
#[derive(Debug)]
pub struct GuardMetrics {
    application: ApplicationId,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    running: bool,
    gave_up: bool,
    checkpoints: u64,
    skipped: u64,
    /// By the part that failed.
    failures: BTreeMap<String, u64>,
    losses: u64,
    rollbacks: u64,
    failed_rollbacks: u64,
    undone: Duration,
    frozen: Duration,
    last_frozen: Duration,
    last_took: Duration,
    bytes: u64,
    sent: u64,
    epoch: u64,
    pruned: u64,
    failed_prunes: u64,
    /// The instant of the newest permanent checkpoint, on both clocks.
    newest: Option<(Instant, SystemTime)>,
}

impl GuardMetrics {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(application: ApplicationId) -> Self {
        Self { application, counts: Mutex::default() }
    }

    /// Whether the application runs, as far as is known, and the guard has not given up.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let counts = self.counts();
        counts.running && !counts.gave_up
    }

    /// The age of the newest permanent checkpoint that this guard took.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.counts().newest.map(|(begun, _)| begun.elapsed())
    }

    pub(super) fn running(&self, running: bool) {
        self.counts().running = running;
    }

    pub(super) fn gave_up(&self) {
        self.counts().gave_up = true;
    }

    pub(super) fn skipped(&self, skipped: u64) {
        self.counts().skipped = skipped;
    }

    pub(super) fn checkpointed(&self, report: &CheckpointReport, begun: (Instant, SystemTime)) {
        let longest = |span: fn(&image_format::MemberTimeline) -> Option<image_format::Span>| {
            let spans = report.timeline.members.iter().filter_map(span);
            Duration::from_micros(spans.map(|span| span.end.saturating_sub(span.begin)).max().unwrap_or(0))
        };
        let frozen = longest(|member| member.frozen);
        let mut counts = self.counts();
        counts.checkpoints += 1;
        counts.frozen += frozen;
        counts.last_frozen = frozen;
        counts.last_took = begun.0.elapsed();
        counts.bytes += report.members.iter().map(|member| member.bytes).sum::<u64>();
        counts.sent += report.members.iter().map(|member| member.sent).sum::<u64>();
        counts.epoch = report.epoch.0;
        counts.newest = Some(begun);
    }

    /// So many checkpoints were removed; `None`: it failed.
    pub(super) fn pruned(&self, removed: Option<usize>) {
        let mut counts = self.counts();
        match removed {
            Some(removed) => counts.pruned += removed as u64,
            None => counts.failed_prunes += 1,
        }
    }

    pub(super) fn failed(&self, phase: Phase) {
        *self.counts().failures.entry(phase.to_string()).or_default() += 1;
    }

    pub(super) fn lost(&self) {
        let mut counts = self.counts();
        counts.losses += 1;
        counts.running = false;
    }

    pub(super) fn rolled_back(&self, undone: Option<Duration>) {
        let mut counts = self.counts();
        counts.rollbacks += 1;
        counts.undone += undone.unwrap_or_default();
        counts.running = true;
    }

    pub(super) fn rollback_failed(&self) {
        self.counts().failed_rollbacks += 1;
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The text form that Prometheus reads, version 0.0.4, of all these applications.
    #[must_use]
    pub fn to_prometheus(all: &[Arc<Self>]) -> String {
        let mut families: Vec<Family> = Vec::new();
        for metrics in all {
            metrics.add_to(&mut families);
        }
        let mut text = String::new();
        for Family { name, kind, help, samples } in families {
            let _ = write!(text, "# HELP syncpoint_{name} {help}\n# TYPE syncpoint_{name} {kind}\n{samples}");
        }
        text
    }

    fn add_to(&self, families: &mut Vec<Family>) {
        let counts = self.counts();
        let mut family = |name: &'static str, kind: &'static str, help: &'static str, samples: &[(String, f64)]| {
            let at = families.iter().position(|family| family.name == name).unwrap_or_else(|| {
                families.push(Family { name, kind, help, samples: String::new() });
                families.len() - 1
            });
            for (labels, value) in samples {
                let line = format!("syncpoint_{name}{{application=\"{}\"{labels}}} {value}\n", self.application);
                families[at].samples.push_str(&line);
            }
        };
        let one = |value: f64| [(String::new(), value)];
        let count = |value: u64| one(value as f64);
        let truth = |value: bool| one(f64::from(u8::from(value)));
        family("running", "gauge", "Whether all members run.", &truth(counts.running));
        family("gave_up", "gauge", "Whether the guard has given the application up.", &truth(counts.gave_up));
        family("checkpoints_total", "counter", "Checkpoints that became permanent.", &count(counts.checkpoints));
        family(
            "checkpoints_skipped_total",
            "counter",
            "Ticks at which the checkpoint before was still under way.",
            &count(counts.skipped),
        );
        let failures: Vec<_> =
            counts.failures.iter().map(|(phase, n)| (format!(",phase=\"{phase}\""), *n as f64)).collect();
        family("checkpoint_failures_total", "counter", "Checkpoints that failed, by the part that did.", &failures);
        family("losses_total", "counter", "Times at which a member was gone.", &count(counts.losses));
        family("rollbacks_total", "counter", "Rollbacks after which the application ran.", &count(counts.rollbacks));
        family("rollback_failures_total", "counter", "Rollbacks that failed.", &count(counts.failed_rollbacks));
        family(
            "undone_seconds_total",
            "counter",
            "Time between checkpoints that were restored and the losses before.",
            &one(counts.undone.as_secs_f64()),
        );
        family(
            "frozen_seconds_total",
            "counter",
            "Time for which the member that stood still longest did.",
            &one(counts.frozen.as_secs_f64()),
        );
        family("last_frozen_seconds", "gauge", "The same, of the last one.", &one(counts.last_frozen.as_secs_f64()));
        family(
            "last_checkpoint_seconds",
            "gauge",
            "How long the last checkpoint took until it was permanent.",
            &one(counts.last_took.as_secs_f64()),
        );
        family("bytes_total", "counter", "Bytes of all members of all checkpoints, as stored.", &count(counts.bytes));
        family("sent_bytes_total", "counter", "Bytes of them that had to be sent.", &count(counts.sent));
        family(
            "pruned_total",
            "counter",
            "Checkpoints that no rule kept and that were removed.",
            &count(counts.pruned),
        );
        family("prune_failures_total", "counter", "Times at which that failed.", &count(counts.failed_prunes));
        family("epoch", "gauge", "The epoch of the newest permanent checkpoint.", &count(counts.epoch));
        if let Some((begun, at)) = counts.newest {
            let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
            family(
                "newest_checkpoint_timestamp_seconds",
                "gauge",
                "When the newest permanent checkpoint was begun.",
                &one(since.as_secs_f64()),
            );
            family(
                "newest_checkpoint_age_seconds",
                "gauge",
                "How long ago that is.",
                &one(begun.elapsed().as_secs_f64()),
            );
        }
    }
}

/// What Prometheus knows by one name.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    samples: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_comment_or_a_sample_of_the_application() {
        let metrics = Arc::new(GuardMetrics::new("ledger".parse().unwrap()));
        metrics.running(true);
        metrics.failed(Phase::Commit);
        metrics.lost();
        metrics.rolled_back(Some(Duration::from_millis(1500)));
        let text = GuardMetrics::to_prometheus(&[Arc::clone(&metrics)]);
        for line in text.lines() {
            let sample = line.starts_with("syncpoint_") && line.contains("{application=\"ledger\"");
            let value = line.rsplit(' ').next().is_some_and(|value| value.parse::<f64>().is_ok());
            assert!(line.starts_with("# ") || (sample && value), "{line}");
        }
        for line in [
            "syncpoint_running{application=\"ledger\"} 1",
            "syncpoint_checkpoint_failures_total{application=\"ledger\",phase=\"commit\"} 1",
            "syncpoint_losses_total{application=\"ledger\"} 1",
            "syncpoint_undone_seconds_total{application=\"ledger\"} 1.5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(metrics.is_healthy());
        let other = Arc::new(GuardMetrics::new("other".parse().unwrap()));
        let text = GuardMetrics::to_prometheus(&[Arc::clone(&metrics), other]);
        assert!(
            text.contains("syncpoint_running{application=\"ledger\"} 1\nsyncpoint_running{application=\"other\"} 0\n#"),
            "{text}"
        );
        metrics.gave_up();
        assert!(!metrics.is_healthy());
    }
}
