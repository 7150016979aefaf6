//! `shipote doctor`: what is wrong with this host, and how to mend it.
//!
//! Two kinds of finding: what the host is like ([`host`], found without asking any service, so it works where none
//! runs) and what the services say of themselves ([`services`]).

mod host;
mod services;

use std::path::PathBuf;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;
use shipote_bus::words::counted;
use shipote_bus::{connect, paths};

use crate::{embedded, output};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 if nothing keeps Shipote from working, else 1.\n\nExamples:\n  shipote doctor\n  shipote doctor --json | jq -r '.findings[] | select(.state != \"ok\") | .remedy'"
)]
pub(crate) struct DoctorArgs {
    /// State folder of an embedded appliance, as `shipote up --state` has it [default: that of the one that runs]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// Shipote works; something is weaker, slower or not there.
    Warning,
    /// Shipote, or one of its services, cannot work.
    Failed,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    subject: String,
    state: State,
    found: String,
    /// What to do; empty where there is nothing to do.
    remedy: String,
}

impl Finding {
    fn ok(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self { subject: subject.into(), state: State::Ok, found: found.into(), remedy: String::new() }
    }

    fn warning(subject: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { subject: subject.into(), state: State::Warning, found: found.into(), remedy: remedy.into() }
    }

    fn failed(subject: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { subject: subject.into(), state: State::Failed, found: found.into(), remedy: remedy.into() }
    }
}

pub(crate) async fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let state = match args.state {
        Some(folder) => std::path::absolute(&folder).with_context(|| format!("find folder {}", folder.display()))?,
        None => embedded::running_state().unwrap_or_else(usual_state),
    };
    let mut findings = tokio::task::spawn_blocking(move || host::look(&host::Host::here(), &state)).await?;
    findings.extend(services::ask().await);
    let worst = findings.iter().map(|f| f.state).max().unwrap_or(State::Ok);
    if args.json {
        output::json(&json!({"state": worst, "findings": findings}))?;
    } else {
        print(&findings);
    }
    Ok(if worst == State::Failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Where state is kept that nobody has put elsewhere.
fn usual_state() -> PathBuf {
    if connect::address().is_some() { paths::embedded_state() } else { PathBuf::from("/var/lib/shipote") }
}

fn print(findings: &[Finding]) {
    let width = findings.iter().map(|f| f.subject.chars().count()).max().unwrap_or(0);
    for finding in findings {
        let (word, colour) = match finding.state {
            State::Ok => ("ok", AnsiColor::Green),
            State::Warning => ("warning", AnsiColor::Yellow),
            State::Failed => ("FAILED", AnsiColor::Red),
        };
        let style = Style::new().fg_color(Some(colour.into()));
        anstream::println!("{style}{word:<7}{style:#}  {:<width$}  {}", finding.subject, finding.found);
        if !finding.remedy.is_empty() {
            anstream::println!("{:9}{:width$}  → {}", "", "", finding.remedy);
        }
    }
    let count = |state| findings.iter().filter(|f| f.state == state).count();
    anstream::println!(
        "{} looked at: {} ok, {}, {} failed",
        findings.len(),
        count(State::Ok),
        counted(count(State::Warning), "warning"),
        count(State::Failed)
    );
}
