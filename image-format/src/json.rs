//! JSON that someone else wrote: bounded, and with one meaning.

use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Deepest nesting of objects and arrays. Real manifests need five levels, a container's configuration some ten.
const MAX_DEPTH: usize = 64;

/// Why bytes are not a JSON document that is accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// More bytes than are read.
    #[error("it has {size} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Its size.
        size: u64,
        /// The bound.
        limit: u64,
    },
    /// Objects and arrays in one another beyond the bound.
    #[error("it is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// No JSON, a key that is there twice, or a field of the wrong type.
    #[error("it is not the JSON that it should be")]
    Syntax(#[source] serde_json::Error),
}

/// Reads a value of a type that passes over what it does not know. Bytes that are no UTF-8 are read as the engines, which
/// are written in Go, read them: as U+FFFD.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8], limit: u64) -> Result<T, JsonError> {
    check_bounds(bytes, limit)?;
    serde_json::from_str(&String::from_utf8_lossy(bytes)).map_err(JsonError::Syntax)
}

/// Reads a document whose every part counts, such as a signed manifest: no key may be there twice, at any place, since
/// readers differ in which of the two they take.
pub(crate) fn parse_strict(bytes: &[u8], limit: u64) -> Result<Value, JsonError> {
    check_bounds(bytes, limit)?;
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = StrictValue.deserialize(&mut deserializer).map_err(JsonError::Syntax)?;
    deserializer.end().map_err(JsonError::Syntax)?;
    Ok(value)
}

/// Takes a value as one of a type.
pub(crate) fn typed<T: DeserializeOwned>(value: Value) -> Result<T, JsonError> {
    serde_json::from_value(value).map_err(JsonError::Syntax)
}

fn check_bounds(bytes: &[u8], limit: u64) -> Result<(), JsonError> {
    let size = bytes.len() as u64;
    if size > limit {
        return Err(JsonError::TooLarge { size, limit });
    }
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(JsonError::TooDeep);
        }
    }
    Ok(())
}

/// Makes a [`Value`] and refuses keys that are there twice.
struct StrictValue;

impl<'de> DeserializeSeed<'de> for StrictValue {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(StrictValue)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                let key: String = key.chars().take(128).collect();
                return Err(A::Error::custom(format_args!("the key {key:?} is there twice")));
            }
            object.insert(key, entries.next_value_seed(StrictValue)?);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_may_be_there_once_only() {
        for twice in [r#"{"a":1,"a":1}"#, r#"[{"b":{"a":1,"\u0061":2}}]"#] {
            let error = parse_strict(twice.as_bytes(), 100).unwrap_err();
            assert!(error.source().unwrap().to_string().contains("the key \"a\" is there twice"), "{error:?}");
            assert!(parse::<Value>(twice.as_bytes(), 100).is_ok());
        }
        assert!(parse_strict(br#"{"a":{"a":1}} {}"#, 100).is_err(), "trailing data");
    }

    #[test]
    fn bounds_hold_also_where_nothing_is_read() {
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let hidden = format!(r#"{{"unknown":{deep}}}"#);
        for text in [&deep, &hidden] {
            assert!(matches!(parse_strict(text.as_bytes(), 1 << 20), Err(JsonError::TooDeep)));
            assert!(matches!(parse::<Unread>(text.as_bytes(), 1 << 20), Err(JsonError::TooDeep)));
        }
        assert!(matches!(parse_strict(b"[1,2,3]", 6), Err(JsonError::TooLarge { size: 7, limit: 6 })));
        let brackets_in_text = format!(r#"{{"text":"{}\"["}}"#, "[".repeat(1000));
        assert!(parse_strict(brackets_in_text.as_bytes(), 1 << 20).is_ok());
    }

    #[derive(Debug, serde::Deserialize)]
    struct Unread {}

    proptest! {
        #[test]
        fn strict_reading_is_reading(text in "[\\[\\]{}\",:0-9a-c\\\\ .e-]{0,40}") {
            let plain = serde_json::from_str::<Value>(&text).ok();
            let strict = parse_strict(text.as_bytes(), 100).ok();
            prop_assert!(strict.is_none() || strict == plain);
        }
    }
}
