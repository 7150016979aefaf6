//! What a plugin can ask of the proxy.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

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
    /// Milliseconds that it waited for others in this call.
    waited: u64,
}

/// Longest message of a plugin in the log, bytes.
const MESSAGE: usize = 4096;
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
            waited: 0,
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
            waited: 0,
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
            waited: 0,
        }
    }

    /// The time that it waited since this was last asked.
    pub(super) fn take_waited(&mut self) -> u64 {
        std::mem::take(&mut self.waited)
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
        let began = std::time::Instant::now();
        let result = fetch::fetch(&self.policy, &request);
        self.waited += u64::try_from(began.elapsed().as_millis()).unwrap_or(0) + 1;
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
