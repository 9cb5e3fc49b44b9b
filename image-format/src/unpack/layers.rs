//! Walks through the layers of an image: fetched, decompressed, hashed, checked.

use std::io::{self, Read};
use std::path::Path;
use std::vec;

use super::UnpackError;
use crate::archive::{Ahead, ArchiveError, ArchiveReader, Decoder, Entries, Entry, EntryKind, Guard};
use crate::dump::{RecognizeError, Recognizer};
use crate::generation::{AddError, Tables};
use crate::image::{CheckpointImage, LayerRef};
use crate::{BlobSource, Digest, Document, LayerContent, Limits, timestamp};

/// The layers of one image, one after the other. Nothing that came out of one may be relied on before
/// [`Layers::next_layer`] or [`Layers::finish`] has returned without an error after it.
pub(crate) struct Layers<'a> {
    image: Digest,
    blobs: &'a dyn BlobSource,
    limits: Limits,
    created: u64,
    architecture: String,
    rest: vec::IntoIter<(LayerRef, Digest)>,
    current: Option<Current>,
    guard: Guard,
    recognizer: Recognizer,
}

/// One layer that is being read.
pub(super) struct Current {
    image: Digest,
    layer: Digest,
    diff_id: Digest,
    content: Option<LayerContent>,
    pub reader: ArchiveReader<Ahead>,
}

impl Current {
    pub fn open(
        image: Digest,
        (layer, diff_id): (LayerRef, Digest),
        blobs: &dyn BlobSource,
        limits: &Limits,
    ) -> Result<Self, UnpackError> {
        let digest = layer.descriptor.digest;
        let fetch = |source| UnpackError::FetchLayer { image, layer: digest, source };
        let blob = blobs.open(&layer.descriptor).map_err(fetch)?;
        let plain = Decoder::new(blob, layer.compression, limits).map_err(fetch)?;
        let reader = ArchiveReader::new(Ahead::start(plain).map_err(fetch)?, limits);
        Ok(Self { image, layer: digest, diff_id, content: layer.content, reader })
    }

    /// The next entry, not looked at by anybody.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        self.reader.next_entry().map_err(|source| self.failed(source))
    }

    pub fn failed(&self, source: ArchiveError) -> UnpackError {
        UnpackError::Layer { image: self.image, layer: self.layer, source }
    }

    /// Reads what is left, and checks that the layer is what the config says.
    pub fn close(mut self) -> Result<(), UnpackError> {
        while self.next_entry()?.is_some() {}
        let (image, layer) = (self.image, self.layer);
        match self.reader.into_inner().digest() {
            Some(found) if found == self.diff_id => Ok(()),
            Some(found) => Err(UnpackError::DiffId { image, layer, found }),
            None => Err(UnpackError::Layer { image, layer, source: ArchiveError::Truncated }),
        }
    }
}

impl<'a> Layers<'a> {
    /// Fetches the config, which says what the layers must unpack to.
    pub fn open(image: &CheckpointImage, blobs: &'a dyn BlobSource, limits: &Limits) -> Result<Self, UnpackError> {
        let digest = image.manifest().digest;
        let fetch = |source| UnpackError::FetchConfig { image: digest, source };
        let mut bytes = Vec::new();
        let config = blobs.open(image.config()).map_err(fetch)?;
        config.take(limits.document_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(fetch)?;
        let document = Document::new(image.config().media_type.clone(), bytes);
        let config = image.parse_config(&document).map_err(|source| UnpackError::Config { image: digest, source })?;
        let layers: Vec<_> = image.layers().iter().cloned().zip(config.diff_ids).collect();
        Ok(Self {
            image: digest,
            blobs,
            limits: limits.clone(),
            architecture: config.architecture,
            created: config.created.as_deref().and_then(timestamp::rfc3339_seconds).unwrap_or(0),
            rest: layers.into_iter(),
            current: None,
            guard: Guard::new(limits),
            recognizer: Recognizer::default(),
        })
    }

    /// When the image was made, in seconds since 1970; 0 if it does not say.
    pub fn created(&self) -> u64 {
        self.created
    }

    /// The machine, as the config names it.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Takes the links of the chain of generations out, with the digests of their plain contents.
    pub fn take_links(&mut self) -> Vec<(LayerRef, Digest)> {
        self.take(|layer| layer.link.is_some())
    }

    /// Reads the layer of digests, and takes it out.
    pub fn read_tables(&mut self, generations: u32, scratch: &Path) -> Result<Tables, UnpackError> {
        let mut read = Tables::new(generations, scratch);
        for found in self.take(|layer| layer.content == Some(LayerContent::Digests)) {
            let image = self.image;
            let digest = found.0.descriptor.digest;
            let mut current = Current::open(image, found, self.blobs, &self.limits)?;
            while let Some(mut entry) = current.next_entry()? {
                if !self.guard.admit(&mut entry).map_err(|source| current.failed(source))? {
                    continue;
                }
                read.add(&entry, &mut current.reader).map_err(|error| match error {
                    AddError::Content(error) => current.failed(ArchiveError::read(error)),
                    AddError::Table(source) => UnpackError::Table { image, layer: digest, source },
                })?;
            }
            current.close()?;
            read.finish().map_err(|source| UnpackError::Table { image, layer: digest, source })?;
        }
        Ok(read)
    }

    /// Leaves out the layers that say nothing about the dump.
    pub fn keep_state(&mut self) {
        self.take(|layer| !layer.may_hold_state());
    }

    /// Leaves out the layers that hold no files of the container.
    pub fn keep_files(&mut self) {
        self.take(|layer| {
            layer.content.is_some_and(|content| !matches!(content, LayerContent::Files | LayerContent::Whole))
        });
    }

    fn take(&mut self, wanted: impl Fn(&LayerRef) -> bool) -> Vec<(LayerRef, Digest)> {
        let (taken, rest) = self.rest.by_ref().partition::<Vec<_>, _>(|(layer, _)| wanted(layer));
        self.rest = rest.into_iter();
        taken
    }

    /// The next layer, after the one before was read to its end and found to be what the config says.
    pub fn next_layer(&mut self) -> Result<Option<Layer<'_, 'a>>, UnpackError> {
        self.close()?;
        let Some((layer, diff_id)) = self.rest.next() else {
            return Ok(None);
        };
        self.current = Some(Current::open(self.image, (layer, diff_id), self.blobs, &self.limits)?);
        Ok(Some(Layer(self)))
    }

    /// Checks the last layer, and that together they hold a dump.
    pub fn finish(mut self) -> Result<(), UnpackError> {
        self.close()?;
        match self.recognizer.has_inventory() {
            true => Ok(()),
            false => Err(UnpackError::NotADump { image: self.image, source: RecognizeError::NoInventory }),
        }
    }

    fn close(&mut self) -> Result<(), UnpackError> {
        self.current.take().map_or(Ok(()), Current::close)
    }
}

/// The layer that is being read.
pub(crate) struct Layer<'l, 'a>(&'l mut Layers<'a>);

impl Layer<'_, '_> {
    pub fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        let Some(current) = &mut self.0.current else {
            return Ok(None);
        };
        let (image, layer) = (self.0.image, current.layer);
        let failed = |source| UnpackError::Layer { image, layer, source };
        while let Some(mut entry) = current.reader.next_entry().map_err(failed)? {
            // Folders in a layer of pages are there for engines; the dump's own are in the layer of the state.
            if current.content == Some(LayerContent::Pages) && entry.kind == EntryKind::Directory {
                continue;
            }
            if self.0.guard.admit(&mut entry).map_err(failed)? {
                self.0.recognizer.saw(&entry);
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// Reads up to that many bytes of the entry.
    pub fn read_head(&mut self, bytes: u64) -> Result<Vec<u8>, UnpackError> {
        let mut head = Vec::new();
        self.take(bytes).read_to_end(&mut head).map_err(|error| self.failed(error))?;
        Ok(head)
    }

    /// Hands on that many bytes of the entry, in pieces as large as the buffer.
    pub fn copy(
        &mut self,
        mut left: u64,
        buf: &mut [u8],
        mut to: impl FnMut(&[u8]) -> Result<(), UnpackError>,
    ) -> Result<(), UnpackError> {
        while left > 0 {
            let part = left.min(buf.len() as u64) as usize;
            let read = self.read(&mut buf[..part]).map_err(|error| self.failed(error))?;
            if read == 0 {
                return Err(self.failed(io::ErrorKind::UnexpectedEof.into()));
            }
            to(&buf[..read])?;
            left -= read as u64;
        }
        Ok(())
    }

    pub fn failed(&self, error: io::Error) -> UnpackError {
        let image = self.0.image;
        let layer = self.0.current.as_ref().map_or(image, |current| current.layer);
        UnpackError::Layer { image, layer, source: ArchiveError::read(error) }
    }
}

impl Read for Layer<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.0.current {
            Some(current) => current.reader.read(buf),
            None => Ok(0),
        }
    }
}
