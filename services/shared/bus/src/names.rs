//! One name runs through folder, binary, unit, bus name, object path and
//! configuration section: this table is where they are derived from each other.

use std::fmt;
use std::str::FromStr;

/// One of the four services that own a name on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    /// Sandboxed commands and pipelines.
    Workspaces,
    /// MicroVMs.
    Machines,
    /// L4/L7 proxy.
    Proxy,
    /// Plugin registry.
    Plugins,
}

/// The interface that every service serves at its root object.
pub const SERVICE_INTERFACE: &str = "org.shipote.Service1";

/// Bus name of the supervisor of the embedded appliance (`shipote up`).
pub const APPLIANCE_BUS_NAME: &str = "org.shipote.Appliance1";

/// Root object of the supervisor of the embedded appliance.
pub const APPLIANCE_PATH: &str = "/org/shipote/Appliance1";

impl Service {
    /// All services in the order in which they start; they stop in reverse.
    pub const ALL: [Service; 4] = [Service::Plugins, Service::Workspaces, Service::Machines, Service::Proxy];

    /// Folder, configuration section and short name: `workspaces`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Service::Workspaces => "workspaces",
            Service::Machines => "machines",
            Service::Proxy => "proxy",
            Service::Plugins => "plugins",
        }
    }

    /// Binary and unit (without `.service`): `shipote-workspaces`.
    #[must_use]
    pub const fn binary(self) -> &'static str {
        match self {
            Service::Workspaces => "shipote-workspaces",
            Service::Machines => "shipote-machines",
            Service::Proxy => "shipote-proxy",
            Service::Plugins => "shipote-plugins",
        }
    }

    /// Well-known bus name: `org.shipote.Workspaces1`.
    #[must_use]
    pub const fn bus_name(self) -> &'static str {
        match self {
            Service::Workspaces => "org.shipote.Workspaces1",
            Service::Machines => "org.shipote.Machines1",
            Service::Proxy => "org.shipote.Proxy1",
            Service::Plugins => "org.shipote.Plugins1",
        }
    }

    /// Root object, where the `ObjectManager` is: `/org/shipote/Workspaces1`.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Service::Workspaces => "/org/shipote/Workspaces1",
            Service::Machines => "/org/shipote/Machines1",
            Service::Proxy => "/org/shipote/Proxy1",
            Service::Plugins => "/org/shipote/Plugins1",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name is none of the four services'.
#[derive(Debug, thiserror::Error)]
#[error("no service is called {0:?}; there are workspaces, machines, proxy and plugins")]
pub struct UnknownService(String);

impl FromStr for Service {
    type Err = UnknownService;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Service::ALL.into_iter().find(|v| v.name() == s).ok_or_else(|| UnknownService(s.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_runs_through_all() {
        for service in Service::ALL {
            assert_eq!(service.binary(), format!("shipote-{}", service.name()));
            assert_eq!(service.path(), format!("/{}", service.bus_name().replace('.', "/")));
            assert_eq!(service.name().parse::<Service>().unwrap(), service);
        }
        assert!("worksapces".parse::<Service>().is_err());
    }
}
