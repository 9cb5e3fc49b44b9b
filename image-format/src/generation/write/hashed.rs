//! Digests of pages that pass by.

use std::io::{self, Read, Write};

use super::worth::Worth;
use crate::generation::{PAGE_LEN, Scratch, digests_of};

/// Passes pages on, keeps their digests, and looks at what they are worth.
pub(super) struct Hashed<'a, R> {
    inner: R,
    digests: &'a mut Scratch,
    worth: Option<&'a mut Worth>,
    /// What has passed of a page that came in pieces.
    begun: Vec<u8>,
}

impl<'a, R: Read> Hashed<'a, R> {
    pub fn new(inner: R, digests: &'a mut Scratch, worth: Option<&'a mut Worth>) -> Self {
        Self { inner, digests, worth, begun: Vec::with_capacity(PAGE_LEN) }
    }

    fn add(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if !self.begun.is_empty() {
            let (more, rest) = bytes.split_at(bytes.len().min(PAGE_LEN - self.begun.len()));
            self.begun.extend_from_slice(more);
            if self.begun.len() < PAGE_LEN {
                return Ok(());
            }
            let page = std::mem::take(&mut self.begun);
            self.add_pages(&page)?;
            self.begun = page;
            self.begun.clear();
            bytes = rest;
        }
        self.add_pages(bytes)?;
        self.begun.extend_from_slice(bytes.chunks_exact(PAGE_LEN).remainder());
        Ok(())
    }

    fn add_pages(&mut self, pages: &[u8]) -> io::Result<()> {
        digests_of(pages).try_for_each(|digest| self.digests.write_all(&digest))?;
        match &mut self.worth {
            Some(worth) => pages.chunks_exact(PAGE_LEN).try_for_each(|page| worth.add(page)),
            None => Ok(()),
        }
    }
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.add(&buf[..read])?;
        Ok(read)
    }
}
