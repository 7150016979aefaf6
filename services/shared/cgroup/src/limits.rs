//! Limits, and the files that set them.

use crate::{Controller, Controllers};

/// What a group may use. Absent: as the group above it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// `memory.max`: bytes of memory, file cache and kernel memory included. Swap is forbidden with it, or it would be
    /// no limit.
    pub memory_max: Option<u64>,
    /// `memory.high`: bytes from which on the group is slowed down and its memory reclaimed.
    pub memory_high: Option<u64>,
    /// `pids.max`: processes and threads.
    pub pids_max: Option<u64>,
    /// `cpu.max`: processor time, in percent of one processor.
    pub cpu_max: Option<u32>,
    /// `cpu.weight`: 1 to 10,000; 100 where absent.
    pub cpu_weight: Option<u32>,
    /// `io.weight`: 1 to 10,000; 100 where absent.
    pub io_weight: Option<u32>,
    /// `io.max`: bytes and operations a second, by device.
    pub io_max: Vec<IoLimit>,
    /// `cpuset.cpus`: processors by number; empty: all.
    pub cpus: Vec<u32>,
    /// `memory.oom.group`: where memory runs out, all processes of the group are ended together.
    pub oom_group: bool,
}

/// `io.max` of one device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IoLimit {
    /// Major and minor number of a whole disk.
    pub device: (u32, u32),
    /// Bytes read a second.
    pub rbps: Option<u64>,
    /// Bytes written a second.
    pub wbps: Option<u64>,
    /// Reads a second.
    pub riops: Option<u64>,
    /// Writes a second.
    pub wiops: Option<u64>,
}

/// A limit that was asked for and that this host cannot set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unmet {
    /// Field of [`Limits`].
    pub limit: &'static str,
    /// What is lacking.
    pub controller: Controller,
}

/// One write.
pub(crate) struct Setting {
    pub(crate) file: &'static str,
    pub(crate) value: String,
    pub(crate) controller: Controller,
    /// Field of [`Limits`]; empty where it only goes with another.
    pub(crate) name: &'static str,
}

/// `cpu.max` counts in periods of this length, microseconds; the kernel's default.
const PERIOD: u64 = 100_000;

impl Limits {
    /// What is asked for and cannot be set with these controllers.
    #[must_use]
    pub fn unmet(&self, available: Controllers) -> Vec<Unmet> {
        // a setting without a name goes with another that is told
        let all = self.settings().into_iter().filter(|s| !available.has(s.controller) && !s.name.is_empty());
        all.map(|s| Unmet { limit: s.name, controller: s.controller }).collect()
    }

    pub(crate) fn settings(&self) -> Vec<Setting> {
        use Controller::{Cpu, Cpuset, Io, Memory, Pids};
        let mut all = Vec::new();
        let mut set = |file, value: Option<String>, controller, name| {
            all.extend(value.map(|value| Setting { file, value, controller, name }));
        };
        let text = |number: Option<u64>| number.map(|n| n.to_string());
        set("memory.max", text(self.memory_max), Memory, "memory_max");
        set("memory.swap.max", self.memory_max.map(|_| "0".to_owned()), Memory, "");
        set("memory.oom.group", self.oom_group.then(|| "1".to_owned()), Memory, "");
        set("memory.high", text(self.memory_high), Memory, "memory_high");
        set("pids.max", text(self.pids_max), Pids, "pids_max");
        let quota = self.cpu_max.map(|percent| format!("{} {PERIOD}", u64::from(percent) * PERIOD / 100));
        set("cpu.max", quota, Cpu, "cpu_max");
        set("cpu.weight", text(self.cpu_weight.map(u64::from)), Cpu, "cpu_weight");
        set("io.weight", self.io_weight.map(|w| format!("default {w}")), Io, "io_weight");
        for limit in &self.io_max {
            set("io.max", Some(limit.text()), Io, "io_max");
        }
        let list = self.cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        set("cpuset.cpus", (!self.cpus.is_empty()).then_some(list), Cpuset, "cpu_affinity");
        all
    }
}

impl IoLimit {
    fn text(&self) -> String {
        let mut text = format!("{}:{}", self.device.0, self.device.1);
        for (name, value) in [("rbps", self.rbps), ("wbps", self.wbps), ("riops", self.riops), ("wiops", self.wiops)] {
            if let Some(value) = value {
                text.push_str(&format!(" {name}={value}"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written() {
        let limits = Limits {
            memory_max: Some(64 << 20),
            pids_max: Some(32),
            cpu_max: Some(150),
            cpu_weight: Some(50),
            io_weight: Some(10),
            io_max: vec![IoLimit { device: (259, 0), wbps: Some(1000), riops: Some(5), ..IoLimit::default() }],
            cpus: vec![0, 2],
            ..Limits::default()
        };
        let written: Vec<(&str, String)> = limits.settings().into_iter().map(|s| (s.file, s.value)).collect();
        let want = [
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("pids.max", "32"),
            ("cpu.max", "150000 100000"),
            ("cpu.weight", "50"),
            ("io.weight", "default 10"),
            ("io.max", "259:0 wbps=1000 riops=5"),
            ("cpuset.cpus", "0,2"),
        ];
        assert_eq!(written, want.map(|(file, value)| (file, value.to_owned())));
        assert!(Limits::default().settings().is_empty());
    }
}
