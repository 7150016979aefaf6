//! Clients that come and go by the hundred, in processes of their own: some leave, some are killed in mid-call.

use std::{collections::BTreeSet, process::ExitCode, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, future::join_all};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
    time::{interval, timeout},
};
use zbus::{Connection, fdo::DBusProxy, names::BusName};

use super::{
    Trial, connect,
    service::{INTERFACE, NAME, PATH, SLOW_NAME, Slow},
};

/// Connections of one such process.
const CONNECTIONS: usize = 20;
/// The name of the callee that dies.
const DYING: &str = "org.shipote.Trial1.Dying";

/// What a client process does.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum Role {
    /// Connects many times, checks credentials, calls, leaves.
    Caller,
    /// Has calls under way when it is killed.
    Hanging,
    /// Is called when it is killed.
    Callee,
}

impl Role {
    fn argument(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Hanging => "hanging",
            Self::Callee => "callee",
        }
    }
}

/// The other side: what the started process does.
pub(super) async fn client(role: Role, address: &str) -> Result<ExitCode> {
    if matches!(role, Role::Callee) {
        let bus = connect(address).await?;
        bus.object_server().at(PATH, Slow).await?;
        bus.request_name(DYING).await?;
        println!("ready");
        std::future::pending::<()>().await;
    }
    let buses = join_all((0..CONNECTIONS).map(|_| connect(address))).await.into_iter().collect::<Result<Vec<_>>>()?;
    match role {
        Role::Caller => {
            let ledger = super::report::Ledger::default();
            for bus in &buses {
                super::load::check_own_credentials(bus, &ledger).await?;
                let bytes = vec![7_u8; 100];
                let answer = bus.call_method(Some(NAME), PATH, Some(INTERFACE), "Echo", &(&bytes)).await?;
                ensure!(answer.body().deserialize::<Vec<u8>>()? == bytes, "wrong echo");
            }
        }
        _ => {
            let calls: Vec<_> = buses
                .iter()
                .map(|bus| bus.call_method(Some(SLOW_NAME), PATH, Some(SLOW_NAME), "Wait", &3000_u64))
                .collect();
            println!("ready");
            join_all(calls).await;
            bail!("was not killed in time");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts client processes until the trial ends.
pub(super) async fn run(trial: &Trial) {
    let outcome = async {
        let watcher = trial.connect().await?;
        let driver = DBusProxy::new(&watcher).await?;
        let mut changes = driver.receive_name_owner_changed().await?;
        let mut living: BTreeSet<String> = unique_names(&driver).await?;
        let mut tick = interval(Duration::from_secs(1));
        let mut round = 0_u64;
        let work = async {
            while trial.running() {
                tick.tick().await;
                let (_, _, _) = tokio::join!(
                    checked(trial, "client processes that leave", caller(trial)),
                    checked(trial, "client processes killed in mid-call", hanging(trial)),
                    async {
                        if round.is_multiple_of(5) {
                            checked(trial, "callees killed in mid-call", callee(trial)).await;
                        }
                    },
                );
                round += 1;
            }
        };
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                () = &mut work => break,
                change = changes.next() => {
                    let change = change.context("end of the stream of owners")?;
                    track(&mut living, &change.args()?);
                }
            }
        }
        // What is on its way by then: the other parts' connections still come and go.
        while let Ok(Some(change)) = timeout(Duration::from_secs(2), changes.next()).await {
            track(&mut living, &change.args()?);
        }
        let listed = unique_names(&driver).await?;
        let differ: Vec<_> = listed.symmetric_difference(&living).collect();
        ensure!(differ.is_empty(), "NameOwnerChanged and ListNames differ by {differ:?}");
        Ok::<_, anyhow::Error>(())
    };
    trial.ledger.check("NameOwnerChanged tells of every connection", outcome.await);
}

fn track(living: &mut BTreeSet<String>, change: &zbus::fdo::NameOwnerChangedArgs<'_>) {
    let BusName::Unique(name) = &change.name else { return };
    if change.new_owner.is_some() {
        living.insert(name.to_string());
    } else {
        living.remove(name.as_str());
    }
}

async fn unique_names(driver: &DBusProxy<'_>) -> Result<BTreeSet<String>> {
    let names = driver.list_names().await?;
    Ok(names.iter().map(ToString::to_string).filter(|n| n.starts_with(':')).collect())
}

async fn checked(trial: &Trial, what: &'static str, work: impl Future<Output = Result<()>>) {
    trial.ledger.check(what, work.await);
}

fn start(trial: &Trial, role: Role) -> Result<Child> {
    Command::new(std::env::current_exe()?)
        .args(["bus-trial", "--client", role.argument(), "--address", &trial.address])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start a client process")
}

/// Waits until the client says that it is under way.
async fn ready(child: &mut Child) -> Result<()> {
    let stdout = child.stdout.take().context("no output")?;
    let mut line = String::new();
    timeout(Duration::from_secs(10), BufReader::new(stdout).read_line(&mut line)).await??;
    if line != "ready\n" {
        let mut error = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            stderr.read_to_string(&mut error).await?;
        }
        bail!("{}", error.trim());
    }
    Ok(())
}

async fn caller(trial: &Trial) -> Result<()> {
    let output = timeout(Duration::from_secs(20), start(trial, Role::Caller)?.wait_with_output()).await??;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

async fn hanging(trial: &Trial) -> Result<()> {
    let mut child = start(trial, Role::Hanging)?;
    ready(&mut child).await?;
    child.kill().await?;
    Ok(())
}

/// Calls a process that is killed before it answers: the bus must answer in its place.
async fn callee(trial: &Trial) -> Result<()> {
    let mut child = start(trial, Role::Callee)?;
    ready(&mut child).await?;
    let bus: Connection = trial.connect().await?;
    let call = bus.call_method(Some(DYING), PATH, Some(SLOW_NAME), "Wait", &60_000_u64);
    let kill = async {
        // Let the call be on its way first.
        tokio::time::sleep(Duration::from_millis(100)).await;
        child.kill().await
    };
    let (answer, killed) = tokio::join!(timeout(Duration::from_secs(3), call), kill);
    killed?;
    match answer {
        Err(_) => bail!("the call to the killed process had no answer for three seconds"),
        Ok(Ok(_)) => bail!("the killed process answered"),
        Ok(Err(_)) => Ok(()),
    }
}
