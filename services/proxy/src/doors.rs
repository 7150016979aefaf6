//! Serves the doors of the workspaces and machines that go out.
//!
//! The lists are their services'. Whenever one says that something changed, or comes back, all of its lists are asked for
//! and compared with what is served: so it matters not who was started again, and what was missed.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::{FutureExt as _, StreamExt as _};
use shipote_bus::egress::{EgressInfo, Keeper, Lists};
use shipote_bus::error::describe;
use shipote_proxy::egress::{Doors, Egress, EgressError};

use crate::state::State;

/// Follows a service's lists for as long as this one lives.
pub(crate) async fn follow(connection: zbus::Connection, state: Arc<State>, keeper: Keeper) {
    if let Err(e) = attend(&connection, &state.egress, keeper).await {
        tracing::error!("the {} that go out are not served: {e}", keeper.service());
    }
}

async fn attend(connection: &zbus::Connection, egress: &Egress, keeper: Keeper) -> zbus::Result<()> {
    let lists = Lists::of(connection, keeper).await?;
    let mut changes = lists.changes().await?;
    let mut owners = lists.owners().await?;
    let bus = zbus::fdo::DBusProxy::new(connection).await?;
    let mut there = bus.name_has_owner(keeper.service().bus_name().try_into()?).await?;
    loop {
        if there && let Err(reason) = compare(&lists, egress, keeper).await {
            tracing::error!("look which {} go out: {reason}", keeper.service());
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

async fn compare(lists: &Lists, egress: &Egress, keeper: Keeper) -> Result<(), String> {
    let all = lists.list().await.map_err(|e| describe(&e))?;
    let living: HashSet<&str> = all.iter().map(|one| one.id.as_str()).collect();
    for (name, id) in egress.adopted() {
        if Keeper::of(&name).is_some_and(|(of, _)| of == keeper) && !living.contains(id.as_str()) {
            egress.remove(&name);
        }
    }
    for one in &all {
        let client = keeper.client(&one.name);
        if let Err(reason) = serve(lists, egress, &client, one).await {
            // It may have ended meanwhile; then its end is told next.
            tracing::warn!("serve the doors of {client}: {reason}");
        }
    }
    Ok(())
}

async fn serve(lists: &Lists, egress: &Egress, client: &str, one: &EgressInfo) -> Result<(), String> {
    let EgressInfo { id, allow, ask, .. } = one;
    let told = |e: EgressError| e.to_string();
    if egress.change(id, allow, *ask).map_err(told)? {
        return Ok(());
    }
    let (proxy, names) = lists.open(id).await.map_err(|e| describe(&e))?;
    let doors = Doors { proxy: proxy.into(), names: names.into() };
    egress.adopt(client, id, doors, allow, *ask).map_err(told)
}
