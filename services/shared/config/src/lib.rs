//! Strict TOML: configuration files with drop-ins, and specs that people write by hand.
//!
//! For: turning a TOML text into a type so that a person who mistyped something is told the file, the line, the key,
//! what is wrong and what to write instead, in one line. Unknown keys are refused everywhere, with the nearest known
//! one, because a misspelt limit that is silently ignored is a limit that does not hold.
//!
//! Not for: writing TOML, watching files, or defaults (those are the types' own `#[serde(default)]`).
//!
//! Invariant: whatever bytes come in, the answer is a value in which every key of the text has been used, or one
//! [`ConfigError`]; never a panic, never a partly read value.
//!
//! Types should carry `#[serde(deny_unknown_fields)]`: that is where the list of known keys for the hint comes from.
//! A type without it is still read strictly, but its errors cannot say which key was meant.
#![forbid(unsafe_code)]

mod document;
mod error;
mod explain;
mod file;
mod load;
mod parse;
mod section;

pub use error::{ConfigError, ErrorKind};
pub use file::{load_file, read_text};
pub use load::{Loaded, load};
pub use parse::{parse, parse_bytes};
pub use section::{AuditMode, AuditSection, SECTIONS};

/// How large a text may be, in bytes, where the caller says nothing else: 1 MiB.
pub const DEFAULT_LIMIT: usize = 1024 * 1024;
