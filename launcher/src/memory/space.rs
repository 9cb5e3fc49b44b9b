//! What one address space still lacks. Nothing here touches the kernel.
//!
//! A page is asked for at the address where it is now, and comes under the address that it had in the dump: a task may have moved
//! it meanwhile, or given it up. A child begins with whatever its parent lacks.

use std::collections::BTreeMap;

use image_format::LazyRun;

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;

/// The pages that an address space lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Space {
    /// By their addresses now.
    lacking: BTreeMap<u64, Lacking>,
    /// Whether any was ever moved: as long as none was, it is where the dump had it.
    moved: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lacking {
    bytes: u64,
    /// The address in the dump.
    origin: u64,
}

/// Pages that came and are lacking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Where they belong now.
    pub address: u64,
    /// Where they begin within what came, in bytes.
    pub offset: u64,
    pub bytes: u64,
}

impl Space {
    pub fn new(runs: &[LazyRun]) -> Self {
        let lacking = runs.iter().map(|run| (run.address, Lacking { bytes: run.pages * PAGE, origin: run.address }));
        Self { lacking: lacking.collect(), moved: false }
    }

    pub fn is_empty(&self) -> bool {
        self.lacking.is_empty()
    }

    /// The address that the page at an address had in the dump, if it is lacking.
    pub fn origin(&self, address: u64) -> Option<u64> {
        let (start, run) = self.lacking.range(..=address).next_back()?;
        (address < start + run.bytes).then_some(run.origin + address - start)
    }

    /// What is lacking of the bytes from `origin` on in the dump.
    pub fn wanted(&self, origin: u64, bytes: u64) -> Vec<Wanted> {
        let end = origin + bytes;
        let from =
            if self.moved { 0 } else { self.lacking.range(..=origin).next_back().map_or(0, |(start, _)| *start) };
        let to = if self.moved { u64::MAX } else { end };
        let runs = self.lacking.range(from..to);
        let found = runs.filter(|(_, run)| run.origin < end && run.origin + run.bytes > origin);
        found
            .map(|(start, run)| {
                let first = run.origin.max(origin);
                let last = (run.origin + run.bytes).min(end);
                Wanted { address: start + first - run.origin, offset: first - origin, bytes: last - first }
            })
            .collect()
    }

    /// These bytes are there, or nobody wants them any more.
    pub fn settle(&mut self, address: u64, bytes: u64) {
        self.take(address, bytes);
    }

    /// A task moved a range.
    pub fn remap(&mut self, from: u64, to: u64, bytes: u64) {
        let taken = self.take(from, bytes);
        // What was there before is gone.
        self.take(to, bytes);
        self.moved |= !taken.is_empty();
        self.lacking.extend(taken.into_iter().map(|(start, run)| (start - from + to, run)));
    }

    /// Cuts a range out.
    fn take(&mut self, address: u64, bytes: u64) -> Vec<(u64, Lacking)> {
        let end = address.saturating_add(bytes);
        let first = self.lacking.range(..=address).next_back().map_or(address, |(start, _)| *start);
        let within: Vec<(u64, Lacking)> = self.lacking.range(first..end).map(|(start, run)| (*start, *run)).collect();
        let mut taken = Vec::new();
        for (start, run) in within {
            let run_end = start + run.bytes;
            if run_end <= address {
                continue;
            }
            self.lacking.remove(&start);
            if start < address {
                self.lacking.insert(start, Lacking { bytes: address - start, ..run });
            }
            if run_end > end {
                self.lacking.insert(end, Lacking { bytes: run_end - end, origin: run.origin + end - start });
            }
            let (from, to) = (start.max(address), run_end.min(end));
            taken.push((from, Lacking { bytes: to - from, origin: run.origin + from - start }));
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn space() -> Space {
        Space::new(&[LazyRun { address: 0x1000, pages: 4 }, LazyRun { address: 0x8000, pages: 2 }])
    }

    #[test]
    fn pages_are_lacking_until_they_come() {
        let mut space = space();
        assert_eq!((space.origin(0x4fff), space.origin(0x5000), space.origin(0xfff)), (Some(0x4fff), None, None));
        let wanted = |address, offset, bytes| Wanted { address, offset, bytes };
        assert_eq!(space.wanted(0x4000, 0x5000), [wanted(0x4000, 0, 0x1000), wanted(0x8000, 0x4000, 0x1000)]);
        space.settle(0x2000, 0x1000);
        assert_eq!(space.wanted(0x1000, 0x4000), [wanted(0x1000, 0, 0x1000), wanted(0x3000, 0x2000, 0x2000)]);
        space.settle(0, u64::MAX);
        assert!(space.is_empty());
    }

    #[test]
    fn a_page_that_moved_comes_to_where_it_is() {
        let mut space = space();
        space.remap(0x2000, 0x8000, 0x2000);
        assert_eq!(space.origin(0x9010), Some(0x3010));
        assert_eq!(space.wanted(0x2000, 0x1000), [Wanted { address: 0x8000, offset: 0, bytes: 0x1000 }]);
        assert_eq!(space.wanted(0x8000, 0x2000), [], "what was there is gone");
    }

    /// One page at a time, as a map: what [`Space`] does with ranges.
    #[derive(Debug, Clone, Default)]
    struct Plain(BTreeMap<u64, u64>);

    impl Plain {
        fn remap(&mut self, from: u64, to: u64, pages: u64) {
            let moved: Vec<_> = (0..pages).filter_map(|page| Some((page, self.0.remove(&(from + page))?))).collect();
            for page in 0..pages {
                self.0.remove(&(to + page));
            }
            self.0.extend(moved.into_iter().map(|(page, origin)| (to + page, origin)));
        }
    }

    proptest! {
        #[test]
        fn ranges_are_as_good_as_pages(
            runs in prop::collection::btree_map(0..8_u64, 1..8_u64, 1..6),
            steps in prop::collection::vec((any::<bool>(), 0..64_u64, 0..64_u64, 1..16_u64), 0..12),
        ) {
            let runs: Vec<_> = runs.into_iter().map(|(slot, pages)| LazyRun { address: slot * 8 * PAGE, pages }).collect();
            let mut space = Space::new(&runs);
            let pages = runs.iter().flat_map(|run| (0..run.pages).map(move |page| run.address / PAGE + page));
            let mut plain = Plain(pages.map(|page| (page, page)).collect());
            for (moves, from, to, pages) in steps {
                // The kernel moves nothing onto itself.
                let apart = from + pages <= to || to + pages <= from;
                if moves && apart {
                    space.remap(from * PAGE, to * PAGE, pages * PAGE);
                    plain.remap(from, to, pages);
                } else {
                    space.settle(from * PAGE, pages * PAGE);
                    for page in from..from + pages {
                        plain.0.remove(&page);
                    }
                }
                for page in 0..96 {
                    prop_assert_eq!(space.origin(page * PAGE), plain.0.get(&page).map(|origin| origin * PAGE));
                }
                let mut wanted: Vec<_> = space.wanted(3 * PAGE, 40 * PAGE).into_iter()
                    .flat_map(|some| (0..some.bytes / PAGE).map(move |page| (some.address / PAGE + page, 3 + some.offset / PAGE + page)))
                    .collect();
                wanted.sort_unstable();
                let expected: Vec<_> = plain.0.iter().filter(|(_, origin)| (3..43).contains(*origin)).map(|(a, b)| (*a, *b)).collect();
                prop_assert_eq!(wanted, expected);
                prop_assert_eq!(space.is_empty(), plain.0.is_empty());
            }
        }
    }
}
