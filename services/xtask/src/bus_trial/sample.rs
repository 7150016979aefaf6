//! Memory, descriptors and CPU time of the bus, once a second, and what counts as growth.

use std::{fs, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::{sync::oneshot, task::JoinHandle};

use super::report::Ledger;

/// More than this over the trial is growth, and a fault (KiB).
const GROWTH_KIB: u64 = 2048;
/// A stalled client may make the bus hold this much more, and no more (KiB).
const BOUND_KIB: u64 = 128 * 1024;

/// The bus process at one moment.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    second: u64,
    pub(super) rss_kib: u64,
    pub(super) descriptors: usize,
    pub(super) cpu_seconds: f64,
    /// Whether a client stalls at that moment.
    stalled: bool,
}

/// Samples being taken.
pub(super) struct Sampler {
    stop: oneshot::Sender<()>,
    samples: Arc<std::sync::Mutex<Vec<Sample>>>,
    task: JoinHandle<()>,
}

impl Sampler {
    pub(super) fn finish(self) -> Vec<Sample> {
        let _ = self.stop.send(());
        self.task.abort();
        self.samples.lock().map(|s| s.clone()).unwrap_or_default()
    }
}

pub(super) fn start(pid: u32, ledger: Arc<Ledger>) -> Sampler {
    let (stop, mut stopped) = oneshot::channel();
    let samples = Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = samples.clone();
    let task = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        for second in 0.. {
            tokio::select! {
                _ = tick.tick() => {}
                _ = &mut stopped => return,
            }
            let Some(sample) = take(pid, second, ledger.is_stalling()) else {
                ledger.fault("the bus stays alive", format_args!("no process {pid} after {second} s"));
                return;
            };
            if let Ok(mut kept) = kept.lock() {
                kept.push(sample);
            }
        }
    });
    Sampler { stop, samples, task }
}

fn take(pid: u32, second: u64, stalled: bool) -> Option<Sample> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let rss = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc_pid_stat(5): utime and stime are fields 14 and 15; the command name before them may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(Sample {
        second,
        rss_kib: rss.trim().trim_end_matches(" kB").parse().ok()?,
        descriptors: descriptors(pid),
        cpu_seconds: ticks / 100.0,
        stalled,
    })
}

pub(super) fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// After the load, the bus must hold as many descriptors as before it.
pub(super) fn check_descriptors(ledger: &Ledger, pid: u32, before: usize) {
    let after = descriptors(pid);
    ledger.note("descriptors before and after", format!("{before} and {after}"));
    if after > before {
        ledger.fault("descriptors do not leak", format_args!("{before} before the load, {after} after"));
    }
}

/// Median memory of the second quarter (all parts have run by then) and of the last quarter.
pub(super) fn ends(samples: &[Sample]) -> (u64, u64) {
    let quarter = samples.len() / 4;
    let median = |part: &[Sample]| {
        let mut rss: Vec<u64> = part.iter().filter(|s| !s.stalled).map(|s| s.rss_kib).collect();
        rss.sort_unstable();
        rss.get(rss.len() / 2).copied().unwrap_or(0)
    };
    (median(&samples[quarter..quarter * 2]), median(&samples[quarter * 3..]))
}

pub(super) fn check_growth(ledger: &Ledger, samples: &[Sample]) {
    let (first, last) = ends(samples);
    if first == 0 || last == 0 {
        ledger.note("growth", "not judged: the trial was too short for two calm spells");
        return;
    }
    if last > first + GROWTH_KIB.max(first / 10) {
        ledger.fault("memory does not grow", format_args!("{first} KiB in the second quarter, {last} in the last"));
    }
    let peak = samples.iter().map(|s| s.rss_kib).max().unwrap_or(0);
    if peak > first + BOUND_KIB {
        ledger.fault("memory is bounded", format_args!("{first} KiB mostly, {peak} KiB at its peak"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rss: impl Fn(u64) -> u64) -> Vec<Sample> {
        let sample = |second| Sample {
            second,
            rss_kib: rss(second),
            descriptors: 10,
            cpu_seconds: 0.0,
            stalled: second % 10 == 0,
        };
        (0..100).map(sample).collect()
    }

    #[test]
    fn growth_is_a_fault() {
        type Memory = fn(u64) -> u64;
        let cases: [(&str, Memory, bool); 5] = [
            ("steady", |_| 10_000, false),
            ("grows at the start", |s| 10_000 + s.min(20) * 1_000, false),
            ("grows while a client stalls", |s| if s % 10 == 0 { 30_000 } else { 10_000 }, false),
            ("leaks", |s| 10_000 + s * 100, true),
            ("has no bound while a client stalls", |s| if s % 10 == 0 { 300_000 } else { 10_000 }, true),
        ];
        for (name, memory, fault) in cases {
            let ledger = Ledger::default();
            check_growth(&ledger, &samples(memory));
            assert_eq!(ledger.has_faults(), fault, "{name}");
        }
    }
}
