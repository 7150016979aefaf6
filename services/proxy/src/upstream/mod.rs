//! Upstreams: what is known about each, shared by all workers, and each worker's idle connections to them.

mod names;
mod pool;
mod quic;
mod secure;
mod streams;
mod target;

pub use names::{Ask, Unreached};
pub(crate) use pool::{AcquireError, Connected, How, Pools, Used, connect, resolve};
pub(crate) use quic::{Dialer, Requests};
pub(crate) use secure::trusting_the_system;
pub(crate) use streams::{Multiplexed, Shared};
pub(crate) use target::{Key, Registry, Speak, Target, pick};
