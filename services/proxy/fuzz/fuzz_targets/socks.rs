//! Any bytes as a client of SOCKS5.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shipote_proxy_fuzz::socks(bytes));
