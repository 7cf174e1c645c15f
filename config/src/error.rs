//! What can be wrong with a configuration, and how it is told: one line per mistake, with the key path, the
//! value that was given and what would be right.
//!
//! A line never holds a line break or another control character, whatever the file holds, and never a secret.

use std::borrow::Cow;
use std::fmt;
use std::io;

/// All mistakes of one configuration, in the order of the format; at least one.
#[derive(Debug)]
pub struct ConfigErrors {
    pub(crate) origin: String,
    pub(crate) errors: Vec<ConfigError>,
    pub(crate) unlisted: usize,
}

impl ConfigErrors {
    /// So many are listed; of those beyond, only the number is kept.
    pub const LISTED_MAX: usize = 1000;

    pub(crate) fn one(origin: &str, error: ConfigError) -> ConfigErrors {
        ConfigErrors { origin: origin.to_owned(), errors: vec![error], unlisted: 0 }
    }

    /// Where the text came from, as it was given to `parse` or `load`.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The mistakes, at most [`LISTED_MAX`](Self::LISTED_MAX).
    pub fn list(&self) -> &[ConfigError] {
        &self.errors
    }

    /// How many more there are than the list holds.
    pub fn unlisted(&self) -> usize {
        self.unlisted
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = one_line(&self.origin);
        for (i, error) in self.errors.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            match error.position() {
                Some((line, column)) => write!(f, "{origin}:{line}:{column}: {error}")?,
                None => write!(f, "{origin}: {error}")?,
            }
        }
        if self.unlisted > 0 {
            write!(f, "\n{origin}: and {} more mistakes", self.unlisted)?;
        }
        Ok(())
    }
}

/// One mistake. `key` is the path of a key, such as `networks[1].vni`; `rule` completes "must be …".
#[derive(Debug)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    Read {
        /// Why.
        source: io::Error,
    },
    /// The text is longer than any configuration within the limits.
    TooLong {
        /// The most that is read.
        limit_bytes: usize,
    },
    /// The file is not UTF-8.
    NotText {
        /// Line of the first byte that is not, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// The text is not TOML.
    Syntax {
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// A key that the format does not have at this place.
    UnknownKey {
        /// Its path.
        key: String,
        /// A known key that looks like it.
        nearest: Option<&'static str>,
        /// All keys of this table.
        known: &'static [&'static str],
    },
    /// A key that must be there is not.
    Missing {
        /// Its path.
        key: String,
        /// What it must be.
        rule: Cow<'static, str>,
    },
    /// A value of another type, or out of its limits.
    Invalid {
        /// Its path.
        key: String,
        /// The value.
        got: String,
        /// What it must be.
        rule: Cow<'static, str>,
    },
    /// A list with too few or too many entries.
    Count {
        /// Its path.
        key: String,
        /// Its entries.
        count: usize,
        /// How many it must have.
        rule: Cow<'static, str>,
    },
    /// A value that is already taken.
    Taken {
        /// Its path.
        key: String,
        /// The value.
        got: String,
        /// The path of the key that has it.
        by: String,
    },
    /// What cannot be done as things are.
    Refused {
        /// Path of what asks for it.
        key: String,
        /// The value; empty if it is none to be shown.
        got: String,
        /// Why not, and what would help.
        why: String,
    },
    /// A name that no network, or no endpoint, has.
    NoSuchName {
        /// What has no such name, with its article.
        what: &'static str,
        /// Its path.
        key: String,
        /// The name.
        got: String,
        /// A name that looks like it.
        nearest: Option<String>,
        /// The first few names that there are.
        known: Vec<String>,
    },
    /// Two endpoints share a socket and disagree on what it has once, such as its permission bits; or two uplinks on what is the same
    /// for all.
    Disagree {
        /// For what it must be the same.
        of: &'static str,
        /// Path of the later.
        key: String,
        /// Its value.
        got: String,
        /// Path of the earlier.
        other: String,
        /// The earlier's value.
        other_got: String,
    },
}

impl ConfigError {
    /// The path of the key that is wrong; `None` when the text as a whole is.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Read { .. } | Self::TooLong { .. } | Self::NotText { .. } | Self::Syntax { .. } => None,
            Self::UnknownKey { key, .. }
            | Self::Missing { key, .. }
            | Self::Invalid { key, .. }
            | Self::Count { key, .. }
            | Self::Taken { key, .. }
            | Self::Refused { key, .. }
            | Self::NoSuchName { key, .. }
            | Self::Disagree { key, .. } => Some(key),
        }
    }

    /// Line and column, from 1, where they are known.
    pub fn position(&self) -> Option<(usize, usize)> {
        match self {
            Self::NotText { line, column } | Self::Syntax { line, column, .. } => Some((*line, *column)),
            _ => None,
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read { source } => Some(source),
            _ => None,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { source } => write!(f, "cannot be read: {source}"),
            Self::TooLong { limit_bytes } => write!(f, "too long: must be at most {limit_bytes} bytes"),
            Self::NotText { .. } => f.write_str("not text: must be UTF-8"),
            Self::Syntax { message, .. } => f.write_str(message),
            Self::UnknownKey { key, nearest: Some(nearest), .. } => {
                write!(f, "{key}: unknown key: did you mean `{nearest}`?")
            }
            Self::UnknownKey { key, known, .. } => {
                write!(f, "{key}: unknown key: must be one of {}", known.join(", "))
            }
            Self::Missing { key, rule } => write!(f, "{key}: missing: must be {rule}"),
            Self::Invalid { key, got, rule } => write!(f, "{key} = {got}: must be {rule}"),
            Self::Count { key, count: 1, rule } => write!(f, "{key}: 1 entry: must be {rule}"),
            Self::Count { key, count, rule } => write!(f, "{key}: {count} entries: must be {rule}"),
            Self::Taken { key, got, by } => write!(f, "{key} = {got}: must be unique: {by} is the same"),
            Self::Refused { key, got, why } if got.is_empty() => write!(f, "{key}: {why}"),
            Self::Refused { key, got, why } => write!(f, "{key} = {got}: {why}"),
            Self::NoSuchName { what, key, got, nearest, known } => {
                write!(f, "{key} = {got}: must be the name of {what}")?;
                match nearest {
                    Some(nearest) => write!(f, ": did you mean {nearest}?"),
                    None if known.is_empty() => f.write_str(": there is none"),
                    None => write!(f, ", such as {}", known.join(", ")),
                }
            }
            Self::Disagree { of, key, got, other, other_got } => {
                write!(f, "{key} = {got}: must be the same for {of}: {other} = {other_got}")
            }
        }
    }
}

/// `text` with control characters escaped, so that it stays on its line.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    if !text.chars().any(breaks_line) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if breaks_line(c) { line.extend(c.escape_unicode()) } else { line.push(c) }
    }
    Cow::Owned(line)
}

/// Control characters, and the two line breaks that Unicode does not count among them.
fn breaks_line(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}
