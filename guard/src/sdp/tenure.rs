//! How long a lease may be acted upon: a state machine without IO and without a clock.
//!
//! ```text
//!            renewed in time
//!             ┌──────────┐
//!             ▼          │
//!   granted ▶ Held ──────┘
//!             │ its time is over, or etcd says that the lease has ended
//!             ▼
//!            Over       (for good: who was told to stop is never told to go on)
//! ```
//!
//! etcd counts the time of a lease from when it hears of it, which is after it was asked; here it is counted from before asking. What
//! may be left of it, by this, is never more than what etcd leaves. The margin is for clocks that do not run equally fast, and for
//! stopping what is being done.

use std::time::Duration;

/// A time on a clock that goes on while the machine sleeps.
pub(super) type Tick = Duration;

/// The part of a lease's time that is not used.
const MARGIN: u32 = 3;

/// Whether a lease may be acted upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tenure {
    /// Until that time.
    Held { until: Tick },
    /// Never again.
    Over,
}

impl Tenure {
    /// A lease that was asked for at `asked` and has a time of `ttl`.
    pub(super) fn granted(asked: Tick, ttl: Duration) -> Self {
        Self::Held { until: asked + (ttl - ttl / MARGIN) }
    }

    /// etcd answered at `now` to what was asked at `asked`: the time that is left, or none if the lease has ended.
    pub(super) fn renewed(&mut self, asked: Tick, now: Tick, ttl: Option<Duration>) {
        if !self.holds(now) {
            return;
        }
        *self = match (ttl, *self) {
            // An older answer that comes late takes nothing away.
            (Some(ttl), Self::Held { until }) => match Self::granted(asked, ttl) {
                Self::Held { until: later } => Self::Held { until: later.max(until) },
                Self::Over => Self::Over,
            },
            _ => Self::Over,
        };
    }

    /// Whether it may be acted upon now. Once it may not, it never may again.
    pub(super) fn holds(&mut self, now: Tick) -> bool {
        if matches!(self, Self::Held { until } if now >= *until) {
            *self = Self::Over;
        }
        matches!(self, Self::Held { .. })
    }

    /// The time that is left.
    pub(super) fn left(&mut self, now: Tick) -> Duration {
        match (self.holds(now), *self) {
            (true, Self::Held { until }) => until.saturating_sub(now),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_ends_before_the_lease_does() {
        let mut tenure = Tenure::granted(s(100), s(9));
        assert!(tenure.holds(s(105)));
        assert_eq!(tenure.left(s(105)), s(1));
        assert!(!tenure.holds(s(106)), "the lease itself ends at 109 at the earliest");
    }

    #[test]
    fn a_renewal_counts_from_when_it_was_asked_for() {
        let mut tenure = Tenure::granted(s(100), s(9));
        tenure.renewed(s(103), s(105), Some(s(9)));
        assert_eq!(tenure, Tenure::Held { until: s(109) });
        // One that was asked for before comes later.
        tenure.renewed(s(101), s(106), Some(s(9)));
        assert_eq!(tenure, Tenure::Held { until: s(109) });
    }

    #[test]
    fn what_is_over_stays_over() {
        let mut late = Tenure::granted(s(100), s(9));
        late.renewed(s(105), s(107), Some(s(9)));
        assert!(!late.holds(s(107)), "the answer came when the time was over");
        let mut ended = Tenure::granted(s(100), s(9));
        ended.renewed(s(101), s(102), None);
        ended.renewed(s(102), s(103), Some(s(9)));
        assert!(!ended.holds(s(103)));
        assert_eq!(ended.left(s(0)), Duration::ZERO, "not even on a clock that goes back");
    }
}
