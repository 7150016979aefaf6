//! Named flows beside the standard three: those that a workspace shares, and further inputs and outputs of nodes.
//!
//! A command finds each as a descriptor that is open already, whose number the variable `SHIPOTE_FLOW_NAME` says.

use serde::{Deserialize, Serialize};

use super::SpecError;

/// Most flows that a workspace shares, and most further inputs, or outputs, of a node.
pub const FLOWS_MAX: usize = 8;

/// Longest name of a flow, in bytes.
const NAME_MAX: usize = 32;

/// A flow that a workspace shares: its commands have one end of it, the other end is a Unix stream socket.
///
/// ```toml
/// [[flow_dirs]]
/// name = "frames"
/// direction = "output"
/// scope = "public"
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowSlot {
    /// Letters, digits, `-` and `_`, beginning with a letter; 32 bytes at most.
    pub name: String,
    /// `input`: the commands read what is written into the socket. `output`: whoever connects reads what they write.
    #[serde(default)]
    pub direction: FlowDirection,
    /// Who may connect to the socket.
    #[serde(default)]
    pub scope: FlowScope,
}

/// Into a workspace or out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowDirection {
    /// Its commands read.
    #[default]
    Input,
    /// Its commands write.
    Output,
}

/// Who may connect to the other end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowScope {
    /// The workspace's own commands, the user who made it, and root.
    #[default]
    Workspace,
    /// Every user of the host.
    Public,
}

/// The variable that says the number of a flow's descriptor: `frames-2` is `SHIPOTE_FLOW_FRAMES_2`.
#[must_use]
pub fn flow_variable(name: &str) -> String {
    format!("SHIPOTE_FLOW_{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// Names of flows that one command has beside each other: well-formed, and no two with one variable.
///
/// # Errors
/// The first that is not, by its key path; `field` makes one of a position.
pub(super) fn check_flow_names<'a>(
    names: impl IntoIterator<Item = &'a str>,
    field: impl Fn(usize) -> String,
) -> Result<(), SpecError> {
    let mut seen: Vec<String> = Vec::new();
    for (i, name) in names.into_iter().enumerate() {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.len() > NAME_MAX || !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(plain) {
            let problem = format!(
                "{name:?} is no name of a flow; it is a letter and up to {} letters, digits, `-` and `_`",
                NAME_MAX - 1
            );
            return Err(SpecError::new(field(i), problem));
        }
        let variable = flow_variable(name);
        if seen.contains(&variable) {
            return Err(SpecError::new(
                field(i),
                format!("{name:?}: the variable {variable} is another flow's already"),
            ));
        }
        seen.push(variable);
    }
    Ok(())
}

/// The flows that a workspace shares.
///
/// # Errors
/// The first that cannot be, by its key path.
pub(super) fn check_slots(slots: &[FlowSlot]) -> Result<(), SpecError> {
    if slots.len() > FLOWS_MAX {
        return Err(SpecError::new("flow_dirs", format!("are {}; at most {FLOWS_MAX} are allowed", slots.len())));
    }
    check_flow_names(slots.iter().map(|slot| slot.name.as_str()), |i| format!("flow_dirs[{i}].name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_variables_and_no_two_are_one() {
        let check =
            |names: &[&str]| check_flow_names(names.iter().copied(), |i| format!("at {i}")).map_err(|e| e.to_string());
        assert_eq!(check(&["frames", "frames2", "a-b", "C_D"]), Ok(()));
        assert_eq!(flow_variable("a-b2"), "SHIPOTE_FLOW_A_B2");
        for bad in ["", "2a", "a b", "a/b", "é", "a=b", &"x".repeat(33)] {
            assert!(check(&["ok", bad]).unwrap_err().starts_with("at 1: "), "{bad:?}");
        }
        for (one, other) in [("a-b", "a_b"), ("frames", "Frames"), ("x", "x")] {
            assert!(check(&[one, other]).unwrap_err().contains("another flow's already"), "{one} {other}");
        }
        let slot =
            |i: usize| FlowSlot { name: format!("s{i}"), direction: FlowDirection::Output, scope: FlowScope::Public };
        let slots: Vec<FlowSlot> = (0..=FLOWS_MAX).map(slot).collect();
        assert!(check_slots(&slots[..FLOWS_MAX]).is_ok());
        assert_eq!(check_slots(&slots).unwrap_err().field, "flow_dirs");
    }
}
