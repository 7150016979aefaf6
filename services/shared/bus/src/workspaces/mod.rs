//! `org.shipote.Workspaces1`: wire types, errors and client proxies.

mod error;
mod figures;
mod info;
mod proxy;

pub use error::WorkspacesError;
pub use figures::{FiguresProxy, WorkspaceQuota, WorkspaceStats};
pub use info::{
    CommandInfo, Completion, DiscernmentInfo, FlowInfo, PipelineInfo, RefusalInfo, RunOptions, WorkspaceInfo,
};
pub use proxy::{CommandProxy, FlowProxy, ManagerProxy, PipelineProxy, SavedProxy, WorkspaceProxy};

/// Interface of the root object.
pub const MANAGER_INTERFACE: &str = "org.shipote.Workspaces1.Manager";
/// Interface of the figures, at the root object.
pub const FIGURES_INTERFACE: &str = "org.shipote.Workspaces1.Figures";
/// Interface of the saved pipelines, at the root object.
pub const SAVED_INTERFACE: &str = "org.shipote.Workspaces1.Saved";
/// Interface of a workspace's object.
pub const WORKSPACE_INTERFACE: &str = "org.shipote.Workspaces1.Workspace";
/// Interface of a command's object.
pub const COMMAND_INTERFACE: &str = "org.shipote.Workspaces1.Command";
/// Interface of a pipeline's object.
pub const PIPELINE_INTERFACE: &str = "org.shipote.Workspaces1.Pipeline";
/// Interface of a tapped edge's object.
pub const FLOW_INTERFACE: &str = "org.shipote.Workspaces1.Flow";

/// Largest spec that is accepted, bytes.
pub const SPEC_MAX: usize = 1024 * 1024;
/// Largest sample that `Discern` accepts, bytes; more goes by a file of one's own.
pub const DISCERN_MAX: usize = 64 * 1024;
