//! The right to act on a processing block: its owner's key, bound to a lease, as SKA's own programs own what they work on.
//!
//! There is one owner. The revision at which its key came to be is its fencing token: that of a later owner is greater. While the
//! owner lives the lease is kept alive; when etcd does not answer in time, the right ends before the lease can ([`tenure`](super::tenure)),
//! so that there is no time in which two act.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::database::{Database, Outcome};
use super::etcd::{DatabaseError, Int};
use super::ids::BlockId;
use super::tenure::{Tenure, Tick};

/// The lease is renewed so many times in the time it may be acted upon.
const RENEWALS: u32 = 4;
/// The pause after an attempt to renew it that failed.
const AGAIN: Duration = Duration::from_millis(200);

/// What came of asking for a block.
#[derive(Debug)]
pub enum Acquired {
    /// It is held.
    Held(Held),
    /// It is another's.
    Taken {
        /// Who it is, as that one says.
        owner: String,
    },
}

/// A block that is held. Dropping it lets the lease run out; [`Held::release`] ends it at once.
#[derive(Debug)]
pub struct Held {
    database: Arc<Database>,
    lease: Int,
    token: u64,
    tenure: Arc<Mutex<Tenure>>,
    over: CancellationToken,
    keeper: JoinHandle<()>,
}

impl Held {
    /// The fencing token: greater than that of every owner before.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Whether the block may be acted upon at this instant. To be asked right before each act that cannot be taken back.
    #[must_use]
    pub fn holds(&self) -> bool {
        lock(&self.tenure).holds(now())
    }

    /// Cancelled when it is over: what is being done is to be stopped.
    #[must_use]
    pub fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    /// Gives it up, so that the next one need not wait.
    ///
    /// # Errors
    /// The database does not answer; the lease runs out by itself then.
    pub async fn release(self) -> Result<(), DatabaseError> {
        self.stop();
        self.database.etcd.revoke(self.lease).await
    }

    fn stop(&self) {
        self.keeper.abort();
        *lock(&self.tenure) = Tenure::Over;
        self.over.cancel();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Database {
    /// Asks for a block, with a lease of `ttl` (at least three seconds).
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn acquire(self: &Arc<Self>, block: &BlockId, ttl: Duration) -> Result<Acquired, DatabaseError> {
        let (key, asked) = (self.owner_key(block), now());
        let granted = self.etcd.grant(ttl.max(Duration::from_secs(3))).await?;
        let given = Duration::from_secs(u64::try_from(granted.ttl.0).unwrap_or(0));
        let mut transaction = self.begin();
        let outcome = async {
            if let Some(found) = transaction.get(&key).await? {
                return Ok(Err(found.value));
            }
            transaction.put_leased(key.clone(), &owner(), granted.id);
            match transaction.commit().await? {
                Outcome::Committed(revision) => Ok(Ok(revision)),
                Outcome::Conflict => Ok(Err(String::new())),
            }
        };
        let outcome: Result<Result<i64, String>, DatabaseError> = outcome.await;
        match outcome {
            Ok(Ok(revision)) => {
                let token = u64::try_from(revision).map_err(|error| self.etcd.answer(error))?;
                Ok(Acquired::Held(self.hold(granted.id, token, Tenure::granted(asked, given), ttl)))
            }
            Ok(Err(owner)) => {
                // If it cannot be said, it runs out by itself.
                let _ = self.etcd.revoke(granted.id).await;
                Ok(Acquired::Taken { owner })
            }
            Err(error) => {
                // The key may have been written.
                let _ = self.etcd.revoke(granted.id).await;
                Err(error)
            }
        }
    }

    fn hold(self: &Arc<Self>, lease: Int, token: u64, tenure: Tenure, ttl: Duration) -> Held {
        let (tenure, over) = (Arc::new(Mutex::new(tenure)), CancellationToken::new());
        let keeper = tokio::spawn(keep(self.clone(), lease, tenure.clone(), over.clone(), ttl / (RENEWALS + 1)));
        Held { database: self.clone(), lease, token, tenure, over, keeper }
    }
}

/// Keeps a lease alive until its tenure is over, and says so at that instant, whatever etcd does meanwhile.
async fn keep(
    database: Arc<Database>,
    lease: Int,
    tenure: Arc<Mutex<Tenure>>,
    over: CancellationToken,
    pause: Duration,
) {
    let mut wait = pause;
    loop {
        let left = lock(&tenure).left(now());
        if left.is_zero() {
            return over.cancel();
        }
        let renewal = async {
            tokio::time::sleep(wait).await;
            let asked = now();
            database.etcd.keep_alive(lease).await.map(|ttl| (asked, ttl))
        };
        wait = match tokio::time::timeout(left, renewal).await {
            Ok(Ok((asked, ttl))) => {
                lock(&tenure).renewed(asked, now(), ttl);
                pause
            }
            Ok(Err(_)) => AGAIN,
            Err(_) => Duration::ZERO,
        };
    }
}

/// Who owns it, as SKA's programs say it.
fn owner() -> serde_json::Value {
    // It is for people: without it the rest still says something.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    json!({ "command": ["syncpoint", "guard"], "hostname": host.trim(), "pid": std::process::id() })
}

/// The time since the machine was started, that in which it slept too: leases go on meanwhile.
fn now() -> Tick {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn lock(tenure: &Mutex<Tenure>) -> MutexGuard<'_, Tenure> {
    tenure.lock().unwrap_or_else(PoisonError::into_inner)
}
