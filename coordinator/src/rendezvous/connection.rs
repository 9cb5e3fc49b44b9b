//! One connection of a hook: whose is it, what does it say, is it still there.

use std::collections::BTreeMap;
use std::time::Duration;

use image_format::MemberId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::driver::Command;
use crate::proto::{ConnectionId, Reply};
use crate::secret::Secret;
use crate::wire::{self, Answer, HEADER, Request, WireError};

/// How long a peer may take to send its request, or to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The secrets by which members are told apart.
#[derive(Debug)]
pub(super) struct Keys {
    secrets: BTreeMap<MemberId, Secret>,
    uid: u32,
}

impl Keys {
    pub(super) fn new(secrets: BTreeMap<MemberId, Secret>) -> Self {
        Self { secrets, uid: rustix::process::geteuid().as_raw() }
    }

    /// How many members there are.
    pub(super) fn len(&self) -> usize {
        self.secrets.len()
    }

    /// Whether the process at the other end is of the session's user, or of root.
    pub(super) fn admit_peer(&self, stream: &UnixStream) -> bool {
        stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == self.uid)
    }

    /// Whether the request comes from the member that it names.
    fn admit(&self, request: &Request) -> bool {
        self.secrets.get(&request.message.member).is_some_and(|secret| secret.matches(&request.secret))
    }
}

/// Reads the request, gives it to the driver, and waits with it for the answer. Whoever cannot say who it is gets no
/// answer at all.
pub(super) async fn serve(
    id: ConnectionId,
    mut stream: UnixStream,
    keys: &Keys,
    commands: &mpsc::UnboundedSender<Command>,
) {
    let request = match timeout(PATIENCE, read_request(&mut stream)).await {
        Ok(Ok(request)) => request,
        Ok(Err(error @ WireError::Version { .. })) => {
            return answer(stream, Reply::Abort { reason: error.to_string() }).await;
        }
        Ok(Err(_)) | Err(_) => return,
    };
    if !keys.admit(&request) {
        return;
    }
    let (reply, decided) = oneshot::channel();
    if commands.send(Command::Message { from: id, message: request.message, reply }).is_err() {
        return;
    }
    let mut byte = [0];
    tokio::select! {
        // What was decided is told even if the other end has gone in the same moment.
        biased;
        decided = decided => if let Ok(reply) = decided {
            answer(stream, reply).await;
        },
        // The end of the stream, or a byte that has no place in the protocol: either way nobody waits there any more.
        _ = stream.read(&mut byte) => {
            let _ = commands.send(Command::Disconnect { connection: id });
        }
    }
}

async fn read_request(stream: &mut UnixStream) -> Result<Request, WireError> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await.map_err(WireError::Read)?;
    let mut body = vec![0; wire::body_length(header)?];
    stream.read_exact(&mut body).await.map_err(WireError::Read)?;
    wire::decode(&body)
}

/// A hook that does not take its answer has gone, and fails closed by itself.
async fn answer(mut stream: UnixStream, reply: Reply) {
    if let Ok(frame) = wire::encode(&Answer { version: wire::VERSION, reply }) {
        let _ = timeout(PATIENCE, stream.write_all(&frame)).await;
    }
}
