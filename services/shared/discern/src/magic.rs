//! Formats that open with bytes of their own, by way of the `infer` crate's table.
//!
//! That table answers on as little as two bytes, some of them letters (`BM`, `MZ`, `BC`). A short
//! magic therefore counts for less than a long one, and text is only ever taken for a format that
//! is text itself or opens with a magic nobody would write by chance.

use crate::Discernment;

const CERTAIN: f32 = 0.99;
const SHORT: f32 = 0.7;

/// Formats whose magic has two or three bytes, so that one in some ten thousand random samples has it.
const SHORT_MAGIC: &[&str] =
    &["exe", "dll", "bc", "der", "obj", "bmp", "jxr", "ico", "mp3", "aac", "Z", "swf", "ttf", "mpg"];

/// Formats a readable sample may be recognised as.
const READABLE: &[&str] = &["html", "xml", "sh", "pdf", "ps", "rtf", "pem", "ar", "deb"];

pub(crate) fn recognise(sample: &[u8], readable: bool) -> Option<Discernment> {
    if let Some(found) = short_of_the_table(sample) {
        return Some(found);
    }
    let found = infer::get(sample)?;
    let extension = found.extension();
    if readable && !READABLE.contains(&extension) {
        return None;
    }
    let confidence = if SHORT_MAGIC.contains(&extension) { SHORT } else { CERTAIN };
    Some(Discernment::new(name(extension), confidence, found.mime_type(), lens(extension, found.matcher_type())))
}

/// What the table misses: it wants a whole ELF header, only version 1 of WebAssembly (a component
/// has another version field), and takes any `GIF` for the picture.
fn short_of_the_table(sample: &[u8]) -> Option<Discernment> {
    let found = |name, mime, lens| Some(Discernment::new(name, CERTAIN, mime, lens));
    match sample {
        [0x7f, b'E', b'L', b'F', ..] => found("elf", "application/x-executable", None),
        [0, b'a', b's', b'm', ..] => found("wasm", "application/wasm", None),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => found("gif", "image/gif", Some("gallery")),
        _ => None,
    }
}

/// The table names kinds by file extension; a few are better known by another word.
fn name(extension: &'static str) -> &'static str {
    match extension {
        "jpg" => "jpeg",
        "gz" => "gzip",
        "bz2" => "bzip2",
        "bz3" => "bzip3",
        "tif" => "tiff",
        "zst" => "zstd",
        "lz" => "lzip",
        "Z" => "compress",
        "bc" => "llvm",
        "ps" => "postscript",
        "sh" => "script",
        other => other,
    }
}

fn lens(extension: &str, kind: infer::MatcherType) -> Option<&'static str> {
    match (extension, kind) {
        ("pdf" | "ps", _) | (_, infer::MatcherType::Book) => Some("reader"),
        (_, infer::MatcherType::Image) => Some("gallery"),
        (_, infer::MatcherType::Text) => Some("code"),
        _ => None,
    }
}
