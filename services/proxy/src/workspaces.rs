//! Serves the doors of the workspaces that go out.
//!
//! The lists are the workspaces service's. Whenever it says that something changed, or comes back, all of them are
//! asked for and compared with what is served: so it matters not who was started again, and what was missed.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use futures_util::{FutureExt as _, StreamExt as _};
use shipote_bus::workspaces::{EgressInfo, EgressProxy, WorkspacesError};
use shipote_proxy::egress::{Doors, Egress, EgressError};
use zbus::proxy::CacheProperties;

use crate::state::State;

/// Follows the workspaces for as long as the service lives.
pub(crate) async fn follow(connection: zbus::Connection, state: Arc<State>) {
    if let Err(e) = attend(&connection, &state.egress).await {
        tracing::error!("workspaces that go out are not served: {e}");
    }
}

async fn attend(connection: &zbus::Connection, egress: &Egress) -> zbus::Result<()> {
    let workspaces = EgressProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
    let mut changes = workspaces.receive_changed().await?;
    let mut owners = workspaces.inner().receive_owner_changed().await?;
    let bus = zbus::fdo::DBusProxy::new(connection).await?;
    let mut there = bus.name_has_owner(workspaces.inner().destination().clone()).await?;
    loop {
        if there && let Err(reason) = compare(&workspaces, egress).await {
            tracing::error!("look which workspaces go out: {reason}");
        }
        tokio::select! {
            change = changes.next() => if change.is_none() { return Ok(()) },
            owner = owners.next() => match owner {
                // What is served goes on while the service is away.
                Some(owner) => there = owner.is_some(),
                None => return Ok(()),
            },
        }
        // One look answers all that was said until now.
        while changes.next().now_or_never().flatten().is_some() {}
        while let Some(Some(owner)) = owners.next().now_or_never() {
            there = owner.is_some();
        }
    }
}

fn client(workspace: &EgressInfo) -> String {
    format!("workspace:{}", workspace.name)
}

fn described(error: &WorkspacesError) -> String {
    match error {
        WorkspacesError::ZBus(error) => shipote_bus::error::describe(error),
        other => zbus::DBusError::description(other).unwrap_or("refused without a reason").to_owned(),
    }
}

async fn compare(workspaces: &EgressProxy<'_>, egress: &Egress) -> Result<(), String> {
    let all = workspaces.list(BTreeMap::new()).await.map_err(|e| described(&e))?;
    let living: HashSet<&str> = all.iter().map(|w| w.id.as_str()).collect();
    for (name, id) in egress.adopted() {
        if !living.contains(id.as_str()) {
            egress.remove(&name);
        }
    }
    for workspace in &all {
        if let Err(reason) = serve(workspaces, egress, workspace).await {
            // It may have ended meanwhile; then its end is told next.
            tracing::warn!("serve the doors of {}: {reason}", client(workspace));
        }
    }
    Ok(())
}

async fn serve(workspaces: &EgressProxy<'_>, egress: &Egress, workspace: &EgressInfo) -> Result<(), String> {
    let EgressInfo { id, allow, ask, .. } = workspace;
    let told = |e: EgressError| e.to_string();
    if egress.change(id, allow, *ask).map_err(told)? {
        return Ok(());
    }
    let (proxy, names) = workspaces.open(id).await.map_err(|e| described(&e))?;
    let doors = Doors { proxy: proxy.into(), names: names.into() };
    egress.adopt(&client(workspace), id, doors, allow, *ask).map_err(told)
}
