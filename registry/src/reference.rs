//! How a person names an image: the words that skopeo and podman users know.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use image_format::Digest;

/// Why a text is not a reference, tag or repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: {reason}")]
pub struct ParseReferenceError {
    text: String,
    what: &'static str,
    reason: &'static str,
}

fn refuse<T>(text: &str, what: &'static str, reason: &'static str) -> Result<T, ParseReferenceError> {
    Err(ParseReferenceError { text: text.chars().take(256).collect(), what, reason })
}

/// A tag as the OCI distribution specification has it: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

impl Tag {
    /// The tag as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag under which something about a manifest lies (`sha256-<hex>` and a suffix such as `.sig`), for tools and
    /// registries that cannot find it by its `subject`.
    pub(crate) fn of_digest(digest: &Digest, suffix: &'static str) -> Self {
        Self(format!("sha256-{}{suffix}", digest.hex()))
    }

    /// A tag with a digest in it.
    pub(crate) fn with_hex(prefix: &'static str, digest: &Digest) -> Self {
        Self(format!("{prefix}{}", digest.hex()))
    }

    /// The manifest that this tag says something about, if it is one like `sha256-<hex>` or `sha256-<hex>.sig`.
    pub(crate) fn about(&self) -> Option<Digest> {
        let (hex, rest) = self.0.strip_prefix("sha256-")?.split_at_checked(64)?;
        let digest = format!("sha256:{hex}").parse().ok()?;
        (rest.is_empty() || rest.starts_with('.')).then_some(digest)
    }
}

impl FromStr for Tag {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let follows = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        if first && text.len() <= 128 && text.chars().all(follows) {
            Ok(Self(text.to_owned()))
        } else {
            refuse(text, "a tag", "1 to 128 letters, digits, '_', '.' or '-', not starting with '.' or '-'")
        }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The name of Docker Hub in references, signatures and settings.
pub(crate) const HUB: &str = "docker.io";
/// The host at which Docker Hub serves images.
const HUB_ADDRESS: &str = "registry-1.docker.io";

/// The one name of a registry that has several, as Docker Hub does.
pub(crate) fn canonical_host(host: &str) -> &str {
    if matches!(host, HUB_ADDRESS | "index.docker.io") { HUB } else { host }
}

/// Where a registry is reached.
pub(crate) fn address(host: &str) -> &str {
    if canonical_host(host) == HUB { HUB_ADDRESS } else { host }
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    /// The one a tag names now.
    Tag(Tag),
    /// Exactly this one.
    Digest(Digest),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, "tag {tag}"),
            Self::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Location {
    /// `oci:DIR`, an OCI image layout.
    Layout(PathBuf),
    /// A name without a host. When the store is opened, the aliases of `registries.conf` say which
    /// repository the name stands for.
    ShortName(String),
    /// `[docker://]HOST[:PORT]/REPO`.
    Registry {
        /// `HOST` or `HOST:PORT`; IPv6 in brackets.
        host: String,
        /// The repository's path, without the host.
        repository: String,
    },
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout(dir) => write!(f, "oci:{}", dir.display()),
            Self::ShortName(name) => f.write_str(name),
            Self::Registry { host, repository } => write!(f, "{host}/{repository}"),
        }
    }
}

/// `oci:DIR[:TAG|@DIGEST]`, `[docker://]HOST[:PORT]/REPO[:TAG|@DIGEST]` or `ALIAS[:TAG|@DIGEST]`.
///
/// In the layout form a last `:TAG` is taken as a tag when what follows the colon is one (no `/` in it), as skopeo does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    location: Location,
    selector: Option<Selector>,
}

impl Reference {
    /// Where.
    #[must_use]
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Which, if it was said.
    #[must_use]
    pub fn selector(&self) -> Option<&Selector> {
        self.selector.as_ref()
    }

    /// The same place with another selector.
    #[must_use]
    pub fn with_selector(&self, selector: Option<Selector>) -> Self {
        Self { location: self.location.clone(), selector }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            None => self.location.fmt(f),
            Some(Selector::Tag(tag)) => write!(f, "{}:{tag}", self.location),
            Some(Selector::Digest(digest)) => write!(f, "{}@{digest}", self.location),
        }
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("oci:") {
            Some(layout) => parse_layout(text, layout),
            None => match text.strip_prefix("docker://") {
                Some(registry) => parse_registry(text, registry),
                None if text.split_once('/').is_some_and(|(host, _)| looks_like_host(host)) => {
                    parse_registry(text, text)
                }
                None => parse_short_name(text),
            },
        }
    }
}

const WHAT: &str =
    "an image reference (oci:DIR[:TAG|@DIGEST], HOST[:PORT]/REPO[:TAG|@DIGEST], or an alias of registries.conf)";
const REPOSITORY: &str = "a repository is lower-case letters, digits, and single '.', '_', '-' or '/' between them";

/// Splits `@DIGEST` off the end.
fn split_digest<'a>(whole: &str, text: &'a str) -> Result<(&'a str, Option<Digest>), ParseReferenceError> {
    match text.rsplit_once("@sha256:") {
        None => Ok((text, None)),
        Some((rest, hex)) => match format!("sha256:{hex}").parse() {
            Ok(digest) => Ok((rest, Some(digest))),
            Err(_) => refuse(whole, WHAT, "what follows '@' is not a sha256 digest"),
        },
    }
}

fn parse_layout(whole: &str, text: &str) -> Result<Reference, ParseReferenceError> {
    let (rest, digest) = split_digest(whole, text)?;
    let (dir, tag) = match rest.rsplit_once(':') {
        Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag.parse::<Tag>()?)),
        _ => (rest, None),
    };
    if dir.is_empty() {
        return refuse(whole, WHAT, "the folder is empty");
    }
    let selector = digest.map(Selector::Digest).or(tag.map(Selector::Tag));
    Ok(Reference { location: Location::Layout(PathBuf::from(dir)), selector })
}

fn parse_registry(whole: &str, text: &str) -> Result<Reference, ParseReferenceError> {
    let (rest, digest) = split_digest(whole, text)?;
    let Some((host, path)) = rest.split_once('/') else {
        return refuse(whole, WHAT, "behind docker:// stand a registry's host and a repository");
    };
    if !is_host(host) {
        return refuse(
            whole,
            WHAT,
            "what stands before the first '/' is not a host (a name with a '.', a port, or localhost)",
        );
    }
    let (repository, tag) = split_tag(path)?;
    let Some((host, repository)) = canonical(host, repository) else {
        return refuse(whole, WHAT, REPOSITORY);
    };
    let selector = digest.map(Selector::Digest).or(tag.map(Selector::Tag));
    Ok(Reference { location: Location::Registry { host, repository }, selector })
}

fn parse_short_name(text: &str) -> Result<Reference, ParseReferenceError> {
    let (rest, digest) = split_digest(text, text)?;
    let (name, tag) = split_tag(rest)?;
    // A name is one by the rules for repositories, whatever their host.
    if canonical("localhost", name).is_none() {
        return refuse(text, WHAT, REPOSITORY);
    }
    let selector = digest.map(Selector::Digest).or(tag.map(Selector::Tag));
    Ok(Reference { location: Location::ShortName(name.to_owned()), selector })
}

fn split_tag(text: &str) -> Result<(&str, Option<Tag>), ParseReferenceError> {
    match text.split_once(':') {
        Some((repository, tag)) => Ok((repository, Some(tag.parse()?))),
        None => Ok((text, None)),
    }
}

/// Host and repository as `oci-spec` has them: with the rules for Docker Hub (one name for it, `library/` before names
/// without a `/`) and those for repositories. It knows no IPv6 addresses, so their repositories are read below another host.
fn canonical(host: &str, repository: &str) -> Option<(String, String)> {
    let host = canonical_host(host);
    let known = if host.starts_with('[') { "localhost" } else { host };
    let read = oci_spec::distribution::Reference::try_from(format!("{known}/{repository}")).ok()?;
    let registry = if read.registry() == known { host } else { return None };
    Some((registry.to_owned(), read.repository().to_owned()))
}

/// Whether docker reads the text before the first `/` as a host: the text has a dot or a colon, or is
/// `localhost`.
fn looks_like_host(text: &str) -> bool {
    text.contains(['.', ':']) || text == "localhost"
}

/// A host as docker tells one from a path component, of the right form.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            return port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
        }
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !l.starts_with('-')
    };
    let known = port.is_some() || name.contains('.') || name == "localhost";
    known && name.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_round_trip() {
        for text in [
            "oci:/srv/checkpoints",
            "oci:checkpoints:epoch-4",
            "oci:./a:b/c",
            &format!("oci:/x@sha256:{HEX}"),
            "127.0.0.1:5000/sdp/ledger:latest",
            "[::1]:5000/sdp",
            &format!("registry.example/a/b@sha256:{HEX}"),
            "localhost/a",
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), *text);
        }
        let reference: Reference = "docker://localhost:5000/a:b".parse().unwrap();
        assert_eq!(reference.to_string(), "localhost:5000/a:b");
    }

    #[test]
    fn names_without_a_host_are_short() {
        for (text, name) in [("ledger", "ledger"), ("a/b:c", "a/b"), ("dump.tar", "dump.tar"), ("a_b:1.2", "a_b")] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(*reference.location(), Location::ShortName(name.to_owned()));
            assert_eq!(reference.to_string(), text);
        }
        let reference: Reference = format!("ledger@sha256:{HEX}").parse().unwrap();
        assert!(matches!(reference.selector(), Some(Selector::Digest(_))));
    }

    #[test]
    fn a_digest_beats_a_tag() {
        let reference: Reference = format!("localhost/a:b@sha256:{HEX}").parse().unwrap();
        assert!(matches!(reference.selector(), Some(Selector::Digest(_))));
    }

    #[test]
    fn docker_hub_has_one_name() {
        for (text, wanted) in [
            ("docker.io/me/app:a", "docker.io/me/app:a"),
            ("docker://index.docker.io/me/app", "docker.io/me/app"),
            ("registry-1.docker.io/me/app", "docker.io/me/app"),
            ("docker.io/app", "docker.io/library/app"),
            ("index.docker.io/app:1", "docker.io/library/app:1"),
            ("quay.io/app", "quay.io/app"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), wanted);
        }
        assert_eq!(address("docker.io"), "registry-1.docker.io");
        assert_eq!(address("index.docker.io"), "registry-1.docker.io");
        assert_eq!(address("quay.io"), "quay.io");
    }

    #[test]
    fn what_is_not_a_reference() {
        for text in [
            "",
            "Ledger",
            "ledger:",
            "a b",
            "docker://ledger",
            "docker://a/b",
            "oci:",
            "oci::tag",
            "localhost:x/a",
            "localhost/A",
            "localhost/a/",
            "localhost/a:",
            "localhost/a@sha256:00",
            "localhost/../a",
            "localhost//a",
            "http://localhost/a",
            "localhost/a:b:c",
            "[::g]/a",
            "-a.example/x",
            "localhost:99999/a",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
