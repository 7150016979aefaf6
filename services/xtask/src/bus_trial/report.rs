//! What happened: counts, faults, delays; as a table and as JSON.

use std::{collections::BTreeMap, fmt, sync::Mutex, time::Duration};

use serde::Serialize;

use super::{Args, sample::Sample};

/// Counts and faults, written to by every part of the trial.
#[derive(Default)]
pub(super) struct Ledger {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    counts: BTreeMap<&'static str, u64>,
    faults: BTreeMap<&'static str, Fault>,
    notes: BTreeMap<&'static str, String>,
    /// Microseconds of each echoed call, apart for the time in which a client stalls.
    calm: Vec<u32>,
    stalled: Vec<u32>,
    stalling: bool,
}

/// One kind of failed check.
#[derive(Clone, Debug, Serialize)]
struct Fault {
    count: u64,
    example: String,
}

impl Ledger {
    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub(super) fn count(&self, what: &'static str, by: u64) {
        self.with(|i| *i.counts.entry(what).or_default() += by);
    }

    pub(super) fn fault(&self, what: &'static str, example: impl fmt::Display) {
        self.with(|i| {
            let fault = i.faults.entry(what).or_insert_with(|| Fault { count: 0, example: example.to_string() });
            fault.count += 1;
        });
    }

    /// Counts `what`, or a fault of the same name.
    pub(super) fn check<T, E: fmt::Display>(&self, what: &'static str, outcome: Result<T, E>) -> Option<T> {
        match outcome {
            Ok(value) => {
                self.count(what, 1);
                Some(value)
            }
            Err(error) => {
                self.fault(what, format_args!("{error:#}"));
                None
            }
        }
    }

    /// A finding that is no fault.
    pub(super) fn note(&self, what: &'static str, text: impl Into<String>) {
        self.with(|i| i.notes.insert(what, text.into()));
    }

    pub(super) fn delay(&self, delay: Duration) {
        let micros = u32::try_from(delay.as_micros()).unwrap_or(u32::MAX);
        self.with(|i| if i.stalling { i.stalled.push(micros) } else { i.calm.push(micros) });
    }

    /// From here on (until told otherwise) a client stalls.
    pub(super) fn stalling(&self, stalling: bool) {
        self.with(|i| i.stalling = stalling);
    }

    #[cfg(test)]
    pub(super) fn has_faults(&self) -> bool {
        self.with(|i| !i.faults.is_empty())
    }

    pub(super) fn is_stalling(&self) -> bool {
        self.with(|i| i.stalling)
    }
}

/// Delays of method calls in microseconds.
#[derive(Debug, Serialize)]
struct Delays {
    median: u32,
    p99: u32,
    max: u32,
}

impl Delays {
    fn of(mut micros: Vec<u32>) -> Self {
        micros.sort_unstable();
        let at = |share: f64| {
            // Truncation is meant: the rank below.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let rank = ((micros.len() as f64) * share) as usize;
            micros.get(rank).or(micros.last()).copied().unwrap_or(0)
        };
        Self { median: at(0.5), p99: at(0.99), max: micros.last().copied().unwrap_or(0) }
    }
}

/// The outcome of a trial.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    bus: String,
    seconds: u64,
    pub(super) passed: bool,
    calls_per_second: u64,
    cpu_seconds: f64,
    delays: Delays,
    delays_while_a_client_stalls: Delays,
    counts: BTreeMap<&'static str, u64>,
    faults: BTreeMap<&'static str, Fault>,
    notes: BTreeMap<&'static str, String>,
    rss_first_kib: u64,
    rss_last_kib: u64,
    rss_peak_kib: u64,
    descriptors_peak: usize,
    samples: Vec<Sample>,
}

impl Report {
    pub(super) fn new(bus: String, args: &Args, ledger: &Ledger, samples: &[Sample]) -> Self {
        ledger.with(|i| {
            let (first, last) = super::sample::ends(samples);
            Self {
                bus,
                seconds: args.seconds,
                passed: i.faults.is_empty(),
                calls_per_second: i.counts.get("calls").copied().unwrap_or(0) / args.seconds.max(1),
                cpu_seconds: samples.last().map_or(0.0, |s| s.cpu_seconds),
                delays: Delays::of(i.calm.clone()),
                delays_while_a_client_stalls: Delays::of(i.stalled.clone()),
                counts: i.counts.clone(),
                faults: i.faults.clone(),
                notes: i.notes.clone(),
                rss_first_kib: first,
                rss_last_kib: last,
                rss_peak_kib: samples.iter().map(|s| s.rss_kib).max().unwrap_or(0),
                descriptors_peak: samples.iter().map(|s| s.descriptors).max().unwrap_or(0),
                samples: samples.to_vec(),
            }
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} for {} s: {}", self.bus, self.seconds, if self.passed { "passed" } else { "FAILED" })?;
        writeln!(f, "  calls a second           {:>10}", self.calls_per_second)?;
        writeln!(f, "  CPU seconds of the bus   {:>10.1}", self.cpu_seconds)?;
        for (name, d) in [("delay", &self.delays), ("delay beside a stall", &self.delays_while_a_client_stalls)] {
            writeln!(f, "  {name:<24} {:>10} µs median {:>8} p99 {:>8} max", d.median, d.p99, d.max)?;
        }
        writeln!(
            f,
            "  RSS KiB                  {:>10} at first {:>8} at last {:>8} peak",
            self.rss_first_kib, self.rss_last_kib, self.rss_peak_kib
        )?;
        writeln!(f, "  descriptors, peak        {:>10}", self.descriptors_peak)?;
        for (what, count) in &self.counts {
            writeln!(f, "  {what:<46} {count:>10}")?;
        }
        for (what, text) in &self.notes {
            writeln!(f, "  note: {what}: {text}")?;
        }
        for (what, fault) in &self.faults {
            writeln!(f, "  FAULT: {what} ({} times), e.g. {}", fault.count, fault.example)?;
        }
        Ok(())
    }
}
