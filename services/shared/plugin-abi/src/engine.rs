//! The engine configurations that plugins are compiled for and run with.
//!
//! Compiled code fits one configuration: whoever compiles and whoever runs start from these, so that it fits both.

use wasmtime::Config;

/// Epochs on, for deadlines; concurrency support, which triples the cost of a call, off. What has no influence on compiled
/// code, such as the allocation strategy, may be changed on top.
#[must_use]
pub fn config() -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true).concurrency_support(false);
    config
}

/// The same for plugins whose policy gives them fuel: their code counts what it does, which costs some of its speed.
#[must_use]
pub fn metered() -> Config {
    let mut config = config();
    config.consume_fuel(true);
    config
}
