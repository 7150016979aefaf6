//! Every target that the project has set itself, whether it could be measured or not: one table, one JSON.
//!
//! A target names the entry that measures it, or says why none does. What a run of `cargo xtask bench` found is put beside
//! it by its id; what an entry measures beyond the targets follows behind.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value;

use super::harness::{Better, Row};

/// Between these a document has the table.
const BEGIN: &str = "<!-- bench: begin -->";
const END: &str = "<!-- bench: end -->";

/// A target, as the issues set it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target {
    /// The issue that sets it.
    pub(super) issue: u8,
    /// The id of the row that answers it.
    pub(super) id: &'static str,
    pub(super) what: &'static str,
    pub(super) against: &'static str,
    pub(super) better: Better,
    pub(super) target: f64,
    pub(super) from: Source,
}

/// Where its figure comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// An entry of `cargo xtask bench`.
    Entry(&'static str),
    /// Nowhere on such a machine; why, and what would be needed.
    Nowhere(&'static str),
}

/// A line of the table.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Line {
    /// The issue that sets the target; none for a row beyond the targets.
    issue: Option<u8>,
    #[serde(flatten)]
    found: Found,
}

#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
enum Found {
    Measured(Row),
    Not {
        id: &'static str,
        what: &'static str,
        against: &'static str,
        better: Better,
        target: f64,
        not_measured: String,
    },
}

/// What became of the entries of a run: nothing where one was not asked for.
pub(super) type Ran = BTreeMap<&'static str, Result<(), String>>;

/// All targets with what was found, then what was found beside them.
pub(super) fn collect(rows: &[Row], ran: &Ran) -> Vec<Line> {
    let mut lines: Vec<Line> = TARGETS.iter().map(|target| line(target, rows, ran)).collect();
    let beyond = rows.iter().filter(|row| !TARGETS.iter().any(|target| row.id == target.id));
    lines.extend(beyond.map(|row| Line { issue: None, found: Found::Measured(row.clone()) }));
    lines
}

fn line(target: &Target, rows: &[Row], ran: &Ran) -> Line {
    let Target { issue, id, what, against, better, target: bound, from } = *target;
    let reason = match (rows.iter().find(|row| row.id == id), from) {
        (Some(row), _) => return Line { issue: Some(issue), found: Found::Measured(row.clone()) },
        (None, Source::Nowhere(reason)) => reason.to_owned(),
        (None, Source::Entry(entry)) => match ran.get(entry) {
            None => format!("{NOT_ASKED}: cargo xtask bench {entry}"),
            Some(Err(reason)) => reason.clone(),
            Some(Ok(())) => format!("the entry {entry} could not measure it here; its notes say why"),
        },
    };
    let found = Found::Not { id, what, against, better, target: bound, not_measured: reason };
    Line { issue: Some(issue), found }
}

/// The same from what earlier runs wrote; of a row that several have, the last one.
pub(super) fn merge(runs: &[Vec<Value>]) -> anyhow::Result<Vec<Value>> {
    let (mut rows, mut reasons) = (Vec::<Row>::new(), BTreeMap::new());
    for line in runs.iter().flatten() {
        match (line["id"].as_str(), line["not_measured"].as_str()) {
            (Some(id), Some(reason)) if !reason.starts_with(NOT_ASKED) => {
                reasons.insert(id, reason);
            }
            (_, Some(_)) => {}
            (_, None) => {
                let row: Row = serde_json::from_value(line.clone()).with_context(|| format!("read the line {line}"))?;
                rows.retain(|other| other.id != row.id);
                rows.push(row);
            }
        }
    }
    let mut lines: Vec<Value> =
        collect(&rows, &Ran::new()).iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    for line in lines.iter_mut().filter(|line| line["not_measured"].is_string()) {
        if let Some(reason) = line["id"].as_str().and_then(|id| reasons.get(id)) {
            line["not_measured"] = Value::from(*reason);
        }
    }
    Ok(lines)
}

/// How the reason of a target begins whose entry was not asked for.
const NOT_ASKED: &str = "not asked for in this run";
const KVM: &str = "no KVM where this was run: emulated processors measure themselves";

const fn lower(
    issue: u8,
    id: &'static str,
    what: &'static str,
    against: &'static str,
    target: f64,
    from: Source,
) -> Target {
    Target { issue, id, what, against, better: Better::Lower, target, from }
}

const fn higher(
    issue: u8,
    id: &'static str,
    what: &'static str,
    against: &'static str,
    target: f64,
    from: Source,
) -> Target {
    Target { issue, id, what, against, better: Better::Higher, target, from }
}

const SANDBOX: Source = Source::Entry("sandbox");
const RUN: Source = Source::Entry("run");
const SYSTEMD: Source = Source::Entry("systemd");
const FLOW: Source = Source::Entry("flow");
const LIVING: Source = Source::Entry("living");
const PROXY: Source = Source::Entry("proxy");
const PLUGINS: Source = Source::Entry("plugins");
const MACHINES: Source = Source::Entry("machines");

/// The targets of issues 3 to 7.
pub(super) const TARGETS: &[Target] = &[
    lower(3, "sandbox", "a command in a living workspace, in process", "posix_spawn", 2.2, SANDBOX),
    lower(3, "sandbox-cpu", "the same, CPU", "posix_spawn", 2.2, SANDBOX),
    lower(3, "sandbox-whole", "a workspace made, one command in it, ended, in process", "posix_spawn", 2.2, SANDBOX),
    lower(3, "sandbox-whole-cpu", "the same, CPU", "posix_spawn", 2.2, SANDBOX),
    lower(3, "run", "`shipote run -- true`, end to end", "bwrap", 1.0, RUN),
    lower(3, "run-client", "Workspaces1.Run by a client that keeps its connection", "bwrap", 0.6, RUN),
    lower(3, "systemd-client-crun", "the same under systemd", "crun run", 0.3, SYSTEMD),
    lower(3, "systemd-client-unit", "the same under systemd", "systemd-run --wait", 0.1, SYSTEMD),
    lower(
        3,
        "grown",
        "a command, asked for by a service with 1 GiB resident",
        "with 10 MiB",
        1.1,
        Source::Entry("grown"),
    ),
    higher(3, "flow", "tapped edge, no subscriber", "plain pipe", 0.60, FLOW),
    higher(3, "flow-lossless-1", "tapped edge, 1 lossless subscriber", "plain pipe", 0.50, FLOW),
    higher(3, "flow-lossless-4", "tapped edge, 4 lossless subscribers", "plain pipe", 0.25, FLOW),
    lower(3, "flow-cpu", "tapped edge, no subscriber, CPU", "plain pipe", 1.3, FLOW),
    lower(3, "flow-lossless-1-cpu", "tapped edge, 1 lossless subscriber, CPU", "plain pipe", 1.6, FLOW),
    lower(3, "flow-lossless-4-cpu", "tapped edge, 4 lossless subscribers, CPU", "plain pipe", 2.5, FLOW),
    lower(3, "living", "p99 of a run while 1,000 commands live", "the first", 2.0, LIVING),
    lower(3, "memory-idle", "resident memory of the idle workspaces service", "12 MiB", 1.0, LIVING),
    lower(3, "memory-command", "memory of the service for each living command", "64 KiB", 1.0, LIVING),
    lower(4, "plugin-typed", "root to plugin dispatch, typed", "wasmtime's typed call", 1.2, PLUGINS),
    lower(4, "plugin-typed-wasm-link", "root to plugin dispatch, typed", "wasm-link 0.1", 0.4, PLUGINS),
    lower(4, "plugin-untyped", "root to plugin dispatch, untyped", "wasmtime's untyped call", 1.2, PLUGINS),
    lower(4, "plugin-untyped-wasm-link", "root to plugin dispatch, untyped", "wasm-link 0.1", 0.55, PLUGINS),
    lower(4, "plugin-socket", "plugin to plugin through a socket", "wasmtime's typed call", 1.5, PLUGINS),
    lower(4, "plugin-socket-wasm-link", "plugin to plugin through a socket", "wasm-link 0.1", 0.35, PLUGINS),
    lower(
        4,
        "plugin-request",
        "an L7 request of 20 headers and 1 KiB, through pool and policy",
        "on wasmtime",
        1.2,
        PLUGINS,
    ),
    lower(4, "plugin-load", "load of a compiled component", "wasmtime's deserialize", 1.3, PLUGINS),
    lower(4, "plugin-start", "start of the registry with 1,000 plugins", "with 1", 5.0, PLUGINS),
    lower(4, "plugin-start-memory", "its resident memory then", "40 MiB", 1.0, PLUGINS),
    higher(5, "proxy-small", "HTTP/1.1, small body, requests/s", "nginx", 1.0, PROXY),
    higher(5, "proxy-small-haproxy", "HTTP/1.1, small body, requests/s", "haproxy", 1.0, PROXY),
    lower(5, "proxy-small-cpu", "HTTP/1.1, small body, CPU of a request", "nginx", 1.0, PROXY),
    higher(5, "proxy-large", "HTTP/1.1, 64 KiB body, requests/s", "haproxy", 1.0, PROXY),
    lower(5, "proxy-large-cpu", "HTTP/1.1, 64 KiB body, CPU of a request", "haproxy", 1.0, PROXY),
    lower(5, "proxy-p99", "HTTP/1.1, small body, p99", "haproxy", 1.0, PROXY),
    lower(5, "proxy-plugin", "CPU that a stateless l7-request plugin adds", "5 µs", 1.0, PROXY),
    higher(5, "proxy-tls", "TLS 1.3 handshakes/s", "nginx", 1.0, PROXY),
    higher(5, "proxy-http2", "HTTP/2 requests/s", "nginx", 1.0, PROXY),
    lower(5, "proxy-memory", "memory of the proxy at rest", "16 MiB", 1.0, PROXY),
    lower(5, "proxy-idle", "memory that an idle connection adds", "8 KiB", 1.0, PROXY),
    lower(5, "proxy-reload", "p99 while 1,000 rules are reloaded, no request failed", "without reloads", 2.0, PROXY),
    lower(
        6,
        "machine-start",
        "start of a machine to its agent's first answer",
        "the kernel with an empty init",
        1.35,
        MACHINES,
    ),
    lower(
        6,
        "machine-exec",
        "`VmExec true` on an open connection",
        "vsock echo, fork and exec in the guest",
        2.0,
        MACHINES,
    ),
    higher(6, "machine-file", "256 MiB file into a machine, throughput", "raw vsock stream", 0.5, MACHINES),
    lower(6, "machine-agent-memory", "resident memory of the agent", "8 MiB", 1.0, MACHINES),
    lower(6, "machine-host-memory", "memory of the service for each running machine", "1 MiB", 1.0, MACHINES),
    lower(6, "machine-pull", "pull of 200 MiB in 8 layers", "skopeo copy and umoci unpack", 1.5, MACHINES),
    lower(6, "machine-start-kvm", "start of a machine to its agent, with KVM", "125 ms", 1.0, Source::Nowhere(KVM)),
    lower(7, "boot", "boot of a system to all units ready", "the same without Shipote", 1.1, Source::Entry("boot")),
    lower(
        7,
        "idle-memory",
        "resident memory of all idle services together",
        "50 MiB",
        1.0,
        Source::Nowhere(
            "measured in the test VM by `cargo xtask vm test`, where a scenario has it; not by this command",
        ),
    ),
];

/// The whole table in Markdown, from lines of this run or of an earlier one's JSON.
pub(super) fn table(lines: &[Value]) -> String {
    let mut text = "| issue | id | what | against | ratio | target | met |\n|---|---|---|---|---|---|---|\n".to_owned();
    for line in lines {
        text += &format!("| {} |\n", cells(line).join(" | "));
    }
    text
}

fn cells(line: &Value) -> [String; 7] {
    let word = |key: &str| line[key].as_str().unwrap_or_default().replace('|', "/");
    let figure = |key: &str| line[key].as_f64().map_or_else(|| "–".to_owned(), |figure| format!("{figure:.2}"));
    let sign = if line["better"] == "lower" { "≤" } else { "≥" };
    let met = match (line["met"].as_bool(), line["not_measured"].as_str()) {
        (_, Some(_)) => format!("not measured: {}", word("not_measured")),
        (Some(true), None) => "yes".to_owned(),
        _ => "no".to_owned(),
    };
    let issue = line["issue"].as_u64().map_or_else(String::new, |issue| issue.to_string());
    [issue, word("id"), word("what"), word("against"), figure("ratio"), format!("{sign} {}", figure("target")), met]
}

/// Puts a table between the marks of a document, in the place of what is there.
pub(super) fn replace(document: &str, table: &str) -> anyhow::Result<String> {
    let found = document.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) = found.with_context(|| format!("there is no {BEGIN} with {END} behind it"))?;
    Ok(format!("{head}{BEGIN}\n{table}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::super::ENTRIES;
    use super::super::harness::budget;
    use super::*;

    #[test]
    fn every_target_has_an_entry_that_exists_or_a_reason() {
        let mut ids: Vec<_> = TARGETS.iter().map(|target| target.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), TARGETS.len(), "an id stands twice");
        for target in TARGETS {
            match target.from {
                Source::Entry(name) => {
                    assert!(ENTRIES.iter().any(|entry| entry.name == name), "{}: there is no entry {name}", target.id);
                }
                Source::Nowhere(reason) => assert!(!reason.is_empty(), "{}", target.id),
            }
        }
        for issue in 3..=7 {
            assert!(TARGETS.iter().any(|target| target.issue == issue), "issue {issue} has targets");
        }
    }

    #[test]
    fn a_run_is_put_beside_the_targets_and_nothing_is_left_out() {
        let rows = [budget("memory-idle", "memory", "12 MiB", 0.5, 1), budget("extra", "beyond", "9", 2.0, 1)];
        let ran = Ran::from([("living", Ok(())), ("flow", Err("no pipe".to_owned()))]);
        let lines = serde_json::to_value(collect(&rows, &ran)).unwrap();
        let lines = lines.as_array().unwrap();
        assert_eq!(lines.len(), TARGETS.len() + 1);
        let of = |id: &str| lines.iter().map(cells).find(|cells| cells[1] == id).unwrap();
        assert_eq!(of("memory-idle")[4..], ["0.50", "≤ 1.00", "yes"]);
        assert_eq!((of("extra")[0].as_str(), of("extra")[6].as_str()), ("", "no"));
        assert!(of("flow")[6].contains("no pipe"));
        assert!(of("living")[6].contains("its notes say why"));
        assert!(of("proxy-memory")[6].contains("cargo xtask bench proxy"));
        let whole =
            |line: &Value| line["id"].is_string() && line["ratio"].is_number() != line["not_measured"].is_string();
        assert!(lines.iter().all(whole));
        assert_eq!(table(lines).lines().count(), lines.len() + 2);
    }

    #[test]
    fn several_runs_make_one_table_in_which_the_last_figure_counts_and_no_reason_is_lost() {
        let run = |rows: &[Row], ran: &Ran| -> Vec<Value> {
            collect(rows, ran).iter().map(|line| serde_json::to_value(line).unwrap()).collect()
        };
        let early = run(&[budget("memory-idle", "memory", "12 MiB", 0.5, 1)], &Ran::from([("living", Ok(()))]));
        let failed = run(&[], &Ran::from([("flow", Err("no pipe".to_owned()))]));
        let late = run(&[budget("memory-idle", "memory", "12 MiB", 0.7, 1)], &Ran::new());
        let lines = merge(&[early.clone(), failed, late.clone()]).unwrap();
        assert_eq!(lines.len(), TARGETS.len());
        let of = |id: &str| lines.iter().find(|line| line["id"] == id).unwrap();
        assert_eq!(of("memory-idle")["ratio"], 0.7);
        assert_eq!(of("flow")["not_measured"], "no pipe");
        assert_eq!(
            merge(&[late, early]).unwrap().iter().find(|line| line["id"] == "memory-idle").unwrap()["ratio"],
            0.5
        );
        assert!(merge(&[vec![serde_json::json!({"id": "flow"})]]).unwrap_err().to_string().contains("flow"));
    }

    #[test]
    fn a_document_gets_the_table_in_the_place_of_the_one_before() {
        let document = format!("head\n{BEGIN}\nold\n{END}\ntail\n");
        let once = replace(&document, "new\n").unwrap();
        assert_eq!(once, format!("head\n{BEGIN}\nnew\n{END}\ntail\n"));
        assert_eq!(replace(&once, "new\n").unwrap(), once);
        assert!(replace("head\ntail\n", "new\n").unwrap_err().to_string().contains(BEGIN));
    }
}
