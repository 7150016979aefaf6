//! The spawner of an ordinary user, inside a user namespace of its own.
//!
//! What makes workspaces quick ([`SharedRoots`](crate::keeper::SharedRoots), [`networks`](super::networks)) takes rights over
//! namespaces, which an ordinary user has only over those that belong to a user namespace of theirs. So such a user's
//! spawner moves into one, and leaves a child outside for what can only be done there:
//!
//! ```text
//!   service ── orders ──▶ spawner, in its own user, mount and network namespace ── clone3 ──▶ keeper
//!                              │ what has a root of its own: files of the host, its network, helpers
//!                              ▼
//!                         its child, outside ── clone3, fork ──▶ keeper, helper
//! ```
//!
//! Its keepers' user namespaces are children of its own; user and group are the service's in all of them, as ever.
//! Where there are to be no user namespaces it stays where it is, and nothing is quick.

use std::io;
use std::os::fd::OwnedFd;

use rustix::thread::{CapabilitySet, UnshareFlags};

use crate::ids::map_one;
use crate::sys::{self, Side};

/// Where in this this process is.
pub(super) enum Place {
    /// There is but one spawner.
    Only(OwnedFd),
    /// Inside, with the connection to the one outside.
    Inner { control: OwnedFd, outer: OwnedFd, child: i32 },
    /// Outside, with its connection.
    Outer(OwnedFd),
}

/// Moves in where that is of use.
pub(super) fn begin(control: OwnedFd) -> Place {
    // Who has the rights already uses them where they are; root without them has no ids to give.
    if rustix::process::geteuid().is_root() || may_already() {
        return Place::Only(control);
    }
    let Ok((outer, orders)) = super::pair() else { return Place::Only(control) };
    // SAFETY: the spawner has one thread, and both sides go on with descriptors of their own.
    match unsafe { sys::clone3(0, None) } {
        Ok(Side::Child) => Place::Outer(orders),
        Ok(Side::Parent { pid, .. }) => {
            drop(orders);
            if move_in().is_ok() {
                return Place::Inner { control, outer, child: pid };
            }
            drop(outer);
            // SAFETY: waits for the child, which reads the end of its socket.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            Place::Only(control)
        }
        Err(_) => Place::Only(control),
    }
}

/// Into namespaces of its own, with the user and the group that it has. An error leaves it where it was, or without a
/// user: then it cannot go on, which is how its service learns of it.
fn move_in() -> io::Result<()> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let namespaces = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::from_bits_retain(NEWUSER);
    // SAFETY: changes nothing of this process's memory and open files.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }?;
    if map_one(std::process::id().cast_signed(), (user, user), (group, group)).is_err() {
        sys::exit(70);
    }
    Ok(())
}

const NEWUSER: u32 = libc::CLONE_NEWUSER.cast_unsigned();

/// Whether this process has rights over the namespaces that it is in.
fn may_already() -> bool {
    let held = rustix::thread::capabilities(None);
    held.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}
