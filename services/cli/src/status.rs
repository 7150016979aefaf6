//! `shipote status`: what runs, since when, with what confinement.
//!
//! On the embedded bus the supervisor is asked, on the system bus systemd; what a service says of itself
//! (`org.shipote.Service1`) comes on top. A service that is down is shown as such: that is an answer, not a failure.

mod confinement;
mod embedded;
mod show;
mod systemd;

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use shipote_bus::{connect, paths};

use crate::output;

/// Arguments of `shipote status`.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// What is printed; scripts rely on these names.
#[derive(Debug, Serialize)]
struct Status {
    bus_address: String,
    /// The workspace protocol's socket.
    socket: String,
    services: Vec<ServiceLine>,
}

/// One service.
#[derive(Debug, Default, Serialize)]
struct ServiceLine {
    name: String,
    /// `null` while there is no process.
    pid: Option<u32>,
    /// `starting`, `running`, `stopping`, `failed` or `stopped`.
    state: String,
    /// When that state began (RFC 3339, UTC); `null` if it is not known.
    since: Option<jiff::Timestamp>,
    restarts: u32,
    /// Empty while the service does not answer.
    confinement: Vec<confinement::Line>,
    version: Option<String>,
    /// What the service last said of itself, why it failed, or why it does not answer.
    status: String,
}

pub(crate) async fn run(args: StatusArgs) -> Result<ExitCode> {
    let address = connect::address();
    let bus = connect::client().await?;
    let (socket, mut services) = match &address {
        Some(_) => (embedded::socket(), embedded::services(&bus).await?),
        None => {
            (std::path::Path::new("/run/shipote/workspaces").join(paths::SOCKET_NAME), systemd::services(&bus).await?)
        }
    };
    for service in &mut services {
        confinement::complete(&bus, service).await;
    }
    let bus_address = address.unwrap_or_else(system_address);
    let status = Status { bus_address, socket: socket.display().to_string(), services };
    if args.json {
        output::json(&status)?;
    } else {
        print!("{}", show::table(&status));
    }
    Ok(ExitCode::SUCCESS)
}

/// D-Bus specification, "Well-known Message Bus Instances".
fn system_address() -> String {
    std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_else(|_| "unix:path=/var/run/dbus/system_bus_socket".to_owned())
}

/// Microseconds since the epoch, as the bus has them; 0 means unknown.
fn moment(microseconds: u64) -> Option<jiff::Timestamp> {
    let microseconds = i64::try_from(microseconds).ok().filter(|m| *m > 0)?;
    jiff::Timestamp::from_microsecond(microseconds).ok()
}
