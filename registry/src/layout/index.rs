//! `index.json` of a layout: entries are found and changed, and everything that this program does not know is kept.

use image_format::Descriptor;
use image_format::Digest;
use image_format::annotation::MEDIA_INDEX;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::mark::Entry;
use crate::Tag;

const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The parsed file.
#[derive(Debug, Clone)]
pub(super) struct LayoutIndex {
    document: Map<String, Value>,
    entries: Vec<Map<String, Value>>,
}

impl LayoutIndex {
    /// What a new layout has.
    pub(super) fn empty() -> Self {
        let document =
            Map::from_iter([("schemaVersion".to_owned(), json!(2)), ("mediaType".to_owned(), json!(MEDIA_INDEX))]);
        Self { document, entries: Vec::new() }
    }

    /// Reads the file; the error is the reason, to be put behind "index.json is damaged:".
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut document: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let entries = match document.remove("manifests") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(entries)) => entries,
            Some(_) => return Err("\"manifests\" is not a list".to_owned()),
        };
        let entries = entries.into_iter().map(|entry| match entry {
            Value::Object(entry) => Ok(entry),
            _ => Err("an entry of \"manifests\" is not an object".to_owned()),
        });
        Ok(Self { document, entries: entries.collect::<Result<_, _>>()? })
    }

    /// The file's new content.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut document = self.document.clone();
        let entries = self.entries.iter().cloned().map(Value::Object).collect();
        document.insert("manifests".to_owned(), Value::Array(entries));
        Value::Object(document).to_string().into_bytes()
    }

    /// What a tag names. Two entries that use it for different manifests are an error, not a choice.
    pub(super) fn tagged(&self, tag: &Tag) -> Result<Option<Descriptor>, String> {
        let mut found: Option<Descriptor> = None;
        for entry in self.entries.iter().filter(|entry| name(entry) == Some(tag.as_str())) {
            let descriptor = Descriptor::deserialize(Value::Object(entry.clone()))
                .map_err(|error| format!("the entry of tag {tag}: {error}"))?;
            match &found {
                Some(other) if *other != descriptor => {
                    return Err(format!("the tag {tag} names both {} and {}", other.digest, descriptor.digest));
                }
                _ => found = Some(descriptor),
            }
        }
        Ok(found)
    }

    /// All names that are tags, sorted. Others (containerd writes whole references) are not of use here.
    pub(super) fn tags(&self) -> Vec<Tag> {
        let mut tags: Vec<Tag> = self.entries.iter().filter_map(name).filter_map(|name| name.parse().ok()).collect();
        tags.sort();
        tags.dedup();
        tags
    }

    /// All entries that are understood; those with another digest algorithm are not.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = Descriptor> {
        self.entries.iter().filter_map(|entry| Descriptor::deserialize(Value::Object(entry.clone())).ok())
    }

    /// All entries that are understood, with their names.
    pub(super) fn named(&self) -> Vec<Entry> {
        let entry = |entry: &Map<String, Value>| {
            let digest = entry.get("digest")?.as_str()?.parse().ok()?;
            Some(Entry { digest, name: name(entry).map(str::to_owned) })
        };
        self.entries.iter().filter_map(entry).collect()
    }

    /// Takes entries away.
    pub(super) fn remove(&mut self, gone: &[Entry]) {
        self.entries
            .retain(|entry| !gone.iter().any(|gone| is(entry, &gone.digest) && name(entry) == gone.name.as_deref()));
    }

    /// Lists a manifest, under a tag where one is given. The tag is taken from whatever had it.
    pub(super) fn put(
        &mut self,
        descriptor: &Descriptor,
        artifact_type: Option<&str>,
        tag: Option<&Tag>,
    ) -> Result<(), String> {
        let digest = descriptor.digest;
        let mut entry = match serde_json::to_value(descriptor) {
            Ok(Value::Object(entry)) => entry,
            Ok(_) => return Err("its descriptor is not an object".to_owned()),
            Err(error) => return Err(error.to_string()),
        };
        if let Some(artifact_type) = artifact_type {
            entry.insert("artifactType".to_owned(), json!(artifact_type));
        }
        let Some(tag) = tag else {
            if !self.entries.iter().any(|listed| is(listed, &digest)) {
                self.entries.push(entry);
            }
            return Ok(());
        };
        let has_tag = |listed: &Map<String, Value>| name(listed) == Some(tag.as_str());
        if self.entries.iter().filter(|listed| has_tag(listed)).all(|listed| is(listed, &digest))
            && self.entries.iter().any(has_tag)
        {
            self.drop_untagged(&digest);
            return Ok(());
        }
        self.delete_tag(tag);
        self.drop_untagged(&digest);
        entry.insert("annotations".to_owned(), json!({ REF_NAME: tag.as_str() }));
        self.entries.push(entry);
        Ok(())
    }

    /// Takes a tag from its manifest, which stays listed. Says whether the tag was there.
    pub(super) fn delete_tag(&mut self, tag: &Tag) -> bool {
        let mut released = Vec::new();
        for entry in &mut self.entries {
            if name(entry) == Some(tag.as_str()) {
                if let Some(Value::Object(annotations)) = entry.get_mut("annotations") {
                    annotations.remove(REF_NAME);
                    if annotations.is_empty() {
                        entry.remove("annotations");
                    }
                }
                released.push(entry.get("digest").cloned());
            }
        }
        for digest in &released {
            // One entry without a tag is enough, and none is needed next to one with a tag.
            let same = |entry: &Map<String, Value>| entry.get("digest") == digest.as_ref();
            let mut enough = self.entries.iter().any(|entry| same(entry) && name(entry).is_some());
            self.entries.retain(|entry| !same(entry) || name(entry).is_some() || !std::mem::replace(&mut enough, true));
        }
        !released.is_empty()
    }

    /// Removes the entries without a tag of a manifest that something else leads to.
    pub(super) fn drop_untagged(&mut self, digest: &Digest) {
        self.entries.retain(|entry| name(entry).is_some() || !is(entry, digest));
    }
}

fn name(entry: &Map<String, Value>) -> Option<&str> {
    entry.get("annotations")?.get(REF_NAME)?.as_str()
}

fn is(entry: &Map<String, Value>, digest: &Digest) -> bool {
    entry.get("digest").and_then(Value::as_str) == Some(digest.to_string().as_str())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn manifest(text: &str) -> Descriptor {
        Descriptor { media_type: "m".to_owned(), digest: Digest::of(text.as_bytes()), size: 1 }
    }

    fn tag(text: &str) -> Tag {
        text.parse().unwrap()
    }

    fn listed(index: &LayoutIndex) -> Vec<(Digest, Option<String>)> {
        let digest = |entry: &Map<String, Value>| entry["digest"].as_str().unwrap().parse().unwrap();
        index.entries.iter().map(|entry| (digest(entry), name(entry).map(str::to_owned))).collect()
    }

    #[test]
    fn a_tag_moves_and_the_old_manifest_stays_listed() {
        let (a, b) = (manifest("a"), manifest("b"));
        let mut index = LayoutIndex::empty();
        index.put(&a, None, None).unwrap();
        index.put(&a, None, Some(&tag("one"))).unwrap();
        index.put(&a, None, Some(&tag("one"))).unwrap();
        assert_eq!(listed(&index), [(a.digest, Some("one".to_owned()))]);
        index.put(&b, None, Some(&tag("one"))).unwrap();
        assert_eq!(listed(&index), [(a.digest, None), (b.digest, Some("one".to_owned()))]);
        assert_eq!(index.tagged(&tag("one")), Ok(Some(b)));
        index.put(&a, Some("x/y"), Some(&tag("two"))).unwrap();
        assert_eq!(index.tags(), [tag("one"), tag("two")]);
        assert!(index.delete_tag(&tag("one")) && !index.delete_tag(&tag("one")));
        assert_eq!(index.descriptors().count(), 2);
    }

    #[test]
    fn one_entry_stays_when_the_last_tag_goes() {
        let a = manifest("a");
        let mut index = LayoutIndex::empty();
        index.put(&a, None, Some(&tag("one"))).unwrap();
        index.put(&a, None, Some(&tag("two"))).unwrap();
        assert!(index.delete_tag(&tag("one")));
        assert_eq!(listed(&index), [(a.digest, Some("two".to_owned()))]);
        assert!(index.delete_tag(&tag("two")));
        assert_eq!(listed(&index), [(a.digest, None)]);
    }

    #[test]
    fn what_others_wrote_is_kept() {
        let text = br#"{"annotations":{"k":"v"},"manifests":[{"digest":"sha512:00","mediaType":"z","size":3,"urls":["u"]}],"schemaVersion":2}"#;
        let mut index = LayoutIndex::parse(text).unwrap();
        assert_eq!(index.to_bytes(), text);
        index.put(&manifest("a"), None, None).unwrap();
        assert_eq!(index.descriptors().collect::<Vec<_>>(), [manifest("a")]);
        assert!(String::from_utf8(index.to_bytes()).unwrap().contains("sha512:00"));
    }

    #[test]
    fn two_manifests_under_one_tag_are_an_error() {
        let mut index = LayoutIndex::empty();
        index.put(&manifest("a"), None, Some(&tag("one"))).unwrap();
        let mut second = LayoutIndex::empty();
        second.put(&manifest("b"), None, Some(&tag("one"))).unwrap();
        index.entries.append(&mut second.entries);
        assert!(index.tagged(&tag("one")).unwrap_err().contains("names both"));
        index.put(&manifest("b"), None, Some(&tag("one"))).unwrap();
        assert_eq!(index.tagged(&tag("one")), Ok(Some(manifest("b"))));
    }

    proptest! {
        /// Whatever is done, tags are where a plain map would have them, and no manifest is ever lost or listed twice untagged.
        #[test]
        fn tags_behave_like_a_map(steps in proptest::collection::vec((0u8..4, 0u8..5, 0u8..4), 0..40)) {
            let mut index = LayoutIndex::empty();
            let (mut tags, mut known) = (BTreeMap::new(), BTreeSet::new());
            for (step, content, name) in steps {
                let (descriptor, name) = (manifest(&content.to_string()), tag(&format!("t{name}")));
                match step {
                    0 => {
                        prop_assert_eq!(index.delete_tag(&name), tags.remove(&name).is_some());
                    }
                    1 => {
                        index.put(&descriptor, None, None).unwrap();
                        known.insert(descriptor.digest);
                    }
                    _ => {
                        index.put(&descriptor, None, Some(&name)).unwrap();
                        tags.insert(name, descriptor.clone());
                        known.insert(descriptor.digest);
                    }
                }
                index = LayoutIndex::parse(&index.to_bytes()).unwrap();
            }
            prop_assert_eq!(index.tags(), tags.keys().cloned().collect::<Vec<_>>());
            for (name, descriptor) in tags {
                prop_assert_eq!(index.tagged(&name), Ok(Some(descriptor)));
            }
            let listed = listed(&index);
            prop_assert_eq!(listed.iter().map(|(digest, _)| *digest).collect::<BTreeSet<_>>(), known);
            for (digest, _) in listed.iter().filter(|(_, name)| name.is_none()) {
                prop_assert_eq!(listed.iter().filter(|(other, _)| other == digest).count(), 1);
            }
        }
    }

    #[test]
    fn what_is_not_an_index() {
        for bad in ["", "[]", "{\"manifests\":3}", "{\"manifests\":[3]}", &"[".repeat(100_000)] {
            assert!(LayoutIndex::parse(bad.as_bytes()).is_err(), "{bad:.20}");
        }
    }
}
