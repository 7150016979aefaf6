//! Workspaces and pipelines as clients of the socket describe them.
//!
//! In TOML and JSON everything but labels, ids and payloads has a default.

mod pipeline;
mod workspace;

pub use pipeline::{
    CommandRef, DiscernPolicy, Fake, Flow, FlowEdge, Flows, Payload, PipelineSpec, Supervision, TypeRef,
};
pub use workspace::{
    CgroupSpec, ExitPolicy, Filesystem, FlowDirection, FlowScope, FlowSlot, IpcPolicy, NamespaceSet, Networking,
    Permissions, QuotaAction, QuotaEnforcement, ResourceLimits, SomaSpec, WorkspaceId, WorkspaceSpec,
};
