//! `shipote-plugins`: the plugin registry. It stores components by digest, says why it refuses one, keeps versions, holds
//! policy, compiles ahead of time, and hands compiled code to whoever runs it as a sealed memfd.
//!
//! Ways to start it: as the service (no arguments); `check FILE…`, which judges components without a service; `wat FILE`,
//! which turns text into a component on standard output; `fetch REFERENCE`, which has a component from an OCI registry on
//! standard output, with the rights of whoever starts it; and `examine JOB`, the confined child in which components are
//! read, asked for their metadata and compiled.
//!
//! Invariant: no byte of a component is parsed, let alone run, in the service's own process; and nothing here ever needs
//! executable memory: what a component says of itself is heard from an interpreter.
#![forbid(unsafe_code)]

mod bus;
mod check;
mod error;
mod examine;
mod fetch;
mod forge;
mod graph;
mod links;
mod plan;
mod policy;
mod registry;
mod signature;
mod store;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use serde::Deserialize;
use shipote_bus::Service;
use shipote_bus::paths::ServicePaths;
use shipote_service::{Definition, Parts, run};

use crate::registry::Registry;

/// The registry as the scaffold sees it.
struct Serving {
    registry: Arc<Registry>,
    connection: zbus::Connection,
}

/// `[plugins]` of the configuration: it has no key yet, so that each one is a mistake.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Section {}

impl Parts for Serving {
    fn judge(paths: &ServicePaths) -> anyhow::Result<()> {
        shipote_config::load::<Section>(&paths.config.join("shipote.toml"), Some("plugins"))?;
        Ok(())
    }

    async fn figures(&self) -> Result<BTreeMap<String, u64>, String> {
        let (plugins, versions) = self.registry.counts();
        Ok(BTreeMap::from([("plugins".to_owned(), plugins), ("versions".to_owned(), versions)]))
    }

    async fn reload(&self) -> Result<(), String> {
        let changed = self.registry.reload_policy().map_err(|error| error.to_string())?;
        // Whoever runs them is to hold them to what holds now.
        bus::tell(&self.connection, changed).await.map_err(|error| format!("tell of changed policies: {error}"))
    }
}

/// The plugin registry. Without a command it serves on the bus, as its unit runs it
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Judge components without a service: 0 all are taken, 1 one is refused
    Check(check::Args),
    /// Write the binary form of a component in text to standard output
    Wat {
        /// The text
        file: PathBuf,
    },
    /// Write a component of an OCI registry to standard output
    Fetch(fetch::Args),
    /// Judge and compile a component that lies in descriptors; the registry's own child
    #[command(hide = true)]
    Examine {
        /// What to do, as JSON
        job: String,
    },
}

fn main() -> ExitCode {
    match Arguments::parse().task {
        None => serve(),
        Some(Task::Check(args)) => check::main(&args),
        Some(Task::Wat { file }) => check::binary(&file),
        Some(Task::Fetch(args)) => fetch::main(&args),
        Some(Task::Examine { job }) => examine::main(&job),
    }
}

fn serve() -> ExitCode {
    let definition = Definition { service: Service::Plugins, version: env!("CARGO_PKG_VERSION") };
    run(
        definition,
        |paths| Serving::judge(paths).context("read the configuration"),
        async |context, ()| {
            let policies = context.paths.config.join("plugins");
            let (registry, warnings) =
                Registry::open(&context.paths.state.join("store"), &policies).context("open the registry")?;
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            let registry = Arc::new(registry);
            let manager = bus::Manager {
                registry: Arc::clone(&registry),
                authority: context.authority.clone(),
                audit: Arc::clone(&context.audit),
            };
            context.connection.object_server().at(Service::Plugins.path(), manager).await?;
            Ok(Serving { registry, connection: context.connection.clone() })
        },
    )
}
