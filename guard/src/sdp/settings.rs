//! How often a processing block is checkpointed, and where to: of its own, or by default.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Component;
use std::str::FromStr;
use std::time::Duration;

use registry::{Location, Reference};
use serde_json::{Value, json};

use super::database::{Database, Outcome, Tries};
use super::etcd::DatabaseError;
use super::ids::BlockId;
use super::json;

/// The shortest interval, in milliseconds: none would be a mistake.
const SHORTEST: u64 = 1;
/// The longest, a year.
const LONGEST: u64 = 366 * 24 * 3_600_000;

/// What a setting is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Every processing block that has none of its own.
    Default,
    /// One processing block.
    Block(BlockId),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Block(block) => block.fmt(f),
        }
    }
}

/// What can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// The time between checkpoints, in milliseconds.
    Interval,
    /// Below which location the checkpoints are kept, in a repository for each processing block.
    Storage,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interval => "interval",
            Self::Storage => "storage",
        })
    }
}

/// The time between checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval(u64);

impl Interval {
    /// From milliseconds: at least one, at most a year.
    #[must_use]
    pub fn from_millis(millis: u64) -> Option<Self> {
        (SHORTEST..=LONGEST).contains(&millis).then_some(Self(millis))
    }

    /// As a time.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

/// Where checkpoints are kept: `HOST[:PORT]/PATH` or `oci:DIR`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage(Location);

impl Storage {
    /// Reads a place from text. A single image is no place, and neither is a short name, which may
    /// stand for another repository tomorrow.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let reference: Reference = text.parse().ok()?;
        let lasting = !matches!(reference.location(), Location::ShortName(_));
        (lasting && reference.selector().is_none()).then(|| Self(reference.location().clone()))
    }

    /// The repository of a processing block.
    ///
    /// # Errors
    /// With the block's id it is no repository any more.
    pub fn repository(&self, block: &BlockId) -> Result<Reference, registry::ParseReferenceError> {
        format!("{}/{block}", self.0).parse()
    }
}

/// A text that is no place for checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is HOST[:PORT]/PATH or oci:DIR, without a tag")]
pub struct ParseStorageError;

impl FromStr for Storage {
    type Err = ParseStorageError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text).ok_or(ParseStorageError)
    }
}

impl Storage {
    /// Whether a repository is this place, or lies below it.
    #[must_use]
    pub fn covers(&self, repository: &Reference) -> bool {
        match (&self.0, repository.location()) {
            (Location::Registry { host, repository: above }, Location::Registry { host: its, repository: below }) => {
                let rest = below.strip_prefix(above.as_str());
                host == its && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            (Location::Layout(above), Location::Layout(below)) => {
                // By way of its parent a folder leads anywhere.
                below.starts_with(above) && !below.components().any(|part| part == Component::ParentDir)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A value to set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingValue {
    /// For [`Setting::Interval`].
    Interval(Interval),
    /// For [`Setting::Storage`].
    Storage(Storage),
}

impl SettingValue {
    /// What it is a value of.
    #[must_use]
    pub fn setting(&self) -> Setting {
        match self {
            Self::Interval(_) => Setting::Interval,
            Self::Storage(_) => Setting::Storage,
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::Interval(Interval(millis)) => json!(millis),
            Self::Storage(storage) => json!(storage.to_string()),
        }
    }

    /// From its text in the database; in words what is wrong with it.
    pub(super) fn parse(setting: Setting, text: &str) -> Result<Self, &'static str> {
        let value: Value = serde_json::from_str(text).map_err(|_| "it is no JSON")?;
        match setting {
            Setting::Interval => value
                .as_u64()
                .and_then(Interval::from_millis)
                .map(Self::Interval)
                .ok_or("it is no number of milliseconds from 1 to a year's"),
            Setting::Storage => {
                value.as_str().and_then(Storage::parse).map(Self::Storage).ok_or("it is no HOST/PATH and no oci:DIR")
            }
        }
    }
}

impl fmt::Display for SettingValue {
    /// As it stands in the database.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&json::to_text(&self.json()))
    }
}

impl Database {
    /// The key of a setting, and its value if it has one.
    ///
    /// # Errors
    /// The database does not answer, or holds something else there.
    pub async fn setting(
        &self,
        scope: &Scope,
        setting: Setting,
    ) -> Result<(String, Option<SettingValue>), DatabaseError> {
        let key = self.setting_key(scope, setting);
        let found = self.begin().get(&key).await?;
        let value = found.map(|found| {
            SettingValue::parse(setting, &found.value)
                .map_err(|reason| DatabaseError::Value { key: key.as_str().to_owned(), reason: reason.to_owned() })
        });
        Ok((key.as_str().to_owned(), value.transpose()?))
    }

    /// Sets it, whatever was there before.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn set(&self, scope: &Scope, value: &SettingValue) -> Result<String, DatabaseError> {
        let key = self.setting_key(scope, value.setting());
        let mut tries = Tries::default();
        loop {
            let mut transaction = self.begin();
            // What is there already is not written again: who waits for changes would be woken for nothing.
            let there = transaction.get(&key).await?;
            let text = value.to_string();
            if there.is_some_and(|found| found.value == text) {
                return Ok(key.as_str().to_owned());
            }
            transaction.put(key.clone(), &value.json());
            match transaction.commit().await? {
                Outcome::Committed(_) => return Ok(key.as_str().to_owned()),
                Outcome::Conflict => tries.again().await?,
            }
        }
    }

    /// All keys under `/checkpoint/` with their values, at one instant.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn list(&self) -> Result<BTreeMap<String, String>, DatabaseError> {
        let (_, found) = self.snapshot(&[format!("{}/", self.root())]).await?;
        Ok(found.into_iter().map(|(key, found)| (key, found.value)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_are_written() {
        let interval = SettingValue::Interval(Interval::from_millis(30_000).unwrap());
        let storage = SettingValue::Storage(Storage::parse("oci:/data/a b").unwrap());
        for (setting, value, text) in
            [(Setting::Interval, interval, "30000"), (Setting::Storage, storage, "\"oci:/data/a b\"")]
        {
            assert_eq!(value.to_string(), text);
            assert_eq!(SettingValue::parse(setting, text), Ok(value));
        }
    }

    #[test]
    fn a_place_covers_itself_and_what_lies_below() {
        for (place, repository, covered) in [
            ("r.example:5000/sdp", "r.example:5000/sdp", true),
            ("r.example:5000/sdp", "r.example:5000/sdp/pb-mvp01-20200425-00000", true),
            ("r.example:5000/sdp", "r.example:5000/sdpx/pb", false),
            ("r.example:5000/sdp", "r.example/sdp/pb", false),
            ("r.example:5000/sdp", "evil.example:5000/sdp/pb", false),
            ("r.example:5000/sdp", "oci:r.example:5000/sdp", false),
            ("oci:/srv/sdp", "oci:/srv/sdp/pb", true),
            ("oci:/srv/sdp", "oci:/srv/sdpx/pb", false),
            ("oci:/srv/sdp", "oci:/srv/sdp/../../etc/pb", false),
            ("oci:/srv/sdp", "oci:sdp/pb", false),
        ] {
            let covers = Storage::parse(place).unwrap().covers(&repository.parse().unwrap());
            assert_eq!(covers, covered, "{place} {repository}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["0", "-1", "1.5", "\"30000\"", "{}", "", "31622400001"] {
            assert!(SettingValue::parse(Setting::Interval, text).is_err(), "{text}");
        }
        for text in ["\"\"", "7", "\"oci:\"", "\"host:5000/sdp:tag\""] {
            assert!(SettingValue::parse(Setting::Storage, text).is_err(), "{text}");
        }
    }

    #[test]
    fn each_block_has_a_repository_of_its_own() {
        let block = "pb-mvp01-20200425-00000".parse().unwrap();
        for storage in ["oci:/data", "host:5000/sdp"] {
            let repository = Storage::parse(storage).unwrap().repository(&block).unwrap();
            assert_eq!(repository.to_string(), format!("{storage}/pb-mvp01-20200425-00000"));
        }
    }
}
