//! Answers the workers' questions for upstreams that are known by name: asks the service that owns the name, and waits
//! for it where it is being started again.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use shipote_bus::Service;
use shipote_bus::machines::{MachinesError, MachinesProxy};
use shipote_bus::workspaces::{ManagerProxy, WorkspacesError};
use shipote_proxy::{Ask, Unreached};
use shipote_rules::UpstreamAddress;
use tokio::sync::{Semaphore, mpsc};
use zbus::proxy::CacheProperties;

/// Questions that are on the bus at once for one name: while it is woken, others are answered all the same.
const AT_ONCE: usize = 16;
/// Names that are remembered while nobody asks for them.
const NAMES_MAX: usize = 1024;
/// How long a service may be away before those who ask are told so.
const AWAY: Duration = Duration::from_secs(10);
/// How often it is asked in all, where it goes away each time.
const ATTEMPTS: u32 = 4;

/// Answers as long as the engine asks.
pub(crate) async fn answer(connection: zbus::Connection, mut asked: mpsc::Receiver<Ask>) {
    let mut places: HashMap<UpstreamAddress, Arc<Semaphore>> = HashMap::new();
    while let Some(ask) = asked.recv().await {
        if places.len() >= NAMES_MAX {
            places.retain(|_, place| Arc::strong_count(place) > 1);
        }
        let of = places.entry(ask.address.clone()).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE)));
        tokio::spawn(one(connection.clone(), Arc::clone(of), ask));
    }
}

/// One question. Whoever asked may lose its patience meanwhile; then nobody waits here either.
async fn one(connection: zbus::Connection, places: Arc<Semaphore>, ask: Ask) {
    let Ask { address, wake, mut answer } = ask;
    let told = async {
        let _place = places.acquire().await;
        patiently(&connection, &address, wake).await
    };
    tokio::select! {
        told = told => drop(answer.send(told)),
        () = answer.closed() => {}
    }
}

/// Why there is no connection.
enum Trouble {
    /// The service that owns the name is being started again.
    Away(Service, String),
    Final(Unreached),
}

impl From<Unreached> for Trouble {
    fn from(unreached: Unreached) -> Self {
        Self::Final(unreached)
    }
}

/// A connection changes nothing, so that asking again is safe where a service went away before it answered.
async fn patiently(connection: &zbus::Connection, address: &UpstreamAddress, wake: bool) -> Result<OwnedFd, Unreached> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match connect(connection, address, wake).await {
            Ok(socket) => return Ok(socket),
            Err(Trouble::Final(unreached)) => return Err(unreached),
            Err(Trouble::Away(service, _)) if left > 0 && is_back(connection, service).await => {}
            Err(Trouble::Away(_, reason)) => return Err(Unreached::Unavailable(reason)),
        }
    }
}

/// Waits until a service has its name again; whether it has in time.
async fn is_back(connection: &zbus::Connection, service: Service) -> bool {
    let waiting = async {
        let bus = zbus::fdo::DBusProxy::new(connection).await?;
        // Listened for before it is asked for, so that nothing is missed in between.
        let mut owners = bus.receive_name_owner_changed_with_args(&[(0, service.bus_name())]).await?;
        if bus.name_has_owner(service.bus_name().try_into()?).await? {
            return Ok(true);
        }
        while let Some(change) = owners.next().await {
            if change.args()?.new_owner.is_some() {
                return Ok(true);
            }
        }
        zbus::Result::Ok(false)
    };
    match tokio::time::timeout(AWAY, waiting).await {
        Ok(Ok(back)) => back,
        Ok(Err(error)) => {
            tracing::warn!("wait for {}: {error}", service.bus_name());
            false
        }
        Err(_) => false,
    }
}

async fn connect(connection: &zbus::Connection, address: &UpstreamAddress, wake: bool) -> Result<OwnedFd, Trouble> {
    let no = CacheProperties::No;
    let unbuilt = |e: zbus::Error| Unreached::Unavailable(format!("reach its service: {e}"));
    let options = BTreeMap::from([("wake", wake.into())]);
    match address {
        UpstreamAddress::Workspace { name, port } => {
            let workspaces = ManagerProxy::builder(connection).cache_properties(no).build().await.map_err(unbuilt)?;
            workspaces.connect(name, *port, options).await.map(Into::into).map_err(|error| match error {
                WorkspacesError::Asleep(_) => Unreached::Asleep.into(),
                WorkspacesError::ConnectFailed(reason) => Unreached::Refused(reason).into(),
                WorkspacesError::ZBus(error) => trouble(Service::Workspaces, &error),
                other => Unreached::Unavailable(described(&other)).into(),
            })
        }
        UpstreamAddress::Machine { name, port } => {
            let machines = MachinesProxy::builder(connection).cache_properties(no).build().await.map_err(unbuilt)?;
            machines.reach(name, *port, options).await.map(Into::into).map_err(|error| match error {
                MachinesError::Asleep(_) => Unreached::Asleep.into(),
                MachinesError::ConnectFailed(reason) => Unreached::Refused(reason).into(),
                MachinesError::ZBus(error) => trouble(Service::Machines, &error),
                other => Unreached::Unavailable(described(&other)).into(),
            })
        }
        other => Err(Unreached::Unavailable(format!("{other} is no name that the bus knows")).into()),
    }
}

fn trouble(service: Service, error: &zbus::Error) -> Trouble {
    let reason = shipote_bus::error::describe(error);
    if shipote_bus::error::is_away(error) {
        Trouble::Away(service, reason)
    } else {
        Unreached::Unavailable(reason).into()
    }
}

fn described(error: &dyn zbus::DBusError) -> String {
    error.description().unwrap_or("refused without a reason").to_owned()
}
