//! Compression whose output depends on its input alone: not on the machine, its load, or how the input was cut.

use std::fmt;
use std::io::{self, Write};

use flate2::write::GzEncoder;

use super::CHUNK;
use super::frames::Frames;
use crate::Compression;

/// Compressed bytes out of plain ones.
pub(crate) enum Encoder<W: Write> {
    None(W),
    Gzip(Blocks<GzEncoder<W>>),
    Zstd(Frames<W>),
}

impl<W: Write> Encoder<W> {
    pub fn new(out: W, compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None(out),
            Compression::Gzip => Self::Gzip(Blocks::new(GzEncoder::new(out, flate2::Compression::fast()))),
            Compression::Zstd => Self::Zstd(Frames::new(out)),
        }
    }

    /// Writes what is left and gives the writer back.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::None(out) => Ok(out),
            Self::Gzip(blocks) => blocks.finish()?.finish(),
            Self::Zstd(frames) => frames.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(out) => out.write(buf),
            Self::Gzip(encoder) => encoder.write(buf),
            Self::Zstd(frames) => frames.write(buf),
        }
    }

    /// Does nothing: a flush would end a block of the output early, and so change it.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> fmt::Debug for Encoder<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None(_) => "Encoder(none)",
            Self::Gzip(_) => "Encoder(gzip)",
            Self::Zstd(_) => "Encoder(zstd)",
        })
    }
}

/// Passes bytes on in blocks of one size, the last one excepted: zlib-rs ends its blocks where its input was cut.
pub(crate) struct Blocks<W> {
    out: W,
    block: Vec<u8>,
}

impl<W: Write> Blocks<W> {
    fn new(out: W) -> Self {
        Self { out, block: Vec::with_capacity(CHUNK) }
    }

    fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&self.block)?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Blocks<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.block.is_empty() && buf.len() >= CHUNK {
            self.out.write_all(&buf[..CHUNK])?;
            return Ok(CHUNK);
        }
        let part = buf.len().min(CHUNK - self.block.len());
        self.block.extend_from_slice(&buf[..part]);
        if self.block.len() == CHUNK {
            self.out.write_all(&self.block)?;
            self.block.clear();
        }
        Ok(part)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
