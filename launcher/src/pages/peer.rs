//! Who is at the other end of a connection on this host: the kernel says so, whatever the other end says.
//!
//! ```text
//! connection ─▶ /proc/net/tcp: the other end's socket ─▶ /proc/PID/fd of this process and of all that it started
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::Path;

use coordinator::hook::children;

/// Whether the other end is a socket of this process, or of one that it started, or of one that they did.
///
/// # Errors
/// The connection is none of IPv4 any more, or the kernel does not say whose sockets there are.
pub(super) fn is_own(connection: &TcpStream) -> io::Result<bool> {
    let Some(Socket { inode, .. }) = other_end(connection)? else {
        return Ok(false);
    };
    let socket = format!("socket:[{inode}]");
    let own = family(std::process::id().cast_signed());
    Ok(own.into_iter().any(|pid| holds(pid, Path::new(&socket))))
}

/// Whether the other end is a socket of a process of this host, of the same user as this one.
///
/// # Errors
/// As [`is_own`].
pub(super) fn is_same_user(connection: &TcpStream) -> io::Result<bool> {
    Ok(other_end(connection)?.is_some_and(|socket| socket.user == nix::unistd::geteuid().as_raw()))
}

/// A socket, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    user: u32,
    inode: u64,
}

/// The other end of a connection, if it is of this host and held by somebody.
fn other_end(connection: &TcpStream) -> io::Result<Option<Socket>> {
    let v4 = |address: std::net::SocketAddr| match address {
        std::net::SocketAddr::V4(address) => Ok(address),
        std::net::SocketAddr::V6(_) => Err(io::Error::other("a connection of IPv6")),
    };
    let (here, there) = (v4(connection.local_addr()?)?, v4(connection.peer_addr()?)?);
    let sockets = fs::read_to_string("/proc/thread-self/net/tcp")?;
    Ok(sockets.lines().find_map(|line| socket(line, there, here)))
}

/// Whether this kernel tells who started whom (CONFIG_PROC_CHILDREN), without which nobody is known.
pub(crate) fn can_tell() -> bool {
    fs::read("/proc/thread-self/children").is_ok()
}

/// The socket in this line of `/proc/net/tcp`, if it is the one from `own` to `other`.
fn socket(line: &str, own: SocketAddrV4, other: SocketAddrV4) -> Option<Socket> {
    let mut fields = line.split_whitespace().skip(1);
    let ends = (address(fields.next()?)?, address(fields.next()?)?);
    // State, queues, timer and retransmissions are between; then the user, a time out and the inode.
    let (user, inode) = (fields.nth(4)?.parse().ok()?, fields.nth(1)?.parse().ok()?);
    // A socket that nobody holds any more has none.
    (ends == (own, other) && inode != 0).then_some(Socket { user, inode })
}

/// `0100007F:1F90`: the address as a number of this machine, and the port.
fn address(text: &str) -> Option<SocketAddrV4> {
    let (address, port) = text.split_once(':')?;
    let address = u32::from_str_radix(address, 16).ok()?.to_ne_bytes();
    Some(SocketAddrV4::new(Ipv4Addr::from(address), u16::from_str_radix(port, 16).ok()?))
}

/// A process, and all that it or they started and that have not outlived who started them.
pub(crate) fn family(pid: i32) -> BTreeSet<i32> {
    let mut found = BTreeSet::from([pid]);
    let mut rest = vec![pid];
    while let Some(pid) = rest.pop() {
        rest.extend(children(pid).filter(|pid| found.insert(*pid)));
    }
    found
}

fn holds(pid: i32, socket: &Path) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|target| target == socket))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let line = "   1: 0100007F:1F90 0100007F:CBA2 01 00000000:00000000 00:00000000 00000000  1000        0 70001 1 ffff 20 4 30 10 -1";
        let ends =
            |own, other| (SocketAddrV4::new(Ipv4Addr::LOCALHOST, own), SocketAddrV4::new(Ipv4Addr::LOCALHOST, other));
        let (own, other) = ends(8080, 52130);
        assert_eq!(socket(line, own, other), Some(Socket { user: 1000, inode: 70001 }));
        assert_eq!(socket(line, other, own), None);
        for broken in ["", "  sl  local_address rem_address   st", "1: 0100007F:1F90", "1: x:y z 01 2 3 4 5 6 7"] {
            assert_eq!(socket(broken, own, other), None);
        }
    }

    /// Connects from a shell that runs `how`, in which `{}` stands for what connects and waits.
    fn connect_from(how: &str) -> bool {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let connects = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; read -r line <&3");
        let mut shell = Command::new("bash").args(["-c", &how.replace("{}", &connects)]).spawn().unwrap();
        let (mut connection, _) = listener.accept().unwrap();
        // Whoever is to have lost the one that started it has had the time for it.
        std::thread::sleep(Duration::from_millis(200));
        let own = is_own(&connection).unwrap();
        connection.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = connection.read(&mut [0]);
        shell.wait().unwrap();
        own
    }

    #[test]
    fn what_was_started_here_is_known_and_nothing_else() {
        assert!(connect_from("{}"), "a child");
        assert!(connect_from("bash -c '{}'; true"), "its child");
        assert!(!connect_from("setsid --fork bash -c '{}'"), "somebody else's");
    }
}
