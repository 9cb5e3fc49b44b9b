//! The links of a chain, as manifests name them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::MAX_GENERATIONS;
use crate::annotation::{BASE, GENERATIONS};
use crate::image::LayerRef;
use crate::{Digest, LayerContent};

/// One part of a generation: `K.P`, both counted from 1. Its files are in `checkpoint/gen-K.P/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// The generation; 1 is the one that has every page.
    pub generation: u32,
    /// The part of it.
    pub part: u32,
}

impl Link {
    /// The folder below `checkpoint/`.
    pub(crate) fn folder(self) -> String {
        format!("gen-{self}")
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.part)
    }
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number =
            |digits: &str| digits.parse::<u32>().ok().filter(|number| number.to_string() == digits && *number > 0);
        let link = text
            .split_once('.')
            .and_then(|(generation, part)| Some(Self { generation: number(generation)?, part: number(part)? }));
        link.ok_or_else(|| {
            format!("{:?} is not of the form GENERATION.PART", text.chars().take(40).collect::<String>())
        })
    }
}

/// The first page of a link: pages of a generation follow one another, file by file, through all of its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FirstPage {
    /// The number in the name of its file of pages.
    pub file: u32,
    /// How many pages of that file lie in earlier links of the generation.
    pub index: u64,
}

impl fmt::Display for FirstPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.index)
    }
}

impl FromStr for FirstPage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let place = text
            .split_once(':')
            .and_then(|(file, index)| Some(Self { file: file.parse().ok()?, index: index.parse().ok()? }));
        let place = place.filter(|place| place.to_string() == text);
        place.ok_or_else(|| format!("{:?} is not of the form FILE:INDEX", text.chars().take(40).collect::<String>()))
    }
}

/// The chain of generations that an image's pages are in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The newest generation, which is how many there are.
    pub generations: u32,
    /// The image whose chain this one continues; none for the first generation.
    pub base: Option<Digest>,
}

impl Chain {
    /// What the image and its entry in a global checkpoint say of it.
    #[must_use]
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let generations = (GENERATIONS.to_owned(), self.generations.to_string());
        let base = self.base.map(|base| (BASE.to_owned(), base.to_string()));
        [generations].into_iter().chain(base).collect()
    }

    /// Checks that the layers are a chain, each link after the one on which it rests.
    pub(crate) fn check(&self, layers: &[LayerRef]) -> Result<(), String> {
        if self.generations == 0 || self.generations > MAX_GENERATIONS {
            return Err(format!(
                "a chain of {} generations is not read; at most {MAX_GENERATIONS} are",
                self.generations
            ));
        }
        let mut last = Link { generation: 0, part: 0 };
        for link in layers.iter().filter_map(|layer| layer.link) {
            let next = Link { part: last.part + 1, ..last };
            let new = Link { generation: last.generation + 1, part: 1 };
            if !(link == new || link == next && last.generation > 0) {
                return Err(format!("its layers have the link {link} where {new} or {next} would follow"));
            }
            last = link;
        }
        if last.generation != self.generations {
            return Err(format!("its layers have {} generations and not {}", last.generation, self.generations));
        }
        match layers.iter().filter(|layer| layer.content == Some(LayerContent::Digests)).count() {
            1 => Ok(()),
            count => Err(format!("it has {count} layers of digests, and one is needed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_have_one_form() {
        assert_eq!("3.12".parse(), Ok(Link { generation: 3, part: 12 }));
        assert_eq!(Link { generation: 3, part: 12 }.folder(), "gen-3.12");
        assert_eq!("3:0".parse(), Ok(FirstPage { file: 3, index: 0 }));
        for bad in ["", "3", "3:", ":3", "03:1", "3:+1", "3:1:1", "4294967296:1"] {
            assert!(bad.parse::<FirstPage>().is_err(), "{bad}");
        }
        for bad in ["", "1", "1.", ".1", "0.1", "1.0", "01.1", "+1.1", "1.1.1", "1.4294967296", " 1.1"] {
            assert!(bad.parse::<Link>().is_err(), "{bad}");
        }
    }
}
