//! How a version is named: `jwt`, `jwt@^1.2`, `sha256:<hex>`.

use std::str::FromStr;

use semver::VersionReq;

use crate::error::Error;

/// A way to name one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reference {
    /// The active version of a name.
    Active(String),
    /// The highest version of a name that fits.
    Version(String, VersionReq),
    /// A component by its digest.
    Digest(String),
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |why: String| {
            let shown: String = text.chars().take(80).collect();
            Error::InvalidArgument(format!(
                "plugin {shown:?}: {why}; write NAME, NAME@1.2.3, NAME@^1.2 or sha256:<64 hexadecimal digits>"
            ))
        };
        if let Some(hex) = text.strip_prefix("sha256:") {
            let fits = hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            return if fits { Ok(Self::Digest(text.to_owned())) } else { Err(wrong("not a digest".to_owned())) };
        }
        match text.split_once('@') {
            _ if text.is_empty() || text.starts_with('@') => Err(wrong("no name".to_owned())),
            None => Ok(Self::Active(text.to_owned())),
            Some((name, version)) => {
                // A whole version means itself, not what is compatible with it.
                let exact = semver::Version::parse(version).is_ok();
                let requirement = if exact { format!("={version}") } else { version.to_owned() };
                let requirement = VersionReq::parse(&requirement).map_err(|error| wrong(error.to_string()))?;
                Ok(Self::Version(name.to_owned(), requirement))
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
        let Reference::Version(name, exact) = "jwt@1.2.3".parse().unwrap() else { panic!() };
        assert!(name == "jwt" && !exact.matches(&semver::Version::new(1, 2, 4)));
        let Reference::Version(_, range) = "jwt@^1.2".parse().unwrap() else { panic!() };
        assert!(range.matches(&semver::Version::new(1, 9, 0)) && !range.matches(&semver::Version::new(2, 0, 0)));
        assert!(matches!(format!("sha256:{hex}").parse().unwrap(), Reference::Digest(_)));
        for bad in ["", "@1", "jwt@", "jwt@one", "sha256:12", &format!("sha256:{}", "A".repeat(64))] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }
}
