//! A record as it is read back.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::file::TIMESTAMP;

/// A record that was read back. Values that are not text have their odd bytes replaced by U+FFFD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// When, in microseconds since 1970.
    pub time_us: u64,
    /// `SHIPOTE_ACTION`.
    pub action: String,
    /// `SHIPOTE_OBJECT`.
    pub object: String,
    /// `SHIPOTE_UID`: who asked.
    pub uid: Option<u32>,
    /// `SHIPOTE_RESULT`: `ok` or the error.
    pub result: String,
    /// `SHIPOTE_DOOR`.
    pub door: String,
    /// `MESSAGE`.
    pub message: String,
    /// `MESSAGE_ID`.
    pub message_id: String,
    /// `PRIORITY`, as in syslog(3).
    pub priority: Option<u8>,
    /// `SYSLOG_IDENTIFIER`: the program that wrote it.
    pub identifier: String,
    /// The other `SHIPOTE_*` fields, by the part of their name after the prefix.
    pub extra: BTreeMap<String, String>,
    /// What the journal itself says about the writer; nothing of it in a file.
    pub writer: Writer,
}

/// The journal's own word on who wrote an entry: these cannot be forged by the writer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Writer {
    /// `_UID`.
    pub uid: Option<u32>,
    /// `_PID`.
    pub pid: Option<u32>,
    /// `_SYSTEMD_UNIT`.
    pub unit: Option<String>,
}

impl Entry {
    /// When.
    #[must_use]
    pub fn time(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(self.time_us)
    }

    /// Reads one line of JSON, of our file or of `journalctl -o json`: they have the same form. `None`: not a record.
    pub(crate) fn from_json(line: &[u8]) -> Option<Self> {
        let mut fields: Map<String, Value> = serde_json::from_slice(line).ok()?;
        let mut text = |name: &str| fields.remove(name).map(|value| plain(&value));
        let entry = Self {
            time_us: text(TIMESTAMP)?.parse().ok()?,
            action: text("SHIPOTE_ACTION")?,
            object: text("SHIPOTE_OBJECT")?,
            uid: text("SHIPOTE_UID").and_then(|uid| uid.parse().ok()),
            result: text("SHIPOTE_RESULT")?,
            door: text("SHIPOTE_DOOR").unwrap_or_default(),
            message: text("MESSAGE").unwrap_or_default(),
            message_id: text("MESSAGE_ID").unwrap_or_default(),
            priority: text("PRIORITY").and_then(|priority| priority.parse().ok()),
            identifier: text("SYSLOG_IDENTIFIER").unwrap_or_default(),
            writer: Writer {
                uid: text("_UID").and_then(|uid| uid.parse().ok()),
                pid: text("_PID").and_then(|pid| pid.parse().ok()),
                unit: text("_SYSTEMD_UNIT"),
            },
            extra: BTreeMap::new(),
        };
        let extra =
            fields.iter().filter_map(|(name, value)| Some((name.strip_prefix("SHIPOTE_")?.to_owned(), plain(value))));
        Some(Self { extra: extra.collect(), ..entry })
    }
}

/// A field's value as text: a string, a list of bytes (not UTF-8), or, of a field given several times, the first.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_u64) => {
            let bytes: Vec<u8> =
                items.iter().filter_map(Value::as_u64).filter_map(|byte| u8::try_from(byte).ok()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        Value::Array(items) => items.first().map(plain).unwrap_or_default(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
