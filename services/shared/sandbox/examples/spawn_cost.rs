//! What a sandboxed command costs against an ordinary child process and against bubblewrap.
//!
//! `cargo run --release -p shipote-sandbox --example spawn_cost [ROUNDS]` runs `/bin/true` in interleaved
//! rounds and prints medians, wall time and CPU time of the whole tree (the kernel's accounting of this
//! process, its children and, for the workspace, the keeper), in microseconds.

use std::process::Command;
use std::time::{Duration, Instant};

use shipote_sandbox::{CommandSpec, Event, ExitStream, Keeper, SandboxSpec, Spawner, SpawnerConfig, Stdio};

const BWRAP: &[&str] = &[
    "--unshare-all",
    "--ro-bind",
    "/usr",
    "/usr",
    "--symlink",
    "usr/bin",
    "/bin",
    "--symlink",
    "usr/lib",
    "/lib",
    "--symlink",
    "usr/lib64",
    "/lib64",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "--tmpfs",
    "/tmp",
    "--die-with-parent",
    "--new-session",
    "--cap-drop",
    "ALL",
    "/bin/true",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(200), |text| text.parse())?;
    let spawner = Spawner::start(SpawnerConfig::default())?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(&spawner, rounds))
}

async fn measure(spawner: &Spawner, rounds: usize) -> Result<(), Box<dyn std::error::Error>> {
    let (living, mut events) = spawner.workspace(&SandboxSpec::default()).await?;
    let mut samples: [Vec<Duration>; 5] = Default::default();
    for round in 0..rounds as u64 {
        let start = Instant::now();
        Command::new("/bin/true").status()?;
        samples[0].push(start.elapsed());

        let start = Instant::now();
        run(&living, &mut events, round).await?;
        samples[1].push(start.elapsed());

        let start = Instant::now();
        let (keeper, mut own) = spawner.workspace(&SandboxSpec::default()).await?;
        samples[2].push(start.elapsed());
        run(&keeper, &mut own, 1).await?;
        keeper.end(Duration::ZERO).await?;
        samples[3].push(start.elapsed());

        let start = Instant::now();
        Command::new("bwrap").args(BWRAP).status()?;
        samples[4].push(start.elapsed());
    }
    let names = ["posix_spawn", "command in a workspace", "workspace alone", "workspace, command, end", "bwrap"];
    let base = median(&mut samples[0]);
    for (name, samples) in names.into_iter().zip(&mut samples) {
        let median = median(samples);
        println!("{name:25} {median:8.0} us  {:5.2}", median / base);
    }
    // Many at once: throughput.
    let start = Instant::now();
    let count = 500;
    let all = (0..count).map(|id| {
        let living = &living;
        async move { living.spawn(id, &command(), Stdio::default()).await }
    });
    for spawned in join_all(all).await {
        spawned?;
    }
    for _ in 0..count {
        events.next().await;
    }
    println!("{count} at once: {:.0} us each", start.elapsed().as_secs_f64() * 1e6 / count as f64);
    Ok(())
}

async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, output) in futures.iter_mut().zip(&mut outputs) {
            if output.is_none()
                && let std::task::Poll::Ready(done) = future.as_mut().poll(context)
            {
                *output = Some(done);
            }
        }
        if outputs.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

fn command() -> CommandSpec {
    CommandSpec { exec: "/bin/true".to_owned(), ..CommandSpec::default() }
}

async fn run(keeper: &Keeper, events: &mut ExitStream, id: u64) -> Result<(), Box<dyn std::error::Error>> {
    keeper.spawn(id, &command(), Stdio::default()).await?;
    match events.next().await {
        Some(Event::Exited { code: Some(0), .. }) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}

fn median(samples: &mut [Duration]) -> f64 {
    samples.sort_unstable();
    samples[samples.len() / 2].as_secs_f64() * 1e6
}
