//! What kind of data a sample is: the first bytes of a flow or of a file go in, a type name with
//! a confidence comes out.
//!
//! ```
//! let found = shipote_discern::discern(br#"{"a": 1}"#, None, true);
//! assert_eq!(found.ty.name(), "json");
//! assert_eq!(found.ty.to_string(), r#"Primitive { name: "json" }"#);
//! assert_eq!(found.confidence, 0.95);
//! ```
//!
//! The recognisers are asked in this order; the first that is at least [`CERTAIN`] wins, otherwise
//! the most confident one:
//!
//! | found by | confidence | name | lens |
//! |---|---|---|---|
//! | magic bytes of four and more | 0.99 | `png`, `pdf`, `elf`, `wasm`, `gzip`, `zip` … | `gallery`, `reader`, `code` or none |
//! | magic bytes of two or three that chance may hit | 0.7 | `exe`, `bmp`, `der` … | as above |
//! | JSON object with `schema_version`, `id` and `payload` | 0.97 | `card` | `card` |
//! | JSON, or JSON values one a line | 0.95, cut off 0.6 | `json` | `tree` |
//! | TOML | parsed 0.93, guessed 0.55 | `toml` | `tree` |
//! | comma, tab or semicolon separated records | 0.8 | `table` | `table` |
//! | UTF-8 text | 0.5 | `text` | `markdown` or `code` |
//! | none of them | 0 | `bytes` | none |
//!
//! It is not for validating documents (a cut-off sample cannot be valid) and reads no file.
//!
//! **Invariant:** for any bytes whatsoever [`discern`] returns, in time linear in the sample and
//! looking at no more than [`MAX_SAMPLE`] bytes of it.
#![forbid(unsafe_code)]

mod json;
mod magic;
mod table;
mod text;
mod toml;
mod types;

use std::path::Path;

pub use crate::types::{Discernment, TypeName};

/// Bytes of a sample that are looked at; what follows is treated as cut off.
pub const MAX_SAMPLE: usize = 1 << 20;

/// A recogniser at least this confident is believed without asking the ones after it.
pub const CERTAIN: f32 = 0.9;

/// Says what kind of data `sample` is the beginning of.
///
/// `hint_path` is the name the data goes by, if any; only its extension is used, and only to say
/// what sort of text a text is. `complete` says that nothing follows the sample, so that a JSON
/// document without its end is a broken one rather than a cut-off one. A sample that ends inside a
/// UTF-8 character counts as text either way.
#[must_use]
pub fn discern(sample: &[u8], hint_path: Option<&Path>, complete: bool) -> Discernment {
    let (sample, complete) = match sample.get(..MAX_SAMPLE) {
        Some(head) if sample.len() > MAX_SAMPLE => (head, false),
        _ => (sample, complete),
    };
    let text = text::readable(sample);
    let recognisers: [&dyn Fn() -> Option<Discernment>; 5] = [
        &|| magic::recognise(sample, text.is_some()),
        &|| json::recognise(text?, complete),
        &|| toml::recognise(text?, complete),
        &|| table::recognise(text?, complete),
        &|| Some(text::describe(text?, hint_path)),
    ];
    let mut best = Discernment::unknown();
    for recognise in recognisers {
        let Some(found) = recognise() else { continue };
        if found.confidence >= CERTAIN {
            return found;
        }
        if found.confidence > best.confidence {
            best = found;
        }
    }
    best
}
