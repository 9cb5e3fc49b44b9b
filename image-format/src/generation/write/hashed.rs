//! Digests of pages that pass by.

use std::io::{self, Read, Write};

use crate::generation::{PAGE_LEN, Scratch, digests_of};

/// Passes pages on and keeps their digests.
pub(super) struct Hashed<'a, R> {
    inner: R,
    digests: &'a mut Scratch,
    /// What has passed of a page that came in pieces.
    begun: Vec<u8>,
}

impl<'a, R: Read> Hashed<'a, R> {
    pub fn new(inner: R, digests: &'a mut Scratch) -> Self {
        Self { inner, digests, begun: Vec::with_capacity(PAGE_LEN) }
    }

    fn add(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if !self.begun.is_empty() {
            let (more, rest) = bytes.split_at(bytes.len().min(PAGE_LEN - self.begun.len()));
            self.begun.extend_from_slice(more);
            if self.begun.len() < PAGE_LEN {
                return Ok(());
            }
            digests_of(&self.begun).try_for_each(|digest| self.digests.write_all(&digest))?;
            self.begun.clear();
            bytes = rest;
        }
        digests_of(bytes).try_for_each(|digest| self.digests.write_all(&digest))?;
        self.begun.extend_from_slice(bytes.chunks_exact(PAGE_LEN).remainder());
        Ok(())
    }
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.add(&buf[..read])?;
        Ok(read)
    }
}
