//! The versions at work and how they are linked, drawn.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::json;

use crate::error::Error;
use crate::links::{at_work, faults, providers};
use crate::store::{Entry, Index};

type Plugins<'a> = BTreeMap<&'a str, (String, &'a Entry)>;

/// Draws the graph as `text`, `mermaid`, `dot` or `json`.
pub(crate) fn draw(index: &Index, format: &str) -> Result<String, Error> {
    let plugins = at_work(index);
    Ok(match format {
        "text" => text(&plugins, index),
        "mermaid" => mermaid(&plugins),
        "dot" => dot(&plugins),
        "json" => json_of(&plugins, index).to_string(),
        other => {
            let known = "text, mermaid, dot and json";
            return Err(Error::InvalidArgument(format!("graph format {other:?} is not known; there are {known}")));
        }
    })
}

fn kinds(entry: &Entry) -> String {
    let mut kinds: Vec<&str> = entry.metadata.exports.iter().map(|export| export.kind.name()).collect();
    kinds.dedup();
    if kinds.is_empty() { "for other plugins".to_owned() } else { kinds.join(", ") }
}

fn text(plugins: &Plugins<'_>, index: &Index) -> String {
    let mut out = String::new();
    // What others use is drawn below them.
    let used: Vec<&str> = plugins
        .values()
        .flat_map(|(_, entry)| entry.links.sockets.iter())
        .flat_map(|(interface, socket)| providers(plugins, interface, socket))
        .collect();
    for (name, (version, entry)) in plugins {
        if !used.contains(name) || !entry.metadata.exports.is_empty() {
            let _ = writeln!(out, "{name} {version} ({})", kinds(entry));
            branch(plugins, entry, "", &mut vec![name], &mut out);
        }
    }
    for fault in faults(index) {
        let _ = writeln!(out, "does not fit: {fault}");
    }
    out
}

fn branch<'a>(plugins: &Plugins<'a>, entry: &Entry, indent: &str, path: &mut Vec<&'a str>, out: &mut String) {
    let count = entry.links.sockets.len();
    for (at, (interface, socket)) in entry.links.sockets.iter().enumerate() {
        let (corner, bar) = if at + 1 == count { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        let found = providers(plugins, interface, socket);
        let short = if socket.cardinality.admits(found.len()) { "" } else { ": does not fit" };
        let _ = writeln!(out, "{indent}{corner}{interface} ({}){short}", socket.cardinality.name());
        let indent = format!("{indent}{bar}");
        for (at, provider) in found.iter().enumerate() {
            let (corner, bar) = if at + 1 == found.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let Some((version, entry)) = plugins.get(provider) else { continue };
            let round = path.contains(provider);
            let _ = writeln!(out, "{indent}{corner}{provider} {version}{}", if round { " (cycle)" } else { "" });
            if !round {
                path.push(provider);
                branch(plugins, entry, &format!("{indent}{bar}"), path, out);
                path.pop();
            }
        }
    }
}

/// Plugin, interface, how many are wanted, provider.
fn edges<'a>(plugins: &'a Plugins<'a>) -> impl Iterator<Item = (&'a str, &'a str, &'static str, Option<&'a str>)> {
    plugins.iter().flat_map(move |(name, (_, entry))| {
        entry.links.sockets.iter().flat_map(move |(interface, socket)| {
            let found = providers(plugins, interface, socket);
            let to: Vec<Option<&str>> =
                if found.is_empty() { vec![None] } else { found.into_iter().map(Some).collect() };
            to.into_iter().map(move |to| (*name, interface.as_str(), socket.cardinality.name(), to))
        })
    })
}

fn mermaid(plugins: &Plugins<'_>) -> String {
    let number = |name: &str| plugins.keys().position(|known| *known == name).unwrap_or_default();
    let mut out = "flowchart LR\n".to_owned();
    for (name, (version, entry)) in plugins {
        let _ = writeln!(out, "  p{}[\"{name} {version}<br/>{}\"]", number(name), kinds(entry));
    }
    for (at, (from, interface, wanted, to)) in edges(plugins).enumerate() {
        match to {
            Some(to) => {
                let _ = writeln!(out, "  p{} -- \"{interface} ({wanted})\" --> p{}", number(from), number(to));
            }
            None => {
                let _ =
                    writeln!(out, "  p{} -. \"{interface} ({wanted})\" .-> none{at}([\"no plugin\"])", number(from));
            }
        }
    }
    out
}

fn dot(plugins: &Plugins<'_>) -> String {
    let mut out = "digraph plugins {\n  rankdir=LR;\n  node [shape=box];\n".to_owned();
    for (name, (version, entry)) in plugins {
        let _ = writeln!(out, "  \"{name}\" [label=\"{name} {version}\\n{}\"];", kinds(entry));
    }
    for (at, (from, interface, wanted, to)) in edges(plugins).enumerate() {
        match to {
            Some(to) => {
                let _ = writeln!(out, "  \"{from}\" -> \"{to}\" [label=\"{interface} ({wanted})\"];");
            }
            None => {
                let _ = writeln!(out, "  \"none {at}\" [label=\"no plugin\", shape=oval];");
                let _ =
                    writeln!(out, "  \"{from}\" -> \"none {at}\" [label=\"{interface} ({wanted})\", style=dashed];");
            }
        }
    }
    out + "}\n"
}

fn json_of(plugins: &Plugins<'_>, index: &Index) -> serde_json::Value {
    let plugin = |(name, (version, entry)): (&&str, &(String, &Entry))| {
        let sockets = entry.links.sockets.iter().map(|(interface, socket)| {
            json!({
                "interface": interface,
                "cardinality": socket.cardinality,
                "functions": socket.functions,
                "plugins": providers(plugins, interface, socket),
            })
        });
        json!({
            "name": name,
            "version": version,
            "digest": entry.digest,
            "exports": entry.metadata.exports,
            "plugs": entry.links.plugs,
            "sockets": sockets.collect::<Vec<_>>(),
        })
    };
    json!({"plugins": plugins.iter().map(plugin).collect::<Vec<_>>(), "faults": faults(index)})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::tests::index;
    use shipote_plugin_abi::policy::Cardinality::{Any, ExactlyOne};

    #[test]
    fn each_format_shows_what_is_linked_and_what_is_missing() {
        let index = index(&[
            ("edge", &[], &[("a:b/leaf", ExactlyOne), ("a:b/log", Any), ("a:b/none", ExactlyOne)]),
            ("leaf", &["a:b/leaf"], &[]),
            ("log-a", &["a:b/log"], &[]),
            ("log-b", &["a:b/log"], &[]),
        ]);
        let text = draw(&index, "text").unwrap();
        let expected = "edge 1.0.0 (for other plugins)
├─ a:b/leaf (exactly-one)
│  └─ leaf 1.0.0
├─ a:b/log (any)
│  ├─ log-a 1.0.0
│  └─ log-b 1.0.0
└─ a:b/none (exactly-one): does not fit
does not fit: edge 1.0.0: socket a:b/none wants exactly-one, 0 fit
";
        assert_eq!(text, expected);
        let mermaid = draw(&index, "mermaid").unwrap();
        assert!(mermaid.contains("p0 -- \"a:b/log (any)\" --> p3") && mermaid.contains("no plugin"), "{mermaid}");
        let dot = draw(&index, "dot").unwrap();
        assert!(dot.contains("\"edge\" -> \"leaf\" [label=\"a:b/leaf (exactly-one)\"]"), "{dot}");
        let json: serde_json::Value = serde_json::from_str(&draw(&index, "json").unwrap()).unwrap();
        assert_eq!(json["plugins"][0]["sockets"][1]["plugins"], json!(["log-a", "log-b"]));
        assert!(draw(&index, "png").is_err());
    }
}
