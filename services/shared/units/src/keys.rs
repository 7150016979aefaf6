//! Sizes and times as values of keys: for `#[serde(deserialize_with = "…")]`.
//!
//! What is kept by a program (not read by people) is a plain number, and stays one.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// What the values of a key are.
trait Kind {
    /// What is expected, for errors.
    const EXPECTED: &'static str;

    /// The number that a text stands for, in the key's own unit.
    fn read(text: &str) -> Result<u64, String>;
}

struct Bytes;
struct Mebibytes;
struct Seconds;
struct Milliseconds;

impl Kind for Bytes {
    const EXPECTED: &'static str = "a size: bytes, or \"512M\" with K, M, G or T";

    fn read(text: &str) -> Result<u64, String> {
        crate::bytes(text).map_err(|error| error.to_string())
    }
}

impl Kind for Mebibytes {
    const EXPECTED: &'static str = "a size: MiB, or \"1G\" with M, G or T";

    fn read(text: &str) -> Result<u64, String> {
        // A number in quotes counts bytes at other keys; here it would count MiB.
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("{text:?} has no unit; write {text}M, or the number without quotes"));
        }
        crate::mebibytes(text).map_err(|error| error.to_string())
    }
}

impl Kind for Seconds {
    const EXPECTED: &'static str = "a time: seconds, or \"1m30s\" with s, m, h or d";

    fn read(text: &str) -> Result<u64, String> {
        let time = crate::time(text, None).map_err(|error| error.to_string())?;
        if time.subsec_nanos() > 0 {
            return Err(format!("{text:?} is no whole number of seconds; write one, as in 90s"));
        }
        Ok(time.as_secs())
    }
}

impl Kind for Milliseconds {
    const EXPECTED: &'static str = "a time: milliseconds, or \"1m30s\" with ms, s, m, h or d";

    fn read(text: &str) -> Result<u64, String> {
        let time: Duration = crate::time(text, None).map_err(|error| error.to_string())?;
        u64::try_from(time.as_millis()).map_err(|_| format!("{text:?} is longer than can be counted; write less"))
    }
}

struct Reader<K, T>(PhantomData<(K, T)>);

impl<K: Kind, T: TryFrom<u64>> Reader<K, T> {
    fn fit<E: Error>(number: u64) -> Result<T, E> {
        T::try_from(number).map_err(|_| E::custom(format!("{number} is more than can be had; give less")))
    }
}

impl<K: Kind, T: TryFrom<u64>> Visitor<'_> for Reader<K, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(K::EXPECTED)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        Self::fit(number)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        let number =
            u64::try_from(number).map_err(|_| E::custom(format!("{number} is less than nothing; give more")))?;
        Self::fit(number)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        Self::fit(K::read(text).map_err(E::custom)?)
    }
}

fn value<'de, K: Kind, T: TryFrom<u64> + Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<T, D::Error> {
    if input.is_human_readable() { input.deserialize_any(Reader::<K, T>(PhantomData)) } else { T::deserialize(input) }
}

/// A value that may be absent.
struct Maybe<K, T>(T, PhantomData<K>);

impl<'de, K: Kind, T: TryFrom<u64> + Deserialize<'de>> Deserialize<'de> for Maybe<K, T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        value::<K, T, D>(input).map(|value| Maybe(value, PhantomData))
    }
}

fn maybe<'de, K: Kind, T: TryFrom<u64> + Deserialize<'de>, D: Deserializer<'de>>(
    input: D,
) -> Result<Option<T>, D::Error> {
    Ok(Option::<Maybe<K, T>>::deserialize(input)?.map(|Maybe(value, _)| value))
}

macro_rules! kinds {
    ($($kind:ident, $name:ident, $opt:ident, $what:literal;)*) => {$(
        #[doc = concat!("Reads ", $what, ".")]
        ///
        /// # Errors
        /// What is wrong with the value, and what to write.
        pub fn $name<'de, T: TryFrom<u64> + Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<T, D::Error> {
            value::<$kind, T, D>(input)
        }

        #[doc = concat!("Reads ", $what, ", at a key that may be absent.")]
        ///
        /// # Errors
        /// What is wrong with the value, and what to write.
        pub fn $opt<'de, T: TryFrom<u64> + Deserialize<'de>, D: Deserializer<'de>>(
            input: D,
        ) -> Result<Option<T>, D::Error> {
            maybe::<$kind, T, D>(input)
        }
    )*};
}

kinds! {
    Bytes, size, size_opt, "bytes, as a number or a text with a unit";
    Mebibytes, mib, mib_opt, "MiB, as a number or a text with a unit";
    Seconds, seconds, seconds_opt, "seconds, as a number or a text with a unit";
    Milliseconds, millis, millis_opt, "milliseconds, as a number or a text with a unit";
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde::Deserialize;

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Spec {
        #[serde(deserialize_with = "super::size_opt")]
        memory: Option<u64>,
        #[serde(deserialize_with = "super::mib")]
        disk: u32,
        #[serde(deserialize_with = "super::seconds")]
        idle: u32,
        #[serde(deserialize_with = "super::millis_opt")]
        ttl: Option<u64>,
    }

    impl Default for Spec {
        fn default() -> Self {
            Self { memory: None, disk: 7, idle: 8, ttl: None }
        }
    }

    fn read(text: &str) -> Result<Spec, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_and_texts() {
        assert_eq!(read("{}"), Ok(Spec::default()));
        let numbers = read(r#"{"memory": 1024, "disk": 64, "idle": 90, "ttl": 5000}"#).unwrap();
        assert_eq!(numbers, Spec { memory: Some(1024), disk: 64, idle: 90, ttl: Some(5000) });
        let texts = read(r#"{"memory": "1K", "disk": "64MiB", "idle": "1m30s", "ttl": "5s"}"#);
        assert_eq!(texts, Ok(numbers));
        for (bad, want) in [
            (r#"{"memory": "1X"}"#, "\"1X\" is no size; write"),
            (r#"{"memory": true}"#, "expected a size: bytes, or"),
            (r#"{"memory": -1}"#, "less than nothing"),
            (r#"{"disk": "64"}"#, "write 64M"),
            (r#"{"disk": "1K"}"#, "whole MiB"),
            (r#"{"disk": 99999999999}"#, "more than can be had"),
            (r#"{"idle": "1.5s"}"#, "no whole number of seconds"),
            (r#"{"idle": "5"}"#, "\"5\" is no time; write"),
            (r#"{"ttl": "soon"}"#, "\"soon\" is no time; write"),
        ] {
            let said = read(bad).unwrap_err();
            assert!(said.contains(want), "{bad}: {said}");
        }
    }
}
