//! Any bytes as a stream of frames, and as the body of one: a message that is the same after another round, an end,
//! or an error; never a panic, and no memory for a body that is only announced.
#![no_main]

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use libfuzzer_sys::fuzz_target;
use serde::de::DeserializeOwned;
use serde::Serialize;
use shipote_agent_protocol::{AgentRequest, AgentResponse, Envelope, GuestMessage, HostMessage, encode, read_message};

fn again<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<T>(bytes) {
        let frame = encode(&message).expect("what was decoded can be encoded");
        let same: T = serde_json::from_slice(&frame[4..]).expect("and decoded again");
        assert_eq!(encode(&same).expect("as before"), frame);
    }
}

/// A slice is always ready: one poll is a whole call.
fn ready<F: Future>(future: F) -> F::Output {
    match Pin::new(&mut pin!(future)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => unreachable!("a slice never waits"),
    }
}

fuzz_target!(|bytes: &[u8]| {
    again::<Envelope<AgentRequest>>(bytes);
    again::<AgentResponse>(bytes);
    again::<HostMessage>(bytes);
    again::<GuestMessage>(bytes);
    let mut stream = bytes;
    while let Ok(Some(_)) = ready(read_message::<Envelope<AgentRequest>, _>(&mut stream)) {}
});
