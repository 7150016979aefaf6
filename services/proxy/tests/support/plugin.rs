//! Plugins compiled as the registry does it.

use serde_json::{Value as Json, json};
use shipote_plugin_abi::engine;
use shipote_plugin_abi::fixtures::Fixture;
use shipote_plugin_abi::policy::Policy;
use shipote_proxy::PluginCode;

/// What the registry hands over for a component, which has all the time it wants: tests run on machines that are busy.
pub fn compiled(fixture: &Fixture, digest: &str) -> PluginCode {
    under(fixture, digest, patient())
}

/// The default policy, but for the deadline.
pub fn patient() -> Policy {
    Policy { deadline_ms: 60_000, ..Policy::default() }
}

/// The same under a policy.
pub fn under(fixture: &Fixture, digest: &str, policy: Policy) -> PluginCode {
    let config = if policy.fuel == 0 { engine::config() } else { engine::metered() };
    let engine = wasmtime::Engine::new(&config).unwrap();
    PluginCode {
        name: fixture.metadata.name.clone(),
        digest: digest.to_owned(),
        metadata: fixture.metadata.clone(),
        policy,
        links: Vec::new(),
        code: engine.precompile_component(&fixture.component()).unwrap(),
        canary: None,
    }
}

/// Rules with one chain.
pub fn chain(port: u16, upstream: &str, uses: &Json, kind: &str) -> Json {
    json!([{"name": "all", "listen": [format!("127.0.0.1:{port}")], "middleware_chain": uses,
        "terminate": {"type": kind, "upstream": upstream}}])
}
