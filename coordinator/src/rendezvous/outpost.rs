//! A session on a host that is not the rendezvous': folders like those of the rendezvous, with tickets that lead to it.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use image_format::MemberId;

use super::CloseError;
use super::folder::{Folder, FolderError};
use crate::hook::{Client, Lost, Watch};
use crate::life::Life;
use crate::plan::SessionId;
use crate::proto::{Reply, SessionKind};
use crate::ticket::{Place, Remote, Ticket};
use crate::wire::{self, Invitation, Join, JoinAnswer, JoinRequest, JoinWord};

/// Members of a session whose rendezvous is on another host.
///
/// Dropping it leaves its folder in place, for the same reason as that of a
/// [`Rendezvous`](crate::Rendezvous); hooks that wait fail closed.
#[derive(Debug)]
pub struct Outpost {
    folder: Folder,
    invitation: Invitation,
    /// Of the members, until this host gives up.
    lives: Mutex<Vec<Life>>,
}

/// Why a host cannot take part in a session.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutpostError {
    /// The rendezvous cannot be reached or not be trusted.
    #[error("the rendezvous at {address} does not say which session to join")]
    Lost {
        /// Where it should be.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The rendezvous does not want this member.
    #[error("the rendezvous at {address} refuses {member}: {reason}")]
    Refused {
        /// Where it is.
        address: String,
        /// The member.
        member: MemberId,
        /// Its words.
        reason: String,
    },
    /// The folder cannot be made.
    #[error("the session's folder cannot be made")]
    Folder(#[from] FolderError),
}

impl Outpost {
    /// Asks the rendezvous, within this time, which session it holds for the member that the certificate names, and makes
    /// the folder below `root` that leads the member's hooks there.
    ///
    /// # Errors
    /// The rendezvous cannot be reached, is not who it should be, or has no such session; or the folder cannot be made.
    pub async fn join(
        root: &Path,
        remote: Remote,
        kind: SessionKind,
        member: MemberId,
        hook_program: &Path,
        within: Duration,
    ) -> Result<Self, OutpostError> {
        let (root, hook_program) = (root.to_owned(), hook_program.to_owned());
        let joining = move || {
            let invitation = ask(&remote, kind, &member, within)?;
            Ok(Self::make_now(&root, invitation, BTreeMap::from([(member, remote)]), &hook_program)?)
        };
        match tokio::task::spawn_blocking(joining).await {
            Ok(joined) => joined,
            Err(failed) => Err(FolderError::Interrupted(failed).into()),
        }
    }

    /// Makes the folder below `root` for members that were invited, each with the way to the rendezvous that is its own.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub async fn make(
        root: &Path,
        invitation: Invitation,
        members: BTreeMap<MemberId, Remote>,
        hook_program: &Path,
    ) -> Result<Self, FolderError> {
        let (root, hook_program) = (root.to_owned(), hook_program.to_owned());
        let making = move || Self::make_now(&root, invitation, members, &hook_program);
        tokio::task::spawn_blocking(making).await.unwrap_or_else(|failed| Err(FolderError::Interrupted(failed)))
    }

    fn make_now(
        root: &Path,
        invitation: Invitation,
        members: BTreeMap<MemberId, Remote>,
        hook_program: &Path,
    ) -> Result<Self, FolderError> {
        let ids: Vec<MemberId> = members.keys().cloned().collect();
        let ticket =
            |(member, remote)| Ticket { life: true, ..Ticket::new(&invitation, Place::Remote(remote), member, None) };
        let tickets = |_: &Path| members.into_iter().map(ticket).collect();
        let folder = Folder::make(root, invitation.session, hook_program, tickets)?;
        let begin = |member| {
            let path = folder.member(member);
            Life::begin(&path).map_err(|source| FolderError::Write { path, source })
        };
        let lives = match ids.iter().map(begin).collect::<Result<_, _>>() {
            Ok(lives) => Mutex::new(lives),
            Err(error) => {
                // What went wrong first is what matters.
                let _ = folder.remove();
                return Err(error);
            }
        };
        Ok(Self { folder, invitation, lives })
    }

    /// This host gives up: its hooks wait for the rendezvous no longer, and fail closed.
    pub fn give_up(&self) {
        let lives = std::mem::take(&mut *self.lives.lock().unwrap_or_else(PoisonError::into_inner));
        lives.into_iter().for_each(Life::end);
    }

    /// The CRIU configuration file to start this member's engine with.
    #[must_use]
    pub fn criu_config(&self, member: &MemberId) -> PathBuf {
        self.folder.criu_config(member)
    }

    /// The session that it is part of.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.invitation.session
    }

    /// What the rendezvous said of the session: its kind, epoch and deadlines.
    #[must_use]
    pub fn invitation(&self) -> &Invitation {
        &self.invitation
    }

    /// Removes the folder. To be called only once the members' engines have ended.
    ///
    /// # Errors
    /// The folder cannot be removed.
    pub fn close(self) -> Result<(), CloseError> {
        self.folder.remove().map_err(|source: io::Error| CloseError { path: self.folder.path().to_owned(), source })
    }
}

fn ask(remote: &Remote, kind: SessionKind, member: &MemberId, within: Duration) -> Result<Invitation, OutpostError> {
    let deadline = Instant::now() + within;
    let asking = || -> Result<JoinWord, Lost> {
        let mut client = Client::connect(&Place::Remote(remote.clone()), deadline)?;
        let join = Join { kind, member: member.clone(), dependencies: Vec::new() };
        client.send(&JoinRequest { version: wire::VERSION, join })?;
        loop {
            match client.receive::<JoinAnswer>(Watch::NOBODY)?.word {
                JoinWord::Noted { .. } => {}
                word => return Ok(word),
            }
        }
    };
    let address = remote.address.clone();
    match asking() {
        Ok(JoinWord::Invited(invitation)) => Ok(invitation),
        Ok(JoinWord::Reply(Reply::Abort { reason })) => {
            Err(OutpostError::Refused { address, member: member.clone(), reason })
        }
        Ok(JoinWord::Reply(Reply::Proceed) | JoinWord::Noted { .. }) => {
            Err(OutpostError::Lost { address, source: "the answer is none".into() })
        }
        Err(source) => Err(OutpostError::Lost { address, source: source.into() }),
    }
}
