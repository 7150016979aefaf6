//! Any bytes as the beginning of a connection.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shipote_proxy_fuzz::peek(bytes));
