//! `systemd`: `true` in a workspace of its own where the appliance runs as it is installed, against what else starts
//! a command apart from others there: bubblewrap, crun, a transient unit.
//!
//! It needs systemd as PID 1 and the appliance's units. Where they are not it boots the virtual machine of
//! `cargo xtask vm` and measures in that, with the same code; only the machine is slower there, for all contenders.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::json;
use tokio::runtime::Builder;

use super::harness::{Block, Claim, Figure, Row, Whole, interleave};
use super::run::Client;
use super::{Outcome, Setting, accounting, bubblewrap};

/// Commands a round; of an emulated machine's seconds.
const UNITS: u32 = 8;
/// What the package installs.
const SERVICE: &str = "/usr/bin/shipote-workspaces";
/// Where the measurement in the virtual machine leaves its figures.
const FIGURES: &str = "/run/bench.json";

const CRUN: &str = "`crun run`, six namespaces, read-only /usr; no user namespace, no landlock, no seccomp";
const UNIT: &str = "`systemd-run --wait`, no sandbox at all";
const COMMAND_LINE: &str = "`shipote run -- true`, services as installed";
const CLIENT: &str = "Workspaces1.Run of `true`, services as installed, client keeps its connection";

/// Contender, rival, claim.
const CLAIMS: [(usize, usize, Claim); 4] = [
    (3, 0, claim("systemd-run", COMMAND_LINE, bubblewrap::NAME, 1.0)),
    (4, 0, claim("systemd-client", CLIENT, bubblewrap::NAME, 0.6)),
    (4, 1, claim("systemd-client-crun", CLIENT, CRUN, 0.3)),
    (4, 2, claim("systemd-client-unit", CLIENT, UNIT, 0.1)),
];

const fn claim(id: &'static str, what: &'static str, against: &'static str, target: f64) -> Claim {
    Claim { id, what, against, figure: Figure::Time, target }
}

/// Measures.
pub(super) fn measure(setting: &Setting) -> anyhow::Result<Outcome> {
    if Path::new("/run/systemd/system").exists() && Path::new(SERVICE).exists() {
        return here(setting);
    }
    eprintln!("bench: systemd is not PID 1 of this machine, or the appliance is not installed: in the virtual machine");
    let program = std::env::current_exe().context("find this program")?;
    let rounds = setting.rounds;
    let line =
        format!("/mnt/host/xtask bench systemd --rounds {rounds} --as-built {FIGURES} >&2 && exec cat {FIGURES}");
    let output = Command::new(program)
        .args(["vm", "run", "--release", "--", &line])
        .stderr(Stdio::inherit())
        .output()
        .context("run the virtual machine")?;
    if !output.status.success() {
        bail!("the virtual machine: {}; what it said stands above", output.status);
    }
    let rows: Vec<Whole> = serde_json::from_slice(&output.stdout).context("read the virtual machine's figures")?;
    let rows = rows.into_iter().map(Row::from).collect();
    let note = "measured in the virtual machine of `cargo xtask vm`: systemd is not PID 1 of this one";
    Ok(Outcome { rows, notes: vec![note.to_owned()] })
}

fn here(setting: &Setting) -> anyhow::Result<Outcome> {
    bubblewrap::require()?;
    let bundle = tempfile::tempdir().context("make a folder for the container")?;
    make_bundle(bundle.path())?;
    let runtime = Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let client = runtime.block_on(async {
        let connection = zbus::Connection::system().await.context("connect to the system bus")?;
        Client::over(&connection).await
    })?;
    let mut notes = runtime.block_on(client.notes())?;
    notes.push("CPU is all that the machine's processors did meanwhile".to_owned());
    let mut containers = 0_u32;
    let all = interleave(setting.rounds, 5, |contender| {
        let before = accounting::machine()?;
        let mut walls = Vec::new();
        for _ in 0..UNITS {
            let begun = Instant::now();
            match contender {
                0 => bubblewrap::run()?,
                1 => {
                    containers += 1;
                    let mut crun = Command::new("crun");
                    crun.args(["run", "--bundle"]).arg(bundle.path()).arg(format!("bench-{containers}"));
                    bubblewrap::succeed(&mut crun)?;
                }
                2 => bubblewrap::succeed(Command::new("systemd-run").args(["--quiet", "--wait", "--collect", "true"]))?,
                3 => bubblewrap::succeed(Command::new("shipote").args(["run", "--", "true"]))?,
                _ => runtime.block_on(client.run(""))?,
            }
            walls.push(begun.elapsed());
        }
        Ok(Block { walls, cpu: accounting::machine()? - before })
    })?;
    let judged = CLAIMS.iter().map(|(ours, theirs, claim)| claim.judge(&all[*ours], &all[*theirs]));
    Ok(Outcome { rows: judged.collect::<Result<_, _>>()?, notes })
}

/// An OCI bundle whose root is what bubblewrap's is: the system's programs, and no other file of the host.
fn make_bundle(folder: &Path) -> anyhow::Result<()> {
    let root = folder.join("rootfs");
    for name in ["usr", "proc", "dev", "tmp"] {
        fs::create_dir_all(root.join(name)).context("lay out the container's root")?;
    }
    for name in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(Path::new("usr").join(name), root.join(name))
            .context("lay out the container's root")?;
    }
    let kinds = ["pid", "network", "ipc", "uts", "cgroup", "mount"];
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
            {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["bind", "ro"]},
        ],
        "linux": {"namespaces": kinds.map(|kind| json!({"type": kind}))},
    });
    fs::write(folder.join("config.json"), config.to_string()).context("write the container's configuration")
}
