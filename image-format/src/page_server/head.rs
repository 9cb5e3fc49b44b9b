//! The numbers at the head of a message.

use std::fmt;

use super::PageStreamError;

/// Bytes of a head up to CRIU 4.1.1.
pub(super) const SHORT: usize = 24;
/// Bytes of a head since CRIU 4.2.
pub(super) const LONG: usize = 32;

/// How a sender lays out its heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Up to CRIU 4.1.1: 24 bytes, pages counted in 32 bits.
    Short,
    /// Since CRIU 4.2: 32 bytes, pages counted in 64 bits.
    Long,
}

impl Form {
    /// The form of a stream whose first head, or the first 24 bytes of it, is this.
    pub(super) fn of_first(head: &[u8; LONG]) -> Result<Self, PageStreamError> {
        match Command::decode(number32(head, 0))? {
            Command::Open | Command::Parent => {}
            Command::Pages(_) => return Err(PageStreamError::NothingOpen),
            Command::Close => return Err(PageStreamError::Empty),
        }
        Ok(if number64(head, 16) == 0 { Self::Long } else { Self::Short })
    }

    pub(super) fn len(self) -> usize {
        match self {
            Self::Short => SHORT,
            Self::Long => LONG,
        }
    }
}

/// A head, of either form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub command: u32,
    pub pages: u64,
    pub address: u64,
    pub image: u64,
}

impl Head {
    /// In the long form, bytes 4 to 8 are padding with anything in it.
    pub fn decode(form: Form, bytes: &[u8; LONG]) -> Self {
        let command = number32(bytes, 0);
        match form {
            Form::Short => Self {
                command,
                pages: number32(bytes, 4).into(),
                address: number64(bytes, 8),
                image: number64(bytes, 16),
            },
            Form::Long => {
                Self { command, pages: number64(bytes, 8), address: number64(bytes, 16), image: number64(bytes, 24) }
            }
        }
    }
}

/// What a head asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Open,
    Parent,
    Pages(PageFlags),
    Close,
}

impl Command {
    /// The lower half is the command, the upper half the flags of ADD_F; no other command has flags.
    pub fn decode(number: u32) -> Result<Self, PageStreamError> {
        match (number & 0xffff, number >> 16) {
            (1, 0) => Ok(Self::Pages(PageFlags(PageFlags::PRESENT))),
            (2, 0) => Ok(Self::Pages(PageFlags(PageFlags::IN_PARENT))),
            (4, 0) => Ok(Self::Open),
            (5, 0) => Ok(Self::Parent),
            (6, flags) => PageFlags::decode(flags).map(Self::Pages),
            (0x1023 | 0x1024, 0) => Ok(Self::Close),
            _ => Err(PageStreamError::Command { number }),
        }
    }
}

/// Where pages are, as in an entry of a pagemap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageFlags(u32);

impl PageFlags {
    const IN_PARENT: u32 = 1;
    const LAZY: u32 = 2;
    const PRESENT: u32 = 4;

    /// Pages are present, or in the parent, or left to be asked for later. Present ones may be marked lazy.
    fn decode(flags: u32) -> Result<Self, PageStreamError> {
        match flags {
            Self::IN_PARENT | Self::LAZY | Self::PRESENT => Ok(Self(flags)),
            _ if flags == Self::PRESENT | Self::LAZY => Ok(Self(flags)),
            _ => Err(PageStreamError::Flags { flags }),
        }
    }

    /// Whether the pages follow.
    pub fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// Whether the pages are in the dump before this one.
    pub fn is_in_parent(self) -> bool {
        self.0 & Self::IN_PARENT != 0
    }

    /// As a pagemap has them (`PE_PARENT` 1, `PE_LAZY` 2, `PE_PRESENT` 4).
    pub fn bits(self) -> u32 {
        self.0
    }
}

/// Whose memory pages are. It displays as the name that CRIU gives its pagemap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageImage {
    /// Of the process with this number.
    Task(u64),
    /// Of the shared memory with this number.
    Shmem(u64),
}

impl PageImage {
    /// The lowest byte is the type; versions before 3.17 had others, which nobody sends any more.
    pub(super) fn decode(number: u64) -> Result<Self, PageStreamError> {
        match number & 0xff {
            1 => Ok(Self::Task(number >> 8)),
            2 => Ok(Self::Shmem(number >> 8)),
            _ => Err(PageStreamError::Image { number }),
        }
    }
}

impl fmt::Display for PageImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task(id) => write!(f, "pagemap-{id}.img"),
            Self::Shmem(id) => write!(f, "pagemap-shmem-{id}.img"),
        }
    }
}

fn number32(bytes: &[u8; LONG], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(number)
}

fn number64(bytes: &[u8; LONG], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(number)
}
