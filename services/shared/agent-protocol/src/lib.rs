//! The messages a machine's host and the agent inside the guest exchange over vsock.
//!
//! For: the wire types (JSON, one message a frame), the ports and limits, and reading and writing frames on any
//! async stream. Not for: answering requests (the agent does), transports (the machines service does).
//!
//! A frame is a `u32` big-endian length followed by that many bytes of JSON, at most [`MAX_FRAME`] of them. A
//! connection carries requests one after another; see [`AgentRequest`] and [`AgentResponse`].
//!
//! Invariant: every message that the public crate `smolvm-protocol` 0.6.3 writes is read here, and the other way round,
//! byte for byte; 1.33.0 of it reads all of ours. Fields of our own are optional and left out when unset.

#![forbid(unsafe_code)]

mod auth;
pub mod base64_bytes;
pub mod codes;
mod envelope;
mod frame;
mod info;
pub mod reach;
mod request;
mod response;
pub mod session;
pub mod transfer;
mod workload;

pub use auth::{Hello, workload_token};
pub use envelope::Envelope;
pub use frame::{FrameError, encode, read_body, read_length, read_message, skip_body, write_message};
pub use info::{ImageInfo, OverlayInfo, RegistryAuth, StorageStatus};
pub use reach::Reach;
pub use request::AgentRequest;
pub use response::AgentResponse;
pub use workload::{GuestMessage, HostMessage};

/// Version that `Pong` carries.
pub const PROTOCOL_VERSION: u32 = 1;
/// Largest JSON body of a frame, both ways: 32 MiB.
pub const MAX_FRAME: u32 = 32 * 1024 * 1024;
/// Largest body over [`MAX_FRAME`] that is still read to its end so that the connection stays usable: 64 MiB.
pub const MAX_DRAIN: u32 = 64 * 1024 * 1024;
/// Largest `data` of an [`AgentResponse::DataChunk`]: 16 MiB.
pub const DATA_CHUNK_MAX: usize = 16 * 1024 * 1024;
/// Largest `data` of [`AgentRequest::FileWrite`] and [`AgentRequest::FileWriteChunk`]: 1 MiB.
pub const FILE_WRITE_MAX: usize = 1024 * 1024;
/// Largest file a chunked upload or a download may have: 4 GiB.
pub const FILE_TOTAL_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// What a `Completed` answer carries of each stream at most: 8 MiB. Past it the answer says `truncated`.
pub const COMPLETED_STREAM_MAX: usize = 8 * 1024 * 1024;

/// Vsock ports.
pub mod ports {
    /// Workload control, served by the guest.
    pub const WORKLOAD_CONTROL: u32 = 5000;
    /// Workload logs, served by the guest.
    pub const WORKLOAD_LOGS: u32 = 5001;
    /// Agent control, served by the guest.
    pub const AGENT_CONTROL: u32 = 6000;
    /// The host's SSH agent, dialled by the guest.
    pub const SSH_AGENT: u32 = 6001;
    /// DNS filter on the host, dialled by the guest.
    pub const DNS_FILTER: u32 = 6002;
    /// The way out of the machine on the host (HTTP CONNECT), dialled by the guest.
    pub const EGRESS: u32 = 6003;
    /// Dialled by the guest once its agent listens; carries no bytes.
    pub const AGENT_READY: u32 = 6004;
    /// What listens inside the guest, by port or socket ([`crate::reach`]); served by the guest.
    pub const REACH: u32 = 6005;
    /// Files as they are ([`crate::transfer`]); served by the guest.
    pub const FILES: u32 = 6006;
}

/// Vsock context ids.
pub mod cid {
    /// The host, seen from a guest.
    pub const HOST: u32 = 2;
    /// The guest, where only one exists.
    pub const GUEST: u32 = 3;
    /// Any, when binding.
    pub const ANY: u32 = u32::MAX;
}
