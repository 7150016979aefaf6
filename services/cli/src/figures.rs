//! `shipote workspace stats` and `quota`: what workspaces use, and their limits.

use std::collections::BTreeMap;

use serde_json::json;
use shipote_bus::connect;
use shipote_bus::workspaces::{FiguresProxy, WorkspaceQuota, WorkspaceStats};
use zbus::proxy::CacheProperties;

use crate::output;

/// Client of the figures.
pub(crate) async fn client() -> anyhow::Result<FiguresProxy<'static>> {
    let connection = connect::client().await?;
    Ok(FiguresProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?)
}

pub(crate) async fn stats(name: Option<&str>, history: bool, json: bool) -> anyhow::Result<()> {
    let client = client().await?;
    if history {
        let name = name.unwrap_or_default();
        let samples = client.history(name, 0, BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
        if json {
            return output::json(&json!({"workspace": name, "samples": samples}));
        }
        let rows = samples.iter().map(sample_row).collect();
        output::print_table(SAMPLE, rows, "no sample yet; one is taken every two seconds");
        return Ok(());
    }
    let all = client.stats(name.unwrap_or_default(), BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
    if json {
        return output::json(&json!({"stats": all}));
    }
    output::print_table(HEAD, all.iter().map(row).collect(), "no workspace lives");
    Ok(())
}

pub(crate) async fn quota(name: &str, json: bool) -> anyhow::Result<()> {
    let quota = client().await?.quota(name, BTreeMap::new()).await.map_err(|e| output::refusal(&e))?;
    if json {
        return output::json(&quota);
    }
    output::print_table(&["RESOURCE", "LIMIT", "AT THE LIMIT"], quota_rows(&quota), "");
    for breach in &quota.breaches {
        println!("{breach}");
    }
    Ok(())
}

const HEAD: &[&str] = &[
    "WORKSPACE",
    "COMMANDS",
    "MEMORY",
    "PEAK",
    "LIMIT",
    "CPU",
    "CPU TIME",
    "PIDS",
    "READ",
    "WRITTEN",
    "PRESSURE",
    "SOURCE",
];
const SAMPLE: &[&str] = &["UPTIME", "COMMANDS", "MEMORY", "CPU", "PIDS", "READ", "WRITTEN"];

pub(crate) fn bytes(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), |b| output::bytes(b as f64))
}

pub(crate) fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |p| format!("{p:.0}%"))
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), |n| n.to_string())
}

fn row(stats: &WorkspaceStats) -> Vec<String> {
    let worst = [stats.cpu_pressure, stats.memory_pressure, stats.io_pressure].into_iter().flatten().reduce(f64::max);
    vec![
        stats.name.clone(),
        stats.commands_alive.to_string(),
        bytes(stats.memory_bytes),
        bytes(stats.memory_peak_bytes),
        bytes(stats.memory_limit_bytes),
        percent(stats.cpu_percent),
        stats.cpu_usec.map_or_else(|| "-".to_owned(), |usec| format!("{:.1}s", usec as f64 / 1e6)),
        match stats.pids_limit {
            Some(limit) => format!("{}/{limit}", number(stats.pids)),
            None => number(stats.pids),
        },
        bytes(stats.io_read_bytes),
        bytes(stats.io_write_bytes),
        percent(worst),
        stats.source.clone(),
    ]
}

fn sample_row(stats: &WorkspaceStats) -> Vec<String> {
    vec![
        output::duration(stats.uptime_ms / 1000),
        stats.commands_alive.to_string(),
        bytes(stats.memory_bytes),
        percent(stats.cpu_percent),
        number(stats.pids),
        bytes(stats.io_read_bytes),
        bytes(stats.io_write_bytes),
    ]
}

fn quota_rows(quota: &WorkspaceQuota) -> Vec<Vec<String>> {
    vec![
        vec!["memory".to_owned(), bytes(quota.memory_limit_bytes), quota.memory_action.clone()],
        vec!["processes".to_owned(), number(quota.process_limit.map(u64::from)), quota.process_action.clone()],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_a_dash_and_never_a_zero() {
        let nothing = row(&WorkspaceStats { name: "w".into(), source: "proc".into(), ..WorkspaceStats::default() });
        assert_eq!(nothing[2..11].iter().filter(|cell| *cell == "-").count(), 9, "{nothing:?}");
        let some = WorkspaceStats {
            memory_bytes: Some(1 << 20),
            cpu_percent: Some(12.6),
            cpu_pressure: Some(1.0),
            memory_pressure: Some(7.4),
            pids: Some(3),
            pids_limit: Some(8),
            ..WorkspaceStats::default()
        };
        let some = row(&some);
        assert_eq!(
            (some[2].as_str(), some[5].as_str(), some[7].as_str(), some[10].as_str()),
            ("1.0 MiB", "13%", "3/8", "7%")
        );
    }
}
