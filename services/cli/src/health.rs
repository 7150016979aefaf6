//! `shipote health`: every service's own answer.

use std::process::ExitCode;

use serde_json::json;
use shipote_bus::service::{Health, Service1Proxy};
use shipote_bus::{Service, connect};
use zbus::proxy::CacheProperties;

use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct HealthArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: HealthArgs) -> anyhow::Result<ExitCode> {
    let connection = connect::client().await?;
    let mut answers = Vec::new();
    for service in Service::ALL {
        answers.push((service, ask(&connection, service).await));
    }
    let failed = answers.iter().filter(|(_, a)| a.is_err()).count();
    if args.json {
        let services: Vec<_> = answers
            .iter()
            .map(|(service, answer)| match answer {
                Ok(health) => json!({"name": service.name(), "health": health}),
                Err(error) => json!({"name": service.name(), "error": shipote_bus::error::describe(error)}),
            })
            .collect();
        output::json(&json!({"services": services}))?;
    } else {
        let rows = answers
            .iter()
            .map(|(service, answer)| match answer {
                Ok(health) => vec![
                    service.to_string(),
                    health.state.clone(),
                    health.version.clone(),
                    output::duration(health.uptime_ms / 1000),
                    health.pid.to_string(),
                    health.figures.iter().map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>().join(", "),
                ],
                Err(error) => {
                    let text = shipote_bus::error::describe(error);
                    vec![service.to_string(), "failed".into(), "-".into(), "-".into(), "-".into(), text]
                }
            })
            .collect();
        output::print_table(&["SERVICE", "STATE", "VERSION", "UPTIME", "PID", "FIGURES"], rows, "");
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn ask(connection: &zbus::Connection, service: Service) -> zbus::Result<Health> {
    let proxy = Service1Proxy::builder(connection)
        .destination(service.bus_name())
        .path(service.path())
        .cache_properties(CacheProperties::No)
        .build()
        .await?;
    proxy.health().await
}
