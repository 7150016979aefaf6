//! Plugins: how their calls fare, what they keep, and the figures that they make themselves.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use shipote_bus::proxy::PoolInfo;

use super::escaped;
use crate::engine::Engine;
use crate::plugin::series::{Families, Kind};

/// A family of one value for each version and export.
type Family = (&'static str, &'static str, &'static str, fn(&PoolInfo) -> u64);

const FAMILIES: [Family; 9] = [
    ("calls", "counter", "Calls of a plugin's export.", |p| p.calls),
    ("errors", "counter", "Calls that the plugin answered with an error.", |p| p.errors),
    ("traps", "counter", "Calls that trapped, or answered what the ABI does not allow.", |p| p.traps),
    ("timeouts", "counter", "Calls that overran their deadline.", |p| p.timeouts),
    ("out_of_fuel", "counter", "Calls that used up their fuel.", |p| p.out_of_fuel),
    ("fuel", "counter", "Fuel used, where it is counted.", |p| p.fuel),
    ("failures", "counter", "Instances that did not start, and calls that found none free.", |p| p.failures),
    ("instances", "gauge", "Instances that a pool may have, or that workers have.", |p| p.capacity),
    ("instances_free", "gauge", "Instances that no call uses now.", |p| p.available),
];

pub(super) fn render(out: &mut String, engine: &Engine) {
    let pools = alike(engine.pools());
    for (name, kind, help, value) in FAMILIES {
        head(out, &format!("proxy_plugin_{name}"), kind, help);
        let suffix = if kind == "counter" { "_total" } else { "" };
        for (labels, pool) in &pools {
            let _ = writeln!(out, "shipote_proxy_plugin_{name}{suffix}{{{labels}}} {}", value(pool));
        }
    }
    head(out, "proxy_plugin_call_seconds", "summary", "Time of a call; of several places the slowest.");
    for (labels, pool) in &pools {
        for (quantile, ns) in [("0.5", pool.p50_ns), ("0.99", pool.p99_ns)] {
            let seconds = ns as f64 / 1e9;
            let _ = writeln!(out, "shipote_proxy_plugin_call_seconds{{{labels},quantile=\"{quantile}\"}} {seconds:?}");
        }
    }
    let owned = engine.owned();
    head(out, "proxy_plugin_state_bytes", "gauge", "Bytes that a plugin keeps from call to call.");
    for (plugin, own) in &owned {
        let _ = writeln!(out, "shipote_proxy_plugin_state_bytes{{plugin=\"{plugin}\"}} {}", own.values().used());
    }
    head(out, "proxy_plugin_series_dropped", "counter", "Values that a plugin measured and no series had room for.");
    for (plugin, own) in &owned {
        let _ = writeln!(
            out,
            "shipote_proxy_plugin_series_dropped_total{{plugin=\"{plugin}\"}} {}",
            own.series().dropped()
        );
    }
    head(out, "proxy_plugin_messages_dropped", "counter", "Messages of a plugin that the log had no room for.");
    for (plugin, own) in &owned {
        let dropped = own.said().dropped();
        let _ = writeln!(out, "shipote_proxy_plugin_messages_dropped_total{{plugin=\"{plugin}\"}} {dropped}");
    }
    let mut families = Families::new();
    for (plugin, own) in &owned {
        own.series().render(plugin, &mut families);
    }
    for ((kind, name), lines) in families {
        let kind = if kind == Kind::Counter { "counter" } else { "gauge" };
        head(out, &format!("plugin_{kind}_{name}"), kind, "Measured by plugins.");
        out.push_str(&lines);
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(out, "# TYPE shipote_{name} {kind}\n# HELP shipote_{name} {help}\n");
}

/// By their labels: places that call the same export of the same version are one series.
fn alike(pools: Vec<PoolInfo>) -> BTreeMap<String, PoolInfo> {
    let mut alike: BTreeMap<String, PoolInfo> = BTreeMap::new();
    for pool in pools {
        let plugin = pool.key.split('@').next().unwrap_or_default();
        let export = escaped(&pool.export);
        let labels = format!("plugin=\"{plugin}\",version=\"{}\",export=\"{export}\"", escaped(&pool.version));
        match alike.get_mut(&labels) {
            Some(sum) => {
                for (all, one) in [
                    (&mut sum.calls, pool.calls),
                    (&mut sum.errors, pool.errors),
                    (&mut sum.traps, pool.traps),
                    (&mut sum.timeouts, pool.timeouts),
                    (&mut sum.out_of_fuel, pool.out_of_fuel),
                    (&mut sum.fuel, pool.fuel),
                    (&mut sum.failures, pool.failures),
                    (&mut sum.capacity, pool.capacity),
                    (&mut sum.available, pool.available),
                ] {
                    *all += one;
                }
                sum.p50_ns = sum.p50_ns.max(pool.p50_ns);
                sum.p99_ns = sum.p99_ns.max(pool.p99_ns);
            }
            None => drop(alike.insert(labels, pool)),
        }
    }
    alike
}
