//! The versions of a document's format, and the steps from one to the next.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Changes a document of one version into one of the next; the number is not its business. Fails with what is wrong
/// with the document.
pub type Step = fn(&mut Map<String, Value>) -> Result<(), String>;

/// The versions of one kind of document.
#[derive(Debug, Clone, Copy)]
pub struct Format {
    /// The key of a document's version.
    pub key: &'static str,
    /// The first version that is still read. 0: a document without the key is one of version 0.
    pub first: u32,
    /// The steps from each version to the next, beginning at `first`.
    pub steps: &'static [Step],
}

/// Why a document is not read.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A later release wrote it.
    #[error(
        "it is of version {found}, and this release reads up to {known}; install the release that wrote it, or move it away to begin anew"
    )]
    Newer {
        /// Its version.
        found: u64,
        /// The newest that is known here.
        known: u32,
    },
    /// A release wrote it that is too old for this one.
    #[error(
        "it is of version {found}, and this release reads {first} and later; start a release in between once, or move it away to begin anew"
    )]
    Older {
        /// Its version.
        found: u64,
        /// The oldest that is known here.
        first: u32,
    },
    /// It is torn, or no document of this kind.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It cannot be read at all.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Refused {
    /// Whether an older copy may stand in for it. Not for one that is whole and of another version: what the release
    /// that wrote it has changed since would be lost without a word.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::Io(_))
    }
}

impl Format {
    /// The version that this release writes.
    #[must_use]
    pub const fn current(&self) -> u32 {
        // a step a version: never near the limit
        #[expect(clippy::cast_possible_truncation, reason = "as many steps as somebody wrote by hand")]
        let steps = self.steps.len() as u32;
        self.first + steps
    }

    /// A document as it is written: of the current version.
    ///
    /// # Errors
    /// It cannot be written as JSON, or is no table.
    pub fn write<T: Serialize>(&self, document: &T) -> Result<Value, serde_json::Error> {
        let mut document = serde_json::to_value(document)?;
        match &mut document {
            Value::Object(fields) => fields.insert(self.key.to_owned(), self.current().into()),
            _ => return Err(serde::ser::Error::custom("a document is a table")),
        };
        Ok(document)
    }

    /// Reads a document of any version from `first` on, as one of the current version, and without its key.
    ///
    /// # Errors
    /// It is of another version, or damaged.
    pub fn read<T: DeserializeOwned>(&self, document: Value) -> Result<T, Refused> {
        let Value::Object(mut fields) = document else {
            return Err(Refused::Damaged("it is no table".to_owned()));
        };
        let found = match fields.remove(self.key) {
            Some(number) => number.as_u64().ok_or_else(|| Refused::Damaged(format!("its {} is {number}", self.key)))?,
            None if self.first == 0 => 0,
            None => return Err(Refused::Damaged(format!("it has no {}", self.key))),
        };
        if found > u64::from(self.current()) {
            return Err(Refused::Newer { found, known: self.current() });
        }
        let behind = found.checked_sub(u64::from(self.first));
        let done = behind.ok_or(Refused::Older { found, first: self.first })?;
        for (number, step) in (found..).zip(self.steps.iter().skip(usize::try_from(done).unwrap_or(usize::MAX))) {
            step(&mut fields).map_err(|problem| Refused::Damaged(format!("version {number}: {problem}")))?;
        }
        serde_json::from_value(Value::Object(fields)).map_err(|error| Refused::Damaged(error.to_string()))
    }

    /// The same of a document's JSON.
    ///
    /// # Errors
    /// As [`Format::read`].
    pub fn parse<T: DeserializeOwned>(&self, json: &[u8]) -> Result<T, Refused> {
        self.read(serde_json::from_slice(json).map_err(|error| Refused::Damaged(error.to_string()))?)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Machine {
        memory_bytes: u64,
        name: String,
    }

    /// Version 1 had MiB, version 2 no name.
    const FORMAT: Format = Format {
        key: "version",
        first: 1,
        steps: &[
            |fields| {
                let mib = fields.remove("memory_mib").and_then(|n| n.as_u64()).ok_or("memory_mib is missing")?;
                fields.insert("memory_bytes".to_owned(), json!(mib << 20));
                Ok(())
            },
            |fields| {
                fields.insert("name".to_owned(), json!("old"));
                Ok(())
            },
        ],
    };

    fn read(document: &Value) -> Result<Machine, Refused> {
        FORMAT.parse(document.to_string().as_bytes())
    }

    #[test]
    fn a_document_of_each_version_is_brought_forward() {
        assert_eq!(FORMAT.current(), 3);
        let old = Machine { memory_bytes: 1 << 20, name: "old".to_owned() };
        assert_eq!(read(&json!({"version": 1, "memory_mib": 1})).unwrap(), old);
        assert_eq!(read(&json!({"version": 2, "memory_bytes": 1 << 20})).unwrap(), old);
        let new = Machine { memory_bytes: 2, name: "new".to_owned() };
        let written = FORMAT.write(&new).unwrap();
        assert_eq!(written, json!({"version": 3, "memory_bytes": 2, "name": "new"}));
        assert_eq!(read(&written).unwrap(), new);
        assert!(FORMAT.write(&[1]).is_err());
    }

    #[test]
    fn what_a_later_release_wrote_is_refused_and_is_no_damage() {
        for version in [4_u64, u64::MAX] {
            let refused = read(&json!({"version": version, "memory_bytes": 2, "name": "new"})).unwrap_err();
            assert!(!refused.is_damage(), "{refused}");
            assert!(refused.to_string().contains("reads up to 3; install the release"), "{refused}");
        }
        let refused = read(&json!({"version": 0})).unwrap_err();
        assert!(!refused.is_damage() && refused.to_string().contains("1 and later"), "{refused}");
    }

    #[test]
    fn what_is_no_document_is_damage_and_says_where() {
        let cases = [
            (json!([1]), "no table"),
            (json!({}), "no version"),
            (json!({"version": "1"}), "its version is \"1\""),
            (json!({"version": -1}), "its version is -1"),
            (json!({"version": 1}), "version 1: memory_mib is missing"),
            (json!({"version": 3, "memory_bytes": 2, "name": "n", "more": 1}), "more"),
        ];
        for (document, says) in cases {
            let refused = read(&document).unwrap_err();
            assert!(refused.is_damage() && refused.to_string().contains(says), "{document}: {refused}");
        }
        let torn = FORMAT.parse::<Machine>(br#"{"version": 4, "memo"#).unwrap_err();
        assert!(torn.is_damage(), "{torn}");
    }

    #[test]
    fn a_document_from_before_there_were_versions_is_one_of_version_0() {
        let format = Format { key: "version", first: 0, steps: &[|_| Ok(())] };
        let machine: Machine = format.read(json!({"memory_bytes": 1, "name": "n"})).unwrap();
        assert_eq!(machine.memory_bytes, 1);
        assert!(format.read::<Machine>(json!({"version": 2})).unwrap_err().to_string().contains("up to 1"));
    }
}
