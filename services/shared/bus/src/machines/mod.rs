//! `org.shipote.Machines1`: wire types, errors and the client proxy.

mod error;
mod info;
mod proxy;

pub use error::MachinesError;
pub use info::{MachineDetails, MachineInfo, SnapshotInfo};
pub use proxy::{MachinesProxy, StateChanged, StateChangedStream};

/// Interface of the root object.
pub const MANAGER_INTERFACE: &str = "org.shipote.Machines1.Manager";
