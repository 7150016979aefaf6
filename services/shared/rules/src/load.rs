//! Reading the rule files of a directory: the one place of this crate that does I/O.

use std::path::{Path, PathBuf};

use crate::Source;

/// Largest rule file, in bytes.
const FILE_LIMIT: u64 = 16 << 20;

/// A directory or file that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The system said no.
    #[error("read {path}: {source}")]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// Why it could not be.
        source: std::io::Error,
    },
    /// A file too large to be rules.
    #[error("read {path}: larger than {FILE_LIMIT} bytes; split it")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// The `*.json` and `*.toml` files of `<dir>/rules`, or of `dir` itself where it has no `rules`. Hidden files, other
/// extensions and sub-directories are left alone.
///
/// # Errors
/// [`LoadError`]: a directory that is not there is an error, an empty one is not.
pub fn load_dir(dir: &Path) -> Result<Vec<Source>, LoadError> {
    let inner = dir.join("rules");
    let dir = if inner.is_dir() { inner } else { dir.to_path_buf() };
    let fail = |path: &Path| {
        let path = path.to_path_buf();
        move |source| LoadError::Read { path, source }
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(fail(&dir))? {
        let path = entry.map_err(fail(&dir))?.path();
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        let rules = path.extension().is_some_and(|e| e == "json" || e == "toml");
        if rules && !hidden && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    let mut sources = Vec::with_capacity(paths.len());
    for path in paths {
        if std::fs::metadata(&path).map_err(fail(&path))?.len() > FILE_LIMIT {
            return Err(LoadError::TooLarge { path });
        }
        let text = std::fs::read_to_string(&path).map_err(fail(&path))?;
        sources.push(Source { path, text });
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rule_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let rules = dir.path().join("rules");
        std::fs::create_dir(&rules).unwrap();
        std::fs::create_dir(rules.join("d.json")).unwrap();
        for name in ["b.json", "a.toml", ".hidden.json", "a.json.swp", "README"] {
            std::fs::write(rules.join(name), "").unwrap();
        }
        let names: Vec<_> =
            load_dir(dir.path()).unwrap().iter().map(|s| s.path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["a.toml", "b.json"]);
    }

    #[test]
    fn a_missing_directory_is_an_error_that_names_it() {
        let error = load_dir(Path::new("/no/such/dir")).unwrap_err();
        assert!(error.to_string().contains("/no/such/dir"));
    }
}
