//! How much memory a member has, as far as the kernel tells before it stands frozen.

use std::collections::BTreeSet;
use std::fs;

use coordinator::hook::children;

/// Bytes that CRIU finds in the memory of a process and of all that it started; 0 for those that are gone.
pub(super) fn memory(pid: i32) -> u64 {
    let statuses = family(pid).into_iter().filter_map(|pid| fs::read(format!("/proc/{pid}/status")).ok());
    // The name of a process need not be text.
    statuses.map(|status| resident(&String::from_utf8_lossy(&status))).sum()
}

/// A process, and all that it or they started and that have not outlived who started them. Where the kernel does not tell who started whom
/// (CONFIG_PROC_CHILDREN) it is alone.
fn family(pid: i32) -> BTreeSet<i32> {
    let mut found = BTreeSet::from([pid]);
    let mut rest = vec![pid];
    while let Some(pid) = rest.pop() {
        rest.extend(children(pid).filter(|pid| found.insert(*pid)));
    }
    found
}

/// Bytes of memory that is in no file, by `/proc/PID/status`. Memory that processes share counts for each of them.
fn resident(status: &str) -> u64 {
    let kib = |line: &str| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok();
    let counts = |line: &&str| ["RssAnon:", "RssShmem:", "VmSwap:"].iter().any(|name| line.starts_with(name));
    status.lines().filter(counts).filter_map(kib).map(|kib| kib.saturating_mul(1024)).sum()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn memory_that_is_in_no_file_counts() {
        let status =
            "Name:\tx\nVmRSS:\t 99 kB\nRssAnon:\t  10 kB\nRssFile:\t 80 kB\nRssShmem:\t 5 kB\nVmSwap:\t 1 kB\n";
        assert_eq!(resident(status), 16 << 10);
        assert!(memory(std::process::id().cast_signed()) > 0);
        assert_eq!(memory(i32::MAX), 0);
    }

    #[test]
    fn what_a_process_started_counts() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let own = family(std::process::id().cast_signed());
        child.kill().unwrap();
        assert!(own.contains(&child.id().cast_signed()));
        child.wait().unwrap();
    }
}
