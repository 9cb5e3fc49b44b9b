//! The head of CRIU's log, which alone tells CRIU's version and the kernel's.

/// What the log's first lines say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LogHead {
    pub(super) criu_version: Option<String>,
    pub(super) kernel: Option<String>,
}

/// Reads lines such as `(00.000110) Version: 4.2.1 (gitid 0)` and
/// `(00.000115) Running on HOST Linux 6.18.44 #1 SMP ... x86_64` (CRIU 4.2, `criu/log.c`).
pub(super) fn parse(bytes: &[u8]) -> LogHead {
    let text = String::from_utf8_lossy(bytes);
    let mut head = LogHead::default();
    for line in text.lines() {
        let message = line.split_once(") ").map_or(line, |(_, message)| message);
        if let Some(version) = message.strip_prefix("Version: ") {
            head.criu_version = head.criu_version.or_else(|| word(version, 0));
        } else if let Some(system) = message.strip_prefix("Running on ") {
            head.kernel = head.kernel.or_else(|| word(system, 2));
        }
    }
    head
}

/// A word that could be a version: nothing else of a log is let through to an annotation.
fn word(text: &str, position: usize) -> Option<String> {
    let word = text.split_ascii_whitespace().nth(position)?;
    let good = word.len() <= 128 && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+-~:".contains(&b));
    good.then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found() {
        let log = b"(00.000000) CRIU run id = x\n(00.000110) Version: 4.2.1 (gitid 0)\n\
            (00.000115) Running on testbed Linux 6.18.44-fc-v782 #1 SMP @0 x86_64\n(00.1) Version: 9\n\xff";
        let head = parse(log);
        assert_eq!(head.criu_version.as_deref(), Some("4.2.1"));
        assert_eq!(head.kernel.as_deref(), Some("6.18.44-fc-v782"));
        assert_eq!(parse(b"(00.1) Running on\nVersion: \x1b[31m"), LogHead::default());
    }
}
