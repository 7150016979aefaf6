//! What every object needs to act: who may, what is recorded, whom to ask.

use std::sync::Arc;

use shipote_audit::{Audit, Door, Event};
use shipote_service::{Authority, Caller};
use zbus::message::Header;

use crate::actor::{Call, Done, Handle};
use crate::audited::By;
use crate::error::Error;
use crate::state::State;

/// polkit: run commands in workspaces.
pub(super) const ACTION_RUN: &str = "org.shipote.workspaces.run";
/// polkit: create and stop workspaces, and touch what other users run.
pub(super) const ACTION_MANAGE: &str = "org.shipote.workspaces.manage";

/// polkit: change what workspaces may reach.
pub(super) const ACTION_EGRESS: &str = "org.shipote.workspaces.egress";

/// polkit: run commands in machines; asked for a pipeline that has some.
pub(super) const ACTION_MACHINES: &str = "org.shipote.machines.exec";
/// polkit: reach what workspaces publish, and serve the doors of those that go out; the proxy's user has it.
pub(super) const ACTION_CONNECT: &str = "org.shipote.workspaces.connect";

/// The actor, and what stands before it.
#[derive(Clone)]
pub(crate) struct Doors {
    pub(crate) actor: Handle,
    pub(crate) authority: Authority,
    pub(crate) audit: Arc<Audit>,
}

impl Doors {
    /// A user's own work takes the right to run, another's the right to manage.
    pub(super) async fn may_use(&self, header: &Header<'_>, owner: Option<u32>) -> Result<Caller, Error> {
        let caller = self.authority.check(header, ACTION_RUN).await?;
        if owner.is_some_and(|uid| uid != caller.uid) && caller.uid != 0 {
            return Ok(self.authority.check(header, ACTION_MANAGE).await?);
        }
        Ok(caller)
    }

    async fn owner(&self, find: impl FnOnce(&State) -> Option<u32> + Send + 'static) -> Result<Option<u32>, Error> {
        self.actor.ask(move |state, _| find(state)).await
    }

    /// Who asks about this command, if they may; one of an earlier instance has no owner that is known, and takes the
    /// right to manage.
    pub(super) async fn may_use_command(&self, header: &Header<'_>, command: &str) -> Result<Caller, Error> {
        let name = command.to_owned();
        let owner = self.owner(move |state| state.find_command(&name).ok().map(|c| c.uid)).await?;
        self.may_use(header, owner.or(Some(u32::MAX))).await
    }

    /// Who asks about this pipeline, if they may; or about the workspace of that name, for what it shares of flows.
    pub(super) async fn may_use_pipeline(&self, header: &Header<'_>, pipeline: &str) -> Result<Caller, Error> {
        let name = pipeline.to_owned();
        let owner = self.owner(move |state| {
            let workspace = || state.find_workspace(&name).ok().map(|w| w.uid);
            state.find_pipeline(&name).ok().map(|p| p.uid).or_else(workspace)
        });
        let owner = owner.await?;
        self.may_use(header, owner).await
    }

    /// Who asks for the figures of this workspace, if they may: one's own take the right to run, another's the right to
    /// manage.
    pub(super) async fn may_look_at_workspace(&self, header: &Header<'_>, name: &str) -> Result<Caller, Error> {
        let workspace = name.to_owned();
        let owner = self.owner(move |state| state.find_workspace(&workspace).ok().map(|w| w.uid)).await?;
        self.may_use(header, owner).await
    }

    /// Lets `caller` run in a workspace of its own, or of another with the right to manage.
    pub(super) async fn may_use_workspace(&self, header: &Header<'_>, caller: Caller, name: &str) -> Result<(), Error> {
        let workspace = name.to_owned();
        let owner = self.owner(move |state| state.find_workspace(&workspace).ok().map(|w| w.uid)).await?;
        if owner.is_some_and(|uid| uid != caller.uid) && caller.uid != 0 {
            self.authority.check(header, ACTION_MANAGE).await?;
        }
        Ok(())
    }

    /// Whether the reader of a property may see what only its owner and root should. A signal has no reader.
    pub(super) async fn is_owner(&self, header: Option<&Header<'_>>, owner: u32) -> bool {
        match header {
            Some(header) => self.authority.identify(header).await.is_ok_and(|c| c.uid == 0 || c.uid == owner),
            None => false,
        }
    }
}

/// Does a mutation with its audit record.
pub(super) async fn audited(
    doors: &Doors,
    event: Event,
    object: &str,
    caller: Caller,
    call: Call,
) -> Result<Done, Error> {
    let by = By { uid: caller.uid, door: Door::Bus };
    crate::audited::audited(&doors.audit, event, object, by, doors.actor.call(call)).await
}
