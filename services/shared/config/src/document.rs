//! A TOML tree that knows which file, line and column each of its keys and values came from, even after merging.
//!
//! The texts are thought of as laid end to end: each has a base offset, every span in the tree is shifted by it, and
//! an offset so leads back to its file. This keeps the parser's own tree (and its deserializer) usable as it is.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue, Error};

use crate::error::{ConfigError, ErrorKind};

/// A text and the name by which errors call it.
struct Source<'t> {
    base: usize,
    name: String,
    text: &'t str,
}

/// One or more parsed texts, merged in the order they were added.
pub(crate) struct Document<'t> {
    sources: Vec<Source<'t>>,
    root: Spanned<DeTable<'t>>,
}

/// A step of a key path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

impl<'t> Document<'t> {
    /// An empty document, which errors call `name`.
    pub(crate) fn empty(name: &str) -> Self {
        let source = Source { base: 0, name: name.to_owned(), text: "" };
        Self { sources: vec![source], root: Spanned::new(0..0, DeTable::new()) }
    }

    /// Parses `text` and lays it over what is there: tables merge, everything else is replaced.
    pub(crate) fn add(&mut self, name: &str, text: &'t str) -> Result<(), ConfigError> {
        let base = self.sources.last().map_or(0, |last| last.base + last.text.len() + 1);
        self.sources.push(Source { base, name: name.to_owned(), text });
        let table = DeTable::parse(text).map_err(|error| self.syntax_error(base, &error))?;
        merge(self.root.get_mut(), shift_table(table.into_inner(), base));
        Ok(())
    }

    fn syntax_error(&self, base: usize, error: &Error) -> ConfigError {
        let (file, position) = self.locate(base + error.span().map_or(0, |span| span.start));
        let reason = match error.message() {
            "duplicate key" => "this key is given twice".to_owned(),
            message => format!("not valid TOML: {message}"),
        };
        let way_out = match error.message() {
            "duplicate key" => "keep one of them",
            _ => "correct the syntax (https://toml.io)",
        };
        ConfigError::new(ErrorKind::Syntax, file, Some(position), &reason, way_out)
    }

    pub(crate) fn root(&self) -> &Spanned<DeTable<'t>> {
        &self.root
    }

    /// Where an offset of the merged tree lies: the file, and line and column from 1.
    pub(crate) fn locate(&self, offset: usize) -> (&str, (usize, usize)) {
        let index = self.sources.partition_point(|source| source.base <= offset).saturating_sub(1);
        let source = &self.sources[index];
        let within = offset.saturating_sub(source.base).min(source.text.len());
        (&source.name, end_of(&source.text.as_bytes()[..within]))
    }

    /// The span of the value at `path`, or of the deepest value on the way to it.
    pub(crate) fn value_span(&self, path: &[Step]) -> Range<usize> {
        let Some((first, rest)) = path.split_first() else { return self.root.span() };
        let Some(mut value) = self.top(first) else { return self.root.span() };
        for step in rest {
            let Some(next) = child(value.get_ref(), step) else { break };
            value = next;
        }
        value.span()
    }

    fn top(&self, step: &Step) -> Option<&Spanned<DeValue<'t>>> {
        match step {
            Step::Key(key) => self.root.get_ref().get(key.as_str()),
            Step::Index(_) => None,
        }
    }

    /// Finds the key `name`, at `path` or (where the type hides how it got there, as tagged enums do) first below it.
    /// Gives the span of the key and the path of the table that holds it.
    pub(crate) fn find_key(&self, path: &[Step], name: &str) -> Option<(Range<usize>, Vec<Step>)> {
        let mut trail = path.to_vec();
        let Some((first, rest)) = path.split_first() else { return below_table(self.root.get_ref(), name, &mut trail) };
        let mut value = self.top(first)?;
        for step in rest {
            value = child(value.get_ref(), step)?;
        }
        below(value.get_ref(), name, &mut trail)
    }
}

/// Line and column, both from 1, of what follows `before`; the column in characters.
pub(crate) fn end_of(before: &[u8]) -> (usize, usize) {
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    (line, String::from_utf8_lossy(&before[line_start..]).chars().count() + 1)
}

fn child<'v, 't>(value: &'v DeValue<'t>, step: &Step) -> Option<&'v Spanned<DeValue<'t>>> {
    match (value, step) {
        (DeValue::Table(table), Step::Key(key)) => table.get(key.as_str()),
        (DeValue::Array(array), Step::Index(index)) => array.get(*index),
        _ => None,
    }
}

fn below(value: &DeValue<'_>, name: &str, trail: &mut Vec<Step>) -> Option<(Range<usize>, Vec<Step>)> {
    match value {
        DeValue::Table(table) => below_table(table, name, trail),
        DeValue::Array(array) => array.iter().enumerate().find_map(|(index, value)| {
            trail.push(Step::Index(index));
            let found = below(value.get_ref(), name, trail);
            trail.pop();
            found
        }),
        _ => None,
    }
}

fn below_table(table: &DeTable<'_>, name: &str, trail: &mut Vec<Step>) -> Option<(Range<usize>, Vec<Step>)> {
    if let Some((key, _)) = table.get_key_value(name) {
        return Some((key.span(), trail.clone()));
    }
    table.iter().find_map(|(key, value)| {
        trail.push(Step::Key(key.get_ref().clone().into_owned()));
        let found = below(value.get_ref(), name, trail);
        trail.pop();
        found
    })
}

fn merge<'t>(under: &mut DeTable<'t>, over: DeTable<'t>) {
    for (key, value) in over {
        let span = value.span();
        match (under.get_mut(key.get_ref().as_ref()).map(Spanned::get_mut), value.into_inner()) {
            (Some(DeValue::Table(under)), DeValue::Table(over)) => merge(under, over),
            (_, value) => {
                // Removed first: inserting over an equal key keeps the old key, and with it the old file.
                under.remove_entry(key.get_ref().as_ref());
                under.insert(key, Spanned::new(span, value));
            }
        }
    }
}

fn shift_table(table: DeTable<'_>, base: usize) -> DeTable<'_> {
    table.into_iter().map(|(key, value)| (shift(key, base), shift_value(value, base))).collect()
}

fn shift_value(value: Spanned<DeValue<'_>>, base: usize) -> Spanned<DeValue<'_>> {
    let span = moved(value.span(), base);
    let inner = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(shift_table(table, base)),
        DeValue::Array(array) => DeValue::Array(array.into_iter().map(|value| shift_value(value, base)).collect()),
        plain => plain,
    };
    Spanned::new(span, inner)
}

fn shift(key: Spanned<DeString<'_>>, base: usize) -> Spanned<DeString<'_>> {
    Spanned::new(moved(key.span(), base), key.into_inner())
}

fn moved(span: Range<usize>, base: usize) -> Range<usize> {
    span.start + base..span.end + base
}
