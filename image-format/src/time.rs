//! Seconds since 1970 as RFC 3339 text and back, for creation times. Only UTC is written.

/// The last second that has four digits of a year.
const LAST: u64 = 253_402_300_799;
const DAY: u64 = 86_400;

/// The text for a time; times past the year 9999 are the last one that has a text.
pub(crate) fn rfc3339(seconds: u64) -> String {
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

/// The time of a text, with its fraction dropped; `None` before 1970 or if it is no RFC 3339 text.
pub(crate) fn seconds(text: &str) -> Option<u64> {
    let (date_time, rest) = text.split_at_checked(19)?;
    let field = |at: usize, len: usize| {
        let digits = date_time.get(at..at + len).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        digits?.parse::<i64>().ok()
    };
    let (year, month, day) = (field(0, 4)?, field(5, 2)?, field(8, 2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (from_march, year) = if month > 2 { (month - 3, year) } else { (month + 9, year - 1) };
    let days = 365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let days = days + (153 * from_march + 2) / 5 + day - 1 - 719_468;
    let seconds = days * DAY.cast_signed() + field(11, 2)? * 3600 + field(14, 2)? * 60 + field(17, 2)?;
    u64::try_from(seconds - offset(rest)?).ok()
}

/// Seconds by which a zone (after an optional fraction) is ahead of UTC.
fn offset(rest: &str) -> Option<i64> {
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|digit: char| digit.is_ascii_digit()),
        None => rest,
    };
    let (sign, zone) = match zone.split_at_checked(1)? {
        ("Z" | "z", "") => return Some(0),
        ("+", zone) => (1, zone),
        ("-", zone) => (-1, zone),
        _ => return None,
    };
    let (hours, minutes) = zone.split_once(':')?;
    let number = |text: &str| text.parse::<i64>().ok().filter(|number| (0..60).contains(number));
    Some(sign * (number(hours)? * 3600 + number(minutes)? * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        for (number, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_393_585, "2026-11-23T00:26:25Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (LAST, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(number), text);
            assert_eq!(seconds(text), Some(number));
        }
        assert_eq!(rfc3339(u64::MAX), rfc3339(LAST));
        assert_eq!(seconds("2026-11-23T01:56:25.8873416+01:30"), Some(1_795_393_585));
    }

    #[test]
    fn every_day_comes_back() {
        for day in (0..2_932_896).step_by(7) {
            assert_eq!(seconds(&rfc3339(day * DAY)), Some(day * DAY));
        }
    }

    #[test]
    fn other_texts_are_none() {
        for bad in [
            "",
            "2026-11-23",
            "2026-13-01T00:00:00Z",
            "2026-11-23T00:26:25",
            "1969-12-31T23:59:59Z",
            "é".repeat(30).as_str(),
        ] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
