//! Any bytes as a body in chunks, in pieces of any size.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| shipote_proxy_fuzz::chunks(input.1, input.0));
