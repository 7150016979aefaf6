//! `org.shipote.Proxy1.Manager`, at the root object: authorise, convert, ask the service.

mod certificates;
mod egress;

use std::collections::HashMap;
use std::sync::Arc;

use shipote_audit::{Audit, Door, Event, Record};
use shipote_bus::proxy::{
    CertInfo, ConnectionInfo, EgressInfo, FLOWS_MAX, FlowInfo, ListenerInfo, PoolInfo, ProxyError, RULES_MAX,
    UpstreamInfo,
};
use shipote_proxy::egress::{Access, EgressError};
use shipote_rules::{Graph, Source, compile, mermaid};
use shipote_service::{Authority, Configuration};
use zbus::OwnedVariant;
use zbus::message::Header;

pub(crate) use certificates::Certificates;
pub(crate) use egress::{Egress, tell};

use crate::state::{Loaded, State};

/// polkit: change the rules.
const ACTION_MANAGE: &str = "org.shipote.proxy.manage";

type Options = HashMap<String, OwnedVariant>;

/// The root object.
pub(crate) struct Manager {
    pub(crate) state: Arc<State>,
    pub(crate) authority: Authority,
    pub(crate) audit: Arc<Audit>,
    pub(crate) configuration: Arc<Configuration>,
}

impl Manager {
    /// As SIGHUP does it: nothing is loaded where a start would be refused.
    async fn load(&self) -> Result<Loaded, ProxyError> {
        let later = self.configuration.examine().await.map_err(ProxyError::Unreadable)?;
        let mut loaded = self.state.reload().await?;
        loaded.warnings.extend(later);
        Ok(loaded)
    }
}

#[zbus::interface(name = "org.shipote.Proxy1.Manager")]
impl Manager {
    /// Lists the listeners and the rules of each, in the order in which they are tried. No options yet.
    #[zbus(out_args("listeners"))]
    async fn list_rules(&self, options: Options) -> Result<Vec<ListenerInfo>, ProxyError> {
        none(&options)?;
        Ok(self.state.engine.with_graph(|graph| {
            let info = |l: &shipote_rules::Listener| ListenerInfo {
                transport: l.listen.transport.name().to_owned(),
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
    /// `mermaid`, without touching traffic; plugins that they name are not looked up. Also returns warnings.
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
    /// many listeners and rules there are, and warnings. Refused where `shipote.toml` has mistakes, too; of its settings
    /// those that changed are named in a warning: they hold from the next start on. No options yet.
    #[zbus(out_args("listeners", "rules", "warnings"))]
    async fn reload(
        &self,
        #[zbus(header)] header: Header<'_>,
        options: Options,
    ) -> Result<(u32, u32, Vec<String>), ProxyError> {
        none(&options)?;
        let caller = may_manage(&self.authority, &self.audit, &header).await?;
        let result = self.load().await;
        let object = self.state.rules_dir().display().to_string();
        let record = Record::new(Event::ProxyReload, object, caller, Door::Bus).outcome(&result);
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
        let count = count.min(FLOWS_MAX) as usize;
        let mut flows = self.state.engine.flows(count);
        flows.extend(self.state.egress.flows(count));
        flows.sort_by_key(|f| f.unix_ms);
        Ok(flows.split_off(flows.len().saturating_sub(count)))
    }

    /// Lists the call sites of plugins and their instances. No options yet.
    #[zbus(out_args("pools"))]
    async fn list_pools(&self, options: Options) -> Result<Vec<PoolInfo>, ProxyError> {
        none(&options)?;
        Ok(self.state.engine.pools())
    }

    /// Lists the certificates of the listeners. No options yet.
    #[zbus(out_args("certs"))]
    async fn list_certs(&self, options: Options) -> Result<Vec<CertInfo>, ProxyError> {
        none(&options)?;
        let engine = Arc::clone(&self.state.engine);
        // How asking for those by ACME fared is read from files.
        let certs = tokio::task::spawn_blocking(move || engine.certs()).await;
        certs.map_err(|e| ProxyError::Unreadable(format!("look at the certificates: {e}")))
    }

    /// Lets a client (`workspace:NAME`, `machine:NAME`, `session:NAME`) out to the hosts of a list, or changes that
    /// list: `example.com` and `*.example.com` by name (ports 80 and 443, or `:PORT`, or `:*`), addresses and networks
    /// likewise; names that resolve to addresses which are not public need those listed too. An empty list allows
    /// nothing. Options: `listen` (s): an address for the client besides its socket; `users` (au): who may use the
    /// socket, besides root and the caller. Returns the path of the socket, which speaks HTTP (CONNECT and whole
    /// addresses) and SOCKS5. It lasts until it is removed or the service is stopped. A workspace that goes out by doors of
    /// its own has its list from the workspaces service.
    #[zbus(out_args("socket"))]
    async fn set_egress(
        &self,
        #[zbus(header)] header: Header<'_>,
        client: String,
        allow: Vec<String>,
        options: Options,
    ) -> Result<String, ProxyError> {
        let caller = may_manage(&self.authority, &self.audit, &header).await?;
        let mut access = Access { users: vec![caller], ..Access::default() };
        for (key, value) in options {
            match (key.as_str(), <&str>::try_from(&value)) {
                ("users", _) => {
                    let users = Vec::<u32>::try_from(value);
                    access.users.extend(users.map_err(|_| {
                        ProxyError::InvalidArgument("users: has to be an array of uids (au)".to_owned())
                    })?);
                }
                ("listen", Ok(text)) => {
                    access.listen = Some(text.parse().map_err(|_| {
                        ProxyError::InvalidArgument(format!("listen: {text:?} is no address with a port"))
                    })?);
                }
                _ => {
                    return Err(ProxyError::InvalidArgument(format!(
                        "option {key:?} is not known; there are listen (s) and users (au)"
                    )));
                }
            }
        }
        let result = self.state.egress.set(&client, &allow, &access).map_err(|e| match e {
            EgressError::Listen { .. } | EgressError::TooMany => ProxyError::NotApplied(e.to_string()),
            EgressError::Client(_) | EgressError::Doors(_) | EgressError::Entry(_) => {
                ProxyError::InvalidArgument(e.to_string())
            }
        });
        if result.is_ok() {
            self.state.remember();
        }
        let record = Record::new(Event::EgressChange, client, caller, Door::Bus).outcome(&result);
        if let Err(error) = self.audit.record(&record) {
            tracing::error!("record a change of egress: {error}");
        }
        Ok(result?.display().to_string())
    }

    /// Takes a client's way out away, with its open connections. Returns whether it had one. No options yet.
    #[zbus(out_args("removed"))]
    async fn remove_egress(
        &self,
        #[zbus(header)] header: Header<'_>,
        client: String,
        options: Options,
    ) -> Result<bool, ProxyError> {
        none(&options)?;
        let caller = may_manage(&self.authority, &self.audit, &header).await?;
        let result = if self.state.egress.adopted().iter().any(|(name, _)| *name == client) {
            Err(ProxyError::InvalidArgument(EgressError::Doors(client.clone()).to_string()))
        } else {
            let removed = self.state.egress.remove(&client);
            self.state.remember();
            Ok(removed)
        };
        let record = Record::new(Event::EgressChange, client, caller, Door::Bus).outcome(&result);
        if let Err(error) = self.audit.record(&record) {
            tracing::error!("record a change of egress: {error}");
        }
        result
    }

    /// Lists the clients that are let out, what they may reach and what they were refused. No options yet.
    #[zbus(out_args("clients"))]
    async fn list_egress(&self, options: Options) -> Result<Vec<EgressInfo>, ProxyError> {
        none(&options)?;
        let info = |e: shipote_proxy::egress::EgressInfo| EgressInfo {
            client: e.client,
            socket: e.socket.display().to_string(),
            listen: e.listen.map(|l| l.to_string()).unwrap_or_default(),
            allow: e.allow,
            allowed: e.allowed,
            denied: e.denied,
            open: e.open,
            denials: e.denials,
        };
        Ok(self.state.egress.list().into_iter().map(info).collect())
    }

    /// The figures as OpenMetrics text, as the admin socket serves them.
    #[zbus(out_args("text"))]
    async fn metrics(&self) -> Result<String, ProxyError> {
        Ok(shipote_proxy::metrics::render(&self.state.engine))
    }
}

/// The caller's uid, if it may change what the proxy does and the change can be recorded.
async fn may_manage(authority: &Authority, audit: &Audit, header: &Header<'_>) -> Result<u32, ProxyError> {
    may(authority, audit, header, ACTION_MANAGE).await
}

/// The caller's uid, if polkit allows it this action and the change can be recorded.
async fn may(authority: &Authority, audit: &Audit, header: &Header<'_>, action: &str) -> Result<u32, ProxyError> {
    let caller = authority.check(header, action).await.map_err(|e| ProxyError::NotAuthorized(e.to_string()))?;
    audit.ready().map_err(|e| {
        ProxyError::NotRecorded(format!("{e}; the change is refused because audit records are required"))
    })?;
    Ok(caller.uid)
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
