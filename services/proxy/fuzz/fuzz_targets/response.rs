//! Any bytes as the head of a response.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (bool, &[u8])| shipote_proxy_fuzz::response(input.1, input.0));
