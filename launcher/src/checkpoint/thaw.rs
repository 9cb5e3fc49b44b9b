//! Members that stand frozen although their checkpoint let them go.

use std::collections::BTreeSet;
use std::time::Duration;

use coordinator::hook::{FoundFrozen, thaw};
use image_format::MemberId;

use super::members::Member;
use crate::observer::Observer;

/// How often members are looked at while their dumps are packed. A hook of somebody else's, or CRIU after it, freezes them within
/// moments of the release.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// Looks at members after their release, and tells of each once.
#[derive(Debug, Default)]
pub(super) struct Frozen {
    told: BTreeSet<MemberId>,
}

impl Frozen {
    /// Lets go whoever stands frozen; where that would let others go too, says what to do.
    pub(super) fn look(&mut self, members: &[Member], observer: &dyn Observer) {
        for Member { id, source, .. } in members {
            let words = match thaw(source.pid) {
                Ok(found) => match found.first() {
                    None => continue,
                    Some(FoundFrozen { folder, thawed: true }) => format!(
                        "member {id} stood frozen after its release: something other than syncpoint had frozen its control group \
                         {}; it was thawed, and the member runs on",
                        folder.display()
                    ),
                    Some(FoundFrozen { folder, thawed: false }) => format!(
                        "member {id} stands frozen: something other than syncpoint froze the control group {}, which it \
                         shares with others; thaw that group to let the member run on",
                        folder.display()
                    ),
                },
                Err(error) => format!("member {id} stands frozen, and its control group cannot be thawed: {error}"),
            };
            if self.told.insert(id.clone()) {
                observer.warning(&words);
            }
        }
    }
}
