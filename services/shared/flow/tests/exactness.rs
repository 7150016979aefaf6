//! Whatever the sizes of writes and reads and whenever subscribers come: the consumer gets the
//! stream, and a subscriber the end of it from somewhere inside the replay on, without a gap.

mod support;

use std::io::Write;

use proptest::prelude::*;
use shipote_flow::TapSpec;
use support::*;

#[derive(Debug, Clone)]
enum Act {
    Write(usize),
    Read(usize),
    Subscribe,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => prop_oneof![1..100_usize, 1..60_000_usize].prop_map(Act::Write),
        4 => prop_oneof![1..100_usize, 1..150_000_usize].prop_map(Act::Read),
        1 => Just(Act::Subscribe),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn subscribers_see_a_gapless_tail(
        acts in proptest::collection::vec(act(), 1..40),
        replay_chunks in 0_usize..6,
        replay_bytes in prop_oneof![Just(0_usize), 5_000..200_000_usize],
    ) {
        let spec = TapSpec { replay_chunks, replay_bytes, lossless: true, ..TapSpec::default() };
        let mut line = line(spec);
        let (mut written, mut read) = (0, 0);
        let mut subscribers = Vec::new();
        for act in acts {
            match act {
                // Never more on its way than the pipes hold, or this thread would wait for itself.
                Act::Write(len) if written + len - read <= 60_000 => {
                    line.producer.write_all(&pattern(written, len)).unwrap();
                    written += len;
                }
                Act::Read(len) => {
                    let len = len.min(written - read);
                    prop_assert!(read_exact(&mut line.consumer, len) == pattern(read, len));
                    read += len;
                }
                Act::Subscribe => {
                    // Between the two counts is what the junction had taken when it let it in.
                    subscribers.push((read, read_in_thread(line.taps.connect(1))));
                }
                Act::Write(_) => {}
            }
        }
        drop(line.producer);
        let rest = read_in_thread(line.consumer).join().unwrap();
        prop_assert!(rest == pattern(read, written - read));
        join(line.junction);
        let stream = pattern(0, written);
        for (read_before, subscriber) in subscribers {
            let seen = subscriber.join().unwrap();
            prop_assert!(stream.ends_with(&seen), "not the end of the stream");
            // Never more than the replay behind what the consumer had been given by then.
            let most = match replay_bytes {
                0 => replay_chunks * shipote_flow::CHUNK_BYTES,
                bytes => bytes.min(replay_chunks * shipote_flow::CHUNK_BYTES),
            };
            prop_assert!(written - seen.len() + most >= read_before, "{} of {written}, {read_before}", seen.len());
        }
    }
}
