//! The configuration file of an installation: a main file and the drop-ins beside it, merged as systemd does.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::DEFAULT_LIMIT;
use crate::document::{Document, Step};
use crate::error::{ConfigError, ErrorKind};
use crate::explain::unknown_key;
use crate::file::{io_error, read_text};
use crate::parse::deserialize;
use crate::section::{AuditSection, SECTIONS};

/// How many drop-ins are read; more are a mistake, refused.
const MAX_DROP_INS: usize = 256;

/// What was loaded, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded<T> {
    /// The section asked for, or the whole document.
    pub value: T,
    /// The common `[audit]` section; its defaults where no section was asked for.
    pub audit: AuditSection,
    /// The files that exist and were read, in the order in which they were laid over each other.
    pub files: Vec<PathBuf>,
}

/// Loads `main` and its drop-ins, `MAIN.d/*.toml` in lexical order (`/etc/shipote/shipote.toml.d/50-limits.toml`).
///
/// Tables merge, key by key; lists and plain values replace what earlier files said. A drop-in that is a link to
/// `/dev/null` masks nothing but itself. An absent main file and an absent drop-in folder mean the defaults of `T`.
///
/// With a `section`, `T` is read from that table of the file, the common `[audit]` beside it; the sections of other
/// services ([`SECTIONS`]) are left alone, any other is refused. Without, `T` is the whole document.
///
/// Blocking: reads files. Call it before the runtime starts, or where blocking is allowed.
///
/// # Errors
/// A [`ConfigError`] that names the file which holds the offending value.
pub fn load<T: DeserializeOwned>(main: &Path, section: Option<&str>) -> Result<Loaded<T>, ConfigError> {
    let texts = read_all(main)?;
    let mut document = Document::empty(&main.to_string_lossy());
    for (path, text) in &texts {
        document.add(&path.to_string_lossy(), text)?;
    }
    let files = texts.iter().map(|(path, _)| path.clone()).collect();
    let root = document.root();
    let Some(section) = section else {
        let value = deserialize(&document, root.span(), root.get_ref().clone(), &[])?;
        return Ok(Loaded { value, audit: AuditSection::default(), files });
    };
    for key in root.get_ref().keys() {
        if !SECTIONS.contains(&key.get_ref().as_ref()) && key.get_ref() != section {
            let told = unknown_key(key.get_ref(), SECTIONS);
            let (file, position) = document.locate(key.span().start);
            let reason = told.reason.replacen("key", "section", 1);
            let way_out = told.way_out.replacen("known keys here", "known sections", 1);
            return Err(ConfigError::new(told.kind, file, Some(position), &reason, &way_out));
        }
    }
    let value = read_section(&document, section)?;
    let audit = read_section(&document, "audit")?;
    Ok(Loaded { value, audit, files })
}

fn read_section<T: DeserializeOwned>(document: &Document<'_>, section: &str) -> Result<T, ConfigError> {
    let path = [Step::Key(section.to_owned())];
    match document.root().get_ref().get(section).map(|value| (Spanned::span(value), value.get_ref())) {
        None => deserialize(document, 0..0, DeTable::new(), &path),
        Some((span, DeValue::Table(table))) => deserialize(document, span, table.clone(), &path),
        Some((span, other)) => {
            let (file, position) = document.locate(span.start);
            let reason = format!("found a value of type {}, expected a table", other.type_str());
            let way_out = format!("write a section `[{section}]`");
            Err(ConfigError::new(ErrorKind::WrongValue, file, Some(position), &reason, &way_out)
                .at_key(section.to_owned()))
        }
    }
}

fn read_all(main: &Path) -> Result<Vec<(PathBuf, String)>, ConfigError> {
    let mut paths = drop_ins(main)?;
    // Only the main file may be absent: a drop-in that vanishes between listing and reading is an error.
    match std::fs::metadata(main) {
        Ok(_) => paths.insert(0, main.to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error(main, &error)),
    }
    paths.into_iter().map(|path| read_text(&path, DEFAULT_LIMIT).map(|text| (path, text))).collect()
}

fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let mut folder = main.as_os_str().to_owned();
    folder.push(".d");
    let folder = PathBuf::from(folder);
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error(&folder, &error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| io_error(&folder, &error))?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
        if paths.len() > MAX_DROP_INS {
            let reason = format!("more than {MAX_DROP_INS} drop-ins");
            let name = folder.to_string_lossy();
            return Err(ConfigError::new(ErrorKind::TooLarge, &name, None, &reason, "join some of them"));
        }
    }
    paths.sort();
    Ok(paths)
}
