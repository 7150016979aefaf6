//! The first frame of a connection to a port that the guest serves.

use serde::{Deserialize, Serialize};

/// Proves that the one who connects is the machine's owner: sent first on every connection to a machine that was given
/// a secret at boot, answered by `Ok` or by `Error` (`UNAUTHENTICATED`) and the end of the connection.
///
/// Port numbers alone protect nothing: with the kernel's vsock every process of the host can reach every guest. The
/// machines service sends this frame and only then hands the connection to whoever may use it, so that clients of the
/// plain protocol need not know of it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "method", rename = "hello")]
pub struct Hello {
    /// The machine's secret, as it was given at boot.
    pub secret: String,
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hello { .. }")
    }
}

/// The `token` of [`crate::HostMessage::Auth`] of a machine with this secret. It follows from the secret but does not
/// reveal it: whoever may drive the workload cannot greet the agent's control port.
#[must_use]
pub fn workload_token(secret: &str) -> String {
    use sha2::{Digest as _, Sha256};
    let digest = Sha256::new().chain_update(b"shipote workload\0").chain_update(secret).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
