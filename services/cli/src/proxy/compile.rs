//! `shipote proxy compile DIR`: works without a service, and so does not know which plugins there are; it says so.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;
use shipote_bus::words::counted;
use shipote_rules::{Graph, Middleware, compile, load_dir, mermaid};

#[derive(Debug, Args)]
pub(crate) struct CompileArgs {
    /// The directory: its rules/*.json and *.toml, or the files in itself where it has no rules/
    dir: PathBuf,
    /// What to print
    #[arg(long, value_enum, default_value_t = Format::Summary)]
    format: Format,
    /// The same as --format json
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Listeners and their rules, a line each
    Summary,
    /// The whole graph as one JSON object
    Json,
    /// A Mermaid flow chart
    Mermaid,
}

/// The graph with what was not looked at.
#[derive(Serialize)]
struct Compiled<'g> {
    #[serde(flatten)]
    graph: &'g Graph,
    plugins: Plugins<'g>,
}

/// The plugins that rules name. Whether they are in the registry and have what rules call, a reload finds out.
#[derive(Serialize)]
struct Plugins<'g> {
    looked_up: bool,
    named: Vec<Named<'g>>,
}

/// A plugin that a rule names.
#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
struct Named<'g> {
    plugin: &'g str,
    export: &'g str,
    /// The first rule that calls it.
    rule: &'g str,
    file: Option<&'g Path>,
}

impl<'g> Plugins<'g> {
    fn of(graph: &'g Graph) -> Self {
        let named = graph.middleware.iter().filter_map(|entry| match &entry.middleware {
            Middleware::Plugin { module, export, .. } => Some(Named {
                plugin: module,
                export,
                rule: &entry.rule,
                file: graph.sources.get(&entry.rule).map(PathBuf::as_path),
            }),
            _ => None,
        });
        let mut named: Vec<_> = named.collect();
        named.sort();
        named.dedup();
        Self { looked_up: false, named }
    }

    /// For people; nothing where rules name none.
    fn note(&self, graph: &Graph) -> Option<String> {
        let each = self.named.iter().map(|one| format!("{}:{} ({})", one.plugin, one.export, graph.whose(one.rule)));
        let each: Vec<String> = each.collect();
        (!each.is_empty()).then(|| {
            let each = each.join(", ");
            format!("plugins were not looked up: {each}; `shipote plugin ls` shows those that there are")
        })
    }
}

pub(crate) fn run(args: &CompileArgs) -> anyhow::Result<ExitCode> {
    let object = args.dir.display();
    let sources = load_dir(&args.dir).with_context(|| format!("compile {object}"))?;
    let graph = match compile(&sources) {
        Ok(graph) => graph,
        Err(problems) => {
            for problem in &problems.0 {
                eprintln!("{problem}");
            }
            anyhow::bail!("compile {object}: {}; see above", counted(problems.0.len(), "problem"));
        }
    };
    for warning in &graph.warnings {
        eprintln!("warning: {warning}");
    }
    let plugins = Plugins::of(&graph);
    if let Some(note) = plugins.note(&graph) {
        eprintln!("note: {note}");
    }
    let text = match if args.json { Format::Json } else { args.format } {
        Format::Summary => summary(&graph),
        Format::Json => serde_json::to_string(&Compiled { graph: &graph, plugins })? + "\n",
        Format::Mermaid => mermaid(&graph),
    };
    std::io::stdout().write_all(text.as_bytes()).context("write the graph to stdout")?;
    Ok(ExitCode::SUCCESS)
}

fn summary(graph: &Graph) -> String {
    let mut out = String::new();
    for listener in &graph.listeners {
        let transport = listener.listen.transport.name();
        let tls = if listener.tls.is_some() { " tls" } else { "" };
        let rules = listener.rules.join(", ");
        out.push_str(&format!("{transport} {}{tls}: {rules}\n", listener.listen.address));
    }
    let counts = [
        (graph.nodes.len(), "node"),
        (graph.checks.len(), "check"),
        (graph.middleware.len(), "middleware"),
        (graph.terminators.len(), "terminator"),
    ];
    out.push_str(&counts.map(|(n, what)| counted(n, what)).join(", "));
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that finds nothing has failed")]

    use serde_json::json;
    use shipote_rules::Source;

    use super::*;

    #[test]
    fn plugins_that_rules_name_are_told_as_not_looked_up() {
        let rule = |name: &str, port: u16, chain: serde_json::Value| {
            json!({"name": name, "listen": [format!("127.0.0.1:{port}")], "middleware_chain": chain,
                "terminate": {"type": "static", "status": 200}})
        };
        let calls = json!([{"use": "jwt:check"}, {"use": "stamp:l7-response"}]);
        let rules = json!({"rules": [rule("a", 8001, json!([])), rule("b", 8002, calls)]});
        let graph = compile(&[Source::new("web.json", rules.to_string())]).unwrap();
        let plugins = Plugins::of(&graph);
        let note = plugins.note(&graph).unwrap();
        for part in ["not looked up", "jwt:check (web.json: rule \"b\")", "stamp:l7-response (web.json: rule \"b\")"] {
            assert!(note.contains(part), "{note}");
        }
        let printed = serde_json::to_value(Compiled { graph: &graph, plugins }).unwrap();
        assert_eq!(printed["listeners"].as_array().unwrap().len(), 2, "the graph is there as before");
        assert_eq!(printed["plugins"]["looked_up"], false);
        let jwt = json!({"plugin": "jwt", "export": "check", "rule": "b", "file": "web.json"});
        assert_eq!(printed["plugins"]["named"][0], jwt);
        let none = compile(&[Source::new("web.json", json!({"rules": [rule("a", 8001, json!([]))]}).to_string())]);
        let none = none.unwrap();
        assert!(Plugins::of(&none).note(&none).is_none());
    }
}
