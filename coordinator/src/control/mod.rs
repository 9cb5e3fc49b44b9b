//! The launchers of several hosts, who checkpoint one application together.
//!
//! ```text
//!   coordinating host                                  another host, for each of its members
//!   RollCall ◀──────────────── attend ───────────────── Delegation
//!      │ all are there
//!   Rendezvous ───────────── invited ─────────────────▶    starts the engine; its hooks meet at the rendezvous
//!      │ all stand at post-dump
//!      │ ───────────────────── capture ───────────────▶    takes the files
//!      │ ◀──────────────────── captured ───────────────
//!      │ own files and all others' are taken
//!      │ ───────────────── reply: proceed ────────────▶    the tasks run on; packs and sends
//!   Delegate ◀───────────────── stored ────────────────
//!      │ index, signatures, tag
//!      └ ──────────────────── permanent ──────────────▶    stops its containers, if they are to end
//! ```
//!
//! A connection that ends before the release is a failed member, and so an abort for all; one that ends after it and before
//! the image is stored makes a checkpoint that is not permanent. Either end says every few seconds that it is alive: one that is
//! silent for longer is taken to be gone.

mod delegate;
mod delegation;
mod roll_call;

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

pub use self::delegate::Delegate;
pub(crate) use self::delegate::Seat;
pub use self::delegation::{AttendError, CommitResult, Committed, Delegation};
pub(crate) use self::roll_call::Attendee;
pub use self::roll_call::{Absent, RollCall};
use crate::door::{body, send};
use crate::wire::control::Envelope;
use crate::wire::{self, WireError};

/// How often an end that has nothing to say says so.
const BEAT: Duration = Duration::from_secs(4);

/// How long an end may be silent.
const SILENCE: Duration = Duration::from_secs(20);

/// How long the other end may take to go once everything is said.
const GOODBYE: Duration = Duration::from_secs(1);

/// Carries words both ways, until `say` has ended and everything is said, or the other end is gone or silent for too long, or `hear`
/// wants no more.
pub(crate) async fn converse<Out, In>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    say: &mut mpsc::UnboundedReceiver<Out>,
    alive: impl Fn() -> Out,
    mut hear: impl FnMut(In),
) where
    Out: Serialize,
    In: DeserializeOwned,
{
    let (mut reader, mut writer) = split(stream);
    let hearing = async {
        while let Ok(Ok(Envelope { word, .. })) = timeout(SILENCE, next::<Envelope<In>>(&mut reader)).await {
            hear(word);
        }
    };
    let speaking = async {
        loop {
            let word = tokio::select! {
                biased;
                word = say.recv() => match word {
                    Some(word) => word,
                    None => return true,
                },
                () = sleep(BEAT) => alive(),
            };
            if !send(&mut writer, &Envelope::now(word)).await {
                return false;
            }
        }
    };
    tokio::pin!(hearing);
    let all_said = tokio::select! {
        biased;
        all_said = speaking => all_said,
        () = &mut hearing => false,
    };
    if all_said {
        // Closed with words unread, a connection may take its last ones back.
        let _ = timeout(GOODBYE, async {
            let _ = writer.shutdown().await;
            hearing.await;
        })
        .await;
    }
}

/// Reads one word.
async fn next<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> Result<T, WireError> {
    wire::decode(&body(stream).await?)
}
