//! The rendezvous of one session: where the hooks of its members meet, on this host, and over mutual TLS those of others.
//!
//! One task owns the [`Session`] and does what it asks for; a short task for each connection reads the
//! request, checks whose it is and waits with it. The launcher holds a [`Rendezvous`] and talks to the owner by messages.

mod driver;
mod folder;
mod outpost;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use image_format::MemberId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::driver::{Driver, News, Order};
use self::folder::Folder;
pub use self::folder::FolderError;
pub use self::outpost::{Outpost, OutpostError};
use crate::control::{Attendee, Delegate, RollCall};
use crate::door::{Call, Door, Keys, Listen, ListenError};
use crate::plan::{PlanError, SessionId, SessionPlan};
use crate::proto::{Event, Finished, Missing, Outcome, Session};
use crate::secret::Secret;
use crate::ticket::{Place, Ticket};
use crate::wire::Invitation;
use crate::wire::control::{Attend, CoordinatorMessage, Summons};

/// A running session and its folder: `<root>/<session>/` with a socket, and for each member a folder with the CRIU
/// configuration, the link that CRIU runs, and the member's ticket.
///
/// Dropping it ends the session: every hook that waits, or comes later, finds nobody and fails closed. The folder is left
/// in place then, on purpose. See [`Rendezvous::close`].
#[derive(Debug)]
pub struct Rendezvous {
    folder: Folder,
    members: Vec<MemberId>,
    orders: mpsc::UnboundedSender<Order>,
    address: Option<SocketAddr>,
    delegates: Vec<Delegate>,
    events: Option<mpsc::UnboundedReceiver<Event>>,
    capture: watch::Receiver<bool>,
    outcome: watch::Receiver<Option<Outcome>>,
    finished: watch::Receiver<Option<Finished>>,
    driver: JoinHandle<()>,
}

/// Where the members come in.
struct Entrance {
    door: Door,
    calls: mpsc::UnboundedReceiver<Call>,
    address: Option<SocketAddr>,
}

/// Why a rendezvous cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RendezvousError {
    /// The plan is none.
    #[error("the session cannot be")]
    Plan(#[from] PlanError),
    /// No random numbers for the secrets.
    #[error("the system has no random numbers")]
    Random(#[source] getrandom::Error),
    /// The session's folder cannot be made.
    #[error("the session's folder cannot be made")]
    Folder(#[from] FolderError),
    /// Nobody could be heard.
    #[error("the session cannot be listened for")]
    Listen(#[from] ListenError),
}

/// Why a session's folder is still there.
#[derive(Debug, thiserror::Error)]
#[error("the session's folder {path:?} cannot be removed")]
pub struct CloseError {
    /// The folder.
    path: PathBuf,
    /// Why.
    #[source]
    source: io::Error,
}

impl Rendezvous {
    /// Makes the session's folder below `root` (made with mode 0700 where it is missing), and listens.
    ///
    /// `hook_program` is what CRIU is to run: the `syncpoint-hook` binary.
    ///
    /// # Errors
    /// The plan is none, or the folder or the socket cannot be made. Nothing is left then.
    pub async fn start(root: &Path, plan: SessionPlan, hook_program: &Path) -> Result<Self, RendezvousError> {
        Self::start_with(root, plan, hook_program, None).await
    }

    /// The same, and members of other hosts are heard as well, over mutual TLS, if `listen` says where.
    ///
    /// # Errors
    /// As [`Rendezvous::start`], and the address cannot be bound or the certificates cannot be used.
    pub async fn start_with(
        root: &Path,
        plan: SessionPlan,
        hook_program: &Path,
        listen: Option<&Listen>,
    ) -> Result<Self, RendezvousError> {
        let (call, calls) = mpsc::unbounded_channel();
        let mut door = Door::new(plan.members.len(), call);
        let address = match listen {
            Some(listen) => Some(door.open_elsewhere(listen).await?),
            None => None,
        };
        Self::begin(root, plan, hook_program, Entrance { door, calls, address }, Vec::new()).await
    }

    /// The same with members of other hosts that are there already, all of them members of the plan. Each is told what `summons`
    /// gives for it. The launchers of the other hosts take part in the capture: it is over when all have
    /// taken their files.
    ///
    /// # Errors
    /// As [`Rendezvous::start`].
    pub async fn start_attended(
        root: &Path,
        plan: SessionPlan,
        hook_program: &Path,
        roll_call: RollCall,
        summons: impl Fn(&Attend, Invitation) -> Summons,
    ) -> Result<Self, RendezvousError> {
        let address = Some(roll_call.address());
        let invitation = Invitation::to(&plan);
        let (door, calls, attendees) = roll_call.into_parts();
        let summoned = |attendee: Attendee| (summons(&attendee.attend, invitation.clone()), attendee);
        let attendees = attendees.into_iter().map(summoned).collect();
        Self::begin(root, plan, hook_program, Entrance { door, calls, address }, attendees).await
    }

    async fn begin(
        root: &Path,
        plan: SessionPlan,
        hook_program: &Path,
        entrance: Entrance,
        attendees: Vec<(Summons, Attendee)>,
    ) -> Result<Self, RendezvousError> {
        let Entrance { mut door, calls, address } = entrance;
        let session = Session::new(plan.clone())?;
        let elsewhere = |member: &MemberId| attendees.iter().any(|(_, attendee)| attendee.attend.member == *member);
        let secrets: BTreeMap<MemberId, Secret> = plan
            .members
            .iter()
            .filter(|member| !elsewhere(member))
            .map(|member| Ok((member.clone(), Secret::random()?)))
            .collect::<Result<_, _>>()
            .map_err(RendezvousError::Random)?;
        let members = plan.members.clone();
        let (root, hook_program) = (root.to_owned(), hook_program.to_owned());
        let making = move || {
            let tickets = |folder: &Path| {
                let place = Place::Socket(folder::socket(folder));
                let members = secrets.iter().map(|(member, secret)| (member.clone(), Some(secret.clone())));
                let tickets = folder::tickets(&Invitation::to(&plan), &place, members).into_iter();
                tickets.map(|ticket| Ticket { fence: plan.fence.clone(), ..ticket }).collect()
            };
            Folder::make(&root, plan.id, &hook_program, tickets).map(|folder| (folder, secrets))
        };
        let (folder, secrets) = match tokio::task::spawn_blocking(making).await {
            Ok(made) => made?,
            Err(failed) => return Err(FolderError::Interrupted(failed).into()),
        };
        if let Err(error) = door.open_here(folder.socket(), Keys::new(secrets)) {
            // The reason why there is no session matters more than a folder that stays behind.
            let _ = folder.remove();
            return Err(RendezvousError::Listen(error));
        }
        let (mut delegates, mut seats) = (Vec::new(), HashMap::new());
        for (summons, Attendee { connection, attend, words }) in attendees {
            // Whether it is still there the session finds out.
            let _ = words.send(CoordinatorMessage::Invited(summons));
            let (delegate, seat) = Delegate::new(attend, words);
            delegates.push(delegate);
            seats.insert(connection, seat);
        }
        let (orders, inbox) = mpsc::unbounded_channel();
        let (tell, events) = mpsc::unbounded_channel();
        let (ask, capture) = watch::channel(false);
        let (decide, outcome) = watch::channel(None);
        let (finish, finished) = watch::channel(None);
        let news = News { tell, capture: ask, decide, finish };
        let driver = tokio::spawn(Driver::new(session, door, news, seats).run(calls, inbox));
        let events = Some(events);
        Ok(Self { folder, members, orders, address, delegates, events, capture, outcome, finished, driver })
    }

    /// Where members of other hosts are heard, if they are.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The launchers of members on other hosts, for what follows the release. Only the first call gets them.
    pub fn delegates(&mut self) -> Vec<Delegate> {
        std::mem::take(&mut self.delegates)
    }

    /// The CRIU configuration file to start this member's engine with (annotation `org.criu.config`). It is there for
    /// members of the session only.
    #[must_use]
    pub fn criu_config(&self, member: &MemberId) -> PathBuf {
        self.folder.criu_config(member)
    }

    /// The same before there is a session, for whoever has to write it into a dump first. `root` is absolute and leads
    /// through no link.
    #[must_use]
    pub fn criu_config_at(root: &Path, session: SessionId, member: &MemberId) -> PathBuf {
        folder::criu_config(&root.join(session.to_string()), member)
    }

    /// What the members do, from the start. Only the first call gets it; later ones get a channel that has ended.
    pub fn events(&mut self) -> mpsc::UnboundedReceiver<Event> {
        self.events.take().unwrap_or_else(|| mpsc::unbounded_channel().1)
    }

    /// The launcher saw a member's engine fail: an abort before the release, a missing member after it.
    pub async fn member_failed(&self, member: &MemberId, reason: String) {
        let (done, handled) = oneshot::channel();
        // A driver that has ended has nobody left to release, and a member that is not in the session cannot fail it.
        if self.orders.send(Order::MemberFailed { member: member.clone(), reason, done }).is_ok() {
            let _ = handled.await;
        }
    }

    /// The launcher gives up: an abort, unless the members were released already.
    pub async fn cancel(&self, reason: String) {
        let (done, handled) = oneshot::channel();
        if self.orders.send(Order::Cancel { reason, done }).is_ok() {
            let _ = handled.await;
        }
    }

    /// Waits until every member of a dump stands at post-dump with a yes: the time to take their files, of which
    /// [`Rendezvous::captured`] tells. False if the session was decided first, or ends; that of a restore always is.
    pub async fn to_capture(&self) -> bool {
        let (mut outcome, mut capture) = (self.outcome.clone(), self.capture.clone());
        tokio::select! {
            biased;
            _ = outcome.wait_for(Option::is_some) => false,
            asked = capture.wait_for(|asked| *asked) => asked.is_ok(),
        }
    }

    /// The files are taken: the members are released. Nothing happens if the session was aborted meanwhile, or if nobody
    /// was to be captured; [`Rendezvous::outcome`] says which.
    pub async fn captured(&self) {
        let (done, handled) = oneshot::channel();
        if self.orders.send(Order::Captured { done }).is_ok() {
            let _ = handled.await;
        }
    }

    /// Waits until it is decided, which is within the plan's deadlines, and says what.
    pub async fn outcome(&self) -> Outcome {
        match self.outcome.clone().wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            Ok(None) | Err(_) => {
                Outcome::Aborted { member: None, hook: None, reason: "the rendezvous has ended".to_owned() }
            }
        }
    }

    /// Waits until every member told that it runs, failed, or was silent for too long, and says which. After an abort
    /// nobody runs.
    pub async fn finished(&mut self) -> Finished {
        match self.finished.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(finished)) => finished.clone(),
            Ok(None) | Err(_) => {
                let reason = "the rendezvous has ended";
                let missing = |member: &MemberId| Missing { member: member.clone(), reason: reason.to_owned() };
                Finished { running: Vec::new(), missing: self.members.iter().map(missing).collect() }
            }
        }
    }

    /// Ends the session, aborting it if it is undecided, and removes its folder.
    ///
    /// To be called only once the engine of every member has ended. CRIU merely logs when it cannot run its script at
    /// pre-resume and lets the tasks go: a folder that is taken away from under a CRIU that is on its way there would
    /// start a member of an aborted set.
    ///
    /// # Errors
    /// The folder cannot be removed.
    pub async fn close(mut self) -> Result<(), CloseError> {
        self.cancel("the session was closed".to_owned()).await;
        // If the driver is gone already there is nothing to wait for.
        if self.orders.send(Order::Close).is_ok() {
            let _ = (&mut self.driver).await;
        }
        self.folder.remove().map_err(|source| CloseError { path: self.folder.path().to_owned(), source })
    }
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
