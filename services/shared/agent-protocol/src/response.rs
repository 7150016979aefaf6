//! What the agent answers on port 6000.

use serde::{Deserialize, Serialize};

use crate::base64_bytes;

/// An answer, or one frame of a longer one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields are what their names say; meaning stands at the variants")]
pub enum AgentResponse {
    /// Done.
    Ok {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        data: Option<serde_json::Value>,
    },
    /// Answer to `Ping`.
    Pong { version: u32 },
    /// How far a pull is: `percent` of the whole, `layer` the one at work.
    Progress {
        message: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        percent: Option<u8>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        layer: Option<String>,
    },
    /// Refused or failed; `code` is one of [`crate::codes`].
    Error {
        message: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
    },
    /// A command ended. `truncated` where a stream was longer than [`crate::COMPLETED_STREAM_MAX`].
    Completed {
        exit_code: i32,
        #[serde(with = "base64_bytes")]
        stdout: Vec<u8>,
        #[serde(with = "base64_bytes")]
        stderr: Vec<u8>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
    },
    /// A session began.
    Started,
    /// Output of the session.
    Stdout {
        #[serde(with = "base64_bytes")]
        data: Vec<u8>,
    },
    /// Error output of the session; a terminal has none of its own.
    Stderr {
        #[serde(with = "base64_bytes")]
        data: Vec<u8>,
    },
    /// The session ended: the exit status, 128 + n for death by signal n, 124 for a timeout.
    Exited { exit_code: i32 },
    /// Bytes of a file or layer; the last frame has `done` and no data.
    DataChunk {
        #[serde(with = "base64_bytes")]
        data: Vec<u8>,
        done: bool,
    },
}

impl AgentResponse {
    /// An error with its code.
    #[must_use]
    pub fn error(code: &str, message: impl std::fmt::Display) -> Self {
        Self::Error { message: message.to_string(), code: Some(code.to_owned()) }
    }

    /// `Ok` without data.
    #[must_use]
    pub fn ok() -> Self {
        Self::Ok { data: None }
    }

    /// `Ok` with `data`; an error (`SERIALIZATION_ERROR`) where it cannot be written as JSON.
    #[must_use]
    pub fn ok_with(data: impl Serialize) -> Self {
        match serde_json::to_value(data) {
            Ok(value) => Self::Ok { data: Some(value) },
            Err(error) => Self::error(crate::codes::SERIALIZATION_ERROR, error),
        }
    }
}
