//! CRIU's image files, as far as a person or a preflight check wants to know what is in them.
//!
//! An image file is a magic number, a second one that says which kind it is (the inventory has only that), and then
//! records: a 32-bit length, then that many bytes of protobuf. All numbers are in the byte order of the machine that
//! wrote the file. Source: CRIU 4.2, `criu/image.c`, `criu/protobuf.c` and `criu/include/magic.h`.
//!
//! Nothing here is needed to pack, to send or to restore a dump: messages carry only the fields that are read, and fields
//! that are not known are passed over.

mod message;

use std::fmt;

use prost::Message;

pub use message::{
    AddressSpace, Core, DumpStats, File, FpuRegisters, InetSocket, Inventory, Mapping, PagemapEntry, PagemapHead,
    Stats, Task, TaskTree, Thread, X86State, Xsave,
};

/// First number of most image files (`IMG_COMMON_MAGIC`).
const COMMON: u32 = 0x5456_4319;
/// First number of files that are no part of a dump proper, such as the statistics (`IMG_SERVICE_MAGIC`).
const SERVICE: u32 = 0x5510_5940;

/// Which image file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// `inventory.img`: one [`Inventory`]; what engines look for to tell a dump.
    Inventory,
    /// `pstree.img`: one [`TaskTree`] a process.
    Pstree,
    /// `core-<id>.img`: one [`Core`]; there is one file a thread.
    Core,
    /// `stats-dump`: one [`Stats`].
    Stats,
    /// `pagemap-<id>.img`: one [`PagemapHead`], then [`PagemapEntry`]s.
    Pagemap,
    /// `files.img`: one [`File`] an open file.
    Files,
    /// `mm-<id>.img`: one [`AddressSpace`].
    Memory,
}

impl ImageKind {
    /// The numbers at the head of the file.
    pub(crate) fn magic(self) -> &'static [u32] {
        match self {
            Self::Inventory => &[0x5831_3116],
            Self::Pstree => &[COMMON, 0x5027_3030],
            Self::Core => &[COMMON, 0x5505_3847],
            Self::Stats => &[SERVICE, 0x5709_3306],
            Self::Pagemap => &[COMMON, 0x5608_4025],
            Self::Files => &[COMMON, 0x5630_3138],
            Self::Memory => &[COMMON, 0x5749_2820],
        }
    }
}

impl fmt::Display for ImageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Inventory => "inventory",
            Self::Pstree => "process tree",
            Self::Core => "core",
            Self::Stats => "statistics",
            Self::Pagemap => "pagemap",
            Self::Files => "files",
            Self::Memory => "memory",
        })
    }
}

/// Why bytes are not a CRIU image of the kind they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CriuError {
    /// The numbers at the head are other ones.
    #[error("it is not a CRIU {kind} image: its first bytes are other ones")]
    Magic {
        /// What it should be.
        kind: ImageKind,
    },
    /// A record, or the length before it, passes the end of the file.
    #[error("it ends in the middle of the record at byte {offset}")]
    Truncated {
        /// Where that record starts.
        offset: usize,
    },
    /// A record that is no protobuf of the kind's message.
    #[error("it has a record at byte {offset} that cannot be decoded")]
    Record {
        /// Where that record starts.
        offset: usize,
        /// What the decoder says.
        #[source]
        source: prost::DecodeError,
    },
    /// A record that every file of this kind has is missing.
    #[error("it has no record")]
    Empty,
}

/// The records of one image file, which is held as bytes: the files that are read are small, and whoever collects them
/// bounds them.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    bytes: &'a [u8],
    offset: usize,
    read_u32: fn([u8; 4]) -> u32,
}

impl<'a> Records<'a> {
    /// Checks the numbers at the head.
    ///
    /// # Errors
    /// [`CriuError::Magic`].
    pub fn open(kind: ImageKind, bytes: &'a [u8]) -> Result<Self, CriuError> {
        let magic = kind.magic();
        let offset = magic.len() * 4;
        let head = bytes.get(..offset).ok_or(CriuError::Magic { kind })?;
        for read_u32 in [u32::from_le_bytes, u32::from_be_bytes] {
            if head.as_chunks().0.iter().copied().map(read_u32).eq(magic.iter().copied()) {
                return Ok(Self { bytes, offset, read_u32 });
            }
        }
        Err(CriuError::Magic { kind })
    }

    /// The next record; `None` at the end of the file.
    ///
    /// # Errors
    /// [`CriuError::Truncated`] and [`CriuError::Record`].
    pub fn next_record<M: Message + Default>(&mut self) -> Result<Option<M>, CriuError> {
        let offset = self.offset;
        let record = self.next_bytes()?;
        record.map(M::decode).transpose().map_err(|source| CriuError::Record { offset, source })
    }

    /// The next record as it lies there.
    pub(crate) fn next_bytes(&mut self) -> Result<Option<&'a [u8]>, CriuError> {
        let offset = self.offset;
        let Some(rest) = self.bytes.get(offset..).filter(|rest| !rest.is_empty()) else {
            return Ok(None);
        };
        let truncated = CriuError::Truncated { offset };
        let (len, rest) = rest.split_first_chunk().ok_or(truncated.clone())?;
        let len = usize::try_from((self.read_u32)(*len)).map_err(|_| truncated.clone())?;
        let record = rest.get(..len).ok_or(truncated)?;
        self.offset += 4 + len;
        Ok(Some(record))
    }

    /// The one record of a file that has one.
    ///
    /// # Errors
    /// [`CriuError::Empty`], and those of [`Records::next_record`].
    pub fn one<M: Message + Default>(mut self) -> Result<M, CriuError> {
        self.next_record()?.ok_or(CriuError::Empty)
    }

    /// Whether the machine that wrote the file has the most significant byte first.
    #[must_use]
    pub fn is_big_endian(&self) -> bool {
        (self.read_u32)([0, 0, 0, 1]) == 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An image file as CRIU writes it.
    fn image(kind: ImageKind, records: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes: Vec<u8> = kind.magic().iter().flat_map(|magic| magic.to_le_bytes()).collect();
        for record in records {
            bytes.extend((record.len() as u32).to_le_bytes());
            bytes.extend(record);
        }
        bytes
    }

    #[test]
    fn records_come_back_in_order() {
        let trees: Vec<_> =
            (1..4).map(|pid| TaskTree { pid, parent: pid - 1, threads: vec![pid, pid + 100] }).collect();
        let bytes = image(ImageKind::Pstree, &trees.iter().map(Message::encode_to_vec).collect::<Vec<_>>());
        let mut records = Records::open(ImageKind::Pstree, &bytes).unwrap();
        assert!(!records.is_big_endian());
        for tree in trees {
            assert_eq!(records.next_record().unwrap(), Some(tree));
        }
        assert_eq!(records.next_record::<TaskTree>(), Ok(None));
    }

    #[test]
    fn the_other_byte_order_is_read_too() {
        let mut bytes: Vec<u8> = ImageKind::Inventory.magic().iter().flat_map(|magic| magic.to_be_bytes()).collect();
        bytes.extend([0, 0, 0, 2, 8, 2]);
        let records = Records::open(ImageKind::Inventory, &bytes).unwrap();
        assert!(records.is_big_endian());
        assert_eq!(records.one(), Ok(Inventory { version: 2 }));
    }

    #[test]
    fn broken_files_are_told_apart() {
        let whole = image(ImageKind::Inventory, &[Inventory { version: 2 }.encode_to_vec()]);
        let one = |bytes: &[u8]| Records::open(ImageKind::Inventory, bytes).and_then(Records::one::<Inventory>);
        assert_eq!(one(&whole[..3]), Err(CriuError::Magic { kind: ImageKind::Inventory }));
        assert_eq!(one(&whole[..4]), Err(CriuError::Empty));
        assert_eq!(one(&whole[..6]), Err(CriuError::Truncated { offset: 4 }));
        assert_eq!(one(&whole[..9]), Err(CriuError::Truncated { offset: 4 }));
        let mut lying = whole.clone();
        lying[4..8].fill(0xff);
        assert_eq!(one(&lying), Err(CriuError::Truncated { offset: 4 }));
        let mut garbage = whole;
        garbage[8] = 0x0f;
        assert!(matches!(one(&garbage), Err(CriuError::Record { offset: 4, .. })));
        assert_eq!(Records::open(ImageKind::Core, &garbage).unwrap_err(), CriuError::Magic { kind: ImageKind::Core });
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_value_or_an_error(records in prop::collection::vec(any::<Vec<u8>>(), 0..4), cut in any::<usize>()) {
            let mut bytes = image(ImageKind::Core, &records);
            bytes.truncate(cut % (bytes.len() + 1));
            if let Ok(mut records) = Records::open(ImageKind::Core, &bytes) {
                while let Ok(Some(_)) = records.next_record::<Core>() {}
            }
        }
    }
}
