//! `shipote proxy compile DIR`: works without a service.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use shipote_rules::{Graph, compile, load_dir, mermaid};

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

pub(crate) fn run(args: &CompileArgs) -> anyhow::Result<ExitCode> {
    let object = args.dir.display();
    let sources = load_dir(&args.dir).with_context(|| format!("compile {object}"))?;
    let graph = match compile(&sources) {
        Ok(graph) => graph,
        Err(problems) => {
            for problem in &problems.0 {
                eprintln!("{problem}");
            }
            let count = problems.0.len();
            anyhow::bail!("compile {object}: {count} problem{}; see above", if count == 1 { "" } else { "s" });
        }
    };
    for warning in &graph.warnings {
        eprintln!("warning: {warning}");
    }
    let text = match if args.json { Format::Json } else { args.format } {
        Format::Summary => summary(&graph),
        Format::Json => serde_json::to_string(&graph)? + "\n",
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
        (graph.nodes.len(), "nodes"),
        (graph.checks.len(), "checks"),
        (graph.middleware.len(), "middlewares"),
        (graph.terminators.len(), "terminators"),
    ];
    out.push_str(&counts.map(|(n, what)| format!("{n} {what}")).join(", "));
    out.push('\n');
    out
}
