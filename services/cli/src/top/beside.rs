//! What there is beside workspaces and flows: machines, and ways out. Each is a service's that may be away, which is said
//! and keeps nothing else from being shown.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use shipote_bus::machines::{MachineInfo, MachinesProxy};
use shipote_bus::proxy::{EgressInfo, ManagerProxy as ProxyProxy};
use shipote_bus::workspaces::WorkspaceInfo;
use zbus::proxy::CacheProperties;

use crate::figures::{bytes, percent};
use crate::output;

/// A machine, with what its processes take.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) info: MachineInfo,
    pub(super) memory_bytes: u64,
    pub(super) cpu_percent: Option<f64>,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Beside {
    pub(super) machines: Vec<Machine>,
    pub(super) ways: Vec<EgressInfo>,
    /// Workspaces that sleep, and those that are sessions: what is said behind the name.
    marks: HashMap<String, String>,
    /// What could not be asked for, and why.
    pub(super) notes: Vec<String>,
}

impl Beside {
    /// What is said behind a workspace's name.
    pub(super) fn mark(&self, id: &str) -> &str {
        self.marks.get(id).map_or("", String::as_str)
    }

    /// Takes over what the workspaces are like.
    pub(super) fn mark_all(&mut self, workspaces: &[WorkspaceInfo]) {
        let marks = workspaces.iter().filter_map(|one| {
            let session = one.labels.get("session").map(|from| format!("session {from}"));
            let asleep = (one.state == "sleeping").then(|| "sleeps".to_owned());
            let words: Vec<String> = session.into_iter().chain(asleep).collect();
            (!words.is_empty()).then(|| (one.id.clone(), format!(" ({})", words.join(", "))))
        });
        self.marks = marks.collect();
    }
}

/// Whom to ask.
pub(super) struct Others {
    machines: MachinesProxy<'static>,
    proxy: ProxyProxy<'static>,
    /// Processor time of each machine when it was asked for last.
    before: HashMap<String, (Instant, u64)>,
}

impl Others {
    pub(super) async fn new(connection: &zbus::Connection) -> anyhow::Result<Self> {
        let no = CacheProperties::No;
        Ok(Self {
            machines: MachinesProxy::builder(connection).cache_properties(no).build().await?,
            proxy: ProxyProxy::builder(connection).cache_properties(no).build().await?,
            before: HashMap::new(),
        })
    }

    /// Asks for everything once.
    pub(super) async fn look(&mut self) -> Beside {
        let mut beside = Beside::default();
        match self.machines.list(BTreeMap::new()).await {
            Ok(all) => {
                for info in all {
                    beside.machines.push(self.machine(info).await);
                }
            }
            Err(error) => beside.notes.push(format!("machines: {}", crate::machine::refusal(&error))),
        }
        match self.proxy.list_egress(BTreeMap::new()).await {
            Ok(ways) => beside.ways = ways,
            Err(error) => beside.notes.push(format!("ways out: {}", crate::proxy::ask::refusal(&error))),
        }
        self.before.retain(|name, _| beside.machines.iter().any(|machine| machine.info.name == *name));
        beside
    }

    async fn machine(&mut self, info: MachineInfo) -> Machine {
        // It may be gone by now; then it is shown without.
        let details = self.machines.inspect(&info.name, BTreeMap::new()).await.ok().filter(|of| !of.pids.is_empty());
        let Some(details) = details else {
            self.before.remove(&info.name);
            return Machine { info, memory_bytes: 0, cpu_percent: None };
        };
        let now = Instant::now();
        let before = self.before.insert(info.name.clone(), (now, details.cpu_usec));
        let share = |(then, cpu): (Instant, u64)| {
            let passed = now.duration_since(then).as_secs_f64() * 10_000.0;
            details.cpu_usec.saturating_sub(cpu) as f64 / passed.max(1.0)
        };
        Machine { info, memory_bytes: details.memory_bytes, cpu_percent: before.map(share) }
    }
}

/// Heads of the lines below.
pub(super) const MACHINES: &str =
    "MACHINE                   STATE         MEMORY    CPU   SLEPT  GIVEN BACK      WOKEN IN";
pub(super) const WAYS: &str = "WAY OUT OF                                                   OPEN    ALLOWED     DENIED";

/// A machine as a line.
pub(super) fn machine(machine: &Machine) -> String {
    let Machine { info, memory_bytes, cpu_percent } = machine;
    let memory = (*memory_bytes > 0).then_some(*memory_bytes);
    let (given_back, woken) = match info.sleeps {
        0 => ("-".to_owned(), "-".to_owned()),
        _ => (output::bytes(info.memory_given_back as f64), format!("{} ms", info.wake_usec / 1000)),
    };
    format!(
        "{} {:<10}{:>10} {:>6} {:>7} {given_back:>11} {woken:>13}",
        super::view::fit(&info.name, 25),
        info.state,
        bytes(memory),
        percent(*cpu_percent),
        info.sleeps,
    )
}

/// A way out as a line.
pub(super) fn way(way: &EgressInfo) -> String {
    let EgressInfo { client, open, allowed, denied, .. } = way;
    format!("{} {open:>10} {allowed:>10} {denied:>10}", super::view::fit(client, 54))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn info(name: &str, state: &str, sleeps: u64) -> MachineInfo {
        MachineInfo {
            name: name.to_owned(),
            state: state.to_owned(),
            reason: String::new(),
            memory_mib: 128,
            memory_target_mib: 128,
            cpus: 1,
            disk_mib: 0,
            publish: vec![],
            health: String::new(),
            health_reason: String::new(),
            expires_unix: 0,
            labels: BTreeMap::new(),
            idle_s: 60,
            sleeps,
            wake_usec: 1_234_567,
            memory_given_back: 96 << 20,
        }
    }

    #[test]
    fn lines_stand_below_their_heads() {
        let one = |info, memory_bytes, cpu_percent| machine(&Machine { info, memory_bytes, cpu_percent });
        let line = one(info("db", "sleeping", 3), 0, None);
        assert_eq!(line, "db                        sleeping           -      -       3    96.0 MiB       1234 ms");
        let line = one(info("web", "running", 0), 150 << 20, Some(12.0));
        assert_eq!(line, "web                       running    150.0 MiB    12%       0           -             -");
        assert_eq!(line.len(), MACHINES.len());
        let of = EgressInfo {
            client: "workspace:web".to_owned(),
            socket: String::new(),
            listen: String::new(),
            allow: vec![],
            allowed: 7,
            denied: 2,
            open: 1,
            denials: vec![],
        };
        assert_eq!(way(&of).len(), WAYS.len());
    }

    #[test]
    fn sleepers_and_sessions_are_marked() {
        let workspace = |id: &str, state: &str, session: Option<&str>| WorkspaceInfo {
            id: id.to_owned(),
            name: id.to_owned(),
            state: state.to_owned(),
            commands: 0,
            created: 0,
            uptime_ms: 0,
            uid: 0,
            ephemeral: false,
            sleeps: None,
            wake_usec: None,
            given_back: None,
            labels: session.map(|from| ("session".to_owned(), from.to_owned())).into_iter().collect(),
        };
        let mut beside = Beside::default();
        beside.mark_all(&[
            workspace("a", "running", None),
            workspace("b", "sleeping", None),
            workspace("c", "sleeping", Some("python")),
        ]);
        assert_eq!(["a", "b", "c"].map(|id| beside.mark(id)), ["", " (sleeps)", " (session python, sleeps)"]);
    }
}
