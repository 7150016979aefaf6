//! The services: whether each answers, how it is confined, and what the workspaces can enforce.

use shipote_bus::service::Service1Proxy;
use shipote_bus::{Service, connect};
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
    for service in Service::ALL {
        findings.push(one(&connection, service).await);
    }
    findings.push(enforced().await);
    findings
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
