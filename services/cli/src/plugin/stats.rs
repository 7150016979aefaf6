//! `shipote plugin stats`: how plugins fare in the proxy.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::json;
use shipote_bus::proxy::PoolInfo;

use super::change::percent;
use crate::output;
use crate::proxy::ask;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  shipote plugin stats\n  shipote plugin stats jwt --json")]
pub(crate) struct StatsArgs {
    /// Only this plugin
    name: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn stats(args: &StatsArgs) -> anyhow::Result<()> {
    let manager = ask::manager().await?;
    let mut pools = manager.list_pools(BTreeMap::new()).await.map_err(|error| ask::refusal(&error))?;
    pools.retain(|pool| args.name.as_deref().is_none_or(|name| name == plugin(pool)));
    if args.json {
        let figures = pools.iter().map(|pool| {
            json!({
                "plugin": plugin(pool),
                "version": pool.version,
                "digest": pool.key.split_once('@').map(|(_, digest)| digest),
                "export": pool.export,
                "share": f64::from(pool.share) / 100.0,
                "calls": pool.calls,
                "errors": pool.errors,
                "traps": pool.traps,
                "timeouts": pool.timeouts,
                "out_of_fuel": pool.out_of_fuel,
                "fuel": pool.fuel,
                "p50_ns": pool.p50_ns,
                "p99_ns": pool.p99_ns,
                "instances": pool.total_allocations,
            })
        });
        return output::json(&json!({"plugins": figures.collect::<Vec<_>>()}));
    }
    let row = |pool: &PoolInfo| {
        let micros = |ns: u64| format!("{}.{} µs", ns / 1000, ns % 1000 / 100);
        let fuel = if pool.fuel == 0 { "-".to_owned() } else { (pool.fuel / pool.calls.max(1)).to_string() };
        let counts = [pool.calls, pool.errors, pool.traps, pool.timeouts, pool.out_of_fuel].map(|n| n.to_string());
        let mut row = vec![format!("{}:{}", plugin(pool), pool.export), pool.version.clone(), percent(pool.share)];
        row.extend(counts);
        row.extend([micros(pool.p50_ns), micros(pool.p99_ns), fuel]);
        row
    };
    let heads =
        ["PLUGIN", "VERSION", "SHARE", "CALLS", "ERRORS", "TRAPS", "TIMEOUTS", "NO FUEL", "P50", "P99", "FUEL/CALL"];
    let none = "no rule calls it; `shipote plugin ls` shows what there is, `shipote proxy rules` what is called";
    output::print_table(&heads, pools.iter().map(row).collect(), none);
    Ok(())
}

fn plugin(pool: &PoolInfo) -> &str {
    pool.key.split_once('@').map_or(pool.key.as_str(), |(name, _)| name)
}
