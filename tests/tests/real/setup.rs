//! From dumps to a signed global checkpoint, in the words a user types.

use std::path::{Path, PathBuf};

use syncpoint_tests::{Ledger, MEMBERS, Registry, depends_on, run, syncpoint};
use tempfile::TempDir;

/// A folder that engines and CRIU work in. It goes when it is dropped, but for what is mounted
/// there: a plain removal would walk into the control groups that a killed CRIU left.
#[derive(Debug)]
pub struct WorkFolder(PathBuf);

impl WorkFolder {
    pub fn new() -> Self {
        Self(TempDir::new().unwrap().keep())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for WorkFolder {
    fn drop(&mut self) {
        // What cannot be removed stays in the testbed's throw-away root.
        let _ = image_format::files::remove_tree(&self.0);
    }
}

/// A key pair made by `syncpoint key generate`.
pub struct Keys(TempDir);

impl Keys {
    pub fn generate() -> Self {
        let keys = Self(TempDir::new().unwrap());
        run(&mut syncpoint(["key", "generate", "--output-prefix", &keys.prefix()]));
        keys
    }

    fn prefix(&self) -> String {
        self.0.path().join("cosign").to_str().unwrap().to_owned()
    }

    pub fn private(&self) -> String {
        format!("{}.key", self.prefix())
    }

    pub fn public(&self) -> String {
        format!("{}.pub", self.prefix())
    }
}

/// Packs the archives straight into the registry, and links and signs them as `REPOSITORY:epoch-1`.
pub fn global(registry: &Registry, repository: &str, keys: &Keys, dumps: &[PathBuf]) -> String {
    let repository = registry.repository(repository);
    let mut link = vec!["link".to_owned(), "--to".into(), format!("{repository}:epoch-1")];
    link.extend(["--application", "ledger", "--epoch", "1", "--sign-by", &keys.private()].map(str::to_owned));
    for (member, dump) in MEMBERS.iter().zip(dumps) {
        let to = format!("{repository}:{member}");
        let dump = dump.to_str().unwrap();
        run(&mut registry.syncpoint([
            "pack",
            dump,
            "--to",
            &to,
            "--member",
            member,
            "--depends-on",
            depends_on(member),
        ]));
        link.push(format!("{member}={to}"));
    }
    run(&mut registry.syncpoint(&link));
    format!("{repository}:epoch-1")
}

/// The demo application, dumped, made into a global checkpoint, and wiped out.
pub struct Wiped {
    pub ledger: Ledger,
    pub reference: String,
    /// How far each member was when it was dumped.
    pub at: Vec<u64>,
}

impl Wiped {
    pub fn prepare(registry: &Registry, repository: &str, keys: &Keys, options: &[&str]) -> Self {
        let ledger = Ledger::start(options);
        let dumps = TempDir::new().unwrap();
        let archives = ledger.dump(dumps.path());
        let at = ledger.said();
        let reference = global(registry, repository, keys, &archives);
        ledger.wipe();
        Self { ledger, reference, at }
    }

    /// The application runs on from where it was, all of it.
    pub fn assert_carries_on(&self) {
        assert_eq!(Ledger::running(), ["auditor", "consumer", "producer"]);
        let furthest = self.at.iter().max().copied().unwrap_or_default();
        let now = self.ledger.counters_past(furthest);
        assert_eq!(now.len(), MEMBERS.len());
    }
}

/// The digest a reference names.
pub fn digest_of(registry: &Registry, reference: &str) -> String {
    let manifest = run(&mut registry.tool("skopeo", ["inspect", "--raw", &format!("docker://{reference}")]));
    image_format::Digest::of(manifest.as_bytes()).to_string()
}

/// The members' digests in an index, by member id.
pub fn members_of(registry: &Registry, reference: &str) -> Vec<(String, String)> {
    let index = run(&mut registry.tool("skopeo", ["inspect", "--raw", &format!("docker://{reference}")]));
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let member = |entry: &serde_json::Value| {
        let id = entry["annotations"]["io.syncpoint.member"].as_str().unwrap().to_owned();
        (id, entry["digest"].as_str().unwrap().to_owned())
    };
    index["manifests"].as_array().unwrap().iter().map(member).collect()
}

/// Every file below a folder, for comparing before and after.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}
