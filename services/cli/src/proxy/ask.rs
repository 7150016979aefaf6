//! What the running proxy is asked over the bus.

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;
use std::time::Duration;

use serde_json::json;
use shipote_bus::connect;
use shipote_bus::proxy::{FLOWS_MAX, FlowInfo, ManagerProxy, ProxyError};
use shipote_bus::words::counted;
use zbus::proxy::CacheProperties;

use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct JsonArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct GraphArgs {
    /// Print a Mermaid flow chart instead of JSON
    #[arg(long)]
    mermaid: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TailArgs {
    /// How many of the last flows
    #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=i64::from(FLOWS_MAX)))]
    lines: u32,
    /// Go on with flows as they end
    #[arg(short, long)]
    follow: bool,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(crate) async fn manager() -> anyhow::Result<ManagerProxy<'static>> {
    let connection = connect::client().await?;
    Ok(ManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?)
}

pub(crate) fn refusal(error: &ProxyError) -> anyhow::Error {
    match error {
        ProxyError::ZBus(error) => anyhow::anyhow!("ask the proxy: {}", shipote_bus::error::describe(error)),
        other => anyhow::anyhow!("{}", zbus::DBusError::description(other).unwrap_or("refused without a reason")),
    }
}

pub(super) async fn rules(args: &JsonArgs) -> anyhow::Result<()> {
    let listeners = manager().await?.list_rules(BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    if args.json {
        return output::json(&json!({"listeners": listeners}));
    }
    let mut rows = Vec::new();
    for listener in listeners {
        for rule in listener.rules {
            let tls = if listener.tls { "yes" } else { "no" }.to_owned();
            rows.push(vec![listener.transport.clone(), listener.address.clone(), tls, rule]);
        }
    }
    output::print_table(&["TRANSPORT", "ADDRESS", "TLS", "RULE"], rows, "the proxy has no rules");
    Ok(())
}

pub(super) async fn graph(args: &GraphArgs) -> anyhow::Result<()> {
    let format = if args.mermaid { "mermaid" } else { "json" };
    let text = manager().await?.graph(format).await.map_err(|e| refusal(&e))?;
    print(&text);
    Ok(())
}

pub(super) async fn reload(args: &JsonArgs) -> anyhow::Result<()> {
    let (listeners, rules, warnings) = match manager().await?.reload(BTreeMap::new()).await {
        Ok(loaded) => loaded,
        Err(ProxyError::InvalidRules(text)) => {
            eprintln!("{text}");
            anyhow::bail!("reload the proxy: the rules have problems, see above; those from before go on");
        }
        Err(error) => return Err(refusal(&error).context("reload the proxy; the rules from before go on")),
    };
    if args.json {
        return output::json(&json!({"listeners": listeners, "rules": rules, "warnings": warnings}));
    }
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    print(&format!("{} on {}", counted(rules, "rule"), counted(listeners, "listener")));
    Ok(())
}

pub(super) async fn connections(args: &JsonArgs) -> anyhow::Result<()> {
    let all = manager().await?.list_connections(BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    if args.json {
        return output::json(&json!({"connections": all}));
    }
    let rows = all
        .into_iter()
        .map(|c| vec![c.id.to_string(), c.remote, c.listener, output::duration(c.age_ms / 1000)])
        .collect();
    output::print_table(&["ID", "CLIENT", "LISTENER", "AGE"], rows, "no connection is open");
    Ok(())
}

pub(super) async fn upstreams(args: &JsonArgs) -> anyhow::Result<()> {
    let all = manager().await?.list_upstreams(BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    if args.json {
        return output::json(&json!({"upstreams": all}));
    }
    let row = |u: shipote_bus::proxy::UpstreamInfo| {
        vec![u.address, u.state, u.open.to_string(), u.total.to_string(), u.failures.to_string()]
    };
    let rows = all.into_iter().map(row).collect();
    output::print_table(&["UPSTREAM", "STATE", "OPEN", "TOTAL", "FAILURES"], rows, "no rule names an upstream");
    Ok(())
}

pub(super) async fn pools(args: &JsonArgs) -> anyhow::Result<()> {
    let all = manager().await?.list_pools(BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    if args.json {
        return output::json(&json!({"pools": all}));
    }
    let row = |p: shipote_bus::proxy::PoolInfo| {
        let numbers = [p.capacity, p.available, p.calls, p.errors, p.traps, p.timeouts, p.failures];
        let plugin = p.key.split_once('@').map_or(p.key.as_str(), |(name, _)| name);
        [format!("{plugin}:{}", p.export), p.kind].into_iter().chain(numbers.map(|n| n.to_string())).collect()
    };
    let heads = ["PLUGIN", "KIND", "CAPACITY", "FREE", "CALLS", "ERRORS", "TRAPS", "TIMEOUTS", "FAILURES"];
    output::print_table(&heads, all.into_iter().map(row).collect(), "no rule uses a plugin");
    Ok(())
}

pub(super) async fn certs(args: &JsonArgs) -> anyhow::Result<()> {
    let all = manager().await?.list_certs(BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    if args.json {
        return output::json(&json!({"certs": all}));
    }
    let mut problems = Vec::new();
    for cert in &all {
        if let (Some(first), false) = (cert.wanted.first(), cert.error.is_empty()) {
            let again =
                if cert.next_try > 0 { format!("; again after {}", moment(cert.next_try)) } else { String::new() };
            problems.push(format!("{first}: {}{again}", cert.error));
        }
    }
    problems.dedup();
    let heads = ["LISTENER", "NAME", "SOURCE", "VALID UNTIL", "RENEWED FROM", "STAPLE UNTIL", "CARRIES", "FILE"];
    output::print_table(&heads, all.into_iter().map(cert_row).collect(), "no listener ends TLS");
    for problem in problems {
        eprintln!("not fetched: {problem}");
    }
    Ok(())
}

fn cert_row(cert: shipote_bus::proxy::CertInfo) -> Vec<String> {
    let name = if cert.name.is_empty() { "(default)".to_owned() } else { cert.name };
    let source = if cert.wanted.is_empty() { "file" } else { "acme" }.to_owned();
    let valid = if cert.not_after == 0 && !cert.wanted.is_empty() {
        "not there yet".to_owned()
    } else {
        moment(cert.not_after)
    };
    let or_none = |seconds: i64| if seconds == 0 { "-".to_owned() } else { moment(seconds) };
    let staple = if cert.staple_until == i64::MAX { "no end".to_owned() } else { or_none(cert.staple_until) };
    vec![cert.listener, name, source, valid, or_none(cert.renew_at), staple, cert.names.join(" "), cert.file]
}

/// Seconds since the epoch, as a person reads them.
fn moment(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |t| t.to_string())
}

pub(super) async fn metrics() -> anyhow::Result<()> {
    let text = manager().await?.metrics().await.map_err(|e| refusal(&e))?;
    print(text.trim_end());
    Ok(())
}

pub(super) async fn tail(args: &TailArgs) -> anyhow::Result<()> {
    let manager = manager().await?;
    let mut flows = manager.list_flows(args.lines, BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    // With --follow: what the proxy remembers is asked for again, and what was not in the answer before is new.
    let mut before: HashSet<FlowInfo> = HashSet::new();
    if args.follow {
        before.extend(manager.list_flows(FLOWS_MAX, BTreeMap::new()).await.map_err(|e| refusal(&e))?);
    }
    loop {
        for flow in &flows {
            if args.json {
                output::json(flow)?;
            } else {
                print(&line(flow));
            }
        }
        if !args.follow {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let recent = manager.list_flows(FLOWS_MAX, BTreeMap::new()).await.map_err(|e| refusal(&e))?;
        flows = recent.iter().filter(|f| !before.contains(f)).cloned().collect();
        if flows.len() == FLOWS_MAX as usize {
            eprintln!("more than {FLOWS_MAX} flows ended within half a second: some are not shown");
        }
        before = recent.into_iter().collect();
    }
}

fn line(flow: &FlowInfo) -> String {
    let status = if flow.status == 0 { "-".to_owned() } else { flow.status.to_string() };
    let what =
        if flow.method.is_empty() { flow.host.clone() } else { format!("{} {}{}", flow.method, flow.host, flow.path) };
    let to = if flow.upstream.is_empty() { String::new() } else { format!(" -> {}", flow.upstream) };
    let error = if flow.error.is_empty() { String::new() } else { format!(" ({})", flow.error) };
    let micros = flow.duration_us;
    format!(
        "{} {status} {what}{to} rule={} in={} out={} {micros}us{error}",
        flow.client, flow.rule, flow.bytes_in, flow.bytes_out
    )
}

/// A line on stdout. A reader that went away is no error.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
