//! Text in UTF-8, and what sort of text its name says it is.

use std::path::Path;

use crate::Discernment;

/// The readable part of a sample: all of it but a last character that the sample cuts through.
/// `None` if it isn't UTF-8, is empty, or has a NUL or many other control characters in it.
pub(crate) fn readable(sample: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(sample) {
        Ok(text) => text,
        // No `error_len`: the bytes so far are the beginning of a character.
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&sample[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    if text.is_empty() || text.bytes().any(|byte| byte == 0) {
        return None;
    }
    let controls = text.bytes().filter(|byte| is_stray_control(*byte)).count();
    (controls * 32 <= text.len()).then_some(text)
}

/// Controls with no business in text; tab, line ends, backspace and the escape that colours
/// terminals have some.
fn is_stray_control(byte: u8) -> bool {
    (byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r' | 0x08 | 0x0b | 0x0c | 0x1b)) || byte == 0x7f
}

pub(crate) fn describe(_: &str, hint_path: Option<&Path>) -> Discernment {
    let extension = hint_path.and_then(Path::extension).and_then(|extension| extension.to_str());
    let (mime, lens) = match extension.map(str::to_ascii_lowercase).as_deref() {
        Some("md" | "markdown" | "mkd") => ("text/markdown", "markdown"),
        Some(extension) if CODE.contains(&extension) => ("text/plain", "code"),
        _ => ("text/plain", "markdown"),
    };
    Discernment::new("text", 0.5, mime, Some(lens))
}

/// Extensions of source code and configuration.
const CODE: &[&str] = &[
    "asm", "awk", "bash", "c", "cc", "cfg", "clj", "cmake", "conf", "cpp", "cs", "css", "dart", "diff", "ex", "exs",
    "fish", "go", "graphql", "h", "hpp", "hs", "html", "ini", "java", "js", "json", "jsx", "kt", "lua", "m", "mk",
    "ml", "nix", "patch", "php", "pl", "proto", "ps1", "py", "r", "rb", "rs", "s", "scala", "scss", "service", "sh",
    "sql", "swift", "tcl", "tf", "toml", "ts", "tsx", "vim", "wat", "wit", "xml", "yaml", "yml", "zig", "zsh",
];
