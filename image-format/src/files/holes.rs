//! Writes files in which zeros take no room.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

/// What is left out is this much at least, and lies at a multiple of it, as filesystems have their holes.
const BLOCK: usize = 4096;

/// A new file, in which blocks of zeros become holes. Read back, it is what was written.
#[derive(Debug)]
pub struct HoleWriter {
    file: File,
    /// How much was written, holes and all.
    at: u64,
}

impl HoleWriter {
    /// Writes into a file that is empty.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file, at: 0 }
    }

    /// Gives the file its length, which may end with a hole.
    ///
    /// # Errors
    /// The file cannot have it.
    pub fn finish(self) -> io::Result<File> {
        self.file.set_len(self.at)?;
        Ok(self.file)
    }
}

impl Write for HoleWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_all(buf)?;
        Ok(buf.len())
    }

    fn write_all(&mut self, mut buf: &[u8]) -> io::Result<()> {
        while !buf.is_empty() {
            // The first piece ends where a block does.
            let first = (BLOCK - (self.at % BLOCK as u64) as usize).min(buf.len());
            let mut part = first;
            let is_hole = is_zero(&buf[..first]);
            while part < buf.len() && is_zero(&buf[part..(part + BLOCK).min(buf.len())]) == is_hole {
                part = (part + BLOCK).min(buf.len());
            }
            if !is_hole {
                self.file.write_all_at(&buf[..part], self.at)?;
            }
            self.at += part as u64;
            buf = &buf[part..];
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zeros_take_no_room() {
        let mut writer = HoleWriter::new(tempfile::tempfile().unwrap());
        let zeros = vec![0; 1 << 20];
        writer.write_all(b"x").unwrap();
        (0..16).for_each(|_| writer.write_all(&zeros).unwrap());
        let file = writer.finish().unwrap().metadata().unwrap();
        assert_eq!(file.len(), (16 << 20) + 1);
        assert!(file.blocks() * 512 < 1 << 20, "{} blocks", file.blocks());
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(parts in prop::collection::vec((any::<bool>(), 0..10_000_usize), 0..12)) {
            let mut writer = HoleWriter::new(tempfile::tempfile().unwrap());
            let mut expected = Vec::new();
            for (zeros, length) in parts {
                let part = vec![u8::from(!zeros); length];
                writer.write_all(&part).unwrap();
                expected.extend(part);
            }
            let mut file = writer.finish().unwrap();
            let mut read = Vec::new();
            file.rewind().unwrap();
            file.read_to_end(&mut read).unwrap();
            prop_assert!(read == expected);
        }
    }
}
