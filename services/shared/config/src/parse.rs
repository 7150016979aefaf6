//! From a text, or a merged [`Document`], to a type.

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error, ValueDeserializer};

use crate::DEFAULT_LIMIT;
use crate::document::{Document, Step, end_of};
use crate::error::{ConfigError, ErrorKind};
use crate::explain::{Explanation, explain, unknown_key};

/// Reads `text` as a `T`; errors call it `name`.
///
/// # Errors
/// A [`ConfigError`] with the place of the first mistake: not TOML, larger than [`DEFAULT_LIMIT`], a key that `T` does
/// not know or lacks, a value it does not take.
pub fn parse<T: DeserializeOwned>(text: &str, name: &str) -> Result<T, ConfigError> {
    parse_bytes(text.as_bytes(), name, DEFAULT_LIMIT)
}

/// As [`parse`], of bytes that may not even be text, at most `limit` of them.
///
/// # Errors
/// As [`parse`], and [`ErrorKind::NotUtf8`].
pub fn parse_bytes<T: DeserializeOwned>(bytes: &[u8], name: &str, limit: usize) -> Result<T, ConfigError> {
    let text = check_text(bytes, name, limit)?;
    let mut document = Document::empty(name);
    document.add(name, text)?;
    let root = document.root();
    deserialize(&document, root.span(), root.get_ref().clone(), &[])
}

/// Checks what every text must be before it is looked at: not too large, and UTF-8.
pub(crate) fn check_text<'b>(bytes: &'b [u8], name: &str, limit: usize) -> Result<&'b str, ConfigError> {
    if bytes.len() > limit {
        let reason = format!("larger than the {limit} bytes allowed");
        return Err(ConfigError::new(ErrorKind::TooLarge, name, None, &reason, "split it or shorten it"));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let position = end_of(&bytes[..error.valid_up_to()]);
        let reason = format!("the byte 0x{:02x} is not UTF-8 text", bytes[error.valid_up_to()]);
        ConfigError::new(ErrorKind::NotUtf8, name, Some(position), &reason, "save the file as UTF-8")
    })
}

/// Deserializes one table of `document`, which lies at `prefix` in it.
pub(crate) fn deserialize<T: DeserializeOwned>(
    document: &Document<'_>,
    span: std::ops::Range<usize>,
    table: DeTable<'_>,
    prefix: &[Step],
) -> Result<T, ConfigError> {
    let mut ignored: Option<Vec<Step>> = None;
    let tree = ValueDeserializer::from(Spanned::new(span, DeValue::Table(table)));
    let mut note = |path: serde_ignored::Path<'_>| {
        let steps = ignored_steps(&path);
        // The whole being ignored is no mistake in the text: the caller asked for `IgnoredAny`, to look at the common
        // section only.
        if ignored.is_none() && !steps.is_empty() {
            ignored = Some(steps);
        }
    };
    let result: Result<T, serde_path_to_error::Error<Error>> =
        serde_path_to_error::deserialize(serde_ignored::Deserializer::new(tree, &mut note));
    match (result, ignored) {
        (Ok(value), None) => Ok(value),
        (Ok(_), Some(steps)) => {
            let mut path = [prefix, &steps].concat();
            let name = match path.pop() {
                Some(Step::Key(name)) => name,
                _ => String::new(),
            };
            Err(place(document, path, &unknown_key(&name, &[]), None))
        }
        (Err(error), _) => {
            let path = [prefix, &steps(error.path())].concat();
            let inner = error.inner();
            Err(place(document, path, &explain(inner.message()), inner.span()))
        }
    }
}

/// Gives an explanation its file, line, column and key path.
fn place(
    document: &Document<'_>,
    mut path: Vec<Step>,
    told: &Explanation,
    span: Option<std::ops::Range<usize>>,
) -> ConfigError {
    let offset = if let (ErrorKind::UnknownKey, Some(name)) = (told.kind, &told.about) {
        // The path of a plain table ends in the unknown key; that of a buffered one (tagged enums) in the table.
        let mut at = path.clone();
        if at.last() == Some(&Step::Key(name.clone())) {
            at.pop();
        }
        match document.find_key(&at, name) {
            Some((key, holder)) => {
                path = holder;
                path.push(Step::Key(name.clone()));
                key.start
            }
            None => span.unwrap_or_else(|| document.value_span(&at)).start,
        }
    } else if let Some((name, (key, holder))) =
        told.about.as_ref().and_then(|name| Some((name, document.find_key(&path, name)?)))
        && holder == path
    {
        // An enum's variant written as a key.
        path.push(Step::Key(name.clone()));
        key.start
    } else {
        document.value_span(&path).start
    };
    let (file, position) = document.locate(offset);
    ConfigError::new(told.kind, file, Some(position), &told.reason, &told.way_out).at_key(render(&path))
}

fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { variant } => Some(Step::Key(variant.clone())),
            Segment::Unknown => None,
        })
        .collect()
}

fn ignored_steps(path: &serde_ignored::Path<'_>) -> Vec<Step> {
    use serde_ignored::Path;
    match path {
        Path::Root => Vec::new(),
        Path::Seq { parent, index } => {
            let mut steps = ignored_steps(parent);
            steps.push(Step::Index(*index));
            steps
        }
        Path::Map { parent, key } => {
            let mut steps = ignored_steps(parent);
            steps.push(Step::Key(key.clone()));
            steps
        }
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            ignored_steps(parent)
        }
    }
}

/// `nodes[2].payload`; a key that TOML would quote is quoted.
fn render(path: &[Step]) -> String {
    let mut out = String::new();
    for step in path {
        match step {
            Step::Index(index) => out.push_str(&format!("[{index}]")),
            Step::Key(key) => {
                if !out.is_empty() {
                    out.push('.');
                }
                let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
                if !key.is_empty() && key.bytes().all(bare) && key.len() <= 64 {
                    out.push_str(key);
                } else {
                    out.push_str(&format!("{:?}", crate::error::quote(key)));
                }
            }
        }
    }
    out
}
