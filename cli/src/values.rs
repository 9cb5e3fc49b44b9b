//! Values on the command line that are more than one word.

use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use image_format::{MemberId, ParseIdError};

/// Member ids with commas between them; none at all is a list too, so that scripts need no special case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberList(pub Vec<MemberId>);

impl FromStr for MemberList {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// `KEY=VALUE`, each parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue<K, V>(pub K, pub V);

/// Why a text is not `KEY=VALUE`.
#[derive(Debug, thiserror::Error)]
pub enum ParseKeyValueError {
    /// There is no `=`, or nothing before it.
    #[error("it is not of the form KEY=VALUE")]
    Form,
    /// One of the two does not parse.
    #[error(transparent)]
    Part(Box<dyn std::error::Error + Send + Sync>),
}

impl<K, V> FromStr for KeyValue<K, V>
where
    K: FromStr<Err: std::error::Error + Send + Sync + 'static>,
    V: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    type Err = ParseKeyValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or(ParseKeyValueError::Form)?;
        let key = key.parse().map_err(|error| ParseKeyValueError::Part(Box::new(error)))?;
        let value = value.parse().map_err(|error| ParseKeyValueError::Part(Box::new(error)))?;
        Ok(Self(key, value))
    }
}

/// A length of time: `500ms`, `10s`, `2m`; more than nothing, and at most a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Duration);

/// Why a text is no length of time. The messages go after the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseTimeError {
    /// No number with a unit.
    #[error("no time such as \"30s\", \"500ms\" or \"2m\"")]
    Form,
    /// Nobody means that.
    #[error("longer than a day")]
    TooLong,
}

/// Longest time.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl FromStr for Time {
    type Err = ParseTimeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| ParseTimeError::Form)?;
        let milliseconds = match unit {
            "ms" => Some(number),
            "s" => number.checked_mul(1000),
            "m" => number.checked_mul(60_000),
            _ => return Err(ParseTimeError::Form),
        };
        match milliseconds.map(Duration::from_millis) {
            Some(Duration::ZERO) => Err(ParseTimeError::Form),
            Some(time) if time <= DAY => Ok(Self(time)),
            Some(_) | None => Err(ParseTimeError::TooLong),
        }
    }
}

/// An age, which unlike [`Time`] may be nothing, and long: `0s`, `30m`, `12h`, `7d`, `4w`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age(pub Duration);

/// Why a text is no age. The message goes after the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no time such as \"30s\", \"12h\", \"7d\" or \"4w\"")]
pub struct ParseAgeError;

impl FromStr for Age {
    type Err = ParseAgeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => return Err(ParseAgeError),
        };
        let number: u64 = number.parse().map_err(|_| ParseAgeError)?;
        number.checked_mul(milliseconds).map(Duration::from_millis).map(Self).ok_or(ParseAgeError)
    }
}

/// One word of a closed set; `--help` and completions list them.
pub fn words<T>(all: &'static [T], word: fn(T) -> &'static str) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static> + Copy + Send + Sync + 'static,
{
    PossibleValuesParser::new(all.iter().copied().map(word)).try_map(|word| word.parse::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_may_be_empty() {
        assert_eq!("".parse::<MemberList>().unwrap().0.len(), 0);
        assert_eq!("a,b".parse::<MemberList>().unwrap().0.len(), 2);
        assert!("a,".parse::<MemberList>().is_err());
    }

    #[test]
    fn times_have_units() {
        for (text, milliseconds) in [("500ms", 500), ("10s", 10_000), ("2m", 120_000)] {
            assert_eq!(text.parse(), Ok(Time(Duration::from_millis(milliseconds))), "{text}");
        }
        for bad in ["", "10", "0s", "-1s", "1h", "1.5s", "s", "99999999999999999999ms"] {
            assert_eq!(bad.parse::<Time>(), Err(ParseTimeError::Form), "{bad:?}");
        }
        for long in ["1441m", "18446744073709551615m"] {
            assert_eq!(long.parse::<Time>(), Err(ParseTimeError::TooLong), "{long:?}");
        }
    }

    #[test]
    fn ages_may_be_long_or_nothing() {
        for (text, seconds) in [("0s", 0), ("90s", 90), ("36h", 129_600), ("7d", 604_800), ("2w", 1_209_600)] {
            assert_eq!(text.parse(), Ok(Age(Duration::from_secs(seconds))), "{text}");
        }
        for bad in ["", "7", "-1d", "1y", "1.5h", "d", "99999999999999999999w", "18446744073709551615w"] {
            assert_eq!(bad.parse::<Age>(), Err(ParseAgeError), "{bad:?}");
        }
    }

    #[test]
    fn values_may_hold_an_equals_sign() {
        let parsed: KeyValue<MemberId, String> = "a=b=c".parse().unwrap();
        assert_eq!((parsed.0.as_str(), parsed.1.as_str()), ("a", "b=c"));
        assert!("=b".parse::<KeyValue<MemberId, String>>().is_err());
        assert!("b".parse::<KeyValue<MemberId, String>>().is_err());
    }
}
