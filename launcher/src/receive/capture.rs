//! CRIU's images as they come through its pipes, several at a time (`criu dump --stream`).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use image_format::image_streamer::ImageFiles;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags};
use tokio_util::sync::CancellationToken;

use crate::receive::streamer::{ConversationError, Listener, wait};

/// Bytes that a pipe holds and that are read at a time: what the kernel gives an unprivileged user at most.
const PIPE: usize = 1 << 20;
/// Pipes that are open at the same time. CRIU has a task's images open, some twenty.
const MAX_OPEN: usize = 1024;

/// Waits for CRIU and takes what it sends, until it has closed everything. An error closes the pipes, and CRIU's dump fails by that. It can be
/// told to stop until CRIU has come: from then on nobody knows when CRIU ends the tasks, whose last pages may still be in a pipe.
pub(super) fn capture(
    listener: Listener,
    mut files: ImageFiles,
    stop: &CancellationToken,
) -> Result<ImageFiles, ConversationError> {
    let mut criu = Some(listener.accept(stop)?);
    let to_the_end = CancellationToken::new();
    let mut open: Vec<(String, File)> = Vec::new();
    let mut bytes = vec![0; PIPE];
    while criu.is_some() || !open.is_empty() {
        let pipes = open.iter().map(|(_, pipe)| pipe.as_fd());
        let mut waiting: Vec<PollFd<'_>> =
            pipes.chain(criu.as_ref().map(AsFd::as_fd)).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        wait(&mut waiting, &to_the_end)?;
        let ready: Vec<bool> = waiting.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        let (pipes, says) = ready.split_at(open.len());
        let mut at_end = Vec::new();
        for (number, (name, pipe)) in open.iter_mut().enumerate().filter(|(number, _)| pipes[*number]) {
            match pipe.read(&mut bytes) {
                Ok(0) => at_end.push(number),
                Ok(read) => files.add(name, &bytes[..read])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        at_end.into_iter().rev().for_each(|number| drop(open.swap_remove(number)));
        if says.contains(&true)
            && let Some(conversation) = &mut criu
        {
            match conversation.request()? {
                None => criu = None,
                Some(_) if open.len() == MAX_OPEN => {
                    return Err(io::Error::other("CRIU has too many images open").into());
                }
                Some(name) => {
                    files.begin(&name)?;
                    let pipe = conversation.pipe(&name)?;
                    // A small one is slower and as good.
                    let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE as i32));
                    open.push((name, pipe.into()));
                }
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::thread;
    use std::time::Duration;

    use image_format::image_streamer::CAPTURE_SOCKET;
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::fd::AsRawFd;

    use super::*;

    /// A CRIU, as far as the socket sees one.
    struct Criu(UnixStream);

    impl Criu {
        fn connect(folder: &Path) -> Self {
            Self(UnixStream::connect(folder.join(CAPTURE_SOCKET)).unwrap())
        }

        fn open(&mut self, name: &str) -> File {
            let mut request = vec![0x0a, u8::try_from(name.len()).unwrap()];
            request.extend(name.as_bytes());
            self.0.write_all(&u32::try_from(request.len()).unwrap().to_le_bytes()).unwrap();
            self.0.write_all(&request).unwrap();
            let (read, write): (OwnedFd, OwnedFd) = nix::unistd::pipe().unwrap();
            let fds = [read.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&fds)];
            sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&[0])], &rights, MsgFlags::empty(), None).unwrap();
            write.into()
        }
    }

    type Captured = Result<ImageFiles, ConversationError>;

    /// Captures what `criu` sends.
    fn captured(criu: impl FnOnce(&Path) + Send) -> Captured {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(folder.path(), CAPTURE_SOCKET).unwrap();
        let path = folder.path();
        thread::scope(|scope| {
            let capturing =
                scope.spawn(|| capture(listener, ImageFiles::new(path, 1 << 16), &CancellationToken::new()));
            criu(path);
            let captured = capturing.join().unwrap();
            assert!(!path.join(CAPTURE_SOCKET).exists(), "the socket is gone");
            captured
        })
    }

    #[test]
    fn images_come_side_by_side_and_after_the_connection_ended() {
        let files = captured(|folder| {
            let mut criu = Criu::connect(folder);
            let mut pages = criu.open("pages-1.img");
            let mut core = criu.open("core-1.img");
            core.write_all(b"core").unwrap();
            pages.write_all(&vec![7; 100_000]).unwrap();
            drop((core, criu.open("empty.img")));
            drop(criu);
            pages.write_all(&vec![8; 900_000]).unwrap();
        });
        let (files, folder) = (files.unwrap(), tempfile::tempdir().unwrap());
        files.save(folder.path()).unwrap();
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!((read("core-1.img"), read("empty.img")), (b"core".to_vec(), Vec::new()));
        assert!(read("pages-1.img") == [vec![7; 100_000], vec![8; 900_000]].concat());
    }

    #[test]
    fn what_no_criu_says_ends_it() {
        let words = |bytes: &'static [u8]| {
            captured(move |folder| {
                let mut criu = Criu::connect(folder);
                criu.0.write_all(bytes).unwrap();
                // Whoever waits for more of it is let go.
                thread::sleep(Duration::from_millis(50));
            })
        };
        for hostile in [
            &b"\xff\xff\xff\xff"[..],
            b"\0\0\0\0",
            b"\x05\0\0\0\x0a\x09abc",
            b"\x05\0\0\0\x0a\x03../",
            b"\x09\0\0\0\x0a\x07../../x",
            b"\x05\0",
            b"\x05\0\0\0\x0a",
        ] {
            assert!(words(hostile).is_err(), "{hostile:?}");
        }
        // A name, and a byte without a pipe.
        assert!(matches!(words(b"\x05\0\0\0\x0a\x03abc\0"), Err(ConversationError::NoPipe { .. })));
        assert_eq!(words(b"").unwrap().bytes(), 0);
        let twice = captured(|folder| {
            let mut criu = Criu::connect(folder);
            drop((criu.open("a.img"), criu.open("a.img")));
        });
        assert!(matches!(twice, Err(ConversationError::Words(_))));
    }

    #[test]
    fn nobody_comes_and_it_is_told_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        // What somebody who was killed left behind is no hindrance; somebody who listens is.
        drop(std::os::unix::net::UnixListener::bind(folder.path().join(CAPTURE_SOCKET)).unwrap());
        let listener = Listener::bind(folder.path(), CAPTURE_SOCKET).unwrap();
        let in_use = Listener::bind(folder.path(), CAPTURE_SOCKET).unwrap_err();
        assert_eq!(in_use.kind(), io::ErrorKind::AddrInUse);
        let stop = CancellationToken::new();
        stop.cancel();
        let stopped = capture(listener, ImageFiles::new(folder.path(), 0), &stop);
        assert!(matches!(stopped, Err(ConversationError::Stopped)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
