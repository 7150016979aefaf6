//! The one error of this crate: always one line, always with a way out.

use std::fmt;

/// Longest piece of the user's own text that an error repeats, in characters.
const QUOTE_LIMIT: usize = 120;

/// What kind of mistake it was, for callers that act on it; people read the [`Display`](fmt::Display) text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file could not be read.
    Io,
    /// The text is not UTF-8.
    NotUtf8,
    /// The text is larger than the caller allows.
    TooLarge,
    /// The text is not TOML.
    Syntax,
    /// A key that the type does not know.
    UnknownKey,
    /// A key that the type cannot do without.
    MissingKey,
    /// A value of the wrong type, out of range, or refused by the type.
    WrongValue,
}

/// Why a text was refused. Renders as `FILE:LINE:COL: KEY: reason; way out`, without the parts that do not apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(Box<Inner>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    kind: ErrorKind,
    file: String,
    position: Option<(usize, usize)>,
    key: String,
    reason: String,
    way_out: String,
}

impl ConfigError {
    pub(crate) fn new(
        kind: ErrorKind,
        file: &str,
        position: Option<(usize, usize)>,
        reason: &str,
        way_out: &str,
    ) -> Self {
        Self(Box::new(Inner {
            kind,
            file: one_line(file, 4096),
            position,
            key: String::new(),
            reason: one_line(reason, 4 * QUOTE_LIMIT),
            way_out: one_line(way_out, 4 * QUOTE_LIMIT),
        }))
    }

    pub(crate) fn at_key(mut self, key: String) -> Self {
        self.0.key = key;
        self
    }

    /// What kind of mistake it was.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The file (or the name the caller gave the text) that holds the offending value.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.0.file
    }

    /// Line and column, both from 1, the column in characters; `None` where the text as a whole is at fault.
    #[must_use]
    pub fn position(&self) -> Option<(usize, usize)> {
        self.0.position
    }

    /// The key path, as in `nodes[2].payload`; empty where no key is concerned.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.0.key
    }

    /// What is wrong.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// What to do about it.
    #[must_use]
    pub fn way_out(&self) -> &str {
        &self.0.way_out
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { file, position, key, reason, way_out, .. } = &*self.0;
        f.write_str(file)?;
        if let Some((line, column)) = position {
            write!(f, ":{line}:{column}")?;
        }
        if !key.is_empty() {
            write!(f, ": {key}")?;
        }
        write!(f, ": {reason}; {way_out}")
    }
}

impl std::error::Error for ConfigError {}

/// Shortens a piece of the user's text to what an error may repeat.
pub(crate) fn quote(text: &str) -> String {
    one_line(text, QUOTE_LIMIT)
}

/// One printable line of at most `limit` characters: the text may hold terminal escapes, and goes to a terminal.
fn one_line(text: &str, limit: usize) -> String {
    let mut line = String::with_capacity(text.len().min(limit));
    for (count, character) in text.chars().enumerate() {
        if count == limit {
            line.push('…');
            break;
        }
        // Control characters, line breaks, and the marks that reorder what a terminal shows.
        if character.is_control()
            || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}
