//! What became permanent, for those who look at the Configuration DB alone: digests and nothing that could be restored from them
//! without the store.

use std::collections::BTreeMap;

use image_format::{ApplicationId, Digest, Epoch, MemberId};
use registry::Location;
use serde_json::{Map, Value, json};

use super::database::{Database, Outcome, Tries};
use super::etcd::DatabaseError;
use super::ids::BlockId;

/// One global checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// The application that it is of.
    pub application: ApplicationId,
    /// Its number.
    pub epoch: Epoch,
    /// When it was taken, as RFC 3339.
    pub created: String,
    /// Its index.
    pub digest: Digest,
    /// The repository that it is in.
    pub repository: Location,
    /// Their manifests.
    pub members: BTreeMap<MemberId, Digest>,
    /// The index of the one before.
    pub predecessor: Option<Digest>,
}

impl CatalogueEntry {
    fn json(&self) -> Value {
        let members: Map<_, _> =
            self.members.iter().map(|(member, digest)| (member.to_string(), json!(digest.to_string()))).collect();
        json!({
            "application": self.application.to_string(),
            "created": self.created,
            "digest": self.digest.to_string(),
            "epoch": self.epoch.0,
            "members": members,
            "predecessor": self.predecessor.map(|digest| digest.to_string()),
            "repository": self.repository.to_string(),
        })
    }
}

impl Database {
    /// Writes down that a checkpoint of a processing block is permanent. To be called after its tag is there, never before.
    ///
    /// `token` is the fencing token of whoever writes ([`crate::sdp`]'s owner's key came to be at that revision): without it, it is
    /// written by anybody. The same entry again changes nothing.
    ///
    /// # Errors
    /// The database does not answer; the owner is another one by now; there is another checkpoint of that epoch.
    pub async fn record(
        &self,
        block: &BlockId,
        entry: &CatalogueEntry,
        token: Option<u64>,
    ) -> Result<(), DatabaseError> {
        let (key, owner) = (self.catalogue_key(block, entry.epoch), self.owner_key(block));
        let (value, mut tries) = (entry.json(), Tries::default());
        loop {
            let mut transaction = self.begin();
            match transaction.get(&key).await? {
                Some(found) if serde_json::from_str::<Value>(&found.value).is_ok_and(|there| there == value) => {
                    return Ok(());
                }
                Some(_) => {
                    let reason = format!("it is another checkpoint's, and not {}'s", entry.digest);
                    return Err(DatabaseError::Value { key: key.as_str().to_owned(), reason });
                }
                None => {}
            }
            if let Some(token) = token {
                let created = transaction.get(&owner).await?.map(|found| found.created);
                if created != i64::try_from(token).ok() {
                    return Err(DatabaseError::Fenced { key: owner.as_str().to_owned() });
                }
            }
            transaction.put(key.clone(), &value);
            match transaction.commit().await? {
                Outcome::Committed(_) => return Ok(()),
                Outcome::Conflict => tries.again().await?,
            }
        }
    }
}
