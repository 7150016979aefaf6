//! Whether a running machine does what it is for: a command in it that succeeds, or a port that somebody listens on.
//!
//! ```text
//!   starting ──success──▶ healthy ──`failures` in a row──▶ unhealthy
//!      │                     ▲                                │
//!      │                     └────────────success─────────────┘
//!      └── `failures` in a row, once `start_s` is over ──▶ unhealthy
//! ```
//!
//! Not for: what comes of it; the actor shows it, and has an unhealthy machine started anew where its spec says so.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shipote_agent_protocol::{AgentRequest, AgentResponse, Reach};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};

use crate::guest::Guest;

/// How it is found out: by `command` or by `port`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Check {
    /// A command in the machine's own root; its exit status 0 is a success.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// A TCP port on the machine's loopback; that it takes a connection is a success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Seconds between two trials, 1 to 86,400.
    #[serde(deserialize_with = "shipote_units::seconds")]
    pub interval_s: u32,
    /// Seconds that a trial may take, 1 to 60.
    #[serde(deserialize_with = "shipote_units::seconds")]
    pub timeout_s: u32,
    /// Failures in a row that make it unhealthy, 1 to 100.
    pub failures: u32,
    /// Seconds after the start in which failures don't count, 0 to 86,400; the first success ends them.
    #[serde(deserialize_with = "shipote_units::seconds")]
    pub start_s: u32,
}

impl Default for Check {
    fn default() -> Self {
        Self { command: vec![], port: None, interval_s: 30, timeout_s: 5, failures: 3, start_s: 60 }
    }
}

impl Check {
    /// What is wrong with it.
    ///
    /// # Errors
    /// The key, and what to give.
    pub fn check(&self) -> Result<(), String> {
        if self.command.is_empty() == self.port.is_none() || self.port == Some(0) {
            return Err("health: give either `command` or `port`".to_owned());
        }
        for (key, value, range) in [
            ("interval_s", self.interval_s, 1..=86_400),
            ("timeout_s", self.timeout_s, 1..=60),
            ("failures", self.failures, 1..=100),
            ("start_s", self.start_s, 0..=86_400),
        ] {
            if !range.contains(&value) {
                return Err(format!("health: {key} = {value}: give {} to {}", range.start(), range.end()));
            }
        }
        Ok(())
    }
}

/// How a machine does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It has not succeeded yet.
    Starting,
    /// It does what it is for.
    Healthy,
    /// It doesn't; why.
    Unhealthy(String),
}

impl Health {
    /// The word for it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy(_) => "unhealthy",
        }
    }

    /// Why it is unhealthy; empty otherwise.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Unhealthy(reason) => reason,
            _ => "",
        }
    }
}

/// What trials add up to.
struct Tally<'a> {
    check: &'a Check,
    health: Health,
    failures: u32,
    began: Instant,
}

impl Tally<'_> {
    /// Takes in a trial; the machine's health where it changed.
    fn take(&mut self, trial: Result<(), String>, now: Instant) -> Option<Health> {
        let health = match trial {
            Ok(()) => {
                self.failures = 0;
                Health::Healthy
            }
            Err(_) if self.health == Health::Starting && now < self.began + seconds(self.check.start_s) => return None,
            Err(reason) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures < self.check.failures {
                    return None;
                }
                Health::Unhealthy(format!(
                    "{reason} ({} in a row)",
                    shipote_bus::words::counted(self.check.failures, "time")
                ))
            }
        };
        let changed = health.as_str() != self.health.as_str();
        if changed {
            self.health = health.clone();
        }
        changed.then_some(health)
    }
}

/// Tries again and again, and tells of changes, for as long as somebody hears them. A machine that stands still is not
/// tried.
pub(crate) async fn watch(guest: Guest, check: Check, paused: watch::Receiver<bool>, changes: mpsc::Sender<Health>) {
    let mut tally = Tally { check: &check, health: Health::Starting, failures: 0, began: Instant::now() };
    let mut ticks = tokio::time::interval(seconds(check.interval_s));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut paused = paused;
    loop {
        ticks.tick().await;
        if *paused.borrow_and_update() {
            continue;
        }
        let trial = tokio::time::timeout(seconds(check.timeout_s), attempt(&guest, &check)).await;
        let trial = trial.unwrap_or_else(|_| Err(format!("no success within {} s", check.timeout_s)));
        // What stood still meanwhile could not answer.
        if paused.has_changed().unwrap_or(true) {
            continue;
        }
        if let Some(health) = tally.take(trial, Instant::now())
            && changes.send(health).await.is_err()
        {
            return;
        }
    }
}

async fn attempt(guest: &Guest, check: &Check) -> Result<(), String> {
    if let Some(port) = check.port {
        return guest.reach(&Reach::Tcp { port }).await.map(drop).map_err(|error| error.to_string());
    }
    // What it prints is nobody's business, and would have no bound.
    let quiet = ["/bin/sh", "-c", "exec \"$@\" >/dev/null 2>&1", "sh"];
    let request = AgentRequest::VmExec {
        command: quiet.into_iter().map(str::to_owned).chain(check.command.iter().cloned()).collect(),
        env: vec![],
        workdir: None,
        timeout_ms: Some(u64::from(check.timeout_s) * 1000),
        interactive: false,
        tty: false,
        background: false,
    };
    let name = check.command.first().map_or("", String::as_str);
    match guest.ask_within(&request, seconds(check.timeout_s)).await.map_err(|error| error.to_string())? {
        AgentResponse::Completed { exit_code: 0, .. } => Ok(()),
        AgentResponse::Completed { exit_code, .. } => Err(format!("{name} ended with {exit_code}")),
        AgentResponse::Error { .. } => Err(format!("{name} could not be run")),
        _ => Err("its agent answers with something else".to_owned()),
    }
}

fn seconds(count: u32) -> Duration {
    Duration::from_secs(count.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_count_once_the_start_is_over() {
        let check = Check { port: Some(1), failures: 2, start_s: 60, ..Check::default() };
        let began = Instant::now();
        let mut tally = Tally { check: &check, health: Health::Starting, failures: 0, began };
        let (soon, late) = (began + seconds(59), began + seconds(61));
        let no = || Err("no".to_owned());
        for _ in 0..5 {
            assert_eq!(tally.take(no(), soon), None, "it is still starting");
        }
        assert_eq!(tally.take(no(), late), None);
        assert_eq!(tally.take(no(), late), Some(Health::Unhealthy("no (2 times in a row)".to_owned())));
        assert_eq!(tally.take(no(), late), None, "told once");
        assert_eq!(tally.take(Ok(()), late), Some(Health::Healthy));
        assert_eq!(tally.take(no(), soon), None);
        assert_eq!(tally.take(Ok(()), late), None, "the row is broken");
        assert_eq!(tally.take(no(), soon), None);
        assert_eq!(
            tally.take(no(), soon).map(|health| health.as_str()),
            Some("unhealthy"),
            "a success ended the start"
        );
    }

    #[test]
    fn one_kind_of_check_with_figures_that_make_sense() {
        let good = Check { port: Some(80), ..Check::default() };
        assert_eq!(good.check(), Ok(()));
        for (bad, word) in [
            (Check::default(), "either"),
            (Check { command: vec!["true".into()], ..good.clone() }, "either"),
            (Check { port: Some(0), ..good.clone() }, "either"),
            (Check { interval_s: 0, ..good.clone() }, "interval_s = 0"),
            (Check { timeout_s: 61, ..good.clone() }, "timeout_s = 61"),
            (Check { failures: 0, ..good.clone() }, "failures = 0"),
            (Check { start_s: 86_401, ..good.clone() }, "start_s"),
        ] {
            assert!(bad.check().unwrap_err().contains(word), "{bad:?}");
        }
    }
}
