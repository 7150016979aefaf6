//! What a tap tells and what its subscribers see.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use shipote_flow::{CutOff, EdgeId, EndReason, FlowEvent, Junction, TapSpec};
use support::*;

fn sampled(line: &mut Line) -> (&'static str, f32) {
    match line.events.blocking_recv() {
        Some(FlowEvent::Sampled { discernment, .. }) => (discernment.ty.name(), discernment.confidence),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flow_is_sampled_when_its_sample_is_whole() {
    let mut line = line(TapSpec { sample_bytes: 8, ..TapSpec::default() });
    line.producer.write_all(br#"{"a": 1, "b": 2}"#).unwrap();
    assert_eq!(sampled(&mut line), ("json", 0.6));
}

#[test]
fn a_flow_that_ends_early_is_sampled_whole() {
    let mut line = line(TapSpec::default());
    line.producer.write_all(br#"{"a": 1}"#).unwrap();
    drop(std::mem::replace(&mut line.producer, File::open("/dev/null").unwrap()));
    assert_eq!(sampled(&mut line), ("json", 0.95));
}

#[test]
fn a_flow_that_pauses_is_sampled_as_far_as_it_got_and_again_later() {
    let mut line = line(TapSpec::default());
    line.producer.write_all(b"[1,").unwrap();
    assert_eq!(sampled(&mut line), ("json", 0.6));
    line.producer.write_all(b"2]").unwrap();
    drop(std::mem::replace(&mut line.producer, File::open("/dev/null").unwrap()));
    assert_eq!(sampled(&mut line), ("json", 0.95));
}

#[test]
fn an_early_subscriber_sees_everything() {
    let line = line(TapSpec { lossless: true, ..TapSpec::default() });
    let early = line.taps.connect(1);
    let mut producer = line.producer;
    let mut consumer = line.consumer;
    // The junction slept until the connection or this came, and so saw the connection first.
    producer.write_all(b"go").unwrap();
    assert_eq!(read_exact(&mut consumer, 2), b"go");
    let mut sent = b"go".to_vec();
    sent.extend(pattern(0, 4_000_000));
    let subscriber = read_in_thread(early);
    let writer = write_in_thread(producer, sent[2..].to_vec());
    assert!(read_in_thread(consumer).join().unwrap() == sent[2..]);
    writer.join().unwrap();
    assert!(subscriber.join().unwrap() == sent);
}

#[test]
fn a_late_subscriber_sees_the_replay_and_then_the_rest() {
    let mut line = line(TapSpec { replay_chunks: 3, ..TapSpec::default() });
    for chunk in ["one ", "two ", "three ", "four "] {
        line.producer.write_all(chunk.as_bytes()).unwrap();
        assert_eq!(read_exact(&mut line.consumer, chunk.len()), chunk.as_bytes());
    }
    let mut late = line.taps.connect(1);
    assert_eq!(read_exact(&mut late, 15), b"two three four ");
    line.producer.write_all(b"five").unwrap();
    assert_eq!(read_exact(&mut late, 4), b"five");
    drop(line.producer);
    assert_eq!(late.read(&mut [0]).unwrap(), 0, "the end of the stream");
}

#[test]
fn the_replay_is_served_after_the_end_until_the_taps_close() {
    let mut line = line(TapSpec { replay_chunks: 2, replay_bytes: 10, ..TapSpec::default() });
    for chunk in ["first", "second", "third"] {
        line.producer.write_all(chunk.as_bytes()).unwrap();
        assert_eq!(read_exact(&mut line.consumer, chunk.len()), chunk.as_bytes());
    }
    drop(line.producer);
    assert_eq!(next(&mut line.events), ended(1, 16, EndReason::Eof));
    for _ in 0..3 {
        assert_eq!(read_in_thread(line.taps.connect(1)).join().unwrap(), b"third", "11 bytes are too many");
    }
    line.junction.close_taps();
    join(line.junction);
    assert!(std::os::unix::net::UnixStream::connect(line.taps.path(1)).is_err());
}

#[test]
fn closing_the_taps_leaves_the_pipeline_running() {
    let mut line = line(TapSpec::default());
    let mut subscriber = line.taps.connect(1);
    line.producer.write_all(b"tapped").unwrap();
    assert_eq!(read_exact(&mut subscriber, 6), b"tapped");
    line.junction.close_taps();
    assert_eq!(subscriber.read(&mut [0]).unwrap(), 0);
    let sent = pattern(0, 3_000_000);
    let writer = write_in_thread(line.producer, sent.clone());
    let got = read_in_thread(line.consumer).join().unwrap();
    assert!(got[..6] == *b"tapped" && got[6..] == sent);
    writer.join().unwrap();
    assert_eq!(next(&mut line.events), ended(1, 3_000_006, EndReason::Eof));
}

#[test]
fn a_subscriber_that_does_not_read_is_cut_off_and_nobody_waits_for_it() {
    let mut line = line(TapSpec { replay_chunks: 4, ..TapSpec::default() });
    let mut idle = line.taps.connect(1);
    line.producer.write_all(b"go").unwrap();
    assert_eq!(read_exact(&mut idle, 2), b"go");
    let sent = pattern(0, 20_000_000);
    let writer = write_in_thread(line.producer, sent.clone());
    assert!(read_in_thread(line.consumer).join().unwrap().len() == sent.len() + 2);
    writer.join().unwrap();
    let FlowEvent::SubscriberDropped { lost, .. } = next(&mut line.events) else { panic!("not cut off") };
    let stats = line.junction.stats(EdgeId(1)).unwrap();
    assert_eq!((stats.subscribers, stats.dropped_subscribers, stats.dropped_bytes), (0, 1, lost));
    let pid = i32::try_from(std::process::id()).ok();
    assert_eq!(line.junction.cut_off(EdgeId(1)), [CutOff { pid, lost }]);
    let got = read_in_thread(idle).join().unwrap();
    assert!(got.len() < sent.len() && got[..] == sent[..got.len()], "a gapless beginning, then the end");
}

#[test]
fn a_lossless_tap_stalls_the_producer_instead() {
    let mut line = line(TapSpec { replay_chunks: 2, lossless: true, ..TapSpec::default() });
    let mut slow = line.taps.connect(1);
    line.producer.write_all(b"go").unwrap();
    assert_eq!(read_exact(&mut slow, 2), b"go");
    let sent = pattern(0, 20_000_000);
    let writer = write_in_thread(line.producer, sent.clone());
    let (tell, told) = std::sync::mpsc::channel();
    let mut from = line.consumer;
    let consumer = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        let _ = tell.send(());
        bytes
    });
    // What fits into pipes, the replay and the socket is far less than is sent: however long one
    // waits, the flow doesn't end.
    assert!(told.recv_timeout(std::time::Duration::from_millis(300)).is_err());
    assert!(line.junction.stats(EdgeId(1)).unwrap().bytes_total < 5_000_000);
    let first = read_exact(&mut slow, 1_000_000);
    let rest = read_in_thread(slow).join().unwrap();
    assert!(first == sent[..1_000_000] && rest == sent[1_000_000..]);
    writer.join().unwrap();
    assert_eq!(consumer.join().unwrap().len(), sent.len() + 2);
    assert_eq!(next(&mut line.events), ended(1, 20_000_002, EndReason::Eof));
}

#[test]
fn sixty_four_subscribers_see_the_same() {
    let mut line = line(TapSpec { lossless: true, ..TapSpec::default() });
    let mut subscribers: Vec<_> = (0..64).map(|_| line.taps.connect(1)).collect();
    line.producer.write_all(b"go").unwrap();
    for subscriber in &mut subscribers {
        assert_eq!(read_exact(subscriber, 2), b"go");
    }
    assert_eq!(line.junction.stats(EdgeId(1)).unwrap().subscribers, 64);
    let sent = pattern(0, 1_000_000);
    let readers: Vec<_> = subscribers.into_iter().map(read_in_thread).collect();
    let consumer = read_in_thread(line.consumer);
    write_in_thread(line.producer, sent.clone()).join().unwrap();
    for reader in readers {
        assert!(reader.join().unwrap() == sent);
    }
    assert_eq!(consumer.join().unwrap().len(), sent.len() + 2);
}

#[test]
fn peers_who_may_not_and_peers_too_many_are_refused() {
    let taps = Taps::new(TapSpec { max_subscribers: 1, ..TapSpec::default() });
    let (source, mut producer) = {
        let (source, producer) = pipe();
        (source, File::from(producer))
    };
    let (_consumer, sink) = pipe();
    let (_other, other_sink) = pipe();
    let (sender, mut events) = events();
    let me = rustix::process::getuid().as_raw();
    let edges = vec![
        edge(1, sink, Some(taps.tap_for(1, move |uid| uid != me))),
        edge(2, other_sink, Some(taps.tap_for(2, move |uid| uid == me))),
    ];
    let junction = Junction::start(source, edges, sender).unwrap();
    assert_eq!(taps.connect(1).read(&mut [0]).unwrap(), 0);
    assert!(matches!(next(&mut events), FlowEvent::SubscriberRefused { id: EdgeId(1), uid, .. } if uid == Some(me)));
    producer.write_all(b"x").unwrap();
    let mut first = taps.connect(2);
    assert_eq!(read_exact(&mut first, 1), b"x");
    assert_eq!(taps.connect(2).read(&mut [0]).unwrap(), 0);
    assert!(matches!(next(&mut events), FlowEvent::SubscriberRefused { id: EdgeId(2), .. }));
    assert_eq!(junction.stats(EdgeId(2)).unwrap().refused_subscribers, 1);
}

#[test]
fn a_subscriber_that_leaves_is_forgotten() {
    let mut line = line(TapSpec::default());
    let mut subscriber = line.taps.connect(1);
    line.producer.write_all(b"x").unwrap();
    read_exact(&mut subscriber, 1);
    drop(subscriber);
    // The one after it is let in after its end was seen: both are found in one poll, or the end is.
    let mut other = line.taps.connect(1);
    read_exact(&mut other, 1);
    line.producer.write_all(b"y").unwrap();
    read_exact(&mut other, 1);
    assert_eq!(line.junction.stats(EdgeId(1)).unwrap().subscribers, 1);
}

#[test]
fn a_limited_flow_takes_its_time() {
    let start = std::time::Instant::now();
    let line = line(TapSpec { max_bytes_per_sec: 100_000, ..TapSpec::default() });
    let writer = write_in_thread(line.producer, pattern(0, 130_000));
    assert!(read_in_thread(line.consumer).join().unwrap() == pattern(0, 130_000));
    writer.join().unwrap();
    // A lower bound only: one second's worth at once, the rest at the rate.
    assert!(start.elapsed() >= std::time::Duration::from_millis(290), "{:?}", start.elapsed());
}

/// Bytes that this process's own reads and writes have carried (proc_pid_io(5)); what splice and tee move is not among
/// them.
#[expect(clippy::unwrap_used, reason = "a part of a test")]
fn copied() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    let field =
        |name: &str| io.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse::<u64>().unwrap();
    field("rchar:") + field("wchar:")
}

#[test]
fn the_bytes_of_a_tapped_edge_stay_in_the_kernel() {
    const SENT: u64 = 64 << 20;
    if !in_a_process_of_its_own("the_bytes_of_a_tapped_edge_stay_in_the_kernel") {
        return;
    }
    let line = line(TapSpec { lossless: true, ..TapSpec::default() });
    let subscribers: Vec<_> = (0..2)
        .map(|_| {
            let socket = Stdio::from(std::os::fd::OwnedFd::from(line.taps.connect(1)));
            Command::new("wc").arg("-c").stdin(socket).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    // all that is written and read is by processes of their own
    let consumer = Command::new("wc").arg("-c").stdin(line.consumer).stdout(Stdio::piped()).spawn().unwrap();
    let before = copied();
    let mut producer =
        Command::new("head").args(["-c", &SENT.to_string(), "/dev/zero"]).stdout(line.producer).spawn().unwrap();
    join(line.junction);
    // before anybody is waited for: what a child has read and written is then counted as its parent's
    let copied = copied() - before;
    assert!(producer.wait().unwrap().success());
    for each in subscribers.into_iter().chain([consumer]) {
        assert_eq!(String::from_utf8(each.wait_with_output().unwrap().stdout).unwrap().trim(), SENT.to_string());
    }
    // the sample is read, and /proc/self/io itself
    assert!(copied < 100_000, "{copied} bytes went through this process");
}

#[test]
fn nothing_is_left_open() {
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let once = || {
        let line = line(TapSpec::default());
        let subscriber = read_in_thread(line.taps.connect(1));
        let writer = write_in_thread(line.producer, pattern(0, 3_000_000));
        read_in_thread(line.consumer).join().unwrap();
        writer.join().unwrap();
        subscriber.join().unwrap();
        join(line.junction);
    };
    // Other tests open and close descriptors meanwhile.
    if !in_a_process_of_its_own("nothing_is_left_open") {
        return;
    }
    once();
    let before = count();
    for _ in 0..5 {
        once();
    }
    assert_eq!(count(), before);
}
