//! Bytes of pages that wait to be packed: the first ones in memory, the rest in a file without a name.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;

use crate::generation::Scratch;

/// Grows at its end and is read anywhere.
pub(crate) struct Spool {
    memory: Vec<u8>,
    /// Bytes that stay in memory.
    in_memory: usize,
    /// What is behind them.
    rest: Scratch,
}

impl Spool {
    pub fn new(folder: &Path, in_memory: usize) -> Self {
        Self { memory: Vec::new(), in_memory, rest: Scratch::new(folder) }
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.memory.len() as u64 + self.rest.len()
    }

    /// Lets more bytes stay in memory; not once there are some behind it.
    pub fn allow(&mut self, bytes: usize) {
        self.in_memory += bytes;
    }

    /// Adds bytes at the end.
    pub fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (first, rest) = bytes.split_at(bytes.len().min(self.in_memory - self.memory.len()));
        self.memory.extend_from_slice(first);
        self.rest.write_all(rest)
    }

    /// The bytes from `start` on, at most `len` of them.
    pub fn reader(&self, start: u64, len: u64) -> impl Read {
        let held = self.memory.len() as u64;
        let end = start.saturating_add(len);
        // Both are at most the length of what is in memory.
        let memory = &self.memory[start.min(held) as usize..end.min(held) as usize];
        let from = start.max(held);
        memory.chain(self.rest.reader(from - held, end.saturating_sub(from)))
    }
}

/// Without the bytes, which are somebody's memory.
impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_from_memory_and_from_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n >> 8) as u8 ^ n as u8).collect();
        for in_memory in [0, 1, 1_000_000, 3_000_000, 4_000_000] {
            let mut spool = Spool::new(folder.path(), in_memory);
            bytes.chunks(700_001).for_each(|part| spool.add(part).unwrap());
            assert_eq!(spool.len(), 3_000_000);
            for (start, len) in [(0, 3_000_000), (999_990, 20), (2_999_999, 9), (3_000_001, 1), (5, u64::MAX)] {
                let mut found = Vec::new();
                spool.reader(start, len).read_to_end(&mut found).unwrap();
                let at = |at: u64| bytes.len().min(at as usize);
                assert!(found == bytes[at(start)..at(start.saturating_add(len))], "{in_memory}: {start}, {len}");
            }
            assert!(!format!("{spool:?}").contains("memory"));
        }
    }
}
