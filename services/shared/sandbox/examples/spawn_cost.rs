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

/// One way to run `/bin/true`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    PosixSpawn,
    InWorkspace,
    OwnWorkspace,
    Bubblewrap,
}

const WAYS: [(Way, &str); 4] = [
    (Way::PosixSpawn, "posix_spawn"),
    (Way::InWorkspace, "command in a workspace"),
    (Way::OwnWorkspace, "workspace, command, end"),
    (Way::Bubblewrap, "bwrap"),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(200), |text| text.parse())?;
    let mut wall: [Vec<Duration>; 4] = Default::default();
    let mut cpu: [Vec<Duration>; 4] = Default::default();
    const BLOCK: usize = 20;
    for _ in 0..rounds.div_ceil(BLOCK) {
        for (index, (way, _)) in WAYS.into_iter().enumerate() {
            let before = cpu_time();
            // A spawner for each block, because what it used is known when it has ended.
            let spawner = Spawner::start(SpawnerConfig::default())?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(block(&spawner, way, BLOCK, &mut wall[index]))?;
            drop(runtime);
            drop(spawner);
            cpu[index].push((cpu_time() - before) / BLOCK as u32);
        }
    }
    let (base_wall, base_cpu) = (median(&mut wall[0]), median(&mut cpu[0]));
    println!("{:25} {:>9} {:>6}  {:>9} {:>6}", "", "wall us", "ratio", "cpu us", "ratio");
    for ((_, name), (wall, cpu)) in WAYS.into_iter().zip(wall.iter_mut().zip(&mut cpu)) {
        let (wall, cpu) = (median(wall), median(cpu));
        println!("{name:25} {wall:9.0} {:6.2}  {cpu:9.0} {:6.2}", wall / base_wall, cpu / base_cpu);
    }
    let spawner = Spawner::start(SpawnerConfig::default())?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(many(&spawner))
}

/// CPU time of this process and of its children that have ended.
fn cpu_time() -> Duration {
    let of = |who| {
        // SAFETY: rusage is plain numbers and outlives the call.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(who, &raw mut usage);
            usage
        };
        let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
        time(usage.ru_utime) + time(usage.ru_stime)
    };
    of(libc::RUSAGE_SELF) + of(libc::RUSAGE_CHILDREN)
}

async fn block(
    spawner: &Spawner,
    way: Way,
    count: usize,
    wall: &mut Vec<Duration>,
) -> Result<(), Box<dyn std::error::Error>> {
    let spec = SandboxSpec::default();
    let mut living = if way == Way::InWorkspace { Some(spawner.workspace(&spec).await?) } else { None };
    for round in 0..count {
        let start = Instant::now();
        match way {
            Way::PosixSpawn => {
                Command::new("/bin/true").status()?;
            }
            Way::Bubblewrap => {
                Command::new("bwrap").args(BWRAP).status()?;
            }
            Way::InWorkspace => {
                if let Some((keeper, events)) = &mut living {
                    run(keeper, events, round as u64).await?;
                }
            }
            Way::OwnWorkspace => {
                let (keeper, mut events) = spawner.workspace(&spec).await?;
                run(&keeper, &mut events, 1).await?;
                keeper.end(Duration::ZERO).await?;
            }
        }
        wall.push(start.elapsed());
    }
    if let Some((keeper, _)) = living {
        keeper.end(Duration::ZERO).await?;
    }
    // The spawner reaps keepers before it makes the next, and so accounts for them.
    let (last, _) = spawner.workspace(&spec).await?;
    drop(last);
    Ok(())
}

async fn many(spawner: &Spawner) -> Result<(), Box<dyn std::error::Error>> {
    let (living, mut events) = spawner.workspace(&SandboxSpec::default()).await?;
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
