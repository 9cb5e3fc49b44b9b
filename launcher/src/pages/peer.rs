//! Who is at the other end of a connection on this host: the kernel says so, whatever the other end says.
//!
//! ```text
//! connection ─▶ /proc/net/tcp: the other end's socket, and whose it is
//! ```

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};

/// Whether the other end is a socket of a process of this host, of the same user as this one.
///
/// # Errors
/// The connection is none of IPv4 any more, or the kernel does not say whose sockets there are.
pub(super) fn is_same_user(connection: &TcpStream) -> io::Result<bool> {
    Ok(other_end(connection)?.is_some_and(|user| user == nix::unistd::geteuid().as_raw()))
}

/// Whose socket the other end of a connection is, if it is of this host and held by somebody.
fn other_end(connection: &TcpStream) -> io::Result<Option<u32>> {
    let v4 = |address: std::net::SocketAddr| match address {
        std::net::SocketAddr::V4(address) => Ok(address),
        std::net::SocketAddr::V6(_) => Err(io::Error::other("a connection of IPv6")),
    };
    let (here, there) = (v4(connection.local_addr()?)?, v4(connection.peer_addr()?)?);
    let sockets = fs::read_to_string("/proc/thread-self/net/tcp")?;
    Ok(sockets.lines().find_map(|line| user(line, there, here)))
}

/// Whose socket is in this line of `/proc/net/tcp`, if it is the one from `own` to `other`.
fn user(line: &str, own: SocketAddrV4, other: SocketAddrV4) -> Option<u32> {
    let mut fields = line.split_whitespace().skip(1);
    let ends = (address(fields.next()?)?, address(fields.next()?)?);
    // State, queues, timer and retransmissions are between; then the user, a time out and the inode.
    let (user, inode) = (fields.nth(4)?.parse().ok()?, fields.nth(1)?.parse::<u64>().ok()?);
    // A socket that nobody holds any more has none.
    (ends == (own, other) && inode != 0).then_some(user)
}

/// `0100007F:1F90`: the address as a number of this machine, and the port.
fn address(text: &str) -> Option<SocketAddrV4> {
    let (address, port) = text.split_once(':')?;
    let address = u32::from_str_radix(address, 16).ok()?.to_ne_bytes();
    Some(SocketAddrV4::new(Ipv4Addr::from(address), u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let line = "   1: 0100007F:1F90 0100007F:CBA2 01 00000000:00000000 00:00000000 00000000  1000        0 70001 1 ffff 20 4 30 10 -1";
        let ends =
            |own, other| (SocketAddrV4::new(Ipv4Addr::LOCALHOST, own), SocketAddrV4::new(Ipv4Addr::LOCALHOST, other));
        let (own, other) = ends(8080, 52130);
        assert_eq!(user(line, own, other), Some(1000));
        assert_eq!(user(&line.replace("70001", "0"), own, other), None);
        assert_eq!(user(line, other, own), None);
        for broken in ["", "  sl  local_address rem_address   st", "1: 0100007F:1F90", "1: x:y z 01 2 3 4 5 6 7"] {
            assert_eq!(user(broken, own, other), None);
        }
    }
}
