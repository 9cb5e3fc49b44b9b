//! Plans in YAML, read into the same tables as those in TOML, so that one set of rules and words is for both.
//!
//! Of YAML 1.2 this is what a plan needs: one document of mappings, lists and scalars by the core schema. There are no aliases
//! and no tags, so that a text can neither grow nor ask for anything; and nothing is deeper than a plan can be. The events
//! of the parser are taken one by one, without recursion.

use std::borrow::Cow;
use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span};
use toml::Spanned;
use toml::de::{DeArray, DeInteger, DeString, DeTable, DeValue};

use super::problem::Problem;

/// Lists and mappings within each other; a plan has four.
const DEEPEST: usize = 8;
/// Where a member that says nothing about itself may stand, as the container's name with a colon.
const MEMBERS: &str = "members";

/// Reads the only document of a text.
pub(super) fn parse(text: &str) -> Result<Spanned<DeTable<'_>>, Problem> {
    let places = Places::of(text);
    let mut open: Vec<Open<'_>> = Vec::new();
    let mut root = None;
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| broken(&error, &places))?;
        let at = places.range(span);
        let problem = |message: &str| Err(Problem::new(at.clone(), message));
        let done = match event {
            Event::Alias(_) => return problem("an alias; a plan says everything where it stands"),
            Event::Scalar(.., Some(_)) | Event::SequenceStart(_, Some(_)) | Event::MappingStart(_, Some(_)) => {
                return problem("a tag; a plan has none");
            }
            Event::SequenceStart(..) | Event::MappingStart(..) if open.len() == DEEPEST => {
                return problem("nothing in a plan is as deep as this");
            }
            Event::SequenceStart(..) => {
                open.push(Open { at, inside: Inside::List(DeArray::new()) });
                continue;
            }
            Event::MappingStart(..) => {
                open.push(Open { at, inside: Inside::Mapping(DeTable::new(), None) });
                continue;
            }
            Event::Scalar(text, style, ..) => {
                if let Some(Open { inside: Inside::Mapping(table, key @ None), .. }) = open.last_mut() {
                    let new = Spanned::new(at.clone(), text);
                    if table.contains_key(&new) {
                        return Err(Problem::new(at, format!("{:?} is there twice", new.get_ref())));
                    }
                    *key = Some(new);
                    continue;
                }
                match scalar(text, style) {
                    Some(value) => Spanned::new(at, value),
                    None if within_members(&open) => Spanned::new(at, DeValue::Table(DeTable::new())),
                    None => return problem("there is no value"),
                }
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open { at: begin, inside }) => {
                    let value = match inside {
                        Inside::List(list) => DeValue::Array(list),
                        Inside::Mapping(table, _) => DeValue::Table(table),
                    };
                    Spanned::new(begin.start..at.end, value)
                }
                None => continue,
            },
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    return problem("a second document; a plan is one");
                }
                continue;
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => continue,
        };
        match open.last_mut().map(|open| &mut open.inside) {
            None => root = Some(done),
            Some(Inside::List(list)) => list.push(done),
            Some(Inside::Mapping(table, key)) => match key.take() {
                Some(key) => drop(table.insert(key, done)),
                None => return Err(Problem::new(done.span(), "a name is a text")),
            },
        }
    }
    let Some(root) = root else { return Ok(Spanned::new(0..0, DeTable::new())) };
    let at = root.span();
    match root.into_inner() {
        DeValue::Table(table) => Ok(Spanned::new(at, table)),
        _ => Err(Problem::new(at, "a plan is a mapping, with lines such as `application: NAME`")),
    }
}

/// A list or mapping whose end has not come yet.
struct Open<'t> {
    at: Range<usize>,
    inside: Inside<'t>,
}

enum Inside<'t> {
    List(DeArray<'t>),
    /// With the key whose value comes next.
    Mapping(DeTable<'t>, Option<Spanned<DeString<'t>>>),
}

/// Whether what comes next is the value of a member's id.
fn within_members(open: &[Open<'_>]) -> bool {
    match open {
        [Open { inside: Inside::Mapping(_, Some(key)), .. }, Open { inside: Inside::Mapping(..), .. }] => {
            key.get_ref() == MEMBERS
        }
        _ => false,
    }
}

/// By the core schema of YAML 1.2; `None` is its null. The value of a number is lost: a field that is one has it in quotes.
fn scalar(text: Cow<'_, str>, style: ScalarStyle) -> Option<DeValue<'_>> {
    if style != ScalarStyle::Plain {
        return Some(DeValue::String(text));
    }
    match &*text {
        "" | "~" | "null" | "Null" | "NULL" => None,
        "true" | "True" | "TRUE" => Some(DeValue::Boolean(true)),
        "false" | "False" | "FALSE" => Some(DeValue::Boolean(false)),
        number if is_number(number) => Some(DeValue::Integer(DeInteger::default())),
        _ => Some(DeValue::String(text)),
    }
}

fn is_number(text: &str) -> bool {
    let all = |digits: &str, of: fn(&u8) -> bool| !digits.is_empty() && digits.bytes().all(|byte| of(&byte));
    if let Some(digits) = text.strip_prefix("0o") {
        return all(digits, |byte| (b'0'..=b'7').contains(byte));
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return all(digits, u8::is_ascii_hexdigit);
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    match unsigned.strip_prefix('.') {
        Some("inf" | "Inf" | "INF") => true,
        Some("nan" | "NaN" | "NAN") => unsigned.len() == text.len(),
        // What Rust takes besides, such as `inf`, begins with a letter.
        _ => unsigned.starts_with(|c: char| c == '.' || c.is_ascii_digit()) && unsigned.parse::<f64>().is_ok(),
    }
}

fn broken(error: &ScanError, places: &Places) -> Problem {
    let at = places.byte(error.marker().index());
    Problem::new(at..at, error.info())
}

/// Where each character begins, for the parser counts characters.
struct Places(Vec<usize>);

impl Places {
    fn of(text: &str) -> Self {
        Self(text.char_indices().map(|(at, _)| at).chain([text.len()]).collect())
    }

    fn byte(&self, character: usize) -> usize {
        self.0[character.min(self.0.len() - 1)]
    }

    fn range(&self, span: Span) -> Range<usize> {
        self.byte(span.start.index())..self.byte(span.end.index())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_words_are_what_the_core_schema_says() {
        for number in ["0", "12", "-3", "+1.5", ".5", "1e3", "12e4", "0o17", "0x1F", ".inf", "-.Inf", ".nan", "007"] {
            assert!(is_number(number), "{number}");
        }
        for text in ["", "-", ".", "inf", "nan", "-.nan", "1_000", "0b1", "0x", "5s", "1.2.3", "e3", "12ab", "no"] {
            assert!(!is_number(text), "{text}");
        }
    }

    #[test]
    fn places_are_bytes_of_the_text() {
        let text = "# ü\r\nmembers:\r\n  ä: {id: \"ö\"}\r\n";
        let table = parse(text).unwrap().into_inner();
        let (key, members) = table.iter().next().unwrap();
        assert_eq!(&text[key.span()], "members");
        let (key, member) = members.get_ref().as_table().unwrap().iter().next().unwrap();
        assert_eq!(&text[key.span()], "ä");
        let (key, id) = member.get_ref().as_table().unwrap().iter().next().unwrap();
        assert_eq!((&text[key.span()], &text[id.span()]), ("id", "\"ö\""));
    }
}
