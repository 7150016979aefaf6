//! A record and its fields.

use std::borrow::Cow;
use std::fmt::Display;

use crate::error::AuditError;
use crate::event::Event;

/// The largest record that is taken, in bytes of its encoded form: the longest command line that Linux allows (a
/// quarter of the stack, 2 MiB) and as much again.
pub const MAX_RECORD: usize = 4 * 1024 * 1024;

/// Journal priorities (syslog(3)): done is a notice, refused or failed a warning.
const NOTICE: &str = "5";
const WARNING: &str = "4";

/// The names after `SHIPOTE_` that extra fields may not take.
const FIXED: [&str; 5] = ["ACTION", "DOOR", "OBJECT", "RESULT", "UID"];

/// The way by which a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Door {
    /// D-Bus.
    Bus,
    /// The Unix socket of the workspace protocol.
    Socket,
    /// A machine's vsock.
    Vsock,
    /// An HTTP listener.
    Http,
    /// None: the service acted of itself (a time limit, an idle workspace, its own start).
    Itself,
}

impl Door {
    /// The value of `SHIPOTE_DOOR`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bus => "bus",
            Self::Socket => "socket",
            Self::Vsock => "vsock",
            Self::Http => "http",
            Self::Itself => "self",
        }
    }
}

/// A field as it is written: its name and its value, which may be any bytes.
pub(crate) type Field<'r> = (Cow<'static, str>, Cow<'r, [u8]>);

/// One change, done or refused.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Record {
    event: Event,
    object: String,
    uid: u32,
    door: Door,
    result: String,
    extra: Vec<(String, Vec<u8>)>,
}

impl Record {
    /// A change of kind `event` to `object` (its name or id), asked for by the user `uid` through `door`, that was done.
    pub fn new(event: Event, object: impl Into<String>, uid: u32, door: Door) -> Self {
        Self { event, object: object.into(), uid, door, result: "ok".to_owned(), extra: Vec::new() }
    }

    /// The same change, refused or failed for this reason.
    pub fn failed(mut self, reason: impl Display) -> Self {
        self.result = reason.to_string();
        if self.result.is_empty() || self.result == "ok" {
            self.result = format!("failed ({})", self.result);
        }
        self
    }

    /// The same change with the outcome of `result`: done, or failed with its error.
    pub fn outcome<T, E: Display>(self, result: &Result<T, E>) -> Self {
        match result {
            Ok(_) => self,
            Err(error) => self.failed(error),
        }
    }

    /// Adds the field `SHIPOTE_NAME`; the value may be any bytes. Names: up to 50 of `A-Z`, `0-9`, `_`.
    pub fn field(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.extra.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// All fields, names as in the journal, in a fixed order.
    pub(crate) fn fields<'r>(&'r self, identifier: &'r str) -> Result<Vec<Field<'r>>, AuditError> {
        let done = self.result == "ok";
        let message = format!(
            "{} {}: {} (uid {}, {})",
            self.event.action(),
            one_line(&self.object),
            one_line(&self.result),
            self.uid,
            self.door.as_str()
        );
        fn text<'r>(value: impl Into<Cow<'r, str>>) -> Cow<'r, [u8]> {
            match value.into() {
                Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            }
        }
        let mut fields: Vec<Field<'r>> = vec![
            ("MESSAGE".into(), text(message)),
            ("MESSAGE_ID".into(), text(self.event.message_id().to_string())),
            ("PRIORITY".into(), text(if done { NOTICE } else { WARNING })),
            ("SYSLOG_IDENTIFIER".into(), text(identifier)),
            ("SHIPOTE_ACTION".into(), text(self.event.action())),
            ("SHIPOTE_OBJECT".into(), text(self.object.as_str())),
            ("SHIPOTE_UID".into(), text(self.uid.to_string())),
            ("SHIPOTE_RESULT".into(), text(self.result.as_str())),
            ("SHIPOTE_DOOR".into(), text(self.door.as_str())),
        ];
        let mut bytes = self.object.len() + self.result.len();
        for (at, (name, value)) in self.extra.iter().enumerate() {
            let twice = self.extra[..at].iter().any(|(earlier, _)| earlier == name);
            if twice || !is_name(name) || FIXED.contains(&name.as_str()) {
                return Err(AuditError::Field(one_line(name)));
            }
            bytes += name.len() + value.len();
            fields.push((format!("SHIPOTE_{name}").into(), Cow::Borrowed(value)));
        }
        if bytes > MAX_RECORD {
            return Err(AuditError::TooLarge { bytes, limit: MAX_RECORD });
        }
        Ok(fields)
    }
}

/// The journal drops fields whose names are not like this (and names of more than 64 bytes; the prefix takes eight).
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 50
        && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// The message is for people and terminals: one line of bearable length. The fields hold the whole.
fn one_line(text: &str) -> String {
    let mut line: String =
        text.chars().take(200).flat_map(|c| c.is_control().then_some('\u{fffd}').or(Some(c))).collect();
    if text.chars().nth(200).is_some() {
        line.push('…');
    }
    line
}
