//! What a plugin can ask of the proxy.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use shipote_plugin_abi::host::{
    Host, HttpFetchRequest, HttpFetchResponse, LogField, LogLevel, MAX_METRIC_SERIES, MetricLabel, NetError,
};
use shipote_plugin_abi::policy::{HttpPolicy, Policy};
use wasmtime::{ResourceLimiter, bail};

use super::{Site, fetch};

/// Figures that plugins made, by series; at most [`MAX_METRIC_SERIES`] of each plugin.
#[derive(Debug, Default)]
pub(crate) struct Series {
    values: HashMap<String, i128>,
    warned: bool,
}

/// Behind one instance.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) plugin: String,
    pub(crate) args: String,
    pub(crate) memory: usize,
    pub(crate) series: Arc<Mutex<Series>>,
    policy: HttpPolicy,
    /// It runs where a worker's other connections would wait for a fetch.
    on_worker: bool,
    /// When the call began, and how much of the time since then it waited for others.
    began: Instant,
    waited: Duration,
}

/// Longest message of a plugin in the log, bytes.
const MESSAGE: usize = 4096;
/// How long one call may wait for all of its fetches together.
const WAITING: Duration = Duration::from_secs(60);
/// Entries of one table of an instance.
const TABLE: usize = 100_000;

impl State {
    pub(super) fn new(site: &Site) -> Self {
        Self {
            plugin: site.plugin.clone(),
            args: site.args.clone(),
            memory: usize::try_from(site.policy.memory_bytes).unwrap_or(usize::MAX),
            series: Arc::clone(&site.series),
            policy: site.policy.http.clone(),
            on_worker: !site.fetches(),
            began: Instant::now(),
            waited: Duration::ZERO,
        }
    }

    /// Behind a plugin that this call site's calls, under its own policy and without the site's configuration.
    pub(super) fn beside(site: &Site, plugin: &str, policy: &Policy) -> Self {
        Self {
            plugin: plugin.to_owned(),
            args: "{}".to_owned(),
            memory: usize::try_from(policy.memory_bytes).unwrap_or(usize::MAX),
            series: Arc::clone(&site.series),
            policy: policy.http.clone(),
            on_worker: !site.fetches(),
            began: Instant::now(),
            waited: Duration::ZERO,
        }
    }

    /// Behind an instance that is started when its call site is gone: nobody hears it.
    pub(super) fn nowhere(plugin: &str) -> Self {
        Self {
            plugin: plugin.to_owned(),
            args: "{}".to_owned(),
            memory: 0,
            series: Arc::default(),
            policy: HttpPolicy::default(),
            on_worker: true,
            began: Instant::now(),
            waited: Duration::ZERO,
        }
    }

    /// A call begins.
    pub(super) fn begin(&mut self) {
        (self.began, self.waited) = (Instant::now(), Duration::ZERO);
    }

    /// What is left of `deadline` (milliseconds of its own time, waiting not counted), rounded up; 0 when it passed.
    pub(super) fn left(&self, deadline: u64) -> u64 {
        if self.waited.is_zero() {
            return 0;
        }
        let own = self.began.elapsed().saturating_sub(self.waited);
        let left = Duration::from_millis(deadline).saturating_sub(own);
        u64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
    }

    fn measure(&self, name: &str, labels: &[MetricLabel], change: impl FnOnce(&mut i128)) {
        let mut key = name.to_owned();
        for label in labels {
            let _ = write!(key, "\u{1f}{}\u{1e}{}", label.key, label.value);
        }
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if series.values.len() >= MAX_METRIC_SERIES && !series.values.contains_key(&key) {
            if !series.warned {
                series.warned = true;
                tracing::warn!("plugin {}: more than {MAX_METRIC_SERIES} series; new ones are dropped", self.plugin);
            }
            return;
        }
        change(series.values.entry(key).or_insert(0));
    }
}

impl Host for State {
    fn args(&self) -> &str {
        &self.args
    }

    fn log(&mut self, level: LogLevel, message: String, fields: Vec<LogField>) {
        let mut text: String = message.chars().take(MESSAGE).collect();
        for field in fields.iter().take(32) {
            let _ = write!(text, " {}={:?}", field.key, field.value);
        }
        let plugin = &self.plugin;
        match level {
            LogLevel::Trace => tracing::trace!("plugin {plugin}: {text}"),
            LogLevel::Debug => tracing::debug!("plugin {plugin}: {text}"),
            LogLevel::Info => tracing::info!("plugin {plugin}: {text}"),
            LogLevel::Warn => tracing::warn!("plugin {plugin}: {text}"),
            LogLevel::Error => tracing::error!("plugin {plugin}: {text}"),
        }
    }

    fn random(&mut self, buffer: &mut [u8]) -> wasmtime::Result<()> {
        if rustls::crypto::ring::default_provider().secure_random.fill(buffer).is_err() {
            bail!("the system has no random numbers");
        }
        Ok(())
    }

    fn metric_counter(&mut self, name: String, delta: u64, labels: Vec<MetricLabel>) {
        self.measure(&name, &labels, |value| *value += i128::from(delta));
    }

    fn metric_gauge(&mut self, name: String, new: i64, labels: Vec<MetricLabel>) {
        self.measure(&name, &labels, |value| *value = i128::from(new));
    }

    fn http_fetch(&mut self, request: HttpFetchRequest) -> wasmtime::Result<Result<HttpFetchResponse, NetError>> {
        if self.policy.allowed_hosts.is_empty() {
            return Ok(Err(NetError::NotAllowed(request.url)));
        }
        if self.on_worker {
            let text = "http-fetch is for handlers of HTTP: those of connections run where others would wait for it";
            return Ok(Err(NetError::NotAllowed(text.to_owned())));
        }
        let most = WAITING.saturating_sub(self.waited);
        if most.is_zero() {
            return Ok(Err(NetError::Timeout));
        }
        let began = Instant::now();
        let result = fetch::fetch(&self.policy, &request, most);
        self.waited += began.elapsed();
        result.map_or_else(|malformed| bail!("{malformed}"), Ok)
    }
}

impl ResourceLimiter for State {
    fn memory_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= self.memory)
    }

    fn table_growing(&mut self, _: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetching(on_worker: bool) -> State {
        let policy = HttpPolicy { allowed_hosts: vec!["a.example".to_owned()], ..HttpPolicy::default() };
        State { policy, on_worker, ..State::nowhere("p") }
    }

    fn ask(state: &mut State) -> NetError {
        let request = HttpFetchRequest {
            method: "GET".to_owned(),
            url: "http://b.example/".to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            timeout_ms: Some(u32::MAX),
            follow_redirects: None,
            verify_tls: None,
        };
        state.http_fetch(request).unwrap().unwrap_err()
    }

    fn ago(seconds: u64) -> Instant {
        Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap()
    }

    #[test]
    fn fetches_that_take_no_time_buy_none() {
        let mut state = fetching(false);
        state.begin();
        for _ in 0..1000 {
            assert!(matches!(ask(&mut state), NetError::NotAllowed(_)));
        }
        // An hour of its own, and a thousand fetches that were refused at once.
        state.began = ago(3600);
        assert_eq!(state.left(1000), 0);
    }

    #[test]
    fn waiting_is_not_its_own_time_and_is_bounded() {
        let mut state = fetching(false);
        (state.began, state.waited) = (ago(50), Duration::from_secs(45));
        let left = state.left(10_000);
        assert!((1..=5_000).contains(&left), "{left}");
        state.waited = WAITING;
        assert_eq!(ask(&mut state), NetError::Timeout);
        state.begin();
        assert!(matches!(ask(&mut state), NetError::NotAllowed(_)), "each call has its own time to wait");
    }

    #[test]
    fn nobody_fetches_on_a_workers_thread() {
        let refused = ask(&mut fetching(true));
        assert!(matches!(&refused, NetError::NotAllowed(why) if why.contains("handlers of HTTP")), "{refused:?}");
    }
}
