//! Generations: the pages of a dump in CRIU's own incremental form, so that the next checkpoint of the same member stores
//! only the pages that changed.
//!
//! ```text
//! checkpoint/pagemap-1.img     every page "in parent"         state layer of this image
//! checkpoint/parent ─▶ gen-2.1
//! checkpoint/gen-2.1/          pages that changed             a layer of this image
//!            parent ─▶ ../gen-1.2
//! checkpoint/gen-1.2/          second part of generation 1    layers that were there before,
//!            parent ─▶ ../gen-1.1                             named by their digests
//! checkpoint/gen-1.1/          first part of it
//! syncpoint/pagemap-1.img      the pagemap as CRIU wrote it   the layer of digests of this image
//! syncpoint/pagemap-1.table    digest and place of each page
//! ```
//!
//! Each folder `gen-K.P` is a link of the chain, in a layer of its own. The table of an image knows all of its live pages:
//! comparing needs no older table, and no pages at all. `docs/image-format.md` is the specification.

mod base;
mod compare;
mod digest;
mod link;
mod pagemap;
mod scratch;
mod table;
mod write;

pub(crate) use self::base::Dump;
pub use self::base::{Base, BaseError, ChainLimits};
pub use self::compare::PageChanges;
pub(crate) use self::digest::{PageDigest, digests_of};
pub use self::link::{Chain, FirstPage, Link};
pub(crate) use self::pagemap::{Pagemap, PagemapWriter, Place, Run, lazy_runs};
pub(crate) use self::scratch::Scratch;
pub use self::table::TableError;
pub(crate) use self::table::{AddError, Known, RECORD, Source, Sources, Table, Tables};
pub(crate) use self::write::{Generated, Generations, MAX_HELD};

/// Bytes of a page. Dumps with other pages are packed as they are.
pub(crate) const PAGE: u64 = 4096;
/// The same, for buffers.
pub(crate) const PAGE_LEN: usize = 4096;
/// Generations of one chain that are read. Each one is a stream that is open while a dump is put together again.
pub(crate) const MAX_GENERATIONS: u32 = 16;
/// The folder of what is the format's own. Engines do not take it out of an image.
pub(crate) const OWN_FOLDER: &str = "syncpoint";
