//! TOML 1.0: parsed where the sample (or the lines of it that are whole) can be, guessed from the
//! look of the lines where it cannot.

use crate::Discernment;

const MIME: &str = "application/toml";

pub(crate) fn recognise(text: &str, complete: bool) -> Option<Discernment> {
    // Without an assignment nothing is stored: `[hello]` and a page of comments parse, too.
    if !text.contains('=') {
        return None;
    }
    let whole_lines = if complete { text } else { &text[..text.rfind('\n').map_or(0, |at| at + 1)] };
    let parsed = whole_lines.parse::<toml::Table>().is_ok_and(|table| !table.is_empty());
    if parsed {
        return Some(Discernment::new("toml", 0.93, MIME, Some("tree")));
    }
    // Only a sample that breaks off can be excused for not parsing.
    (!complete && looks_like(text)).then(|| Discernment::new("toml", 0.55, MIME, Some("tree")))
}

/// At least two lines are headers or assignments, and three in five of those that are neither
/// blank nor comments.
fn looks_like(text: &str) -> bool {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (mut typical, mut all) = (0_usize, 0_usize);
    for line in lines {
        all += 1;
        typical += usize::from(is_header(line) || is_assignment(line));
    }
    typical >= 2 && typical * 5 >= all * 3
}

fn is_header(line: &str) -> bool {
    let inner = line.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(inner, _)| inner);
    inner.is_some_and(|inner| is_key(inner.trim_start_matches('[').trim()))
}

fn is_assignment(line: &str) -> bool {
    let Some((key, value)) = line.split_once('=') else { return false };
    let value = value.trim();
    let word = value.split([' ', '\t', '#']).next().unwrap_or_default();
    is_key(key.trim())
        && (value.starts_with(|c: char| matches!(c, '"' | '\'' | '[' | '{' | '+' | '-') || c.is_ascii_digit())
            || matches!(word, "true" | "false" | "inf" | "nan"))
}

fn is_key(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '"' | '\''))
}
