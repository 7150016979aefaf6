//! Any text as WIT: an interface whose functions can be written down, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shipote_link::{Cardinality, Interface};

fuzz_target!(|text: &str| {
    match Interface::from_wit("fuzz", "a:b/c@1.0.0", Cardinality::Any, &[text]) {
        Ok(interface) => {
            for function in interface.functions() {
                assert!(!function.name().is_empty() && !function.signature().to_string().is_empty());
            }
        }
        Err(error) => assert!(error.to_string().starts_with("read WIT: ")),
    }
});
