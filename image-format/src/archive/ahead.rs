//! Reads ahead on a thread of its own: a layer is fetched, decompressed and hashed while what came of it is checked and written.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use super::read_full;
use crate::{Digest, HashReader};

/// Bytes handed over at a time; three such pieces are in memory.
const PIECE: usize = 128 << 10;

/// The bytes of a reader, and their digest once all of them were read.
#[derive(Debug)]
pub(crate) struct Ahead {
    piece: Vec<u8>,
    used: usize,
    pieces: Option<Receiver<Piece>>,
    give_back: SyncSender<Vec<u8>>,
    digest: Option<Digest>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    End(Digest),
    Failed(io::Error),
}

impl Ahead {
    pub fn start(from: impl Read + Send + 'static) -> io::Result<Self> {
        let (send, pieces) = sync_channel(1);
        let (give_back, used) = sync_channel(2);
        let thread = Builder::new().name("reading ahead".to_owned()).spawn(move || read_all(from, &send, &used))?;
        let (pieces, thread) = (Some(pieces), Some(thread));
        Ok(Self { piece: Vec::new(), used: 0, pieces, give_back, digest: None, thread })
    }

    /// The digest of all bytes; none if the end was not reached.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    fn next(&mut self) -> io::Result<bool> {
        let Some(pieces) = &self.pieces else {
            return Ok(false);
        };
        match pieces.recv() {
            Ok(Piece::Bytes(piece)) => {
                // The thread may be through and gone; then nobody needs the memory.
                drop(self.give_back.try_send(std::mem::replace(&mut self.piece, piece)));
                self.used = 0;
                Ok(true)
            }
            Ok(Piece::End(digest)) => {
                (self.digest, self.pieces) = (Some(digest), None);
                Ok(false)
            }
            Ok(Piece::Failed(error)) => Err(error),
            Err(_) => Err(io::Error::other("what reads ahead has ended before")),
        }
    }
}

impl Read for Ahead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.used == self.piece.len() {
            if !self.next()? {
                return Ok(0);
            }
        }
        let part = buf.len().min(self.piece.len() - self.used);
        buf[..part].copy_from_slice(&self.piece[self.used..self.used + part]);
        self.used += part;
        Ok(part)
    }
}

impl Drop for Ahead {
    /// Whatever is read from may need a runtime that ends after this.
    fn drop(&mut self) {
        self.pieces = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Until the end, an error, or until nobody wants more.
fn read_all(from: impl Read, to: &SyncSender<Piece>, used: &Receiver<Vec<u8>>) {
    let mut from = HashReader::new(from);
    loop {
        let mut piece = used.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let sent = match read_full(&mut from, &mut piece) {
            Ok(0) => break,
            Ok(read) => {
                piece.truncate(read);
                to.send(Piece::Bytes(piece))
            }
            Err(error) => {
                drop(to.send(Piece::Failed(error)));
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
    let (_, digest, _) = from.finish();
    drop(to.send(Piece::End(digest)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_their_digest_come_through() {
        for size in [0, 1, PIECE, 3 * PIECE + 7] {
            let bytes: Vec<u8> = (0..size).map(|n| (n >> 3) as u8).collect();
            let mut ahead = Ahead::start(io::Cursor::new(bytes.clone())).unwrap();
            let mut found = Vec::new();
            ahead.read_to_end(&mut found).unwrap();
            assert!(found == bytes, "{size}");
            assert_eq!(ahead.digest(), Some(Digest::of(&bytes)));
            assert_eq!(ahead.read(&mut [0]).unwrap(), 0);
        }
    }

    #[test]
    fn an_error_comes_after_what_was_read_before_it() {
        struct Broken(u64);

        impl Read for Broken {
            fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(buf.len() as u64).ok_or(io::ErrorKind::ConnectionReset)?;
                Ok(buf.len())
            }
        }

        let mut ahead = Ahead::start(Broken(2 * PIECE as u64)).unwrap();
        ahead.read_exact(&mut vec![0; 2 * PIECE]).unwrap();
        assert_eq!(ahead.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert!(ahead.read(&mut [0]).is_err());
        assert_eq!(ahead.digest(), None);
    }

    #[test]
    fn who_stops_early_ends_the_thread() {
        let mut ahead = Ahead::start(io::repeat(1)).unwrap();
        ahead.read_exact(&mut [0; 10]).unwrap();
        drop(ahead);
    }
}
