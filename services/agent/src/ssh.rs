//! The host's SSH agent in the guest: a socket that only its user may open, relayed to `ports::SSH_AGENT` of the host.
//!
//! Bytes are passed on as they are; keys never leave the host's agent.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, chownat, mkdirat, open, openat2, unlinkat};
use shipote_agent_protocol::ports;
use tokio::net::UnixListener;

use crate::listen;

/// Where a command finds it, in its root.
pub(crate) const SOCKET: &str = "/run/ssh-agent.sock";
const FOLDER: &str = "run";
const NAME: &str = "ssh-agent.sock";

/// A socket in some root; no longer served once dropped.
pub(crate) struct Offer(tokio::task::JoinHandle<()>);

impl Drop for Offer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Offers it in a root to one user. Links of an image lead nowhere but into its own root.
pub(crate) fn offer(root: &Path, uid: u32, gid: u32) -> std::io::Result<Offer> {
    let beneath = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let root = open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // One that is there is as good.
    let _ = mkdirat(&root, FOLDER, Mode::from_raw_mode(0o755));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat2(&root, FOLDER, flags, Mode::empty(), beneath)?;
    let _ = unlinkat(&folder, NAME, AtFlags::empty());
    let path = format!("/proc/self/fd/{}/{NAME}", folder.as_raw_fd());
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    // The folder is the agent's alone to write in, or the image's user's, who gains nothing by swapping his own socket.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    chownat(
        &folder,
        NAME,
        Some(rustix::fs::Uid::from_raw(uid)),
        Some(rustix::fs::Gid::from_raw(gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    Ok(Offer(tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut host) = listen::dial(ports::SSH_AGENT).await {
                    // Either side may break off, which ends both.
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut host).await;
                }
            });
        }
    })))
}
