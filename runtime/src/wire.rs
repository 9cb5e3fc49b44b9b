//! What is said at the socket of a container that is held, one JSON object a line.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The longest line.
const LONGEST: u64 = 64 << 10;

/// What a supervisor is asked or told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ask {
    /// By `create`: how did it go? Whoever asks this and goes away gives up.
    Create,
    /// By `create`: the answer arrived, and the engine will have it.
    Taken,
    /// By the gate: CRIU stands at post-restore.
    Held {
        /// The container's first process.
        init: i32,
    },
    /// By `start`.
    Start,
    /// By `kill`, `delete` and a newer `create`.
    Abort,
    /// By whoever wants to know whether there is something to ask.
    State,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// To `create` and `state`: the container is restored and held, or goes on right now.
    Held {
        /// Its first process.
        init: i32,
    },
    /// To `state`: it is being restored.
    Restoring,
    /// To the gate.
    Go,
    /// To the gate.
    No {
        /// Why.
        why: String,
    },
    /// To `start`: its tasks run.
    Started,
    /// To `create` and `start`: it was not restored, and nothing of it is left.
    Failed {
        /// Why.
        words: String,
    },
    /// To whoever aborts: nothing of it is left.
    Gone,
}

/// Says something. A peer that went away in the meantime is an error.
pub(crate) fn say(mut stream: &UnixStream, words: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(words)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Hears something; `None`: the peer went away.
pub(crate) fn hear<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    // One side speaks at a time, so nothing is read that belongs to the next line.
    BufReader::new(stream.take(LONGEST)).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_arrive_and_an_end_is_an_end() {
        let (near, far) = UnixStream::pair().unwrap();
        for ask in [Ask::Create, Ask::Held { init: 7 }, Ask::Abort] {
            say(&near, &ask).unwrap();
            assert_eq!(hear::<Ask>(&far).unwrap(), Some(ask));
        }
        say(&far, &Answer::Failed { words: "a\nb".to_owned() }).unwrap();
        assert_eq!(hear::<Answer>(&near).unwrap(), Some(Answer::Failed { words: "a\nb".to_owned() }));
        say(&far, &Answer::Go).unwrap();
        assert!(hear::<Ask>(&near).is_err(), "an answer is no question");
        drop(far);
        assert_eq!(hear::<Answer>(&near).unwrap(), None);
    }
}
