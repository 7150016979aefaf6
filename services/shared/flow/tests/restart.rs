//! A process that carries a flow may be killed at any moment: with the same descriptors another
//! goes on where it stopped.

#![allow(clippy::unwrap_used, reason = "only functions marked as tests are excused")]

mod support;

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use shipote_flow::{Junction, Tap, TapSpec};
use support::*;

const SOCKET: &str = "FLOW_TEST_CARRIER_SOCKET";

#[test]
fn killing_the_carrier_loses_nothing() {
    if let Some(socket) = std::env::var_os(SOCKET) {
        carry(&socket);
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, producer) = pipe();
    let (consumer, sink) = pipe();
    let sent = pattern(0, 24_000_000);
    let writer = write_in_thread(producer.into(), sent.clone());
    let mut consumer = File::from(consumer);
    let mut got = Vec::new();
    // Each takes over in the middle of the stream and is killed in the middle of its work.
    for number in 0..5 {
        let mut carrier = carrier(&source, &sink, &dir.path().join(number.to_string()));
        got.extend(read_exact(&mut consumer, 4_000_000));
        carrier.kill().unwrap();
        carrier.wait().unwrap();
    }
    let mut last = carrier(&source, &sink, &dir.path().join("last"));
    drop((source, sink));
    got.extend(read_in_thread(consumer).join().unwrap());
    writer.join().unwrap();
    assert!(last.wait().unwrap().success());
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
}

/// The test harness writes to standard output, so that standard error has to be the sink.
fn carrier(source: &impl std::os::fd::AsFd, sink: &impl std::os::fd::AsFd, socket: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killing_the_carrier_loses_nothing", "--test-threads=1"])
        .env(SOCKET, socket)
        .stdin(source.as_fd().try_clone_to_owned().unwrap())
        .stdout(Stdio::null())
        .stderr(sink.as_fd().try_clone_to_owned().unwrap())
        .spawn()
        .unwrap()
}

fn carry(socket: &std::ffi::OsStr) -> ! {
    let source = rustix::io::dup(std::io::stdin()).unwrap();
    let sink = rustix::io::dup(std::io::stderr()).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    let tap = Tap { spec: TapSpec::default(), listener, allow: Arc::new(|_| true) };
    let (sender, _events) = events();
    join(Junction::start(source, vec![edge(1, sink, Some(tap))], sender).unwrap());
    std::process::exit(0);
}
