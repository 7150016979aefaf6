//! How a version is named: `jwt`, `jwt@^1.2`, `sha256:<hex>`, whole or as lists abbreviate it.

use std::str::FromStr;

use semver::{Version, VersionReq};

/// How many digits of a digest name a component.
const DIGITS: std::ops::RangeInclusive<usize> = 8..=64;

/// A way to name one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// The active version of a name.
    Active(String),
    /// This very version of a name, build metadata included.
    Exact(String, Version),
    /// The highest version of a name that fits.
    Fitting(String, VersionReq),
    /// A component by its digest, or by the beginning of it that no other has.
    Digest(String),
}

/// Why a text names no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("plugin {shown:?}: {why}; write NAME, NAME@1.2.3, NAME@^1.2 or sha256:<hexadecimal digits, eight at least>")]
pub struct ReferenceError {
    /// The text, or its beginning.
    shown: String,
    why: String,
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let wrong = |why: String| {
            let shown: String = text.chars().take(80).collect();
            ReferenceError { shown, why }
        };
        if let Some(hex) = text.strip_prefix("sha256:") {
            let fits = DIGITS.contains(&hex.len()) && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            return if fits { Ok(Self::Digest(text.to_owned())) } else { Err(wrong("not a digest".to_owned())) };
        }
        match text.split_once('@') {
            _ if text.is_empty() || text.starts_with('@') => Err(wrong("no name".to_owned())),
            None => Ok(Self::Active(text.to_owned())),
            Some((name, version)) => {
                // A whole version means itself, not what is compatible with it.
                if let Ok(version) = Version::parse(version) {
                    return Ok(Self::Exact(name.to_owned(), version));
                }
                let requirement = VersionReq::parse(version).map_err(|error| wrong(error.to_string()))?;
                Ok(Self::Fitting(name.to_owned(), requirement))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ways_to_name_a_version() {
        let hex = "a".repeat(64);
        assert_eq!("jwt".parse::<Reference>().unwrap(), Reference::Active("jwt".into()));
        for version in ["1.2.3", "1.2.3-rc.1", "1.2.3+linux.7"] {
            let exact = Reference::Exact("jwt".into(), version.parse().unwrap());
            assert_eq!(format!("jwt@{version}").parse::<Reference>().unwrap(), exact);
        }
        let Reference::Fitting(_, range) = "jwt@^1.2".parse().unwrap() else { panic!() };
        assert!(range.matches(&Version::new(1, 9, 0)) && !range.matches(&Version::new(2, 0, 0)));
        for digits in [8, 12, 64] {
            let text = format!("sha256:{}", &hex[..digits]);
            assert_eq!(text.parse::<Reference>().unwrap(), Reference::Digest(text));
        }
        let (long, capital) = (format!("sha256:{hex}a"), format!("sha256:{}", "A".repeat(64)));
        for bad in ["", "@1", "jwt@", "jwt@one", "sha256:", "sha256:1234567", &long, &capital] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }
}
