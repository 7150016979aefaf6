//! `shipote explain`: what a command was refused. Its workspace has to have `explain = true` in its spec.

use std::io::Write;
use std::process::ExitCode;

use serde_json::json;
use shipote_bus::workspaces::RefusalInfo;

use crate::egress::printable;
use crate::output;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  shipote run --explain -- make install\n  \
    shipote workspace create build -f explained.toml    # with `explain = true`\n  \
    shipote run -w build -d -- make install\n  shipote explain 3FQ7AB\n\n\
    WHY: absent (the workspace was not given it), read-only, permission (file mode or landlock),\n\
    network (nothing leads there), system-call (no sandboxed command may make it).\n\
    Each is told the first time it happens. It is an explanation, not a record: a command that wants to\n\
    can make it say something else, but cannot change what it is refused.")]
pub(crate) struct ExplainArgs {
    /// Id of a command, living or ended, or its last six characters or more
    id: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let manager = output::workspaces().await?;
    let refusals = manager.explain_command(&args.id).await.map_err(|e| output::refusal(&e))?;
    if args.json {
        output::json(&json!({"id": args.id, "refusals": refusals}))?;
    } else if refusals.is_empty() {
        eprintln!("it was refused nothing");
    } else {
        print(std::io::stdout().lock(), &refusals, "");
    }
    Ok(ExitCode::SUCCESS)
}

/// A table of refusals, or the sentence that there are none.
pub(crate) fn print(mut out: impl Write, refusals: &[RefusalInfo], none: &str) {
    let row = |r: &RefusalInfo| {
        // the command chose it: no escape sequence reaches the terminal
        let object = printable(&r.object);
        let object = if object.is_empty() { "-".to_owned() } else { object };
        vec![r.why.clone(), r.system_call.clone(), object, r.error.clone(), r.way_out.clone()]
    };
    let text = match refusals {
        [] => format!("{none}\n"),
        all => output::table(&["WHY", "CALL", "OBJECT", "ERROR", "WAY OUT"], all.iter().map(row)).to_string(),
    };
    for line in text.lines() {
        // nobody reads it any more
        if writeln!(out, "{}", line.trim_end()).is_err() {
            return;
        }
    }
}
