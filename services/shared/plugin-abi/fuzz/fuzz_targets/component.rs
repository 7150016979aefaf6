//! Any bytes as a component: a bounded shape that is judged, or a refusal of one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shipote_plugin_abi::check::{check_shape, plugs};
use shipote_plugin_abi::policy::Policy;
use shipote_plugin_abi::shape::{Limits, Shape};

const LIMITS: Limits = Limits { size: 1 << 20, names: 64 };

fuzz_target!(|bytes: &[u8]| {
    match Shape::read(bytes, LIMITS) {
        Ok(shape) => {
            assert!(shape.imports.len() <= LIMITS.names && shape.exports.len() <= LIMITS.names);
            assert!(plugs(&shape).count() <= shape.exports.len());
            for refusal in check_shape(&shape, &Policy::default()) {
                assert!(!refusal.reason.is_empty());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
