//! Upstreams: what is known about each, shared by all workers, and each worker's idle connections to them.

mod pool;
mod target;

pub(crate) use pool::{AcquireError, Pools, Used, connect};
pub(crate) use target::{Registry, Target, pick};
