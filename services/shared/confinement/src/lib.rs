//! What a process does to itself so that a bug in it reaches less: capabilities dropped, no new
//! privileges, a landlock domain from a policy file, a seccomp filter.
//!
//! For two kinds of caller: a service, which applies its [`Policy`] in `main` before its runtime
//! starts a thread (landlock and seccomp bind the calling thread and what it starts later), and the
//! sandbox, which puts commands under a [`Domain`] and the [`seccomp::command_filter`].
//!
//! Not for: namespaces, mounts, cgroups (`shipote-sandbox`), nor for deciding what a service may do
//! (the policy files under `policies/landlock/` say that).
//!
//! Invariant: nothing is skipped in silence. Each mechanism asked for is reported as one
//! [`Mechanism`], with the reason where the kernel did not give all of it.

mod capabilities;
mod error;
mod landlock;
mod mechanism;
mod policy;
pub mod seccomp;

pub use capabilities::{drop_capabilities, parse_capability};
pub use error::Error;
pub use landlock::{Domain, Handled, PathAccess, landlock_abi};
pub use mechanism::{Enforcement, Mechanism};
pub use policy::{PathRule, Policy, Ports, Scope};
pub use rustix::thread::CapabilitySet;
