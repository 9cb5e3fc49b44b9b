//! Decides which entries are allowed: the one place where names, links and totals of untrusted trees are checked.

use std::collections::HashMap;

use super::{ArchiveError, Entry, EntryKind, EntryName};
use crate::{Digest, Limits};

/// Remembers what a tree holds so far and admits entry after entry.
///
/// What it admits is a tree in which no name leads out, no symbolic link leads out, and nothing lies below a link. It
/// keeps digests instead of names, so that its memory is bounded by the number of entries alone.
#[derive(Debug)]
pub(crate) struct Guard {
    limits: Limits,
    seen: HashMap<Digest, Seen>,
    bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// A directory that only follows from the name of something in it.
    Implied,
    Directory,
    File,
    Link,
}

impl Guard {
    pub fn new(limits: &Limits) -> Self {
        Self { limits: limits.clone(), seen: HashMap::new(), bytes: 0 }
    }

    /// Checks an entry and gives its name (and a hard link's target) the plain form. `false`: the root folder itself,
    /// which needs no entry.
    pub fn admit(&mut self, entry: &mut Entry) -> Result<bool, ArchiveError> {
        let shown = EntryName::new(&entry.name);
        let is_folder = entry.kind == EntryKind::Directory;
        if !is_folder && entry.name.ends_with(b"/") {
            return Err(ArchiveError::BadName { entry: shown, problem: "ends with \"/\" but is no folder's" });
        }
        let name = self.plain_name(&entry.name, &shown)?;
        if name.is_empty() {
            return if is_folder {
                Ok(false)
            } else {
                Err(ArchiveError::BadName { entry: shown, problem: "is empty" })
            };
        }
        entry.name = name;
        let seen = match &mut entry.kind {
            EntryKind::File { .. } => Seen::File,
            EntryKind::Directory => Seen::Directory,
            EntryKind::Symlink { target } => {
                self.check_symlink(&entry.name, target, &shown)?;
                Seen::Link
            }
            EntryKind::HardLink { target } => {
                *target = self.plain_name(target, &shown)?;
                if self.seen.get(&Digest::of(target)) != Some(&Seen::File) {
                    return Err(ArchiveError::HardLinkTarget { entry: shown, target: EntryName::new(target) });
                }
                Seen::Link
            }
        };
        self.count_bytes(entry.size(), &shown)?;
        self.imply_parents(&entry.name, &shown)?;
        match self.seen.insert(Digest::of(&entry.name), seen) {
            None => self.check_count(&shown)?,
            Some(Seen::Implied) if is_folder => {}
            Some(_) => return Err(ArchiveError::Duplicate { entry: shown }),
        }
        Ok(true)
    }

    /// A name without `.`, doubled or closing separators.
    fn plain_name(&self, name: &[u8], shown: &EntryName) -> Result<Vec<u8>, ArchiveError> {
        let entry = || shown.clone();
        self.check_length(name, shown)?;
        if name.starts_with(b"/") {
            return Err(ArchiveError::AbsoluteName { entry: entry() });
        }
        if name.contains(&0) {
            return Err(ArchiveError::BadName { entry: entry(), problem: "holds a NUL" });
        }
        let mut plain = Vec::with_capacity(name.len());
        let mut depth = 0;
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(ArchiveError::NameLeaves { entry: entry() }),
                _ if component.starts_with(b".wh.") => return Err(ArchiveError::Whiteout { entry: entry() }),
                _ => {}
            }
            depth += 1;
            if depth > self.limits.name_depth {
                return Err(ArchiveError::TooDeep { entry: entry(), limit: self.limits.name_depth });
            }
            if !plain.is_empty() {
                plain.push(b'/');
            }
            plain.extend_from_slice(component);
        }
        Ok(plain)
    }

    fn check_length(&self, name: &[u8], shown: &EntryName) -> Result<(), ArchiveError> {
        let (len, limit) = (name.len(), self.limits.name_bytes);
        if len > limit {
            return Err(ArchiveError::NameTooLong { entry: shown.clone(), len, limit });
        }
        Ok(())
    }

    fn check_symlink(&self, name: &[u8], target: &[u8], shown: &EntryName) -> Result<(), ArchiveError> {
        self.check_length(target, shown)?;
        if stays_inside(name, target) {
            Ok(())
        } else {
            Err(ArchiveError::LinkLeaves { entry: shown.clone(), target: EntryName::new(target) })
        }
    }

    fn count_bytes(&mut self, size: u64, shown: &EntryName) -> Result<(), ArchiveError> {
        let limit = self.limits.total_bytes;
        match self.bytes.checked_add(size).filter(|total| *total <= limit) {
            Some(total) => self.bytes = total,
            None => return Err(ArchiveError::TooLarge { entry: shown.clone(), size, limit }),
        }
        Ok(())
    }

    fn imply_parents(&mut self, name: &[u8], shown: &EntryName) -> Result<(), ArchiveError> {
        let mut folder = name;
        while let Some(above) = parent(folder) {
            match self.seen.get(&Digest::of(above)) {
                Some(Seen::Directory | Seen::Implied) => break,
                Some(Seen::File | Seen::Link) => {
                    return Err(ArchiveError::ParentNotFolder { entry: shown.clone() });
                }
                None => {
                    self.seen.insert(Digest::of(above), Seen::Implied);
                    self.check_count(shown)?;
                }
            }
            folder = above;
        }
        Ok(())
    }

    fn check_count(&self, shown: &EntryName) -> Result<(), ArchiveError> {
        let limit = self.limits.entries;
        if self.seen.len() as u64 > limit {
            return Err(ArchiveError::TooManyEntries { entry: shown.clone(), limit });
        }
        Ok(())
    }
}

/// The name of the folder that holds a name; `None` at the top.
pub(crate) fn parent(name: &[u8]) -> Option<&[u8]> {
    name.iter().rposition(|byte| *byte == b'/').map(|at| &name[..at])
}

/// Whether a symbolic link stays inside. Its target may climb as far as the root and then only descend: with `..` behind a
/// name, where it leads would depend on other links; without, no chain of such links leads out.
pub(crate) fn stays_inside(name: &[u8], target: &[u8]) -> bool {
    let mut climbs = name.split(|byte| *byte == b'/').count() - 1;
    let mut descends = false;
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if descends || climbs == 0 => return false,
            b".." => climbs -= 1,
            _ => descends = true,
        }
    }
    !target.is_empty() && !target.starts_with(b"/") && !target.contains(&0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn entry(name: &[u8], kind: EntryKind) -> Entry {
        Entry { name: name.to_vec(), kind, mode: 0o600, uid: 0, gid: 0, mtime: 0, xattrs: BTreeMap::new() }
    }

    fn file(name: &[u8]) -> Entry {
        entry(name, EntryKind::File { size: 10 })
    }

    fn link(name: &str, target: &str) -> Entry {
        entry(name.as_bytes(), EntryKind::Symlink { target: target.into() })
    }

    fn admit(entries: Vec<Entry>) -> Result<Vec<Vec<u8>>, ArchiveError> {
        let limits = Limits { entries: 8, total_bytes: 50, name_bytes: 40, name_depth: 3, ..Limits::default() };
        let mut guard = Guard::new(&limits);
        let mut names = Vec::new();
        for mut entry in entries {
            if guard.admit(&mut entry)? {
                names.push(entry.name);
            }
        }
        Ok(names)
    }

    macro_rules! refuses {
        ($entries:expr, $error:pat) => {
            let result = admit($entries);
            assert!(matches!(result, Err($error)), "{result:?}");
        };
    }

    #[test]
    fn names_get_one_form() {
        let root = entry(b"./", EntryKind::Directory);
        let folder = entry(b"./checkpoint/", EntryKind::Directory);
        let names = admit(vec![root, folder, file(b"checkpoint//./a"), file(b"\xff")]).unwrap();
        assert_eq!(names, [&b"checkpoint"[..], b"checkpoint/a", b"\xff"]);
    }

    #[test]
    fn a_folder_may_follow_what_it_holds() {
        let folder = || entry(b"a", EntryKind::Directory);
        assert_eq!(admit(vec![file(b"a/b"), folder()]).unwrap().len(), 2);
        refuses!(vec![file(b"a/b"), folder(), folder()], ArchiveError::Duplicate { .. });
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        refuses!(vec![file(b"/etc/passwd")], ArchiveError::AbsoluteName { .. });
        refuses!(vec![file(b"a/../../b")], ArchiveError::NameLeaves { .. });
        refuses!(vec![file(b"a\0b")], ArchiveError::BadName { .. });
        refuses!(vec![file(b".")], ArchiveError::BadName { .. });
        refuses!(vec![file(b"a/")], ArchiveError::BadName { .. });
        refuses!(vec![file(b"a/.wh.b")], ArchiveError::Whiteout { .. });
    }

    #[test]
    fn limits_hold() {
        refuses!(vec![file(&[b'a'; 41])], ArchiveError::NameTooLong { len: 41, limit: 40, .. });
        refuses!(vec![link("a", &"b".repeat(41))], ArchiveError::NameTooLong { .. });
        refuses!(vec![file(b"a/b/c/d")], ArchiveError::TooDeep { limit: 3, .. });
        refuses!((0..6).map(|n| file(&[b'a' + n])).collect(), ArchiveError::TooLarge { limit: 50, .. });
        refuses!((0..9).map(|n| link(&n.to_string(), "x")).collect(), ArchiveError::TooManyEntries { limit: 8, .. });
        refuses!((0..3).map(|n| link(&format!("{n}/a/b"), "x")).collect(), ArchiveError::TooManyEntries { .. });
        let huge = entry(b"a", EntryKind::File { size: u64::MAX });
        refuses!(vec![file(b"b"), huge], ArchiveError::TooLarge { .. });
    }

    #[test]
    fn links_stay_inside() {
        for (name, target) in
            [("checkpoint/parent", "../pre-checkpoint"), ("a", "b"), ("a/b/c", "../../x/y"), ("a", ".")]
        {
            assert!(admit(vec![link(name, target)]).is_ok(), "{name} -> {target}");
        }
        for (name, target) in
            [("a", ".."), ("a", "/etc"), ("a/b", "../../c"), ("a", "b/../c"), ("a", ""), ("a", "b\0c")]
        {
            refuses!(vec![link(name, target)], ArchiveError::LinkLeaves { .. });
        }
    }

    #[test]
    fn nothing_lies_below_a_link_or_a_file() {
        refuses!(vec![link("a", "b"), file(b"a/c")], ArchiveError::ParentNotFolder { .. });
        refuses!(vec![file(b"a"), file(b"a/c")], ArchiveError::ParentNotFolder { .. });
        refuses!(vec![file(b"a/c"), link("a", "b")], ArchiveError::Duplicate { .. });
        refuses!(vec![file(b"a"), file(b"./a")], ArchiveError::Duplicate { .. });
    }

    #[test]
    fn hard_links_name_an_earlier_file() {
        let hard = |target: &[u8]| entry(b"h", EntryKind::HardLink { target: target.to_vec() });
        assert!(admit(vec![file(b"a"), hard(b"./a")]).is_ok());
        refuses!(vec![file(b"a"), hard(b"b")], ArchiveError::HardLinkTarget { .. });
        refuses!(vec![link("a", "b"), hard(b"a")], ArchiveError::HardLinkTarget { .. });
        refuses!(vec![hard(b"/etc/passwd")], ArchiveError::AbsoluteName { .. });
        refuses!(vec![hard(b"../a")], ArchiveError::NameLeaves { .. });
    }
}
