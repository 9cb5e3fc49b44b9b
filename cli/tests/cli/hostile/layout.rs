//! OCI layouts with what no program would put there, and a good global checkpoint to be changed.

use std::fs;
use std::path::{Path, PathBuf};

use image_format::annotation::{MEDIA_INDEX, MEDIA_LAYER};
use image_format::{Descriptor, Digest};
use serde_json::{Value, json};

use super::Arena;
use crate::common::{link, pack_members};

/// An OCI layout that is written past everything that would keep it good.
pub struct Layout(pub PathBuf);

/// A blob that was taken over, and how it begins.
pub struct Blob {
    pub descriptor: Descriptor,
    pub head: Vec<u8>,
}

impl Layout {
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self(dir.to_owned())
    }

    pub fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.0.display())
    }

    pub fn blob(&self, digest: &str) -> PathBuf {
        self.0.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    /// Puts a blob, and gives its digest.
    pub fn put(&self, bytes: &[u8]) -> String {
        let digest = Digest::of(bytes).to_string();
        fs::write(self.blob(&digest), bytes).unwrap();
        digest
    }

    /// Moves a file here, as a layer.
    pub fn take(&self, file: &Path) -> Blob {
        let bytes = fs::read(file).unwrap();
        let descriptor = Descriptor {
            media_type: MEDIA_LAYER.to_owned(),
            digest: self.put(&bytes).parse().unwrap(),
            size: bytes.len() as u64,
        };
        fs::remove_file(file).unwrap();
        Blob { descriptor, head: bytes.into_iter().take(8).collect() }
    }

    /// Replaces one of the layout's own files.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.join(name), bytes).unwrap();
    }

    /// Puts a manifest under the only tag.
    pub fn tag(&self, tag: &str, media_type: &str, bytes: &[u8]) {
        self.tag_descriptor(tag, json!({"mediaType": media_type, "digest": self.put(bytes), "size": bytes.len()}));
    }

    pub fn tag_descriptor(&self, tag: &str, mut descriptor: Value) {
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        let index = json!({"schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": [descriptor]});
        fs::write(self.0.join("index.json"), index.to_string()).unwrap();
    }

    /// The digest and the content of what the only tag names.
    fn tagged(&self, tag: &str) -> (String, Value) {
        let index: Value = serde_json::from_slice(&fs::read(self.0.join("index.json")).unwrap()).unwrap();
        let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == tag;
        let entry = index["manifests"].as_array().unwrap().iter().find(named).unwrap();
        let digest = entry["digest"].as_str().unwrap().to_owned();
        let document = self.read(&digest);
        (digest, document)
    }

    fn read(&self, digest: &str) -> Value {
        serde_json::from_slice(&fs::read(self.blob(digest)).unwrap()).unwrap()
    }

    pub fn remove(self) {
        fs::remove_dir_all(self.0).unwrap();
    }
}

/// A good global checkpoint, to be changed.
pub struct Good {
    pub layout: Layout,
    pub index: Value,
}

/// The member whose image is changed.
pub const MEMBER: &str = "consumer";

impl Good {
    /// Made once, in `in/good`, and copied for each case.
    pub fn prepare(arena: &Arena) -> PathBuf {
        let good = arena.input("good");
        let layout = format!("oci:{}", good.display());
        pack_members(&arena.world, &layout);
        link(&arena.world, &layout, "good", &[]);
        good
    }

    pub fn copy(arena: &Arena, good: &Path) -> Self {
        let dir = arena.input("layout");
        let layout = Layout::new(&dir);
        for blob in fs::read_dir(good.join("blobs/sha256")).unwrap().map(Result::unwrap) {
            fs::hard_link(blob.path(), dir.join("blobs/sha256").join(blob.file_name())).unwrap();
        }
        fs::copy(good.join("index.json"), dir.join("index.json")).unwrap();
        let index = layout.tagged("good").1;
        Self { layout, index }
    }

    pub fn entry(&mut self) -> &mut Value {
        let entries = self.index["manifests"].as_array_mut().unwrap();
        entries.iter_mut().find(|entry| entry["annotations"]["io.syncpoint.member"] == MEMBER).unwrap()
    }

    pub fn manifest(&mut self) -> Value {
        let digest = self.entry()["digest"].as_str().unwrap().to_owned();
        self.layout.read(&digest)
    }

    /// The digest of the layer with the small files of the member.
    pub fn state(&mut self) -> String {
        let manifest = self.manifest();
        let layers = manifest["layers"].as_array().unwrap();
        let state = layers.iter().find(|layer| layer["annotations"]["io.syncpoint.layer.content"] == "state").unwrap();
        state["digest"].as_str().unwrap().to_owned()
    }

    /// Gives the member another manifest.
    pub fn set_manifest(&mut self, bytes: &[u8]) {
        let digest = self.layout.put(bytes);
        self.entry()["digest"] = digest.into();
        self.entry()["size"] = bytes.len().into();
    }

    pub fn change_manifest(&mut self, change: impl FnOnce(&mut Value)) {
        let mut manifest = self.manifest();
        change(&mut manifest);
        self.set_manifest(manifest.to_string().as_bytes());
    }

    /// Changes a blob without its name; others keep theirs.
    pub fn change_blob(&self, digest: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.layout.blob(digest);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::remove_file(&path).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Puts the index, as it is now, under the tag.
    pub fn tag(&self) {
        self.layout.tag("bad", MEDIA_INDEX, self.index.to_string().as_bytes());
    }
}
