//! `shipote run`: one command in a workspace. Standard input, output and error are handed
//! over as descriptors, so not a byte goes through us or over the bus.

pub(crate) mod limits;
pub(crate) mod terminal;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use shipote_agent_protocol::session::{STATUS_FAILED, STATUS_NOT_EXECUTABLE, STATUS_NOT_FOUND};
use shipote_bus::proxy::DenialInfo;
use shipote_bus::workspaces::{Completion, ManagerProxy, RunOptions, WorkspacesError};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;

use crate::signals::Forwarded;
use crate::spec::{key_value, read_spec};
use crate::{output, units};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  shipote run -- uname -a\n  echo hello | shipote run -- tr a-z A-Z\n  \
    shipote run -t -- bash\n  id=$(shipote run --detach -t -- bash); shipote attach $id\n  shipote run -w build --timeout 60 -- make test\n  \
    shipote run --memory 512M --pids 64 --cpus 1.5 -- ./untrusted\n  \
    shipote run --explain -- make install\n  shipote run --egress crates.io --egress '*.crates.io' -- cargo fetch\n  \
    shipote run -w build --wasm wc@^1 --dir /work -- -l /work/log\n\n\
    Exit status: the command's own; 128 + N if signal N ended it; 124 after --timeout;\n\
    125 if Shipote failed, 126 if the program cannot be executed, 127 if it is not there.")]
pub(crate) struct RunArgs {
    /// Workspace, by name or id; without it the command has one of its own, which ends with it
    #[arg(short, long, value_name = "WS")]
    pub(crate) workspace: Option<String>,
    /// Hand over standard input (the default); with --detach: keep it open for `shipote attach`
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal of the workspace's own; with --detach: for `shipote attach`
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Environment, beside the workspace's
    #[arg(short, long, value_name = "K=V", value_parser = key_value)]
    pub(crate) env: Vec<(String, String)>,
    /// Working folder inside the workspace [default: /work]
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,
    /// End it after this time: 90s, 1m30s, or seconds
    #[arg(long, value_name = "TIME", value_parser = units::some_seconds)]
    pub(crate) timeout: Option<Duration>,
    /// Start it again when it fails, at most N times in a row; after a minute of health it counts anew
    #[arg(long, value_name = "on-failure[:N]", value_parser = restart_policy, conflicts_with = "tty")]
    restart: Option<String>,
    /// Leave it running, print its id; `shipote logs` shows its output, `shipote attach` joins it
    #[arg(short, long)]
    detach: bool,
    /// Spec (TOML) of the workspace that is made for it
    #[arg(short = 'f', long, value_name = "FILE", conflicts_with = "workspace")]
    file: Option<PathBuf>,
    /// Let it reach this host (example.com, *.example.org:8443, 10.0.0.0/8:5432) through the proxy, and nothing else
    #[arg(long, value_name = "HOST", conflicts_with_all = ["workspace", "file"])]
    egress: Vec<String>,
    /// Refuse where a mechanism of isolation is degraded or missing
    #[arg(long)]
    strict: bool,
    /// Say on standard error, once it has ended, which paths, addresses and system calls it was refused
    #[arg(long, conflicts_with = "detach")]
    explain: bool,
    /// Name in lists [default: the program's]
    #[arg(long)]
    label: Option<String>,
    #[command(flatten)]
    limits: limits::LimitArgs,
    /// Print one JSON object when it has ended (detached: when it has started)
    #[arg(long)]
    json: bool,
    /// Run a command component of the plugin registry (NAME, NAME@^1 or sha256:HEX); CMD is its arguments
    #[arg(long, value_name = "REF", conflicts_with_all = ["tty", "cwd"])]
    wasm: Option<String>,
    /// A folder of the workspace that the component may use; without it it has no file at all
    #[arg(long, value_name = "DIR", requires = "wasm")]
    dir: Vec<String>,
    /// Program and arguments
    #[arg(required_unless_present = "wasm", trailing_var_arg = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

impl RunArgs {
    /// An option that is given and makes sense in a workspace only.
    pub(crate) fn only_in_workspaces(&self) -> anyhow::Result<Option<&'static str>> {
        let given = [
            ("--detach", self.detach),
            ("--restart", self.restart.is_some()),
            ("--file", self.file.is_some()),
            ("--egress", !self.egress.is_empty()),
            ("--strict", self.strict),
            ("--explain", self.explain),
            ("--label", self.label.is_some()),
            ("a limit", self.limits.soma()?.is_some()),
            ("--json", self.json),
            ("--wasm", self.wasm.is_some()),
        ];
        Ok(given.into_iter().find_map(|(name, given)| given.then_some(name)))
    }
}

/// The policy as the service reads it.
fn restart_policy(text: &str) -> Result<String, String> {
    let limit = match text.strip_prefix("on-failure") {
        Some("") => Some(0),
        Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse::<u32>().ok()).filter(|n| *n > 0),
        None => None,
    };
    limit
        .map(|limit| format!("limit = {limit}"))
        .ok_or_else(|| "it is on-failure or on-failure:N, N above 0".to_owned())
}

pub(crate) async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    Ok(match run_command(&args).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shipote: {}", shipote_bus::error::one_line(error.as_ref()));
            ExitCode::from(STATUS_FAILED)
        }
    })
}

async fn run_command(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let spec = match &args.file {
        Some(file) => Some(read_spec(file)?),
        None if args.egress.is_empty() => None,
        None => Some(crate::spec::network(&[], &[], &args.egress, false, None)?),
    };
    let terminal = if args.tty { Some(terminal::size()) } else { None };
    let mut env: Vec<String> = args.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    if let (Some(_), Ok(term)) = (terminal, std::env::var("TERM")) {
        env.push(format!("TERM={term}"));
    }
    let options = RunOptions {
        env: Some(env),
        cwd: args.cwd.clone(),
        terminal,
        timeout_ms: args.timeout.and_then(units::millis),
        strict: Some(args.strict),
        label: args.label.clone(),
        spec,
        soma: args.limits.soma()?,
        explain: args.explain.then_some(true),
        restart: args.restart.clone(),
        attachable: (args.detach && (args.interactive || args.tty)).then_some(true),
        wasm: args.wasm.clone(),
        dirs: (!args.dir.is_empty()).then(|| args.dir.clone()),
    };
    let what = args.wasm.as_deref().or(args.command.first().map(String::as_str)).unwrap_or_default();
    let argv: Vec<&str> = args.command.iter().map(String::as_str).collect();
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let stdio = if args.detach || args.tty {
        Vec::new()
    } else {
        vec![stdin.as_fd().into(), stdout.as_fd().into(), stderr.as_fd().into()]
    };
    let began_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
    // before the command starts, so that no Ctrl-C falls in between
    let mut signals = Forwarded::listen()?;
    let manager = output::workspaces().await?;
    let workspace = args.workspace.as_deref().unwrap_or_default();
    let call = manager.run(workspace, &argv, &options, stdio);
    tokio::pin!(call);
    let mut early = Vec::new();
    let started = loop {
        tokio::select! {
            biased;
            started = &mut call => break started,
            // it is for the command, once that runs; whoever insists need not wait
            signal = signals.next() => early.push(signal),
        }
        anyhow::ensure!(early.len() < 2, "run {what:?}: given up on a second signal before it had started");
    };
    let (_, id, descriptors) = match started {
        Ok(started) => started,
        Err(error) => return refused(&error, args),
    };
    let mut descriptors = descriptors.into_iter().map(OwnedFd::from);
    if args.detach {
        if args.json {
            output::json(&json!({"id": id, "command": args.command}))?;
        } else {
            println!("{id}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let completion = descriptors.next().ok_or_else(|| anyhow::anyhow!("run: the service sent no completion"))?;
    let session = match descriptors.next() {
        Some(master) => Some(terminal::Session::start(master)?),
        None => None,
    };
    for signal in early {
        // it may have ended already, which the completion will say
        let _ = manager.signal_command(&id, signal).await;
    }
    let ended = wait(&manager, &id, completion, signals, session.as_ref()).await;
    if let Some(session) = session {
        session.end();
    }
    let ended = ended?;
    if !ended.message.is_empty() {
        eprintln!("shipote: {}", ended.message);
    }
    if ended.reason == "timeout" {
        eprintln!(
            "shipote: run {what:?}: it was ended after {} s; allow more with --timeout",
            args.timeout.unwrap_or_default().as_secs_f64()
        );
    }
    let refusals = if args.explain {
        let refusals = manager.explain_command(&id).await.map_err(|e| output::refusal(&e))?;
        crate::explain::print(std::io::stderr().lock(), &refusals, "shipote: it was refused nothing");
        let denials = egress_denials(&manager, &id, began_ms).await;
        for denial in &denials {
            eprintln!("shipote: on its way out it was refused: {}", crate::egress::printable(&denial.reason));
        }
        Some((refusals, denials))
    } else {
        None
    };
    if args.json {
        let mut object = serde_json::to_value(&ended)?;
        if let (Some(fields), Some((refusals, denials))) = (object.as_object_mut(), refusals) {
            fields.insert("refusals".to_owned(), json!(refusals));
            fields.insert("egress_denials".to_owned(), json!(denials));
        }
        output::json(&object)?;
    }
    // tokio would wait for a thread that reads standard input
    std::process::exit(ended.exit_status & 0xff)
}

/// What a command's workspace was refused on its way out since it began; nothing where there is no proxy to ask.
async fn egress_denials(manager: &ManagerProxy<'_>, id: &str, since_ms: u64) -> Vec<DenialInfo> {
    let all = manager.list_commands("", BTreeMap::new()).await.unwrap_or_default();
    let Some(command) = all.into_iter().find(|command| command.id == id) else { return Vec::new() };
    let client = format!("workspace:{}", command.workspace);
    crate::egress::denials(Some(&client), since_ms).await.unwrap_or_default()
}

fn refused(error: &WorkspacesError, args: &RunArgs) -> anyhow::Result<ExitCode> {
    let status = match error {
        WorkspacesError::CommandNotFound(_) => STATUS_NOT_FOUND,
        WorkspacesError::CommandNotExecutable(_) => STATUS_NOT_EXECUTABLE,
        _ => STATUS_FAILED,
    };
    let text = match (output::refusal(error).to_string(), &args.file) {
        // Not of what the options say, which the service calls otherwise.
        (said, Some(file)) if said.contains(": workspace:") => {
            crate::spec::in_source(&said, "workspace", &crate::spec::source(file))
        }
        (said, _) => said,
    };
    eprintln!("shipote: {text}");
    if args.json {
        output::json(&json!({"exit_status": status, "reason": "refused", "message": text}))?;
    }
    Ok(ExitCode::from(status))
}

/// Waits for the completion; signals that reach us go to the command.
async fn wait(
    manager: &ManagerProxy<'_>,
    id: &str,
    completion: OwnedFd,
    mut signals: Forwarded,
    session: Option<&terminal::Session>,
) -> anyhow::Result<Completion> {
    let reader = read_completion(completion);
    tokio::pin!(reader);
    loop {
        tokio::select! {
            ended = &mut reader => return ended,
            signal = signals.next() => {
                // it may have ended in this very moment, which the completion will say
                let _ = manager.signal_command(id, signal).await;
            }
            () = async { match session { Some(s) => s.resized().await, None => std::future::pending().await } } => {
                if let Some(session) = session {
                    session.resize();
                }
            }
        }
    }
}

/// The one line of JSON that says how it ended.
pub(crate) async fn read_completion(descriptor: OwnedFd) -> anyhow::Result<Completion> {
    rustix::io::ioctl_fionbio(&descriptor, true)?;
    let mut text = String::new();
    // to the end of the line, not of the file: a service that is being restarted leaves the pipe open for its successor
    BufReader::new(pipe::Receiver::from_owned_fd(descriptor)?).read_line(&mut text).await?;
    if text.is_empty() {
        anyhow::bail!("wait for the command: the workspaces service went away; its log says why");
    }
    Ok(serde_json::from_str(&text)?)
}

/// Standard output is for people to read, not for a pipe.
pub(crate) fn on_terminal() -> bool {
    std::io::stderr().is_terminal()
}
