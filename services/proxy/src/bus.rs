//! `org.shipote.Proxy1.Manager`, at the root object: authorise, convert, ask the service.

use std::collections::HashMap;
use std::sync::Arc;

use shipote_audit::{Audit, Door, Event, Record};
use shipote_bus::proxy::{ConnectionInfo, FLOWS_MAX, FlowInfo, ListenerInfo, ProxyError, RULES_MAX, UpstreamInfo};
use shipote_rules::{Graph, Source, Transport, compile, mermaid};
use shipote_service::Authority;
use zbus::OwnedVariant;
use zbus::message::Header;

use crate::state::{Loaded, State};

/// polkit: change the rules.
const ACTION_MANAGE: &str = "org.shipote.proxy.manage";

type Options = HashMap<String, OwnedVariant>;

/// The root object.
pub(crate) struct Manager {
    pub(crate) state: Arc<State>,
    pub(crate) authority: Authority,
    pub(crate) audit: Arc<Audit>,
}

#[zbus::interface(name = "org.shipote.Proxy1.Manager")]
impl Manager {
    /// Lists the listeners and the rules of each, in the order in which they are tried. No options yet.
    #[zbus(out_args("listeners"))]
    async fn list_rules(&self, options: Options) -> Result<Vec<ListenerInfo>, ProxyError> {
        none(&options)?;
        Ok(self.state.engine.with_graph(|graph| {
            let info = |l: &shipote_rules::Listener| ListenerInfo {
                transport: if l.listen.transport == Transport::Udp { "udp" } else { "tcp" }.to_owned(),
                address: l.listen.address.to_string(),
                tls: l.tls.is_some(),
                rules: l.rules.clone(),
            };
            graph.listeners.iter().map(info).collect()
        }))
    }

    /// The graph that holds now, as `json` or `mermaid`.
    #[zbus(out_args("graph"))]
    async fn graph(&self, format: &str) -> Result<String, ProxyError> {
        self.state.engine.with_graph(|graph| print(graph, format))
    }

    /// Compiles rule files, given as paths (which errors name) and texts, and prints the graph as `json` or
    /// `mermaid`, without touching traffic. Also returns warnings.
    #[zbus(out_args("graph", "warnings"))]
    async fn compile(&self, files: Vec<(String, String)>, format: &str) -> Result<(String, Vec<String>), ProxyError> {
        if files.iter().map(|(path, text)| path.len() + text.len()).sum::<usize>() > RULES_MAX {
            return Err(ProxyError::InvalidArgument(format!("compile: more than {RULES_MAX} bytes of rules")));
        }
        let sources: Vec<Source> = files.into_iter().map(|(path, text)| Source::new(path, text)).collect();
        let graph = compile(&sources).map_err(|e| ProxyError::InvalidRules(e.to_string()))?;
        let warnings = graph.warnings.clone();
        Ok((print(&graph, format)?, warnings))
    }

    /// Reads the rule files of the configuration folder again and goes over to them, whole or not at all. Returns how
    /// many listeners and rules there are, and warnings. No options yet.
    #[zbus(out_args("listeners", "rules", "warnings"))]
    async fn reload(
        &self,
        #[zbus(header)] header: Header<'_>,
        options: Options,
    ) -> Result<(u32, u32, Vec<String>), ProxyError> {
        none(&options)?;
        let caller =
            self.authority.check(&header, ACTION_MANAGE).await.map_err(|e| ProxyError::NotAuthorized(e.to_string()))?;
        self.audit.ready().map_err(|e| {
            ProxyError::NotRecorded(format!("{e}; the reload is refused because audit records are required"))
        })?;
        let result = self.state.reload().await;
        let object = self.state.rules_dir().display().to_string();
        let record = Record::new(Event::ProxyReload, object, caller.uid, Door::Bus).outcome(&result);
        if let Err(error) = self.audit.record(&record) {
            tracing::error!("record the reload of the rules: {error}");
        }
        let Loaded { listeners, rules, warnings } = result?;
        Ok((listeners, rules, warnings))
    }

    /// Lists the open connections, oldest first. No options yet.
    #[zbus(out_args("connections"))]
    async fn list_connections(&self, options: Options) -> Result<Vec<ConnectionInfo>, ProxyError> {
        none(&options)?;
        let info = |c: shipote_proxy::ConnectionInfo| ConnectionInfo {
            id: c.id,
            remote: c.remote.to_string(),
            listener: c.listener.to_string(),
            age_ms: c.age_ms,
        };
        Ok(self.state.engine.connections().into_iter().map(info).collect())
    }

    /// Lists the upstreams that rules named since the start. No options yet.
    #[zbus(out_args("upstreams"))]
    async fn list_upstreams(&self, options: Options) -> Result<Vec<UpstreamInfo>, ProxyError> {
        none(&options)?;
        let info = |u: shipote_proxy::UpstreamInfo| UpstreamInfo {
            address: u.address,
            state: if u.down { "down" } else { "up" }.to_owned(),
            open: u.open,
            total: u.total,
            failures: u.failures,
        };
        Ok(self.state.engine.upstreams().into_iter().map(info).collect())
    }

    /// The last `count` flows (at most 1000), oldest first. No options yet.
    #[zbus(out_args("flows"))]
    async fn list_flows(&self, count: u32, options: Options) -> Result<Vec<FlowInfo>, ProxyError> {
        none(&options)?;
        let info = |f: shipote_proxy::Flow| FlowInfo {
            unix_ms: f.unix_ms,
            connection: f.connection,
            client: f.client,
            rule: f.rule,
            method: f.method,
            host: f.host,
            path: f.path,
            status: f.status,
            upstream: f.upstream,
            bytes_in: f.bytes_in,
            bytes_out: f.bytes_out,
            duration_us: f.duration_us,
            error: f.error,
        };
        let flows = self.state.engine.flows(count.min(FLOWS_MAX) as usize);
        Ok(flows.into_iter().map(info).collect())
    }

    /// The figures as OpenMetrics text, as the admin socket serves them.
    #[zbus(out_args("text"))]
    async fn metrics(&self) -> Result<String, ProxyError> {
        Ok(shipote_proxy::metrics::render(&self.state.engine))
    }
}

fn none(options: &Options) -> Result<(), ProxyError> {
    match options.keys().next() {
        None => Ok(()),
        Some(key) => Err(ProxyError::InvalidArgument(format!("option {key:?} is not known; there are none yet"))),
    }
}

fn print(graph: &Graph, format: &str) -> Result<String, ProxyError> {
    match format {
        "json" => {
            serde_json::to_string(graph).map_err(|e| ProxyError::InvalidArgument(format!("print the graph: {e}")))
        }
        "mermaid" => Ok(mermaid(graph)),
        other => Err(ProxyError::InvalidArgument(format!("format {other:?} is not known; there are json and mermaid"))),
    }
}
