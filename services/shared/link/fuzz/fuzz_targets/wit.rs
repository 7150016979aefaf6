//! Any text as WIT: an interface with the functions that it declares, or an error of words.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shipote_link::{Cardinality, Interface};

fuzz_target!(|text: &str| {
    // Its first line names the interface that is looked for.
    let (path, wit) = text.split_once('\n').unwrap_or(("my:package/example@1.0.0", text));
    match Interface::from_wit("fuzzed", path, Cardinality::Any, &[wit]) {
        Ok(interface) => {
            assert_eq!(interface.path(), path);
            for function in interface.functions() {
                assert!(!function.name().is_empty() && !function.signature().to_string().is_empty());
            }
        }
        Err(error) => assert!(error.to_string().starts_with("read WIT: ")),
    }
});
