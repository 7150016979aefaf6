//! Reading what people hand over: spec files and KEY=VALUE pairs.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use shipote_bus::workspaces::SPEC_MAX;

/// Reads a spec; `-` is standard input. Refuses what is too large before it is read whole.
pub(crate) fn read_spec(path: &Path) -> anyhow::Result<String> {
    let name = path.display();
    let mut bytes = Vec::new();
    let limit = SPEC_MAX as u64 + 1;
    if path == Path::new("-") {
        std::io::stdin().take(limit).read_to_end(&mut bytes).context("read the spec from standard input")?;
    } else {
        let file = std::fs::File::open(path).with_context(|| format!("read spec {name}"))?;
        file.take(limit).read_to_end(&mut bytes).with_context(|| format!("read spec {name}"))?;
    }
    if bytes.len() > SPEC_MAX {
        bail!("read spec {name}: it is larger than {SPEC_MAX} bytes; a spec is a text of some lines");
    }
    String::from_utf8(bytes).map_err(|e| {
        anyhow::anyhow!("read spec {name}: byte {} is not UTF-8; save it as UTF-8", e.utf8_error().valid_up_to())
    })
}

/// What a spec's file is called in what is said of it.
pub(crate) fn source(file: &Path) -> String {
    if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() }
}

/// What a service says is wrong with a spec, with the file's name where the service has its own word (`workspace:2:1`) for
/// what it was sent without one.
pub(crate) fn in_source(said: &str, word: &str, source: &str) -> String {
    let Some((operation, problem)) = said.split_once(": ") else { return format!("{source}: {said}") };
    // The name is from the command line, not from the file.
    if problem.starts_with("label: ") || problem.starts_with("a name has ") {
        return said.to_owned();
    }
    match problem.strip_prefix(word).filter(|rest| rest.starts_with(':')) {
        Some(rest) => format!("{operation}: {source}{rest}"),
        None => format!("{operation}: {source}: {problem}"),
    }
}

/// The same of a spec that the service got otherwise than it stands in the file, whose lines are not those of the file.
pub(crate) fn in_changed_source(said: &str, word: &str, source: &str) -> String {
    let named = in_source(said, word, source);
    let Some((before, after)) = named.split_once(source) else { return named };
    let is_place = |c: char| c == ':' || c.is_ascii_digit();
    match after.find(|c| !is_place(c)) {
        Some(end) => format!("{before}{source}:{}", &after[end..]),
        None => named,
    }
}

/// Splits `KEY=VALUE`; for clap.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it is not KEY=VALUE".to_owned()),
    }
}

/// The spec of a workspace that differs from the default in its network, in what it serves and in its sleep after
/// `idle` alone.
pub(crate) fn network(
    publish: &[u16],
    serve: &[PathBuf],
    egress: &[String],
    ask: bool,
    idle: Option<Duration>,
) -> anyhow::Result<String> {
    let outbound = ask || !egress.is_empty();
    let networking = match (outbound, publish) {
        (true, _) => "outbound",
        (false, []) => "none",
        (false, _) => "loopback",
    };
    let mut spec = toml::Table::new();
    if let Some(millis) = idle.and_then(crate::units::millis) {
        spec.insert("idle".to_owned(), i64::try_from(millis).context("--idle is longer than can be counted")?.into());
    }
    spec.insert("publish".to_owned(), publish.iter().map(|port| i64::from(*port)).collect::<Vec<_>>().into());
    if !serve.is_empty() {
        spec.insert("serve".to_owned(), toml::Value::try_from(serve).context("write the programs that it serves")?);
    }
    if outbound {
        spec.insert("egress".to_owned(), egress.to_vec().into());
        spec.insert("egress_ask".to_owned(), ask.into());
    }
    spec.insert(
        "permissions".to_owned(),
        toml::Table::from_iter([("networking".to_owned(), networking.into())]).into(),
    );
    Ok(spec.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_called_by_its_file() {
        let table = [
            ("create workspace: workspace:2:1: a.b: unknown key", "create workspace: w.toml:2:1: a.b: unknown key"),
            ("create workspace: egress: is for", "create workspace: w.toml: egress: is for"),
            ("create workspace: workspaces: are two", "create workspace: w.toml: workspaces: are two"),
            ("create workspace: label: is empty", "create workspace: label: is empty"),
            ("it is too large", "w.toml: it is too large"),
        ];
        for (said, want) in table {
            assert_eq!(in_source(said, "workspace", "w.toml"), want);
        }
        let said = "machine m: spec:12:3: memry: unknown key";
        assert_eq!(in_changed_source(said, "spec", "m.toml"), "machine m: m.toml: memry: unknown key");
    }
}
