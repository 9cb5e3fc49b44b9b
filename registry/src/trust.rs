//! Whom to believe that a checkpoint is what it should be.

use image_format::Descriptor;

use crate::sign::{Depth, Finding, GoodSignature, PublicKey, verify};
use crate::{Store, StoreError};

/// Whom to believe that a checkpoint is what it should be.
#[derive(Debug, Clone)]
pub enum Trust {
    /// One of these keys must have signed it.
    Keys(Vec<PublicKey>),
    /// Nobody is asked. Whoever can write to the store can run what they like on this machine, as root.
    InsecureNoVerify,
}

impl Trust {
    /// Looks for a signature of a root that holds. Gives the signatures that hold, which are none where nobody is asked, or what
    /// speaks against the root.
    ///
    /// # Errors
    /// The store cannot be asked.
    pub async fn check(
        &self,
        store: &dyn Store,
        root: &Descriptor,
    ) -> Result<Result<Vec<GoodSignature>, Vec<Finding>>, StoreError> {
        let keys = match self {
            Self::Keys(keys) => keys,
            Self::InsecureNoVerify => return Ok(Ok(Vec::new())),
        };
        let report = verify(store, root, keys, Depth::Signature, &()).await?;
        Ok(if report.is_good() { Ok(report.signatures) } else { Err(report.findings) })
    }
}
