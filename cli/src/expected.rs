//! What a checkpoint must be, beyond that a trusted key signed it: who can write to a repository can point a tag at anything that the
//! key ever signed.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use image_format::{ApplicationId, Artifact, Descriptor, Digest, Epoch, GlobalCheckpoint, rfc3339_seconds};
use registry::sign::GoodSignature;
use registry::{Reference, Selector, Store, Tag, is_pin};
use serde::{Deserialize, Serialize};

use crate::error::{CommandError, While};
use crate::exit::Exit;

/// What is stated on the command line.
#[derive(Debug, Args)]
#[command(next_help_heading = "What it must be")]
pub struct Expected {
    /// Refuse a checkpoint of any other application
    #[arg(long, value_name = "ID")]
    application: Option<ApplicationId>,

    /// Refuse a checkpoint of any other epoch
    #[arg(long, value_name = "N")]
    epoch: Option<Epoch>,

    /// Refuse a checkpoint that is not newer than this epoch, or this time (RFC 3339)
    #[arg(long, value_name = "N|TIME")]
    newer_than: Option<Bound>,

    /// Accept the image of one member, which is only a part of its application
    #[arg(long)]
    pub member_alone: bool,
}

/// What a checkpoint must be newer than.
#[derive(Debug, Clone)]
enum Bound {
    Epoch(Epoch),
    Time(String),
}

/// A text that is neither an epoch nor a time.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("it is neither an epoch, such as 7, nor a time, such as 2026-01-31T12:00:00Z")]
struct ParseBoundError;

impl FromStr for Bound {
    type Err = ParseBoundError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(epoch) => Ok(Self::Epoch(epoch)),
            Err(_) if rfc3339_seconds(text).is_some() => Ok(Self::Time(text.to_owned())),
            Err(_) => Err(ParseBoundError),
        }
    }
}

impl Expected {
    /// Everything that speaks against a checkpoint, a sentence each. `signatures` are those that hold.
    pub fn against(
        &self,
        reference: &Reference,
        store: &dyn Store,
        artifact: &Artifact,
        signatures: &[GoodSignature],
    ) -> Vec<String> {
        let tag = tag(reference);
        let epoch = tag.as_ref().and_then(epoch_of);
        let global = match artifact {
            Artifact::Global(global) => global,
            Artifact::Member(_) => {
                // Members have tags of their own, and are signed under that of their checkpoint.
                let mut against = self.against_member();
                against.extend(epoch.map(|epoch| format!("the tag of epoch {epoch} names the image of one member")));
                return against;
            }
        };
        let mut against = self.against_global(global);
        let Some(tag) = tag else { return against };
        if epoch.is_some_and(|epoch| epoch != global.epoch()) {
            against.push(format!("the tag {tag} names epoch {}", global.epoch()));
        }
        let prefix = format!("{}:", store.repository());
        let signed = signatures.iter().filter_map(|signature| signature.identity.as_deref()?.strip_prefix(&prefix));
        let signed: Vec<&str> = signed.collect();
        if !is_pin(&tag) && !signed.is_empty() && !signed.contains(&tag.as_str()) {
            against.push(format!("what the tag {tag} names was signed as {}", signed.join(", ")));
        }
        against
    }

    /// What speaks against a checkpoint by the options alone, a sentence each.
    pub fn against_stated(&self, artifact: &Artifact) -> Vec<String> {
        match artifact {
            Artifact::Global(global) => self.against_global(global),
            Artifact::Member(_) => self.against_member(),
        }
    }

    fn against_global(&self, global: &GlobalCheckpoint) -> Vec<String> {
        let mut against = Vec::new();
        if let Some(wanted) = self.application.as_ref().filter(|wanted| *wanted != global.application()) {
            against.push(format!("it is a checkpoint of {}, not of {wanted}", global.application()));
        }
        if let Some(wanted) = self.epoch.filter(|wanted| *wanted != global.epoch()) {
            against.push(format!("it is epoch {}, not {wanted}", global.epoch()));
        }
        match &self.newer_than {
            Some(Bound::Epoch(bound)) if global.epoch() <= *bound => {
                against.push(format!("it is epoch {}, which is not newer than {bound}", global.epoch()));
            }
            Some(Bound::Time(bound)) if rfc3339_seconds(global.created()) <= rfc3339_seconds(bound) => {
                against.push(format!("it was made at {}, which is not after {bound}", global.created()));
            }
            _ => {}
        }
        against
    }

    fn against_member(&self) -> Vec<String> {
        let stated = [
            self.application.is_some().then_some("--application"),
            self.epoch.is_some().then_some("--epoch"),
            self.newer_than.is_some().then_some("--newer-than"),
        ];
        let stated: Vec<&str> = stated.into_iter().flatten().collect();
        match stated.is_empty() {
            true => Vec::new(),
            false => vec![format!("it is the image of one member, of which {} cannot be known", stated.join(", "))],
        }
    }
}

/// The tag that a reference names; the one that is read without any, if it names none.
fn tag(reference: &Reference) -> Option<Tag> {
    match reference.selector() {
        Some(Selector::Tag(tag)) => Some(tag.clone()),
        Some(Selector::Digest(_)) => None,
        None => crate::store::DEFAULT_TAG.parse().ok(),
    }
}

/// The number in a tag like `epoch-7`.
fn epoch_of(tag: &Tag) -> Option<Epoch> {
    tag.as_str().strip_prefix("epoch-")?.parse().ok()
}

/// What this host restored last under a tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    reference: String,
    application: ApplicationId,
    epoch: Epoch,
    digest: Digest,
}

impl Seen {
    /// What is remembered of a restore of a global checkpoint under a tag; nothing of anything else.
    pub fn of(reference: &Reference, root: &Descriptor, artifact: &Artifact) -> Option<Self> {
        let (Some(tag), Artifact::Global(global)) = (tag(reference), artifact) else { return None };
        Some(Self {
            reference: format!("{}:{tag}", reference.location()),
            application: global.application().clone(),
            epoch: global.epoch(),
            digest: root.digest,
        })
    }

    /// What is remembered below the folder speaks against going back with a tag, or to another application.
    pub fn against(&self, dir: &Path) -> Result<Option<String>, CommandError> {
        let path = self.path(dir);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.doing(|| format!("{} cannot be read", path.display()))?,
        };
        let last: Self = serde_json::from_str(&text)
            .map_err(|error| CommandError::new(Exit::Damaged, error))
            .doing(|| format!("{} does not say what was restored last", path.display()))?;
        let Self { application, epoch, .. } = &last;
        Ok(match () {
            () if *application != self.application => Some(format!(
                "the tag named a checkpoint of {application} when this host restored it last, and names one of {} now",
                self.application
            )),
            () if self.epoch < *epoch => Some(format!(
                "the tag named epoch {epoch} when this host restored it last, and names epoch {} now",
                self.epoch
            )),
            () => None,
        })
    }

    /// Remembers it below the folder.
    pub fn remember(&self, dir: &Path) -> io::Result<()> {
        let path = self.path(dir);
        let folder = path.parent().unwrap_or(dir);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let new = path.with_extension(format!("new-{}", std::process::id()));
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        serde_json::to_writer(&mut file, self)?;
        file.flush()?;
        fs::rename(&new, &path)
    }

    fn path(&self, dir: &Path) -> PathBuf {
        dir.join("seen").join(Digest::of(self.reference.as_bytes()).hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(reference: &str, application: &str, epoch: u64) -> Seen {
        Seen {
            reference: reference.to_owned(),
            application: application.parse().unwrap(),
            epoch: Epoch(epoch),
            digest: Digest::of(b""),
        }
    }

    #[test]
    fn a_tag_does_not_go_back() {
        let dir = tempfile::tempdir().unwrap();
        let against = |seen: &Seen| seen.against(dir.path()).unwrap_or_else(|error| panic!("{:?}", error.lines()));
        let third = seen("host/r:latest", "ledger", 3);
        assert_eq!(against(&third), None);
        third.remember(dir.path()).unwrap();
        third.remember(dir.path()).unwrap();
        assert_eq!(against(&third), None);
        assert_eq!(against(&seen("host/r:latest", "ledger", 4)), None);
        assert_eq!(against(&seen("host/r:other", "ledger", 1)), None);
        assert!(against(&seen("host/r:latest", "ledger", 2)).unwrap().contains("epoch 3"));
        assert!(against(&seen("host/r:latest", "other", 9)).unwrap().contains("ledger"));
    }

    #[test]
    fn bounds() {
        assert!(matches!("7".parse(), Ok(Bound::Epoch(Epoch(7)))));
        assert!(matches!("2026-01-31T12:00:00Z".parse(), Ok(Bound::Time(_))));
        for bad in ["", "-1", "yesterday", "2026-01-31"] {
            assert!(bad.parse::<Bound>().is_err(), "{bad}");
        }
    }
}
