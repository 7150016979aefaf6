//! The services: whether each answers, how it is confined, what the workspaces can enforce, and what of theirs needs
//! somebody: machines that failed, connections that wait for an answer.

use std::collections::BTreeMap;

use shipote_bus::appliance::Appliance1Proxy;
use shipote_bus::machines::{MachineInfo, MachinesProxy};
use shipote_bus::proxy::EgressProxy;
use shipote_bus::service::Service1Proxy;
use shipote_bus::words::counted;
use shipote_bus::{Service, connect};
use zbus::fdo::DBusProxy;
use zbus::proxy::CacheProperties;

use super::Finding;
use crate::output;

/// Asks each service. Where no bus answers, that is the one finding.
pub(super) async fn ask() -> Vec<Finding> {
    let connection = match connect::client().await {
        Ok(connection) => connection,
        Err(error) => {
            return vec![Finding::failed(
                "bus",
                error.to_string(),
                "start the appliance: systemctl start dbus, or `shipote up`",
            )];
        }
    };
    let mut findings = vec![Finding::ok("bus", connect::address().unwrap_or_else(|| "the system bus".to_owned()))];
    let left_out = left_out(&connection).await;
    for service in Service::ALL {
        findings.push(if left_out.contains(&service) {
            Finding::ok(service.name(), "left out: this appliance was told to run others")
        } else {
            one(&connection, service).await
        });
    }
    if !left_out.contains(&Service::Workspaces) {
        findings.push(enforced().await);
    }
    findings.extend(machines(&connection).await);
    findings.extend(pending(&connection).await);
    findings
}

/// The services that an embedded appliance was told not to run, and that nobody else runs on its bus. None under systemd,
/// where each is there to be started, nor where the supervisor does not answer: then each is asked.
async fn left_out(connection: &zbus::Connection) -> Vec<Service> {
    let asked = async {
        let supervisor = Appliance1Proxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
        let chosen = supervisor.list_services().await?;
        let present = DBusProxy::new(connection).await?.list_names().await?;
        let away = Service::ALL.into_iter().filter(|service| {
            !chosen.iter().any(|one| one.name == service.name())
                && !present.iter().any(|name| name.as_str() == service.bus_name())
        });
        zbus::Result::Ok(away.collect())
    };
    asked.await.unwrap_or_default()
}

/// Machines that do not what they are for; nothing where all do, or where the service is away, which is said elsewhere.
async fn machines(connection: &zbus::Connection) -> Vec<Finding> {
    let asked = async {
        let proxy = MachinesProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
        proxy.list(BTreeMap::new()).await.map_err(|error| zbus::Error::Failure(error.to_string()))
    };
    let all = asked.await.unwrap_or_default();
    let asleep = all.iter().filter(|machine| machine.state == "sleeping").count();
    let mut findings: Vec<Finding> = all.iter().filter_map(machine).collect();
    if findings.is_empty() && !all.is_empty() {
        findings.push(Finding::ok("machines run", format!("{} of them, {asleep} asleep; none failed", all.len())));
    }
    findings
}

fn machine(machine: &MachineInfo) -> Option<Finding> {
    let MachineInfo { name, state, reason, health, health_reason, .. } = machine;
    let subject = format!("machine {name}");
    if state == "failed" {
        let remedy =
            format!("`shipote machine logs {name}` shows its console; `shipote machine start {name}` tries again");
        return Some(Finding::warning(subject, format!("it failed: {reason}"), remedy));
    }
    (health == "unhealthy").then(|| {
        let remedy = format!(
            "`shipote machine exec {name} -- sh` looks inside; with restart = \"on-failure\" it is started anew"
        );
        Finding::warning(subject, format!("it is unhealthy: {health_reason}"), remedy)
    })
}

/// Connections that somebody has to decide about.
async fn pending(connection: &zbus::Connection) -> Option<Finding> {
    let asked = async {
        let proxy = EgressProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
        proxy.list_pending(BTreeMap::new()).await.map_err(|error| zbus::Error::Failure(error.to_string()))
    };
    let waiting = asked.await.ok().filter(|all| !all.is_empty())?;
    let clients: std::collections::BTreeSet<&str> = waiting.iter().map(|one| one.client.as_str()).collect();
    let clients: Vec<&str> = clients.into_iter().collect();
    Some(Finding::warning(
        "egress",
        format!("{} of {} to be answered", counted(waiting.len(), "connection"), clients.join(", ")),
        "`shipote egress pending` shows them, `shipote egress approve N` lets one out",
    ))
}

async fn one(connection: &zbus::Connection, service: Service) -> Finding {
    let subject = service.name();
    let answer = async {
        let proxy = Service1Proxy::builder(connection)
            .destination(service.bus_name())
            .path(service.path())
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        zbus::Result::Ok((proxy.health().await?, proxy.confinement().await?))
    };
    match answer.await {
        Err(error) => Finding::failed(
            subject,
            shipote_bus::error::describe(&error),
            format!("systemctl status {}, or see the output of `shipote up`", service.binary()),
        ),
        Ok((health, confinement)) => {
            let weak: Vec<String> = confinement
                .iter()
                .filter(|m| m.state != "enforced")
                .map(|m| format!("{} {}: {}", m.name, m.state, m.reason))
                .collect();
            let found = format!("{}, version {}, pid {}", health.state, health.version, health.pid);
            if health.version != env!("CARGO_PKG_VERSION") {
                let remedy =
                    format!("this command line is {}: restart the service after an upgrade", env!("CARGO_PKG_VERSION"));
                Finding::warning(subject, found, remedy)
            } else if weak.is_empty() {
                Finding::ok(subject, found)
            } else {
                Finding::warning(
                    subject,
                    format!("{found}; {}", weak.join("; ")),
                    "`shipote status` has the whole list",
                )
            }
        }
    }
}

async fn enforced() -> Finding {
    const SUBJECT: &str = "isolation";
    let asked = async {
        let manager = output::workspaces().await?;
        manager.capabilities().await.map_err(|error| output::refusal(&error))
    };
    match asked.await {
        Err(error) => Finding::failed(SUBJECT, error.to_string(), "start the workspaces service"),
        Ok(all) => {
            let weak: Vec<String> =
                all.iter().filter(|m| m.state != "enforced").map(|m| format!("{} {}", m.name, m.state)).collect();
            if weak.is_empty() {
                Finding::ok(SUBJECT, format!("all {} mechanisms enforced", all.len()))
            } else {
                Finding::warning(
                    SUBJECT,
                    weak.join(", "),
                    "`shipote capabilities` says why; `--strict` refuses to run without",
                )
            }
        }
    }
}
