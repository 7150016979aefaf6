//! Messages of the workspace socket (`shipote.sock`): one [`Request`], one [`Response`], each in a frame of its own
//! (`u32` big-endian length, at most [`FRAME_MAX`] bytes, then the message in postcard's format).
//!
//! For: the service that answers and clients that ask. [`convert`] turns what a client may write into the specs that
//! the services work with, and refuses what they cannot honour.
//!
//! Not for: connections, permissions, or what a request does.
//!
//! Invariant: postcard writes fields and variants by position and nothing else, so their order here *is* the protocol.
//! Nothing is ever inserted, reordered or removed; golden bytes in the tests hold it fast. Names, renames and defaults
//! matter only where the same types are read from TOML or JSON.
#![forbid(unsafe_code)]

pub mod convert;
mod request;
mod response;
pub mod spec;

use serde::Serialize;
use serde::de::DeserializeOwned;
use shipote_framing::Codec;

pub use request::Request;
pub use response::{
    CommandInfo, EdgeDiscernmentInfo, FlowInfo, FlowThroughputInfo, QuotaReportInfo, Response, WorkspaceStatsInfo,
    WorkspaceSummary,
};

/// Largest body of a frame, in bytes.
pub const FRAME_MAX: usize = 1 << 20;

/// Why bytes are no message, or a message cannot be bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// They follow another format.
    #[error("{0}")]
    Format(#[from] postcard::Error),
    /// A message is followed by more bytes.
    #[error("{0} bytes are left over after the message")]
    LeftOver(usize),
}

/// The bytes of a message.
///
/// # Errors
/// None that these types can cause; postcard does not promise it.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    Ok(postcard::to_stdvec(message)?)
}

/// The message in these bytes, all of them.
///
/// # Errors
/// They are no such message, or go on after it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ProtocolError> {
    let (message, rest) = postcard::take_from_bytes::<T>(bytes)?;
    if rest.is_empty() { Ok(message) } else { Err(ProtocolError::LeftOver(rest.len())) }
}

/// How messages are put into frames.
#[derive(Debug, Clone, Copy, Default)]
pub struct Postcard;

impl<T: Serialize + DeserializeOwned> Codec<T> for Postcard {
    type Error = ProtocolError;

    fn encode(&self, message: &T) -> Result<Vec<u8>, ProtocolError> {
        encode(message)
    }

    fn decode(&self, body: &[u8]) -> Result<T, ProtocolError> {
        decode(body)
    }
}
