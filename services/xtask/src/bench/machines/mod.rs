//! `machines`: a machine's start, its agent's commands and files, what it takes of the host's memory, and a pull.
//!
//! What the agent is compared with runs in the same machine, or (the start) on the same kernel under the same monitor, so
//! that both sides pay alike where the processor is emulated.

mod bare;
mod client;
mod pull;

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use self::bare::Bare;
use self::client::{Client, exec};
use super::harness::{Block, Claim, Figure, Row, budget, interleave};
use super::{Outcome, Setting, accounting};
use crate::appliance::{self, Appliance};
use crate::image;

/// Boots take seconds each where processors are emulated, and files of this size too.
const STARTS_MAX: u32 = 5;
const FILES_MAX: u32 = 3;
/// Commands a round.
const COMMANDS: u32 = 20;
/// Machines whose share of the host's memory is measured.
const MACHINES: u32 = 4;
const FILE_BYTES: u64 = 256 << 20;

/// The port of `guest.c`.
const PEER_PORT: u32 = 7000;
const PEER: &str = "/tmp/peer";

const AGENT_BYTES: f64 = 8.0 * 1024.0 * 1024.0;
const SERVICE_BYTES: f64 = 1024.0 * 1024.0;

const START: Claim = Claim {
    id: "machine-start",
    what: "`Start` over the bus until the agent has answered, 128 MiB",
    against: "the same kernel and monitor, an empty init that powers off",
    figure: Figure::Time,
    target: 1.35,
};
const EXEC: Claim = Claim {
    id: "machine-exec",
    what: "`VmExec true` on an open connection",
    against: "vsock echo with fork and exec of `true` in the guest",
    figure: Figure::Time,
    target: 2.0,
};
const FILE: Claim = Claim {
    id: "machine-file",
    what: "`shipote machine cp` of 256 MiB into a machine",
    against: "raw vsock stream of as many bytes, dropped in the guest",
    figure: Figure::Throughput,
    target: 0.5,
};

/// Measures.
pub(super) fn measure(setting: &Setting) -> anyhow::Result<Outcome> {
    let binaries = match &setting.binaries {
        Some(folder) => folder.clone(),
        None => appliance::build_shipped(&["shipote", "shipote-machines"])?,
    };
    image::ensure(false).context("make what machines are started with")?;
    let work = tempfile::tempdir().context("make a folder")?;
    let guest = bare::compile(work.path())?;
    let appliance = Appliance::start_services(binaries, true, &["machines", "proxy"])?;
    let mut bench = Bench { client: Client::connect(&appliance.address())?, appliance };
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    // What one of them cannot show here does not take the others with it.
    let mut take = |what: &str, found: anyhow::Result<Vec<Row>>| match found {
        Ok(found) => rows.extend(found),
        Err(error) => notes.push(format!("{what} not measured: {error:#}")),
    };
    take("the start is", bench.start(setting.rounds.min(STARTS_MAX), &guest, work.path()));
    take("commands and files are", bench.talk(setting.rounds, &guest, work.path()));
    let mut figures = Vec::new();
    take("the host's memory is", bench.memory(&mut figures).map(|row| vec![row]));
    take("the pull is", pull::measure(&mut bench, setting.rounds, work.path()).map(|row| vec![row]));
    notes.extend(figures);
    notes.push(format!("at most {STARTS_MAX} starts, {FILES_MAX} files and {} pulls", pull::ROUNDS_MAX));
    notes.push("CPU is that of all processes that worked for a contender, the machine's monitor included".to_owned());
    bench.appliance.stop()?;
    Ok(Outcome { rows, notes })
}

struct Bench {
    client: Client,
    appliance: Appliance,
}

impl Bench {
    /// CPU time used so far by this process, what it waited for, and the appliance with its machines.
    fn used(&self) -> anyhow::Result<Duration> {
        Ok(accounting::own_and_ended()? + accounting::tree(self.appliance.pid())?.cpu)
    }

    /// One unit of work by a contender.
    fn unit(&self, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Block> {
        let (before, begun) = (self.used()?, Instant::now());
        work()?;
        let wall = begun.elapsed();
        Ok(Block { walls: vec![wall], cpu: self.used()? - before })
    }

    /// From the wish to the agent's answer; and what the agent then takes of its machine.
    fn start(&mut self, rounds: u32, guest: &Path, work: &Path) -> anyhow::Result<Vec<Row>> {
        const NAME: &str = "start";
        self.client.create(NAME, "memory_mib = 128")?;
        self.client.start(NAME)?;
        let [monitor, ..] = self.client.processes(NAME)?[..] else { bail!("a running machine has no process") };
        let initramfs = work.join("empty.cpio");
        let init = std::fs::read(guest).context("read the guest's program")?;
        std::fs::write(&initramfs, image::with_init_only(&init)).context("write an initramfs")?;
        let bare = Bare::like(monitor, &initramfs, work)?;
        let resident = self.client.agent(NAME)?.run(&["sh", "-c", "awk '/VmRSS/ {print $2}' /proc/1/status"])?;
        let resident: f64 = resident.trim().parse().context("read the agent's memory")?;
        self.client.kill(NAME)?;
        let all = interleave(rounds, 2, |contender| {
            if contender == 1 {
                return self.unit(|| bare.boot());
            }
            let (before, begun) = (self.used()?, Instant::now());
            self.client.start(NAME)?;
            let block = Block { walls: vec![begun.elapsed()], cpu: self.used()?.saturating_sub(before) };
            self.client.kill(NAME)?;
            Ok(block)
        })?;
        let what = "resident memory of the agent in a machine of 128 MiB";
        let memory = budget("machine-agent-memory", what, "8 MiB", resident * 1024.0 / AGENT_BYTES, 1);
        Ok(vec![START.judge(&all[0], &all[1])?, memory])
    }

    /// Commands and files, beside a plain server in the same machine.
    fn talk(&mut self, rounds: u32, guest: &Path, work: &Path) -> anyhow::Result<Vec<Row>> {
        const NAME: &str = "talk";
        self.client.create(NAME, "memory_mib = 768")?;
        self.client.start(NAME)?;
        let mut agent = self.client.agent(NAME)?;
        agent.leave_running(PEER, &std::fs::read(guest).context("read the guest's program")?)?;
        let mut echo = self.peer(NAME)?;
        echo.write_all(b"e")?;
        let request = exec(&["true"], false);
        let commands = interleave(rounds, 2, |contender| {
            let before = self.used()?;
            let mut walls = Vec::new();
            for _ in 0..COMMANDS {
                let begun = Instant::now();
                if contender == 0 {
                    agent.ask(&request)?;
                } else {
                    echo.write_all(b"x")?;
                    echo.read_exact(&mut [0]).context("the echo in the guest ended")?;
                }
                walls.push(begun.elapsed());
            }
            Ok(Block { walls, cpu: self.used()?.saturating_sub(before) })
        })?;
        drop(echo);

        let file = work.join("file");
        noise(&file, FILE_BYTES)?;
        let (from, to) = (file.display().to_string(), format!("{NAME}:/tmp/file"));
        let files = interleave(rounds.min(FILES_MAX), 2, |contender| {
            if contender == 1 {
                return self.unit(|| self.stream(NAME, &file));
            }
            let copy = &mut self.appliance.shipote(&["machine", "cp", &from, &to]);
            let block = self.unit(|| super::bubblewrap::succeed(copy))?;
            // It lies in the machine's memory.
            agent.run(&["rm", "/tmp/file"])?;
            Ok(block)
        })?;
        drop(agent);
        self.client.kill(NAME)?;
        Ok(vec![EXEC.judge(&commands[0], &commands[1])?, FILE.judge(&files[0], &files[1])?])
    }

    /// A connection to the plain server, which may take a moment to listen.
    #[expect(clippy::disallowed_methods, reason = "no runtime here that it could block")]
    fn peer(&self, name: &str) -> anyhow::Result<std::os::unix::net::UnixStream> {
        let begun = Instant::now();
        loop {
            match self.client.port(name, PEER_PORT) {
                Err(_) if begun.elapsed() < Duration::from_secs(20) => std::thread::sleep(Duration::from_millis(100)),
                other => return other,
            }
        }
    }

    fn stream(&self, name: &str, file: &Path) -> anyhow::Result<()> {
        let mut peer = self.peer(name)?;
        peer.write_all(b"s")?;
        peer.write_all(&FILE_BYTES.to_le_bytes())?;
        let mut file = std::fs::File::open(file).context("open the file")?;
        let mut piece = vec![0; 1 << 20];
        loop {
            match file.read(&mut piece)? {
                0 => break,
                n => peer.write_all(&piece[..n])?,
            }
        }
        peer.read_exact(&mut [0]).context("the stream's end in the guest")
    }

    /// What each running machine adds to the proportional set sizes of the service and the keepers together: keepers are
    /// the service's own program, so that its share of what they have in common falls as they come.
    fn memory(&mut self, notes: &mut Vec<String>) -> anyhow::Result<Row> {
        let service = self.appliance.service("machines")?;
        let before = accounting::resident(service)?;
        let names: Vec<String> = (0..MACHINES).map(|n| format!("memory-{n}")).collect();
        let mut keepers = 0;
        for name in &names {
            self.client.create(name, "memory_mib = 128")?;
            self.client.start(name)?;
        }
        for name in &names {
            let [monitor, ..] = self.client.processes(name)?[..] else { bail!("a running machine has no process") };
            keepers += accounting::resident(parent(monitor)?)?;
        }
        let after = accounting::resident(service)?;
        for name in &names {
            self.client.kill(name)?;
        }
        let each = (after + keepers).saturating_sub(before) as f64 / f64::from(MACHINES);
        notes.push(format!(
            "proportional set size of shipote-machines: {} KiB, with {MACHINES} machines {} KiB and {} KiB of their keepers",
            before / 1024,
            after / 1024,
            keepers / 1024
        ));
        let what = "memory of service and keeper for each running machine, beside its monitor and vsock device";
        Ok(budget("machine-host-memory", what, "1 MiB", each / SERVICE_BYTES, MACHINES as usize))
    }
}

/// Bytes without a pattern, the same each time.
fn noise(file: &Path, bytes: u64) -> anyhow::Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut words = std::io::BufWriter::new(std::fs::File::create(file).context("create the file")?);
    for _ in 0..bytes / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        words.write_all(&state.to_le_bytes())?;
    }
    words.flush().context("write the file")
}

/// The process that a process is a child of, proc_pid_stat(5).
fn parent(pid: i32) -> anyhow::Result<u32> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_whitespace().nth(1).and_then(|field| field.parse().ok()).with_context(|| format!("read {path}"))
}
