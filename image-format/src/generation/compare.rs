//! How the memory of two images differs, by their tables of pages. No page is fetched.

use std::io;

use super::PAGE;
use super::base::Base;
use super::table::Known;

/// Pages of one image against those of another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageChanges {
    /// At the same address of the same process or shared memory, with the same content.
    pub same: u64,
    /// There, with other content.
    pub changed: u64,
    /// Only in the newer one.
    pub added: u64,
    /// Only in the older one.
    pub removed: u64,
}

impl Base {
    /// How the pages of `newer` differ from the pages of this image.
    ///
    /// # Errors
    /// The file in which the tables are kept cannot be read.
    pub fn compare(&self, newer: &Self) -> io::Result<PageChanges> {
        let mut changes = PageChanges::default();
        for (name, table) in newer.tables.named() {
            let mut older = match self.tables.get(name) {
                Some(older) => Some(Known::new(&self.tables, older)?),
                None => None,
            };
            let mut digests = newer.tables.digests(table);
            for run in newer.tables.pagemap(table)?.runs {
                for page in 0..run.pages {
                    let digest = digests.next()?;
                    let known = match &mut older {
                        Some(older) => older.at(run.address + page * PAGE)?,
                        None => None,
                    };
                    match known {
                        None => changes.added += 1,
                        Some((known, ..)) if Some(known) == digest => changes.same += 1,
                        Some(_) => changes.changed += 1,
                    }
                }
            }
        }
        changes.removed = self.tables.pages().saturating_sub(changes.same + changes.changed);
        Ok(changes)
    }
}
