//! Writes the headers of entries: ustar, with PAX records (POSIX.1-2001) for what does not fit.
//!
//! Equal entries give equal bytes. User and group names, access and change times are never written.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::{Entry, EntryKind};

const BLOCK: usize = 512;
/// What ends an archive.
pub(crate) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Bytes of zeros that follow a file's content.
pub(crate) fn padding(size: u64) -> &'static [u8] {
    let over = (size % BLOCK as u64) as usize;
    &END[..(BLOCK - over) % BLOCK]
}

/// Writes all headers of an entry, with a modification time in seconds since 1970.
pub(crate) fn write_header(entry: &Entry, mtime: u64, out: &mut impl Write) -> io::Result<()> {
    let kind = match &entry.kind {
        EntryKind::File { size } => TarKind::File { size: *size },
        EntryKind::HardLink { target } => TarKind::HardLink { target },
        EntryKind::Symlink { target } => TarKind::Symlink { target },
        EntryKind::Directory => TarKind::Directory,
    };
    let (mtime, mtime_nanos) = (i64::try_from(mtime).unwrap_or(i64::MAX), 0);
    let (name, mode, uid, gid, xattrs) = (&entry.name[..], entry.mode, entry.uid, entry.gid, &entry.xattrs);
    TarEntry { name, kind, mode, uid, gid, mtime, mtime_nanos, xattrs }.write(out)
}

/// Folders of archives begin with this that are there only while the archive is extracted: a detour of links.
pub(crate) const DETOUR: &[u8] = b".syncpoint-links";

/// The comment by which a removal is known to us.
pub(super) const REMOVAL: &[u8] = b"podman removes this";

/// Writes an entry that makes podman remove what was extracted under a name: a global header. podman (`containers/storage`,
/// `pkg/archive`) takes away what is there before it looks at an entry's kind, and then makes nothing of this kind. Other
/// programs read a comment, and leave what is there.
pub(crate) fn write_removal(name: &[u8], out: &mut impl Write) -> io::Result<()> {
    let mut header = Header::new(b'g', 0o644);
    let comment = [b"31 comment=", REMOVAL, b"\n"].concat();
    header.text(0..100, b"path", name);
    header.number(124..136, b"size", comment.len() as u64);
    header.write(out)?;
    out.write_all(&comment)?;
    out.write_all(padding(comment.len() as u64))
}

/// What the headers of one entry can say. More than an [`Entry`] holds: trees of containers have devices and pipes, dumps
/// have none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TarEntry<'a> {
    /// Without a closing `/`, which folders get here.
    pub name: &'a [u8],
    pub kind: TarKind<'a>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    /// What goes on top of them.
    pub mtime_nanos: u32,
    pub xattrs: &'a BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum TarKind<'a> {
    File {
        size: u64,
    },
    /// A file with holes (PAX format 1.0 of GNU): `stored` bytes follow, a map first (see [`sparse_map`](super::sparse_map)).
    Sparse {
        size: u64,
        stored: u64,
    },
    HardLink {
        target: &'a [u8],
    },
    Symlink {
        target: &'a [u8],
    },
    Directory,
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

impl TarEntry<'_> {
    /// Writes its headers; content and [`padding`] are the caller's.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut name = self.name.to_vec();
        let (kind, target, size, device) = match self.kind {
            TarKind::File { size } => (b'0', &[][..], size, (0, 0)),
            TarKind::Sparse { stored, .. } => (b'0', &[][..], stored, (0, 0)),
            TarKind::HardLink { target } => (b'1', target, 0, (0, 0)),
            TarKind::Symlink { target } => (b'2', target, 0, (0, 0)),
            TarKind::CharDevice { major, minor } => (b'3', &[][..], 0, (major, minor)),
            TarKind::BlockDevice { major, minor } => (b'4', &[][..], 0, (major, minor)),
            TarKind::Directory => {
                name.push(b'/');
                (b'5', &[][..], 0, (0, 0))
            }
            TarKind::Fifo => (b'6', &[][..], 0, (0, 0)),
        };
        let mut header = Header::new(kind, self.mode);
        header.text(0..100, b"path", &name);
        header.text(157..257, b"linkpath", target);
        header.number(124..136, b"size", size);
        header.number(108..116, b"uid", self.uid);
        header.number(116..124, b"gid", self.gid);
        header.time(136..148, b"mtime", self.mtime, self.mtime_nanos);
        header.octal(329..337, u64::from(device.0));
        header.octal(337..345, u64::from(device.1));
        if let TarKind::Sparse { size, .. } = self.kind {
            header.record(b"GNU.sparse.major", b"1");
            header.record(b"GNU.sparse.minor", b"0");
            header.record(b"GNU.sparse.name", &name);
            header.record(b"GNU.sparse.realsize", size.to_string().as_bytes());
        }
        for (key, value) in self.xattrs {
            header.record(&[XATTR_RECORD, key].concat(), value);
        }
        header.write(out)
    }
}

/// The prefix of PAX records that carry extended attributes.
pub(super) const XATTR_RECORD: &[u8] = b"SCHILY.xattr.";

/// A ustar block and the records that have to go before it.
struct Header {
    block: [u8; BLOCK],
    records: Vec<u8>,
}

impl Header {
    fn new(kind: u8, mode: u32) -> Self {
        let mut header = Self { block: [0; BLOCK], records: Vec::new() };
        header.block[156] = kind;
        header.block[257..265].copy_from_slice(b"ustar\x0000");
        header.octal(100..108, u64::from(mode & 0o7777));
        header.octal(329..337, 0);
        header.octal(337..345, 0);
        header
    }

    /// Fills a field with octal digits and a closing NUL.
    fn octal(&mut self, field: std::ops::Range<usize>, value: u64) {
        let digits = field.len() - 1;
        self.block[field.start..field.end - 1].copy_from_slice(format!("{value:0digits$o}").as_bytes());
    }

    fn number(&mut self, field: std::ops::Range<usize>, key: &[u8], value: u64) {
        if value >> (3 * (field.len() - 1)) == 0 {
            self.octal(field, value);
        } else {
            self.octal(field, 0);
            self.record(key, value.to_string().as_bytes());
        }
    }

    /// A time whose seconds do not fit, are before 1970, or are not all, goes into a record as a decimal fraction.
    fn time(&mut self, field: std::ops::Range<usize>, key: &[u8], seconds: i64, nanos: u32) {
        match u64::try_from(seconds) {
            Ok(seconds) if nanos == 0 => self.number(field, key, seconds),
            _ => {
                self.octal(field, u64::try_from(seconds).unwrap_or(0) & 0o77_777_777_777);
                let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
                let sign = if total < 0 { "-" } else { "" };
                let (whole, part) = (total.abs() / 1_000_000_000, total.abs() % 1_000_000_000);
                let fraction = if part == 0 { String::new() } else { format!(".{part:09}") };
                self.record(key, format!("{sign}{whole}{fraction}").as_bytes());
            }
        }
    }

    fn text(&mut self, field: std::ops::Range<usize>, key: &[u8], value: &[u8]) {
        if value.len() > field.len() {
            self.record(key, value);
        }
        let kept = value.len().min(field.len());
        self.block[field.start..field.start + kept].copy_from_slice(&value[..kept]);
    }

    /// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
    fn record(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + decimal_digits(len) {
            len = rest + decimal_digits(len);
        }
        self.records.extend_from_slice(len.to_string().as_bytes());
        self.records.push(b' ');
        self.records.extend_from_slice(key);
        self.records.push(b'=');
        self.records.extend_from_slice(value);
        self.records.push(b'\n');
    }

    fn write(mut self, out: &mut impl Write) -> io::Result<()> {
        if !self.records.is_empty() {
            let mut extension = Self::new(b'x', 0);
            extension.block[..10].copy_from_slice(b"PaxHeaders");
            extension.octal(124..136, self.records.len() as u64);
            extension.octal(108..116, 0);
            extension.octal(116..124, 0);
            extension.octal(136..148, 0);
            extension.seal();
            out.write_all(&extension.block)?;
            out.write_all(&self.records)?;
            out.write_all(padding(self.records.len() as u64))?;
        }
        self.seal();
        out.write_all(&self.block)
    }

    /// The check sum is taken with its own field as spaces, and is six digits, NUL, space.
    fn seal(&mut self) {
        self.block[148..156].fill(b' ');
        let sum: u32 = self.block.iter().map(|byte| u32::from(*byte)).sum();
        self.block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
}

fn decimal_digits(number: usize) -> usize {
    number.to_string().len()
}
