//! The Configuration DB: its keys, and transactions over them.

use std::collections::BTreeMap;
use std::time::Duration;

use image_format::Epoch;
use serde_json::{Value, json};

use super::etcd::{Bytes64, DatabaseError, Endpoint, Etcd, Int, KeyValue, TxnAnswer, end_of};
use super::ids::{BlockId, Prefix};
use super::settings::{Scope, Setting};

/// How often a transaction is begun again because others wrote what it had read.
const TRIES: u32 = 10;
/// The first wait before that; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(5);

/// The Configuration DB of a Science Data Processor.
#[derive(Debug)]
pub struct Database {
    pub(super) etcd: Etcd,
    prefix: Prefix,
}

impl Database {
    /// Does not ask it anything yet.
    ///
    /// # Errors
    /// What the endpoint says cannot be done, such as reading the client's certificate.
    pub fn new(endpoint: Endpoint, prefix: Prefix) -> Result<Self, DatabaseError> {
        Ok(Self { etcd: Etcd::new(endpoint)?, prefix })
    }

    /// `/checkpoint`: what all keys of this program begin with.
    #[must_use]
    pub fn root(&self) -> String {
        format!("{}/checkpoint", self.prefix.as_str())
    }

    /// `/pb/`: what SKA's processing blocks are under. It is only read.
    pub(super) fn blocks(&self) -> String {
        format!("{}/pb/", self.prefix.as_str())
    }

    pub(super) fn setting_key(&self, scope: &Scope, setting: Setting) -> Key {
        Key(format!("{}{scope}/{setting}", self.settings()))
    }

    /// What all settings are under.
    pub(super) fn settings(&self) -> String {
        format!("{}/settings/", self.root())
    }

    /// In the order of epochs.
    pub(super) fn catalogue_key(&self, block: &BlockId, epoch: Epoch) -> Key {
        Key(format!("{}{:020}", self.catalogue(block), epoch.0))
    }

    /// What the catalogue of a block is under.
    pub(super) fn catalogue(&self, block: &BlockId) -> String {
        format!("{}/catalogue/{block}/", self.root())
    }

    pub(super) fn owner_key(&self, block: &BlockId) -> Key {
        Key(format!("{}/owner/{block}", self.root()))
    }

    /// Begins a transaction.
    pub(super) fn begin(&self) -> Transaction<'_> {
        Transaction { database: self, revision: None, read: BTreeMap::new(), written: BTreeMap::new() }
    }

    /// Everything below some prefixes, at one revision.
    pub(super) async fn snapshot(&self, prefixes: &[String]) -> Result<(i64, BTreeMap<String, Found>), DatabaseError> {
        let ranges = prefixes.iter().map(|prefix| range(prefix, Some(end_of(prefix)), None)).collect();
        let answer = self.etcd.txn(Vec::new(), ranges).await?;
        let revision = answer.header.revision.0;
        Ok((revision, self.entries(answer, prefixes.len())?))
    }

    /// What the ranges of a transaction found.
    fn entries(&self, answer: TxnAnswer, ranges: usize) -> Result<BTreeMap<String, Found>, DatabaseError> {
        if !answer.succeeded || answer.responses.len() != ranges {
            return Err(self.etcd.answer("a transaction without conditions did not succeed"));
        }
        Ok(answer.responses.into_iter().flat_map(|response| response.response_range.kvs).filter_map(entry).collect())
    }
}

/// A key and its value. A key that is no text is nobody's here, and a value that is none is read as one that is not understood: neither
/// hides the others.
fn entry(found: KeyValue) -> Option<(String, Found)> {
    let (changed, created) = (found.mod_revision.0, found.create_revision.0);
    let value = String::from_utf8_lossy(&found.value.0).into_owned();
    Some((String::from_utf8(found.key.0).ok()?, Found { value, changed, created }))
}

/// The value of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) value: String,
    /// The revision of its last change.
    pub(super) changed: i64,
    /// The revision at which it came to be.
    pub(super) created: i64,
}

/// A key under `/checkpoint/`. There are no others to write.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(String);

impl Key {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Reads of one revision and the writes that follow from them. They are done only if nothing that was read has changed; if it
/// has, all begins again.
#[derive(Debug)]
pub(super) struct Transaction<'a> {
    database: &'a Database,
    revision: Option<i64>,
    /// Keys that were read, and the revision of their last change; 0 for one that is not there.
    read: BTreeMap<String, i64>,
    written: BTreeMap<Key, Write>,
}

#[derive(Debug)]
struct Write {
    value: String,
    lease: Option<Int>,
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Done, at this revision.
    Committed(i64),
    /// Nothing was written.
    Conflict,
}

impl Transaction<'_> {
    /// The value of a key.
    pub(super) async fn get(&mut self, key: &Key) -> Result<Option<Found>, DatabaseError> {
        let question = vec![range(key.as_str(), None, self.revision)];
        let answer = self.database.etcd.txn(Vec::new(), question).await?;
        self.revision.get_or_insert(answer.header.revision.0);
        let found = self.database.entries(answer, 1)?.remove(key.as_str());
        self.read.insert(key.as_str().to_owned(), found.as_ref().map_or(0, |found| found.changed));
        Ok(found)
    }

    /// Writes when it is committed.
    pub(super) fn put(&mut self, key: Key, value: &Value) {
        self.written.insert(key, Write { value: super::json::to_text(value), lease: None });
    }

    /// The same, until the lease ends.
    pub(super) fn put_leased(&mut self, key: Key, value: &Value, lease: Int) {
        self.written.insert(key, Write { value: super::json::to_text(value), lease: Some(lease) });
    }

    /// Does what was asked for, or nothing of it.
    pub(super) async fn commit(self) -> Result<Outcome, DatabaseError> {
        let compare = self.conditions();
        let put = |(key, write): (&Key, &Write)| {
            let mut put = json!({ "key": Bytes64::from(key.as_str()), "value": Bytes64::from(write.value.as_str()) });
            if let Some(lease) = write.lease {
                put["lease"] = json!(lease);
            }
            json!({ "request_put": put })
        };
        let answer = self.database.etcd.txn(compare, self.written.iter().map(put).collect()).await?;
        Ok(match answer.succeeded {
            true => Outcome::Committed(answer.header.revision.0),
            false => Outcome::Conflict,
        })
    }

    /// A key that was there has not changed, and one that was not is not there.
    fn conditions(&self) -> Vec<Value> {
        let unchanged = self.read.iter().map(|(key, revision)| {
            json!({ "key": Bytes64::from(key.as_str()), "target": "MOD", "result": "EQUAL", "mod_revision": Int(*revision) })
        });
        unchanged.collect()
    }
}

fn range(key: &str, end: Option<Bytes64>, revision: Option<i64>) -> Value {
    let mut range = json!({ "key": Bytes64::from(key) });
    if let Some(end) = end {
        range["range_end"] = json!(end);
    }
    if let Some(revision) = revision {
        range["revision"] = json!(Int(revision));
    }
    json!({ "request_range": range })
}

/// How often to begin again.
#[derive(Debug, Default)]
pub(super) struct Tries(u32);

impl Tries {
    /// Waits before the next one.
    pub(super) async fn again(&mut self) -> Result<(), DatabaseError> {
        self.0 += 1;
        if self.0 >= TRIES {
            return Err(DatabaseError::Busy { tries: self.0 });
        }
        tokio::time::sleep(PAUSE * (1 << self.0.min(8))).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_or_a_value_that_is_no_text_does_not_hide_the_others() {
        let of = |key: &[u8], value: &[u8]| KeyValue {
            key: Bytes64(key.to_vec()),
            value: Bytes64(value.to_vec()),
            ..KeyValue::default()
        };
        let found = [of(b"/pb/a/state", b"\xff"), of(b"/pb/\xff", b"{}"), of(b"/pb/b", b"{}")];
        let entries: BTreeMap<_, _> = found.into_iter().filter_map(entry).collect();
        assert_eq!(entries.keys().collect::<Vec<_>>(), ["/pb/a/state", "/pb/b"]);
        assert_eq!((entries["/pb/a/state"].value.as_str(), entries["/pb/b"].value.as_str()), ("\u{fffd}", "{}"));
    }
}
