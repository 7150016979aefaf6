//! What a junction costs compared with a plain pipe: producer and consumer are processes, the
//! rounds are interleaved, the figures are medians.
//!
//! ```sh
//! cargo run --release -p shipote-flow --example throughput -- [MIB [ROUNDS [CASE...]]] [--json]
//! ```
//!
//! One line for each case: throughput and processor time as ratios to the plain pipe; the ratio of
//! the fastest rounds tells more where other work keeps the processors busy. Processor
//! time is that of producer, consumer and junction; the second figure has the subscribers' too.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use shipote_flow::{EdgeId, EdgeSink, Junction, Tap, TapSpec};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const CASES: &[&str] = &["plain", "untapped", "tapped", "lossless-1", "lossless-4", "fan-out-2"];
const BUFFER: usize = 128 * 1024;

fn main() -> Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("produce") => return produce(args[1].parse()?),
        Some("consume") => return consume(std::io::stdin().lock()),
        Some("subscribe") => return consume(UnixStream::connect(&args[1])?),
        _ => {}
    }
    let json = args.iter().any(|arg| arg == "--json");
    args.retain(|arg| arg != "--json");
    let mib: u64 = args.first().map_or(Ok(1024), |arg| arg.parse())?;
    let rounds: usize = args.get(1).map_or(Ok(7), |arg| arg.parse())?;
    let cases: Vec<&str> = CASES
        .iter()
        .copied()
        .filter(|case| *case == "plain" || args.len() < 3 || args[2..].iter().any(|arg| arg == case))
        .collect();
    let mut all_samples = vec![Vec::new(); cases.len()];
    for _ in 0..rounds {
        for (case, samples) in cases.iter().zip(&mut all_samples) {
            samples.push(measure(case, mib << 20)?);
        }
    }
    let plain = Sample::median(&all_samples[0]);
    for (case, samples) in cases.iter().zip(&all_samples) {
        let median = Sample::median(samples);
        let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
        let throughput = ratio(plain.wall, median.wall);
        let cpu = ratio(median.cpu, plain.cpu);
        let all = ratio(median.cpu_with_subscribers, plain.cpu);
        let fastest = |samples: &[Sample]| samples.iter().map(|sample| sample.wall).min().unwrap_or_default();
        let best = ratio(fastest(&all_samples[0]), fastest(samples));
        let mib_s = mib as f64 / median.wall.as_secs_f64();
        if json {
            println!(
                r#"{{"case":"{case}","mib_per_sec":{mib_s:.0},"throughput":{throughput:.3},"throughput_of_fastest":{best:.3},"cpu":{cpu:.3},"cpu_with_subscribers":{all:.3},"rounds":{rounds}}}"#
            );
        } else {
            println!(
                "{case:12} {mib_s:7.0} MiB/s  throughput {throughput:.2} (fastest {best:.2})  cpu {cpu:.2}  with subscribers {all:.2}"
            );
        }
    }
    Ok(())
}

fn produce(mut left: u64) -> Result<()> {
    let buffer = vec![b'x'; BUFFER];
    let mut out = File::from(rustix::io::dup(std::io::stdout())?);
    while left > 0 {
        let piece = left.min(BUFFER as u64);
        out.write_all(&buffer[..usize::try_from(piece)?])?;
        left -= piece;
    }
    Ok(())
}

fn consume(mut from: impl Read) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    while from.read(&mut buffer)? > 0 {}
    Ok(())
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    wall: Duration,
    cpu: Duration,
    cpu_with_subscribers: Duration,
}

impl Sample {
    fn median(samples: &[Self]) -> Self {
        let by = |get: fn(&Self) -> Duration| {
            let mut values: Vec<_> = samples.iter().map(get).collect();
            values.sort();
            values[values.len() / 2]
        };
        Self {
            wall: by(|sample| sample.wall),
            cpu: by(|sample| sample.cpu),
            cpu_with_subscribers: by(|sample| sample.cpu_with_subscribers),
        }
    }
}

fn measure(case: &str, bytes: u64) -> Result<Sample> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("flow");
    let subscribers = case.strip_prefix("lossless-").map_or(Ok(0), str::parse::<usize>)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let before = (cpu(UsageWho::RUSAGE_SELF)?, cpu(UsageWho::RUSAGE_CHILDREN)?);

    let (consumer_in, sink) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut consumers = vec![child(&["consume"], Some(consumer_in), None)?];
    let mut listeners: Vec<Child> = Vec::new();
    let mut junction = None;
    let out = if case == "plain" {
        sink
    } else {
        let (source, out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let tap = if matches!(case, "untapped" | "fan-out-2") {
            None
        } else {
            let spec = TapSpec { lossless: subscribers > 0, ..TapSpec::default() };
            Some(Tap { spec, listener: UnixListener::bind(&socket)?, allow: Arc::new(|_| true) })
        };
        let mut edges = vec![EdgeSink { id: EdgeId(1), sink, tap }];
        if case == "fan-out-2" {
            let (second_in, sink) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            consumers.push(child(&["consume"], Some(second_in), None)?);
            edges.push(EdgeSink { id: EdgeId(2), sink, tap: None });
        }
        let (events, _) = tokio::sync::mpsc::unbounded_channel();
        junction = Some(Junction::start(source, edges, events)?);
        out
    };
    for _ in 0..subscribers {
        listeners.push(child(&["subscribe", socket.to_str().ok_or("path")?], None, None)?);
    }
    if let Some(junction) = &junction {
        while junction.stats(EdgeId(1)).is_some_and(|stats| (stats.subscribers as usize) < subscribers) {
            std::thread::yield_now();
        }
    }
    let start = Instant::now();
    let mut producer = child(&["produce", &bytes.to_string()], None, Some(out))?;
    producer.wait()?;
    for consumer in &mut consumers {
        consumer.wait()?;
    }
    let wall = start.elapsed();
    let without = cpu(UsageWho::RUSAGE_CHILDREN)?;
    if let Some(junction) = junction {
        runtime.block_on(junction.join());
    }
    for listener in &mut listeners {
        listener.wait()?;
    }
    let (own, children) = (cpu(UsageWho::RUSAGE_SELF)?, cpu(UsageWho::RUSAGE_CHILDREN)?);
    Ok(Sample {
        wall,
        cpu: own - before.0 + without - before.1,
        cpu_with_subscribers: own - before.0 + children - before.1,
    })
}

fn child(args: &[&str], stdin: Option<OwnedFd>, stdout: Option<OwnedFd>) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(args)
        .stdin(stdin.map_or(Stdio::null(), Stdio::from))
        .stdout(stdout.map_or(Stdio::null(), Stdio::from));
    Ok(command.spawn()?)
}

fn cpu(who: UsageWho) -> Result<Duration> {
    let usage = getrusage(who)?;
    let micros = [usage.user_time(), usage.system_time()].map(|time| time.tv_sec() * 1_000_000 + time.tv_usec());
    Ok(Duration::from_micros(micros.iter().sum::<i64>().try_into()?))
}
