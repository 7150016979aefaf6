//! What answers carry in their `data`.

use serde::{Deserialize, Serialize};

/// An image in the guest's store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// As it was asked for.
    pub reference: String,
    /// Digest of the image's config (`sha256:…`).
    pub digest: String,
    /// Bytes of its layers.
    pub size: u64,
    /// RFC 3339, where the config has it.
    pub created: Option<String>,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`
    pub os: String,
    /// How many layers.
    pub layer_count: usize,
    /// Digests of the manifest's blobs, in order.
    pub layers: Vec<String>,
    /// From the config.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// From the config.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// From the config, `NAME=VALUE` each.
    #[serde(default)]
    pub env: Vec<String>,
    /// From the config.
    #[serde(default)]
    pub workdir: Option<String>,
    /// From the config: `user[:group]`, names or numbers.
    #[serde(default)]
    pub user: Option<String>,
}

/// Where an overlay lies in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayInfo {
    /// The merged tree.
    pub rootfs_path: String,
    /// What was written over the image.
    pub upper_path: String,
    /// overlayfs' own directory.
    pub work_path: String,
}

/// State of the guest's storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageStatus {
    /// Whether a storage disk is mounted.
    pub ready: bool,
    /// Size in bytes.
    pub total_bytes: u64,
    /// Used bytes.
    pub used_bytes: u64,
    /// Layers in the store.
    pub layer_count: usize,
    /// Images in the store.
    pub image_count: usize,
}

/// Credentials for a registry.
#[derive(Clone, Serialize, Deserialize)]
pub struct RegistryAuth {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth").field("username", &self.username).finish_non_exhaustive()
    }
}
