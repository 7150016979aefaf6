//! Where the kernel gives fewer or smaller pipes the replay is smaller, and nothing else changes.

mod support;

use std::io::Write;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use shipote_flow::{EndReason, FlowEvent, TapSpec};
use support::*;

/// The limits are the user's, so that one test's would be the other's.
static IN_TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn few_descriptors_make_for_a_short_replay() {
    let _turn = IN_TURN.lock();
    if !in_a_process_of_its_own("few_descriptors_make_for_a_short_replay") {
        return;
    }
    let mut line = line(TapSpec::default());
    let usual = getrlimit(Resource::Nofile);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    setrlimit(Resource::Nofile, Rlimit { current: Some(open + 10), maximum: usual.maximum }).unwrap();
    let mut sent = Vec::new();
    for number in 0..60_u8 {
        line.producer.write_all(&[number]).unwrap();
        assert_eq!(read_exact(&mut line.consumer, 1), [number]);
        sent.push(number);
    }
    assert!(matches!(next(&mut line.events), FlowEvent::Degraded { .. }));
    setrlimit(Resource::Nofile, usual).unwrap();
    let mut late = line.taps.connect(1);
    line.producer.write_all(b"end").unwrap();
    sent.extend(b"end");
    drop(line.producer);
    assert_eq!(next(&mut line.events), ended(1, 63, EndReason::Eof));
    let mut seen = Vec::new();
    std::io::Read::read_to_end(&mut late, &mut seen).unwrap();
    assert!(sent.ends_with(&seen) && (4..=16).contains(&seen.len()), "{seen:?}");
}

#[test]
fn small_pipes_carry_the_same_bytes() {
    let _turn = IN_TURN.lock();
    if !in_a_process_of_its_own("small_pipes_carry_the_same_bytes") {
        return;
    }
    // Only users without these are limited.
    let mut mine = capabilities(None).unwrap();
    mine.effective -= CapabilitySet::SYS_RESOURCE | CapabilitySet::SYS_ADMIN;
    mine.permitted = mine.effective;
    set_capabilities(None, mine).unwrap();
    let mut hoard = Vec::new();
    // As many as the usual limit of pages allows, and some; elsewhere the limit may be off.
    for _ in 0..80 {
        let (reader, writer) = pipe();
        if rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20).is_err() {
            break;
        }
        hoard.push((reader, writer));
    }
    loop {
        let (reader, writer) = pipe();
        if rustix::pipe::fcntl_getpipe_size(&writer).unwrap() < 65_536 {
            break;
        }
        if hoard.len() > 2000 {
            eprintln!("pipes are not limited here; nothing to see");
            return;
        }
        hoard.push((reader, writer));
    }
    let mut line = line(TapSpec { lossless: true, ..TapSpec::default() });
    let early = line.taps.connect(1);
    let sent = pattern(0, 1_000_000);
    let seen = read_in_thread(early);
    let consumer = read_in_thread(line.consumer);
    write_in_thread(line.producer, sent.clone()).join().unwrap();
    assert!(consumer.join().unwrap() == sent);
    let seen = seen.join().unwrap();
    assert!(sent.ends_with(&seen), "{}", seen.len());
    assert!(matches!(next(&mut line.events), FlowEvent::Degraded { .. }));
    assert_eq!(next(&mut line.events), ended(1, 1_000_000, EndReason::Eof));
    let late = read_in_thread(line.taps.connect(1)).join().unwrap();
    assert!(sent.ends_with(&late) && !late.is_empty());
    drop(hoard);
}
