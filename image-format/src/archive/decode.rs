//! Decompression of what may be hostile: bounded windows, every frame to its end, nothing after the last one.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;
use zstd::stream::read::Decoder as ZstdDecoder;

use super::{ArchiveError, CHUNK};
use crate::{Compression, Limits};

/// Plain bytes out of compressed ones. Ends only where the compressed input ends.
pub(crate) struct Decoder<R: Read> {
    /// `None` once the input has ended or failed.
    frame: Option<Frame<Source<R>>>,
    window_log: u32,
}

type Source<R> = BufReader<Tagged<R>>;

/// What decompresses the current frame or member. Several may follow each other, as parallel compressors write them.
enum Frame<R: BufRead> {
    None(R),
    Gzip(Box<GzDecoder<R>>),
    Zstd(ZstdDecoder<'static, R>),
}

impl<R: Read> Decoder<R> {
    pub fn new(from: R, compression: Compression, limits: &Limits) -> io::Result<Self> {
        let from = BufReader::with_capacity(CHUNK, Tagged(from));
        let window_log = limits.zstd_window_log;
        Ok(Self { frame: Some(Frame::open(from, compression, window_log)?), window_log })
    }

    /// At the end of a frame: the one that follows, or nothing at the input's end.
    fn next_frame(&self, frame: Frame<Source<R>>) -> io::Result<Option<Frame<Source<R>>>> {
        let (mut from, compression) = match frame {
            Frame::None(_) => return Ok(None),
            Frame::Gzip(decoder) => (decoder.into_inner(), Compression::Gzip),
            Frame::Zstd(decoder) => (decoder.finish(), Compression::Zstd),
        };
        match (compression, from.fill_buf()?.first()) {
            (_, None) => Ok(None),
            // Frames of content, and those that decoders skip.
            (Compression::Gzip, Some(0x1f)) | (Compression::Zstd, Some(0x28 | 0x50..=0x5f)) => {
                Frame::open(from, compression, self.window_log).map(Some)
            }
            _ => Err(io::Error::other(ArchiveError::TrailingData)),
        }
    }
}

impl<R: BufRead> Frame<R> {
    fn open(from: R, compression: Compression, window_log: u32) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(from),
            Compression::Gzip => Self::Gzip(Box::new(GzDecoder::new(from))),
            Compression::Zstd => {
                let mut decoder = ZstdDecoder::with_buffer(from)?.single_frame();
                decoder.window_log_max(window_log)?;
                Self::Zstd(decoder)
            }
        })
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(from) => from.read(buf),
            Self::Gzip(from) => from.read(buf),
            Self::Zstd(from) => from.read(buf),
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(frame) = &mut self.frame {
            let read = frame.read(buf).map_err(|error| name_window(error, self.window_log))?;
            if read > 0 || buf.is_empty() {
                return Ok(read);
            }
            self.frame = match self.frame.take() {
                Some(frame) => self.next_frame(frame)?,
                None => None,
            };
        }
        Ok(0)
    }
}

impl<R: Read> fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

/// zstd tells its errors apart by text alone once they have become an [`io::Error`].
fn name_window(error: io::Error, limit: u32) -> io::Error {
    if error.kind() == io::ErrorKind::Other && error.to_string() == "Frame requires too much memory for decoding" {
        return io::Error::other(ArchiveError::WindowTooLarge { limit });
    }
    error
}

/// Marks what the input itself reports, so that a blob that could not be fetched is told from one that is corrupt.
struct Tagged<R>(R);

impl<R: Read> Read for Tagged<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => io::Error::other(ArchiveError::Read(error)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::archive::Encoder;

    fn encode(compression: Compression, plain: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new(), compression);
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(compression: Compression, bytes: &[u8], limits: &Limits) -> Result<Vec<u8>, ArchiveError> {
        let mut plain = Vec::new();
        let mut decoder = Decoder::new(bytes, compression, limits).map_err(ArchiveError::read)?;
        decoder.read_to_end(&mut plain).map_err(ArchiveError::read)?;
        Ok(plain)
    }

    #[test]
    fn every_frame_counts_and_nothing_else() {
        let limits = Limits::default();
        for compression in [Compression::Gzip, Compression::Zstd] {
            let frame = encode(compression, b"pages");
            let twice = [&frame[..], &frame].concat();
            assert_eq!(decode(compression, &twice, &limits).unwrap(), b"pagespages");
            assert!(matches!(decode(compression, &frame[..frame.len() - 1], &limits), Err(ArchiveError::Truncated)));
            let trailing = [&frame[..], b"\0\0\0\0"].concat();
            assert!(matches!(decode(compression, &trailing, &limits), Err(ArchiveError::TrailingData)));
        }
        let mut corrupt = encode(Compression::Gzip, b"pages");
        let check_sum = corrupt.len() - 8;
        corrupt[check_sum] ^= 1;
        assert!(matches!(decode(Compression::Gzip, &corrupt, &limits), Err(ArchiveError::Read(_))));
        let skipped = [&encode(Compression::Zstd, b"pages")[..], b"\x50\x2a\x4d\x18\x02\0\0\0xy"].concat();
        assert_eq!(decode(Compression::Zstd, &skipped, &limits).unwrap(), b"pages");
    }

    #[test]
    fn windows_are_bounded() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(24).unwrap();
        encoder.write_all(&[7; 100_000]).unwrap();
        let bytes = encoder.finish().unwrap();
        assert!(decode(Compression::Zstd, &bytes, &Limits::default()).is_ok());
        let limits = Limits { zstd_window_log: 23, ..Limits::default() };
        let result = decode(Compression::Zstd, &bytes, &limits);
        assert!(matches!(result, Err(ArchiveError::WindowTooLarge { limit: 23 })), "{result:?}");
    }

    #[test]
    fn output_depends_on_input_alone() {
        let plain: Vec<u8> =
            (0..3_000_000_u32).flat_map(|n| ((n / 7).wrapping_mul(2_654_435_761) >> 20).to_le_bytes()).collect();
        for compression in [Compression::Gzip, Compression::Zstd] {
            let whole = encode(compression, &plain);
            for seed in 1..6_usize {
                let mut encoder = Encoder::new(Vec::new(), compression);
                let (mut rest, mut state) = (&plain[..], seed);
                while !rest.is_empty() {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let (part, left) = rest.split_at(rest.len().min((state >> 40) % 900_000));
                    encoder.write_all(part).unwrap();
                    rest = left;
                }
                assert!(encoder.finish().unwrap() == whole, "{compression}, seed {seed}");
            }
        }
    }
}
