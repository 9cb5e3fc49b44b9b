//! Reads tar archives: ustar, GNU (long names, sparse files) and PAX, one entry at a time, in constant memory.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};
use std::ops::Range;
use std::str;

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::header::{DETOUR, REMOVAL, XATTR_RECORD, padding};
use super::sparse::{Map, Run};
use super::{ArchiveError, CHUNK, Entries, Entry, EntryKind, EntryName, TreeEntry, TreeKind, read_full};
use crate::Limits;

const BLOCK: usize = 512;
/// Where a header has the size of what follows it.
const SIZE: Range<usize> = 124..136;

/// Gives the entries of an archive, and insists on its end: two empty blocks, then nothing but padding.
#[derive(Debug)]
pub(crate) struct ArchiveReader<R> {
    input: R,
    header_bytes: u64,
    /// What may still be read of the headers of the next entry.
    allowance: u64,
    /// What is left of the current entry's content.
    runs: VecDeque<Run>,
    /// Zeros that follow it.
    padding: u64,
    done: bool,
    comments: bool,
}

/// What extension headers say about the entry that follows them.
#[derive(Debug, Default, PartialEq)]
struct Extensions {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    pax: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl<R: Read> ArchiveReader<R> {
    pub fn new(input: R, limits: &Limits) -> Self {
        let header_bytes = limits.header_bytes;
        Self { input, header_bytes, allowance: 0, runs: VecDeque::new(), padding: 0, done: false, comments: false }
    }

    /// Passes over global headers that hold a comment alone. Programs disagree about other ones.
    pub fn with_comments(self) -> Self {
        Self { comments: true, ..self }
    }

    /// The input, once the last entry was given: read to its end.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next entry of an archive of a container's files; what was not read of the one before is skipped.
    pub fn next_tree_entry(&mut self) -> Result<Option<TreeEntry>, ArchiveError> {
        if self.done {
            return Ok(None);
        }
        self.skip_content()?;
        self.read_entry()
    }

    fn read_entry(&mut self) -> Result<Option<TreeEntry>, ArchiveError> {
        self.allowance = self.header_bytes;
        let mut extensions = Extensions::default();
        loop {
            let block = self.read_block()?;
            if block == [0; BLOCK] {
                if extensions != Extensions::default() {
                    return Err(malformed("headers that describe no entry"));
                }
                self.read_end()?;
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            check_sum(header)?;
            match header.entry_type() {
                EntryType::GNULongName => set_once(&mut extensions.name, self.read_long_name(header)?)?,
                EntryType::GNULongLink => set_once(&mut extensions.target, self.read_long_name(header)?)?,
                EntryType::XHeader => {
                    let records = parse_pax(&self.read_extension(header)?)?;
                    set_once(&mut extensions.pax, records)?;
                }
                EntryType::XGlobalHeader if self.comments && extensions == Extensions::default() => {
                    let records = parse_pax(&self.read_extension(header)?)?;
                    if records.keys().any(|key| key != b"comment") {
                        return Err(malformed("a global header that says more than a comment"));
                    }
                    let name = header.path_bytes().into_owned();
                    let ours = name.strip_prefix(b"./").is_some_and(|name| name.starts_with(DETOUR));
                    if ours && records.get(&b"comment"[..]).is_some_and(|comment| comment == REMOVAL) {
                        let (kind, xattrs) = (TreeKind::Removal, BTreeMap::new());
                        let entry = TreeEntry { name, kind, mode: 0, uid: 0, gid: 0, mtime: 0, mtime_nanos: 0, xattrs };
                        return Ok(Some(entry));
                    }
                }
                _ => return self.begin(header, extensions).map(Some),
            }
        }
    }

    /// Turns a header into an entry and sets up the reading of its content.
    fn begin(&mut self, header: &Header, mut extensions: Extensions) -> Result<TreeEntry, ArchiveError> {
        let mut pax = extensions.pax.take().unwrap_or_default();
        let mut name = overridden(extensions.name, pax.remove(&b"path"[..]), || header.path_bytes().into_owned())?;
        let target = || header.link_name_bytes().unwrap_or_default().into_owned();
        let target = overridden(extensions.target, pax.remove(&b"linkpath"[..]), target)?;
        let number = |key: &[u8], field: Range<usize>, read: fn(&Header) -> io::Result<u64>| match pax.get(key) {
            Some(text) => parse_decimal(text),
            None => number(header, field, read),
        };
        let stored = number(b"size", SIZE, Header::entry_size)?;
        let uid = number(b"uid", 108..116, Header::uid)?;
        let gid = number(b"gid", 116..124, Header::gid)?;
        let (mtime, mtime_nanos) = match pax.get(&b"mtime"[..]) {
            Some(text) => parse_time(text).unwrap_or_default(),
            None => (header.mtime().ok().and_then(|seconds| seconds.try_into().ok()).unwrap_or(0), 0),
        };
        let mode = number(b"mode", 100..108, |header| header.mode().map(u64::from))? as u32 & 0o7777;

        self.runs = VecDeque::from([Run { hole: 0, stored }]);
        self.padding = padding(stored).len() as u64;
        let mut size = stored;
        if header.entry_type() == EntryType::GNUSparse {
            size = self.read_gnu_map(header, stored)?;
        } else if pax.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
            (name, size) = self.read_pax_map(&pax, stored)?;
        }
        let shown = || EntryName::new(&name);
        let device = || {
            let major: fn(&Header) -> _ = |header| Ok(header.device_major()?.unwrap_or(0).into());
            let minor: fn(&Header) -> _ = |header| Ok(header.device_minor()?.unwrap_or(0).into());
            let part = |part: u64| u32::try_from(part).map_err(|_| malformed("a device's number"));
            Ok::<_, ArchiveError>((
                part(number(b"SCHILY.devmajor", 329..337, major)?)?,
                part(number(b"SCHILY.devminor", 337..345, minor)?)?,
            ))
        };
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => TreeKind::File { size },
            EntryType::Directory => TreeKind::Directory,
            EntryType::Symlink => TreeKind::Symlink { target },
            EntryType::Link => TreeKind::HardLink { target },
            EntryType::Char => device().map(|(major, minor)| TreeKind::CharDevice { major, minor })?,
            EntryType::Block => device().map(|(major, minor)| TreeKind::BlockDevice { major, minor })?,
            EntryType::Fifo => TreeKind::Fifo,
            other => return Err(ArchiveError::UnsupportedType { entry: shown(), kind: in_words(other) }),
        };
        if stored > 0 && !matches!(kind, TreeKind::File { .. }) {
            return Err(ArchiveError::UnexpectedContent { entry: shown() });
        }
        let xattrs = pax
            .into_iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(XATTR_RECORD)?.to_vec(), value)))
            .collect();
        Ok(TreeEntry { name, kind, mode, uid, gid, mtime, mtime_nanos, xattrs })
    }

    /// The map of an old GNU sparse file: some of it in its header, the rest in blocks that follow.
    fn read_gnu_map(&mut self, header: &Header, stored: u64) -> Result<u64, ArchiveError> {
        let gnu = header.as_gnu().ok_or_else(|| malformed("a sparse file without a GNU header"))?;
        let size = gnu.real_size().map_err(|_| malformed("a sparse file without a size"))?;
        let mut map = Map::default();
        map.add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            block.as_mut_bytes().copy_from_slice(&self.read_block()?);
            map.add(block.sparse())?;
            more = block.is_extended();
        }
        self.runs = map.finish(size, stored)?;
        Ok(size)
    }

    /// The map of a PAX sparse file, format 1.0: decimal lines in front of the content, filled up to a block.
    fn read_pax_map(&mut self, pax: &BTreeMap<Vec<u8>, Vec<u8>>, stored: u64) -> Result<(Vec<u8>, u64), ArchiveError> {
        let field = |key: &str| pax.get(key.as_bytes()).map(Vec::as_slice);
        let version = (field("GNU.sparse.major"), field("GNU.sparse.minor"));
        let (Some(name), Some(size), (Some(b"1"), Some(b"0"))) =
            (field("GNU.sparse.name"), field("GNU.sparse.realsize"), version)
        else {
            return Err(malformed("a sparse file in a form other than PAX 1.0"));
        };
        let size = parse_decimal(size)?;
        let mut lines = Vec::new();
        let mut blocks = 0;
        let mut wanted = 1;
        let mut line = Vec::new();
        while lines.len() < wanted {
            for byte in self.read_block()? {
                if byte != b'\n' {
                    line.push(byte);
                } else if lines.len() < wanted {
                    lines.push(parse_decimal(&line)?);
                    line.clear();
                    let count = usize::try_from(lines[0]).ok().and_then(|count| count.checked_mul(2));
                    wanted = count.and_then(|count| count.checked_add(1)).ok_or_else(|| malformed("a sparse map"))?;
                }
            }
            blocks += BLOCK as u64;
        }
        let stored = stored.checked_sub(blocks).ok_or_else(|| malformed("a sparse map larger than its file"))?;
        let mut map = Map::default();
        for pair in lines[1..].chunks_exact(2) {
            map.push(pair[0], pair[1])?;
        }
        self.runs = map.finish(size, stored)?;
        Ok((name.to_vec(), size))
    }

    fn read_block(&mut self) -> Result<[u8; BLOCK], ArchiveError> {
        self.spend(BLOCK as u64)?;
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block).map_err(ArchiveError::read)?;
        Ok(block)
    }

    /// The content of an extension header.
    fn read_extension(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let size = number(header, SIZE, Header::entry_size)?;
        let padded = size.checked_add(padding(size).len() as u64);
        let padded = padded.ok_or(ArchiveError::HeaderTooLarge { limit: self.header_bytes })?;
        self.spend(padded)?;
        let mut content = Vec::new();
        let read = (&mut self.input).take(padded).read_to_end(&mut content).map_err(ArchiveError::read)?;
        if (read as u64) < padded {
            return Err(ArchiveError::Truncated);
        }
        content.truncate(content.len() - padding(size).len());
        Ok(content)
    }

    fn read_long_name(&mut self, header: &Header) -> Result<Vec<u8>, ArchiveError> {
        let mut name = self.read_extension(header)?;
        if name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn spend(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        let limit = self.header_bytes;
        self.allowance = self.allowance.checked_sub(bytes).ok_or(ArchiveError::HeaderTooLarge { limit })?;
        Ok(())
    }

    /// After the first empty block: a second one and padding to some record size, all zeros, and the input's end.
    /// Reading to that end is also what checks the last bytes of a compressed input.
    fn read_end(&mut self) -> Result<(), ArchiveError> {
        self.done = true;
        let mut buf = [0; BLOCK];
        loop {
            let read = read_full(&mut self.input, &mut buf).map_err(ArchiveError::read)?;
            if read == 0 {
                return Ok(());
            }
            let spent = self.spend(read as u64);
            if spent.is_err() || buf[..read].iter().any(|byte| *byte != 0) {
                return Err(ArchiveError::TrailingData);
            }
        }
    }

    fn skip_content(&mut self) -> Result<(), ArchiveError> {
        let stored: u64 = self.runs.drain(..).map(|run| run.stored).sum();
        let mut left = stored + self.padding;
        self.padding = 0;
        let mut buf = vec![0; left.min(CHUNK as u64) as usize];
        while left > 0 {
            let part = left.min(buf.len() as u64);
            self.input.read_exact(&mut buf[..part as usize]).map_err(ArchiveError::read)?;
            left -= part;
        }
        Ok(())
    }
}

impl<R: Read> Entries for ArchiveReader<R> {
    fn next_entry(&mut self) -> Result<Option<Entry>, ArchiveError> {
        loop {
            match self.next_tree_entry()? {
                None => return Ok(None),
                // A comment to whoever reads a dump.
                Some(TreeEntry { kind: TreeKind::Removal, .. }) => {}
                Some(entry) => return plain(entry).map(Some),
            }
        }
    }
}

/// What dumps hold.
fn plain(entry: TreeEntry) -> Result<Entry, ArchiveError> {
    let TreeEntry { name, kind, mode, uid, gid, mtime, xattrs, .. } = entry;
    let kind = match kind {
        TreeKind::File { size } => EntryKind::File { size },
        TreeKind::Directory => EntryKind::Directory,
        TreeKind::Symlink { target } => EntryKind::Symlink { target },
        TreeKind::HardLink { target } => EntryKind::HardLink { target },
        TreeKind::CharDevice { .. } | TreeKind::BlockDevice { .. } => return Err(unsupported(&name, "device")),
        TreeKind::Fifo | TreeKind::Removal => return Err(unsupported(&name, "named pipe")),
    };
    Ok(Entry { name, kind, mode, uid, gid, mtime: mtime.try_into().unwrap_or(0), xattrs })
}

fn unsupported(name: &[u8], kind: &'static str) -> ArchiveError {
    ArchiveError::UnsupportedType { entry: EntryName::new(name), kind }
}

impl<R: Read> Read for ArchiveReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(run) = self.runs.front_mut() {
            let part = |left: u64| left.min(buf.len() as u64) as usize;
            if run.hole > 0 {
                let part = part(run.hole);
                buf[..part].fill(0);
                run.hole -= part as u64;
                return Ok(part);
            }
            if run.stored > 0 {
                let part = part(run.stored);
                let read = self.input.read(&mut buf[..part])?;
                if read == 0 && part > 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                run.stored -= read as u64;
                return Ok(read);
            }
            self.runs.pop_front();
        }
        Ok(0)
    }
}

/// `LENGTH KEY=VALUE\n` after each other. A value may hold anything, line ends too.
fn parse_pax(mut bytes: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, ArchiveError> {
    let bad = || malformed("an extended header that is none");
    let mut records = BTreeMap::new();
    while !bytes.is_empty() {
        let space = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or_else(bad)?;
        let len = usize::try_from(parse_decimal(&bytes[..space])?).map_err(|_| bad())?;
        let record = bytes.get(space + 1..len).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(bad)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        if records.insert(record[..equals].to_vec(), record[equals + 1..].to_vec()).is_some() {
            return Err(malformed("an extended header that says something twice"));
        }
        bytes = &bytes[len..];
    }
    Ok(records)
}

/// A number of a header; an empty field is 0, as GNU tar and Go have it.
fn number(header: &Header, field: Range<usize>, read: fn(&Header) -> io::Result<u64>) -> Result<u64, ArchiveError> {
    if header.as_bytes()[field].iter().all(|byte| matches!(byte, 0 | b' ')) {
        return Ok(0);
    }
    read(header).map_err(|_| malformed("a number is none"))
}

fn check_sum(header: &Header) -> Result<(), ArchiveError> {
    let bytes = header.as_bytes();
    let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum();
    match header.cksum() {
        Ok(expected) if expected == sum + 8 * u32::from(b' ') => Ok(()),
        _ => Err(malformed("a header with a wrong check sum")),
    }
}

/// Two headers of one kind for one entry: readers disagree about which one counts.
fn set_once<T>(slot: &mut Option<T>, value: T) -> Result<(), ArchiveError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(malformed("an entry that is described twice")),
    }
}

fn overridden(
    gnu: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
    plain: impl FnOnce() -> Vec<u8>,
) -> Result<Vec<u8>, ArchiveError> {
    match (gnu, pax) {
        (Some(_), Some(_)) => Err(malformed("an entry that is described twice")),
        (Some(name), None) | (None, Some(name)) => Ok(name),
        (None, None) => Ok(plain()),
    }
}

/// Seconds since 1970 and the nanoseconds on top of them, of a decimal fraction.
fn parse_time(text: &[u8]) -> Option<(i64, u32)> {
    let (is_before, text) = text.strip_prefix(b"-").map_or((false, text), |text| (true, text));
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(parse_decimal(parts.next()?).ok()?).ok()?;
    let mut digits = parts.next().unwrap_or_default().to_vec();
    digits.resize(9, b'0');
    let nanos = u32::try_from(parse_decimal(&digits).ok()?).ok()?;
    Some(match (is_before, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

fn parse_decimal(text: &[u8]) -> Result<u64, ArchiveError> {
    let digits = Some(text).filter(|text| !text.is_empty() && text.iter().all(u8::is_ascii_digit));
    let number = digits.and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
    number.ok_or_else(|| malformed("a number is none"))
}

pub(super) fn malformed(problem: &'static str) -> ArchiveError {
    ArchiveError::Malformed { problem }
}

fn in_words(kind: EntryType) -> &'static str {
    match kind {
        EntryType::Char => "character device",
        EntryType::Block => "block device",
        EntryType::Fifo => "named pipe",
        EntryType::XGlobalHeader => "header for all entries",
        _ => "type of its own",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::archive::{END, write_header};

    /// Entries and their content, by this reader.
    fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, ArchiveError> {
        let mut reader = ArchiveReader::new(bytes, &Limits::default());
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut content = Vec::new();
            reader.read_to_end(&mut content).map_err(ArchiveError::read)?;
            entries.push((entry, content));
        }
        Ok(entries)
    }

    fn entry(name: &[u8], kind: EntryKind) -> Entry {
        Entry { name: name.to_vec(), kind, mode: 0o4751, uid: 7, gid: 8, mtime: 9, xattrs: BTreeMap::new() }
    }

    #[test]
    fn what_is_written_is_read() {
        let long = [b'n'; 300];
        let mut odd = entry(&[&b"checkpoint/\xff\n="[..], &long].concat(), EntryKind::File { size: 3 });
        odd.uid = 1 << 33;
        odd.gid = 0o10_000_000;
        odd.xattrs.insert(b"security.capability".to_vec(), b"\x01\n\0\n12 a=b\n".to_vec());
        odd.xattrs.insert(b"user.empty".to_vec(), Vec::new());
        let entries = [
            entry(b"checkpoint", EntryKind::Directory),
            odd,
            entry(&long[..100], EntryKind::Symlink { target: long.to_vec() }),
            entry(&long[..101], EntryKind::HardLink { target: long[..100].to_vec() }),
            entry(b"empty", EntryKind::File { size: 0 }),
        ];
        let mut bytes = Vec::new();
        for entry in &entries {
            write_header(entry, entry.mtime, &mut bytes).unwrap();
            bytes.extend_from_slice(&b"abc"[..entry.size() as usize]);
            bytes.extend_from_slice(padding(entry.size()));
        }
        bytes.extend_from_slice(&END);

        let mut expected = entries.to_vec();
        expected[0].name.push(b'/');
        let read = read(&bytes).unwrap();
        assert_eq!(read.iter().map(|(entry, _)| entry.clone()).collect::<Vec<_>>(), expected);
        assert_eq!(read[1].1, b"abc");
        let tar: Vec<_> = tar::Archive::new(&bytes[..]).entries().unwrap().map(|entry| entry.unwrap().size()).collect();
        assert_eq!(tar, [0, 3, 0, 0, 0], "another reader");
    }

    #[test]
    fn sizes_over_eight_gigabytes_fit() {
        let huge = entry(b"pages", EntryKind::File { size: 1 << 40 });
        let mut bytes = Vec::new();
        write_header(&huge, 9, &mut bytes).unwrap();
        let mut reader = ArchiveReader::new(&bytes[..], &Limits::default());
        assert_eq!(reader.next_entry().unwrap(), Some(huge));
    }

    fn gnu_sparse(map: &[(u64, u64)], size: u64, stored: &[u8]) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNUSparse);
        header.set_path("sparse").unwrap();
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(stored.len() as u64);
        let (first, rest) = map.split_at(map.len().min(4));
        let gnu = header.as_gnu_mut().unwrap();
        gnu.set_real_size(size);
        gnu.set_is_extended(!rest.is_empty());
        for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(first) {
            slot.set_offset(*offset);
            slot.set_length(*length);
        }
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        let blocks = rest.chunks(21);
        let count = blocks.len();
        for (number, part) in blocks.enumerate() {
            let mut block = GnuExtSparseHeader::new();
            block.set_is_extended(number + 1 < count);
            for (slot, (offset, length)) in block.sparse_mut().iter_mut().zip(part) {
                slot.set_offset(*offset);
                slot.set_length(*length);
            }
            bytes.extend_from_slice(block.as_bytes());
        }
        bytes.extend_from_slice(stored);
        bytes.extend_from_slice(padding(stored.len() as u64));
        bytes.extend_from_slice(&END);
        bytes
    }

    #[test]
    fn sparse_files_are_files() {
        let stored: Vec<u8> = (0..30 * 512_u32).map(|n| n as u8 | 1).collect();
        let map: Vec<_> = (0..30).map(|n| (1000 + n * 5000, 512)).chain([(200_000, 0)]).collect();
        let bytes = gnu_sparse(&map, 200_000, &stored);
        let (entry, content) = read(&bytes).unwrap().remove(0);
        assert_eq!((entry.size(), content.len()), (200_000, 200_000));
        for (n, part) in stored.chunks(512).enumerate() {
            assert_eq!(&content[1000 + n * 5000..][..512], part);
        }
        assert_eq!(content.iter().filter(|byte| **byte != 0).count(), stored.len());
    }

    #[test]
    fn sparse_files_in_pax_form_are_files() {
        let map = b"2\n100\n3\n600\n2\n";
        let mut stored = map.to_vec();
        stored.resize(512, 0);
        stored.extend_from_slice(b"abcde");
        let mut builder = tar::Builder::new(Vec::new());
        let records = [
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "sparse"),
            ("GNU.sparse.realsize", "700"),
        ];
        builder.append_pax_extensions(records.map(|(key, value)| (key, value.as_bytes()))).unwrap();
        let mut header = Header::new_ustar();
        header.set_size(stored.len() as u64);
        header.set_mode(0o600);
        builder.append_data(&mut header, "GNUSparseFile.0/sparse", &stored[..]).unwrap();
        let (entry, content) = read(&builder.into_inner().unwrap()).unwrap().remove(0);
        assert_eq!((&entry.name[..], entry.size()), (&b"sparse"[..], 700));
        let mut expected = vec![0; 700];
        expected[100..103].copy_from_slice(b"abc");
        expected[600..602].copy_from_slice(b"de");
        assert_eq!(content, expected);
    }

    #[test]
    fn sparse_maps_that_lie_are_refused() {
        for (map, size) in [
            (vec![(1000, 512), (500, 512)], 4096),
            (vec![(0, 512), (1024, 512)], 1200),
            (vec![(0, 512)], 4096),
            (vec![(0, 512), (1024, 1024)], 4096),
            (vec![(u64::MAX, 512), (u64::MAX, 512)], u64::MAX),
        ] {
            let result = read(&gnu_sparse(&map, size, &[1; 1024]));
            assert!(matches!(result, Err(ArchiveError::Malformed { .. })), "{map:?}: {result:?}");
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        let mut bytes = Vec::new();
        let mut file = entry(&[b'n'; 120], EntryKind::File { size: 700 });
        file.xattrs.insert(b"user.a".to_vec(), b"b".to_vec());
        write_header(&file, 0, &mut bytes).unwrap();
        bytes.extend_from_slice(&[7; 1024]);
        // The second of the two blocks at the end may be missing, as other writers have it.
        bytes.extend_from_slice(&END[..BLOCK]);
        assert!(read(&bytes).is_ok());
        for cut in 0..bytes.len() {
            let result = read(&bytes[..cut]);
            assert!(matches!(result, Err(ArchiveError::Truncated)), "{cut}: {result:?}");
        }
    }

    #[test]
    fn nothing_but_zeros_follows_the_end() {
        let mut bytes = vec![0; 20 * BLOCK];
        assert!(read(&bytes).unwrap().is_empty());
        bytes.push(1);
        assert!(matches!(read(&bytes), Err(ArchiveError::TrailingData)));
        let endless = Limits::default().header_bytes as usize + BLOCK;
        assert!(matches!(read(&vec![0; endless]), Err(ArchiveError::TrailingData)));
    }

    #[test]
    fn content_that_nobody_reads_is_skipped() {
        let mut bytes = Vec::new();
        for name in [b"a", b"b"] {
            write_header(&entry(name, EntryKind::File { size: 1_000_000 }), 0, &mut bytes).unwrap();
            bytes.write_all(&vec![7; 1_000_000]).unwrap();
            bytes.extend_from_slice(padding(1_000_000));
        }
        bytes.extend_from_slice(&END);
        let mut reader = ArchiveReader::new(&bytes[..], &Limits::default());
        assert_eq!(reader.next_entry().unwrap().unwrap().name, b"a");
        reader.read_exact(&mut [0; 1000]).unwrap();
        assert_eq!(reader.next_entry().unwrap().unwrap().name, b"b");
        assert!(reader.next_entry().unwrap().is_none());
        assert!(reader.next_entry().unwrap().is_none());
    }
}
