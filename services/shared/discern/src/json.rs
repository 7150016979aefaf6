//! JSON documents (RFC 8259), JSON values one a line, and cards.
//!
//! Only objects and arrays count: a lone number, word or quoted string is better called text.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::Discernment;

const MIME: &str = "application/json";
const MIME_LINES: &str = "application/x-ndjson";

pub(crate) fn recognise(text: &str, complete: bool) -> Option<Discernment> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if !text.trim_start().starts_with(['{', '[']) {
        return None;
    }
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Shape>();
    let mut whole = 0_usize;
    let mut card = false;
    let mut cut = false;
    loop {
        let rest = &text[values.byte_offset()..];
        let begun = rest.trim_start();
        if begun.is_empty() {
            break;
        }
        let on_its_own_line = rest[..rest.len() - begun.len()].contains('\n');
        if whole > 0 && !on_its_own_line {
            return None;
        }
        match values.next() {
            Some(Ok(Shape::Scalar)) => return None,
            Some(Ok(shape)) => {
                whole += 1;
                card = shape == Shape::Card;
            }
            Some(Err(error)) if error.is_eof() && !complete => {
                cut = true;
                break;
            }
            Some(Err(_)) => return None,
            None => break,
        }
    }
    Some(match (whole, cut) {
        (0, _) => Discernment::new("json", 0.6, MIME, Some("tree")),
        (1, false) if card => Discernment::new("card", 0.97, MIME, Some("card")),
        (1, false) => Discernment::new("json", 0.95, MIME, Some("tree")),
        _ => Discernment::new("json", 0.95, MIME_LINES, Some("tree")),
    })
}

/// As much of a value as has to be remembered to name it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    /// An object with the three keys of a card.
    Card,
    /// Any other object, or an array.
    Container,
    Scalar,
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    // What is inside is skipped with `IgnoredAny`, for which serde_json uses a loop, not
    // recursion: no depth of nesting can exhaust the stack.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
        let mut seen = [false; 3];
        while let Some(key) = map.next_key::<String>()? {
            map.next_value::<IgnoredAny>()?;
            if let Some(at) = ["schema_version", "id", "payload"].iter().position(|known| *known == key) {
                seen[at] = true;
            }
        }
        Ok(if seen == [true; 3] { Shape::Card } else { Shape::Container })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Shape::Container)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Shape, E> {
        Ok(Shape::Scalar)
    }
}
