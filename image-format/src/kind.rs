//! The small closed sets of the format: kinds of dump, contents of a layer, compressions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::annotation::MEDIA_LAYER;

/// A text is not one of the words of a closed set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not one of {expected}")]
pub struct ParseKindError {
    text: String,
    expected: &'static str,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? } $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// All values, in the order of the specification.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word that stands for the value in annotations and on the command line.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = ParseKindError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(ParseKindError { text: text.chars().take(64).collect(), expected: $expected }),
                }
            }
        }
    };
}

words!(
    /// Whose layout of files a dump has. The three archives are mutually incompatible: a podman dump restores in podman.
    DumpKind {
        /// `podman container checkpoint --export`, or an image that podman made.
        Podman = "podman",
        /// CRI-O's, which is also what the kubelet's checkpoint API gives there.
        CriO = "cri-o",
        /// containerd's CRI plugin (2.1 to 2.3).
        Containerd = "containerd",
        /// `runc checkpoint --image-path`, with the bundle's `config.json`.
        Runc = "runc",
        /// `runc checkpoint` beside Docker, with what Docker said of the container.
        Docker = "docker",
        /// CRIU's images and nothing else, of processes in no container that an engine knows: `criu dump`.
        Criu = "criu",
    }
    "podman, cri-o, containerd, runc, docker, criu"
);

words!(
    /// What a layer holds: contents that change together stay together.
    LayerContent {
        /// CRIU's state, config, spec, links: small, and new every time.
        State = "state",
        /// The root filesystem's diff, volumes, /dev/shm.
        Files = "files",
        /// The table of pages of a dump whose pages are in generations.
        Digests = "digests",
        /// Memory pages.
        Pages = "pages",
        /// Everything in one layer (`--layout plain`).
        Whole = "whole",
    }
    "state, files, digests, pages, whole"
);

words!(
    /// How a layer or an archive is compressed.
    Compression {
        /// Not at all.
        None = "none",
        /// gzip.
        Gzip = "gzip",
        /// zstd, the default.
        Zstd = "zstd",
    }
    "none, gzip, zstd"
);

#[expect(clippy::derivable_impls, reason = "the enum is made by a macro that knows no default")]
impl Default for Compression {
    fn default() -> Self {
        Self::Zstd
    }
}

impl Compression {
    /// The media type of a layer compressed like this.
    #[must_use]
    pub fn layer_media_type(self) -> String {
        match self {
            Self::None => MEDIA_LAYER.to_owned(),
            Self::Gzip | Self::Zstd => format!("{MEDIA_LAYER}+{self}"),
        }
    }

    /// The other way round; `None` for a media type that is no layer of the OCI image specification.
    #[must_use]
    pub fn of_layer(media_type: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|compression| compression.layer_media_type() == media_type)
    }

    /// Recognises compressed content by its first four bytes.
    #[must_use]
    pub fn of_content(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for kind in DumpKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
        for compression in Compression::ALL {
            assert_eq!(Compression::of_layer(&compression.layer_media_type()), Some(*compression));
        }
        assert!("lxc".parse::<DumpKind>().is_err());
        assert_eq!(Compression::of_layer("application/vnd.docker.image.rootfs.diff.tar.gzip"), None);
    }
}
