//! Network namespaces made ahead.
//!
//! A network namespace costs the kernel more than all else that a workspace is made of. So the spawner makes one while
//! nothing is asked of it, and the next workspace is made in that one; when workspaces are asked for faster than that,
//! each waits for its own. One that was given out is never given out again.
//!
//! It belongs to the spawner's user namespace, so that a keeper, though root in its own, has no rights over it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::spec::Network;
use crate::sys::{self, Side};

/// The spawner's networks: none where it may not make one and come back.
pub(crate) struct Networks {
    home: Option<OwnedFd>,
    spare: Option<(Network, OwnedFd)>,
    /// What was asked for last, as long as there is no spare for it and one can be made.
    wanted: Option<Network>,
}

impl Networks {
    pub(crate) fn new() -> Self {
        let may =
            rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
        let home = if may { own().ok().filter(|home| enter(home.as_fd()).is_ok()) } else { None };
        Self { home, spare: None, wanted: None }
    }

    /// A network that nobody has had; none where the workspace's keeper has to have rights over it, or none is ready.
    pub(crate) fn take(&mut self, network: Network) -> Option<OwnedFd> {
        if self.home.is_none() || !matches!(network, Network::None | Network::Loopback) {
            return None;
        }
        self.wanted = Some(network);
        match self.spare.take() {
            Some((kind, spare)) if kind == network => Some(spare),
            // One of another kind is worth less than the next of this kind.
            _ => None,
        }
    }

    /// Whether there is one to be made, when nothing else is to be done.
    pub(crate) fn lacks(&self) -> bool {
        self.wanted.is_some()
    }

    /// Makes one for the next workspace.
    pub(crate) fn make(&mut self) {
        let (Some(home), Some(network)) = (&self.home, self.wanted.take()) else { return };
        // SAFETY: a network namespace of its own changes nothing of this process's memory, files or ids.
        let left = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
        if left.is_err() {
            // As many as there may be. The next workspace's keeper will say so.
            return;
        }
        let made = (network == Network::None).then_some(()).map_or_else(loopback_up, Ok).and_then(|()| own());
        go_home(home.as_fd());
        self.spare = made.ok().map(|made| (network, made));
    }

    /// Makes a process in a network that was taken.
    pub(crate) fn within(
        &self,
        network: Option<&OwnedFd>,
        make: impl FnOnce() -> io::Result<Side>,
    ) -> io::Result<Side> {
        let (Some(home), Some(network)) = (&self.home, network) else { return make() };
        enter(network.as_fd())?;
        let side = make();
        if !matches!(side, Ok(Side::Child)) {
            go_home(home.as_fd());
        }
        side
    }
}

fn own() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/self/ns/net")?.into())
}

fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
}

fn go_home(home: BorrowedFd<'_>) {
    if enter(home).is_err() {
        // Workspaces with the host's network would get another.
        sys::exit(70);
    }
}

/// Brings the loopback interface up in the network that this process is in.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: ifreq is plain bytes, for which zero is valid; the kernel reads the name and the flags.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
