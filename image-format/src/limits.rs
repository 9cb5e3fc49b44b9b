//! How much of anything a reader takes from input that it has no reason to trust.

/// Bounds for reading dumps, layers and documents. Every one of them is named in the error that it causes.
///
/// The defaults are far above what real dumps hold and keep memory constant whatever comes in. Sizes of single files are
/// not bounded, since they stream; their sum is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Plain bytes of all entries of a dump or image together; what stops a decompression bomb.
    pub total_bytes: u64,
    /// Entries of a dump or image, directories that are only implied by a name included.
    pub entries: u64,
    /// Bytes of an entry's name or of a link's target.
    pub name_bytes: usize,
    /// Components of an entry's name.
    pub name_depth: usize,
    /// Bytes of everything that describes one entry of an archive: headers, long names, extended attributes, sparse maps.
    pub header_bytes: u64,
    /// Bytes of one manifest, index or config.
    pub document_bytes: u64,
    /// Base-2 logarithm of the largest zstd window. A reader holds as much of it in memory as the frame has plain bytes.
    pub zstd_window_log: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            total_bytes: 1 << 42,
            entries: 200_000,
            name_bytes: 4096,
            name_depth: 64,
            header_bytes: 1 << 20,
            document_bytes: 4 << 20,
            zstd_window_log: 29,
        }
    }
}
