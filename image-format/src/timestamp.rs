//! Times as RFC 3339 text. The format only passes them on, so telling good from bad is all there is.

/// Whether the text is a date and time of RFC 3339, such as `2026-02-03T04:05:06.789Z`.
pub(crate) fn is_rfc3339(text: &str) -> bool {
    let Some((date_time, rest)) = text.as_bytes().split_at_checked(19) else {
        return false;
    };
    let fields = |layout: &[u8], bytes: &[u8]| {
        layout.len() == bytes.len()
            && layout.iter().zip(bytes).all(|(l, b)| if *l == b'0' { b.is_ascii_digit() } else { l == b })
    };
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n, b| n * 10 + u32::from(b - b'0'));
    if !fields(b"0000-00-00T00:00:00", date_time) {
        return false;
    }
    let in_range = [(5, 1..=12), (8, 1..=31), (11, 0..=23), (14, 0..=59), (17, 0..=60)]
        .into_iter()
        .all(|(at, range)| range.contains(&number(&date_time[at..at + 2])));
    let zone = match rest.strip_prefix(b".") {
        None => Some(rest),
        Some(fraction) => {
            let digits = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
            (1..=9).contains(&digits).then(|| &fraction[digits..])
        }
    };
    let zone_is_good = match zone {
        Some([b'Z']) => true,
        Some([b'+' | b'-', offset @ ..]) => {
            fields(b"00:00", offset) && number(&offset[..2]) < 24 && number(&offset[3..]) < 60
        }
        _ => false,
    };
    in_range && zone_is_good
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_from_other_text() {
        for good in ["2026-02-03T04:05:06Z", "2026-12-31T23:59:60.123456789+05:30", "0001-01-01T00:00:00-00:00"] {
            assert!(is_rfc3339(good), "{good}");
        }
        for bad in [
            "",
            "2026-02-03",
            "2026-02-03 04:05:06Z",
            "2026-02-03T04:05:06",
            "2026-13-03T04:05:06Z",
            "2026-02-03T24:05:06Z",
            "2026-02-03T04:05:06.Z",
            "2026-02-03T04:05:06.1234567890Z",
            "2026-02-03T04:05:06+5:30",
            "2026-02-03T04:05:06ZZ",
            "2026-02-03T04:05:06+24:00",
            "２026-02-03T04:05:06Z",
        ] {
            assert!(!is_rfc3339(bad), "{bad}");
        }
    }
}
