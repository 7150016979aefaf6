//! What is asked of the agent on port 6000.

use serde::{Deserialize, Serialize};

use crate::{RegistryAuth, base64_bytes};

/// A request, or a message within an exec session or an upload. Unknown fields are ignored when reading.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields are what their names say; units and meaning stand at the variants")]
pub enum AgentRequest {
    /// Answered by `Pong`.
    Ping,
    /// Fetches an image; `Progress` any number of times, then `Ok(ImageInfo)`.
    Pull {
        image: String,
        oci_platform: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        auth: Option<RegistryAuth>,
    },
    /// `Ok(ImageInfo)` or `NOT_FOUND`.
    Query { image: String },
    /// `Ok([ImageInfo])`.
    ListImages,
    /// Removes what no image needs; `Ok{freed_bytes, dry_run}`.
    GarbageCollect {
        dry_run: bool,
        #[serde(default)]
        purge_all: bool,
    },
    /// Removes an image, and the layers that no other needs; `Ok{freed_bytes}` or `NOT_FOUND`. Not in the seed: ours.
    RemoveImage { image: String },
    /// Mounts an overlay over an image; `Ok(OverlayInfo)`. Idempotent.
    PrepareOverlay { image: String, workload_id: String },
    /// Unmounts and removes it. Idempotent.
    CleanupOverlay { workload_id: String },
    /// Marks the storage as formatted.
    FormatStorage,
    /// `Ok(StorageStatus)`.
    StorageStatus,
    /// Tries to reach a URL from the guest.
    NetworkTest { url: String },
    /// Syncs, answers, powers the machine off.
    Shutdown,
    /// `DataChunk`s of the uncompressed layer, the last of them empty.
    ExportLayer { image_digest: String, layer_index: usize },
    /// Runs a command in the agent's own root. `timeout_ms` in milliseconds.
    VmExec {
        command: Vec<String>,
        #[serde(default)]
        env: Vec<(String, String)>,
        workdir: Option<String>,
        #[serde(default)]
        timeout_ms: Option<u64>,
        #[serde(default)]
        interactive: bool,
        #[serde(default)]
        tty: bool,
        #[serde(default)]
        background: bool,
    },
    /// Runs a command in an image. `mounts` are `(tag, path, read_only)`.
    Run {
        image: String,
        command: Vec<String>,
        #[serde(default)]
        env: Vec<(String, String)>,
        workdir: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        user: Option<String>,
        #[serde(default)]
        mounts: Vec<(String, String, bool)>,
        #[serde(default)]
        timeout_ms: Option<u64>,
        #[serde(default)]
        interactive: bool,
        #[serde(default)]
        tty: bool,
        #[serde(default)]
        detached: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        persistent_overlay_id: Option<String>,
        #[serde(default)]
        background: bool,
    },
    /// Input of the session on this connection; empty is end of input.
    Stdin {
        #[serde(with = "base64_bytes")]
        data: Vec<u8>,
    },
    /// New size of the session's terminal, in characters.
    Resize { cols: u16, rows: u16 },
    /// Writes a whole file, at most [`crate::FILE_WRITE_MAX`] bytes, atomically.
    FileWrite {
        path: String,
        #[serde(with = "base64_bytes")]
        data: Vec<u8>,
        #[serde(default)]
        mode: Option<u32>,
    },
    /// Begins an upload of `total_size` bytes.
    FileWriteBegin {
        path: String,
        #[serde(default)]
        mode: Option<u32>,
        total_size: u64,
    },
    /// The next bytes of the upload; `done` puts the file in its place.
    FileWriteChunk {
        #[serde(with = "base64_bytes")]
        data: Vec<u8>,
        done: bool,
    },
    /// `DataChunk`s of the file, the last of them empty.
    FileRead { path: String },
}

impl AgentRequest {
    /// The method's name as it stands on the wire.
    #[must_use]
    pub fn method(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Pull { .. } => "pull",
            Self::Query { .. } => "query",
            Self::ListImages => "list_images",
            Self::GarbageCollect { .. } => "garbage_collect",
            Self::RemoveImage { .. } => "remove_image",
            Self::PrepareOverlay { .. } => "prepare_overlay",
            Self::CleanupOverlay { .. } => "cleanup_overlay",
            Self::FormatStorage => "format_storage",
            Self::StorageStatus => "storage_status",
            Self::NetworkTest { .. } => "network_test",
            Self::Shutdown => "shutdown",
            Self::ExportLayer { .. } => "export_layer",
            Self::VmExec { .. } => "vm_exec",
            Self::Run { .. } => "run",
            Self::Stdin { .. } => "stdin",
            Self::Resize { .. } => "resize",
            Self::FileWrite { .. } => "file_write",
            Self::FileWriteBegin { .. } => "file_write_begin",
            Self::FileWriteChunk { .. } => "file_write_chunk",
            Self::FileRead { .. } => "file_read",
        }
    }
}
