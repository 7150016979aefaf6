//! `run`: `true` in a workspace of its own, asked for over the bus, against bubblewrap.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use shipote_bus::workspaces::{Completion, ManagerProxy, RunOptions};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::runtime::Builder;
use zbus::proxy::CacheProperties;

use super::harness::{Block, Claim, Figure, interleave};
use super::{Outcome, Setting, accounting, bubblewrap};
use crate::appliance::{self, Appliance};

/// Commands a round: the services' CPU time is counted in ticks of 10 ms, so a block must take many.
const UNITS: u32 = 50;
/// Workspace of the contender that keeps one.
pub(super) const WORKSPACE: &str = "bench";
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

const COMMAND_LINE: &str = "`shipote run -- true`, warm, end to end through the bus";
const CLIENT: &str = "Workspaces1.Run of `true`, client keeps its connection";
const LIVING: &str = "the same in a living workspace";

const CLAIMS: [(usize, Claim); 3] = [
    (1, claim("run", COMMAND_LINE, 1.0)),
    (2, claim("run-client", CLIENT, 0.6)),
    (3, claim("run-client-living", LIVING, 0.6)),
];

const fn claim(id: &'static str, what: &'static str, target: f64) -> Claim {
    Claim { id, what, against: bubblewrap::NAME, figure: Figure::Time, target }
}

/// Measures.
pub(super) fn measure(setting: &Setting) -> anyhow::Result<Outcome> {
    bubblewrap::require()?;
    let binaries = match &setting.binaries {
        Some(folder) => folder.clone(),
        None => appliance::build_shipped(&["shipote", "shipote-workspaces"])?,
    };
    let appliance = Appliance::start_services(binaries, true, &["workspaces"])?;
    let runtime = Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let client = runtime.block_on(Client::connect(&appliance.address()))?;
    let notes = runtime.block_on(client.notes())?;
    // and the two workspaces that are made ahead once the first command has run
    let idle = accounting::tree(appliance.pid())?.processes + 2;
    let all = interleave(setting.rounds, 4, |contender| {
        let used = || anyhow::Ok(accounting::own_and_ended()? + accounting::settled(appliance.pid(), idle)?.cpu);
        let before = used()?;
        let mut walls = Vec::new();
        for _ in 0..UNITS {
            let begun = Instant::now();
            match contender {
                0 => bubblewrap::run()?,
                1 => bubblewrap::succeed(&mut appliance.shipote(&["run", "--", "true"]))?,
                2 => runtime.block_on(client.run(""))?,
                _ => runtime.block_on(client.run(WORKSPACE))?,
            }
            walls.push(begun.elapsed());
        }
        Ok(Block { walls, cpu: used()? - before })
    })?;
    drop((client, runtime));
    appliance.stop()?;
    let rows = CLAIMS.iter().map(|(ours, claim)| claim.judge(&all[*ours], &all[0])).collect::<Result<_, _>>()?;
    Ok(Outcome { rows, notes })
}

/// A client that keeps its connection.
pub(super) struct Client {
    manager: ManagerProxy<'static>,
    null: File,
}

impl Client {
    /// Connects, and makes the workspace that lives through all rounds.
    pub(super) async fn connect(address: &str) -> anyhow::Result<Self> {
        let connection = zbus::connection::Builder::address(address)
            .method_timeout(CALL_TIMEOUT)
            .build()
            .await
            .with_context(|| format!("connect to {address}"))?;
        Self::over(&connection).await
    }

    /// The same over a connection that stands.
    pub(super) async fn over(connection: &zbus::Connection) -> anyhow::Result<Self> {
        let manager = ManagerProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
        manager.create_workspace(WORKSPACE, "", Default::default()).await.context("create the workspace")?;
        let null = File::options().read(true).write(true).open("/dev/null").context("open /dev/null")?;
        Ok(Self { manager, null })
    }

    pub(super) async fn run(&self, workspace: &str) -> anyhow::Result<()> {
        let stdio = vec![self.null.as_fd().into(), self.null.as_fd().into(), self.null.as_fd().into()];
        let (_, _, descriptors) =
            self.manager.run(workspace, &["true"], &RunOptions::default(), stdio).await.context("Workspaces1.Run")?;
        let completion = descriptors.into_iter().next().context("Workspaces1.Run: no completion came")?;
        let completion = OwnedFd::from(completion);
        rustix::io::ioctl_fionbio(&completion, true)?;
        let mut text = String::new();
        pipe::Receiver::from_owned_fd(completion)?.read_to_string(&mut text).await?;
        let ended: Completion = serde_json::from_str(&text).context("read the completion")?;
        if ended.exit_status != 0 {
            bail!("true in a workspace: {ended:?}");
        }
        Ok(())
    }

    /// Starts a command in the workspace that is kept, and does not wait for its end: without descriptors of the caller it is detached.
    pub(super) async fn detach(&self, argv: &[&str]) -> anyhow::Result<()> {
        self.manager.run(WORKSPACE, argv, &RunOptions::default(), Vec::new()).await.context("Workspaces1.Run")?;
        Ok(())
    }

    /// What this entry does not show.
    pub(super) async fn notes(&self) -> anyhow::Result<Vec<String>> {
        let mut notes: Vec<String> = self
            .manager
            .capabilities()
            .await
            .context("ask what is enforced")?
            .into_iter()
            .filter(|m| m.state != "enforced")
            .map(|m| format!("{} on this machine: {}: {}", m.state, m.name, m.reason))
            .collect();
        notes.push("against `crun run` and `systemd-run --wait`: entry `systemd`".into());
        Ok(notes)
    }
}
