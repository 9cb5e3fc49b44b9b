//! How often a checkpoint is worth taking.
//!
//! J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps" (2006): with a cost δ by which a
//! checkpoint holds up the application and a mean time M between failures, the least time is lost when the application works for
//!
//! ```text
//! √(2δM) · (1 + ⅓·√(δ/2M) + ⅑·δ/2M) − δ     where δ < 2M, else M
//! ```
//!
//! between two checkpoints. Here δ is the time for which tasks stand still: while their dumps are packed and sent they run again. That
//! a checkpoint becomes permanent only later bounds the interval from below.

use std::time::Duration;

use image_format::{MemberTimeline, Span, Timeline};

/// What a checkpoint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// For how long tasks stood still.
    pub frozen: Duration,
    /// From its beginning until its last member was stored.
    pub whole: Duration,
}

impl Cost {
    /// The medians of what these checkpoints took; nothing if none of them says so.
    #[must_use]
    pub fn of(timelines: &[Timeline]) -> Option<Self> {
        let ends = |timeline: &Timeline, span: fn(&MemberTimeline) -> Option<Span>| {
            timeline.members.iter().filter_map(span).map(|span| span.end).max()
        };
        let whole = timelines.iter().filter_map(|timeline| {
            ends(timeline, |member| member.sent).or_else(|| ends(timeline, |member| member.packed))
        });
        let frozen = timelines.iter().filter_map(|timeline| {
            timeline.members.iter().filter_map(|member| member.frozen).map(|span| span.micros()).max()
        });
        let (frozen, whole) = (median(frozen)?, median(whole)?);
        Some(Self { frozen: Duration::from_micros(frozen), whole: Duration::from_micros(whole) })
    }
}

fn median(values: impl Iterator<Item = u64>) -> Option<u64> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

/// For how long to work between two checkpoints.
#[must_use]
pub fn optimum(cost: Duration, mtbf: Duration) -> Duration {
    let (cost, mean) = (cost.as_secs_f64(), mtbf.as_secs_f64());
    if cost >= 2.0 * mean {
        return mtbf;
    }
    let part = cost / (2.0 * mean);
    let best = (2.0 * cost * mean).sqrt() * (1.0 + part.sqrt() / 3.0 + part / 9.0) - cost;
    Duration::try_from_secs_f64(best).unwrap_or(mtbf)
}

/// By how much longer work takes than without failures and checkpoints, as a share of it (0.1 is a tenth longer): what checkpoints hold
/// up, what is done again, and restarts. Infinite where it never ends.
#[must_use]
pub fn overhead(interval: Duration, cost: Duration, restart: Duration, mtbf: Duration) -> f64 {
    let mean = mtbf.as_secs_f64();
    let each = (interval + cost).as_secs_f64();
    let expected = mean * (restart.as_secs_f64() / mean).exp() * (each / mean).exp_m1();
    expected / interval.as_secs_f64() - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(60 * minutes)
    }

    #[test]
    fn the_published_values() {
        for (mtbf, expected) in [(24 * 60, 116.69), (6 * 60, 56.71), (15, 9.14)] {
            let found = optimum(minutes(5), minutes(mtbf)).as_secs_f64() / 60.0;
            assert!((found - expected).abs() < 0.005, "{mtbf}: {found} instead of {expected}");
        }
    }

    #[test]
    fn no_other_interval_loses_less() {
        for (cost, mtbf) in [(5, 24 * 60), (5, 6 * 60), (1, 600)] {
            let best = optimum(minutes(cost), minutes(mtbf));
            let lost = |interval| overhead(interval, minutes(cost), minutes(10), minutes(mtbf));
            assert!(lost(best) > 0.0);
            assert!(lost(best.mul_f64(0.9)) > lost(best) && lost(best.mul_f64(1.1)) > lost(best), "{cost} {mtbf}");
        }
    }

    #[test]
    fn extremes() {
        assert_eq!(optimum(minutes(30), minutes(15)), minutes(15));
        assert_eq!(optimum(Duration::ZERO, minutes(15)), Duration::ZERO);
        assert!(overhead(minutes(1), Duration::MAX / 4, Duration::ZERO, Duration::from_millis(1)).is_infinite());
    }

    #[test]
    fn costs_are_medians() {
        let timeline = |frozen: u64, sent: u64| {
            let mut member = MemberTimeline::new("a".parse().unwrap());
            member.frozen = Some(Span { begin: 10, end: 10 + frozen });
            member.sent = Some(Span { begin: 100, end: sent });
            let mut other = MemberTimeline::new("b".parse().unwrap());
            other.packed = Some(Span { begin: 1, end: 2 });
            Timeline { members: vec![member, other], ..Timeline::default() }
        };
        let cost = Cost::of(&[timeline(5, 9000), timeline(7, 500), timeline(6, 600)]).unwrap();
        assert_eq!(cost, Cost { frozen: Duration::from_micros(6), whole: Duration::from_micros(600) });
        assert_eq!(Cost::of(&[Timeline::default()]), None);
    }
}
