//! What producers and consumers notice: every byte, in order, and each other's end.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use shipote_flow::{EdgeId, EndReason, FlowError, FlowEvent, Junction, TapSpec};
use support::*;

#[test]
fn the_consumer_gets_every_byte_and_the_end() {
    let mut line = line(TapSpec::default());
    let sent = pattern(0, 5_000_000);
    let writer = write_in_thread(line.producer, sent.clone());
    assert!(read_in_thread(line.consumer).join().unwrap() == sent);
    writer.join().unwrap();
    assert_eq!(next(&mut line.events), ended(1, 5_000_000, EndReason::Eof));
    let stats = line.junction.stats(EdgeId(1)).unwrap();
    assert_eq!(stats.bytes_total, 5_000_000);
    assert!(stats.bytes_per_sec > 0);
    assert_eq!(line.junction.stats(EdgeId(2)), None);
}

#[test]
fn three_consumers_get_the_same_with_and_without_taps() {
    for tapped in [[false; 3], [true; 3], [false, true, false]] {
        let taps = Taps::new(TapSpec::default());
        let (source, producer) = pipe();
        let (sender, mut events) = events();
        let mut edges = Vec::new();
        let mut readers = Vec::new();
        for (id, tapped) in (0..3).zip(tapped) {
            let (consumer, sink) = pipe();
            edges.push(edge(id, sink, tapped.then(|| taps.tap(id))));
            readers.push(read_in_thread(File::from(consumer)));
        }
        let _junction = Junction::start(source, edges, sender).unwrap();
        let sent = pattern(0, 3_000_000);
        write_in_thread(producer.into(), sent.clone()).join().unwrap();
        for reader in readers {
            assert!(reader.join().unwrap() == sent, "tapped: {tapped:?}");
        }
        let mut ends: Vec<_> = (0..3).map(|_| next(&mut events)).collect();
        ends.sort_by_key(|event| format!("{event:?}"));
        assert_eq!(ends, [0, 1, 2].map(|id| ended(id, 3_000_000, EndReason::Eof)), "tapped: {tapped:?}");
    }
}

#[test]
fn two_producers_share_a_consumer() {
    let (consumer, sink) = pipe();
    let (sender, _events) = events();
    let mut producers = Vec::new();
    let mut junctions = Vec::new();
    for (id, byte) in [(1, b'a'), (2, b'b')] {
        let (source, producer) = pipe();
        let edges = vec![edge(id, sink.try_clone().unwrap(), None)];
        junctions.push(Junction::start(source, edges, sender.clone()).unwrap());
        producers.push(write_in_thread(producer.into(), vec![byte; 1_000_000]));
    }
    drop(sink);
    let got = read_in_thread(File::from(consumer)).join().unwrap();
    assert_eq!(got.len(), 2_000_000);
    assert_eq!(got.iter().filter(|byte| **byte == b'a').count(), 1_000_000);
}

#[test]
fn a_consumer_that_leaves_ends_the_producer() {
    let taps = Taps::new(TapSpec::default());
    let mut yes = Command::new("yes").stdout(Stdio::piped()).spawn().unwrap();
    let (consumer, sink) = pipe();
    let mut head = Command::new("head").args(["-n", "3"]).stdin(consumer).stdout(Stdio::piped()).spawn().unwrap();
    let (sender, mut events) = events();
    let source = yes.stdout.take().unwrap().into();
    let _junction = Junction::start(source, vec![edge(1, sink, Some(taps.tap(1)))], sender).unwrap();
    let mut out = String::new();
    head.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert_eq!(out, "y\ny\ny\n");
    head.wait().unwrap();
    let status = yes.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(13), "SIGPIPE");
    assert!(matches!(next(&mut events), FlowEvent::Ended { reason: EndReason::ConsumerClosed, .. }));
}

#[test]
fn a_consumer_that_leaves_is_noticed_though_nobody_writes() {
    let mut line = line(TapSpec::default());
    drop(line.consumer);
    assert_eq!(next(&mut line.events), ended(1, 0, EndReason::ConsumerClosed));
    // The read end goes before or after the event; a write fails as soon as it has gone.
    while line.producer.write_all(b"x").is_ok() {}
}

#[test]
fn the_others_go_on_when_one_of_several_consumers_leaves() {
    let taps = Taps::new(TapSpec::default());
    let (source, producer) = pipe();
    let mut producer = File::from(producer);
    let (first, first_sink) = pipe();
    let (second, second_sink) = pipe();
    let (sender, mut events) = events();
    let edges = vec![edge(1, first_sink, Some(taps.tap(1))), edge(2, second_sink, Some(taps.tap(2)))];
    let junction = Junction::start(source, edges, sender).unwrap();
    let (mut first, mut second) = (File::from(first), File::from(second));
    producer.write_all(b"both").unwrap();
    assert_eq!((read_exact(&mut first, 4), read_exact(&mut second, 4)), (b"both".to_vec(), b"both".to_vec()));
    drop(first);
    assert_eq!(next(&mut events), ended(1, 4, EndReason::ConsumerClosed));
    let rest = pattern(0, 1_000_000);
    let writer = write_in_thread(producer, rest.clone());
    assert!(read_in_thread(second).join().unwrap() == rest);
    writer.join().unwrap();
    assert_eq!(next(&mut events), ended(2, 1_000_004, EndReason::Eof));
    assert_eq!(read_in_thread(taps.connect(1)).join().unwrap(), b"both", "its replay stays as it was");
    join(junction);
}

#[test]
fn a_producer_that_is_killed_ends_the_flow() {
    let taps = Taps::new(TapSpec::default());
    let mut producer =
        Command::new("sh").args(["-c", "echo before; exec sleep 1000"]).stdout(Stdio::piped()).spawn().unwrap();
    let (consumer, sink) = pipe();
    let (sender, mut events) = events();
    let source = producer.stdout.take().unwrap().into();
    let _junction = Junction::start(source, vec![edge(1, sink, Some(taps.tap(1)))], sender).unwrap();
    let mut consumer = File::from(consumer);
    assert_eq!(read_exact(&mut consumer, 7), b"before\n");
    producer.kill().unwrap();
    producer.wait().unwrap();
    assert_eq!(consumer.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(next(&mut events), ended(1, 7, EndReason::Eof));
}

#[test]
fn sources_and_sinks_that_are_not_pipes_work() {
    let dir = tempfile::tempdir().unwrap();
    let sent = pattern(0, 1_000_000);
    let input = dir.path().join("in");
    std::fs::write(&input, &sent).unwrap();
    for (append, tapped) in [(false, true), (false, false), (true, true), (true, false)] {
        let output = dir.path().join(format!("{append}-{tapped}"));
        std::fs::write(&output, b"").unwrap();
        let sink = File::options().write(true).append(append).open(&output).unwrap();
        let taps = Taps::new(TapSpec::default());
        let (sender, mut events) = events();
        let source = File::open(&input).unwrap().into();
        let tap = tapped.then(|| taps.tap(1));
        let junction = Junction::start(source, vec![edge(1, sink.into(), tap)], sender).unwrap();
        if append {
            assert!(matches!(next(&mut events), FlowEvent::Copied { .. }), "the kernel does not splice to O_APPEND");
        }
        assert_eq!(next(&mut events), ended(1, 1_000_000, EndReason::Eof));
        join(junction);
        assert!(std::fs::read(&output).unwrap() == sent, "append: {append}, tapped: {tapped}");
    }
}

#[test]
fn sockets_work_at_both_ends() {
    let (mut producer, source) = std::os::unix::net::UnixStream::pair().unwrap();
    let (sink, consumer) = std::os::unix::net::UnixStream::pair().unwrap();
    let (sender, mut events) = events();
    let junction = Junction::start(source.into(), vec![edge(1, sink.into(), None)], sender).unwrap();
    let reader = read_in_thread(consumer);
    let sent = pattern(0, 3_000_000);
    producer.write_all(&sent).unwrap();
    drop(producer);
    assert!(reader.join().unwrap() == sent);
    assert_eq!(next(&mut events), ended(1, 3_000_000, EndReason::Eof));
    join(junction);
}

#[test]
fn a_failing_sink_is_reported() {
    let (source, producer) = pipe();
    let (sender, mut events) = events();
    let sink = File::options().write(true).open("/dev/full").unwrap();
    let _junction = Junction::start(source, vec![edge(1, sink.into(), None)], sender).unwrap();
    File::from(producer).write_all(b"x").unwrap();
    let mut seen = vec![next(&mut events)];
    while !matches!(seen.last(), Some(FlowEvent::Ended { .. })) {
        seen.push(next(&mut events));
    }
    assert!(seen.iter().any(|event| matches!(event, FlowEvent::Failed { .. })), "{seen:?}");
    assert_eq!(seen.last(), Some(&ended(1, 0, EndReason::Failed)));
}

#[test]
fn what_cannot_start_says_why() {
    let (source, _producer) = pipe();
    let (sender, _events) = events();
    let none = Junction::start(source.try_clone().unwrap(), Vec::new(), sender.clone());
    assert!(matches!(none, Err(FlowError::NoEdge)));
    let edges = [pipe(), pipe()].map(|(_, sink)| edge(7, sink, None)).into();
    let twice = Junction::start(source, edges, sender);
    assert!(matches!(twice, Err(FlowError::SameEdge(EdgeId(7)))));
}
