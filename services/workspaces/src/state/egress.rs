//! What a workspace may reach, changed while it lives.

use shipote_bus::spec::{EGRESS_MAX, Networking, check_hosts, too_many_hosts};

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
        let wrong = |text: String| Error::InvalidArgument(format!("change what workspace {name:?} may reach: {text}"));
        check_hosts(&change.allow).map_err(|(_, problem)| wrong(problem))?;
        let mut list = workspace.spec.egress.clone();
        for entry in &change.deny {
            let before = list.len();
            list.retain(|known| known != entry);
            if list.len() == before {
                let now = if list.is_empty() { "nothing".to_owned() } else { list.join(", ") };
                return Err(wrong(format!("{entry:?} is not on its list, which allows {now}")));
            }
        }
        for entry in change.allow {
            if !list.contains(&entry) {
                list.push(entry);
            }
        }
        if list.len() > EGRESS_MAX {
            return Err(Error::LimitReached(format!("the list of workspace {name:?} {}", too_many_hosts(list.len()))));
        }
        if let Some(workspace) = self.workspace_mut(id) {
            workspace.spec.egress.clone_from(&list);
        }
        out.push(Effect::WorkspaceChanged { workspace: id });
        Ok(Outcome::Egress(list))
    }
}
