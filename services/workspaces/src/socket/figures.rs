//! Health, capabilities of the host, and what workspaces use.
//!
//! Figures of a workspace come from `/proc`, over every descendant of its first process. Where the kernel or the
//! service manager hides those processes from the service, the figures are absent, never zero.

use std::collections::HashMap;
use std::path::PathBuf;

use shipote_bus::service::MechanismInfo;
use shipote_workspace_protocol::{QuotaReportInfo, Response, WorkspaceStatsInfo};
use ulid::Ulid;

use super::Door;
use super::answer::count;
use crate::actor::now;
use crate::error::Error;

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
                // living workspaces are not on the disk: the service's end is theirs
                dirty: !state.workspaces.is_empty(),
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
        let (mut stats, limits, keeper) = self
            .actor
            .ask(move |state, flows| {
                let found = state.find_workspace(&workspace.to_string())?;
                let stats = WorkspaceStatsInfo {
                    commands_alive: count(state.living_in(workspace).count()),
                    commands_total: count(state.commands.values().filter(|c| c.workspace == workspace).count()),
                    source: "proc".to_owned(),
                    uptime_ms: now().saturating_sub(found.created) / 1000,
                    cpu_cores: 0,
                    ..WorkspaceStatsInfo::default()
                };
                Ok::<_, Error>((stats, found.spec.soma.rlimits.clone(), flows.keeper(workspace)))
            })
            .await??;
        stats.cpu_cores = std::thread::available_parallelism().map_or(1, |n| count(n.get()));
        // hundreds of small files: not in the way of others
        let usage = match keeper {
            Some(keeper) => tokio::task::spawn_blocking(move || usage(keeper)).await.ok().flatten(),
            None => None,
        };
        let mut breaches = Vec::new();
        if let Some(usage) = usage {
            stats.rss_bytes = Some(usage.rss);
            stats.cpu_usec = Some(usage.cpu_usec);
            if let Some(limit) = limits.mem_bytes.filter(|&limit| usage.rss > limit) {
                breaches.push(format!("memory: {} bytes are resident, {limit} are the limit", usage.rss));
            }
            if let Some(limit) = limits.nproc.filter(|&limit| usage.processes > limit) {
                breaches.push(format!("processes: {} are living, {limit} are the limit", usage.processes));
            }
        }
        let quota = QuotaReportInfo { mem_limit: limits.mem_bytes, nproc_limit: limits.nproc, breaches };
        Ok(Figures { stats, quota })
    }

    pub(super) async fn summary(&self, workspace: Ulid) -> Result<Response, Error> {
        let Figures { stats, quota } = self.figures(workspace).await?;
        let commands = self.commands(workspace).await?;
        let flow_sockets = self
            .actor
            .ask(move |state, flows| {
                let inside = |id: &str| {
                    let pipeline = Ulid::from_string(id).ok().and_then(|id| state.pipelines.get(&id));
                    pipeline.is_some_and(|p| p.workspace == workspace)
                };
                let all = flows.flows().into_iter().filter(|flow| inside(&flow.pipeline));
                all.map(|flow| PathBuf::from(flow.socket)).collect()
            })
            .await?;
        Ok(Response::WorkspaceFullSummary { stats, quota, commands, flow_sockets })
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

/// What a tree of processes uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Usage {
    rss: u64,
    cpu_usec: u64,
    processes: u32,
}

/// One line of /proc/PID/stat, proc_pid_stat(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: i32,
    /// User and system time, in clock ticks.
    ticks: u64,
    /// The same of children that have been waited for.
    reaped_ticks: u64,
    /// Resident pages.
    pages: u64,
}

fn parse(line: &str) -> Option<Stat> {
    // the name may contain anything, so the fields are counted from the last parenthesis
    let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
    Some(Stat {
        parent: fields.get(1)?.parse().ok()?,
        ticks: number(14)? + number(15)?,
        reaped_ticks: number(16)? + number(17)?,
        pages: number(24)?,
    })
}

/// What the descendants of `root` use; `None` where it cannot be seen.
fn usage(root: i32) -> Option<Usage> {
    let mut all = HashMap::new();
    for entry in std::fs::read_dir("/proc").ok()?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // it may have ended meanwhile
        if let Some(stat) = std::fs::read_to_string(entry.path().join("stat")).ok().as_deref().and_then(parse) {
            all.insert(pid, stat);
        }
    }
    add_up(&all, root, rustix::param::page_size() as u64, rustix::param::clock_ticks_per_second())
}

fn add_up(all: &HashMap<i32, Stat>, root: i32, page: u64, hertz: u64) -> Option<Usage> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for (&pid, stat) in all {
        children.entry(stat.parent).or_default().push(pid);
    }
    // the first process is ours, what it has reaped was the workspace's
    let mut ticks = all.get(&root)?.reaped_ticks;
    let (mut pages, mut processes) = (0, 0);
    let mut left = children.remove(&root).unwrap_or_default();
    while let Some(pid) = left.pop() {
        let stat = &all[&pid];
        ticks += stat.ticks + stat.reaped_ticks;
        pages += stat.pages;
        processes += 1;
        // taken out: a table read while processes come and go may hold a circle
        left.extend(children.remove(&pid).unwrap_or_default());
    }
    Some(Usage { rss: pages * page, cpu_usec: ticks * 1_000_000 / hertz.max(1), processes })
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

    #[test]
    fn a_stat_line_with_a_nasty_name() {
        let line = "42 (a) b ) S 7 42 42 0 -1 4194304 100 0 0 0 5 6 7 8 20 0 1 0 100 1000 99 18446744073709551615 1";
        assert_eq!(parse(line), Some(Stat { parent: 7, ticks: 11, reaped_ticks: 15, pages: 99 }));
        assert_eq!(parse("42 (short) S 7"), None);
    }

    #[test]
    fn a_tree_is_its_descendants_and_ends_even_if_it_is_none() {
        let stat = |parent| Stat { parent, ticks: 10, reaped_ticks: 1, pages: 2 };
        let mut all: HashMap<i32, Stat> =
            [(1, 0), (5, 1), (6, 5), (7, 6), (8, 5), (9, 1)].map(|(p, pp)| (p, stat(pp))).into();
        let want = Usage { rss: 6 * 4096, cpu_usec: (1 + 33) * 10_000, processes: 3 };
        assert_eq!(add_up(&all, 5, 4096, 100), Some(want));
        assert_eq!(add_up(&all, 4, 4096, 100), None);
        all.insert(5, stat(7));
        assert!(add_up(&all, 5, 4096, 100).is_some());
    }

    #[test]
    fn our_own_children_are_seen() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        // a process that has just begun has no pages yet
        let seen = (0..10_000).any(|_| {
            std::thread::yield_now();
            usage(own).is_some_and(|u| u.processes >= 1 && u.rss > 0)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen, "{:?}", usage(own));
    }
}
