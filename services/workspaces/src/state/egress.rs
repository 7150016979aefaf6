//! What a workspace may reach, changed while it lives.

use shipote_bus::spec::{HostsRefused, Networking, change_hosts};

use super::{Effect, Outcome, State, WorkspacePhase};
use crate::error::Error;

/// A change of a list of hosts: entries that are added, and entries that are taken away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EgressChange {
    pub(crate) allow: Vec<String>,
    pub(crate) deny: Vec<String>,
}

impl State {
    /// Changes the list of a workspace, by name or id; answers with what it is now.
    pub(super) fn change_egress(
        &mut self,
        name: &str,
        change: EgressChange,
        out: &mut Vec<Effect>,
    ) -> Result<Outcome, Error> {
        let workspace = self.find_workspace(name)?;
        let (id, name) = (workspace.id, workspace.name.clone());
        if workspace.spec.permissions.networking != Networking::Outbound {
            return Err(Error::WrongState(format!(
                "change what workspace {name:?} may reach: it has no way out; create it with `permissions.networking = \
                 \"outbound\"` or `--egress HOST`"
            )));
        }
        if workspace.phase == WorkspacePhase::Stopping {
            return Err(Error::WrongState(format!("change what workspace {name:?} may reach: it is being stopped")));
        }
        let list =
            change_hosts(&workspace.spec.egress, change.allow, &change.deny).map_err(|refused| match refused {
                HostsRefused::Wrong(text) => {
                    Error::InvalidArgument(format!("change what workspace {name:?} may reach: {text}"))
                }
                HostsRefused::TooMany(text) => Error::LimitReached(format!("the list of workspace {name:?} {text}")),
            })?;
        if let Some(workspace) = self.workspace_mut(id) {
            workspace.spec.egress.clone_from(&list);
        }
        out.push(Effect::WorkspaceChanged { workspace: id });
        Ok(Outcome::Egress(list))
    }
}
