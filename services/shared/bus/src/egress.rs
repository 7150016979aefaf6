//! What workspaces and machines may reach: the interface `….Egress`, which both of their services serve alike at their root
//! objects, and the client of either.

use std::collections::BTreeMap;

use zbus::proxy::{Builder, CacheProperties, OwnerChangedStream, SignalStream};
use zbus::{DeserializeDict, OwnedFd, SerializeDict, Type};

use crate::Service;

/// Somebody who goes out through the proxy, as the service that keeps its list says.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct EgressInfo {
    /// Of its way out: a workspace's own ULID, a machine's for as long as its sockets are the same.
    pub id: String,
    /// Name.
    pub name: String,
    /// What it may reach.
    pub allow: Vec<String>,
    /// What is not on the list is asked about.
    pub ask: bool,
}

/// A service that keeps lists of what may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeper {
    /// Of workspaces.
    Workspaces,
    /// Of machines.
    Machines,
}

impl Keeper {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Workspaces, Self::Machines];

    /// The service.
    #[must_use]
    pub const fn service(self) -> Service {
        match self {
            Self::Workspaces => Service::Workspaces,
            Self::Machines => Service::Machines,
        }
    }

    /// What its clients are, before the colon: `workspace`.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Workspaces => "workspace",
            Self::Machines => "machine",
        }
    }

    /// The interface at its root object.
    #[must_use]
    pub const fn interface(self) -> &'static str {
        match self {
            Self::Workspaces => "org.shipote.Workspaces1.Egress",
            Self::Machines => "org.shipote.Machines1.Egress",
        }
    }

    /// One of its names as a client: `workspace:web`.
    #[must_use]
    pub fn client(self, name: &str) -> String {
        format!("{}:{name}", self.kind())
    }

    /// Who keeps the list of a client, and the client's name there; `None` for those whose list is the proxy's own.
    #[must_use]
    pub fn of(client: &str) -> Option<(Self, &str)> {
        let (kind, name) = client.split_once(':').filter(|(_, name)| !name.is_empty())?;
        Self::ALL.into_iter().find(|keeper| keeper.kind() == kind).map(|keeper| (keeper, name))
    }
}

/// Client of a service's lists. The documentation of each method is the interfaces' own.
#[derive(Debug, Clone)]
pub struct Lists(zbus::Proxy<'static>);

impl Lists {
    /// Of one service.
    ///
    /// # Errors
    /// The bus'.
    pub async fn of(connection: &zbus::Connection, keeper: Keeper) -> zbus::Result<Self> {
        let service = keeper.service();
        let proxy = Builder::new(connection)
            .destination(service.bus_name())
            .path(service.path())
            .interface(keeper.interface())
            .cache_properties(CacheProperties::No);
        proxy.build().await.map(Self)
    }

    /// Changes a list; what it is now.
    ///
    /// # Errors
    /// The bus', and the service's own with its reason.
    pub async fn change(&self, name: &str, allow: &[&str], deny: &[&str]) -> zbus::Result<Vec<String>> {
        self.0.call("Change", &(name, allow, deny, options())).await
    }

    /// Who goes out.
    ///
    /// # Errors
    /// The bus'.
    pub async fn list(&self) -> zbus::Result<Vec<EgressInfo>> {
        self.0.call("List", &(options(),)).await
    }

    /// The two doors of one, by id: for connections, and for queries for names.
    ///
    /// # Errors
    /// The bus', and the service's own with its reason.
    pub async fn open(&self, id: &str) -> zbus::Result<(OwnedFd, OwnedFd)> {
        self.0.call("Open", &(id,)).await
    }

    /// That somebody goes out, has another list, or has gone.
    ///
    /// # Errors
    /// The bus'.
    pub async fn changes(&self) -> zbus::Result<SignalStream<'static>> {
        self.0.receive_signal("Changed").await
    }

    /// That the service has come or gone.
    ///
    /// # Errors
    /// The bus'.
    pub async fn owners(&self) -> zbus::Result<OwnerChangedStream<'static>> {
        self.0.receive_owner_changed().await
    }
}

/// No options.
fn options() -> BTreeMap<&'static str, zbus::Variant<'static>> {
    BTreeMap::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_known_by_their_kind() {
        assert_eq!(Keeper::of("workspace:web"), Some((Keeper::Workspaces, "web")));
        assert_eq!(Keeper::of("machine:web"), Some((Keeper::Machines, "web")));
        for other in ["session:ci", "web", "machine:", ":web", ""] {
            assert_eq!(Keeper::of(other), None, "{other:?}");
        }
        assert_eq!(Keeper::Machines.client("web"), "machine:web");
    }
}
