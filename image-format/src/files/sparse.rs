//! Which stretches of a file are worth storing: all but long runs of zeros.

use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, pread};

use super::holes::is_zero;

/// Zeros are looked for in pieces of this size, which is that of a page, and of a filesystem's blocks or less.
const BLOCK: u64 = 4096;
/// The shortest run of zeros that is a hole. Shorter ones compress well, and cost less than an entry of a map.
const HOLE: u64 = 16 * BLOCK;
/// The most stretches of one file. Their map stays below the megabyte that readers take (Go's `archive/tar` among them).
const MOST: usize = 16 << 10;

/// The stretches of a file of `size` bytes between its holes, in order; one if it has none. `buf` is to read with.
///
/// Contents alone decide. Where the filesystem knows of a hole it is not read.
pub(super) fn stretches(file: &OwnedFd, size: u64, buf: &mut [u8]) -> Result<Vec<Range<u64>>, Errno> {
    let whole = 0..size;
    if size <= HOLE {
        return Ok(vec![whole]);
    }
    let mut found = Stretches { list: Vec::new(), shortest: HOLE, most: MOST };
    let mut at = 0;
    while let Some(data) = next_data(file, at, size)? {
        let mut block = data.start - data.start % BLOCK;
        while block < data.end {
            let part = (size - block).min(buf.len() as u64) as usize;
            let read = read_all(file, &mut buf[..part], block)?;
            for piece in buf[..read].chunks(BLOCK as usize) {
                let end = block + piece.len() as u64;
                if !is_zero(piece) {
                    found.add(block..end);
                }
                block = end;
            }
            if read < part {
                // It is shorter than it was; whoever copies the stretches finds out.
                return Ok(vec![whole]);
            }
        }
        at = block;
    }
    Ok(found.finish(size))
}

/// The next stretch at or after an offset that is no hole to the filesystem.
fn next_data(file: &OwnedFd, at: u64, size: u64) -> Result<Option<Range<u64>>, Errno> {
    let start = match seek(file, SeekFrom::Data(at)) {
        _ if at >= size => return Ok(None),
        Ok(start) if start < size => start,
        // A hole to the end.
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        // No holes on this filesystem.
        Err(Errno::INVAL) => return Ok(Some(at..size)),
        Err(error) => return Err(error),
    };
    let end = seek(file, SeekFrom::Hole(start)).unwrap_or(size).clamp(start + 1, size);
    Ok(Some(start..end))
}

fn read_all(file: &OwnedFd, buf: &mut [u8], at: u64) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buf.len() {
        match pread(file, &mut buf[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Stretches as they are found, those with short gaps between them taken together.
struct Stretches {
    list: Vec<Range<u64>>,
    /// The shortest gap that is a hole.
    shortest: u64,
    most: usize,
}

impl Stretches {
    fn add(&mut self, stretch: Range<u64>) {
        self.join(stretch);
        while self.list.len() > self.most {
            self.shortest *= 2;
            for stretch in std::mem::take(&mut self.list) {
                self.join(stretch);
            }
        }
    }

    /// Adds a stretch, or lengthens the one before it where the gap between them is too short.
    fn join(&mut self, stretch: Range<u64>) {
        let gap = stretch.start - self.list.last().map_or(0, |last| last.end);
        match self.list.last_mut() {
            Some(last) if gap < self.shortest => last.end = stretch.end,
            None if gap < self.shortest => self.list.push(0..stretch.end),
            _ => self.list.push(stretch),
        }
    }

    fn finish(mut self, size: u64) -> Vec<Range<u64>> {
        if let Some(last) = self.list.last_mut()
            && size - last.end < self.shortest
        {
            last.end = size;
        }
        if self.list.last().is_none_or(|last| last.end < size) {
            // Without it some readers would take the last stretch's end for the file's.
            self.list.push(size..size);
        }
        self.list
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn of(size: u64, data: &[(u64, u64)], holes: bool) -> Vec<(u64, u64)> {
        let file = tempfile::tempfile().unwrap();
        if holes {
            file.set_len(size).unwrap();
        } else {
            file.write_all_at(&vec![0; size as usize], 0).unwrap();
        }
        for (at, length) in data {
            file.write_all_at(&vec![7; *length as usize], *at).unwrap();
        }
        let found = stretches(&OwnedFd::from(file), size, &mut vec![1; 3 * BLOCK as usize]).unwrap();
        found.into_iter().map(|stretch| (stretch.start, stretch.end)).collect()
    }

    #[test]
    fn long_runs_of_zeros_are_holes_whether_the_filesystem_knows_or_not() {
        const MIB: u64 = 1 << 20;
        for holes in [true, false] {
            for (size, data, expected) in [
                (0, vec![], vec![(0, 0)]),
                (HOLE, vec![], vec![(0, HOLE)]),
                (MIB, vec![], vec![(MIB, MIB)]),
                (MIB, vec![(0, MIB)], vec![(0, MIB)]),
                (MIB, vec![(500_000, 1)], vec![(499_712, 503_808), (MIB, MIB)]),
                (MIB, vec![(10, 1), (2 * BLOCK, 1), (MIB - 1, 1)], vec![(0, 3 * BLOCK), (MIB - BLOCK, MIB)]),
                (MIB + 5, vec![(0, 1), (MIB + 4, 1)], vec![(0, BLOCK), (MIB, MIB + 5)]),
                (MIB, vec![(HOLE, 1), (2 * HOLE, 1)], vec![(HOLE, 2 * HOLE + BLOCK), (MIB, MIB)]),
                (
                    MIB,
                    vec![(HOLE, 1), (2 * HOLE + BLOCK, 1)],
                    vec![(HOLE, HOLE + BLOCK), (2 * HOLE + BLOCK, 2 * HOLE + 2 * BLOCK), (MIB, MIB)],
                ),
            ] {
                assert_eq!(of(size, &data, holes), expected, "{size} {data:?} {holes}");
            }
        }
    }

    #[test]
    fn a_file_of_a_terabyte_with_a_byte_at_its_end_is_looked_at_at_once() {
        let file: File = tempfile::tempfile().unwrap();
        file.write_all_at(b"x", (1 << 40) - 1).unwrap();
        let found = stretches(&OwnedFd::from(file), 1 << 40, &mut vec![0; BLOCK as usize]).unwrap();
        let last = (1 << 40) - BLOCK..1 << 40;
        assert_eq!(found, [last]);
    }

    #[test]
    fn a_map_has_a_bound() {
        let mut found = Stretches { list: Vec::new(), shortest: HOLE, most: 8 };
        (0..100).for_each(|n| found.add(n * 3 * HOLE..n * 3 * HOLE + BLOCK));
        found.add(1 << 40..(1 << 40) + BLOCK);
        let found = found.finish(1 << 41);
        assert!(found.len() <= 9, "{found:?}");
        assert_eq!((found[0].start, found.last().unwrap().end), (0, 1 << 41));
    }
}
