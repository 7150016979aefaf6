//! The host's ends of what a guest dials: sockets beside its vsock device's own, named by the port.

use std::path::{Path, PathBuf};

use shipote_agent_protocol::ports;
use tokio::net::UnixListener;

use crate::vmm::qemu;

/// The listener that a guest's knock comes to. Whoever is newest has it.
pub(super) fn knocker(folder: &Path) -> std::io::Result<UnixListener> {
    listener(folder, ports::AGENT_READY)
}

/// Where what a guest dials on a port of the host arrives.
pub(crate) fn dialled(folder: &Path, port: u32) -> PathBuf {
    folder.join(qemu::VSOCK_FOLDER).join(format!("{}_{port}", qemu::VSOCK_SOCKET))
}

/// Listens for what the guest dials on a port of the host.
pub(crate) fn listener(folder: &Path, port: u32) -> std::io::Result<UnixListener> {
    let path = dialled(folder, port);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}
