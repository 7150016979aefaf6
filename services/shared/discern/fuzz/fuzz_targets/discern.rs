//! Any bytes get an answer; the first bit says whether the sample is the whole of the data.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((flags, sample)) = data.split_first() else { return };
    let found = shipote_discern::discern(sample, None, flags & 1 == 1);
    assert!((0.0..=1.0).contains(&found.confidence));
});
