//! What came of a stream, and how it is put beside the rest of its dump.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use super::PageImage;
use super::keep::KeptImage;
use super::spool::Spool;
use crate::archive::{Entry, EntryKind, EntryName};
use crate::generation::{Base, PAGE, RECORD, Scratch, Sources};

/// The memory of one dump as it came in a stream: pagemaps, and the pages that are not in the base.
#[derive(Debug)]
pub struct Received {
    pub(super) base: Option<Arc<Base>>,
    /// In the order in which they were opened.
    pub(super) images: Vec<ReceivedImage>,
    pub(super) spool: Spool,
    /// With a base: digests of all pages.
    pub(super) digests: Scratch,
    /// With a base: where each page is, in the records of a table of pages.
    pub(super) sources: Scratch,
    pub(super) notes: Vec<String>,
}

/// One pagemap and its pages.
#[derive(Debug)]
pub(crate) struct ReceivedImage {
    pub image: PageImage,
    /// The number in the name of its file of pages.
    pub pages_id: u32,
    /// As CRIU would have written it.
    pub pagemap: Vec<u8>,
    pub pages: u64,
    pub(super) kept: KeptImage,
}

/// Why a dump and a stream of pages are not put together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceivedError {
    /// The dump has what came in the stream.
    #[error("entry {entry}: the dump has pages of its own, and others came in a stream")]
    OwnPages {
        /// The file.
        entry: EntryName,
    },
    /// The stream lacks the memory of a process.
    #[error("entry {entry}: the stream of pages has no {image}")]
    Missing {
        /// The file that says that there is such a process.
        entry: EntryName,
        /// What should have been opened.
        image: PageImage,
    },
    /// The stream has memory of a process that the dump lacks.
    #[error("the stream of pages has {image}, and the dump has no such process")]
    Foreign {
        /// What was opened.
        image: PageImage,
    },
    /// Pages that are in a base were left out of the spool, and the dump does not go over that base.
    #[error("the pages were compared with the image {base} as they came, and cannot be packed without it: {reason}")]
    NotOverBase {
        /// The image, shortened.
        base: String,
        /// Why not.
        reason: String,
    },
}

impl Received {
    /// Pages of all processes and shared memory.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.images.iter().map(|image| image.pages).sum()
    }

    /// Pages that are not in the base: all of them if there is none.
    #[must_use]
    pub fn changed(&self) -> u64 {
        self.images.iter().map(|image| image.kept.spooled).sum()
    }

    /// Bytes of pages in memory and in the spool's file.
    #[must_use]
    pub fn spooled_bytes(&self) -> u64 {
        self.spool.len()
    }

    /// The image with which the pages were compared.
    #[must_use]
    pub fn base(&self) -> Option<&Arc<Base>> {
        self.base.as_ref()
    }

    /// What a person may want to know, such as why there is no use of a base.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Writes pagemaps and pages into the folder of CRIU's other images, where CRIU's own page server would have written them, for
    /// their owner alone. Pages that are in a base are not here: it has to have been received without one.
    ///
    /// # Errors
    /// A file that is there already or cannot be written; pages in a base.
    pub fn save(&self, folder: &Path) -> io::Result<()> {
        if self.base.is_some() {
            return Err(io::Error::other("the pages that are in a base are not here"));
        }
        self.images.iter().try_for_each(|image| {
            save(&folder.join(image.image.to_string()), &mut &image.pagemap[..])?;
            save(&folder.join(format!("pages-{}.img", image.pages_id)), &mut self.content(image))
        })
    }

    /// An image's pages, if all of them are here.
    pub(crate) fn content(&self, image: &ReceivedImage) -> impl Read {
        self.spool.reader(image.kept.spool_at, image.kept.spooled * PAGE)
    }

    /// Pages that lie in the spool, from a place in it on.
    pub(crate) fn spooled(&self, at: u64, bytes: u64) -> impl Read {
        self.spool.reader(at, bytes)
    }

    /// The digests of an image's pages, if there is a base.
    pub(crate) fn digests(&self, image: &ReceivedImage) -> impl Read {
        self.digests.reader(image.kept.digests_at, image.pages * RECORD)
    }

    /// Where the pages of an image are, if there is a base.
    pub(crate) fn sources(&self, image: &ReceivedImage) -> Sources<&Scratch> {
        Sources::new(&self.sources, image.kept.sources_at, image.kept.sources)
    }

    pub(crate) fn not_over_base(&self, base: &Base, reason: impl Into<String>) -> ReceivedError {
        ReceivedError::NotOverBase { base: base.image().short(), reason: reason.into() }
    }
}

/// Writes a file that was not there.
pub(crate) fn save(path: &Path, content: &mut dyn Read) -> io::Result<()> {
    let mut write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        io::copy(content, &mut file)?;
        file.sync_all()
    };
    write().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

impl ReceivedImage {
    /// Where its pages begin in the spool.
    pub fn spool_at(&self) -> u64 {
        self.kept.spool_at
    }

    /// Whether all of its pages are in the spool.
    pub fn is_whole(&self) -> bool {
        self.kept.spooled == self.pages
    }
}

/// Puts the files that a stream was instead of back where CRIU would have written them.
#[derive(Debug)]
pub(crate) struct Placing<'a> {
    received: &'a Received,
    /// By name, as archives and folders have them; the next one is the last.
    files: Vec<(String, ReceivedFile<'a>)>,
    /// Permissions and owner of CRIU's files in this dump.
    like: Option<Entry>,
    /// Processes that have memory (`mm-ID.img`).
    with_memory: BTreeSet<u32>,
}

/// A file that was not written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ReceivedFile<'a> {
    Pagemap(&'a ReceivedImage),
    Pages(&'a ReceivedImage),
}

impl<'a> Placing<'a> {
    pub fn new(received: &'a Received) -> Self {
        let files = received.images.iter().flat_map(|image| {
            [
                (format!("checkpoint/{}", image.image), ReceivedFile::Pagemap(image)),
                (format!("checkpoint/pages-{}.img", image.pages_id), ReceivedFile::Pages(image)),
            ]
        });
        let mut files: Vec<_> = files.collect();
        files.sort_by(|(a, _), (b, _)| b.cmp(a));
        Self { received, files, like: None, with_memory: BTreeSet::new() }
    }

    pub fn received(&self) -> &'a Received {
        self.received
    }

    /// Refuses an entry that came in the stream, whichever of them is there first.
    pub fn refuse_own(&self, name: &[u8]) -> Result<(), ReceivedError> {
        let mut components = name.split(|byte| *byte == b'/').filter(|component| !matches!(*component, b"" | b"."));
        let (folder, file) = (components.next(), components.next().unwrap_or_default());
        let own = file.starts_with(b"pagemap-") || file.starts_with(b"pages-");
        if folder == Some(b"checkpoint") && own && file.ends_with(b".img") && components.next().is_none() {
            return Err(ReceivedError::OwnPages { entry: EntryName::new(name) });
        }
        Ok(())
    }

    /// Looks at an entry of the dump.
    pub fn saw(&mut self, entry: &Entry) {
        let image = entry.name.strip_prefix(b"checkpoint/").filter(|file| file.ends_with(b".img"));
        let Some(file) = image.and_then(|file| str::from_utf8(file).ok()) else {
            return;
        };
        if file == "inventory.img" {
            self.like = Some(entry.clone());
        }
        let process = file.strip_prefix("mm-").and_then(|rest| rest.strip_suffix(".img")?.parse::<u32>().ok());
        self.with_memory.extend(process);
    }

    /// The next file, if its place is before this name: where a sorted dump would have it.
    pub fn next_before(&mut self, name: &[u8]) -> Option<(Entry, ReceivedFile<'a>)> {
        self.files.last().filter(|(file, _)| self.like.is_some() && file.as_bytes() < name)?;
        self.next_file()
    }

    /// The next file.
    pub fn next_file(&mut self) -> Option<(Entry, ReceivedFile<'a>)> {
        let (name, file) = self.files.pop()?;
        let size = match file {
            ReceivedFile::Pagemap(image) => image.pagemap.len() as u64,
            ReceivedFile::Pages(image) => image.pages * PAGE,
        };
        let kind = EntryKind::File { size };
        let like = self.like.clone().unwrap_or_else(|| Entry::plain("", kind.clone()));
        Some((Entry { name: name.into_bytes(), kind, ..like }, file))
    }

    /// Checks that stream and dump were of one another. Of processes that the dump does not have, if they are known, anything may
    /// lie there: podman exports what an earlier checkpoint left behind.
    pub fn finish(&self, processes: &[u32]) -> Result<(), ReceivedError> {
        let tasks = self.received.images.iter().filter_map(|image| match image.image {
            PageImage::Task(process) => Some(process),
            PageImage::Shmem(_) => None,
        });
        let mut tasks: BTreeSet<u64> = tasks.collect();
        for process in &self.with_memory {
            let is_there = tasks.remove(&u64::from(*process));
            if !is_there && (processes.is_empty() || processes.contains(process)) {
                let entry = EntryName::new(format!("checkpoint/mm-{process}.img").as_bytes());
                return Err(ReceivedError::Missing { entry, image: PageImage::Task((*process).into()) });
            }
        }
        match tasks.first() {
            Some(process) => Err(ReceivedError::Foreign { image: PageImage::Task(*process) }),
            None => Ok(()),
        }
    }
}
