//! The flags that say when a chain of generations ends.

use clap::Args;
use image_format::ChainLimits;

/// When all pages are stored again, instead of those that changed.
#[derive(Debug, Clone, Args)]
// Last but for others with a heading: what follows comes under this one.
#[command(next_help_heading = "Generations")]
pub struct Chains {
    /// Store only pages that changed so many times less one in a row; with 1, every image has all of its pages to itself
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=16))]
    max_generations: u32,

    /// Store all pages again where the generations before have more bytes than so many percent of the pages
    #[arg(long, value_name = "PERCENT", default_value_t = 200)]
    max_stored: u32,
}

impl From<&Chains> for ChainLimits {
    fn from(chains: &Chains) -> Self {
        Self { generations: chains.max_generations, stored_percent: chains.max_stored, ..Self::default() }
    }
}
