//! `org.shipote.Machines1.Egress`, at the root object: what machines may reach, and the ways of those that go out.
//!
//! This service only keeps the lists and hands out the sockets; the proxy serves them. What is so now can always be asked
//! for, so it matters to nobody which of the two services was started again.

use std::sync::Arc;

use shipote_audit::{Audit, Event};
use shipote_bus::egress::{EgressInfo, Keeper};
use shipote_bus::machines::MachinesError;
use shipote_machines::actor::{GoesOut, Handle};
use shipote_service::Authority;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;

use super::{ACTION_CONNECT, Options, allow as may, audited, known, refusal};

/// polkit: changing what machines may reach.
const ACTION_EGRESS: &str = "org.shipote.machines.egress";

/// The root object.
pub(crate) struct Egress {
    pub(crate) actor: Handle,
    pub(crate) authority: Authority,
    pub(crate) audit: Arc<Audit>,
}

#[zbus::interface(name = "org.shipote.Machines1.Egress")]
impl Egress {
    /// Adds entries to the list of what a machine may reach, and takes others away: `example.com`,
    /// `*.example.org:8443`, `10.0.0.0/8:5432`, `host:*`; without a port 80 and 443. It holds from the next connection
    /// on, and for the machine's next lives. Returns the list as it is now. No options yet.
    #[zbus(out_args("allowed"))]
    async fn change(
        &self,
        #[zbus(header)] header: Header<'_>,
        machine: String,
        allow: Vec<String>,
        deny: Vec<String>,
        options: Options,
    ) -> Result<Vec<String>, MachinesError> {
        known(&options, None)?;
        let caller = may(&self.authority, ACTION_EGRESS, &header).await?;
        let object = Keeper::Machines.client(&machine);
        let changing = self.actor.change_egress(&machine, allow, deny);
        audited(&self.audit, Event::EgressChange, &object, caller, changing).await
    }

    /// Lists the machines that run and go out through the proxy, by name. No options yet.
    #[zbus(out_args("machines"))]
    async fn list(&self, options: Options) -> Result<Vec<EgressInfo>, MachinesError> {
        known(&options, None)?;
        let info = |GoesOut { name, allow, ask, way }| EgressInfo { id: way.id().to_owned(), name, allow, ask };
        Ok(self.actor.ways().await.map_err(refusal)?.into_iter().map(info).collect())
    }

    /// The doors of a machine, by the id of its way out: Unix sockets that its guest connects to, for connections to a
    /// proxy, and for queries for names, one a connection with its length before it. For the proxy, which has the right
    /// to reach machines.
    #[zbus(out_args("proxy", "names"))]
    async fn open(
        &self,
        #[zbus(header)] header: Header<'_>,
        id: String,
    ) -> Result<(zbus::OwnedFd, zbus::OwnedFd), MachinesError> {
        may(&self.authority, ACTION_CONNECT, &header).await?;
        let ways = self.actor.ways().await.map_err(refusal)?;
        let Some(one) = ways.into_iter().find(|one| one.way.id() == id) else {
            return Err(MachinesError::NoSuchMachine(format!("open the way out {id}: no machine has it")));
        };
        let doors = one.way.doors();
        let (proxy, names) =
            doors.map_err(|e| MachinesError::Failed(format!("open the way out of machine {}: {e}", one.name)))?;
        Ok((proxy.into(), names.into()))
    }

    /// A machine goes out, has another list, or goes out no more.
    #[zbus(signal)]
    pub(super) async fn changed(emitter: &SignalEmitter<'_>, id: &str) -> zbus::Result<()>;
}
