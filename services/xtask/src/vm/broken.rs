//! `cargo xtask vm broken`: that scenarios fail where what they are about is broken, by the table `vm-tests/broken.toml`.
//!
//! Nothing is compiled anew for it: units, policies and packages are changed in the machine, before the scenario begins.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{driver, repository};

/// One row of the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Row {
    scenario: String,
    noticed: String,
    #[serde(default)]
    services: Vec<String>,
    #[serde(default)]
    drop_in: Vec<String>,
    #[serde(default)]
    run: String,
}

/// A row as the driver takes it.
#[derive(Debug, Serialize)]
pub(super) struct Break {
    name: String,
    pub(super) path: PathBuf,
    noticed: String,
    /// For the machine's shell.
    script: String,
}

/// The rows named, or all.
pub(super) fn chosen(names: &[String]) -> anyhow::Result<Vec<Break>> {
    let file = repository()?.join("vm-tests/broken.toml");
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let mut rows = parse(&text).with_context(|| format!("read {}", file.display()))?;
    if names.is_empty() {
        return Ok(rows);
    }
    let known: Vec<String> = rows.iter().map(|row| row.name.clone()).collect();
    for name in names {
        // a scenario's name stands for all its rows
        let meant = |row: &Break| row.name == *name || row.path.file_stem().is_some_and(|stem| stem == name.as_str());
        ensure!(rows.iter().any(meant), "nothing is broken as {name:?}; there are: {}", known.join(", "));
    }
    rows.retain(|row| names.iter().any(|name| row.name == *name || row.path.file_stem() == Some(name.as_ref())));
    Ok(rows)
}

fn parse(text: &str) -> anyhow::Result<Vec<Break>> {
    let rows: BTreeMap<String, Row> = toml::from_str(text)?;
    rows.into_iter()
        .map(|(name, row)| {
            let script = script(&row).with_context(|| name.clone())?;
            let path = driver::scenarios(std::slice::from_ref(&row.scenario)).with_context(|| name.clone())?.remove(0);
            Ok(Break { name, path, noticed: row.noticed, script })
        })
        .collect()
}

/// What breaks it; at the end on the disk, since some scenarios cut the power.
fn script(row: &Row) -> anyhow::Result<String> {
    if row.services.is_empty() != row.drop_in.is_empty() || row.services.is_empty() == row.run.is_empty() {
        bail!("either `services` with `drop-in`, or `run`");
    }
    let mut script = row.run.clone();
    for service in &row.services {
        let folder = format!("/etc/systemd/system/shipote-{service}.service.d");
        let lines = row.drop_in.join("\n");
        writeln!(script, "mkdir -p {folder}; cat > {folder}/broken.conf <<'END'\n[Service]\n{lines}\nEND")?;
    }
    for service in &row.services {
        // what does not run yet is not started by this: that, too, scenarios look at
        writeln!(script, "systemctl daemon-reload; systemctl try-restart shipote-{service}.service")?;
    }
    if !row.services.is_empty() {
        // a line that systemd does not understand it leaves out, and breaks nothing
        script.push_str(
            "journalctl --sync\nif journalctl -q -b --no-pager --grep 'broken.conf:.*ignoring' >&2; then exit 1; fi\n",
        );
    }
    script.push_str("\nsync");
    Ok(script)
}

/// Writes what the driver reads, beside the machine's description.
pub(super) fn write(breaks: &[Break], folder: &Path) -> anyhow::Result<PathBuf> {
    let file = folder.join("broken.json");
    fs::write(&file, serde_json::to_vec(breaks)?).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_has_something_that_breaks_it_and_a_subtest_that_is_to_notice() {
        let rows = chosen(&[]).unwrap();
        for row in &rows {
            let text = fs::read_to_string(&row.path).unwrap();
            assert!(text.contains(&row.noticed), "{}: {} has no {:?}", row.name, row.path.display(), row.noticed);
        }
        for scenario in driver::scenarios(&[]).unwrap() {
            assert!(rows.iter().any(|row| row.path == scenario), "nothing breaks {}", scenario.display());
        }
    }

    #[test]
    fn a_service_that_has_not_been_started_is_not_started_by_being_broken() {
        let script = chosen(&["not-restarted".to_owned()]).unwrap().remove(0).script;
        assert!(script.contains("Restart=no") && script.contains("try-restart shipote-workspaces.service"), "{script}");
        assert!(!script.contains(" restart "), "{script}");
        assert!(script.contains("'broken.conf:.*ignoring'"), "what systemd leaves out is to be noticed: {script}");
    }

    #[test]
    fn rows_are_chosen_by_their_own_name_or_by_the_scenarios() {
        assert_eq!(chosen(&["wakes-every-second".to_owned()]).unwrap().len(), 1);
        let of_boot = chosen(&["boot".to_owned()]).unwrap();
        assert!(of_boot.len() > 1 && of_boot.iter().all(|row| row.path.ends_with("vm-tests/boot.py")), "{of_boot:?}");
        assert!(chosen(&["nothing".to_owned()]).unwrap_err().to_string().contains("wakes-every-second"));
    }

    #[test]
    fn a_row_that_says_too_much_or_too_little_is_refused() {
        for (row, word) in [
            ("scenario = 'boot'\nnoticed = 'x'", "either"),
            ("scenario = 'boot'\nnoticed = 'x'\nservices = ['proxy']", "either"),
            ("scenario = 'boot'\nnoticed = 'x'\nservices = ['proxy']\ndrop-in = ['A=b']\nrun = 'true'", "either"),
            ("scenario = 'boto'\nnoticed = 'x'\nrun = 'true'", "boto"),
            ("scenario = 'boot'\nnotice = 'x'\nrun = 'true'", "unknown field `notice`"),
        ] {
            let refused = format!("{:#}", parse(&format!("[a]\n{row}")).unwrap_err());
            assert!(refused.contains(word), "{row}: {refused}");
        }
    }
}
