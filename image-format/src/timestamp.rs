//! Times as RFC 3339 text: told from other text, and made of and turned into seconds since 1970. Only UTC is written.

/// The last second that has four digits of a year.
const LAST: u64 = 253_402_300_799;
const DAY: u64 = 86_400;

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

/// The text for a time in seconds since 1970; times past the year 9999 are the last one that has a text.
#[must_use]
pub fn rfc3339(seconds: u64) -> String {
    let seconds = seconds.min(LAST);
    let (day, second) = (seconds / DAY, seconds % DAY);
    let (year, month, day) = date(day);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// The date of a day since 1970, by way of the calendar that begins in March of the year 0, in which leap days come last.
fn date(day: u64) -> (u64, u64, u64) {
    let day = day + 719_468;
    let era = day / 146_097;
    let day = day % 146_097;
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next_year, month, day)
}

/// The seconds since 1970 of a text, its fraction dropped; `None` before 1970 or if it is no RFC 3339 text.
#[must_use]
pub fn rfc3339_seconds(text: &str) -> Option<u64> {
    if !is_rfc3339(text) {
        return None;
    }
    let number = |text: &str| text.parse::<i64>().ok();
    let field = |from: usize, to: usize| number(text.get(from..to)?);
    let (year, month, day) = (field(0, 4)?, field(5, 7)?, field(8, 10)?);
    let (from_march, year) = if month > 2 { (month - 3, year) } else { (month + 9, year - 1) };
    let days = 365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let days = days + (153 * from_march + 2) / 5 + day - 1 - 719_468;
    let ahead = match text.strip_suffix('Z') {
        Some(_) => 0,
        None => {
            let (sign, zone) = text.split_at_checked(text.len() - 6)?.1.split_at_checked(1)?;
            let (hours, minutes) = zone.split_once(':')?;
            let ahead = number(hours)? * 3600 + number(minutes)? * 60;
            if sign == "-" { -ahead } else { ahead }
        }
    };
    let second = days * DAY.cast_signed() + field(11, 13)? * 3600 + field(14, 16)? * 60 + field(17, 19)?;
    u64::try_from(second - ahead).ok()
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

    #[test]
    fn times_are_counted() {
        for (number, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_393_585, "2026-11-23T00:26:25Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (LAST, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(number), text);
            assert_eq!(rfc3339_seconds(text), Some(number));
        }
        assert_eq!(rfc3339(u64::MAX), rfc3339(LAST));
        assert_eq!(rfc3339_seconds("2026-11-23T01:56:25.8873416+01:30"), Some(1_795_393_585));
        assert_eq!(rfc3339_seconds("2026-11-22T22:56:25-01:30"), Some(1_795_393_585));
        for bad in ["", "2026-11-23", "1969-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "é"] {
            assert_eq!(rfc3339_seconds(bad), None, "{bad}");
        }
        for day in (0..2_932_896).step_by(7) {
            assert_eq!(rfc3339_seconds(&rfc3339(day * DAY)), Some(day * DAY));
        }
    }
}
