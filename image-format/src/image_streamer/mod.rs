//! The protocol in which CRIU gives its images away and asks for them back, one file at a time (`criu --stream`).
//!
//! CRIU connects to a socket of a known name in its folder of images. For each file it says the name, in a message of a length
//! and a record, and sends one end of a pipe, with a byte of its own; the file goes through that pipe until its end. When it
//! restores, it waits between the two for an answer whether there is such a file, and sends nothing where there is none.
//!
//! ```text
//!  dump      CRIU ── name ─▶  CRIU ── pipe ─▶  CRIU ══ bytes, end ═▶                 again for each file, several at a time
//!  restore   CRIU ── name ─▶  there is, or not ─▶ CRIU  CRIU ── pipe ─▶  ══ bytes, end ═▶ CRIU
//! ```
//!
//! The end of the connection says that no file follows, not that a dump succeeded. Source: CRIU 4.2, `criu/img-streamer.c` and
//! `images/img-streamer.proto`. Nothing here opens a socket.

mod files;

pub use files::ImageFiles;

use prost::Message;

/// The socket's name where CRIU dumps.
pub const CAPTURE_SOCKET: &str = "streamer-capture.sock";
/// The socket's name where CRIU restores.
pub const SERVE_SOCKET: &str = "streamer-serve.sock";
/// Bytes before a request: its length.
pub const LENGTH: usize = 4;

/// Bytes of a request that are taken. CRIU's longest name has some 30.
const MAX_REQUEST: u32 = 4096;
/// Bytes of a file's name.
const MAX_NAME: usize = 255;

/// `img_streamer_request_entry` of img-streamer.proto.
#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, required, tag = "1")]
    filename: String,
}

/// `img_streamer_reply_entry` of img-streamer.proto.
#[derive(Clone, PartialEq, Message)]
struct Reply {
    #[prost(bool, required, tag = "1")]
    exists: bool,
}

/// Why what CRIU says is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamerError {
    /// A request that no CRIU makes.
    #[error("a request of {bytes} bytes is none of CRIU's")]
    Length {
        /// As it said.
        bytes: u32,
    },
    /// No record, or more than one.
    #[error("a request that cannot be read")]
    Request(#[from] prost::DecodeError),
    /// No name of a file in a folder.
    #[error("{name:?} is no name of an image")]
    Name {
        /// As it came, shortened.
        name: String,
    },
    /// A file that came before.
    #[error("the image {name} came twice")]
    Twice {
        /// Which.
        name: String,
    },
    /// More files than are taken.
    #[error("more images than the limit of {limit}")]
    TooMany {
        /// How many are taken.
        limit: usize,
    },
}

/// Bytes of the request that follows these.
///
/// # Errors
/// None, or more than CRIU's requests have.
pub fn request_len(length: [u8; LENGTH]) -> Result<usize, StreamerError> {
    match u32::from_le_bytes(length) {
        bytes @ 1..=MAX_REQUEST => Ok(bytes as usize),
        bytes => Err(StreamerError::Length { bytes }),
    }
}

/// The name in a request: one that stays in the folder in which it is looked for.
///
/// # Errors
/// No request, or no such name.
pub fn requested(request: &[u8]) -> Result<String, StreamerError> {
    let Request { filename: name } = Request::decode(request)?;
    let plain = !matches!(&name[..], "" | "." | "..") && name.len() <= MAX_NAME && !name.contains(['/', '\0']);
    if plain { Ok(name) } else { Err(StreamerError::Name { name: name.chars().take(64).collect() }) }
}

/// What CRIU is told of a file that it asked for.
#[must_use]
pub fn reply(exists: bool) -> Vec<u8> {
    let record = Reply { exists }.encode_to_vec();
    let mut message = (record.len() as u32).to_le_bytes().to_vec();
    message.extend(record);
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(name: &str) -> Vec<u8> {
        Request { filename: name.to_owned() }.encode_to_vec()
    }

    #[test]
    fn names_of_images_and_nothing_else() {
        assert_eq!(requested(&request("pages-1.img")).unwrap(), "pages-1.img");
        // As CRIU writes it: field 1, of a length.
        assert_eq!(requested(b"\x0a\x05a.img").unwrap(), "a.img");
        for name in ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b", &"x".repeat(256)] {
            assert!(matches!(requested(&request(name)), Err(StreamerError::Name { .. })), "{name:?}");
        }
        assert!(matches!(requested(b"\x0a\x09a.img"), Err(StreamerError::Request(_))), "a length that lies");
        assert!(matches!(requested(b"\x0a\x02\xff\xfe"), Err(StreamerError::Request(_))), "no text");
    }

    #[test]
    fn lengths_are_bounded() {
        assert_eq!(request_len(13_u32.to_le_bytes()).unwrap(), 13);
        for bytes in [0, MAX_REQUEST + 1, u32::MAX] {
            assert!(matches!(request_len(bytes.to_le_bytes()), Err(StreamerError::Length { .. })), "{bytes}");
        }
    }

    #[test]
    fn answers_as_criu_reads_them() {
        assert_eq!(reply(true), [2, 0, 0, 0, 8, 1]);
        // A required field is there also where it says no.
        assert_eq!(reply(false), [2, 0, 0, 0, 8, 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_name_in_a_folder_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(name) = requested(&bytes) {
                let path = std::path::Path::new("/d").join(&name);
                prop_assert_eq!(path.parent(), Some(std::path::Path::new("/d")));
            }
        }
    }
}
