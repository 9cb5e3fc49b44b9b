//! What is tried again, how often, and after which wait.

use std::time::{Duration, SystemTime};

/// The first wait; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(200);
/// No wait of our own choosing is longer.
const LONGEST: Duration = Duration::from_secs(10);
/// The longest wait that a server may ask for. One that wants more is not asked again at all.
pub(crate) const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// Whether what failed is worth another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// It would fail again.
    No,
    /// At once: the cause was removed (an expired token was replaced).
    Now,
    /// After a wait; the one that the server asked for, if it did.
    Later(Option<Duration>),
}

/// What went wrong, and whether another try may help.
#[derive(Debug)]
pub(crate) struct Failure<E> {
    pub(crate) error: E,
    pub(crate) retry: Retry,
}

impl<E> Failure<E> {
    pub(crate) fn last(error: E) -> Self {
        Self { error, retry: Retry::No }
    }

    pub(crate) fn passing(error: E) -> Self {
        Self { error, retry: Retry::Later(None) }
    }
}

/// An error that nobody marked as passing is final.
impl<E> From<E> for Failure<E> {
    fn from(error: E) -> Self {
        Self::last(error)
    }
}

/// The tries of one operation.
#[derive(Debug)]
pub(crate) struct Tries {
    limit: u32,
    done: u32,
    renewed: bool,
}

impl Tries {
    /// Up to `limit` tries after the first one.
    pub(crate) fn new(limit: u32) -> Self {
        Self { limit, done: 0, renewed: false }
    }

    /// Waits until the next try is due, or gives the error back when there shall be none.
    pub(crate) async fn again<E>(&mut self, failure: Failure<E>) -> Result<(), E> {
        match self.wait(failure.retry) {
            Some(wait) => {
                tokio::time::sleep(wait).await;
                Ok(())
            }
            None => Err(failure.error),
        }
    }

    fn wait(&mut self, retry: Retry) -> Option<Duration> {
        let asked = match retry {
            Retry::No => return None,
            Retry::Now if self.renewed => return None,
            Retry::Now => {
                self.renewed = true;
                return Some(Duration::ZERO);
            }
            Retry::Later(asked) => asked,
        };
        if self.done >= self.limit || asked.is_some_and(|asked| asked > LONGEST_ASKED) {
            return None;
        }
        let own = FIRST.saturating_mul(1 << self.done.min(16)).min(LONGEST);
        self.done += 1;
        // Never earlier than asked; spread out, so that those who failed together do not come back together.
        Some(asked.unwrap_or(own / 2) + own.mul_f64(0.5 * random_fraction()))
    }
}

/// Between 0 and 1. Without randomness from the system the waits are merely not spread out.
pub(crate) fn random_fraction() -> f64 {
    getrandom::u32().map_or(1.0, |bits| f64::from(bits) / f64::from(u32::MAX))
}

/// The value of a `Retry-After` header: seconds, or a date (RFC 9110, 10.2.3).
pub(crate) fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok().map(|date| date.duration_since(now).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end() {
        let mut tries = Tries::new(8);
        for n in 0..8 {
            let own = Duration::from_millis(200 << n).min(LONGEST);
            let wait = tries.wait(Retry::Later(None)).unwrap();
            assert!(wait >= own / 2 && wait <= own, "{n}: {wait:?}");
        }
        assert_eq!(tries.wait(Retry::Later(None)), None);
    }

    #[test]
    fn what_the_server_asks_for_is_kept() {
        let asked = Duration::from_secs(7);
        let wait = Tries::new(1).wait(Retry::Later(Some(asked))).unwrap();
        assert!(wait >= asked && wait < asked + FIRST, "{wait:?}");
        assert_eq!(Tries::new(1).wait(Retry::Later(Some(LONGEST_ASKED * 2))), None);
    }

    #[test]
    fn one_renewal_does_not_count() {
        let mut tries = Tries::new(0);
        assert_eq!(tries.wait(Retry::Now), Some(Duration::ZERO));
        assert_eq!(tries.wait(Retry::Now), None);
        assert_eq!(tries.wait(Retry::No), None);
    }

    #[test]
    fn retry_after_has_two_forms() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(parse_retry_after(" 12 ", now), Some(Duration::from_secs(12)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now), Some(Duration::from_secs(10)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(parse_retry_after("soon", now), None);
    }
}
