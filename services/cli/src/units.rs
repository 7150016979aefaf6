//! Sizes and times of options, read as everywhere (`shipote-units`). A bare number counts what it always has: the option's
//! help says what.

use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// A time; a bare number counts seconds.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    shipote_units::time(text, Some(SECOND)).map_err(|error| error.to_string())
}

/// The same, and more than none; at least a millisecond, which is what services count in.
pub(crate) fn some_seconds(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        time if time < MILLISECOND => Err(format!("{text:?} is no time to speak of; give a millisecond (1ms) or more")),
        time => Ok(time),
    }
}

/// The same in whole seconds.
pub(crate) fn whole_seconds(text: &str) -> Result<u32, String> {
    let time = seconds(text)?;
    match u32::try_from(time.as_secs()) {
        Ok(seconds) if seconds > 0 && time.subsec_nanos() == 0 => Ok(seconds),
        Ok(_) => Err(format!("{text:?} is no whole number of seconds above 0; give one, as in 90s")),
        Err(_) => Err(format!("{text:?} is longer than can be counted; give less")),
    }
}

/// A time in milliseconds, which a bare number counts, too; 0 is one.
pub(crate) fn milliseconds(text: &str) -> Result<u64, String> {
    let time = shipote_units::time(text, Some(MILLISECOND)).map_err(|error| error.to_string())?;
    millis(time).ok_or_else(|| format!("{text:?} is longer than can be counted; give less"))
}

/// Milliseconds of a time.
pub(crate) fn millis(time: Duration) -> Option<u64> {
    u64::try_from(time.as_millis()).ok()
}

/// Bytes; a bare number counts them.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    shipote_units::bytes(text).map_err(|error| error.to_string())
}

/// Whole MiB; a bare number counts them.
pub(crate) fn mebibytes(text: &str) -> Result<u32, String> {
    let count = shipote_units::mebibytes(text).map_err(|error| error.to_string())?;
    u32::try_from(count).map_err(|_| format!("{text:?} is more than any host has; give less"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_number_counts_what_the_option_says() {
        for (text, second) in [("90", 90), ("90s", 90), ("1m30s", 90), ("5m", 300)] {
            assert_eq!(seconds(text), Ok(Duration::from_secs(second)), "{text}");
            assert_eq!(whole_seconds(text), Ok(u32::try_from(second).unwrap_or_default()), "{text}");
        }
        assert_eq!((milliseconds("500"), milliseconds("0"), milliseconds("1.5s")), (Ok(500), Ok(0), Ok(1500)));
        assert_eq!(some_seconds("0.3"), Ok(Duration::from_millis(300)));
        assert_eq!((bytes("10M"), bytes("10"), mebibytes("1G")), (Ok(10 << 20), Ok(10), Ok(1024)));
        assert_eq!((mebibytes("10M"), mebibytes("10MiB"), mebibytes("10")), (Ok(10), Ok(10), Ok(10)));
        for bad in ["0", "0s", "-1", "", "soon", "0.0001"] {
            assert!(some_seconds(bad).is_err() && whole_seconds(bad).is_err(), "{bad}");
        }
        assert!(whole_seconds("1.5s").is_err() && mebibytes("1K").is_err());
    }
}
