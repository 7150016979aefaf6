//! `shipote audit`: who changed what, when, and how it ended.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use shipote_audit::{Audit, Destination, Entry, Query};
use shipote_bus::{Service, paths};

use crate::{embedded, output};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  shipote audit --since 10m\n  shipote audit --action 'workspace.*' --user 1000 --json\n\n\
    It looks in this host's journal, and in the record files of an embedded appliance, which its services\n\
    write where the host has no journal: STATE/SERVICE/audit.jsonl. In the journal root and the group\n\
    systemd-journal see every record, others their own."
)]
pub(crate) struct AuditArgs {
    /// Only what this user (uid) asked for
    #[arg(long, value_name = "UID")]
    user: Option<u32>,
    /// Only this action, or a pattern: `workspace.create`, `workspace`, `*.stop`
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// Only what concerns this object
    #[arg(long, value_name = "NAME")]
    object: Option<String>,
    /// Only the last so much time: 90s, 10m, 3d, or seconds
    #[arg(long, value_name = "TIME", value_parser = crate::units::seconds)]
    since: Option<Duration>,
    /// Only the newest N
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<usize>,
    /// State folder of an embedded appliance, as `shipote up --state` has it [default: that of the one that runs, else
    /// where one would be]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Print one JSON object a record
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: AuditArgs) -> anyhow::Result<ExitCode> {
    tokio::task::spawn_blocking(move || read(&args)).await?
}

fn read(args: &AuditArgs) -> anyhow::Result<ExitCode> {
    let query = Query {
        user: args.user,
        action: args.action.clone(),
        object: args.object.clone(),
        since: args.since.and_then(|ago| SystemTime::now().checked_sub(ago)),
        limit: args.limit,
        ..Query::default()
    };
    let mut entries = Vec::new();
    let units = Service::ALL.iter().map(|s| format!("{}.service", s.binary())).collect();
    let from_units = Query { units, ..query.clone() };
    let state = args.state.clone().or_else(embedded::running_state).unwrap_or_else(paths::embedded_state);
    let sources = sources(&state);
    for source in &sources {
        // anybody may send the journal a record that looks like ours: it knows itself which unit one came from
        let query = if matches!(source, Destination::Journal) { &from_units } else { &query };
        for entry in shipote_audit::read(source, query).context("read audit records")? {
            entries.push(entry.context("read audit records")?);
        }
    }
    entries.sort_by_key(|e| e.time_us);
    if let Some(limit) = args.limit {
        entries.drain(..entries.len().saturating_sub(limit));
    }
    if entries.is_empty() {
        eprintln!("no audit record fits; looked {}", looked(&sources, &state));
    } else if args.json {
        entries.iter().try_for_each(output::json)?;
    } else {
        let head = &["TIME", "UID", "ACTION", "OBJECT", "RESULT", "DOOR"];
        output::print_table(head, entries.iter().map(row).collect(), "");
    }
    Ok(ExitCode::SUCCESS)
}

/// Where records are: the journal where the host has one, and the files of the services of
/// an embedded appliance, which write there where there is none.
fn sources(state: &Path) -> Vec<Destination> {
    let mut all: Vec<Destination> = Service::ALL
        .iter()
        .map(|s| state.join(s.name()).join("audit.jsonl"))
        .filter(|file| file.exists())
        .map(Destination::File)
        .collect();
    if let Destination::Journal = Audit::open(Path::new("/dev/null")).destination() {
        all.push(Destination::Journal);
    }
    all
}

/// Where was looked, and how to have it looked elsewhere.
fn looked(sources: &[Destination], state: &Path) -> String {
    let mut places: Vec<String> = sources
        .iter()
        .map(|source| match source {
            Destination::Journal => "in this host's journal (shipote-*.service)".to_owned(),
            Destination::File(file) => format!("in {}", file.display()),
        })
        .collect();
    if !sources.iter().any(|source| matches!(source, Destination::File(_))) {
        places.push(format!(
            "for {}/*/audit.jsonl, of which there is none; --state names another appliance's folder",
            state.display()
        ));
    }
    places.join(", ")
}

fn row(entry: &Entry) -> Vec<String> {
    let time = i64::try_from(entry.time_us).ok().and_then(|t| jiff::Timestamp::from_microsecond(t).ok());
    vec![
        time.map(|t| t.strftime("%Y-%m-%d %H:%M:%S").to_string()).unwrap_or_default(),
        entry.uid.map(|u| u.to_string()).unwrap_or_default(),
        entry.action.clone(),
        entry.object.clone(),
        entry.result.chars().take(60).collect(),
        entry.door.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_answer_says_where_was_looked() {
        let state = Path::new("/s");
        let file = Destination::File("/s/proxy/audit.jsonl".into());
        let both = looked(&[file, Destination::Journal], state);
        assert_eq!(both, "in /s/proxy/audit.jsonl, in this host's journal (shipote-*.service)");
        let none = looked(&[], state);
        assert!(none.starts_with("for /s/*/audit.jsonl, of which there is none; --state"), "{none}");
    }
}
