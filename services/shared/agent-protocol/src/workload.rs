//! The messages of ports 5000 and 5001: many commands at once on one connection, told apart by `request_id`.

use serde::{Deserialize, Serialize};

use crate::base64_bytes;

/// From the host.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields are what their names say")]
pub enum HostMessage {
    /// Comes first.
    Auth { token: String, protocol_version: u32 },
    /// Runs a command as the workload.
    Run { request_id: u64, command: Vec<String>, env: Vec<(String, String)>, workdir: Option<String> },
    /// Runs a command beside it.
    Exec { request_id: u64, command: Vec<String>, tty: bool },
    /// Sends a signal to the command of that request.
    Signal { request_id: u64, signal: i32 },
    /// Ends all commands within `timeout_ms` milliseconds, then the machine.
    Stop { timeout_ms: u64 },
}

impl std::fmt::Debug for HostMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the token.
        f.write_str(match self {
            Self::Auth { .. } => "Auth",
            Self::Run { .. } => "Run",
            Self::Exec { .. } => "Exec",
            Self::Signal { .. } => "Signal",
            Self::Stop { .. } => "Stop",
        })
    }
}

/// From the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields are what their names say")]
pub enum GuestMessage {
    /// The token was right.
    AuthOk,
    /// It was not; the connection ends.
    AuthFailed,
    /// Requests are welcome.
    Ready,
    /// The command of that request runs.
    Started { request_id: u64 },
    /// Its output.
    Stdout {
        request_id: u64,
        #[serde(with = "base64_bytes")]
        data: Vec<u8>,
        truncated: bool,
    },
    /// Its error output.
    Stderr {
        request_id: u64,
        #[serde(with = "base64_bytes")]
        data: Vec<u8>,
        truncated: bool,
    },
    /// Its end.
    Exit { request_id: u64, code: i32, reason: String },
    /// What went wrong, with a request or without.
    Error { request_id: Option<u64>, message: String },
}
