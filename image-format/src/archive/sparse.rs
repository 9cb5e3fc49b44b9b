//! Maps of sparse files: which parts of a file are holes and which are stored.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use tar::GnuSparseHeader;

use super::ArchiveError;
use super::header::padding;
use super::read::malformed;

/// A stretch of a file: first a hole, which the archive does not store, then bytes, which it does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub hole: u64,
    pub stored: u64,
}

/// The map of a sparse file in PAX format 1.0: how many stretches are stored, and where each begins and how long it is, in
/// decimal lines, filled up to a block.
pub(crate) fn sparse_map(stretches: &[Range<u64>]) -> Vec<u8> {
    let mut map = format!("{}\n", stretches.len());
    for Range { start, end } in stretches {
        map.push_str(&format!("{start}\n{}\n", end - start));
    }
    let mut map = map.into_bytes();
    map.extend_from_slice(padding(map.len() as u64));
    map
}

/// The runs of a sparse file while its map is read.
#[derive(Default)]
pub(super) struct Map {
    runs: VecDeque<Run>,
    end: u64,
    stored: u64,
}

impl Map {
    pub fn add(&mut self, headers: &[GnuSparseHeader]) -> Result<(), ArchiveError> {
        for header in headers.iter().filter(|header| !header.is_empty()) {
            let number = |field: io::Result<u64>| field.map_err(|_| malformed("a sparse map without numbers"));
            self.push(number(header.offset())?, number(header.length())?)?;
        }
        Ok(())
    }

    pub fn push(&mut self, offset: u64, stored: u64) -> Result<(), ArchiveError> {
        let hole = offset.checked_sub(self.end).ok_or_else(|| malformed("a sparse map that goes backwards"))?;
        self.end = offset.checked_add(stored).ok_or_else(|| malformed("a sparse map past the largest size"))?;
        self.stored = self.stored.saturating_add(stored);
        self.runs.push_back(Run { hole, stored });
        Ok(())
    }

    pub fn finish(mut self, size: u64, stored: u64) -> Result<VecDeque<Run>, ArchiveError> {
        let hole = size.checked_sub(self.end).ok_or_else(|| malformed("a sparse map past its file's end"))?;
        if self.stored != stored {
            return Err(malformed("a sparse map that differs from what is stored"));
        }
        self.runs.push_back(Run { hole, stored: 0 });
        Ok(self.runs)
    }
}
