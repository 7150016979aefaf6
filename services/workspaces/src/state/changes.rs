//! What of a workspace's spec is changed while it lives: what it may reach, and what it publishes.

use shipote_bus::spec::{HostsRefused, Networking, WorkspaceSpec, change_hosts};

use super::{Effect, Outcome, State, WorkspacePhase};
use crate::error::Error;

/// A change of a list of hosts: entries that are added, and entries that are taken away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EgressChange {
    pub(crate) allow: Vec<String>,
    pub(crate) deny: Vec<String>,
}

/// Ports that are published from now on, and ports that are no more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PublishChange {
    pub(crate) add: Vec<u16>,
    pub(crate) remove: Vec<u16>,
}

impl State {
    /// Changes what a workspace, by name or id, may reach; answers with what that is now.
    pub(super) fn change_egress(
        &mut self,
        name: &str,
        change: EgressChange,
        out: &mut Vec<Effect>,
    ) -> Result<Outcome, Error> {
        self.change_spec(name, "may reach", out, |spec, what| {
            if spec.permissions.networking != Networking::Outbound {
                return Err(Error::WrongState(format!(
                    "{what}: it has no way out; create it with `permissions.networking = \"outbound\"` or `--egress HOST`"
                )));
            }
            spec.egress = change_hosts(&spec.egress, change.allow, &change.deny).map_err(|refused| match refused {
                HostsRefused::Wrong(text) => Error::InvalidArgument(format!("{what}: {text}")),
                HostsRefused::TooMany(text) => Error::LimitReached(format!("{what}: the list {text}")),
            })?;
            Ok(Outcome::Egress(spec.egress.clone()))
        })
    }

    /// Changes what a workspace, by name or id, publishes; answers with what that is now. Connections that are open go on.
    pub(super) fn change_published(
        &mut self,
        name: &str,
        change: PublishChange,
        out: &mut Vec<Effect>,
    ) -> Result<Outcome, Error> {
        self.change_spec(name, "publishes", out, |spec, what| {
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
            Ok(Outcome::Published(spec.publish.clone()))
        })
    }

    /// Changes the spec of a workspace, by name or id, as a whole or not at all. What is changed begins each refusal.
    fn change_spec(
        &mut self,
        name: &str,
        what: &str,
        out: &mut Vec<Effect>,
        change: impl FnOnce(&mut WorkspaceSpec, &str) -> Result<Outcome, Error>,
    ) -> Result<Outcome, Error> {
        let workspace = self.find_workspace(name)?;
        let (id, mut spec) = (workspace.id, workspace.spec.clone());
        let what = format!("change what workspace {:?} {what}", workspace.name);
        if workspace.phase == WorkspacePhase::Stopping {
            return Err(Error::WrongState(format!("{what}: it is being stopped")));
        }
        let outcome = change(&mut spec, &what)?;
        if let Some(workspace) = self.workspace_mut(id) {
            workspace.spec = spec;
        }
        out.push(Effect::WorkspaceChanged { workspace: id });
        Ok(outcome)
    }
}
