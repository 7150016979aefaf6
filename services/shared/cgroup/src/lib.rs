//! Control groups (version 2) of a service: where the subtree is that was delegated to it, groups in it, their limits,
//! what they use, and their end.
//!
//! For: whoever starts processes and has to bound, count and end them as a whole. Not for: starting the processes
//! (clone3(2) with `CLONE_INTO_CGROUP` does, by [`Cgroup::open`]), version 1, and deciding what a breach means.
//!
//! Invariants: nothing outside of the folder that [`Tree::open`] made is ever removed or killed; a limit that could
//! not be set is said, never left out in silence; an absent figure is absent, never zero.
//!
//! Source: Documentation/admin-guide/cgroup-v2.rst of the kernel, systemd's "Control Group APIs and Delegation".

mod controllers;
mod discover;
mod error;
mod events;
mod figures;
mod group;
mod limits;
mod tree;

pub use controllers::{Controller, Controllers};
pub use discover::Place;
pub use error::Error;
pub use events::{Events, EventsFile, Notice};
pub use figures::{Figures, Io, Pressure, Stall};
pub use group::Cgroup;
pub use limits::{IoLimit, Limits, Unmet};
pub use tree::Tree;
