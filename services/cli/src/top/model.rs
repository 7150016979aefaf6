//! What is known: the figures of now, and enough of the past for a sparkline.

use std::collections::{HashMap, VecDeque};

use shipote_bus::workspaces::{FlowInfo, WorkspaceStats};

use super::beside::Beside;

/// Points of a sparkline.
pub(super) const POINTS: usize = 64;

/// What the workspaces are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Order {
    #[default]
    Memory,
    Cpu,
    Name,
}

impl Order {
    pub(super) fn name(self) -> &'static str {
        match self {
            Order::Memory => "memory",
            Order::Cpu => "processor time",
            Order::Name => "name",
        }
    }
}

/// A short past, oldest first.
pub(super) type Trail = VecDeque<u64>;

/// Everything that is drawn.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) order: Order,
    pub(super) beside: Beside,
    stats: Vec<WorkspaceStats>,
    flows: Vec<FlowInfo>,
    /// Processor time in tenths of a percent, by workspace.
    cpu: HashMap<String, Trail>,
    /// Bytes a second, by pipeline and edge.
    rates: HashMap<(String, u32), Trail>,
}

fn push(trail: &mut Trail, value: u64) {
    if trail.len() == POINTS {
        trail.pop_front();
    }
    trail.push_back(value);
}

fn tenths(percent: Option<f64>) -> u64 {
    (percent.unwrap_or_default().max(0.0) * 10.0) as u64
}

impl Model {
    pub(super) fn knows(&self, id: &str) -> bool {
        self.cpu.contains_key(id)
    }

    /// A workspace is seen for the first time: its past is what the service has sampled.
    pub(super) fn begin(&mut self, id: &str, samples: &[WorkspaceStats]) {
        let trail = self.cpu.entry(id.to_owned()).or_default();
        for sample in samples {
            push(trail, tenths(sample.cpu_percent));
        }
    }

    /// The figures of now; what is no more is forgotten.
    pub(super) fn take(&mut self, stats: Vec<WorkspaceStats>, flows: Vec<FlowInfo>) {
        self.cpu.retain(|id, _| stats.iter().any(|s| s.id == *id));
        for one in &stats {
            push(self.cpu.entry(one.id.clone()).or_default(), tenths(one.cpu_percent));
        }
        self.rates.retain(|key, _| flows.iter().any(|f| (&f.pipeline, f.edge) == (&key.0, key.1)));
        for flow in &flows {
            // an ended flow tells the mean of its life, which is no rate of now
            let now = if flow.state == "flowing" { flow.bytes_per_sec.max(0.0) as u64 } else { 0 };
            push(self.rates.entry((flow.pipeline.clone(), flow.edge)).or_default(), now);
        }
        (self.stats, self.flows) = (stats, flows);
    }

    pub(super) fn stats(&self) -> &[WorkspaceStats] {
        &self.stats
    }

    pub(super) fn flow_infos(&self) -> &[FlowInfo] {
        &self.flows
    }

    /// Workspaces in their order, with their past.
    pub(super) fn workspaces(&self) -> Vec<(&WorkspaceStats, &Trail)> {
        let mut all: Vec<_> = self.stats.iter().filter_map(|s| Some((s, self.cpu.get(&s.id)?))).collect();
        all.sort_by(|(a, _), (b, _)| {
            let by = match self.order {
                Order::Memory => b.memory_bytes.cmp(&a.memory_bytes),
                Order::Cpu => tenths(b.cpu_percent).cmp(&tenths(a.cpu_percent)),
                Order::Name => std::cmp::Ordering::Equal,
            };
            by.then_with(|| a.name.cmp(&b.name))
        });
        all
    }

    /// Flows in the service's order, with their past.
    pub(super) fn flows(&self) -> Vec<(&FlowInfo, &Trail)> {
        self.flows.iter().filter_map(|f| Some((f, self.rates.get(&(f.pipeline.clone(), f.edge))?))).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn stats(name: &str, memory: u64, cpu: f64) -> WorkspaceStats {
        WorkspaceStats {
            id: format!("id-{name}"),
            name: name.to_owned(),
            commands_alive: 2,
            memory_bytes: Some(memory),
            cpu_percent: Some(cpu),
            uptime_ms: 61_000,
            source: "cgroup".to_owned(),
            ..WorkspaceStats::default()
        }
    }

    pub(in super::super) fn flow(edge: u32, rate: f64, state: &str) -> FlowInfo {
        FlowInfo {
            edge,
            pipeline: "01P".to_owned(),
            from: "list".to_owned(),
            from_output: "stdout".to_owned(),
            to: "sort".to_owned(),
            to_input: "stdin".to_owned(),
            ty: "Primitive { name: \"text\" }".to_owned(),
            mime: "text/plain".to_owned(),
            lens: String::new(),
            confidence: 0.5,
            bytes_total: 5 << 20,
            bytes_per_sec: rate,
            socket: "/s".to_owned(),
            subscribers: 1,
            dropped: 0,
            lost_bytes: 0,
            cut_off: Vec::new(),
            state: state.to_owned(),
        }
    }

    #[test]
    fn what_ends_is_forgotten_and_what_is_new_brings_its_past() {
        let mut model = Model::default();
        model.begin("id-a", &[stats("a", 1, 1.0), stats("a", 1, 2.0)]);
        model.take(vec![stats("a", 1, 3.0), stats("b", 9, 0.0)], vec![flow(0, 10.0, "flowing")]);
        assert_eq!(model.workspaces().iter().map(|(s, _)| s.name.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(model.workspaces()[1].1, &[10, 20, 30]);
        model.order = Order::Cpu;
        assert_eq!(model.workspaces()[0].0.name, "a");
        model.take(vec![stats("b", 9, 0.0)], vec![flow(0, 99.0, "ended")]);
        assert!(!model.knows("id-a") && model.knows("id-b"));
        assert_eq!(model.flows()[0].1, &[10, 0]);
        model.take(vec![], vec![]);
        assert!(model.workspaces().is_empty() && model.flows().is_empty());
    }

    #[test]
    fn a_trail_is_bounded() {
        let mut model = Model::default();
        for n in 0..POINTS + 9 {
            model.take(vec![stats("a", 1, n as f64)], vec![]);
        }
        let trail = model.workspaces()[0].1;
        assert_eq!((trail.len(), trail.front()), (POINTS, Some(&90)));
    }
}
