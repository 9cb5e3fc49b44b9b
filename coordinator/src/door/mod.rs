//! Where hooks come in: a local socket, a TCP port with mutual TLS, or both.
//!
//! A short task for each connection finds out whose it is, reads what it has to say, brings that as a [`Call`] to the task
//! that owns the sessions, and watches whether its end is still there until the answer is given.

mod connection;
mod keys;
mod known;
mod waiting;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

pub(crate) use self::connection::body;
pub(crate) use self::keys::Keys;
use self::known::Known;
pub(crate) use self::waiting::{Waiting, answer_all, send};
use crate::proto::{ConnectionId, Message};
use crate::strangers::Strangers;
use crate::tls::{TlsError, TlsFiles};
use crate::wire::control::{Attend, CoordinatorMessage, ParticipantMessage};
use crate::wire::{Invitation, Join};

/// Connections for each member, and some more. Of this host's, further ones wait in the socket's queue; of other hosts there are as
/// many places for strangers, and as many again for those who have shown a certificate.
const CONNECTIONS_EACH: usize = 2;
const CONNECTIONS_MORE: usize = 64;

/// Connections that have shown the certificate of the same member; a hook uses one at a time, and its launcher one more.
const CONNECTIONS_OF_ONE: usize = 8;

/// How long a peer may take to prove who it is, to send its request, or to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a closing door waits for its last answers to be taken.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Where hooks of other hosts are heard.
#[derive(Debug, Clone)]
pub struct Listen {
    /// The address to bind; port 0 takes a free one.
    pub address: SocketAddr,
    /// Who this end is, and whose members are heard.
    pub tls: TlsFiles,
}

/// Why nobody can be heard.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The certificates cannot be used.
    #[error("the certificates cannot be used")]
    Tls(#[from] TlsError),
    /// The address cannot be bound.
    #[error("the address {address} cannot be bound")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The local socket cannot be bound.
    #[error("the socket {path:?} cannot be bound")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What a connection brings.
#[derive(Debug)]
pub(crate) enum Call {
    /// A message of a member that proved who it is.
    Message { from: ConnectionId, message: Message, waiting: Waiting },
    /// A member that proved who it is has no ticket and asks which session it is in.
    Join { from: ConnectionId, join: Join, told: mpsc::UnboundedSender<Told> },
    /// The launcher of a member that proved who it is wants to take part with it.
    Attend { from: ConnectionId, attend: Attend, words: mpsc::UnboundedSender<CoordinatorMessage> },
    /// It says something.
    Report { from: ConnectionId, report: ParticipantMessage },
    /// It ended without an answer.
    Disconnect { connection: ConnectionId },
}

/// What a member is told that asked to join.
#[derive(Debug)]
pub(crate) enum Told {
    Noted { within: Duration },
    Invited(Invitation),
    Refused { reason: String },
}

/// A local socket, a TLS port, and everybody who came in.
#[derive(Debug)]
pub(crate) struct Door {
    local: Option<(UnixListener, Arc<Keys>)>,
    remote: Option<Remote>,
    calls: mpsc::UnboundedSender<Call>,
    next_connection: u64,
    most: usize,
    // Apart, so that strangers of other hosts do not take the places of this one's hooks.
    from_here: JoinSet<()>,
    from_elsewhere: JoinSet<()>,
    /// Those of other hosts who have not shown a certificate yet.
    strangers: Strangers,
    known: Known,
}

struct Remote {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Door {
    /// A closed one, for sessions of this many members.
    pub(crate) fn new(members: usize, calls: mpsc::UnboundedSender<Call>) -> Self {
        let most = members * CONNECTIONS_EACH + CONNECTIONS_MORE;
        Self {
            local: None,
            remote: None,
            calls,
            next_connection: 0,
            most,
            from_here: JoinSet::new(),
            from_elsewhere: JoinSet::new(),
            strangers: Strangers::new(most),
            known: Known::new(most),
        }
    }

    /// Opens a socket of this host, to those who have the keys.
    pub(crate) fn open_here(&mut self, path: PathBuf, keys: Keys) -> Result<(), ListenError> {
        let listener = UnixListener::bind(&path).map_err(|source| ListenError::Socket { path, source })?;
        self.local = Some((listener, Arc::new(keys)));
        Ok(())
    }

    /// Opens a port to other hosts, and says which.
    pub(crate) async fn open_elsewhere(&mut self, listen: &Listen) -> Result<SocketAddr, ListenError> {
        let acceptor = TlsAcceptor::from(listen.tls.server()?);
        let failed = |source| ListenError::Bind { address: listen.address, source };
        let listener = TcpListener::bind(listen.address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        self.remote = Some(Remote { listener, acceptor });
        Ok(address)
    }

    /// Lets hooks in, for as long as it is waited for. Nothing is lost when it no longer is.
    pub(crate) async fn tend(&mut self) {
        loop {
            tokio::select! {
                accepted = accept_here(self.local.as_ref()), if self.from_here.len() < self.most => match accepted {
                    Ok((stream, keys)) => self.welcome_here(stream, keys),
                    // Out of descriptors, say: the hooks in the queue wait, those that are here go on.
                    Err(_) => sleep(Duration::from_millis(20)).await,
                },
                accepted = accept_elsewhere(self.remote.as_ref()) => match accepted {
                    Ok((stream, acceptor)) => self.welcome_elsewhere(stream, acceptor),
                    // Out of descriptors, say, which strangers are not to hold.
                    Err(_) if self.strangers.push_out_oldest() => sleep(Duration::from_millis(1)).await,
                    Err(_) => sleep(Duration::from_millis(20)).await,
                },
                Some(_) = self.from_here.join_next() => {}
                Some(_) = self.from_elsewhere.join_next() => {}
            }
        }
    }

    /// Waits until the last answers are taken, or for a moment.
    pub(crate) async fn close(mut self) {
        let all_answered = async {
            while self.from_here.join_next().await.is_some() {}
            while self.from_elsewhere.join_next().await.is_some() {}
        };
        let _ = timeout(LAST_ANSWERS, all_answered).await;
    }

    fn welcome_here(&mut self, stream: UnixStream, keys: Arc<Keys>) {
        if !keys.admit_peer(&stream) {
            return;
        }
        let (id, calls) = (self.next_id(), self.calls.clone());
        self.from_here.spawn(async move { connection::serve_here(id, stream, &keys, &calls).await });
    }

    fn welcome_elsewhere(&mut self, stream: TcpStream, acceptor: TlsAcceptor) {
        // Without either the connection still works, if later and for longer.
        let _ = stream.set_nodelay(true);
        let _ = keep_alive(&stream);
        let (id, calls, known) = (self.next_id(), self.calls.clone(), self.known.clone());
        let shaken = self.strangers.host(PATIENCE, async move { acceptor.accept(stream).await.ok() });
        self.from_elsewhere.spawn(async move {
            if let Some(Some(stream)) = shaken.await {
                connection::serve_elsewhere(id, stream, &known, &calls).await;
            }
        });
    }

    fn next_id(&mut self) -> ConnectionId {
        self.next_connection += 1;
        ConnectionId(self.next_connection)
    }
}

async fn accept_here(local: Option<&(UnixListener, Arc<Keys>)>) -> io::Result<(UnixStream, Arc<Keys>)> {
    match local {
        Some((listener, keys)) => Ok((listener.accept().await?.0, Arc::clone(keys))),
        None => std::future::pending().await,
    }
}

async fn accept_elsewhere(remote: Option<&Remote>) -> io::Result<(TcpStream, TlsAcceptor)> {
    match remote {
        Some(remote) => Ok((remote.listener.accept().await?.0, remote.acceptor.clone())),
        None => std::future::pending().await,
    }
}

/// A host that is switched off says nothing; this finds out within some ten seconds.
pub(crate) fn keep_alive(stream: impl AsFd) -> io::Result<()> {
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, Duration::from_secs(4))?;
    sockopt::set_tcp_keepintvl(&stream, Duration::from_secs(2))?;
    Ok(sockopt::set_tcp_keepcnt(&stream, 3)?)
}
