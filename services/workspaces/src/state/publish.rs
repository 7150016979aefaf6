//! What a workspace publishes, changed while it lives.

use super::{Effect, Outcome, State, WorkspacePhase};
use crate::error::Error;

/// Ports that are published from now on, and ports that are no more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PublishChange {
    pub(crate) add: Vec<u16>,
    pub(crate) remove: Vec<u16>,
}

impl State {
    /// Changes what a workspace, by name or id, publishes; answers with what it is now. Connections that are open go on.
    pub(super) fn change_published(
        &mut self,
        name: &str,
        change: PublishChange,
        out: &mut Vec<Effect>,
    ) -> Result<Outcome, Error> {
        let workspace = self.find_workspace(name)?;
        let (id, name) = (workspace.id, workspace.name.clone());
        let what = format!("change what workspace {name:?} publishes");
        if workspace.phase == WorkspacePhase::Stopping {
            return Err(Error::WrongState(format!("{what}: it is being stopped")));
        }
        let mut spec = workspace.spec.clone();
        if let Some(port) = change.remove.iter().find(|port| !spec.publish.contains(port)) {
            return Err(Error::InvalidArgument(format!("{what}: it does not publish port {port}")));
        }
        spec.publish.retain(|port| !change.remove.contains(port));
        for port in change.add {
            if !spec.publish.contains(&port) {
                spec.publish.push(port);
            }
        }
        spec.check_published().map_err(|error| Error::InvalidArgument(format!("{what}: {error}")))?;
        let published = spec.publish.clone();
        if let Some(workspace) = self.workspace_mut(id) {
            workspace.spec = spec;
        }
        out.push(Effect::WorkspaceChanged { workspace: id });
        Ok(Outcome::Published(published))
    }
}
