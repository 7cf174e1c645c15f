//! From text to the raw file, or the first place where the text is not TOML.
//!
//! The parser bounds its own nesting, but dotted keys within inline tables multiply: 80 levels of the one, each with
//! 80 of the other. serde recurses for each level and would overflow the stack, so the tree is measured before, without
//! recursion.

use serde::Deserialize;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Value};

use crate::error::{ConfigError, one_line};
use crate::raw::Kind;

/// Levels of tables and lists. The format has 5.
const DEPTH_MAX: usize = 16;

/// The file as it is written.
pub fn read<T: Kind + Default>(text: &str) -> Result<T, ConfigError> {
    let (tree, errors) = DeTable::parse_recoverable(text);
    let refused = match errors.first() {
        Some(error) => Some(from_parser(text, error)),
        None => too_deep(tree.get_ref()).map(|offset| {
            error_at(text, offset, &format!("nested too deeply: must be at most {DEPTH_MAX} levels"))
        }),
    };
    if let Some(error) = refused {
        take_apart(tree.into_inner());
        return Err(error);
    }
    let value = Value::deserialize(toml::Deserializer::from(tree));
    // Its top is a table.
    value.map(|value| T::of(value).unwrap_or_default()).map_err(|error| from_parser(text, &error))
}

/// Where the first value below the last level is.
fn too_deep(tree: &DeTable<'_>) -> Option<usize> {
    let mut rest: Vec<(&Spanned<DeValue<'_>>, usize)> = tree.values().map(|value| (value, 1)).collect();
    while let Some((value, depth)) = rest.pop() {
        if depth > DEPTH_MAX {
            return Some(value.span().start);
        }
        match value.get_ref() {
            DeValue::Table(table) => rest.extend(table.values().map(|value| (value, depth + 1))),
            DeValue::Array(list) => rest.extend(list.iter().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    None
}

/// Drops a tree of any depth without recursion.
fn take_apart(tree: DeTable<'_>) {
    let mut rest = vec![DeValue::Table(tree)];
    while let Some(value) = rest.pop() {
        match value {
            DeValue::Table(table) => rest.extend(table.into_iter().map(|(_, value)| value.into_inner())),
            DeValue::Array(list) => rest.extend(list.into_iter().map(Spanned::into_inner)),
            _ => {}
        }
    }
}

fn from_parser(text: &str, error: &toml::de::Error) -> ConfigError {
    let offset = error.span().map_or(0, |span| span.start);
    error_at(text, offset, &error.message().lines().collect::<Vec<_>>().join(", "))
}

fn error_at(text: &str, offset: usize, message: &str) -> ConfigError {
    let (line, column) = position(text.as_bytes(), offset);
    ConfigError::Syntax { line, column, message: one_line(message).into_owned() }
}

/// Line and column, both from 1, of the byte at `offset`; columns are characters where the text is UTF-8.
pub fn position(text: &[u8], offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let line = 1 + before.iter().filter(|b| **b == b'\n').count();
    let column = 1 + String::from_utf8_lossy(before.get(line_start..).unwrap_or_default()).chars().count();
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::File;

    #[test]
    fn positions_count_lines_and_characters() {
        let text = "a\nbä c\n".as_bytes();
        for (offset, want) in [(0, (1, 1)), (1, (1, 2)), (2, (2, 1)), (5, (2, 3)), (8, (3, 1)), (99, (3, 1))]
        {
            assert_eq!(position(text, offset), want, "{offset}");
        }
    }

    #[test]
    fn depth_is_measured_and_told() {
        let nested = |depth: usize| format!("a = 1\nx = {}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(read::<File>(&nested(16)).is_ok());
        let error = read::<File>(&nested(17)).err().unwrap();
        assert_eq!(error.position(), Some((2, 21)));
        assert_eq!(error.to_string(), "nested too deeply: must be at most 16 levels");
    }
}
