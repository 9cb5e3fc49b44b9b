//! The protocol in which CRIU sends its pages away (`criu dump --page-server`).
//!
//! [`Decoder`] turns bytes into events. [`Receiving`] takes a whole stream by it, and gives [`Received`]: the memory of one dump,
//! which [`crate::DumpSource::with_pages`] puts beside the files that CRIU wrote.
//!
//! A stream is a line of messages, each a fixed head of numbers in the byte order of the sender's machine, which has to be
//! ours. Behind a head that says so follow the pages themselves. Three messages wait for an answer: whoever holds the
//! connection sends it, since nothing here writes ([`Event`] says which one).
//!
//! ```text
//!               ┌─ PARENT ─┐ ┌──── ADD_F and so on ────┐
//!   (first head) ─> OPEN2 ─┴─> pages ─> ... ─> OPEN2 ─> ... ─> CLOSE
//! ```
//!
//! Heads are of two [`Form`]s, and nothing in them names which: 24 bytes up to CRIU 4.1.1, 32 since 4.2. A stream begins
//! with OPEN2 or PARENT, whose address is 0 and whose image is not, and bytes 16 to 24 are the image in the old form and
//! the address in the new one. So the first 24 bytes tell. Source: CRIU 4.2, `criu/page-xfer.c`.
//!
//! A CLOSE says that the sender has sent all it wanted to, not that its dump succeeded: CRIU sends it when a dump fails,
//! too.

mod error;
mod head;
mod keep;
mod receive;
mod received;
mod spool;
#[cfg(test)]
mod tests;

pub use error::PageStreamError;
pub use head::{Form, PageFlags, PageImage};
pub use receive::{ReceiveError, ReceiveLimits, Receiving};
pub(crate) use received::{Placing, ReceivedFile, ReceivedImage, save};
pub use received::{Received, ReceivedError};
pub(crate) use spool::Spool;

use head::{Command, Head, SHORT};

/// Bytes of a page. CRIU counts in pages of its machine, which have 4 KiB wherever this runs.
const PAGE: u64 = 4096;

/// Reads one stream. It holds a head that is not whole yet and nothing else, whatever the stream says.
#[derive(Debug, Default)]
pub struct Decoder {
    form: Option<Form>,
    /// A head, as far as it is there.
    head: [u8; head::LONG],
    filled: usize,
    /// The image that was opened last.
    open: Option<PageImage>,
    /// Bytes of pages that are still to come before the next head.
    bytes_left: u64,
    state: State,
}

/// Whether a stream goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Going,
    Closed,
    /// An error was found, and what follows has no meaning.
    Broken,
}

/// What a stream says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// Pages that follow are of this image. Answer with [`opened`].
    Open(PageImage),
    /// The sender asks whether this image has a parent. Answer with [`parent`].
    Parent(PageImage),
    /// The next entry of the open image's pagemap.
    Pages {
        /// Address of the first page; in shared memory, how far from its beginning.
        address: u64,
        /// How many pages; never 0.
        pages: u64,
        /// Where they are. If they are present, `pages` x 4096 bytes follow as [`Event::Bytes`].
        flags: PageFlags,
    },
    /// The next bytes of the pages announced last, cut where the input was cut; never empty.
    Bytes(&'a [u8]),
    /// The sender has sent everything. Answer with [`CLOSED`] when nothing of it can be lost any more.
    Close,
}

/// The answer to [`Event::Open`].
pub fn opened(has_parent: bool) -> [u8; 1] {
    [u8::from(has_parent)]
}

/// The answer to [`Event::Parent`].
pub fn parent(has_parent: bool) -> [u8; 4] {
    i32::from(has_parent).to_ne_bytes()
}

/// The answer to [`Event::Close`]: nothing was lost.
pub const CLOSED: [u8; 4] = [0; 4];

impl Decoder {
    /// At the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes off the front of `input` up to the next event; `None` if all were taken and none came of them.
    /// After an error it gives the same kind of refusal for ever.
    pub fn next_event<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, PageStreamError> {
        match self.state {
            State::Going => {}
            State::Broken => return Err(PageStreamError::Broken),
            State::Closed if input.is_empty() => return Ok(None),
            State::Closed => return self.broken(PageStreamError::BehindClose),
        }
        if self.bytes_left > 0 {
            return Ok(self.page_bytes(input));
        }
        match self.next_head(input).and_then(|head| head.map(|head| self.handle_head(head)).transpose()) {
            Ok(event) => Ok(event),
            Err(error) => self.broken(error),
        }
    }

    /// Says that the sender has closed the connection: an error unless it said [`Event::Close`] before.
    pub fn finish(&self) -> Result<(), PageStreamError> {
        match self.state {
            State::Closed => Ok(()),
            State::Broken => Err(PageStreamError::Broken),
            State::Going => Err(PageStreamError::Torn { bytes_missing: self.bytes_left }),
        }
    }

    /// Whether the sender said [`Event::Close`].
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Bytes of announced pages that are still to come.
    pub fn bytes_left(&self) -> u64 {
        self.bytes_left
    }

    /// Says that so many bytes of announced pages came, where the decoder does not see them. At most [`Decoder::bytes_left`] count.
    pub fn skip(&mut self, bytes: usize) {
        self.bytes_left = self.bytes_left.saturating_sub(bytes as u64);
    }

    /// Which form the heads have, as soon as the first one told.
    pub fn form(&self) -> Option<Form> {
        self.form
    }

    fn broken<T>(&mut self, error: PageStreamError) -> Result<T, PageStreamError> {
        self.state = State::Broken;
        Err(error)
    }

    fn page_bytes<'a>(&mut self, input: &mut &'a [u8]) -> Option<Event<'a>> {
        let most = usize::try_from(self.bytes_left).unwrap_or(usize::MAX);
        let (bytes, rest) = input.split_at(input.len().min(most));
        *input = rest;
        self.bytes_left -= bytes.len() as u64;
        (!bytes.is_empty()).then_some(Event::Bytes(bytes))
    }

    fn next_head(&mut self, input: &mut &[u8]) -> Result<Option<Head>, PageStreamError> {
        let form = match self.form {
            Some(form) => form,
            None => {
                if !self.fill(input, SHORT) {
                    return Ok(None);
                }
                *self.form.insert(Form::of_first(&self.head)?)
            }
        };
        if !self.fill(input, form.len()) {
            return Ok(None);
        }
        self.filled = 0;
        Ok(Some(Head::decode(form, &self.head)))
    }

    /// Whether the head has this many bytes now.
    fn fill(&mut self, input: &mut &[u8], wanted: usize) -> bool {
        let take = wanted.saturating_sub(self.filled).min(input.len());
        let (bytes, rest) = input.split_at(take);
        self.head[self.filled..self.filled + take].copy_from_slice(bytes);
        self.filled += take;
        *input = rest;
        self.filled >= wanted
    }

    fn handle_head(&mut self, head: Head) -> Result<Event<'static>, PageStreamError> {
        match Command::decode(head.command)? {
            Command::Open => {
                let image = PageImage::decode(head.image)?;
                self.open = Some(image);
                Ok(Event::Open(image))
            }
            Command::Parent => Ok(Event::Parent(PageImage::decode(head.image)?)),
            Command::Pages(flags) => self.handle_pages(&head, flags),
            Command::Close => {
                self.state = State::Closed;
                Ok(Event::Close)
            }
        }
    }

    fn handle_pages(&mut self, head: &Head, flags: PageFlags) -> Result<Event<'static>, PageStreamError> {
        let open = self.open.ok_or(PageStreamError::NothingOpen)?;
        if PageImage::decode(head.image)? != open {
            return Err(PageStreamError::OtherImage { open });
        }
        let (address, pages) = (head.address, head.pages);
        let wrong = || PageStreamError::Range { address, pages };
        let bytes = pages.checked_mul(PAGE).filter(|&bytes| bytes > 0).ok_or_else(wrong)?;
        if address % PAGE != 0 || address.checked_add(bytes).is_none() {
            return Err(wrong());
        }
        if flags.is_present() {
            self.bytes_left = bytes;
        }
        Ok(Event::Pages { address, pages, flags })
    }
}
