//! `org.shipote.Workspaces1.Egress`, at the root object: what workspaces may reach, and the doors of those that go out.
//!
//! This service only keeps the lists and hands out the doors; the proxy serves them. What is so now can always be asked
//! for, so it matters to nobody which of the two services was started again.

use std::collections::HashMap;

use shipote_audit::Event;
use shipote_bus::egress::EgressInfo;
use shipote_bus::spec::Networking;
use shipote_bus::workspaces::WorkspacesError;
use ulid::Ulid;
use zbus::OwnedVariant;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;

use super::doors::{ACTION_CONNECT, ACTION_EGRESS, Doors, audited};
use super::manager::unexpected;
use super::parse::known;
use crate::actor::Call;
use crate::error::Error;
use crate::state::{EgressChange, Outcome, Workspace, WorkspacePhase};

type Options = HashMap<String, OwnedVariant>;

/// The root object.
pub(crate) struct Egress {
    pub(crate) doors: Doors,
}

/// Whether a workspace goes out through the proxy.
pub(super) fn goes_out(workspace: &Workspace) -> bool {
    workspace.spec.permissions.networking == Networking::Outbound
}

#[zbus::interface(name = "org.shipote.Workspaces1.Egress")]
impl Egress {
    /// Adds entries to the list of what a workspace (by name or id) may reach, and takes others away: `example.com`,
    /// `*.example.org:8443`, `10.0.0.0/8:5432`, `host:*`; without a port 80 and 443. It holds from the next connection
    /// on, and for as long as the workspace lives. Returns the list as it is now. No options yet.
    #[zbus(out_args("allowed"))]
    async fn change(
        &self,
        #[zbus(header)] header: Header<'_>,
        workspace: String,
        allow: Vec<String>,
        deny: Vec<String>,
        options: Options,
    ) -> Result<Vec<String>, WorkspacesError> {
        known(&options, &[])?;
        let caller = self.doors.authority.check(&header, ACTION_EGRESS).await.map_err(Error::from)?;
        let object = format!("workspace:{workspace}");
        let call = Call::ChangeEgress { workspace, change: EgressChange { allow, deny } };
        match audited(&self.doors, Event::EgressChange, &object, caller, call).await?.outcome {
            Outcome::Egress(list) => Ok(list),
            _ => Err(unexpected().into()),
        }
    }

    /// Lists the workspaces that go out through the proxy, oldest first. No options yet.
    #[zbus(out_args("workspaces"))]
    async fn list(&self, options: Options) -> Result<Vec<EgressInfo>, WorkspacesError> {
        known(&options, &[])?;
        let info = |w: &Workspace| EgressInfo {
            id: w.id.to_string(),
            name: w.name.clone(),
            allow: w.spec.egress.clone(),
            ask: w.spec.egress_ask,
        };
        let stands = |w: &&Workspace| goes_out(w) && w.phase == WorkspacePhase::Running;
        let list = self.doors.actor.ask(move |s, _| s.workspaces.values().filter(stands).map(info).collect());
        Ok(list.await?)
    }

    /// The doors of a workspace, by id: a socket that listens in its own network for connections to a proxy, and one
    /// that gets its queries for names. For the proxy, which has the right to reach workspaces.
    #[zbus(out_args("proxy", "names"))]
    async fn open(
        &self,
        #[zbus(header)] header: Header<'_>,
        id: String,
    ) -> Result<(zbus::OwnedFd, zbus::OwnedFd), WorkspacesError> {
        self.doors.authority.check(&header, ACTION_CONNECT).await.map_err(Error::from)?;
        let keeper = match Ulid::from_string(&id) {
            Ok(id) => self.doors.actor.ask(move |_, flows| flows.door(id)).await?,
            Err(_) => None,
        };
        let Some(keeper) = keeper else { return Err(Error::NoSuchWorkspace(id).into()) };
        let doors = keeper.doors().await;
        let doors = doors.map_err(|e| Error::WrongState(format!("open the doors of workspace {id}: {e}")))?;
        Ok((doors.proxy.into(), doors.names.into()))
    }

    /// A workspace that goes out has come, has another list, or has gone.
    #[zbus(signal)]
    pub(super) async fn changed(emitter: &SignalEmitter<'_>, id: &str) -> zbus::Result<()>;
}
