//! Workspaces that come and go, plugins that are swapped, machines that are stopped and started.

use std::collections::{BTreeSet, VecDeque};
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::ledger::A_MACHINE;
use super::{Soak, rest};

/// The plugin's versions.
pub(super) const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];
const PIPELINE: &str = r#"
label = "sorted"
[[nodes]]
label = "say"
command = ["sh", "-c", "printf 'b\na\n'"]
[[nodes]]
label = "sort"
command = ["sort"]
[[edges]]
from = "say"
to = "sort"
"#;

/// A change that has to succeed.
pub(super) fn must(soak: &Soak<'_>, action: &str, object: &str, words: &[&str]) -> anyhow::Result<()> {
    let output = soak.appliance.shipote(words).output().with_context(|| format!("run shipote {words:?}"))?;
    if !output.status.success() {
        bail!("shipote {words:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    soak.ledger.change(action, object, true);
    Ok(())
}

/// A change; whether it was done. Where it was not, one of these services has to have been away.
fn change(
    soak: &Soak<'_>,
    (action, object): (&str, &str),
    needs: &[&str],
    words: &[&str],
    right: fn(&Output) -> bool,
) -> bool {
    let began = Instant::now();
    let Ok(output) = soak.appliance.shipote(words).output() else {
        soak.ledger.fault(format!("shipote {words:?} could not be run"));
        return false;
    };
    let done = output.status.success() && right(&output);
    soak.ledger.change(action, object, done);
    if !done && !soak.ledger.was_away(needs, began) {
        let said = String::from_utf8_lossy(&output.stderr);
        soak.ledger.fault(format!(
            "{action} {object}: {} after {} ms: {} {}",
            output.status,
            began.elapsed().as_millis(),
            said.trim(),
            String::from_utf8_lossy(&output.stdout).trim()
        ));
    }
    done
}

/// Makes workspaces, runs something in each, and ends the oldest where there are enough.
pub(super) fn workspaces(soak: &Soak<'_>, most: u32) {
    let folder = tempfile::tempdir();
    let file = folder.as_ref().map(|folder| folder.path().join("pipeline.toml"));
    let pipeline = match &file {
        Ok(file) if std::fs::write(file, PIPELINE).is_ok() => file.display().to_string(),
        _ => return soak.ledger.fault("there is no place for a pipeline's file".to_owned()),
    };
    let needs = &["workspaces"];
    let mut living = VecDeque::new();
    for number in 0_u64.. {
        if !soak.goes_on() {
            break;
        }
        let name = format!("soak-{number}");
        if !change(soak, ("workspace.create", &name), needs, &["workspace", "create", &name], |_| true) {
            // It may be there all the same, or not.
            living.push_back((name, false));
            soak.pause(Duration::from_millis(200));
            continue;
        }
        let said = |output: &Output| output.stdout == b"said\n";
        change(soak, ("command.run", "echo"), needs, &["run", "-w", &name, "--", "echo", "said"], said);
        if number.is_multiple_of(4) {
            let words = ["run", "-w", &name, "--detach", "--", "sleep", "3600"];
            change(soak, ("command.run", "sleep"), needs, &words, |_| true);
        }
        if number.is_multiple_of(10) {
            let sorted = |output: &Output| output.stdout.starts_with(b"a\nb\n");
            change(soak, ("pipeline.run", "sorted"), needs, &["pipeline", "run", "--tap", &pipeline], sorted);
        }
        living.push_back((name, true));
        while living.len() > most as usize {
            let Some((oldest, sure)) = living.pop_front() else { break };
            stop(soak, &oldest, sure);
        }
    }
    for (name, sure) in living {
        stop(soak, &name, sure);
    }
}

fn stop(soak: &Soak<'_>, name: &str, sure: bool) {
    let words = ["workspace", "stop", name, "--grace", "200"];
    if sure {
        change(soak, ("workspace.stop", name), &["workspaces"], &words, |_| true);
    } else if let Ok(output) = soak.appliance.shipote(&words).output() {
        soak.ledger.change("workspace.stop", name, output.status.success());
    }
}

/// Swaps the plugin for its other version, and back.
pub(super) fn plugins(soak: &Soak<'_>) {
    for version in VERSIONS.iter().rev().cycle() {
        soak.pause(Duration::from_secs(3));
        if !soak.goes_on() {
            return;
        }
        let object = format!("stamp@{version}");
        let words = ["plugin", "activate", &object];
        change(soak, ("plugin.activate", "*"), &["plugins", "proxy"], &words, |_| true);
    }
}

/// Stops a machine and starts it again, one after the other.
pub(super) fn machines(soak: &Soak<'_>) {
    for name in soak.machines.iter().cycle() {
        soak.pause(Duration::from_secs(20));
        if !soak.goes_on() {
            return;
        }
        // What it is in the middle of ends with it.
        soak.ledger.away(A_MACHINE);
        change(soak, ("machine.stop", name), &["machines"], &["machine", "stop", name], |_| true);
        soak.ledger.back(A_MACHINE);
        while !change(soak, ("machine.start", name), &["machines"], &["machine", "start", name], |_| true) {
            if is_running(soak, name) {
                break;
            }
            rest(Duration::from_millis(500));
        }
    }
}

fn is_running(soak: &Soak<'_>, name: &str) -> bool {
    let output = soak.appliance.shipote(&["machine", "ls", "--json"]).output();
    let list: Option<serde_json::Value> = output.ok().and_then(|output| serde_json::from_slice(&output.stdout).ok());
    let all = list.as_ref().and_then(|list| list["machines"].as_array());
    all.into_iter().flatten().any(|machine| machine["name"] == name && machine["state"] == "running")
}

/// Ends what a service that was away may have left.
pub(super) fn clear(soak: &Soak<'_>) -> anyhow::Result<()> {
    let output = soak.appliance.shipote(&["workspace", "list", "--json"]).output().context("list the workspaces")?;
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).context("read the list of workspaces")?;
    let all = list["workspaces"].as_array().context("a list without workspaces")?;
    for name in all.iter().filter_map(|one| one["name"].as_str()).filter(|name| name.starts_with("soak-")) {
        stop(soak, name, true);
    }
    // An ended pipeline's flows serve their replay for minutes.
    let output = soak.appliance.shipote(&["flow", "list", "--json"]).output().context("list the flows")?;
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).context("read the list of flows")?;
    let flows = list["flows"].as_array().context("a list without flows")?;
    for id in flows.iter().filter_map(|flow| flow["pipeline"].as_str()).collect::<BTreeSet<_>>() {
        change(soak, ("flow.drop", id), &["workspaces"], &["flow", "drop", id], |_| true);
    }
    // As many as before, each as it was.
    for name in &soak.machines {
        let begun = Instant::now();
        while !is_running(soak, name) && begun.elapsed() < Duration::from_secs(60) {
            let _ = soak.appliance.shipote(&["machine", "exec", name, "--", "true"]).output();
            rest(Duration::from_millis(500));
        }
    }
    Ok(())
}
