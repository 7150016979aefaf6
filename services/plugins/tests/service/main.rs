//! The registry as a process on a bus of its own.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod canary;
mod links;
mod store;
mod support;
mod versions;
