//! Why a stream of pages is refused.

use super::PageImage;

/// Why a stream of pages is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageStreamError {
    /// A command that no dump sends.
    #[error("the page stream has command {number:#x}, which no dump sends")]
    Command {
        /// Command and flags, as they came.
        number: u32,
    },
    /// Flags that do not say where pages are.
    #[error("the page stream has pages with flags {flags:#x}, which do not say where they are")]
    Flags {
        /// As they came.
        flags: u32,
    },
    /// An image of a type that is not known.
    #[error("the page stream names image {number:#x}, which is neither of a process nor of shared memory")]
    Image {
        /// As it came.
        number: u64,
    },
    /// Pages before any image was opened.
    #[error("the page stream has pages before it opens an image")]
    NothingOpen,
    /// Pages of an image that is not the open one.
    #[error("the page stream has pages of another image than {open}, which is open")]
    OtherImage {
        /// The open one.
        open: PageImage,
    },
    /// No pages, pages that do not begin where one can, or more than there are addresses for.
    #[error("the page stream has {pages} pages at {address:#x}, which cannot be")]
    Range {
        /// Of the first page.
        address: u64,
        /// How many.
        pages: u64,
    },
    /// It was closed before it opened an image.
    #[error("the page stream was closed before it opened an image")]
    Empty,
    /// The connection ended before the stream was closed.
    #[error("the page stream ended before it was closed, with {bytes_missing} bytes of announced pages missing")]
    Torn {
        /// Bytes of pages that were announced and did not come.
        bytes_missing: u64,
    },
    /// Pages that are not in the stream: in a dump before this one, or left to be asked for.
    #[error(
        "the page stream has pages of {image} with flags {flags:#x}, which are elsewhere; this receiver has no dump before this one"
    )]
    Elsewhere {
        /// Whose they are.
        image: PageImage,
        /// As they came.
        flags: u32,
    },
    /// A run of pages that begins before the end of the one before.
    #[error("the page stream goes back to address {address:#x} of {image}")]
    Order {
        /// Whose it is.
        image: PageImage,
        /// Where it begins.
        address: u64,
    },
    /// An image that was opened before.
    #[error("the page stream opens {image} twice")]
    Twice {
        /// Which.
        image: PageImage,
    },
    /// More than is taken.
    #[error("the page stream has more {what} than the limit of {limit}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How many are taken.
        limit: u64,
    },
    /// Bytes follow the message that closes the stream.
    #[error("the page stream goes on after it was closed")]
    BehindClose,
    /// An error was found earlier in the stream.
    #[error("the page stream was refused before")]
    Broken,
}
