//! What somebody does who may write to a layout and has no key.

use std::fs;
use std::path::Path;

use image_format::Digest;
use serde_json::{Value, json};

/// Where an entry of a layout's index has its tag.
pub const NAME: &str = "/annotations/org.opencontainers.image.ref.name";

/// Tags an image like the one under another tag, which is not compressed: one byte of its memory is another, and all but its table of
/// pages is told of it. The layer that it shares with nobody.
pub fn forge(layout: &Path, from: &str, to: &str) {
    let blob = |digest: &Value| layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
    let read = |digest: &Value| fs::read(blob(digest)).unwrap();
    let parse = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
    let put = |bytes: &[u8]| {
        let digest = json!(Digest::of(bytes).to_string());
        fs::write(blob(&digest), bytes).unwrap();
        digest
    };
    let mut index = parse(fs::read(layout.join("index.json")).unwrap());
    let entries = index["manifests"].as_array_mut().unwrap();
    let mut entry = entries.iter().find(|entry| entry.pointer(NAME) == Some(&json!(from))).unwrap().clone();
    let mut manifest = parse(read(&entry["digest"]));
    let mut config = parse(read(&manifest["config"]["digest"]));
    let is_pages = |layer: &Value| layer["annotations"].as_object().unwrap().values().any(|value| value == "pages");
    let at = manifest["layers"].as_array().unwrap().iter().position(is_pages).unwrap();
    let mut pages = read(&manifest["layers"][at]["digest"]);
    // Behind the header of the archive, in the middle of a page.
    pages[10_000] ^= 1;
    manifest["layers"][at]["digest"] = put(&pages);
    config["rootfs"]["diff_ids"][at] = manifest["layers"][at]["digest"].clone();
    let config = config.to_string();
    manifest["config"]["digest"] = put(config.as_bytes());
    manifest["config"]["size"] = json!(config.len());
    let manifest = manifest.to_string();
    entry["digest"] = put(manifest.as_bytes());
    entry["size"] = json!(manifest.len());
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": to});
    entries.push(entry);
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
}
