//! The decoder: whatever arrives, in whatever pieces, it ends in a message or an error, with memory bounded by what came.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use proptest::prelude::*;
use shipote_agent_protocol::{
    AgentRequest, FrameError, MAX_FRAME, encode, read_body, read_length, read_message, skip_body,
};

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn a_stream_that_ends_between_frames_is_a_clean_end() {
    assert!(block(read_message::<AgentRequest, _>(&mut &[][..])).unwrap().is_none());
}

#[test]
fn a_stream_that_ends_within_a_frame_is_an_error() {
    let frame = encode(&AgentRequest::Ping).unwrap();
    for cut in 1..frame.len() {
        let error = block(read_message::<AgentRequest, _>(&mut &frame[..cut])).unwrap_err();
        assert!(matches!(error, FrameError::Io(_)), "cut at {cut}: {error}");
    }
}

#[test]
fn a_length_over_the_limit_is_refused_before_the_body() {
    let header = (MAX_FRAME + 1).to_be_bytes();
    let error = block(read_message::<AgentRequest, _>(&mut &header[..])).unwrap_err();
    assert!(matches!(error, FrameError::TooLarge { size, .. } if size == u64::from(MAX_FRAME) + 1));
}

#[test]
fn a_lying_length_costs_no_memory() {
    block(async {
        let error = read_body(&mut &b"abc"[..], MAX_FRAME).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn a_skipped_body_leaves_the_stream_in_step() {
    block(async {
        let mut bytes = 70_000_u32.to_be_bytes().to_vec();
        bytes.extend(std::iter::repeat_n(b'x', 70_000));
        bytes.extend(encode(&AgentRequest::ListImages).unwrap());
        let mut stream = &bytes[..];
        let length = read_length(&mut stream).await.unwrap().unwrap();
        skip_body(&mut stream, length).await.unwrap();
        assert!(matches!(read_message(&mut stream).await.unwrap(), Some(AgentRequest::ListImages)));
    });
}

proptest! {
    #[test]
    fn any_bytes_end_in_a_message_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let mut stream = &bytes[..];
        while let Ok(Some(_)) = block(read_message::<AgentRequest, _>(&mut stream)) {}
    }

    #[test]
    fn bytes_survive_the_way_there(data in proptest::collection::vec(any::<u8>(), 0..4096)) {
        let frame = encode(&AgentRequest::Stdin { data: data.clone() }).unwrap();
        match block(read_message(&mut &frame[..])).unwrap() {
            Some(AgentRequest::Stdin { data: back }) => prop_assert_eq!(back, data),
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
