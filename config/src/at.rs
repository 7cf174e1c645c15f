//! A place in the file, and what is done at one: read a field, or report what is wrong with it.
//!
//! Reading returns `None` only after it has reported why, so whoever builds a part of the plan reads all of its fields
//! first and only then uses `?`: that is how all mistakes come at once.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::{self, Display};
use std::hash::Hash;
use std::ops::RangeInclusive;

use crate::error::{ConfigError, ConfigErrors};
use crate::nearest::nearest;
use crate::raw::{Field, Kind, List, Table, show_text};

/// The mistakes so far.
#[derive(Default)]
pub struct Report {
    errors: RefCell<Vec<ConfigError>>,
    unlisted: Cell<usize>,
}

impl Report {
    /// Nothing found wrong.
    pub fn is_clean(&self) -> bool {
        self.len() == 0
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.len() + self.unlisted.get()
    }

    /// How many are listed.
    pub fn len(&self) -> usize {
        self.errors.borrow().len()
    }

    /// Adds a mistake.
    pub fn add(&self, error: ConfigError) {
        if self.len() >= ConfigErrors::LISTED_MAX {
            self.unlisted.set(self.unlisted.get() + 1);
        } else {
            self.errors.borrow_mut().push(error);
        }
    }

    /// For the caller.
    pub fn into_errors(self, origin: &str) -> ConfigErrors {
        let errors = self.errors.into_inner();
        ConfigErrors { origin: origin.to_owned(), errors, unlisted: self.unlisted.get() }
    }
}

/// A place in the file, and where its mistakes go. Its path is put together only when somebody is told it.
#[derive(Clone, Copy)]
pub struct At<'a> {
    parent: Option<&'a At<'a>>,
    part: Part<'a>,
    report: &'a Report,
}

/// The last part of a path.
#[derive(Clone, Copy)]
enum Part<'a> {
    /// All of it: nothing for the top of a file.
    Path(&'a str),
    Key(&'a str),
    Nth(usize),
    All,
}

impl Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(f, "{parent}")?;
        }
        match self.part {
            Part::Path(path) => f.write_str(path),
            Part::Key(key) => {
                let is_first = self.parent.is_none_or(At::is_top);
                let is_bare = !key.is_empty()
                    && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
                f.write_str(if is_first { "" } else { "." })?;
                if is_bare { f.write_str(key) } else { f.write_str(&show_text(key)) }
            }
            Part::Nth(index) => write!(f, "[{index}]"),
            Part::All => f.write_str("[*]"),
        }
    }
}

impl<'a> At<'a> {
    /// The top of the file.
    pub fn top(report: &'a Report) -> At<'a> {
        At::under("", report)
    }

    /// A place in something else, such as a request.
    pub fn under(path: &'a str, report: &'a Report) -> At<'a> {
        At { parent: None, part: Part::Path(path), report }
    }

    fn is_top(&self) -> bool {
        matches!(self.part, Part::Path(""))
    }

    /// A key of the table that is here.
    pub fn key(&'a self, key: &'a str) -> At<'a> {
        At { parent: Some(self), part: Part::Key(key), report: self.report }
    }

    /// An entry of the list that is here.
    pub fn nth(&'a self, index: usize) -> At<'a> {
        At { parent: Some(self), part: Part::Nth(index), report: self.report }
    }

    /// All entries of the list that is here, together.
    pub fn all(&'a self) -> At<'a> {
        At { parent: Some(self), part: Part::All, report: self.report }
    }

    /// The key path.
    pub fn path(&self) -> String {
        self.to_string()
    }

    /// Where mistakes go.
    pub fn report(&self) -> &'a Report {
        self.report
    }

    /// Reports that `got` is not what the rule says ("must be …").
    pub fn invalid(&self, got: impl Display, rule: impl Into<Cow<'static, str>>) {
        let (key, got) = (self.path(), got.to_string());
        self.report.add(ConfigError::Invalid { key, got, rule: rule.into() });
    }

    /// The field's value as `parse` understands it. What is absent, of another type or not understood is reported.
    pub fn required<T: Kind, U>(
        &self,
        field: &Field<T>,
        rule: impl Into<Cow<'static, str>>,
        parse: impl FnOnce(&T) -> Option<U>,
    ) -> Option<U> {
        if matches!(field, Field::Absent) {
            self.report.add(ConfigError::Missing { key: self.path(), rule: rule.into() });
            return None;
        }
        let value = field.value().and_then(parse);
        if value.is_none() {
            self.invalid(field, rule);
        }
        value
    }

    /// As [`required`](Self::required), but what is absent is the default.
    pub fn optional<T: Kind, U>(
        &self,
        field: &Field<T>,
        default: U,
        rule: impl Into<Cow<'static, str>>,
        parse: impl FnOnce(&T) -> Option<U>,
    ) -> Option<U> {
        if matches!(field, Field::Absent) { Some(default) } else { self.required(field, rule, parse) }
    }

    /// A text that stands for something; without a default it is required.
    pub fn text<U>(
        &self,
        field: &Field<String>,
        default: Option<U>,
        rule: &'static str,
        parse: impl FnOnce(&str) -> Option<U>,
    ) -> Option<U> {
        match default {
            Some(default) => self.optional(field, default, rule, |text| parse(text)),
            None => self.required(field, rule, |text| parse(text)),
        }
    }

    /// A number within limits; without a default it is required.
    pub fn number<N>(&self, field: &Field<i64>, range: RangeInclusive<N>, default: Option<N>) -> Option<N>
    where
        N: TryFrom<i64> + PartialOrd + Display,
    {
        if let (Field::Absent, Some(default)) = (field, default) {
            return Some(default);
        }
        let parse = |raw: &i64| N::try_from(*raw).ok().filter(|number| range.contains(number));
        match field.value().and_then(parse) {
            Some(number) => Some(number),
            None => {
                let rule = format!("a number from {} to {}", range.start(), range.end());
                self.required(field, rule, |_| None)
            }
        }
    }

    /// `true` or `false`.
    pub fn switch(&self, field: &Field<bool>, default: bool) -> Option<bool> {
        self.optional(field, default, "true or false", |on| Some(*on))
    }

    /// A table; the keys that it may not have are reported.
    pub fn table<'f, T: Table + Kind>(&self, field: &'f Field<T>, rule: &'static str) -> Option<&'f T> {
        self.required(field, rule, |_| Some(()))?;
        let table = field.value()?;
        self.unknown_keys(table);
        Some(table)
    }

    /// Reports the keys that a table may not have.
    pub fn unknown_keys<T: Table>(&self, table: &T) {
        for key in table.unknown() {
            self.report.add(ConfigError::UnknownKey {
                key: self.key(key).path(),
                nearest: nearest(key, T::KEYS.iter().copied()),
                known: T::KEYS,
            });
        }
    }

    /// A list's entries, each with its place; a list of another length than `count` is reported. Absent is empty.
    pub fn list<'f, T: Kind>(
        &'a self,
        field: &'f List<T>,
        count: RangeInclusive<usize>,
        rule: &'static str,
    ) -> impl Iterator<Item = (At<'a>, &'f Field<T>)> + use<'f, 'a, T> {
        if *count.start() > 0 || !matches!(field, Field::Absent) {
            let _ = self.required(field, rule, |_| Some(()));
        }
        let entries = field.value().map(Vec::as_slice).unwrap_or_default();
        if field.value().is_some() && !count.contains(&entries.len()) {
            let (key, count) = (self.path(), entries.len());
            self.report.add(ConfigError::Count { key, count, rule: rule.into() });
        }
        entries.iter().enumerate().map(|(i, entry)| (self.nth(i), entry))
    }
}

/// Values that may be had once, and the key path of who has each.
pub struct Claims<K>(HashMap<K, String>);

impl<K> Default for Claims<K> {
    fn default() -> Claims<K> {
        Claims(HashMap::new())
    }
}

impl<K: Hash + Eq> Claims<K> {
    /// Nobody has anything.
    pub fn new() -> Claims<K> {
        Claims(HashMap::new())
    }

    /// Takes `value` for the key at `at`, or reports who has it.
    pub fn claim(&mut self, value: K, at: &At<'_>, got: impl Display) {
        match self.0.entry(value) {
            Entry::Occupied(by) => {
                let (key, got, by) = (at.path(), got.to_string(), by.get().clone());
                at.report.add(ConfigError::Taken { key, got, by });
            }
            Entry::Vacant(free) => drop(free.insert(at.path())),
        }
    }

    /// Somebody has it.
    pub fn contains(&self, value: &K) -> bool {
        self.0.contains_key(value)
    }

    /// How many are had.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}
