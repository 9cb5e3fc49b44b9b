//! One connection of a hook, or of another host's launcher: whose is it, what does it say, is it still there.

use image_format::MemberId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, split};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use super::waiting::{Waiting, send};
use super::{Call, Keys, Known, PATIENCE, Told};
use crate::control::converse;
use crate::proto::{ConnectionId, Message, Reply};
use crate::tls;
use crate::wire::control::{Attend, CoordinatorMessage, ParticipantMessage};
use crate::wire::{self, Answer, Asked, HEADER, Join, JoinAnswer, JoinWord, WireError, millis};

/// The calls of one connection.
struct Caller<'a> {
    id: ConnectionId,
    calls: &'a mpsc::UnboundedSender<Call>,
}

/// A peer on this host, of the right user. Whoever cannot say who it is gets no answer at all.
pub(super) async fn serve_here(
    id: ConnectionId,
    mut stream: UnixStream,
    keys: &Keys,
    calls: &mpsc::UnboundedSender<Call>,
) {
    let Some(Asked::Message(request)) = hear(&mut stream).await else { return };
    if keys.admit(&request) {
        Caller { id, calls }.speak(stream, request.message).await;
    }
}

/// A peer on another host, which has shown a certificate of the authority. It speaks for the member that this names and for no
/// other.
pub(super) async fn serve_elsewhere(
    id: ConnectionId,
    mut stream: TlsStream<TcpStream>,
    known: &Known,
    calls: &mpsc::UnboundedSender<Call>,
) {
    let member = certified(&stream);
    let Some(_place) = known.enter(member.as_ref()) else {
        let reason = "there are too many connections with this certificate already".to_owned();
        return answer(&mut stream, Reply::Abort { reason }).await;
    };
    let Some(asked) = hear(&mut stream).await else { return };
    let Some(member) = member else {
        let reason = "the certificate names no member, or more than one".to_owned();
        return answer(&mut stream, Reply::Abort { reason }).await;
    };
    let claimed = match &asked {
        Asked::Message(request) => &request.message.member,
        Asked::Join(join) => &join.member,
        Asked::Attend(attend) => &attend.member,
    };
    if *claimed != member {
        let reason = format!("the certificate is that of {member}, which does not speak for {claimed}");
        return answer(&mut stream, Reply::Abort { reason }).await;
    }
    let caller = Caller { id, calls };
    match asked {
        Asked::Message(request) => caller.speak(stream, request.message).await,
        Asked::Join(join) => caller.join(stream, join).await,
        Asked::Attend(attend) => caller.attend(stream, attend).await,
    }
}

impl Caller<'_> {
    /// Brings the message, and with it who waits for the answer.
    async fn speak(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, message: Message) {
        let (mut reader, writer) = split(stream);
        let (waiting, over) = Waiting::at(writer);
        if self.calls.send(Call::Message { from: self.id, message, waiting }).is_err() {
            return;
        }
        tokio::select! {
            // What was decided is told even if the other end has gone in the same moment.
            biased;
            _ = over => {}
            () = gone(&mut reader) => self.hang_up(),
        }
    }

    /// Asks which session it is in, and goes on with the message that belongs there.
    async fn join(&self, mut stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, join: Join) {
        let member = join.member.clone();
        let (told, mut words) = mpsc::unbounded_channel();
        if self.calls.send(Call::Join { from: self.id, join, told }).is_err() {
            return;
        }
        loop {
            let word = tokio::select! {
                biased;
                word = words.recv() => word,
                () = gone(&mut stream) => return self.hang_up(),
            };
            let (word, more) = match word {
                Some(Told::Noted { within }) => (JoinWord::Noted { gather_ms: millis(within) }, true),
                Some(Told::Invited(invitation)) => (JoinWord::Invited(invitation), false),
                Some(Told::Refused { reason }) => return answer(&mut stream, Reply::Abort { reason }).await,
                None => return,
            };
            if !send(&mut stream, &JoinAnswer { version: wire::VERSION, word }).await {
                return self.hang_up();
            }
            if !more {
                break;
            }
        }
        match hear(&mut stream).await {
            Some(Asked::Message(request)) if request.message.member == member => {
                self.speak(stream, request.message).await;
            }
            Some(_) | None => self.hang_up(),
        }
    }

    /// Carries the words of a launcher of another host, for as long as both want.
    async fn attend(&self, stream: impl AsyncRead + AsyncWrite + Unpin, attend: Attend) {
        let (words, mut say) = mpsc::unbounded_channel();
        if self.calls.send(Call::Attend { from: self.id, attend, words }).is_err() {
            return;
        }
        let hear = |report| match report {
            ParticipantMessage::Alive => {}
            report => {
                // Nobody listens any more when the session is over.
                let _ = self.calls.send(Call::Report { from: self.id, report });
            }
        };
        converse(stream, &mut say, || CoordinatorMessage::Alive, hear).await;
        self.hang_up();
    }

    fn hang_up(&self) {
        let _ = self.calls.send(Call::Disconnect { connection: self.id });
    }
}

fn certified(stream: &TlsStream<TcpStream>) -> Option<MemberId> {
    let (_, connection) = stream.get_ref();
    tls::member_of(connection.peer_certificates()?.first()?)
}

/// What the peer asks, if it does so in time and in words. A newer version is told so.
async fn hear(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Option<Asked> {
    match timeout(PATIENCE, read(stream)).await {
        Ok(Ok(asked)) => Some(asked),
        Ok(Err(error @ WireError::Version { .. })) => {
            answer(stream, Reply::Abort { reason: error.to_string() }).await;
            None
        }
        Ok(Err(_)) | Err(_) => None,
    }
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Asked, WireError> {
    Asked::decode(&body(stream).await?)
}

/// Reads the body of one frame.
pub(crate) async fn body(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, WireError> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await.map_err(WireError::Read)?;
    let mut body = vec![0; wire::body_length(header)?];
    stream.read_exact(&mut body).await.map_err(WireError::Read)?;
    Ok(body)
}

/// Waits for the end of the stream, or a byte that has no place in the protocol: either way nobody waits there any more.
async fn gone(stream: &mut (impl AsyncRead + Unpin)) {
    let _ = stream.read(&mut [0]).await;
}

/// A hook that does not take its answer has gone, and fails closed by itself. An answer says itself how long it is: no
/// goodbye of TLS need follow, for which a thousand hooks would be woken once more.
async fn answer(stream: &mut (impl AsyncWrite + Unpin), reply: Reply) {
    send(stream, &Answer { version: wire::VERSION, reply }).await;
}
