//! Any bytes as a header of the PROXY protocol.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shipote_proxy_fuzz::proxy_protocol(bytes));
