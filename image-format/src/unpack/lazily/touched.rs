//! Pages that tasks asked for first, as they are kept beside an image: a zstd stream of
//!
//! ```text
//! "synctou" and the version 1                   all numbers have the least significant byte first
//! runs: u32 process, u32 pages, u64 address     16 bytes, then the pages
//! ```
//!
//! They are a hint. A page counts if it may follow and its digest is the table's; whatever else is there is passed over.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use crate::generation::{PAGE, PAGE_LEN};

const MAGIC: &[u8; 8] = b"synctou\x01";
const HEAD: usize = 16;
/// Pages that are read.
const LIMIT: u64 = 1 << 14;
/// Base-2 logarithm of the largest window.
const WINDOW_LOG: u32 = 23;
const LEVEL: i32 = 1;

/// Makes the stream of some pages, by process and address.
///
/// # Errors
/// None but those of memory.
pub fn touched_pages(pages: &BTreeMap<(u32, u64), Vec<u8>>) -> io::Result<Vec<u8>> {
    let mut out = zstd::Encoder::new(Vec::new(), LEVEL)?;
    out.write_all(MAGIC)?;
    let mut pages = pages.iter().filter(|(_, page)| page.len() == PAGE_LEN).peekable();
    while let Some((&(pid, address), page)) = pages.next() {
        let mut run = vec![page];
        while let Some((_, page)) =
            pages.next_if(|((its, at), _)| *its == pid && *at == address + run.len() as u64 * PAGE)
        {
            run.push(page);
        }
        out.write_all(&pid.to_le_bytes())?;
        out.write_all(&(run.len() as u32).to_le_bytes())?;
        out.write_all(&address.to_le_bytes())?;
        run.into_iter().try_for_each(|page| out.write_all(page))?;
    }
    out.finish()
}

/// Gives each page: process, address, bytes. What comes after something that makes no sense is left.
pub(super) fn read(stream: &[u8], mut to: impl FnMut(u32, u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut from = zstd::Decoder::new(stream)?;
    from.window_log_max(WINDOW_LOG)?;
    let mut magic = [0; MAGIC.len()];
    from.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let (mut head, mut page) = ([0; HEAD], vec![0; PAGE_LEN]);
    let mut left = LIMIT;
    while left > 0 && crate::archive::read_full(&mut from, &mut head)? == HEAD {
        let [a, b, c, d, e, f, g, h, address @ ..] = head;
        let (pid, pages) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let address = u64::from_le_bytes(address);
        let pages = u64::from(pages).min(left);
        left -= pages.max(1);
        for number in 0..pages {
            from.read_exact(&mut page)?;
            to(pid, address.saturating_add(number * PAGE), &page)?;
        }
    }
    Ok(())
}
