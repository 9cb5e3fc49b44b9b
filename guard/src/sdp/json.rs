//! Values as ska-sdp-config writes them: JSON, indented by two, keys in order, everything outside ASCII escaped.

use std::fmt::Write as _;

use serde_json::Value;

/// The text of a value.
pub(super) fn to_text(value: &Value) -> String {
    // Objects of serde_json are sorted, and its own indentation is two.
    let text = format!("{value:#}");
    if text.is_ascii() {
        return text;
    }
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            escaped.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(escaped, "\\u{unit:04x}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_those_of_python() {
        // json.dumps({'b': [1, {}], 'a': 'ö😀'}, indent=2, separators=(',', ': '), sort_keys=True)
        let expected = "{\n  \"a\": \"\\u00f6\\ud83d\\ude00\",\n  \"b\": [\n    1,\n    {}\n  ]\n}";
        assert_eq!(to_text(&json!({ "b": [1, {}], "a": "ö😀" })), expected);
        assert_eq!(to_text(&json!(30000)), "30000");
    }
}
