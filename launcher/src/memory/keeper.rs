//! A process that holds the address spaces, too, so that no task ever finds zeros where its memory should be.
//!
//! ```text
//!   launcher ── space N and its descriptor, space N is gone, container C ──▶ keeper
//!      │ "all memory is there"  ─────────────────────────────────────────────▶ ends
//!      ✕ (killed, crashed)      ─────────────────────────────────────────────▶ kills the containers' processes, then ends
//! ```
//!
//! The kernel fills with zeros what is lacking once nobody holds a userfaultfd any more, and tells nobody. A launcher that dies while memory
//! follows would leave its set running on that. The keeper has the same descriptors, and does nothing but wait for that end. That
//! both are killed at once is not covered: the next restore's sweep finds the record, and removes what runs on.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use engine::{Marks, Ticks, descriptors::receive, kill};
use image_format::SECRET_VARIABLES;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

/// The argument with which a program is to call [`keep`].
pub const KEEP: &str = "keep-memory";

/// Bytes of a message.
const MESSAGE: usize = 1024;
/// How long is waited before processes that do not go are killed again.
const AGAIN: Duration = Duration::from_millis(200);

/// What the keeper is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Told {
    /// Whose processes are to be killed: the container's id, and since when they can be this restore's.
    Container { id: String, since: Ticks },
    /// A space that comes with its descriptor.
    Space { member: usize, number: u64 },
    /// A space that is gone.
    Gone { member: usize, number: u64 },
    /// Nothing is lacking any more, or all tasks are dead.
    Done,
}

/// The keeper, as its launcher knows it. It kills unless it hears [`Keeper::done`].
#[derive(Debug)]
pub(crate) struct Keeper {
    socket: OwnedFd,
    child: Mutex<Child>,
}

impl Keeper {
    /// Starts `program` with [`KEEP`]. It does not hear what a terminal tells its launcher.
    pub(crate) fn start(program: &Path) -> io::Result<Self> {
        let (socket, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(program);
        command.arg(KEEP).stdin(its).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        for name in SECRET_VARIABLES {
            command.env_remove(name);
        }
        Ok(Self { socket, child: Mutex::new(command.spawn()?) })
    }

    /// This container's processes are to be killed if this launcher dies.
    pub(crate) fn guard(&self, id: &str, since: Ticks) -> io::Result<()> {
        self.tell(&Told::Container { id: id.to_owned(), since }, None)
    }

    /// Holds a space, too.
    pub(super) fn hold(&self, member: usize, number: u64, space: BorrowedFd<'_>) -> io::Result<()> {
        self.tell(&Told::Space { member, number }, Some(space))
    }

    /// Holds it no longer.
    pub(super) fn let_go(&self, member: usize, number: u64) -> io::Result<()> {
        self.tell(&Told::Gone { member, number }, None)
    }

    /// All is well, or all tasks are dead: it is needed no longer.
    pub(crate) fn done(&self) {
        // One that is dead needs not be told.
        let _ = self.tell(&Told::Done, None);
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = child.wait();
    }

    fn tell(&self, told: &Told, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let bytes = serde_json::to_vec(told)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// What a keeper does: holds what comes by its standard input, until it is told that all is well, or until nobody is there any more to tell
/// it. Then it kills.
pub fn keep() {
    let stdin = io::stdin();
    let mut containers: Vec<(String, Ticks)> = Vec::new();
    let mut spaces: BTreeMap<(usize, u64), OwnedFd> = BTreeMap::new();
    // What is not understood is no word that all is well.
    while let Ok(Some((told, descriptor))) = hear(stdin.as_fd()) {
        match told {
            Told::Done => return,
            Told::Container { id, since } => containers.push((id, since)),
            Told::Space { member, number } => {
                descriptor.and_then(|space| spaces.insert((member, number), space));
            }
            Told::Gone { member, number } => {
                spaces.remove(&(member, number));
            }
        }
    }
    // Nobody goes on before all are dead: the spaces are held until then.
    loop {
        containers.retain(|(id, since)| kill(&Marks { id: Some(id.clone()), folder: None, since: *since }).is_err());
        if containers.is_empty() {
            return;
        }
        std::thread::sleep(AGAIN);
    }
}

fn hear(socket: BorrowedFd<'_>) -> io::Result<Option<(Told, Option<OwnedFd>)>> {
    let mut bytes = [0; MESSAGE];
    match receive(socket, &mut bytes)? {
        (0, _) => Ok(None),
        (count, descriptor) => Ok(Some((serde_json::from_slice(&bytes[..count])?, descriptor))),
    }
}
