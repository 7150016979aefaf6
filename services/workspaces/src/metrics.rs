//! The figures as OpenMetrics.
//!
//! Names of workspaces are labels, so their number is bounded: those with the most memory have a row of their own, all
//! others share one, and so do the workspaces that were made for one command, whose names nobody sees twice. A row that is
//! shared has gauges only: a sum over workspaces that come and go is no counter.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::actor::Handle;
use crate::effects::Share;
use crate::figures::{Meter, Standing};

/// Workspaces with a row of their own.
const ROWS: usize = 200;
/// The row of those that were made for one command.
const EPHEMERAL: &str = "(ephemeral)";
/// The row of those beyond the bound.
const OTHERS: &str = "(others)";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Row {
    workspace: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Hit {
    workspace: String,
    resource: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct User {
    uid: u32,
}

/// The page.
pub(crate) async fn page(actor: Handle, meter: Meter) -> Result<String, String> {
    let standings = meter.standings(&actor, |_| true).await.map_err(|e| e.to_string())?;
    let totals = actor
        .ask(|state, flows| {
            let pipelines = state.pipelines.values().filter(|p| p.exit_status.is_none()).count();
            let flowing = flows.flows().iter().filter(|flow| flow.state == "flowing").count();
            [state.workspaces.len(), state.living(), pipelines, flowing]
        })
        .await
        .map_err(|e| e.to_string())?;
    render(standings, totals)
}

fn render(mut standings: Vec<Standing>, totals: [usize; 4]) -> Result<String, String> {
    let mut registry = Registry::with_prefix("shipote");
    let whole = ["workspaces_living", "commands_living", "pipelines_living", "flows_flowing"];
    let help = ["Living workspaces", "Living commands", "Pipelines with a living node", "Tapped edges that still flow"];
    for ((name, help), total) in whole.into_iter().zip(help).zip(totals) {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(total).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    }
    let (used, limit): (Family<User, Gauge>, Family<User, Gauge>) = Default::default();
    let shares: BTreeMap<u32, &Share> =
        standings.iter().filter_map(|s| s.subject.share.as_ref()).map(|share| (share.uid, share)).collect();
    for (uid, share) in shares.into_iter().take(ROWS) {
        for (family, bytes) in [(&used, share.cgroup.figures().memory), (&limit, share.memory)] {
            if let Some(bytes) = bytes {
                family.get_or_create(&User { uid }).set(i64::try_from(bytes).unwrap_or(i64::MAX));
            }
        }
    }
    registry.register_with_unit("user_memory", "Memory in use by all workspaces of a user", Unit::Bytes, used);
    registry.register_with_unit("user_memory_limit", "The most that it may be", Unit::Bytes, limit);
    standings.sort_by_key(|s| (s.subject.ephemeral, std::cmp::Reverse(s.sample.memory)));
    let memory: Family<Row, Gauge> = Family::default();
    let processes: Family<Row, Gauge> = Family::default();
    let commands: Family<Row, Gauge> = Family::default();
    let cpu: Family<Row, Counter<f64, AtomicU64>> = Family::default();
    let (read, written): (Family<Row, Counter>, Family<Row, Counter>) = Default::default();
    let kills: Family<Row, Counter> = Family::default();
    let hits: Family<Hit, Counter> = Family::default();
    for (at, standing) in standings.iter().enumerate() {
        let shared = if standing.subject.ephemeral {
            Some(EPHEMERAL)
        } else if at >= ROWS {
            Some(OTHERS)
        } else {
            None
        };
        let row = Row { workspace: shared.unwrap_or(&standing.subject.name).to_owned() };
        let (sample, events) = (&standing.sample, standing.reading.events);
        let add = |family: &Family<Row, Gauge>, value: Option<u64>| {
            if let Some(value) = value {
                family.get_or_create(&row).inc_by(i64::try_from(value).unwrap_or(i64::MAX));
            }
        };
        add(&memory, sample.memory);
        add(&processes, sample.pids);
        add(&commands, Some(u64::from(sample.commands_alive)));
        if shared.is_some() {
            continue;
        }
        if let Some(usec) = sample.cpu_usec {
            cpu.get_or_create(&row).inc_by(usec as f64 / 1e6);
        }
        if let Some(io) = sample.io {
            read.get_or_create(&row).inc_by(io.0);
            written.get_or_create(&row).inc_by(io.1);
        }
        if standing.subject.group.is_some() {
            kills.get_or_create(&row).inc_by(events.oom_kill);
            for (resource, count) in [("memory", events.oom), ("processes", events.pids_max)] {
                hits.get_or_create(&Hit { workspace: row.workspace.clone(), resource }).inc_by(count);
            }
        }
    }
    registry.register_with_unit("workspace_memory", "Memory in use", Unit::Bytes, memory);
    registry.register("workspace_processes", "Processes and threads", processes);
    registry.register("workspace_commands", "Living commands", commands);
    registry.register_with_unit("workspace_cpu", "Processor time", Unit::Seconds, cpu);
    registry.register_with_unit("workspace_io_read", "Read from block devices", Unit::Bytes, read);
    registry.register_with_unit("workspace_io_written", "Written to block devices", Unit::Bytes, written);
    registry.register("workspace_oom_kills", "Processes ended for want of memory", kills);
    registry.register("workspace_limit_hits", "Times that a limit was reached", hits);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).map_err(|e| e.to_string())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::{Reading, Sample, Subject};

    fn standing(name: &str, memory: u64, ephemeral: bool) -> Standing {
        let subject = Subject { name: name.to_owned(), ephemeral, ..Subject::default() };
        let sample = Sample { memory: Some(memory), cpu_usec: Some(1_500_000), commands_alive: 1, ..Sample::default() };
        Standing { id: ulid::Ulid::default(), subject, reading: Reading::default(), sample }
    }

    #[test]
    fn the_page_is_open_metrics() {
        let text = render(
            vec![standing("a\"b", 10, false), standing("run-1", 5, true), standing("run-2", 6, true)],
            [3, 3, 0, 1],
        );
        let text = text.unwrap();
        for line in [
            "shipote_workspaces_living 3",
            "shipote_flows_flowing 1",
            "# UNIT shipote_workspace_memory_bytes bytes",
            "shipote_workspace_memory_bytes{workspace=\"a\\\"b\"} 10",
            "shipote_workspace_memory_bytes{workspace=\"(ephemeral)\"} 11",
            "shipote_workspace_cpu_seconds_total{workspace=\"a\\\"b\"} 1.5",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("run-1"), "{text}");
        assert!(!text.contains("cpu_seconds_total{workspace=\"(ephemeral)\"}"), "{text}");
    }

    #[test]
    fn the_number_of_rows_is_bounded() {
        let many = (0..1000).map(|n| standing(&format!("w{n}"), n, n % 3 == 0)).collect();
        let text = render(many, [1000, 0, 0, 0]).unwrap();
        let rows = text.lines().filter(|l| l.starts_with("shipote_workspace_memory_bytes{")).count();
        assert_eq!(rows, ROWS + 2);
        assert!(text.contains("workspace=\"w998\"") && !text.contains("workspace=\"w1\""));
    }
}
