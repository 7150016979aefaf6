//! What somebody without a network of its own may reach: lists of hosts, and the addresses that names lead to.
//!
//! For: whoever takes a list from a user (a spec, a command line) and whoever lets connections out by it, so that both
//! read it alike. Not for: resolving or connecting.
//!
//! Invariant: what is not on a list is denied, and a denial names the entry that would allow it.
#![forbid(unsafe_code)]

mod address;
mod policy;

pub use address::{is_own, private};
pub use policy::{Denial, EntryError, Policy};
