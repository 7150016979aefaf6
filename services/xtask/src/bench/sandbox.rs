//! `sandbox`: a sandboxed command as the library makes it, in this process, against a plain child process.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use shipote_sandbox::{CommandSpec, Event, ExitStream, Keeper, SandboxSpec, Spawner, SpawnerConfig, Stdio};
use tokio::runtime::{Builder, Runtime};

use super::harness::{Block, Claim, Figure, interleave};
use super::{Outcome, Setting, accounting, bubblewrap};

/// Commands a round: enough that what the kernel accounts is far above its error.
const UNITS: u32 = 100;

const SPAWN: &str = "posix_spawn of /bin/true";
const COMMAND: &str = "a command in a living workspace, in process";
const WHOLE: &str = "a workspace made, one command in it, ended, in process";

const fn claim(id: &'static str, what: &'static str, figure: Figure) -> Claim {
    Claim { id, what, against: SPAWN, figure, target: 2.2 }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Spawn,
    Command,
    Whole,
    Bubblewrap,
}

const WAYS: [Way; 4] = [Way::Spawn, Way::Command, Way::Whole, Way::Bubblewrap];

/// Measures.
pub(super) fn measure(setting: &Setting) -> anyhow::Result<Outcome> {
    bubblewrap::require()?;
    let mut notes = Vec::new();
    let all = interleave(setting.rounds, WAYS.len(), |contender| match WAYS[contender] {
        Way::Spawn => plain(|| bubblewrap::succeed(&mut Command::new("/bin/true"))),
        Way::Bubblewrap => plain(bubblewrap::run),
        way => {
            // What the spawner and the keepers used is known when they have ended: each block has its own, and
            // what such a block costs without a command is taken off.
            let fixed = sandboxed(way, 0, &mut notes)?.cpu;
            let mut block = sandboxed(way, UNITS, &mut notes)?;
            block.cpu = block.cpu.saturating_sub(fixed);
            Ok(block)
        }
    })?;
    let rows = vec![
        claim("sandbox", COMMAND, Figure::Time).judge(&all[1], &all[0])?,
        claim("sandbox-cpu", COMMAND, Figure::Cpu).judge(&all[1], &all[0])?,
        claim("sandbox-whole", WHOLE, Figure::Time).judge(&all[2], &all[0])?,
        claim("sandbox-whole-cpu", WHOLE, Figure::Cpu).judge(&all[2], &all[0])?,
        Claim { against: bubblewrap::NAME, target: 1.0, ..claim("sandbox-whole-bwrap", WHOLE, Figure::Time) }
            .judge(&all[2], &all[3])?,
    ];
    Ok(Outcome { rows, notes })
}

fn plain(mut unit: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Block> {
    let before = accounting::own_and_ended()?;
    let mut walls = Vec::new();
    for _ in 0..UNITS {
        let begun = Instant::now();
        unit()?;
        walls.push(begun.elapsed());
    }
    Ok(Block { walls, cpu: accounting::own_and_ended()? - before })
}

fn sandboxed(way: Way, units: u32, notes: &mut Vec<String>) -> anyhow::Result<Block> {
    let before = accounting::own_and_ended()?;
    let spawner = Spawner::start(SpawnerConfig::default()).context("start the spawner")?;
    let runtime: Runtime = Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let walls = runtime.block_on(async {
        let walls = match way {
            Way::Command => in_one(&spawner, units, notes).await?,
            _ => one_each(&spawner, units).await?,
        };
        // The spawner reaps, and so accounts for, what has ended before it makes the next.
        drop(spawner.workspace(&SandboxSpec::default()).await?);
        anyhow::Ok(walls)
    })?;
    drop(runtime);
    drop(spawner);
    Ok(Block { walls, cpu: accounting::own_and_ended()? - before })
}

async fn in_one(spawner: &Spawner, units: u32, notes: &mut Vec<String>) -> anyhow::Result<Vec<Duration>> {
    let (keeper, mut events) = spawner.workspace(&SandboxSpec::default()).await?;
    if notes.is_empty() {
        let weak = keeper.mechanisms().iter().filter(|m| !m.is_enforced());
        notes.extend(weak.map(|m| format!("not enforced on this machine: {}: {}", m.name, m.reason)));
    }
    let mut walls = Vec::new();
    for id in 0..units {
        let begun = Instant::now();
        command(&keeper, &mut events, id.into()).await?;
        walls.push(begun.elapsed());
    }
    keeper.end(Duration::ZERO).await?;
    Ok(walls)
}

async fn one_each(spawner: &Spawner, units: u32) -> anyhow::Result<Vec<Duration>> {
    let mut walls = Vec::new();
    for _ in 0..units {
        let begun = Instant::now();
        let (keeper, mut events) = spawner.workspace(&SandboxSpec::default()).await?;
        command(&keeper, &mut events, 1).await?;
        keeper.end(Duration::ZERO).await?;
        walls.push(begun.elapsed());
    }
    Ok(walls)
}

/// Runs `/bin/true` and waits for its end.
pub(super) async fn command(keeper: &Keeper, events: &mut ExitStream, id: u64) -> anyhow::Result<()> {
    let command = CommandSpec { exec: "/bin/true".to_owned(), ..CommandSpec::default() };
    keeper.spawn(id, &command, Stdio::default()).await?;
    match events.next().await {
        Some(Event::Exited { code: Some(0), .. }) => Ok(()),
        other => bail!("/bin/true in a workspace: {other:?}"),
    }
}
