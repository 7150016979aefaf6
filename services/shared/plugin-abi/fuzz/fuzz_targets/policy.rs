//! Any text as a policy, in both spellings: what is read is read again from what it is written as.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shipote_plugin_abi::policy::{Policy, PolicyTable};

fuzz_target!(|text: &str| {
    for table in [PolicyTable::from_json(text).ok(), PolicyTable::from_toml(text, "policy.toml").ok()].into_iter().flatten() {
        for (name, policy) in &table.plugins {
            assert_eq!(table.get(name, "sha256:none"), *policy);
            assert!(!policy.http.allows_host(""));
        }
        assert!(table.plugins.contains_key("absent") || table.get("absent", "sha256:none") == Policy::default());
    }
});
