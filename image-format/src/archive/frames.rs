//! zstd in frames of equal plain size, compressed side by side: the same bytes on any machine, however many processors it has.
//!
//! ```text
//! plain ─▶ frame 0 ─▶ worker 0 ─┐
//!          frame 1 ─▶ worker 1 ─┼─▶ frame 0, frame 1, frame 2 ... in order
//!          frame 2 ─▶ worker 0 ─┘
//! ```

use std::io::{self, Write};
use std::num::NonZero;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{available_parallelism, spawn};

use zstd::bulk::Compressor;
use zstd::zstd_safe::compress_bound;

use super::CHUNK;

/// zstd's level 1 compresses memory pages to a fifth at over 1 GB/s on two cores; higher levels gain a few percent.
const LEVEL: i32 = 1;
/// Of a frame this many pieces of this size, from equal parts of it, are tried first...
pub(crate) const SAMPLES: usize = 16;
pub(crate) const SAMPLE: usize = 1024;
/// ...and if they would keep more than this part of their size, the frame is not worth compressing: memory that is
/// encrypted, compressed already, or numbers as they are measured.
const WORTH: (usize, usize) = (15, 16);
/// More workers would need more memory than they are worth: eight compress some 5 GB/s.
const MOST_WORKERS: usize = 8;

/// Compresses what is written into it. Frames are part of the format only in so far as readers take several of them.
pub(crate) struct Frames<W: Write> {
    out: W,
    plain: Vec<u8>,
    /// Started one by one, for as long as there are more frames than workers.
    workers: Vec<Worker>,
    most_workers: usize,
    /// Frames handed to workers, and taken back from them: the workers take turns.
    given: usize,
    taken: usize,
    spare: Vec<Frame>,
}

/// A thread that compresses one frame after the other. It ends when nobody gives it any more.
struct Worker {
    frames: SyncSender<Frame>,
    compressed: Receiver<io::Result<Frame>>,
}

/// One frame, before and after it is compressed. The buffers go round.
#[derive(Default)]
struct Frame {
    plain: Vec<u8>,
    compressed: Vec<u8>,
    /// How much of the buffer is the frame: it is not cleared each time.
    size: usize,
}

impl<W: Write> Frames<W> {
    pub fn new(out: W) -> Self {
        let plain = Vec::with_capacity(CHUNK);
        let most_workers = available_parallelism().map_or(1, NonZero::get).min(MOST_WORKERS);
        Self { out, plain, workers: Vec::new(), most_workers, given: 0, taken: 0, spare: Vec::new() }
    }

    /// Writes what is left and gives the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        // An empty stream is one empty frame.
        if !self.plain.is_empty() || self.given == 0 {
            self.give()?;
        }
        while self.taken < self.given {
            self.take()?;
        }
        Ok(self.out)
    }

    /// Hands the frame to the worker whose turn it is.
    fn give(&mut self) -> io::Result<()> {
        if self.workers.len() < self.most_workers && self.given == self.workers.len() {
            self.workers.push(Worker::start()?);
        }
        // Each worker has one frame in hand and one waiting.
        while self.given - self.taken >= 2 * self.workers.len() {
            self.take()?;
        }
        let mut frame = self.spare.pop().unwrap_or_default();
        std::mem::swap(&mut frame.plain, &mut self.plain);
        let worker = &self.workers[self.given % self.workers.len()];
        worker.frames.send(frame).map_err(|_| ended())?;
        self.given += 1;
        Ok(())
    }

    /// Writes the next frame, once it is compressed.
    fn take(&mut self) -> io::Result<()> {
        let worker = &self.workers[self.taken % self.workers.len()];
        let mut frame = worker.compressed.recv().map_err(|_| ended())??;
        self.taken += 1;
        self.out.write_all(&frame.compressed[..frame.size])?;
        frame.plain.clear();
        self.spare.push(frame);
        Ok(())
    }
}

impl<W: Write> Write for Frames<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let part = buf.len().min(CHUNK - self.plain.len());
        self.plain.extend_from_slice(&buf[..part]);
        if self.plain.len() == CHUNK {
            self.give()?;
        }
        Ok(part)
    }

    /// Does nothing: a flush would end a frame early, and so change the output.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Worker {
    fn start() -> io::Result<Self> {
        let (frames, given) = sync_channel::<Frame>(1);
        let (done, compressed) = sync_channel(2);
        let mut compressor = FrameCompressor::new()?;
        spawn(move || {
            for mut frame in given {
                let size = compressor.compress(&frame.plain, &mut frame.compressed);
                let frame = size.map(|size| Frame { size, ..frame });
                // Whoever gave the frame may have given up.
                if done.send(frame).is_err() {
                    return;
                }
            }
        });
        Ok(Self { frames, compressed })
    }
}

/// Tries samples: is it worth compressing what they are from?
pub(crate) struct Trial {
    compressor: Compressor<'static>,
    tried: Vec<u8>,
}

impl Trial {
    pub fn new() -> io::Result<Self> {
        Ok(Self { compressor: Compressor::new(LEVEL)?, tried: vec![0; compress_bound(SAMPLES * SAMPLE)] })
    }

    /// Judges by at most [`SAMPLES`] pieces of [`SAMPLE`] bytes.
    pub fn is_worth(&mut self, samples: &[u8]) -> io::Result<bool> {
        let size = self.compressor.compress_to_buffer(samples, &mut self.tried[..])?;
        Ok(size * WORTH.1 <= samples.len() * WORTH.0)
    }
}

struct FrameCompressor {
    trial: Trial,
    samples: Vec<u8>,
}

impl FrameCompressor {
    fn new() -> io::Result<Self> {
        Ok(Self { trial: Trial::new()?, samples: Vec::new() })
    }

    /// Gives the frame's size at the start of the buffer, which grows as needed.
    fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        if !self.is_worth(plain)? {
            out.clear();
            raw_frame(plain, out);
            return Ok(out.len());
        }
        let most = compress_bound(plain.len());
        if out.len() < most {
            out.resize(most, 0);
        }
        self.trial.compressor.compress_to_buffer(plain, &mut out[..])
    }

    /// Judged by the content alone, so that the same content always gives the same frame.
    fn is_worth(&mut self, plain: &[u8]) -> io::Result<bool> {
        if plain.len() < CHUNK {
            return Ok(true);
        }
        self.samples.clear();
        for piece in plain.chunks_exact(CHUNK / SAMPLES) {
            self.samples.extend_from_slice(&piece[..SAMPLE]);
        }
        self.trial.is_worth(&self.samples)
    }
}

/// Bytes as they are, in the form of a frame (RFC 8878, section 3.1.1): one segment, and blocks of the kind "raw". Only for a
/// whole frame, whose size fits the four bytes that are there for it.
fn raw_frame(plain: &[u8], out: &mut Vec<u8>) {
    const MAGIC: u32 = 0xfd2f_b528;
    /// One segment, no check sum, no dictionary, and four bytes for the size.
    const DESCRIPTOR: u8 = 0b1010_0000;
    const BLOCK: usize = 128 << 10;
    out.extend(MAGIC.to_le_bytes());
    out.push(DESCRIPTOR);
    out.extend((plain.len() as u32).to_le_bytes());
    let blocks = plain.len().div_ceil(BLOCK);
    for (number, block) in plain.chunks(BLOCK).enumerate() {
        let header = (block.len() as u32) << 3 | u32::from(number + 1 == blocks);
        out.extend(&header.to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
}

fn ended() -> io::Error {
    io::Error::other("a thread that compresses has ended unexpectedly")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 7_u64;
        let words = (0..bytes.div_ceil(8)).flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state ^ (state >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes()
        });
        words.take(bytes).collect()
    }

    fn frames(plain: &[u8]) -> Vec<u8> {
        let mut frames = Frames::new(Vec::new());
        frames.write_all(plain).unwrap();
        frames.finish().unwrap()
    }

    #[test]
    fn many_workers_write_what_one_would() {
        let plain = [noise(2 * CHUNK), vec![0; 5 * CHUNK], noise(CHUNK / 2), vec![1; 20 * CHUNK + 3]].concat();
        let mut one = FrameCompressor::new().unwrap();
        let mut expected = Vec::new();
        for frame in plain.chunks(CHUNK) {
            let mut out = Vec::new();
            let size = one.compress(frame, &mut out).unwrap();
            expected.extend_from_slice(&out[..size]);
        }
        assert_eq!(frames(&plain), expected);
        assert_eq!(zstd::decode_all(&expected[..]).unwrap(), plain);
    }

    #[test]
    fn nothing_is_a_stream_too() {
        assert_eq!(zstd::decode_all(&frames(b"")[..]).unwrap(), b"");
    }

    #[test]
    fn a_frame_is_judged_by_samples_of_all_of_it() {
        let mut compressor = FrameCompressor::new().unwrap();
        assert!(!compressor.is_worth(&noise(CHUNK)).unwrap());
        assert!(compressor.is_worth(&vec![0; CHUNK]).unwrap());
        // A sixteenth of it would shrink to nothing: not worth it. A quarter: worth it.
        for (part, worth) in [(32, false), (4, true)] {
            let mut half = noise(CHUNK);
            half[CHUNK - CHUNK / part..].fill(0);
            assert_eq!(compressor.is_worth(&half).unwrap(), worth, "1/{part}");
        }
        // What is not worth it grows by hardly anything.
        assert!(frames(&noise(4 * CHUNK)).len() < 4 * CHUNK + 100);
    }
}
