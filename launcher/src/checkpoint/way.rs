//! Which way the memory of this host's members takes when nobody says: the one on which tasks stand frozen for less time.
//!
//! CRIU's files go into the page cache, which takes them faster than a socket does, up to where the kernel makes who writes wait for the
//! disk. Tasks would stand frozen for that, as they would fail on a disk without room.
//!
//! ```text
//! memory of all members ─┬─ more than the disk has room for, or the page cache takes at once ─▶ stream, or tls if strangers cannot be told
//!                        └─ less ─▶ disk
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::members::Member;
use super::options::Pages;
use crate::pages::{can_tell, family};
use crate::preflight::Room;

/// Bytes of a page, in which the kernel counts.
const PAGE: u64 = 4096;

/// A way, and why, as a sentence without its end, if it is not what CRIU does by itself.
pub(super) type Way = (Pages, Option<String>);

/// Chooses a way for all members. `work_dir` is where those have their files whose engine has no place of its own.
pub(super) fn choose(members: &[Member], work_dir: &Path) -> Way {
    let mut needs: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut all: u64 = 0;
    for source in members.iter().map(|member| &member.source) {
        let bytes = memory(source.pid);
        all += bytes;
        let folder = source.log.as_deref().and_then(Path::parent).unwrap_or(work_dir);
        // A folder that cannot be looked at is for CRIU to fail at.
        if let Ok(room) = Room::at(folder) {
            needs.entry(room.device).or_insert((0, room.available)).0 += bytes;
        }
    }
    let at_once = fs::read_to_string("/proc/vmstat").ok().and_then(|vmstat| at_once(&vmstat));
    decide(all, needs.values().copied(), at_once, can_tell())
}

/// `needs` are bytes that are needed and available, by file system; `at_once` are bytes that the page cache takes, if that is known.
fn decide(all: u64, mut needs: impl Iterator<Item = (u64, u64)>, at_once: Option<u64>, can_tell: bool) -> Way {
    let mib = |bytes: u64| bytes >> 20;
    let why = match (needs.find(|(needed, available)| needed > available), at_once) {
        (Some((needed, available)), _) => {
            format!("the disk has room for {} MiB of {} MiB of memory", mib(available), mib(needed))
        }
        (None, Some(most)) if all > most => {
            format!("the page cache takes {} MiB of {} MiB of memory at once", mib(most), mib(all))
        }
        (None, _) => return (Pages::Disk, None),
    };
    if can_tell {
        return (Pages::Stream, Some(format!("memory goes over a socket, since {why}")));
    }
    (
        Pages::Tls,
        Some(format!("memory goes over a socket with TLS, since {why} and the kernel does not tell whose a socket is")),
    )
}

/// Bytes that CRIU finds in the memory of a process and of all that it started; 0 for those that are gone.
fn memory(pid: i32) -> u64 {
    let statuses = family(pid).into_iter().filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
    statuses.map(|status| resident(&status)).sum()
}

/// Bytes of memory that is in no file, by `/proc/PID/status`. Memory that processes share counts for each of them.
fn resident(status: &str) -> u64 {
    let kib = |line: &str| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok();
    let counts = |line: &&str| ["RssAnon:", "RssShmem:", "VmSwap:"].iter().any(|name| line.starts_with(name));
    status.lines().filter(counts).filter_map(kib).map(|kib| kib.saturating_mul(1024)).sum()
}

/// Bytes that can be written before who writes waits for the disk, by `/proc/vmstat`: the kernel begins with that half way between its
/// two thresholds (`dirty_freerun_ceiling` in mm/page-writeback.c).
fn at_once(vmstat: &str) -> Option<u64> {
    let of = |name: &str| {
        let mut lines = vmstat.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(key, _)| *key == name)?.1.trim().parse::<u64>().ok()
    };
    let ceiling = of("nr_dirty_threshold")?.saturating_add(of("nr_dirty_background_threshold")?) / 2;
    let there = of("nr_dirty")?.saturating_add(of("nr_writeback")?);
    Some(ceiling.saturating_sub(there).saturating_mul(PAGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VMSTAT: &str = "nr_dirty 100\nnr_writeback 24\nnr_writeback_temp 9\nnr_dirty_threshold 1000\nnr_dirty_background_threshold 500\n";

    #[test]
    fn the_page_cache_takes_what_is_below_the_middle_of_the_thresholds() {
        assert_eq!(at_once(VMSTAT), Some((750 - 124) * PAGE));
        assert_eq!(at_once(&VMSTAT.replace("nr_dirty 100", "nr_dirty 1000")), Some(0));
        assert_eq!(at_once("nr_dirty 1\n"), None);
        assert_eq!(at_once(&VMSTAT.replace("1000", "many")), None);
    }

    #[test]
    fn memory_that_is_in_no_file_counts() {
        let status =
            "Name:\tx\nVmRSS:\t 99 kB\nRssAnon:\t  10 kB\nRssFile:\t 80 kB\nRssShmem:\t 5 kB\nVmSwap:\t 1 kB\n";
        assert_eq!(resident(status), 16 << 10);
        assert!(memory(std::process::id().cast_signed()) > 0);
        assert_eq!(memory(i32::MAX), 0);
    }

    #[test]
    fn memory_goes_over_a_socket_where_files_would_wait_or_not_fit() {
        let (mib, decide) = (1 << 20, |all: u64, room, at_once, can_tell| {
            let needs = [(all, room)];
            decide(all, needs.into_iter(), at_once, can_tell)
        });
        assert_eq!(decide(8 * mib, 9 * mib, Some(8 * mib), true), (Pages::Disk, None));
        assert_eq!(decide(8 * mib, 9 * mib, None, false), (Pages::Disk, None));
        let (pages, why) = decide(8 * mib, 7 * mib, Some(8 * mib), true);
        let room = "memory goes over a socket, since the disk has room for 7 MiB of 8 MiB of memory";
        assert_eq!((pages, why.as_deref()), (Pages::Stream, Some(room)));
        let (pages, why) = decide(8 * mib, 9 * mib, Some(3 * mib), true);
        let cache = "memory goes over a socket, since the page cache takes 3 MiB of 8 MiB of memory at once";
        assert_eq!((pages, why.as_deref()), (Pages::Stream, Some(cache)));
        let (pages, why) = decide(8 * mib, 9 * mib, Some(3 * mib), false);
        assert_eq!(pages, Pages::Tls);
        assert!(why.unwrap().ends_with("and the kernel does not tell whose a socket is"));
    }
}
