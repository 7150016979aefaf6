//! Machines come, run and go.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, bail};
use clap::Args;
use futures_util::StreamExt as _;
use serde_json::json;
use shipote_bus::machines::{MachinesError, MachinesProxy};

use super::{machines, patient_machines, refusal, spec_refusal};
use crate::spec::{read_spec, source};
use crate::{output, units};

/// What a machine is given.
#[derive(Debug, Args)]
pub(super) struct Size {
    /// Memory: 512M, 2G, or MiB [default: 256]
    #[arg(long, value_name = "SIZE", value_parser = units::mebibytes)]
    memory: Option<u32>,
    /// Processors, 1 to 64 [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=64))]
    cpus: Option<u8>,
    /// Processor time of this host that it may take, in percent of one processor [default: 100 for each of --cpus]
    #[arg(long, value_name = "PERCENT")]
    cpu_percent: Option<u32>,
    /// Board: microvm, or q35, which has firmware and PCI and starts a little later [default: microvm]
    #[arg(long, value_name = "BOARD")]
    board: Option<String>,
    /// Disk for images, which stays when the machine stops: 4G, or MiB [default: none, images are kept in memory]
    #[arg(long, value_name = "SIZE", value_parser = units::mebibytes)]
    disk: Option<u32>,
    /// What it may reach through the proxy: `HOST[:PORT]`, `*.DOMAIN[:PORT]`, an address or a network; without a port 80 and
    /// 443; may be repeated [default: nothing]
    #[arg(long, value_name = "HOST")]
    egress: Vec<String>,
    /// Hold connections to other hosts until somebody says `shipote egress approve`, instead of refusing them
    #[arg(long)]
    egress_ask: bool,
    /// Let it use the SSH agent that listens on this socket, as $SSH_AUTH_SOCK names it
    #[arg(long, value_name = "SOCKET")]
    ssh_agent: Option<std::path::PathBuf>,
    /// Publish a port or socket of it on a port of this host's loopback, or a port for the proxy alone; may be repeated
    #[arg(long, value_name = "HOST:GUEST|GUEST")]
    publish: Vec<String>,
    /// Give it a folder of this host at a path of its own, with `:ro` to be read only; may be repeated
    #[arg(long, value_name = "HOST:GUEST[:ro]")]
    volume: Vec<String>,
    /// Look after it by a command in it, run by /bin/sh, that succeeds while it does what it is for
    #[arg(long, value_name = "COMMAND", conflicts_with = "health_port")]
    health_command: Option<String>,
    /// Look after it by a TCP port in it that takes connections while it does what it is for
    #[arg(long, value_name = "PORT")]
    health_port: Option<u16>,
    /// Time between two looks: 30s, 5m, or seconds
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::whole_seconds)]
    health_interval: u32,
    /// Failures in a row after which it is unhealthy, and started anew if --restart says so
    #[arg(long, value_name = "N", default_value_t = 3)]
    health_failures: u32,
    /// Have it sleep when nobody needed it for this time (5m, 1h, or seconds); the first request or command wakes it
    #[arg(long, value_name = "TIME", value_parser = units::whole_seconds)]
    idle: Option<u32>,
    /// How it sleeps: pause (its memory stays), or stop (it is shut down and started again)
    #[arg(long, value_name = "HOW", default_value = "pause", requires = "idle")]
    idle_then: String,
    /// Start it again by itself: no, on-failure or always [default: no]
    #[arg(long, value_name = "WHEN")]
    restart: Option<String>,
}

/// What a machine is for.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// Image on its disk that the command is started in [default: the agent's own root]
    #[arg(long, value_name = "IMAGE")]
    run_image: Option<String>,
    /// Program and arguments, started each time the machine is
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

impl Run {
    /// As a section of a spec.
    fn section(&self) -> String {
        let command =
            if self.command.is_empty() { String::new() } else { format!("command = {}\n", json!(self.command)) };
        match &self.run_image {
            None if command.is_empty() => command,
            None => format!("[run]\n{command}"),
            Some(image) => format!("[run]\n{command}image = {}\n", json!(image)),
        }
    }
}

impl Size {
    /// As a spec.
    pub(super) fn spec(&self) -> String {
        self.spec_with(&[])
    }

    /// As a spec that allows some more to be reached.
    pub(super) fn spec_with(&self, egress: &[String]) -> String {
        let rules: Vec<&String> = self.egress.iter().chain(egress).collect();
        let volumes: Vec<String> = self.volume.iter().map(|text| absolute(text)).collect();
        let given = [
            ("memory_mib", self.memory.map(|n| json!(n))),
            ("cpus", self.cpus.map(|n| json!(n))),
            ("cpu_percent", self.cpu_percent.map(|n| json!(n))),
            ("board", self.board.as_ref().map(|board| json!(board))),
            ("disk_mib", self.disk.map(|n| json!(n))),
            ("egress", (!rules.is_empty()).then(|| json!(rules))),
            ("egress_ask", self.egress_ask.then_some(json!(true))),
            ("ssh_agent", self.ssh_agent.as_ref().map(|socket| json!(socket.display().to_string()))),
            ("publish", (!self.publish.is_empty()).then(|| json!(self.publish))),
            ("volumes", (!volumes.is_empty()).then(|| json!(volumes))),
            ("restart", self.restart.as_ref().map(|when| json!(when))),
        ];
        // Numbers, strings and lists of them are TOML as much as JSON. What is not said is the service's to say.
        let mut text: String =
            given.iter().filter_map(|(key, value)| Some(format!("{key} = {}\n", value.as_ref()?))).collect();
        if let Some(seconds) = self.idle {
            text += &format!("[idle]\nafter_s = {seconds}\nthen = {}\n", json!(self.idle_then));
        }
        let check = match (&self.health_command, self.health_port) {
            (Some(command), _) => format!("command = {}", json!(["/bin/sh", "-c", command])),
            (None, Some(port)) => format!("port = {port}"),
            (None, None) => return text,
        };
        text +=
            &format!("[health]\n{check}\ninterval_s = {}\nfailures = {}\n", self.health_interval, self.health_failures);
        text
    }
}

/// A volume as the service wants it: the host's folder by its own path, whatever this process's folder and links.
fn absolute(volume: &str) -> String {
    let Some((host, rest)) = volume.split_once(':') else { return volume.to_owned() };
    match std::fs::canonicalize(host).ok().and_then(|path| path.into_os_string().into_string().ok()) {
        Some(host) => format!("{host}:{rest}"),
        // The service says what is wrong with it.
        None => volume.to_owned(),
    }
}

/// A spec as the service gets it, and where it is from.
pub(super) struct Spec {
    text: String,
    /// Its file, if it has one.
    source: Option<String>,
    /// Options say something otherwise than the file.
    changed: bool,
}

/// The spec of a file, if any, with what the options say otherwise.
pub(super) fn spec(file: Option<&Path>, size: &Size, run: &Run) -> anyhow::Result<Spec> {
    let given = size.spec() + &run.section();
    let Some(file) = file else { return Ok(Spec { text: given, source: None, changed: false }) };
    let (text, source) = (read_spec(file)?, source(file));
    if given.is_empty() {
        // As it is, so that what the service says of it is about its lines.
        return Ok(Spec { text, source: Some(source), changed: false });
    }
    let mut spec: toml::Table = shipote_config::parse(&text, &source)?;
    spec.extend(toml::from_str::<toml::Table>(&given).context("read the options as a spec")?);
    Ok(Spec { text: toml::to_string(&spec)?, source: Some(source), changed: true })
}

pub(super) async fn create(name: &str, from: Option<&str>, spec: &Spec, json: bool) -> anyhow::Result<()> {
    let options = from.map(|from| ("from", zbus::Variant::from(from))).into_iter().collect();
    let machines = if from.is_some() { patient_machines().await? } else { machines().await? };
    let created = machines.create(name, &spec.text, options).await;
    created.map_err(|e| spec_refusal(&e, spec.source.as_deref(), spec.changed))?;
    told(name, "stopped", json)
}

pub(super) async fn start(name: &str, json: bool) -> anyhow::Result<()> {
    begin(&machines().await?, name).await?;
    told(name, "running", json)
}

pub(super) async fn stop(name: &str, grace: u64, json: bool) -> anyhow::Result<()> {
    end(&machines().await?, name, grace).await?;
    told(name, "stopped", json)
}

pub(super) async fn remove(name: &str, force: bool, json: bool) -> anyhow::Result<()> {
    let machines = machines().await?;
    if force {
        match end(&machines, name, 0).await {
            Err(error) if !matches!(error.downcast_ref(), Some(NotRunning)) => return Err(error),
            _ => {}
        }
    }
    machines.delete(name, BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    told(name, "removed", json)
}

fn told(name: &str, state: &str, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&json!({"name": name, "state": state}));
    }
    println!("{name} {state}");
    Ok(())
}

/// It has no monitor that could be ended.
#[derive(Debug, thiserror::Error)]
#[error("the machine does not run")]
pub(crate) struct NotRunning;

/// Starts a machine and waits until it runs.
pub(crate) async fn begin(machines: &MachinesProxy<'_>, name: &str) -> anyhow::Result<()> {
    // Listened for before it is asked for, so that nothing is missed in between.
    let mut changes = machines.receive_state_changed().await.context("listen to the machines service")?;
    machines.start(name, BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    while let Some(change) = changes.next().await {
        let change = change.args().context("understand the machines service")?;
        match change.state.as_str() {
            _ if change.name != name => {}
            "running" => return warn(machines, name).await,
            "failed" | "stopped" => {
                bail!("start machine {name}: {}; `shipote machine logs {name}` shows its console", change.reason)
            }
            _ => {}
        }
    }
    bail!("start machine {name}: the bus closed the connection")
}

/// Says what a machine that runs cannot have at present.
async fn warn(machines: &MachinesProxy<'_>, name: &str) -> anyhow::Result<()> {
    let details = machines.inspect(name, BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    for problem in details.unavailable.iter().flatten() {
        eprintln!("shipote: machine {name}: {}", output::readable(problem));
    }
    Ok(())
}

/// Ends a machine and waits until it has.
pub(crate) async fn end(machines: &MachinesProxy<'_>, name: &str, grace: u64) -> anyhow::Result<()> {
    let mut changes = machines.receive_state_changed().await.context("listen to the machines service")?;
    match machines.stop(name, grace, BTreeMap::new()).await {
        Err(error @ MachinesError::WrongState(_)) => return Err(refusal(&error).context(NotRunning)),
        other => other.map_err(|e| refusal(&e))?,
    }
    while let Some(change) = changes.next().await {
        let change = change.args().context("understand the machines service")?;
        if change.name == name && matches!(change.state.as_str(), "stopped" | "failed") {
            return Ok(());
        }
    }
    bail!("stop machine {name}: the bus closed the connection")
}

pub(super) async fn pause(name: &str, paused: bool, json: bool) -> anyhow::Result<()> {
    let machines = machines().await?;
    let mut changes = machines.receive_state_changed().await.context("listen to the machines service")?;
    let wanted = if paused { "paused" } else { "running" };
    let details = machines.inspect(name, BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    let options = BTreeMap::new();
    let asked = if paused { machines.pause(name, options).await } else { machines.resume(name, options).await };
    asked.map_err(|e| refusal(&e))?;
    if details.state == wanted {
        return told(name, wanted, json);
    }
    while let Some(change) = changes.next().await {
        let change = change.args().context("understand the machines service")?;
        if change.name == name {
            return match change.state.as_str() {
                state if state == wanted => told(name, wanted, json),
                state => bail!("machine {name} is {state} instead of {wanted}: {}", change.reason),
            };
        }
    }
    bail!("machine {name}: the bus closed the connection")
}

/// Bytes of a size, or 0 for `all`.
pub(super) fn memory(text: &str) -> Result<u64, String> {
    match crate::units::bytes(text) {
        _ if text == "all" => Ok(0),
        Ok(0) => Err("no machine lives without memory".to_owned()),
        other => other.map_err(|problem| format!("{problem}, or `all`")),
    }
}

pub(super) async fn set_memory(name: &str, bytes: u64, json: bool) -> anyhow::Result<()> {
    let target = machines().await?.set_memory(name, bytes, BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    if json {
        return output::json(&json!({"name": name, "memory_target_bytes": target}));
    }
    println!("{name} is to make do with {} MiB", target >> 20);
    Ok(())
}

pub(super) async fn stats(name: &str, json: bool) -> anyhow::Result<()> {
    let details = machines().await?.inspect(name, BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    if json {
        return output::json(&details);
    }
    println!("{} is {}", details.name, details.state);
    println!("memory     {} MiB", details.memory_bytes >> 20);
    let (has, target) = (details.guest_memory_bytes >> 20, details.guest_memory_target_bytes >> 20);
    if has > 0 {
        println!("guest      {has} MiB{}", if has == target { String::new() } else { format!(", to be {target} MiB") });
    }
    println!("processor  {}.{:03} s", details.cpu_usec / 1_000_000, details.cpu_usec / 1000 % 1000);
    for problem in details.unavailable.iter().flatten() {
        println!("not there  {}", output::readable(problem));
    }
    for (mechanism, state, reason) in &details.confinement {
        println!("{mechanism:<18} {state}{}{reason}", if reason.is_empty() { "" } else { ": " });
    }
    Ok(())
}

pub(super) async fn list(json: bool) -> anyhow::Result<()> {
    let list = machines().await?.list(BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    if json {
        return output::json(&json!({"machines": list}));
    }
    let row = |machine: shipote_bus::machines::MachineInfo| {
        let disk = if machine.disk_mib > 0 { format!(", {} MiB disk", machine.disk_mib) } else { String::new() };
        let less = machine.memory_target_mib < machine.memory_mib;
        let target = if less { format!("{} of ", machine.memory_target_mib) } else { String::new() };
        let size = format!("{target}{} MiB, {} cpu{disk}", machine.memory_mib, machine.cpus);
        let state = match machine.health.as_str() {
            "" => machine.state,
            health => format!("{} ({health})", machine.state),
        };
        let state = if machine.sleeps == 0 {
            state
        } else {
            let (given_back, waking) = (machine.memory_given_back >> 20, machine.wake_usec / 1000);
            format!("{state}, slept {} times ({given_back} MiB given back, woken in {waking} ms)", machine.sleeps)
        };
        vec![machine.name, state, size, machine.publish.join(" "), machine.reason]
    };
    output::print_table(
        &["NAME", "STATE", "SIZE", "PUBLISHES", "REASON"],
        list.into_iter().map(row).collect(),
        "no machines",
    );
    Ok(())
}

pub(super) async fn logs(name: &str) -> anyhow::Result<()> {
    let pipe = machines().await?.console(name, BTreeMap::new()).await.map_err(|e| refusal(&e))?;
    let mut text = std::fs::File::from(std::os::fd::OwnedFd::from(pipe));
    let mut out = std::io::stdout().lock();
    // A reader that went away is no error.
    let _ = std::io::copy(&mut text, &mut out).and_then(|_| out.flush());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_folder_of_a_volume_is_named_by_its_own_path() {
        let here = std::env::current_dir().and_then(std::fs::canonicalize).unwrap();
        assert_eq!(absolute(".:/work:ro"), format!("{}:/work:ro", here.display()));
        assert_eq!(absolute("/no/such/folder:/x"), "/no/such/folder:/x");
        assert_eq!(absolute("nothing"), "nothing");
    }
}
