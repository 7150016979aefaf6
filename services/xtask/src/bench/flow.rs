//! `flow`: an edge of a pipeline with a tap on it against a plain pipe; producer and consumers are processes.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use rustix::pipe::{PipeFlags, pipe_with};
use shipote_flow::{EdgeId, EdgeSink, Junction, Tap, TapSpec};

use super::harness::{Block, Claim, Figure, interleave};
use super::{Outcome, Setting, accounting};

/// What goes over the edge each time.
const BYTES: u64 = 1 << 30;
const BUFFER: usize = 128 * 1024;
/// A junction makes the pipes on both sides of it this large, where the kernel lets it.
const WIDE: usize = 256 * 1024;

/// What the bytes go over.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// A pipe as it comes, or made as large as a junction makes them.
    Pipe { wide: bool },
    /// A junction with so many subscribers.
    Tapped { subscribers: usize },
}

const CONTENDERS: [Way; 5] = [
    Way::Pipe { wide: false },
    Way::Tapped { subscribers: 0 },
    Way::Tapped { subscribers: 1 },
    Way::Tapped { subscribers: 4 },
    Way::Pipe { wide: true },
];

const PIPE: &str = "plain pipe, 1 GiB, fastest rounds";
const PIPE_CPU: &str = "plain pipe, CPU of producer and consumer";

const CLAIMS: [(usize, Claim); 6] = [
    (1, claim("flow", "tapped edge, no subscriber", Figure::Throughput, 0.60)),
    (1, claim("flow-cpu", "tapped edge, no subscriber", Figure::Cpu, 1.3)),
    (2, claim("flow-lossless-1", "tapped edge, 1 lossless subscriber", Figure::Throughput, 0.50)),
    (2, claim("flow-lossless-1-cpu", "tapped edge, 1 lossless subscriber", Figure::Cpu, 1.6)),
    (3, claim("flow-lossless-4", "tapped edge, 4 lossless subscribers", Figure::Throughput, 0.25)),
    (3, claim("flow-lossless-4-cpu", "tapped edge, 4 lossless subscribers", Figure::Cpu, 2.5)),
];

const fn claim(id: &'static str, what: &'static str, figure: Figure, target: f64) -> Claim {
    Claim { id, what, against: if matches!(figure, Figure::Cpu) { PIPE_CPU } else { PIPE }, figure, target }
}

/// Measures.
pub(super) fn measure(setting: &Setting) -> anyhow::Result<Outcome> {
    let all = interleave(setting.rounds, CONTENDERS.len(), |contender| block(CONTENDERS[contender]))?;
    let rows = CLAIMS.iter().map(|(ours, claim)| claim.judge(&all[*ours], &all[0])).collect::<Result<_, _>>()?;
    let mut notes = vec!["CPU of the edge is producer, junction and consumer; not the subscribers".to_owned()];
    for (ours, claim) in CLAIMS.iter().filter(|(_, claim)| claim.figure == Figure::Throughput) {
        let wide = claim.judge(&all[*ours], &all[4])?;
        notes.push(format!(
            "{} against a pipe of 256 KiB, which a junction has on both sides: {:.2}, CPU {:.2}",
            claim.what, wide.ratio, wide.cpu_ratio
        ));
    }
    Ok(Outcome { rows, notes })
}

fn block(way: Way) -> anyhow::Result<Block> {
    let folder = tempfile::tempdir().context("make a folder for the flow's socket")?;
    let socket = folder.path().join("flow");
    let subscribers = if let Way::Tapped { subscribers } = way { subscribers } else { 0 };
    let runtime = tokio::runtime::Builder::new_current_thread().build().context("start the runtime")?;
    let children = accounting::ended_children()?;

    let (consumer_in, sink) = pipe_with(PipeFlags::CLOEXEC)?;
    let consumer = Worker::Consume.start(Some(consumer_in), None)?;
    let (out, junction) = match way {
        Way::Pipe { wide } => {
            if wide {
                rustix::pipe::fcntl_setpipe_size(&sink, WIDE).context("enlarge the pipe")?;
            }
            (sink, None)
        }
        Way::Tapped { .. } => {
            let (source, out) = pipe_with(PipeFlags::CLOEXEC)?;
            let spec = TapSpec { lossless: subscribers > 0, ..TapSpec::default() };
            let listener = UnixListener::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
            let tap = Some(Tap { spec, listener, allow: Arc::new(|_| true) });
            let (events, _) = tokio::sync::mpsc::unbounded_channel();
            let edge = EdgeSink { id: EdgeId(1), sink, tap };
            (out, Some(Junction::start(source, vec![edge], events).context("start the junction")?))
        }
    };
    let listeners = (0..subscribers)
        .map(|_| Worker::Subscribe { socket: socket.clone() }.start(None, None))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(junction) = &junction {
        while junction.stats(EdgeId(1)).is_some_and(|stats| (stats.subscribers as usize) < subscribers) {
            std::thread::yield_now();
        }
    }
    // Subscribing took this process CPU time that the flow did not.
    let waited = accounting::own()?;
    let began = Instant::now();
    let producer = Worker::Produce { bytes: BYTES }.start(None, Some(out))?;
    end(producer)?;
    end(consumer)?;
    let wall = began.elapsed();
    let without_subscribers = accounting::ended_children()? - children;
    if let Some(junction) = junction {
        runtime.block_on(junction.join());
    }
    let used = accounting::own()? - waited + without_subscribers;
    for listener in listeners {
        end(listener)?;
    }
    Ok(Block { walls: vec![wall], cpu: used })
}

fn end(mut child: Child) -> anyhow::Result<()> {
    let status = child.wait().context("wait for a worker")?;
    if !status.success() {
        bail!("a worker of the measurement failed: {status}");
    }
    Ok(())
}

/// A process at an end of the edge.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum Worker {
    /// Writes so many bytes to standard output.
    Produce {
        /// How many.
        bytes: u64,
    },
    /// Reads standard input to its end; it must be whole.
    Consume,
    /// Reads a flow's socket to its end; it must be whole.
    Subscribe {
        /// The socket.
        socket: PathBuf,
    },
}

impl Worker {
    fn start(&self, stdin: Option<OwnedFd>, stdout: Option<OwnedFd>) -> anyhow::Result<Child> {
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.arg("bench-worker");
        match self {
            Worker::Produce { bytes } => command.args(["produce", &bytes.to_string()]),
            Worker::Consume => command.arg("consume"),
            Worker::Subscribe { socket } => command.arg("subscribe").arg(socket),
        };
        command.stdin(stdin.map_or(Stdio::null(), Stdio::from)).stdout(stdout.map_or(Stdio::null(), Stdio::from));
        command.spawn().context("start a worker")
    }

    /// The worker's whole life.
    pub(crate) fn work(&self) -> anyhow::Result<ExitCode> {
        match self {
            Worker::Produce { bytes } => produce(*bytes)?,
            Worker::Consume => consume(File::from(rustix::io::dup(rustix::stdio::stdin())?))?,
            Worker::Subscribe { socket } => consume(UnixStream::connect(socket).context("subscribe")?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn produce(mut left: u64) -> anyhow::Result<()> {
    let buffer = vec![b'x'; BUFFER];
    let mut out = File::from(rustix::io::dup(rustix::stdio::stdout())?);
    while left > 0 {
        let piece = left.min(BUFFER as u64);
        out.write_all(&buffer[..usize::try_from(piece)?]).context("produce")?;
        left -= piece;
    }
    Ok(())
}

fn consume(mut from: impl Read) -> anyhow::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut total = 0;
    loop {
        match from.read(&mut buffer).context("consume")? {
            0 if total == BYTES => return Ok(()),
            0 => bail!("{total} of {BYTES} bytes came"),
            n => total += n as u64,
        }
    }
}
