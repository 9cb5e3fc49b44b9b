//! Volumes, as an engine keeps them and as the image of a member tells of them.
//!
//! ```text
//! checkpoint: the first member that has a volume ─▶ its image holds volumes/NAME.tar
//!             every other member                 ─▶ its annotation says "stored-in": the first one
//! restore:    each volume is made once and filled, with the label MARK ─▶ the members start
//!             the restore fails                  ─▶ volumes with that label are removed
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use coordinator::SessionId;
use image_format::files::{ArchivedFolder, archived_folder};
use image_format::{Limits, MemberId};
use serde::{Deserialize, Serialize};

use crate::target::MARK;

/// How many bytes an image may say of its volumes: far more than anybody tells an engine of them.
const LONGEST: usize = 1 << 20;

/// How many bytes a label or an option may have. The kernel takes 128 KiB as one argument.
const LONGEST_ARGUMENT: usize = 64 << 10;

/// How many bytes the name of a driver may have.
const LONGEST_DRIVER: usize = 128;

/// A volume that an engine keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// The driver that keeps it: `local`, unless a plugin does.
    #[serde(default = "Volume::local")]
    pub driver: String,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// As `podman volume create --opt` takes them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
    /// The member whose image has its content, where that is not the one that this is said of.
    #[serde(rename = "stored-in", default, skip_serializing_if = "Option::is_none")]
    pub stored_in: Option<MemberId>,
}

impl Volume {
    /// podman's own driver, which keeps volumes in folders.
    const LOCAL: &str = "local";

    fn local() -> String {
        Self::LOCAL.to_owned()
    }

    /// A volume of which only the name is known.
    pub fn named(name: &str) -> Self {
        let (labels, options) = (BTreeMap::new(), BTreeMap::new());
        Self { name: name.to_owned(), driver: Self::local(), labels, options, stored_in: None }
    }

    /// What an image says of its volumes. Whatever could be no volume of an engine is `None`, since
    /// labels and options become arguments of programs.
    pub fn parse_all(text: &str) -> Option<Vec<Self>> {
        if text.len() > LONGEST {
            return None;
        }
        let volumes: Vec<Self> = serde_json::from_str(text).ok()?;
        volumes.iter().all(Self::is_sound).then_some(volumes)
    }

    fn is_sound(&self) -> bool {
        // What follows the first `=` is the value, for podman too.
        let is_argument = |(key, value): (&String, &String)| {
            let is_key = !key.is_empty() && !key.contains('=');
            is_key && !key.contains('\0') && !value.contains('\0') && key.len() + value.len() <= LONGEST_ARGUMENT
        };
        let is_driver = self.driver.len() <= LONGEST_DRIVER && self.driver.bytes().all(|byte| byte.is_ascii_graphic());
        is_driver && self.labels.iter().chain(&self.options).all(is_argument)
    }

    /// Whether podman keeps it itself, so that it can be made and filled again.
    pub fn is_local(&self) -> bool {
        self.driver == Self::LOCAL
    }

    /// The folder of the host that is mounted as the volume, if it is one.
    pub fn folder(&self) -> Option<&str> {
        let device = self.options.get("device")?;
        let is_bind = self.options.get("o").is_some_and(|o| o.split(',').any(|o| o == "bind" || o == "rbind"));
        (is_bind && device.starts_with('/')).then_some(device)
    }

    /// Whether something is mounted as the volume, so that it has content only while it is mounted.
    pub fn is_mount(&self) -> bool {
        self.options.contains_key("device") || self.options.contains_key("type")
    }

    /// Whether the restore of this session made it.
    pub fn made_by(&self, session: SessionId) -> bool {
        self.labels.get(MARK).is_some_and(|mark| *mark == session.to_string())
    }
}

/// Those of these volumes whose content is in the image of the member that has them.
pub fn stored(volumes: &[Volume]) -> impl Iterator<Item = &Volume> {
    volumes.iter().filter(|volume| volume.stored_in.is_none())
}

/// Gives a volume's folder the owner and the mode that it had. What fills
/// the folder gives them to all that is in it, and not to the folder itself.
pub(crate) fn own(folder: &Path, content: &Path) -> io::Result<()> {
    let content = BufReader::new(File::open(content)?);
    let top = archived_folder(content, &Limits::default()).map_err(io::Error::other)?;
    let Some(ArchivedFolder { uid, gid, mode }) = top else { return Ok(()) };
    std::os::unix::fs::lchown(folder, Some(uid), Some(gid))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_says_of_volumes_is_bounded() {
        let text = r#"[{"name":"a","driver":"local","labels":{"x":"y=z"},"options":{"o":"uid=7"}},
            {"name":"b","stored-in":"first"}]"#;
        let volumes = Volume::parse_all(text).unwrap();
        assert_eq!(stored(&volumes).map(|volume| volume.name.as_str()).collect::<Vec<_>>(), ["a"]);
        assert_eq!(serde_json::to_string(&volumes[1]).unwrap(), r#"{"name":"b","driver":"local","stored-in":"first"}"#);
        assert!(volumes[1].is_local() && volumes[1].labels.is_empty());
        assert_eq!(Volume::parse_all("[]"), Some(Vec::new()));
        for bad in [
            "",
            "{}",
            "[7]",
            "[{}]",
            r#"[{"name":7}]"#,
            r#"[{"name":"a","stored-in":"../b"}]"#,
            r#"[{"name":"a","driver":"lo cal"}]"#,
            r#"[{"name":"a","driver":"local\nforged"}]"#,
            r#"[{"name":"a","labels":{"":"x"}}]"#,
            r#"[{"name":"a","labels":{"x":"\u0000"}}]"#,
            r#"[{"name":"a","options":{"o=bind,device":"/etc"}}]"#,
            r#"[{"name":"a","options":{"\u0000":"x"}}]"#,
            r#"[{"name":"a","options":["o"]}]"#,
        ] {
            assert_eq!(Volume::parse_all(bad), None, "{bad}");
        }
        let labelled = |length: usize| format!(r#"[{{"name":"a","labels":{{"x":"{}"}}}}]"#, "y".repeat(length));
        assert!(Volume::parse_all(&labelled(LONGEST_ARGUMENT - 1)).is_some());
        assert_eq!(Volume::parse_all(&labelled(LONGEST_ARGUMENT)), None);
        let driver = format!(r#"[{{"name":"a","driver":"{}"}}]"#, "d".repeat(LONGEST_DRIVER + 1));
        assert_eq!(Volume::parse_all(&driver), None);
        assert!(Volume::parse_all(&format!("[]{}", " ".repeat(LONGEST - 2))).is_some());
        assert_eq!(Volume::parse_all(&format!("[]{}", " ".repeat(LONGEST - 1))), None);
    }

    #[test]
    fn what_is_mounted_as_a_volume_is_in_its_options() {
        let volume = |options: &[(&str, &str)]| {
            let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Volume { options, ..Volume::named("v") }
        };
        let bind = volume(&[("type", "none"), ("o", "rw,bind"), ("device", "/srv/data")]);
        assert_eq!((bind.folder(), bind.is_mount()), (Some("/srv/data"), true));
        let tmpfs = volume(&[("type", "tmpfs"), ("o", "size=2M"), ("device", "tmpfs")]);
        assert_eq!((tmpfs.folder(), tmpfs.is_mount()), (None, true));
        let quota = volume(&[("o", "size=2M")]);
        assert_eq!((quota.folder(), quota.is_mount()), (None, false));
    }
}
