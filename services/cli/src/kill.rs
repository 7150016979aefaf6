//! `shipote kill`: a signal to a command's process group.

use std::process::ExitCode;

use anyhow::bail;
use rustix::process::Signal;
use serde_json::json;

use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct KillArgs {
    /// Command's id, or the last six characters or more of it
    id: String,
    /// Signal by name or number, see signal(7)
    #[arg(short, long, default_value = "TERM")]
    signal: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: KillArgs) -> anyhow::Result<ExitCode> {
    let signal = parse(&args.signal)?;
    let manager = output::workspaces().await?;
    manager.signal_command(&args.id, signal).await.map_err(|e| output::refusal(&e))?;
    if args.json {
        output::json(&json!({"id": args.id, "signal": signal}))?;
    }
    Ok(ExitCode::SUCCESS)
}

const NAMED: &[(&str, Signal)] = &[
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("KILL", Signal::KILL),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("PIPE", Signal::PIPE),
    ("ALRM", Signal::ALARM),
    ("TERM", Signal::TERM),
    ("CONT", Signal::CONT),
    ("STOP", Signal::STOP),
    ("TSTP", Signal::TSTP),
    ("WINCH", Signal::WINCH),
];

fn parse(text: &str) -> anyhow::Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    match NAMED.iter().find(|(n, _)| *n == name) {
        Some((_, signal)) => Ok(signal.as_raw()),
        None => {
            let known: Vec<&str> = NAMED.iter().map(|(n, _)| *n).collect();
            bail!("signal {text:?}: no such signal; there are {}, or give its number", known.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for (text, want) in [("9", 9), ("TERM", 15), ("sigterm", 15), ("Usr1", 10)] {
            assert_eq!(parse(text).unwrap(), want);
        }
        assert!(parse("TREM").is_err());
    }
}
