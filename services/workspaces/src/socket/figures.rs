//! Health, capabilities of the host, and what workspaces use.

use std::path::PathBuf;

use shipote_bus::service::MechanismInfo;
use shipote_workspace_protocol::{QuotaReportInfo, Response, WorkspaceStatsInfo};
use ulid::Ulid;

use super::Door;
use super::answer::count;
use crate::error::Error;
use crate::figures::{Sample, cores};

/// capabilities(7): its bit in the sets of /proc/self/status.
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Figures of one workspace.
pub(super) struct Figures {
    pub(super) stats: WorkspaceStatsInfo,
    pub(super) quota: QuotaReportInfo,
}

impl Door {
    pub(super) async fn health(&self) -> Result<Response, Error> {
        let uptime_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.actor
            .ask(move |state, flows| Response::Health {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                uptime_ms,
                alive_workspaces: count(state.workspaces.len()),
                alive_commands: count(state.living()),
                alive_pipelines: count(state.pipelines.values().filter(|p| p.exit_status.is_none()).count()),
                active_flows: count(flows.flows().iter().filter(|flow| flow.state == "flowing").count()),
                // every change is written down before anything comes of it
                dirty: false,
            })
            .await
    }

    pub(super) fn host(&self) -> Response {
        let find = |name: &str| self.capabilities.iter().find(|mechanism| mechanism.name == name);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Response::Capabilities {
            kernel_version: version(&rustix::system::uname().release().to_string_lossy()),
            user_ns: describe(find("user-namespace")),
            cgroup_v2: describe(find("cgroup")),
            cgroup_delegated: find("cgroup").is_some_and(|mechanism| mechanism.state == "enforced"),
            has_cap_sys_admin: effective(&status) & CAP_SYS_ADMIN != 0,
        }
    }

    pub(super) async fn figures(&self, workspace: Ulid) -> Result<Figures, Error> {
        let standing = self.meter.standing(&self.actor, workspace).await?;
        let report = standing.quota();
        let quota = QuotaReportInfo {
            mem_limit: report.memory_limit,
            nproc_limit: report.process_limit,
            breaches: report.breaches,
        };
        Ok(Figures { stats: info(&standing.sample), quota })
    }

    pub(super) fn history(&self, workspace: Ulid, tail: usize) -> Response {
        let samples = self.meter.history(workspace, tail);
        Response::WorkspaceStatsHistory { samples: samples.iter().map(info).collect() }
    }

    pub(super) async fn summary(&self, workspace: Ulid) -> Result<Response, Error> {
        let Figures { stats, quota } = self.figures(workspace).await?;
        let commands = self.commands(workspace).await?;
        let flow_sockets = self
            .actor
            .ask(move |state, flows| {
                let inside = |id: &str| {
                    let Ok(id) = Ulid::from_string(id) else { return false };
                    id == workspace || state.pipelines.get(&id).is_some_and(|p| p.workspace == workspace)
                };
                let all = flows.flows().into_iter().filter(|flow| inside(&flow.pipeline));
                all.map(|flow| PathBuf::from(flow.socket)).collect()
            })
            .await?;
        Ok(Response::WorkspaceFullSummary { stats, quota, commands, flow_sockets })
    }
}

fn info(sample: &Sample) -> WorkspaceStatsInfo {
    WorkspaceStatsInfo {
        commands_alive: sample.commands_alive,
        commands_total: sample.commands_total,
        rss_bytes: sample.memory,
        rss_peak_bytes: sample.memory_peak,
        cpu_usec: sample.cpu_usec,
        cpu_percent: sample.cpu_percent,
        cpu_cores: cores(),
        source: sample.source().to_owned(),
        uptime_ms: sample.uptime_ms,
    }
}

fn describe(mechanism: Option<&MechanismInfo>) -> String {
    match mechanism {
        Some(m) if m.reason.is_empty() => m.state.clone(),
        Some(m) => format!("{}: {}", m.state, m.reason),
        None => "missing: it was not found out".to_owned(),
    }
}

/// Major, minor and patch of a release such as `6.12.3-arch1`.
fn version(release: &str) -> (u32, u32, u32) {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or_default()).chain([0, 0, 0]);
    let mut next = || numbers.next().unwrap_or_default();
    (next(), next(), next())
}

fn effective(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        for (release, want) in
            [("6.12.3-arch1", (6, 12, 3)), ("6.1", (6, 1, 0)), ("5.15.0-1-amd64", (5, 15, 0)), ("", (0, 0, 0))]
        {
            assert_eq!(version(release), want, "{release}");
        }
    }
}
