//! This host's members of a checkpoint that another host coordinates.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use image_format::{Digest, Epoch, MemberId, MemberTimeline};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{GOODBYE, converse, next};
use crate::door::{keep_alive, send};
use crate::hook::{SecureError, server_name};
use crate::proto::{Outcome, Reply, Timings};
use crate::ticket::Remote;
use crate::tls::TlsError;
use crate::wire::WireError;
use crate::wire::control::{
    Attend, CoordinatorMessage, Envelope, Failure, First, ParticipantMessage, Permanent, Stored, Summons,
};

/// How long it may take to connect, to shake hands, and to be noted; each of them.
const STEP: Duration = Duration::from_secs(5);

/// How long the coordinating host may take to say what it makes of a failure here.
const OBEDIENCE: Duration = Duration::from_secs(2);

/// What came of a checkpoint after the release; why it is not permanent is a fragment.
pub type CommitResult = Result<Committed, String>;

/// A checkpoint that is permanent, as the members of this host were told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The global checkpoint.
    pub digest: Digest,
    /// Its tag.
    pub tag: String,
    /// Its number.
    pub epoch: Epoch,
    /// What the time of each member went to.
    pub timelines: BTreeMap<MemberId, MemberTimeline>,
}

/// Members of this host that take part in a checkpoint, each on a connection of its own. Dropped, it leaves without a word, which
/// fails them.
#[derive(Debug)]
pub struct Delegation {
    seats: BTreeMap<MemberId, mpsc::UnboundedSender<ParticipantMessage>>,
    summons: watch::Receiver<Option<BTreeMap<MemberId, Summons>>>,
    capture: watch::Receiver<bool>,
    outcome: watch::Receiver<Option<Outcome>>,
    verdict: watch::Receiver<Option<CommitResult>>,
    /// To the one that brings the words together.
    tell: mpsc::UnboundedSender<Heard>,
    /// One for each connection, and the one that brings their words together.
    tasks: JoinSet<()>,
}

/// A member and what it was told; `None`: its connection ended.
type Heard = (MemberId, Option<CoordinatorMessage>);

/// Why a member does not take part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttendError {
    /// The certificates cannot be used.
    #[error("the certificates of member {member} cannot be used")]
    Tls {
        /// The member.
        member: MemberId,
        /// Why.
        #[source]
        source: Box<TlsError>,
    },
    /// Nobody is there, or nobody to be trusted.
    #[error("no checkpoint can be joined at {address}")]
    Lost {
        /// Where it should be.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The coordinating host does not want this member.
    #[error("the checkpoint at {address} refuses {member}: {reason}")]
    Refused {
        /// Where it is.
        address: String,
        /// The member.
        member: MemberId,
        /// Its words.
        reason: String,
    },
}

impl Delegation {
    /// Goes to the coordinating host with every member.
    ///
    /// # Errors
    /// It is not there, not to be trusted, or refuses a member. Then none of them takes part.
    pub async fn attend(members: Vec<(Attend, Remote)>) -> Result<Self, AttendError> {
        let mut connected = Vec::new();
        for (attend, remote) in members {
            connected.push((attend.member.clone(), connect(&attend, &remote).await?));
        }
        let (tell, words) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let mut seats = BTreeMap::new();
        for (member, mut stream) in connected {
            let (report, mut reports) = mpsc::unbounded_channel();
            seats.insert(member.clone(), report);
            let tell = tell.clone();
            tasks.spawn(async move {
                let hear = |word| {
                    let _ = tell.send((member.clone(), Some(word)));
                };
                converse(&mut stream, &mut reports, || ParticipantMessage::Alive, hear).await;
                let _ = tell.send((member, None));
            });
        }
        let (summon, summons) = watch::channel(None);
        let (ask, capture) = watch::channel(false);
        let (decide, outcome) = watch::channel(None);
        let (judge, verdict) = watch::channel(None);
        let ears = Ears {
            members: seats.keys().cloned().collect(),
            summoned: BTreeMap::new(),
            asked: BTreeSet::new(),
            lasting: None,
            gone: BTreeSet::new(),
            summon,
            ask,
            decide,
            judge,
        };
        tasks.spawn(ears.run(words));
        Ok(Self { seats, summons, capture, outcome, verdict, tell, tasks })
    }

    /// Waits until the session begins, for as long as the coordinating host waits for other members, and says what each member is to
    /// do.
    ///
    /// # Errors
    /// It came to nothing; why, as a fragment.
    pub async fn invited(&self) -> Result<BTreeMap<MemberId, Summons>, String> {
        let (mut summons, outcome) = (self.summons.clone(), self.outcome());
        tokio::select! {
            biased;
            Ok(summons) = summons.wait_for(Option::is_some) => Ok(summons.clone().unwrap_or_default()),
            outcome = outcome => match outcome {
                Outcome::Aborted { reason, .. } => Err(reason),
                Outcome::Released { .. } => Err("the session was over before it began".to_owned()),
            },
        }
    }

    /// As [`Rendezvous::to_capture`](crate::Rendezvous::to_capture).
    pub async fn to_capture(&self) -> bool {
        let mut capture = self.capture.clone();
        tokio::select! {
            biased;
            _ = self.outcome() => false,
            asked = capture.wait_for(|asked| *asked) => asked.is_ok(),
        }
    }

    /// The files of this host's members are taken.
    pub fn captured(&self) {
        self.report_all(&ParticipantMessage::Captured);
    }

    /// A member of this host does not come any further: an abort for all before the release, no permanent checkpoint after it.
    pub fn failed(&self, member: &MemberId, failure: Failure) {
        if let Some(seat) = self.seats.get(member) {
            self.decide_anyway(&failure.reason);
            // Who is gone has been told so by that.
            let _ = seat.send(ParticipantMessage::Failed(failure));
        }
    }

    /// This host gives up.
    pub fn cancel(&self, reason: &str) {
        self.decide_anyway(reason);
        self.report_all(&ParticipantMessage::Failed(Failure::new(reason, &[])));
    }

    /// What was not decided is an abort here before long, also if the coordinating host does not say so.
    fn decide_anyway(&self, reason: &str) {
        let Some(member) = self.seats.keys().next().cloned() else { return };
        let (tell, word) =
            (self.tell.downgrade(), CoordinatorMessage::Reply(Reply::Abort { reason: reason.to_owned() }));
        tokio::spawn(async move {
            sleep(OBEDIENCE).await;
            if let Some(tell) = tell.upgrade() {
                // Whoever listened no longer has heard the end.
                let _ = tell.send((member, Some(word)));
            }
        });
    }

    /// Waits until it is decided, which is within the session's deadlines, and says what. Only the coordinating host knows the times.
    pub async fn outcome(&self) -> Outcome {
        match self.outcome.clone().wait_for(Option::is_some).await.as_deref() {
            Ok(Some(outcome)) => outcome.clone(),
            Ok(None) | Err(_) => {
                Outcome::Aborted { member: None, hook: None, reason: "the connection was given up".to_owned() }
            }
        }
    }

    /// A member's image is in the store.
    pub fn stored(&self, member: &MemberId, stored: Stored) {
        if let Some(seat) = self.seats.get(member) {
            let _ = seat.send(ParticipantMessage::Stored(stored));
        }
    }

    /// Waits until the checkpoint is permanent, or will not be.
    ///
    /// # Errors
    /// Why it is not; as a fragment.
    pub async fn ending(&self) -> CommitResult {
        match self.verdict.clone().wait_for(Option::is_some).await.as_deref() {
            Ok(Some(verdict)) => verdict.clone(),
            Ok(None) | Err(_) => Err("the connection was given up".to_owned()),
        }
    }

    /// Says what is still to be said, and goes.
    pub async fn close(mut self) {
        self.seats.clear();
        drop(self.tell);
        // Whoever does not listen by then does not want to.
        let _ = timeout(GOODBYE * 2, async { while self.tasks.join_next().await.is_some() {} }).await;
    }

    fn report_all(&self, report: &ParticipantMessage) {
        for seat in self.seats.values() {
            let _ = seat.send(report.clone());
        }
    }
}

/// Brings together what the members are told.
#[derive(Debug)]
struct Ears {
    members: BTreeSet<MemberId>,
    summoned: BTreeMap<MemberId, Summons>,
    asked: BTreeSet<MemberId>,
    lasting: Option<Committed>,
    gone: BTreeSet<MemberId>,
    summon: watch::Sender<Option<BTreeMap<MemberId, Summons>>>,
    ask: watch::Sender<bool>,
    decide: watch::Sender<Option<Outcome>>,
    judge: watch::Sender<Option<CommitResult>>,
}

impl Ears {
    async fn run(mut self, mut words: mpsc::UnboundedReceiver<Heard>) {
        while let Some((member, word)) = words.recv().await {
            self.hear(member, word);
        }
    }

    fn hear(&mut self, member: MemberId, word: Option<CoordinatorMessage>) {
        match word {
            Some(CoordinatorMessage::Noted { .. } | CoordinatorMessage::Alive) => {}
            Some(CoordinatorMessage::Invited(summons)) => {
                self.summoned.insert(member, summons);
                if self.summoned.len() == self.members.len() {
                    self.summon.send_replace(Some(self.summoned.clone()));
                }
            }
            Some(CoordinatorMessage::Capture) => {
                self.asked.insert(member);
                if self.asked.len() == self.members.len() {
                    self.ask.send_replace(true);
                }
            }
            Some(CoordinatorMessage::Reply(Reply::Proceed)) => {
                self.decide(Outcome::Released { timings: Timings::default() })
            }
            Some(CoordinatorMessage::Reply(Reply::Abort { reason })) => self.end(&reason),
            Some(CoordinatorMessage::NotPermanent { reason }) => self.end(&reason),
            Some(CoordinatorMessage::Permanent(Permanent { digest, tag, epoch, timeline })) => {
                let lasting = Committed { digest, tag, epoch, timelines: BTreeMap::new() };
                self.lasting.get_or_insert(lasting).timelines.insert(member, timeline);
                self.judge_if_all_know();
            }
            None => {
                self.gone.insert(member);
                if self.lasting.is_none() {
                    self.end("the connection to the coordinating host ended");
                }
                self.judge_if_all_know();
            }
        }
    }

    /// What one of them was told is so for all.
    fn judge_if_all_know(&self) {
        let Some(lasting) = &self.lasting else { return };
        let knows = |member| lasting.timelines.contains_key(member) || self.gone.contains(member);
        if self.members.iter().all(knows) {
            self.judge(Ok(lasting.clone()));
        }
    }

    fn end(&self, reason: &str) {
        self.decide(Outcome::Aborted { member: None, hook: None, reason: reason.to_owned() });
        self.judge(Err(reason.to_owned()));
    }

    /// The first decision stands.
    fn decide(&self, outcome: Outcome) {
        self.decide.send_if_modified(|decided| decided.is_none() && decided.replace(outcome).is_none());
    }

    fn judge(&self, verdict: CommitResult) {
        self.judge.send_if_modified(|judged| judged.is_none() && judged.replace(verdict).is_none());
    }
}

/// A connection on which the member is noted.
async fn connect(attend: &Attend, remote: &Remote) -> Result<TlsStream<TcpStream>, AttendError> {
    let member = || attend.member.clone();
    let config = remote.tls.client().map_err(|source| AttendError::Tls { member: member(), source: source.into() })?;
    let lost = |source: Box<dyn std::error::Error + Send + Sync>| AttendError::Lost {
        address: remote.address.clone(),
        source,
    };
    let name = server_name(&remote.address).map_err(|error| lost(error.into()))?;
    let address = || remote.address.clone();
    let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    let connected = timeout(STEP, TcpStream::connect(&remote.address)).await.map_err(late).flatten();
    let stream = connected.map_err(|source| lost(SecureError::Connect { address: address(), source }.into()))?;
    // Without either the connection still works, if later and for longer.
    let _ = stream.set_nodelay(true);
    let _ = keep_alive(&stream);
    let shaken = timeout(STEP, TlsConnector::from(config).connect(name, stream)).await.map_err(late).flatten();
    let mut stream = shaken.map_err(|source| lost(SecureError::Handshake { address: address(), source }.into()))?;
    if !send(&mut stream, &Envelope::now(First::Attend(attend.clone()))).await {
        return Err(lost("it does not listen".into()));
    }
    let answer = timeout(STEP, next::<Envelope<CoordinatorMessage>>(&mut stream)).await;
    match answer.unwrap_or_else(|late| Err(WireError::Read(late.into()))).map(|said| said.word) {
        Ok(CoordinatorMessage::Noted { .. }) => Ok(stream),
        Ok(CoordinatorMessage::Reply(Reply::Abort { reason })) => {
            Err(AttendError::Refused { address: remote.address.clone(), member: member(), reason })
        }
        Ok(_) => Err(lost("its answer is none".into())),
        Err(error) => Err(lost(error.into())),
    }
}
