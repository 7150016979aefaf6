//! Any text as policies, in both spellings: what is read is found under its name, and read again from what it is written as.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use shipote_plugin_abi::policy::{Policy, PolicyTable};

/// A digest that a text has no reason to name.
const NONE: &str = "sha256:none";

fuzz_target!(|text: &str| {
    if let Ok(table) = PolicyTable::from_json(text) {
        let written: BTreeMap<_, _> = table.plugins.iter().map(|(name, policy)| (name, &policy.http)).collect();
        let written = serde_json::to_string(&written).expect("write it as JSON");
        assert_eq!(PolicyTable::from_json(&written).expect("read it again"), table);
        check(&table);
    }
    match PolicyTable::from_toml(text, "policy.toml") {
        Ok(table) => {
            let written = toml::to_string(&table).expect("write it as TOML");
            assert_eq!(PolicyTable::from_toml(&written, "again.toml").expect("read it again"), table, "{written}");
            check(&table);
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.starts_with("policy.toml") && !error.contains('\n'), "{error:?}");
        }
    }
});

fn check(table: &PolicyTable) {
    for (name, policy) in table.plugins.iter().filter(|_| !table.plugins.contains_key(NONE)) {
        assert_eq!(table.get(name, NONE), *policy);
        assert_eq!(table.get("absent", name), *policy);
        assert!(!policy.http.allows_host(""));
    }
    assert!(
        table.plugins.contains_key("absent")
            || table.plugins.contains_key(NONE)
            || table.get("absent", NONE) == Policy::default()
    );
}
