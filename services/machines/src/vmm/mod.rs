//! The virtual machine monitor: QEMU's `microvm`, and what it needs to know of the host.

pub mod host;
pub mod process;
pub mod qemu;
