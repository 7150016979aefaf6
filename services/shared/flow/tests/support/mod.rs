//! A junction with its ends in the hands of the test.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(unreachable_pub, reason = "it is a part of each test file")]
#![allow(clippy::unwrap_used, reason = "only functions marked as tests are excused")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use shipote_flow::{EdgeId, EdgeSink, EndReason, FlowEvent, Junction, Tap, TapSpec};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The ends of a pipe: read from the first, write to the second.
pub fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

/// Sockets of taps in a directory that goes when the test ends.
pub struct Taps {
    dir: tempfile::TempDir,
    pub spec: TapSpec,
}

impl Taps {
    pub fn new(spec: TapSpec) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), spec }
    }

    pub fn path(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    pub fn tap(&self, id: u64) -> Tap {
        self.tap_for(id, |_| true)
    }

    pub fn tap_for(&self, id: u64, allow: impl Fn(u32) -> bool + Send + Sync + 'static) -> Tap {
        let listener = UnixListener::bind(self.path(id)).unwrap();
        Tap { spec: self.spec, listener, allow: Arc::new(allow) }
    }

    pub fn connect(&self, id: u64) -> UnixStream {
        UnixStream::connect(self.path(id)).unwrap()
    }
}

pub fn events() -> (UnboundedSender<FlowEvent>, UnboundedReceiver<FlowEvent>) {
    unbounded_channel()
}

pub fn edge(id: u64, sink: OwnedFd, tap: Option<Tap>) -> EdgeSink {
    EdgeSink { id: EdgeId(id), sink, tap }
}

/// One producer and one consumer with a tap between.
pub struct Line {
    pub junction: Junction,
    pub producer: File,
    pub consumer: File,
    pub events: UnboundedReceiver<FlowEvent>,
    pub taps: Taps,
}

pub fn line(spec: TapSpec) -> Line {
    let taps = Taps::new(spec);
    let (source, producer) = pipe();
    let (consumer, sink) = pipe();
    let (sender, events) = events();
    let tap = taps.tap(1);
    let junction = Junction::start(source, vec![edge(1, sink, Some(tap))], sender).unwrap();
    Line { junction, producer: producer.into(), consumer: consumer.into(), events, taps }
}

/// Bytes in which every position of a stream looks different.
pub fn pattern(from: usize, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut word = from / 8;
    while bytes.len() < len + 8 {
        bytes.extend((word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17).to_le_bytes());
        word += 1;
    }
    bytes[from % 8..from % 8 + len].to_vec()
}

pub fn write_in_thread(mut producer: File, bytes: Vec<u8>) -> JoinHandle<()> {
    std::thread::spawn(move || producer.write_all(&bytes).unwrap())
}

pub fn read_in_thread(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

pub fn read_exact(from: &mut impl Read, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

/// The next event that isn't about what the data is.
pub fn next(events: &mut UnboundedReceiver<FlowEvent>) -> FlowEvent {
    loop {
        match events.blocking_recv().expect("the junction is running") {
            FlowEvent::Sampled { .. } => {}
            other => return other,
        }
    }
}

pub fn ended(id: u64, bytes: u64, reason: EndReason) -> FlowEvent {
    FlowEvent::Ended { id: EdgeId(id), bytes, reason }
}

pub fn join(junction: Junction) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(junction.join());
}

/// Runs the test again in a process of its own; `true` is that process, `false` the one that waited
/// for it.
pub fn in_a_process_of_its_own(test: &str) -> bool {
    const INSIDE: &str = "FLOW_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success());
    false
}
