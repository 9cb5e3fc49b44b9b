//! `registries.conf`, in which users of podman and skopeo say how registries are reached
//! (containers-registries.conf(5), versions 1 and 2 of the format).
//!
//! Taken from it: which registries are blocked, which may be reached without a good certificate or
//! without TLS, which repository a short name stands for, and where else content lies. podman reads
//! tags from mirrors first. Here a mirror is asked for a tag only when the registry itself does not
//! answer: a mirror that lags behind must not hide the newest checkpoint. Content that is named by
//! its digest cannot lag, so mirrors come first for it. Whatever is written goes to the registry
//! that was named, as with podman.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::reference::{Location, Reference, canonical_host};

/// Why a `registries.conf` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistriesError {
    /// A file that cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file in another form.
    #[error("{} is no registries.conf", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
}

/// Why a short name cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShortNameError {
    /// Nobody said what it stands for.
    #[error("no alias of registries.conf says what {name:?} stands for: write HOST[:PORT]/REPOSITORY")]
    Unknown {
        /// The short name.
        name: String,
    },
    /// What it stands for is no repository.
    #[error("by registries.conf {name:?} stands for {alias:?}, which is no HOST[:PORT]/REPOSITORY")]
    Alias {
        /// The short name.
        name: String,
        /// What it stands for.
        alias: String,
    },
}

/// What all files together say.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    /// By prefix.
    entries: BTreeMap<String, Entry>,
    /// What short names stand for.
    aliases: BTreeMap<String, String>,
}

/// One file. Members that have no meaning here are passed over, as podman does.
#[derive(Debug, Default, Deserialize)]
struct File {
    #[serde(default)]
    registry: Vec<Entry>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    /// Version 1 of the format.
    #[serde(default)]
    registries: Lists,
}

/// Registries by what is said of them, in version 1.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Lists {
    insecure: List,
    block: List,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct List {
    registries: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Entry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
    /// The file that says it.
    #[serde(skip)]
    file: PathBuf,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: String,
}

/// What the files say about one repository.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// The file that forbids it.
    pub(crate) blocked_by: Option<PathBuf>,
    /// Any certificate will do, and plain http if there is no TLS.
    pub(crate) insecure: bool,
    /// Where else its content lies, in the order in which to ask.
    pub(crate) others: Vec<Other>,
}

/// Another place with the same content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Other {
    pub(crate) host: String,
    pub(crate) repository: String,
    pub(crate) insecure: bool,
    /// What it is asked for.
    pub(crate) digests: bool,
    pub(crate) tags: bool,
}

impl Registries {
    /// Reads files in their order; an entry of a later one replaces one of the same prefix. Missing
    /// files are skipped.
    ///
    /// # Errors
    /// The first file that cannot be read or understood.
    pub fn read(files: &[PathBuf]) -> Result<Self, RegistriesError> {
        let mut all = Self::default();
        for path in files {
            match std::fs::read_to_string(path) {
                Ok(text) => all.add(path, &text)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(RegistriesError::Read { path: path.clone(), source }),
            }
        }
        Ok(all)
    }

    fn add(&mut self, path: &Path, text: &str) -> Result<(), RegistriesError> {
        let file: File = toml::from_str(text)
            .map_err(|error| RegistriesError::Format { path: path.to_owned(), source: Box::new(error) })?;
        self.aliases.extend(file.aliases);
        let listed = |list: List, entry: Entry| {
            list.registries.into_iter().map(move |location| Entry { location, ..entry.clone() })
        };
        let Lists { insecure, block } = file.registries;
        let insecure = listed(insecure, Entry { insecure: true, ..Entry::default() });
        // What is in both lists is blocked.
        let block = listed(block, Entry { blocked: true, ..Entry::default() });
        for mut entry in file.registry.into_iter().chain(insecure).chain(block) {
            if entry.prefix.is_empty() {
                entry.prefix.clone_from(&entry.location);
            }
            if entry.location.is_empty() && !entry.prefix.starts_with("*.") {
                entry.location.clone_from(&entry.prefix);
            }
            path.clone_into(&mut entry.file);
            self.entries.insert(entry.prefix.clone(), entry);
        }
        Ok(())
    }

    /// The repository that a short name stands for.
    pub(crate) fn alias(&self, name: &str) -> Result<(String, String), ShortNameError> {
        // An empty one takes back what an earlier file said.
        let alias = self.aliases.get(name).filter(|alias| !alias.is_empty());
        let alias = alias.ok_or_else(|| ShortNameError::Unknown { name: name.to_owned() })?;
        let unusable = || ShortNameError::Alias { name: name.to_owned(), alias: alias.clone() };
        let reference: Reference = alias.parse().map_err(|_| unusable())?;
        match (reference.location(), reference.selector()) {
            (Location::Registry { host, repository }, None) => Ok((host.clone(), repository.clone())),
            _ => Err(unusable()),
        }
    }

    /// What is said about `HOST/REPOSITORY`: by the entry with the longest prefix of it.
    pub(crate) fn route(&self, host: &str, repository: &str) -> Route {
        let name = format!("{host}/{repository}");
        let fitting = self.entries.values().filter_map(|entry| Some((entry.rest(&name)?, entry)));
        let Some((rest, entry)) = fitting.min_by_key(|(rest, _)| rest.len()) else { return Route::default() };
        let mirrors = entry.mirror.iter().filter_map(|mirror| {
            let (digests, tags) = match mirror.pull_from_mirror.as_str() {
                "digest-only" => (true, false),
                "tag-only" => (false, true),
                _ => (true, !entry.mirror_by_digest_only),
            };
            Other::at(&mirror.location, rest, mirror.insecure, digests, tags)
        });
        let moved = Other::at(&entry.location, rest, entry.insecure, true, true);
        let moved = moved.filter(|other| other.host != host || other.repository != repository);
        Route {
            blocked_by: entry.blocked.then(|| entry.file.clone()),
            insecure: entry.insecure,
            others: mirrors.chain(moved).collect(),
        }
    }
}

impl Entry {
    /// What follows the prefix in a name; nothing if it is no prefix of it. `*.` stands for any
    /// host below another one.
    fn rest<'a>(&self, name: &'a str) -> Option<&'a str> {
        let rest = match self.prefix.strip_prefix('*') {
            Some(below) => {
                let (host, _) = name.split_once('/')?;
                let at = host.find(below).filter(|at| below.starts_with('.') && *at > 0)?;
                name.get(at + below.len()..)?
            }
            None => name.strip_prefix(self.prefix.as_str())?,
        };
        (!self.prefix.is_empty() && (rest.is_empty() || rest.starts_with('/'))).then_some(rest)
    }
}

impl Other {
    /// The place of what is called `rest` below a location; nothing if that is no registry's.
    fn at(location: &str, rest: &str, insecure: bool, digests: bool, tags: bool) -> Option<Self> {
        let reference: Reference = format!("{location}{rest}").parse().ok()?;
        match reference.location() {
            Location::Registry { host, repository } if reference.selector().is_none() => {
                let (host, repository) = (canonical_host(host).to_owned(), repository.clone());
                Some(Self { host, repository, insecure, digests, tags })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(text: &str) -> Registries {
        let mut all = Registries::default();
        all.add(Path::new("/etc/registries.conf"), text).unwrap();
        all
    }

    fn other(name: &str) -> Other {
        let (host, repository) = name.split_once('/').unwrap();
        let (host, repository) = (host.to_owned(), repository.to_owned());
        Other { host, repository, insecure: false, digests: true, tags: true }
    }

    #[test]
    fn the_longest_prefix_decides() {
        let all = registries(
            r#"
            unqualified-search-registries = ["registry.example"]
            short-name-mode = "enforcing"
            [[registry]]
            location = "registry.example"
            insecure = true
            [[registry]]
            prefix = "registry.example/sdp"
            location = "other.example/x"
            [[registry.mirror]]
            location = "mirror.example:5000/hub"
            [[registry.mirror]]
            location = "second.example"
            insecure = true
            pull-from-mirror = "digest-only"
            [[registry]]
            prefix = "*.far.example"
            blocked = true
            [aliases]
            "ledger" = "registry.example/sdp/ledger"
            "#,
        );
        assert!(all.route("registry.example", "a/b").insecure);
        let route = all.route("registry.example", "sdp/ledger");
        let second = Other { insecure: true, tags: false, ..other("second.example/ledger") };
        assert_eq!(route.others, [other("mirror.example:5000/hub/ledger"), second, other("other.example/x/ledger")]);
        assert!(!route.insecure);
        // A prefix ends where a name ends.
        assert_eq!(all.route("registry.example", "sdpx/ledger").others, []);
        assert_eq!(all.route("registry.example.org", "a"), Route::default());
        let blocked = Some(PathBuf::from("/etc/registries.conf"));
        assert_eq!(all.route("a.b.far.example", "x").blocked_by, blocked);
        assert_eq!(all.route("far.example", "x"), Route::default());
        assert_eq!(all.route("a.far.example.org", "x"), Route::default());
    }

    #[test]
    fn short_names_stand_for_what_an_alias_says() {
        let mut all = registries(
            "[aliases]\nledger='registry.example:5000/sdp/ledger'\n'a/b'='docker.io/b'\nodd='ledger'\ntag='a.example/b:c'",
        );
        let place = |host: &str, repository: &str| Ok((host.to_owned(), repository.to_owned()));
        assert_eq!(all.alias("ledger"), place("registry.example:5000", "sdp/ledger"));
        assert_eq!(all.alias("a/b"), place("docker.io", "library/b"));
        let unknown = |name: &str| Err(ShortNameError::Unknown { name: name.to_owned() });
        assert_eq!(all.alias("b"), unknown("b"));
        for unusable in ["odd", "tag"] {
            assert!(matches!(all.alias(unusable), Err(ShortNameError::Alias { .. })), "{unusable}");
        }
        all.add(Path::new("/etc/registries.conf.d/x.conf"), "[aliases]\nledger=''").unwrap();
        assert_eq!(all.alias("ledger"), unknown("ledger"));
    }

    #[test]
    fn version_1_of_the_format() {
        let all = registries(
            "[registries.search]\nregistries=['a.example']\n[registries.insecure]\nregistries=['b.example','c.example']\n\
             [registries.block]\nregistries=['c.example/x']",
        );
        assert_eq!(all.route("a.example", "x"), Route::default());
        assert!(all.route("b.example", "x").insecure);
        assert!(all.route("c.example", "y").insecure && all.route("c.example", "x").blocked_by.is_some());
    }

    #[test]
    fn later_files_replace_entries() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("registries.conf"), dir.path().join("50-x.conf"));
        std::fs::write(&first, "[[registry]]\nlocation='localhost:5000'\nblocked=true\n").unwrap();
        std::fs::write(&second, "[[registry]]\nprefix='localhost:5000'\n").unwrap();
        let read = |files: &[&PathBuf]| Registries::read(&files.iter().map(|file| (*file).clone()).collect::<Vec<_>>());
        assert!(read(&[&first]).unwrap().route("localhost:5000", "a").blocked_by.is_some());
        assert_eq!(read(&[&first, &second]).unwrap().route("localhost:5000", "a"), Route::default());
        assert_eq!(read(&[&dir.path().join("missing")]).unwrap().route("localhost:5000", "a"), Route::default());
        std::fs::write(&second, "[[registry]\n").unwrap();
        assert!(read(&[&first, &second]).unwrap_err().to_string().contains("50-x.conf"));
    }

    #[test]
    fn docker_hub_goes_by_its_name() {
        let all = registries("[[registry]]\nprefix='docker.io/library'\nlocation='mirror.example/hub'\n");
        assert_eq!(all.route("docker.io", "library/app").others, [other("mirror.example/hub/app")]);
    }
}
