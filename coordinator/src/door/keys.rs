//! The secrets by which the members of one host are told apart.

use std::collections::BTreeMap;

use image_format::MemberId;
use tokio::net::UnixStream;

use crate::secret::Secret;
use crate::wire::Request;

/// One session's secrets, and the user that may show them.
#[derive(Debug)]
pub(crate) struct Keys {
    secrets: BTreeMap<MemberId, Secret>,
    uid: u32,
}

impl Keys {
    pub(crate) fn new(secrets: BTreeMap<MemberId, Secret>) -> Self {
        Self { secrets, uid: rustix::process::geteuid().as_raw() }
    }

    /// Whether the process at the other end is of the session's user, or of root.
    pub(super) fn admit_peer(&self, stream: &UnixStream) -> bool {
        stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == self.uid)
    }

    /// Whether the request comes from the member that it names.
    pub(super) fn admit(&self, request: &Request) -> bool {
        let shown = request.secret.as_ref();
        self.secrets.get(&request.message.member).zip(shown).is_some_and(|(secret, shown)| secret.matches(shown))
    }
}
