//! Whether the parts of a generation are worth compressing.
//!
//! A part is compressed unless hardly anything in the part before it was worth it: memory that is encrypted, compressed already, or numbers
//! as they are measured, tends to go on. Stored plain, a part has one digest instead of two. That is decided by the pages alone, so
//! that equal dumps give equal blobs. A part that was judged wrongly is the last of its kind: the one after it is compressed again.

use std::fmt;
use std::io;

use crate::archive::{SAMPLE, SAMPLES, Trial};

/// Of this many pages the first gives a piece of a sample, so that a sample is of a megabyte: four times as much as a frame of zstd is judged by,
/// since this is done where the dump is read.
const APART: u64 = 16;

/// Of this many samples that were tried one may be worth it, and the next part is stored plain all the same.
const FEW: u64 = 16;

/// What has passed of a part.
pub(super) struct Worth {
    trial: Option<Trial>,
    samples: Vec<u8>,
    pages: u64,
    /// Samples, and those that were worth it.
    tried: u64,
    worth: u64,
}

impl Worth {
    pub fn new() -> Self {
        Self { trial: None, samples: Vec::with_capacity(SAMPLES * SAMPLE), pages: 0, tried: 0, worth: 0 }
    }

    /// Looks at a page that goes into the part.
    pub fn add(&mut self, page: &[u8]) -> io::Result<()> {
        self.pages += 1;
        if self.pages % APART != 1 {
            return Ok(());
        }
        self.samples.extend_from_slice(&page[..SAMPLE]);
        if self.samples.len() < SAMPLES * SAMPLE {
            return Ok(());
        }
        let trial = match &mut self.trial {
            Some(trial) => trial,
            none => none.insert(Trial::new()?),
        };
        self.tried += 1;
        self.worth += u64::from(trial.is_worth(&self.samples)?);
        self.samples.clear();
        Ok(())
    }

    /// The part is full: is the next one worth compressing?
    pub fn next(&mut self) -> bool {
        let worth = self.tried == 0 || self.worth * FEW > self.tried;
        self.samples.clear();
        (self.pages, self.tried, self.worth) = (0, 0, 0);
        worth
    }
}

/// Without the samples, which are somebody's memory.
impl fmt::Debug for Worth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worth")
            .field("pages", &self.pages)
            .field("tried", &self.tried)
            .field("worth", &self.worth)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::PAGE_LEN;

    #[test]
    fn a_part_is_plain_after_one_without_anything_to_gain() {
        let noise = |seed: u64| -> Vec<u8> {
            let words = (0..PAGE_LEN as u64 / 8).map(|n| (n + seed * 512 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            words.flat_map(|word| (word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes()).collect()
        };
        let mut worth = Worth::new();
        let mut part = |pages: u64, zeros: std::ops::Range<u64>| {
            for page in 0..pages {
                let page = if zeros.contains(&page) { vec![0; PAGE_LEN] } else { noise(page) };
                worth.add(&page).unwrap();
            }
            worth.next()
        };
        assert!(!part(256, 0..0));
        assert!(!part(4096, 256..512), "a sixteenth of the samples");
        assert!(part(4096, 256..768));
        assert!(part(1024, 768..1024), "the last quarter is worth it");
        assert!(!part(256, 0..0), "nothing is left of the part before");
        assert!(part(240, 0..0), "too few pages to know");
        assert!(part(0, 0..0));
    }
}
