//! Registries: one that serves a hostile layout as it is, and one that lies by itself.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

use super::Arena;
use super::layout::{Good, MEMBER};
use image_format::annotation::MEDIA_MANIFEST;
use serde_json::Value;

/// How a registry lies about one document or blob.
#[derive(Debug, Clone, Copy)]
pub enum Lie {
    /// Other bytes of the same length.
    Other,
    /// Bytes without end.
    Endless,
    /// Fewer bytes than it says.
    Short,
    /// More behind the last byte.
    Longer,
}

/// A registry without TLS that reads from a layout, for as long as the test runs.
pub struct Server(SocketAddr);

impl Server {
    /// With a lie about every path that ends so.
    pub fn start(layout: &Path, lie: Option<(String, Lie)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let layout = layout.to_owned();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (layout, lie) = (layout.clone(), lie.clone());
                // A client that goes away is what many cases are about.
                thread::spawn(move || drop(answer(&layout, lie.as_ref(), connection)));
            }
        });
        Self(address)
    }

    pub fn reference(&self, tag: &str) -> String {
        format!("{}/sdp/ledger:{tag}", self.0)
    }
}

fn answer(layout: &Path, lie: Option<&(String, Lie)>, mut connection: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(connection.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let Some((content_type, file)) = find(layout, path) else {
        return connection.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    let mut bytes = fs::read(file)?;
    let lie = lie.filter(|(end, _)| path.ends_with(end.as_str())).map(|(_, lie)| *lie);
    if let Some(Lie::Longer) = lie {
        bytes.extend([b'!'; 4096]);
    }
    let length = match lie {
        Some(Lie::Endless) if method == "GET" => "transfer-encoding: chunked".to_owned(),
        _ => format!("content-length: {}", bytes.len()),
    };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\n{length}\r\nconnection: close\r\n\r\n");
    connection.write_all(head.as_bytes())?;
    if method == "HEAD" {
        return Ok(());
    }
    match lie {
        None | Some(Lie::Longer) => {}
        Some(Lie::Other) => *bytes.last_mut().unwrap() ^= 1,
        Some(Lie::Short) => bytes.truncate(bytes.len() / 2),
        Some(Lie::Endless) => loop {
            connection.write_all(b"10000\r\n")?;
            connection.write_all(&[b' '; 0x10000])?;
            connection.write_all(b"\r\n")?;
        },
    }
    connection.write_all(&bytes)
}

/// The media type and the file of what a path of the distribution API names.
fn find(layout: &Path, path: &str) -> Option<(String, PathBuf)> {
    let blob = |digest: &str| layout.join("blobs/sha256").join(digest);
    if path == "/v2/" {
        return Some(("application/json".to_owned(), layout.join("oci-layout")));
    }
    let (kind, name) = path.strip_prefix("/v2/sdp/ledger/")?.split_once('/')?;
    if !matches!(kind, "manifests" | "blobs") {
        return None;
    }
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).ok()?).ok()?;
    let entries = index["manifests"].as_array()?;
    let named = |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == name;
    let digest = match name.strip_prefix("sha256:") {
        Some(digest) => digest.to_owned(),
        None => entries.iter().find(named)?["digest"].as_str()?.strip_prefix("sha256:")?.to_owned(),
    };
    let file = blob(&digest);
    // What is too large to be a manifest needs no right type.
    let media_type = fs::metadata(&file).ok()?.len() < 1 << 20 && kind == "manifests";
    let document = media_type.then(|| serde_json::from_slice::<Value>(&fs::read(&file).ok()?).ok()).flatten();
    let media_type = document.and_then(|document| Some(document["mediaType"].as_str()?.to_owned()));
    Some((media_type.unwrap_or_else(|| MEDIA_MANIFEST.to_owned()), file))
}

#[test]
fn registries_that_lie_are_found_out() {
    let arena = Arena::new();
    let good = Good::prepare(&arena);
    let mut good = Good::copy(&arena, &good);
    good.tag();
    let (state, member) = (good.state(), good.entry()["digest"].as_str().unwrap().to_owned());
    for (what, path, named) in [
        ("layer", &state, &state[7..]),
        ("member", &member, &member[7..]),
        // Whoever is asked for a tag may name anything, but not half of it.
        ("index", &"bad".to_owned(), "tag bad "),
    ] {
        for lie in [Lie::Other, Lie::Endless, Lie::Short, Lie::Longer] {
            let case = format!("{what} {lie:?}");
            let bad = Server::start(&arena.input("layout"), Some((path.clone(), lie))).reference("bad");
            for arguments in [
                &["verify", "--insecure-no-signature", &bad][..],
                &["inspect", &bad],
                &["unpack", &bad, "--member", MEMBER, "--to", "dump.tar"],
                &["pull", &bad, "oci:layout:a"],
            ] {
                // What is wrong of something named by its digest is a finding; half of it may come whole the next time.
                let code = match (lie, arguments[0], what) {
                    (Lie::Short, ..) => 9,
                    (_, "verify", "layer" | "member") => 5,
                    _ => 6,
                };
                let arguments = [arguments, &["--plain-http", "--retries", "0"]].concat();
                arena.ends(&case, code, &[named], &arguments);
                arena.assert_untagged(&case);
                assert!(!arena.output("dump.tar").exists(), "{case}");
            }
        }
    }
}
