//! Any bytes, in pieces of any size: frames within the limit, an end, or an error.
#![no_main]

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use libfuzzer_sys::fuzz_target;
use shipote_framing::{Oversize, Reader};

fuzz_target!(|input: (u16, u32, &[u8])| {
    let (limit, cap, bytes) = input;
    let limit = usize::from(limit);
    let mut reader = Reader::with_oversize(bytes, limit, Oversize::Drain { cap: u64::from(cap) });
    loop {
        // A slice is always ready: one poll is a whole call.
        let next = match Pin::new(&mut pin!(reader.next())).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(next) => next,
            Poll::Pending => unreachable!("a slice never waits"),
        };
        match next {
            Ok(Some(frame)) => assert!(frame.len() <= limit),
            Ok(None) => return,
            Err(error) if error.in_step() => {}
            Err(_) => return,
        }
    }
});
