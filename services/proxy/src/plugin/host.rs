//! What a plugin can ask of the proxy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shipote_plugin_abi::host::{Host, HttpFetchRequest, HttpFetchResponse, LogField, LogLevel, MetricLabel, NetError};
use shipote_plugin_abi::policy::{HttpPolicy, Policy};
use shipote_plugin_abi::state::{Keeper, StateError, StateValue};
use wasmtime::{ResourceLimiter, bail};

use super::own::Own;
use super::series::Kind;
use super::{Site, fetch, processor, said};

/// Behind one instance.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) plugin: String,
    pub(crate) args: String,
    /// Bytes of linear memory that the instance may have, all its memories together, and has.
    memory: usize,
    used: usize,
    own: Arc<Own>,
    /// Bytes that the plugin may keep there.
    keeps: u64,
    policy: HttpPolicy,
    /// It runs where a worker's other connections would wait for a fetch.
    on_worker: bool,
    /// When the call began, how much of the time since then it waited for others, and the most that its thread had had of a
    /// processor by then.
    began: Instant,
    waited: Duration,
    had: Duration,
}

/// How long one call may wait for all of its fetches together.
const WAITING: Duration = Duration::from_secs(60);
/// Entries of one table of an instance.
const TABLE: usize = 100_000;

impl State {
    pub(super) fn new(site: &Site) -> Self {
        let beside = Self::beside(&site.plugin, &site.own, &site.policy);
        Self { args: site.args.clone(), on_worker: !site.fetches(), ..beside }
    }

    /// Behind a plugin that another one calls, or whose call site is gone: under its own policy, and without a call site's
    /// configuration.
    pub(super) fn beside(plugin: &str, own: &Arc<Own>, policy: &Policy) -> Self {
        Self {
            plugin: plugin.to_owned(),
            args: "{}".to_owned(),
            memory: usize::try_from(policy.memory_bytes).unwrap_or(usize::MAX),
            used: 0,
            own: Arc::clone(own),
            keeps: policy.state_bytes,
            policy: policy.http.clone(),
            on_worker: true,
            began: Instant::now(),
            waited: Duration::ZERO,
            had: processor::had(),
        }
    }

    /// A call begins.
    pub(super) fn begin(&mut self, now: Instant) {
        (self.began, self.waited, self.had) = (now, Duration::ZERO, processor::at_most(now));
    }

    /// What is left of `deadline` (milliseconds of its own time: neither what it waited for nor what the kernel gave to
    /// others), rounded up; 0 when it passed. To be asked on the thread that runs the call.
    pub(super) fn left(&self, deadline: u64) -> u64 {
        left_of(deadline, self.began.elapsed(), self.waited, processor::had().saturating_sub(self.had))
    }
}

/// What is left of `deadline` milliseconds after a time of which a part was waited, and in which so much of a processor was had.
fn left_of(deadline: u64, passed: Duration, waited: Duration, had: Duration) -> u64 {
    let own = passed.saturating_sub(waited).min(had);
    let left = Duration::from_millis(deadline).saturating_sub(own);
    u64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}

impl Host for State {
    fn args(&self) -> &str {
        &self.args
    }

    fn log(&mut self, level: LogLevel, message: String, fields: Vec<LogField>) {
        let plugin = &self.plugin;
        if !self.own.said().admits(plugin, Instant::now()) {
            return;
        }
        let text = said::line(&message, &fields);
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
        self.own.series().measure((Kind::Counter, name), &labels, &self.plugin, |value| *value += i128::from(delta));
    }

    fn metric_gauge(&mut self, name: String, new: i64, labels: Vec<MetricLabel>) {
        self.own.series().measure((Kind::Gauge, name), &labels, &self.plugin, |value| *value = i128::from(new));
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

impl Keeper for State {
    fn get(&mut self, key: &str) -> Option<StateValue> {
        self.own.values().get(key)
    }

    fn set(&mut self, key: String, value: StateValue) -> Result<(), StateError> {
        self.own.values().set(key, value, self.keeps)
    }

    fn remove(&mut self, key: &str) -> bool {
        self.own.values().remove(key)
    }

    fn add(&mut self, key: String, delta: i64) -> Result<i64, StateError> {
        self.own.values().add(key, delta, self.keeps)
    }

    fn replace(
        &mut self,
        key: String,
        expected: Option<&StateValue>,
        new: Option<StateValue>,
    ) -> Result<bool, StateError> {
        self.own.values().replace(key, expected, new, self.keeps)
    }

    fn keys(&mut self, prefix: &str) -> Vec<String> {
        self.own.values().keys(prefix)
    }
}

impl ResourceLimiter for State {
    fn memory_growing(&mut self, current: usize, desired: usize, most: Option<usize>) -> wasmtime::Result<bool> {
        let used = self.used.saturating_add(desired.saturating_sub(current));
        let fits = used <= self.memory && most.is_none_or(|most| desired <= most);
        if fits {
            self.used = used;
        }
        Ok(fits)
    }

    fn table_growing(&mut self, _: usize, desired: usize, most: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE && most.is_none_or(|most| desired <= most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetching(on_worker: bool) -> State {
        let policy = HttpPolicy { allowed_hosts: vec!["a.example".to_owned()], ..HttpPolicy::default() };
        State { policy, on_worker, ..State::beside("p", &Arc::default(), &Policy::default()) }
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

    #[test]
    fn fetches_that_take_no_time_buy_none() {
        let mut state = fetching(false);
        state.begin(Instant::now());
        for _ in 0..1000 {
            assert!(matches!(ask(&mut state), NetError::NotAllowed(_)));
        }
        // Work of its own, and a thousand fetches that were refused at once.
        while state.left(20) > 0 {
            std::hint::black_box(0);
        }
        assert!(state.began.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn its_own_time_is_neither_waiting_nor_what_others_had_the_processor_for() {
        let seconds = Duration::from_secs;
        for (passed, waited, had, left) in
            [(50, 0, 50, 0), (50, 45, 50, 5_000), (50, 0, 3, 7_000), (50, 45, 1, 9_000), (9, 0, 20, 1_000)]
        {
            assert_eq!(
                left_of(10_000, seconds(passed), seconds(waited), seconds(had)),
                left,
                "{passed} {waited} {had}"
            );
        }
    }

    #[test]
    fn waiting_is_bounded() {
        let mut state = fetching(false);
        state.waited = WAITING;
        assert_eq!(ask(&mut state), NetError::Timeout);
        state.begin(Instant::now());
        assert!(matches!(ask(&mut state), NetError::NotAllowed(_)), "each call has its own time to wait");
    }

    #[test]
    fn the_memories_of_an_instance_share_what_it_may_have() {
        let policy = Policy { memory_bytes: 100, ..Policy::default() };
        let mut state = State::beside("p", &Arc::default(), &policy);
        let mut grows = |from, to, most| state.memory_growing(from, to, most).unwrap();
        assert!(grows(0, 60, None));
        assert!(!grows(0, 60, None), "a second memory");
        assert!(!grows(0, 40, Some(30)), "more than the memory's own maximum, which counts for nothing");
        assert!(grows(0, 40, None));
        assert!(!grows(60, 61, None));
    }

    #[test]
    fn nobody_fetches_on_a_workers_thread() {
        let refused = ask(&mut fetching(true));
        assert!(matches!(&refused, NetError::NotAllowed(why) if why.contains("handlers of HTTP")), "{refused:?}");
    }
}
