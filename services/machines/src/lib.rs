//! `shipote-machines`: microVMs, from a spec to a guest that answers.
//!
//! For: starting and ending virtual machines, and handing out connections to the agent in each. Not for: what is said on
//! those connections; whoever gets one speaks the agent's protocol by itself, so that no byte a guest sends is parsed
//! here, beyond the greeting.
//!
//! Rooms: [`spec`] what a machine is made of, [`state`] the pure state machine, [`actor`] owns all machines, [`launch`]
//! one machine's life, [`keeper`] the process that a machine's processes are children of, [`vmm`] QEMU and what it needs
//! of the host, [`groups`] what limits a machine, [`users`] who it is on the host, [`snapshots`] disks that were kept and [`take`] how, [`volumes`] folders of the host, [`ssh_agent`] whether one is there, [`way`] how a guest goes out and [`kept`] goes on to, [`guest`] connections, `bus` (in the binary) the door.
//!
//! Invariant: every virtual machine has a keeper. While this service runs it has an entry in the actor's table; while it
//! doesn't, the keeper waits for it for as long as the machine's lease says, and then ends the machine.

#![deny(unsafe_op_in_unsafe_fn)]

pub mod actor;
pub mod console;
pub mod disk;
pub mod error;
pub mod groups;
pub mod guest;
pub mod health;
pub mod idle;
pub mod image;
pub mod keeper;
pub mod kept;
pub mod launch;
pub mod launcher;
pub mod lifeline;
pub mod published;
pub mod relay;
pub mod run;
pub mod snapshots;
pub mod spec;
pub mod ssh_agent;
pub mod state;
pub mod stats;
pub mod store;
pub mod take;
pub mod users;
pub mod vmm;
pub mod volumes;
pub mod way;

pub use error::Error;
