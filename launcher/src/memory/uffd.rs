//! The kernel's userfaultfd(2), as far as whoever fills somebody else's memory needs it: `linux/userfaultfd.h`, `ioctl_userfaultfd(2)`.
//!
//! CRIU opens it and says which events are wanted: faults, and forks, moves and removals, without which nobody could tell whose
//! page belongs where.

#![expect(
    unsafe_code,
    reason = "neither the standard library nor rustix has these requests; each wrapper says why it is sound"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// Bytes of `struct uffd_msg`.
const MESSAGE: usize = 32;

#[repr(C)]
#[derive(Debug)]
pub struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
#[derive(Debug)]
pub struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
#[derive(Debug)]
pub struct Zero {
    range: Range,
    mode: u64,
    zeropage: i64,
}

nix::ioctl_read!(
    /// Lets tasks go on that wait for a range.
    wake, 0xAA, 0x02, Range
);
nix::ioctl_readwrite!(
    /// Puts bytes where nothing is mapped.
    copy, 0xAA, 0x03, Copy
);
nix::ioctl_readwrite!(
    /// Puts zeros there.
    zero, 0xAA, 0x04, Zero
);

/// What happened in an address space.
#[derive(Debug)]
pub(super) enum Event {
    /// A task waits for the page at this address.
    Fault { address: u64 },
    /// A child has a copy of it.
    Fork { child: Uffd },
    /// A range is elsewhere now.
    Remap { from: u64, to: u64, bytes: u64 },
    /// A range is no more, or empty.
    Remove { address: u64, bytes: u64 },
}

/// One address space.
#[derive(Debug)]
pub(super) struct Uffd(OwnedFd);

impl Uffd {
    /// What CRIU handed over.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The next thing that happened; nothing if nothing did. Whoever did it goes on once it is read, but for a fault.
    pub fn next_event(&self) -> io::Result<Option<Event>> {
        let mut message = [0; MESSAGE];
        match nix::unistd::read(&self.0, &mut message) {
            Ok(MESSAGE) => {}
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(Errno::EAGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let at = |offset: usize| message[offset..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        Ok(Some(match message[0] {
            0x12 => Event::Fault { address: at(16) },
            0x13 => {
                let number = message[8..].first_chunk().map_or(u32::MAX, |bytes| u32::from_ne_bytes(*bytes));
                // SAFETY: the kernel made this descriptor for the reader of the message, who is nobody else.
                Event::Fork { child: Self(unsafe { OwnedFd::from_raw_fd(number.cast_signed()) }) }
            }
            0x14 => Event::Remap { from: at(8), to: at(16), bytes: at(24) },
            0x15 | 0x16 => Event::Remove { address: at(8), bytes: at(16).saturating_sub(at(8)) },
            other => return Err(io::Error::other(format!("an event {other:#x} that nobody asked for"))),
        }))
    }

    /// Puts whole pages where none are, and lets tasks go on that wait for them. How many bytes were put, or why not the first page.
    pub fn copy(&self, address: u64, bytes: &[u8]) -> Result<u64, Errno> {
        let len = bytes.len() as u64;
        let mut request = Copy { dst: address, src: bytes.as_ptr() as u64, len, mode: 0, copy: 0 };
        // SAFETY: the kernel reads `len` bytes from `src`, which `bytes` are for as long as the call takes, and writes to
        // `request` and into the other address space.
        match unsafe { copy(self.0.as_raw_fd(), &raw mut request) } {
            Ok(_) => Ok(len),
            Err(_) if request.copy > 0 => Ok(request.copy.unsigned_abs()),
            Err(error) => Err(error),
        }
    }

    /// Puts a page of zeros.
    pub fn zero(&self, address: u64) -> Result<(), Errno> {
        let range = Range { start: address, len: super::space::PAGE };
        let mut request = Zero { range, mode: 0, zeropage: 0 };
        // SAFETY: the kernel writes to `request` and into the other address space.
        unsafe { zero(self.0.as_raw_fd(), &raw mut request) }.map(drop)
    }

    /// Lets tasks go on that wait for a page that is there.
    pub fn wake(&self, address: u64) -> Result<(), Errno> {
        let mut range = Range { start: address, len: super::space::PAGE };
        // SAFETY: the kernel reads `range`.
        unsafe { wake(self.0.as_raw_fd(), &raw mut range) }.map(drop)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
