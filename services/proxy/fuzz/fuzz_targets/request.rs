//! Any bytes as the head of a request.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shipote_proxy_fuzz::request(bytes));
