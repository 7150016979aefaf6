//! The plugin ABI as Rust types: what a plugin says about itself, what it is handed and what it answers, which components
//! are refused and why, and what an operator's policy lets a plugin do.
//!
//! It is for the registry, which decides whether a component may be stored, and for the proxy, which calls it. It is not
//! a runtime: it compiles and calls nothing. With the feature `runtime` the types can be lifted and lowered by wasmtime
//! and `host::add_to_linker` offers the host functions; without it there is no wasmtime in the dependency tree.
//!
//! Invariant: names, order of fields and order of cases are those of the packages in `wit/`; a test builds components
//! from those very files and calls them through these types.
#![forbid(unsafe_code)]

pub mod check;
#[cfg(feature = "runtime")]
pub mod engine;
#[cfg(feature = "fixtures")]
pub mod fixtures;
pub mod handlers;
pub mod host;
pub mod inspect;
pub mod kind;
pub mod metadata;
pub mod policy;
pub mod reference;
pub mod shape;
pub mod state;

/// The ABI version that this host implements.
pub const ABI_VERSION: semver::Version = semver::Version::new(0, 1, 0);

/// The one interface with functions that a plugin may import.
pub const HOST_INTERFACE: &str = "vane:host/host@0.1.0";
/// Types only; toolchains import it because the handlers use it.
pub const TYPES_INTERFACE: &str = "vane:plugin/types@0.1.0";
/// Types only: what a plugin sees of another's failure.
pub const LINK_INTERFACE: &str = "shipote:link/errors@0.1.0";
/// What a plugin keeps from call to call; imported by those whose policy lets them.
pub const STATE_INTERFACE: &str = "shipote:state/store@0.1.0";
/// Exported by every plugin.
pub const REGISTRY_INTERFACE: &str = "vane:plugin/registry@0.1.0";

/// Exported by every filter on an edge of a pipeline.
pub const FILTER_INTERFACE: &str = "shipote:filter/filter@0.1.0";
/// How the interface begins that every command component exports.
pub const RUN_INTERFACE: &str = "wasi:cli/run@0.2.";

/// The published packages' sources, for `wit` tooling and tests.
pub mod wit {
    /// `vane:host@0.1.0`.
    pub const HOST: &str = include_str!("../../../../wit/vane-host/host.wit");
    /// `vane:plugin@0.1.0`, types and registry.
    pub const TYPES: &str = include_str!("../../../../wit/vane-plugin/types.wit");
    /// `vane:plugin@0.1.0`, handlers.
    pub const HANDLERS: &str = include_str!("../../../../wit/vane-plugin/handlers.wit");
    /// `shipote:filter@0.1.0`.
    pub const FILTER: &str = include_str!("../../../../wit/shipote-filter/filter.wit");
    /// `shipote:state@0.1.0`.
    pub const STATE: &str = include_str!("../../../../wit/shipote-state/state.wit");
    /// `shipote:link@0.1.0`.
    pub const LINK: &str = include_str!("../../../../wit/shipote-link/errors.wit");
}
