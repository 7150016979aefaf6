//! One look at a workspace, and what it says beside the one before.

use shipote_cgroup::{Events, Figures};

use super::proc::Usage;
use crate::state::Usec;

/// Looks closer together say nothing of a rate.
const APART: u64 = 100_000;

/// What a workspace used at one moment, small enough to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Sample {
    /// When, microseconds since the epoch.
    pub(crate) at: Usec,
    pub(crate) uptime_ms: u64,
    pub(crate) commands_alive: u32,
    pub(crate) commands_total: u32,
    /// The memory is a control group's; else it is what is resident, from `/proc`.
    pub(crate) cgroup: bool,
    /// Bytes.
    pub(crate) memory: Option<u64>,
    /// Most bytes so far.
    pub(crate) memory_peak: Option<u64>,
    /// Processor time, microseconds.
    pub(crate) cpu_usec: Option<u64>,
    /// Of one processor, since the sample before.
    pub(crate) cpu_percent: Option<f32>,
    /// Bytes from and to block devices.
    pub(crate) io: Option<(u64, u64)>,
    /// Processes and threads; from `/proc` processes only.
    pub(crate) pids: Option<u64>,
}

/// What was read of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Reading {
    pub(crate) figures: Figures,
    pub(crate) events: Events,
    pub(super) usage: Option<Usage>,
}

/// What the state knows of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counted {
    pub(crate) created: Usec,
    pub(crate) commands_alive: u32,
    pub(crate) commands_total: u32,
}

impl Sample {
    /// Where its memory comes from.
    pub(crate) fn source(&self) -> &'static str {
        if self.cgroup { "cgroup" } else { "proc" }
    }

    /// From a reading; `earlier` are the samples before, oldest first.
    pub(super) fn new<'s>(
        at: Usec,
        counted: Counted,
        reading: &Reading,
        earlier: impl DoubleEndedIterator<Item = &'s Sample> + Clone,
    ) -> Self {
        let Reading { figures, usage, .. } = reading;
        let cgroup = figures.memory.is_some();
        let memory = figures.memory.or(usage.map(|u| u.rss));
        let before = earlier.clone().next_back().and_then(|s| s.memory_peak);
        // the first process is not the workspace's
        let pids = figures.pids.map(|n| n.saturating_sub(1)).or(usage.map(|u| u.processes));
        let cpu_usec = figures.cpu_usec.or(usage.map(|u| u.cpu_usec));
        let last = earlier.rev().find(|s| at.saturating_sub(s.at) >= APART);
        let percent = |last: &Sample| {
            let (now, then) = (cpu_usec?, last.cpu_usec?);
            Some(now.saturating_sub(then) as f32 * 100.0 / at.saturating_sub(last.at) as f32)
        };
        Sample {
            at,
            uptime_ms: at.saturating_sub(counted.created) / 1000,
            commands_alive: counted.commands_alive,
            commands_total: counted.commands_total,
            cgroup,
            memory,
            memory_peak: figures.memory_peak.or(memory.into_iter().chain(before).max()),
            cpu_usec,
            cpu_percent: last.and_then(percent),
            io: figures.io.map(|io| (io.rbytes, io.wbytes)),
            pids,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_stands_beside_the_one_before() {
        let counted = Counted { created: 1_000_000, commands_alive: 1, commands_total: 3 };
        let reading =
            |rss, cpu_usec| Reading { usage: Some(Usage { rss, cpu_usec, processes: 2 }), ..Reading::default() };
        let first = Sample::new(3_000_000, counted, &reading(500, 100_000), [].iter());
        assert_eq!((first.uptime_ms, first.cpu_percent, first.memory_peak), (2000, None, Some(500)));
        let second = Sample::new(5_000_000, counted, &reading(400, 1_100_000), [first].iter());
        assert_eq!((second.cpu_percent, second.memory, second.memory_peak), (Some(50.0), Some(400), Some(500)));
        assert!(!second.cgroup && second.pids == Some(2));
        // too close to the last one: the one before counts
        let third = Sample::new(5_000_001, counted, &reading(1, 1_100_000), [first, second].iter());
        assert_eq!(third.cpu_percent, Some(1_000_000.0 * 100.0 / 2_000_001.0));
        assert_eq!(third.memory_peak, Some(500));
    }

    #[test]
    fn the_groups_own_figures_come_first() {
        let figures = Figures { memory: Some(7), memory_peak: Some(9), pids: Some(4), ..Figures::default() };
        let reading = Reading { figures, usage: Some(Usage { rss: 1, ..Usage::default() }), ..Reading::default() };
        let sample = Sample::new(1, Counted::default(), &reading, [].iter());
        assert!(sample.cgroup);
        assert_eq!((sample.memory, sample.memory_peak, sample.pids), (Some(7), Some(9), Some(3)));
        // counted by /proc where the group cannot
        assert_eq!(sample.cpu_usec, Some(0));
    }
}
