//! What podman and Docker answer in the same way.
//!
//! A field that is missing, `null` or of another type is not known, and an entry that cannot be read
//! does not hide the others.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::Error as _;
use serde_json::Value;

use crate::volumes::Volume;

/// `podman volume ls`, `docker volume inspect`.
pub(crate) fn volumes(answer: &[u8]) -> Result<Vec<Volume>, serde_json::Error> {
    let volume = |entry: &Value| {
        let named = Volume::named(text(entry, "/Name")?);
        let driver = text(entry, "/Driver").map_or(named.driver, str::to_owned);
        Some(Volume { driver, labels: texts(entry, "/Labels"), options: texts(entry, "/Options"), ..named })
    };
    Ok(entries(answer)?.iter().filter_map(volume).collect())
}

/// `podman volume inspect`, `docker volume inspect` of one: where its content is.
pub(crate) fn mountpoint(answer: &[u8]) -> Result<PathBuf, serde_json::Error> {
    let found = entries(answer)?.iter().find_map(|entry| text(entry, "/Mountpoint").map(PathBuf::from));
    found.filter(|path| path.is_absolute()).ok_or_else(|| serde_json::Error::custom("no mountpoint"))
}

/// An answer that is no JSON, such as that of `docker ps --quiet`: a word on each line.
pub(crate) fn lines(answer: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(answer);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// A list. Engines say `null` for an empty one.
pub(crate) fn entries(answer: &[u8]) -> Result<Vec<Value>, serde_json::Error> {
    serde_json::from_slice::<Option<_>>(answer).map(Option::unwrap_or_default)
}

/// A text that is not empty.
pub(crate) fn text<'a>(entry: &'a Value, pointer: &str) -> Option<&'a str> {
    entry.pointer(pointer)?.as_str().filter(|text| !text.is_empty())
}

/// A list; an empty one if there is none.
pub(crate) fn list<'a>(entry: &'a Value, pointer: &str) -> &'a [Value] {
    entry.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A map of texts; what is none of them is left out.
pub(crate) fn texts(entry: &Value, pointer: &str) -> BTreeMap<String, String> {
    let all = entry.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
    all.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}
