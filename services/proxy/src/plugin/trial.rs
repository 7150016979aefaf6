//! A canary: another version of a plugin that gets a share of its calls, and loses it when it fails.
//!
//! ```text
//!   on trial ── too many failures, or too slow, or not to be linked ──▶ failed: no call any more, the registry is told
//! ```
//! Every call that the canary breaks is made again with the version at work, so that a trial costs no request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use shipote_bus::plugins::WHOLE;
use shipote_bus::proxy::PoolInfo;
use shipote_plugin_abi::policy::CanaryPolicy;
use tokio::sync::mpsc::UnboundedSender;

use super::latency::Latencies;
use super::{PluginCanary, Site};

/// Calls between two looks at the latency: a look adds up all counts.
const LOOKS: u64 = 64;
/// Percentile that is compared: a single slow call in a hundred says little.
const PERCENTILE: u64 = 95;

/// A canary that failed; told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanaryFailed {
    /// The plugin.
    pub plugin: String,
    /// When the registry began the trial, microseconds since the epoch.
    pub since: u64,
    /// How it failed.
    pub reason: String,
}

/// All call sites of a plugin together, for the time of one canary.
pub(crate) struct Trial {
    plugin: String,
    since: u64,
    digest: String,
    /// The digest of the version that it is compared with.
    against: String,
    rules: CanaryPolicy,
    failed: AtomicBool,
    failures: AtomicU64,
    /// Of the canary.
    times: Latencies,
    /// Of the version at work meanwhile.
    usual: Latencies,
    tell: UnboundedSender<CanaryFailed>,
}

impl Trial {
    pub(super) fn new(
        plugin: &str,
        against: &str,
        canary: &PluginCanary,
        tell: UnboundedSender<CanaryFailed>,
    ) -> Arc<Self> {
        Arc::new(Self {
            plugin: plugin.to_owned(),
            since: canary.since,
            digest: canary.digest.clone(),
            against: against.to_owned(),
            rules: canary.rules.clone(),
            failed: AtomicBool::new(false),
            failures: AtomicU64::new(0),
            times: Latencies::default(),
            usual: Latencies::default(),
            tell,
        })
    }

    /// Whether this is the trial of that canary against that version; its share may be another one.
    pub(super) fn is_still(&self, against: &str, canary: &PluginCanary) -> bool {
        (self.since, &self.digest, self.against.as_str(), &self.rules)
            == (canary.since, &canary.digest, against, &canary.rules)
    }

    /// Ends it; only the first reason counts.
    pub(crate) fn fail(&self, reason: String) {
        if !self.failed.swap(true, Relaxed) {
            tracing::warn!("the canary of plugin {} ({}) failed: {reason}", self.plugin, self.digest);
            let failed = CanaryFailed { plugin: self.plugin.clone(), since: self.since, reason };
            // Nobody listens where the engine is used without a registry.
            let _ = self.tell.send(failed);
        }
    }

    fn note(&self, is_canary: bool, took: Duration, broken: Option<&str>) {
        if !is_canary {
            return self.usual.add(took);
        }
        self.times.add(took);
        let calls = self.times.calls();
        let least = u64::from(self.rules.calls);
        if let Some(error) = broken {
            let failures = self.failures.fetch_add(1, Relaxed) + 1;
            let percent = u64::from(self.rules.failures_percent);
            if failures > calls.max(least) * percent / 100 {
                self.fail(format!(
                    "{failures} of {calls} calls failed (allowed: {percent} %), the last one with: {error}"
                ));
            }
        }
        if (calls == least || calls.is_multiple_of(LOOKS)) && calls >= least && self.usual.calls() >= least {
            let (ours, usual) = (self.times.percentile(PERCENTILE), self.usual.percentile(PERCENTILE));
            let percent = u64::from(self.rules.latency_percent);
            // A figure is known within a quarter: what is surely too slow ends the trial, not the rounding.
            let surely = self.times.percentile_at_least(PERCENTILE);
            if surely > usual * percent / 100 && surely > usual + u64::from(self.rules.latency_slack_us) * 1000 {
                let (ours, usual) = (ours / 1000, usual / 1000);
                self.fail(format!(
                    "{PERCENTILE} of 100 calls took up to {ours} µs, with the version at work {usual} µs (allowed: {percent} %)"
                ));
            }
        }
    }
}

impl std::fmt::Debug for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trial({} {})", self.plugin, self.digest)
    }
}

/// A place in the rules where a plugin is called.
#[derive(Debug)]
pub(crate) struct Place {
    /// The version at work.
    pub(crate) site: Arc<Site>,
    pub(crate) canary: Option<Canary>,
}

/// The other version at such a place.
#[derive(Debug)]
pub(crate) struct Canary {
    pub(crate) site: Arc<Site>,
    /// Hundredths of a percent.
    pub(crate) share: u32,
    pub(crate) trial: Arc<Trial>,
}

impl Place {
    /// Whom a call goes to that drew this number, which is one of all that there are with the same likelihood.
    pub(crate) fn turn(&self, drawn: u32) -> Turn<'_> {
        match &self.canary {
            Some(Canary { site, share, trial }) if !trial.failed.load(Relaxed) => {
                let is_canary = (u64::from(drawn) * u64::from(WHOLE)) >> 32 < u64::from(*share);
                let (site, spare) = if is_canary { (site, Some(&self.site)) } else { (&self.site, None) };
                Turn { site, spare, trial: Some(trial) }
            }
            _ => Turn { site: &self.site, spare: None, trial: None },
        }
    }

    /// Whether this site is called here, of either version.
    pub(super) fn has(&self, site: &Arc<Site>) -> bool {
        Arc::ptr_eq(&self.site, site) || self.canary.as_ref().is_some_and(|canary| Arc::ptr_eq(&canary.site, site))
    }

    /// What is known of each version at this place.
    pub(crate) fn infos(&self) -> impl Iterator<Item = PoolInfo> {
        let canary = self.canary.as_ref().map(|canary| {
            let share = if canary.trial.failed.load(Relaxed) { 0 } else { canary.share };
            canary.site.info(share)
        });
        let rest = WHOLE - canary.as_ref().map_or(0, |canary| canary.share);
        std::iter::once(self.site.info(rest)).chain(canary)
    }
}

/// Whom one call goes to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn<'p> {
    pub(crate) site: &'p Arc<Site>,
    /// Who is asked after a canary that broke.
    pub(crate) spare: Option<&'p Arc<Site>>,
    pub(super) trial: Option<&'p Arc<Trial>>,
}

impl<'p> Turn<'p> {
    /// Both who may be called.
    fn sites(self) -> impl Iterator<Item = &'p Site> {
        std::iter::once(self.site).chain(self.spare).map(|site| &**site)
    }

    /// Bytes of a body that have to be there, where one is needed.
    pub(crate) fn body(self, limit: impl Fn(&Site) -> u32) -> Option<u64> {
        self.sites().filter(|site| site.needs_body).map(|site| u64::from(limit(site))).max()
    }

    /// A call may take longer than a worker can wait.
    pub(crate) fn fetches(self) -> bool {
        self.sites().any(Site::fetches)
    }

    pub(super) fn note(self, took: Duration, broken: Option<&str>) {
        if let Some(trial) = self.trial {
            trial.note(self.spare.is_some(), took, broken);
        }
    }

    /// The same, to be taken elsewhere.
    pub(crate) fn apart(self) -> Apart {
        Apart { site: Arc::clone(self.site), spare: self.spare.cloned(), trial: self.trial.cloned() }
    }
}

/// A [`Turn`] for another thread.
#[derive(Debug)]
pub(crate) struct Apart {
    site: Arc<Site>,
    spare: Option<Arc<Site>>,
    trial: Option<Arc<Trial>>,
}

impl Apart {
    pub(crate) fn turn(&self) -> Turn<'_> {
        Turn { site: &self.site, spare: self.spare.as_ref(), trial: self.trial.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    fn trial(rules: CanaryPolicy) -> (Arc<Trial>, UnboundedReceiver<CanaryFailed>) {
        let (tell, told) = unbounded_channel();
        let canary = PluginCanary {
            version: "2.0.0".to_owned(),
            digest: "sha256:2".to_owned(),
            share: 500,
            since: 7,
            rules,
            code: Err(String::new()),
        };
        (Trial::new("edge", "sha256:1", &canary, tell), told)
    }

    #[test]
    fn failures_count_from_the_first_call_and_are_told_once() {
        let (trial, mut told) = trial(CanaryPolicy::default());
        trial.note(true, Duration::from_micros(1), Some("trapped"));
        assert!(told.try_recv().is_err(), "one of the first hundred is one percent");
        trial.note(true, Duration::from_micros(1), Some("trapped again"));
        trial.note(true, Duration::from_micros(1), Some("and again"));
        let failed = told.try_recv().unwrap();
        assert_eq!((failed.plugin.as_str(), failed.since), ("edge", 7));
        assert!(failed.reason.contains("2 of 2 calls") && failed.reason.contains("trapped again"), "{failed:?}");
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn it_may_be_a_little_slower_and_not_much() {
        for (us, fails) in [(100, false), (550, false), (2_000, true)] {
            let (trial, mut told) = trial(CanaryPolicy::default());
            for _ in 0..128 {
                trial.note(false, Duration::from_micros(100), None);
                trial.note(true, Duration::from_micros(us), None);
            }
            assert_eq!(told.try_recv().is_ok(), fails, "{us}");
        }
        // Without enough calls of the other one there is nothing to compare with.
        let (trial, mut told) = trial(CanaryPolicy::default());
        (0..500).for_each(|_| trial.note(true, Duration::from_secs(1), None));
        assert!(told.try_recv().is_err());
    }
}
