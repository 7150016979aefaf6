//! Sizes and times as people write them: `512M`, `1m30s`.
//!
//! For: one form everywhere, on the command line and in files, so that whoever has learnt it once is understood by every
//! option and every key. Not for: printing them.
//!
//! Invariant: a text with units means one thing wherever it stands. Only a bare number depends on its place: it counts
//! what the option or the key says (`--grace 500` milliseconds, `memory_mib = 256` MiB), as it did before there were units.
#![forbid(unsafe_code)]

use std::time::Duration;

mod keys;

pub use keys::{mib, mib_opt, millis, millis_opt, seconds, seconds_opt, size, size_opt};

/// Not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no size; write a whole number and K, M, G or T (of 1024), as in 512M or 2GiB, or bytes")]
pub struct NoSize(String);

/// Not a size in whole MiB.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no size in whole MiB; write 512M or 2GiB, or a whole number, which counts MiB")]
pub struct NoMebibytes(String);

/// Not a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no time; write numbers with ms, s, m, h or d, as in 90s, 1m30s or 5m")]
pub struct NoTime(String);

/// Longest text that an error repeats, in characters.
const SHOWN: usize = 60;

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// Bytes: a whole number, alone or with K, M, G or T (of 1024), which `iB` or `B` may follow; in either case.
///
/// # Errors
/// [`NoSize`], also where there are more bytes than `u64` counts.
pub fn bytes(text: &str) -> Result<u64, NoSize> {
    sized(text, 0)
}

/// The same in whole MiB, which a bare number counts.
///
/// # Errors
/// [`NoMebibytes`].
pub fn mebibytes(text: &str) -> Result<u64, NoMebibytes> {
    match sized(text, 20) {
        Ok(bytes) if bytes.is_multiple_of(1 << 20) => Ok(bytes >> 20),
        _ => Err(NoMebibytes(shown(text))),
    }
}

/// `bare` is the power of two that a bare number counts.
fn sized(text: &str, bare: u32) -> Result<u64, NoSize> {
    let bad = || NoSize(shown(text));
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" => bare,
        "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

/// What can be counted, the largest first.
const UNITS: [(&str, Duration); 5] = [
    ("d", Duration::from_secs(86_400)),
    ("h", Duration::from_secs(3600)),
    ("m", Duration::from_secs(60)),
    ("s", Duration::from_secs(1)),
    ("ms", Duration::from_millis(1)),
];

/// A time: numbers with ms, s, m, h or d, the larger unit first (`1m30s`), or a bare number of `bare`. Numbers may have
/// decimals; what is less than a nanosecond is left out.
///
/// # Errors
/// [`NoTime`], also where it is longer than [`Duration`] can be, and for a bare number where that counts nothing.
pub fn time(text: &str, bare: Option<Duration>) -> Result<Duration, NoTime> {
    parse(text.trim(), bare).ok_or_else(|| NoTime(shown(text)))
}

fn parse(text: &str, bare: Option<Duration>) -> Option<Duration> {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    if text.chars().all(is_number) {
        return times(bare?, text);
    }
    let (mut rest, mut smaller, mut sum) = (text, &UNITS[..], Duration::ZERO);
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c| !is_number(c))?);
        let after = after.trim_start();
        let end = after.find(|c| is_number(c) || c == ' ').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let at = smaller.iter().position(|(name, _)| *name == unit)?;
        sum = sum.checked_add(times(smaller[at].1, number)?)?;
        (rest, smaller) = (after.trim_start(), &smaller[at + 1..]);
    }
    Some(sum)
}

/// So many of a unit.
fn times(unit: Duration, number: &str) -> Option<Duration> {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || (decimals.is_empty() && number.contains('.')) || decimals.contains('.') {
        return None;
    }
    let unit = unit.as_nanos();
    let mut nanos = whole.parse::<u128>().ok()?.checked_mul(unit)?;
    let mut part = unit;
    for digit in decimals.bytes() {
        part /= 10;
        nanos = nanos.checked_add(u128::from(digit - b'0') * part)?;
    }
    let seconds = u64::try_from(nanos / 1_000_000_000).ok()?;
    Some(Duration::new(seconds, u32::try_from(nanos % 1_000_000_000).ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in [
            ("0", 0),
            ("4096", 4096),
            ("10b", 10),
            ("1K", 1 << 10),
            ("10M", 10 << 20),
            ("10MiB", 10 << 20),
            ("512MB", 512 << 20),
            ("2g", 2 << 30),
            ("3 GiB", 3 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(bytes(text), Ok(want), "{text}");
        }
        for bad in ["", "M", "1.5G", "-1", "+1", "1X", "99999999999T", "1MM", "1M1", "1iB", " 1"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert_eq!((mebibytes("256"), mebibytes("1G"), mebibytes("2048KiB")), (Ok(256), Ok(1024), Ok(2)));
        assert!(mebibytes("1K").is_err() && mebibytes("1000000b").is_err());
        assert!(bytes("1X").unwrap_err().to_string().starts_with("\"1X\" is no size; write"));
    }

    #[test]
    fn times_in_all_forms() {
        let second = Some(Duration::from_secs(1));
        for (text, millis) in [
            ("90", 90_000),
            ("0.3", 300),
            ("90s", 90_000),
            ("1m30s", 90_000),
            ("1m 30 s", 90_000),
            ("5m", 300_000),
            ("1.5h", 5_400_000),
            ("250ms", 250),
            ("1s250ms", 1250),
            ("7d", 604_800_000),
            ("1d2h3m4s5ms", 93_784_005),
            ("0s", 0),
            (" 2s ", 2000),
        ] {
            assert_eq!(time(text, second), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(time("90", Some(Duration::from_millis(1))), Ok(Duration::from_millis(90)));
        for bad in [
            "",
            ".",
            "s",
            "-1s",
            "1",
            "1w",
            "1e3s",
            "NaN",
            "inf",
            "1s1m",
            "1s1s",
            "1m30",
            "5 parsecs",
            "1.s",
            ".5s",
            "1..5s",
            "99999999999999999999d",
            "1é",
        ] {
            assert!(time(bad, None).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_or_refused(text in ".{0,40}", number in 0..u64::MAX) {
            let _ = (bytes(&text), mebibytes(&text), time(&text, Some(Duration::from_secs(1))));
            prop_assert_eq!(bytes(&number.to_string()), Ok(number));
            prop_assert_eq!(time(&format!("{number}s"), None), Ok(Duration::from_secs(number)));
        }
    }
}
