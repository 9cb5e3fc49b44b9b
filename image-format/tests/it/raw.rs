//! Archives that no writer would write, header by header. The tests of the command line use them as well.

use tar::EntryType::{self, Directory, GNULongName, Link, Regular, Symlink, XHeader};

/// An archive that is put together from raw headers, as no writer would.
#[derive(Clone)]
pub struct Raw(pub Vec<u8>);

impl Raw {
    pub fn new() -> Self {
        Self(Vec::new()).entry(Directory, b"checkpoint/", b"", b"")
    }

    pub fn entry(self, kind: EntryType, name: &[u8], target: &[u8], content: &[u8]) -> Self {
        self.sized(kind, name, target, content, content.len() as u64)
    }

    pub fn sized(mut self, kind: EntryType, name: &[u8], target: &[u8], content: &[u8], size: u64) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target);
        header.set_entry_type(kind);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &[u8]) -> Self {
        self.entry(Regular, name, b"", b"content")
    }

    pub fn symlink(self, name: &[u8], target: &[u8]) -> Self {
        self.entry(Symlink, name, target, b"")
    }

    pub fn hard_link(self, name: &[u8], target: &[u8]) -> Self {
        self.entry(Link, name, target, b"")
    }

    pub fn pax(self, key: &str, value: &[u8]) -> Self {
        let rest = key.len() + value.len() + 3;
        let len = (rest..).find(|len| rest + len.to_string().len() == *len).unwrap();
        let record = [format!("{len} {key}=").as_bytes(), value, b"\n"].concat();
        self.entry(XHeader, b"PaxHeaders", b"", &record)
    }

    pub fn long_name(self, name: &[u8]) -> Self {
        let content = [name, b"\0"].concat();
        self.entry(GNULongName, b"././@LongLink", b"", &content)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// A sparse file of an exabyte in a kilobyte of archive.
pub fn sparse_bomb() -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_path("bomb").unwrap();
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(1 << 60);
    gnu.sparse[0].set_offset(1 << 60);
    gnu.sparse[0].set_length(0);
    header.set_cksum();
    [header.as_bytes(), &[0; 1024][..]].concat()
}
