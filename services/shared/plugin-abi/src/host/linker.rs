//! The host functions as entries of a wasmtime linker.

use std::time::{SystemTime, UNIX_EPOCH};

use wasmtime::component::Linker;
use wasmtime::{Result, StoreContextMut, bail};

use super::{HttpFetchRequest, HttpFetchResponse, LogField, LogLevel, MetricLabel, NetError, is_metric_name};
use crate::HOST_INTERFACE;

/// Bytes that one call of `random` may ask for; the memory is the host's until it is copied.
const MAX_RANDOM: u32 = 1 << 20;

/// What stands behind the imports of one instance. An error that a method returns stops the plugin as a trap does.
pub trait Host: Send + 'static {
    /// The call site's configuration as JSON; at least `{}`.
    fn args(&self) -> &str;

    /// Takes a message.
    fn log(&mut self, level: LogLevel, message: String, fields: Vec<LogField>);

    /// Milliseconds since the Unix epoch.
    fn now_unix_ms(&mut self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Fills `buffer` from the system's random number generator.
    ///
    /// # Errors
    /// When there is none.
    fn random(&mut self, buffer: &mut [u8]) -> Result<()>;

    /// Adds to a counter. The name is valid.
    fn metric_counter(&mut self, name: String, delta: u64, labels: Vec<MetricLabel>);

    /// Sets a gauge. The name is valid.
    fn metric_gauge(&mut self, name: String, value: i64, labels: Vec<MetricLabel>);

    /// Makes a request, within the policy.
    ///
    /// # Errors
    /// In band, as the ABI lists them; outside it a trap, such as for an invalid URL.
    fn http_fetch(&mut self, request: HttpFetchRequest) -> Result<Result<HttpFetchResponse, NetError>>;
}

/// Offers `vane:host/host@0.1.0` in `linker`, backed by the store's data.
///
/// # Errors
/// When the linker has the interface already.
pub fn add_to_linker<T: Host>(linker: &mut Linker<T>) -> Result<()> {
    add_to_linker_of(linker, |data| data)
}

/// The same where what stands behind the imports is a part of the store's data.
///
/// # Errors
/// When the linker has the interface already.
pub fn add_to_linker_of<T: Send + 'static, H: Host>(
    linker: &mut Linker<T>,
    host_of: fn(&mut T) -> &mut H,
) -> Result<()> {
    let mut host = linker.instance(HOST_INTERFACE)?;
    host.func_wrap("get-args", move |mut store: StoreContextMut<'_, T>, (): ()| {
        Ok((host_of(store.data_mut()).args().to_owned(),))
    })?;
    host.func_wrap(
        "log",
        move |mut store: StoreContextMut<'_, T>, (level, message, fields): (LogLevel, String, Vec<LogField>)| {
            host_of(store.data_mut()).log(level, message, fields);
            Ok(())
        },
    )?;
    host.func_wrap("now-unix-ms", move |mut store: StoreContextMut<'_, T>, (): ()| {
        Ok((host_of(store.data_mut()).now_unix_ms(),))
    })?;
    host.func_wrap("random", move |mut store: StoreContextMut<'_, T>, (length,): (u32,)| {
        if length > MAX_RANDOM {
            bail!("random: {length} bytes asked for, at most {MAX_RANDOM} at once");
        }
        let mut buffer = vec![0; length as usize];
        host_of(store.data_mut()).random(&mut buffer)?;
        Ok((buffer,))
    })?;
    host.func_wrap(
        "metric-counter",
        move |mut store: StoreContextMut<'_, T>, (name, delta, labels): (String, u64, Vec<MetricLabel>)| {
            check_metric(&name)?;
            host_of(store.data_mut()).metric_counter(name, delta, labels);
            Ok(())
        },
    )?;
    host.func_wrap(
        "metric-gauge",
        move |mut store: StoreContextMut<'_, T>, (name, value, labels): (String, i64, Vec<MetricLabel>)| {
            check_metric(&name)?;
            host_of(store.data_mut()).metric_gauge(name, value, labels);
            Ok(())
        },
    )?;
    host.func_wrap("http-fetch", move |mut store: StoreContextMut<'_, T>, (request,): (HttpFetchRequest,)| {
        Ok((host_of(store.data_mut()).http_fetch(request)?,))
    })
}

fn check_metric(name: &str) -> Result<()> {
    if !is_metric_name(name) {
        bail!("metric name {name:?} is not [a-zA-Z_][a-zA-Z0-9_]*");
    }
    Ok(())
}
