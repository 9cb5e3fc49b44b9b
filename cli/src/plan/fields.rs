//! Takes the fields of a table one after the other, and minds those that nobody takes.

use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problem, closest};

/// A table whose fields are being taken.
pub(super) struct Fields<'t> {
    table: &'t DeTable<'t>,
    /// For messages, such as `the plan`.
    what: &'static str,
    /// Where the table stands.
    pub at: Range<usize>,
    /// The key under which it stands, where that is a name.
    pub name: Option<(&'t str, Range<usize>)>,
    /// What was asked for so far.
    known: Vec<&'static str>,
}

/// Parsed values, and where each of them stands.
pub(super) struct List<T> {
    pub values: Vec<T>,
    pub places: Vec<Range<usize>>,
}

impl<'t> Fields<'t> {
    pub fn new(table: &'t DeTable<'t>, at: Range<usize>, what: &'static str) -> Self {
        Self { table, what, at, name: None, known: Vec::new() }
    }

    /// A text.
    pub fn text(&mut self, key: &'static str) -> Result<Option<(&'t str, Range<usize>)>, Problem> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match value.get_ref().as_str() {
            Some(text) => Ok(Some((text, value.span()))),
            None => Err(wrong(value, key, "a text in quotes")),
        }
    }

    /// A text that a function reads.
    pub fn with<T, E: Display>(
        &mut self,
        key: &'static str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<T>, Problem> {
        let read = |(text, at)| read(text).map_err(|error| Problem::new(at, format!("{key}: {error}")));
        self.text(key)?.map(read).transpose()
    }

    /// A number of a range, which may stand in quotes.
    pub fn number(&mut self, key: &'static str, range: RangeInclusive<u32>) -> Result<Option<u32>, Problem> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let (digits, radix) = match value.get_ref() {
            DeValue::Integer(number) => (number.as_str(), number.radix()),
            // In YAML, whose numbers have no value here.
            other => (other.as_str().unwrap_or_default(), 10),
        };
        let read = u32::from_str_radix(digits, radix.clamp(2, 36)).ok();
        match read.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(
                value,
                key,
                &format!("a number from {} to {}, in quotes in YAML", range.start(), range.end()),
            )),
        }
    }

    /// A text that parses, and where it stands.
    pub fn placed<T: FromStr<Err: Display>>(
        &mut self,
        key: &'static str,
    ) -> Result<Option<(T, Range<usize>)>, Problem> {
        let at = self.place(key);
        Ok(self.with(key, str::parse)?.zip(at))
    }

    /// A text that parses.
    pub fn parsed<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Result<Option<T>, Problem> {
        self.with(key, str::parse)
    }

    /// A path; a relative one is below `folder`.
    pub fn path(&mut self, key: &'static str, folder: &Path) -> Result<Option<PathBuf>, Problem> {
        self.with(key, |text| match text {
            "" => Err("a path cannot be empty"),
            text => Ok(folder.join(text)),
        })
    }

    /// Yes or no, and where it stands.
    pub fn bool(&mut self, key: &'static str) -> Result<Option<(bool, Range<usize>)>, Problem> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        match value.get_ref().as_bool() {
            Some(yes) => Ok(Some((yes, value.span()))),
            None => Err(wrong(value, key, "true or false")),
        }
    }

    /// A list of texts that parse; an empty one if it is not there.
    pub fn list<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Result<List<T>, Problem> {
        let mut list = List { values: Vec::new(), places: Vec::new() };
        let Some(value) = self.take(key) else {
            return Ok(list);
        };
        for item in value.get_ref().as_array().ok_or_else(|| wrong(value, key, "a list"))? {
            let text = item.get_ref().as_str().ok_or_else(|| wrong(item, key, "a list of texts in quotes"))?;
            let parsed = text.parse().map_err(|error| Problem::new(item.span(), format!("{key}: {error}")))?;
            list.values.push(parsed);
            list.places.push(item.span());
        }
        Ok(list)
    }

    /// A table within the table.
    pub fn table(&mut self, key: &'static str, what: &'static str) -> Result<Option<Self>, Problem> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let table = value.get_ref().as_table().ok_or_else(|| wrong(value, key, "a table"))?;
        Ok(Some(Fields::new(table, value.span(), what)))
    }

    /// The members: a list of tables (`[[members]]`), or tables by id (`[members.ID]`; in YAML `ID:`); in the order of the file.
    pub fn members(&mut self) -> Result<Vec<Self>, Problem> {
        const WHAT: &str = "a member";
        let Some(value) = self.take("members") else {
            return Err(Problem::new(0..0, "the plan has no members")
                .hint("each has a place by its id: [members.ID] in TOML, ID: below members: in YAML"));
        };
        let expected = "a list of tables, or tables by id";
        let table = |value: &'t Spanned<DeValue<'t>>| {
            let table = value.get_ref().as_table().ok_or_else(|| wrong(value, "members", expected))?;
            Ok(Fields::new(table, value.span(), WHAT))
        };
        let mut members = match value.get_ref() {
            DeValue::Array(list) => list.iter().map(table).collect::<Result<Vec<_>, _>>()?,
            DeValue::Table(tables) => {
                let named = |(key, value): (&'t Spanned<_>, _)| {
                    let name = Some((AsRef::<str>::as_ref(key.get_ref()), key.span()));
                    Ok(Fields { name, ..table(value)? })
                };
                tables.iter().map(named).collect::<Result<Vec<_>, _>>()?
            }
            _ => return Err(wrong(value, "members", expected)),
        };
        members.sort_by_key(|member| member.name.as_ref().map_or(member.at.start, |(_, at)| at.start));
        match members.is_empty() {
            true => Err(Problem::new(value.span(), "the plan has no members")),
            false => Ok(members),
        }
    }

    /// Where a field's value stands.
    pub fn place(&self, key: &str) -> Option<Range<usize>> {
        self.find(key).map(Spanned::span)
    }

    /// An error if there is a field that was not asked for.
    pub fn finish(self) -> Result<(), Problem> {
        let unknown = self.table.iter().map(|(key, _)| key).filter(|key| !self.known.contains(&key.get_ref().as_ref()));
        let Some(key) = unknown.min_by_key(|key| key.span().start) else {
            return Ok(());
        };
        let name: &str = key.get_ref().as_ref();
        let problem = Problem::new(key.span(), format!("{} has no field {name:?}", self.what));
        Err(match closest(name, self.known.iter().copied()) {
            Some(close) => problem.meant(Some(close)),
            None => problem.hint(format!("there are {}", self.known.join(", "))),
        })
    }

    fn take(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.known.push(key);
        self.find(key)
    }

    fn find(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }
}

fn wrong(value: &Spanned<DeValue<'_>>, key: &str, expected: &str) -> Problem {
    Problem::new(value.span(), format!("{key} is {expected}, not {}", in_words(value.get_ref())))
}

fn in_words(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
