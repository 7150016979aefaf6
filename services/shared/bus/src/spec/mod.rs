//! What people write: workspace and pipeline specs, as TOML or JSON.
//!
//! Everything but labels, commands and nodes has a default. Unknown keys are refused.
//! The types hold data and validate themselves; they start nothing.

mod command;
mod foreign;
mod limits;
mod pipeline;
mod restart;
mod slot;
mod tighten;
mod workspace;

pub use command::{NodeCommand, Payload, substitute};
pub use foreign::Foreign;
pub use limits::{CgroupLimits, IoMax, QuotaAction, QuotaEnforcement, ResourceLimits, Soma};
pub use pipeline::{
    DiscernPolicy, EDGES_MAX, Edge, FurtherFlows, NODES_MAX, Node, NodeRef, PipelineSpec, ValidatedEdge, ValidatedNode,
    ValidatedPipeline,
};
pub use restart::RestartPolicy;
pub use slot::{FLOWS_MAX, FlowDirection, FlowScope, FlowSlot, flow_variable};
pub use workspace::{
    Access, EGRESS_MAX, EGRESS_PORT, ExitPolicy, Filesystem, HostsRefused, IpcPolicy, Networking, PathGrant,
    Permissions, WorkspaceSpec, change_hosts, check_hosts, too_many_hosts,
};

/// A label is a name of something on the bus, in files and in tables.
pub const LABEL_MAX: usize = 128;

/// A spec says something that cannot be done; the text names the field, what is wrong
/// with it and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct SpecError {
    /// Key path, as in the file: `nodes[2].label`.
    pub field: String,
    /// What is wrong, and the way out.
    pub problem: String,
}

impl SpecError {
    /// The value of `field` has `problem`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        SpecError { field: field.into(), problem: problem.into() }
    }
}

/// A label: 1 to [`LABEL_MAX`] bytes, no control characters, not starting with `-`, and
/// no `/` or `~` (which separate a label from what follows it).
///
/// # Errors
/// What is wrong with it.
pub fn check_label(field: &str, label: &str) -> Result<(), SpecError> {
    let problem = if label.is_empty() {
        "is empty; give it a name".to_owned()
    } else if label.len() > LABEL_MAX {
        format!("has {} bytes; {LABEL_MAX} are allowed", label.len())
    } else if let Some(c) = label.chars().find(|c| c.is_control() || matches!(c, '/' | '~')) {
        format!("contains {c:?}; control characters, `/` and `~` are not allowed in a label")
    } else if label.starts_with('-') {
        "starts with `-`, which the command line would take for an option".to_owned()
    } else {
        return Ok(());
    };
    Err(SpecError::new(field, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for good in ["demo", "é", "a b", "run-01ARZ3", "x.y_z"] {
            assert_eq!(check_label("label", good), Ok(()), "{good:?}");
        }
        for bad in ["", "a/b", "a~2", "a\nb", "-x", &"x".repeat(10_000)] {
            assert!(check_label("label", bad).is_err(), "{bad:?}");
        }
    }
}
