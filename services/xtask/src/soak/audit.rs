//! Whether each change that was made is on record, once, and nothing else is.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde_json::Value;

use super::ledger::{Changes, Ledger};
use crate::appliance::Appliance;

/// Records of changes that were done, and of those that failed, by action and object.
type Records = BTreeMap<(String, String), (u64, u64)>;

/// Reads the records; how many there are, and what is wrong with them.
pub(super) fn compare(appliance: &Appliance, ledger: &Ledger) -> anyhow::Result<(usize, Vec<String>)> {
    let state = appliance.folder().context("an appliance without a folder of its own")?.join("state");
    let output = appliance.shipote(&["audit", "--json", "--state", &state.display().to_string()]).output()?;
    if !output.status.success() {
        bail!("read the audit records: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8(output.stdout).context("audit records that are no text")?;
    let all = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>().context("read a record")?;
    Ok((all.len(), differences(&ledger.all_changes(), &sort(&all, &ledger.all_changes()))))
}

/// What others did (an idle machine that falls asleep) is nobody's change; objects that are not told apart are one.
fn sort(all: &[Value], changes: &BTreeMap<(String, String), Changes>) -> Records {
    let mut records = Records::new();
    for record in all.iter().filter(|record| record["door"] != "self") {
        let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
        let (action, object) = (text("action"), text("object"));
        let any = (action.clone(), "*".to_owned());
        let key = if changes.contains_key(&any) { any } else { (action, object) };
        let of = records.entry(key).or_default();
        if record["result"] == "ok" {
            of.0 += 1;
        } else {
            of.1 += 1;
        }
    }
    records
}

/// In words.
fn differences(changes: &BTreeMap<(String, String), Changes>, records: &Records) -> Vec<String> {
    let mut found = Vec::new();
    for ((action, object), Changes { done, unknown }) in changes {
        let (good, failed) = records.get(&(action.clone(), object.clone())).copied().unwrap_or_default();
        if good < *done || good + failed > done + unknown {
            found.push(format!(
                "audit: {action} {object}: {done} done and {unknown} without an answer; {good} records of success, {failed} of failure"
            ));
        }
    }
    for (action, object) in records.keys().filter(|key| !changes.contains_key(*key)) {
        found.push(format!("audit: {action} {object} is on record and was asked for by nobody"));
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_change_is_on_record_once() {
        let key = |action: &str, object: &str| (action.to_owned(), object.to_owned());
        let changes = BTreeMap::from([
            (key("a", "one"), Changes { done: 1, unknown: 0 }),
            (key("a", "two"), Changes { done: 0, unknown: 1 }),
            (key("b", "*"), Changes { done: 2, unknown: 0 }),
        ]);
        let record = |action: &str, object: &str, result: &str, door: &str| json!({"action": action, "object": object, "result": result, "door": door});
        let good = vec![
            record("a", "one", "ok", "bus"),
            record("b", "x", "ok", "bus"),
            record("b", "y", "ok", "bus"),
            record("c", "z", "ok", "self"),
        ];
        let judge = |all: &[Value]| differences(&changes, &sort(all, &changes));
        assert!(judge(&good).is_empty(), "{:?}", judge(&good));
        for (extra, says) in [
            (record("a", "one", "ok", "bus"), "a one"),
            (record("d", "new", "ok", "bus"), "asked for by nobody"),
            (record("b", "x", "no", "bus"), "b *"),
        ] {
            let faults = judge(&[&good[..], &[extra]].concat());
            assert!(faults.len() == 1 && faults[0].contains(says), "{faults:?}");
        }
        assert!(judge(&[&good[..], &[record("a", "two", "failed", "bus")]].concat()).is_empty());
        assert_eq!(judge(&good[1..]).len(), 1, "a record is missing");
    }
}
