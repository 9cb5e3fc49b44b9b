//! A blocking socket whose reads and writes together end at a deadline.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A stream of which all reads and writes together end at a deadline, however slowly the bytes come.
#[derive(Debug)]
pub struct Bounded<'a> {
    /// The socket. Its own time-outs are set before each step.
    pub stream: &'a TcpStream,
    /// When all must be through.
    pub deadline: Instant,
}

impl Bounded<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// A socket's own time-out is told as "would block".
fn timed(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Read for Bounded<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(into).map_err(timed)
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes).map_err(timed)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn bytes_that_come_one_by_one_do_not_move_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut slow = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        let (stream, _) = listener.accept().expect("accepted");
        let since = Instant::now();
        let dripping = thread::spawn(move || {
            while slow.write_all(&[1]).is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
        });
        let mut bounded = Bounded { stream: &stream, deadline: since + Duration::from_millis(300) };
        let ended = bounded.read_exact(&mut [0; 1 << 20]).expect_err("late");
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
        drop(stream);
        dripping.join().expect("it saw the end");
    }
}
